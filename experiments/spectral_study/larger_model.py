"""The fine-tuning of a larger model, which `benchmarks.llm_finetune` runs: its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.llm.report import tables
from benchmarks.reporting import markdown_table

TUNING = tuple(f"smollm2-{rate}.json" for rate in ("1e-5", "3e-5", "1e-4", "3e-4", "1e-3"))
FINAL = Path(__file__).parents[2] / "benchmarks/results/llm_finetune_spectral/llm_finetune.json"


def sections(folder: Path) -> list[str]:
    """Return the tables with their titles, where the tuning runs are stored.

    Args:
        folder: Of the study.
    """
    if not all((folder / name).exists() for name in TUNING):
        return []
    tuning = tuning_table([_read(folder / name) for name in TUNING])
    final = [table.markdown() for table in tables(_read(FINAL))]
    titles = "### SmolLM2: loss of the tuning runs", "### SmolLM2: final runs, fine-tuned on GSM8K"
    return [titles[0], tuning, titles[1], *final]


def tuning_table(contents: Sequence[Mapping[str, Any]]) -> str:
    """Return each optimizer's loss at each of its learning rates.

    Args:
        contents: Of the benchmark's files.
    """
    losses: dict[float, dict[str, str]] = {}
    for content in contents:
        arguments = content["arguments"]
        own = {"spectral": arguments.get("spectral_learning_rate")}
        for name, arm in content["arms"].items():
            rate = own.get(name) or arguments["learning_rate"]
            cells = losses.setdefault(rate, {})
            cells[name] = f"{arm['summary']['test_nll']['mean']:.4f}"
    rows = [
        [f"{rate:g}", cells.get("adamw", "–"), cells.get("spectral", "–")]
        for rate, cells in sorted(losses.items())
    ]
    return markdown_table(["learning rate", "AdamW", "spectral form"], rows)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())
