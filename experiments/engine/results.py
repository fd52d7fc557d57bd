"""Runs and their results: what a run is, and a file of JSON lines that they are kept in."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import reporting
from experiments.engine.contender import Hyper
from experiments.engine.workload import SplitName

Phase = Literal["tuning", "final", "robustness"]
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training run; two jobs are the same if all of this is.

    Attributes:
        phase: What the run is for.
        workload: Name of the task.
        contender: Name of the optimizer.
        settings: `Contender.settings`.
        trial: Number of the hyperparameters among those tried; for the reader alone.
        hyper: The hyperparameters.
        seed: Of initial parameters, batches and dropout; the same for all contenders.
        steps: Length of the run.
        points: How often it is evaluated.
    """

    phase: Phase
    workload: str
    contender: str
    settings: str
    trial: str
    hyper: Hyper
    seed: int
    steps: int
    points: int

    @property
    def split(self) -> SplitName:
        """What the evaluations read."""
        return "test" if self.phase == "final" else "validation"

    def as_json(self) -> dict[str, Any]:
        """Return all fields, as a line of the results begins."""
        return dataclasses.asdict(self)


def identity(line: Mapping[str, Any]) -> str:
    """Return what tells two runs apart, from a line of the results or a job as JSON."""
    fields = {field.name: line[field.name] for field in dataclasses.fields(Job)}
    return json.dumps(fields, sort_keys=True)


class Results:
    """The finished runs of a file of JSON lines, to which more are appended.

    Args:
        path: The file; it need not exist. A last line that was cut off is removed.

    Raises:
        ValueError: If another line is no result.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._found: dict[str, Result] = {}
        if path.exists():
            _drop_half_a_line(path)
            self._found = {identity(line): line for line in read_results(path)}

    def find(self, job: Job) -> Result | None:
        """Return the result of a job, or `None` if it is still to be run."""
        return self._found.get(identity(job.as_json()))

    def append(self, result: Result) -> None:
        """Add a finished run, safely on the disk when this returns."""
        text = json.dumps(result, allow_nan=False) + "\n"
        with self._lock, self.path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            self._found[identity(result)] = result


def _drop_half_a_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def read_results(path: Path) -> list[Result]:
    """Read a file of JSON lines, which may be compressed (`.gz`).

    Args:
        path: The file.

    Raises:
        ValueError: If a line is no result; the message names it.
    """
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    results = []
    for number, written in enumerate(text.splitlines(), start=1):
        try:
            line = json.loads(written)
            identity(line)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a result ({error!r}).") from error
        results.append(line)
    return results


def write_compressed(path: Path, results: Iterable[Result]) -> None:
    """Write what figures are made of as compressed JSON lines, the same bytes for the same runs.

    Training losses are left out, but for runs in which they ceased to be finite; of a tuning
    run's curve only the ends are kept.

    Args:
        path: The file, `.gz`.
        results: The lines.
    """
    lines = sorted(json.dumps(_kept(result), sort_keys=True) for result in results)
    reporting.write_atomically(path, gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def _kept(result: Result) -> Result:
    kept = {name: value for name, value in result.items() if name not in ("train", "seconds")}
    kept["train"] = [None] if None in result["train"] else []
    if result["phase"] == "tuning":
        kept.pop("accuracy", None)
        curve = result["validation"]
        kept["validation"] = [curve[0], None if None in curve else curve[-1]]
    return kept


def final_loss(result: Result) -> float:
    """Return the loss at the end of a run; infinite if the run has diverged.

    Args:
        result: A line of the results.
    """
    return math.inf if diverged(result) else result["validation"][-1]


def diverged(result: Result) -> bool:
    """Say whether a loss is not finite, or at the end above the untrained model's.

    Args:
        result: A line of the results.
    """
    curve = result["validation"]
    return None in curve or None in result["train"] or curve[-1] > curve[0]


def note_provenance(path: Path) -> None:
    """Say by which code and where runs were made, each time.

    Args:
        path: A JSON file, to which it is added.
    """
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    reporting.write_json(path, {"runs": [*known, reporting.provenance()]})
