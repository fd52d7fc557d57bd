"""What the benchmark scripts share: provenance, intervals, tables, JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.table
from rich.console import Console
from scipy import stats

os.environ.setdefault("MPLBACKEND", "Agg")  # No display is needed to write a PNG.

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "pennylane",
    "pennylane-lightning",
    "numpy",
    "orbax-checkpoint",
)


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided confidence interval; the half width of one value is NaN."""

    mean: float
    half_width: float
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        """Return mean, bounds and size; JSON has no NaN, so null stands for what is unknown."""
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return {"mean": finite(self.mean), "low": finite(low), "high": finite(high), "n": self.n}


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean; all NaN if any value is infinite."""
    array = np.asarray(values, dtype=float)
    if not np.isfinite(array).all():
        return Interval(float("nan"), float("nan"), len(array))
    if len(array) < 2:
        return Interval(float(array.mean()), float("nan"), len(array))
    quantile = stats.t.ppf((1 + confidence) / 2, len(array) - 1)
    return Interval(float(array.mean()), float(quantile * stats.sem(array)), len(array))


def finite(value: float) -> float | None:
    """Return the value, or None for what JSON cannot write."""
    return value if np.isfinite(value) else None


def provenance() -> dict[str, Any]:
    """Say what ran where: versions, device, arguments, git revision, date.

    Absolute paths are reduced to their last part: results are published, machines are not.
    """
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": ["=".join(map(_without_folder, word.split("="))) for word in sys.argv],
        "git": git_revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": {"platform": device.platform, "kind": device.device_kind},
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
    }


def git_revision() -> dict[str, Any]:
    """Return the checked-out commit, and whether the working tree differs from it."""

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *arguments],
                cwd=Path(__file__).parent,
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    status = git("status", "--porcelain")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _without_folder(word: str) -> str:
    return Path(word).name if Path(word).is_absolute() else word


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON: a value that is not finite is an error, not `NaN` in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all: whoever is killed here leaves no half a file."""
    whole = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    whole.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(whole, path)


@dataclass(frozen=True)
class Table:
    """What a run has found: first column to the left, figures to the right, notes below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def print(self) -> None:
        """Print it, in full however narrow the terminal."""
        table = rich.table.Table(
            title=self.title, title_justify="left", caption="\n".join(self.notes) or None
        )
        table.caption_justify = "left"
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        # It takes no more than its rows need; of a terminal's or a pipe's width names are cut off.
        Console(width=10_000).print(table)

    def markdown(self) -> str:
        """Return it as GitHub's markdown; the title is a line above, notes become sentences."""
        lines = [f"**{self.title}**", "", markdown_table(self.columns, self.rows)]
        notes = " ".join(f"{note.removesuffix('.')}." for note in self.notes)
        return "\n".join([*lines, "", notes] if notes else lines)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as GitHub's markdown, the first column to the left, the others to the right.

    Args:
        columns: Titles.
        rows: Cells.
    """
    titles, *lines = ([cell.replace("|", r"\|") for cell in row] for row in (columns, *rows))
    rule = ["---", *("--:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *lines))
