"""The results of the evidence study, as a folder holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.contender import BASELINE
from experiments.engine.results import read_results
from experiments.engine.statistics import Comparison, Estimate
from experiments.evidence.effects import (
    ACCURACY,
    LOSS,
    Measure,
    TaskResults,
    ratio_of_medians,
    success,
)
from experiments.evidence.superposed import RETIRED, everything
from experiments.evidence.table import PARTS, PUBLISHED, SWEPT, split_name
from experiments.optimizers import classical
from experiments.workloads import nonconvex

RESULTS = ("results.jsonl", "results.jsonl.gz")
MEASURED = ("stability", "norms", "cost", "provenance")
ACCURACY_TARGET = 90.0  # per cent, the paper's


@dataclass(frozen=True)
class Study:
    """What a folder of results holds.

    Attributes:
        comparison: The runs.
        stability: Maps of Eq. 1 on a parabola, by form.
        norms: Relative norms of the perturbation, by form, of each seed.
        cost: Seconds of an epoch, by arm, of each round.
        provenance: Where, when and by which code each part was run.
    """

    comparison: Comparison
    stability: Mapping[str, Any]
    norms: Mapping[str, Any]
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def task(self, workload: str, target: float | None = None) -> TaskResults:
        """Return the results of a task with its measure.

        Args:
            workload: The task's name.
            target: As in `TaskResults`.
        """
        measure = self._measure(workload)
        return TaskResults(self.comparison, workload, measure, target, list(self.labels))

    def _measure(self, workload: str) -> Measure:
        if is_landscape(workload):
            return success(nonconvex.landscape(*split_name(workload)).tolerance)
        runs = self.comparison.runs(workload, BASELINE).values()
        return ACCURACY if "accuracy" in next(iter(runs)) else LOSS

    @property
    def workloads(self) -> list[str]:
        """The tasks with final runs of AdamW, in the table's order."""
        known = [name for part in PARTS.values() for name in part.horizons]
        return [name for name in known if name in self.comparison.workloads]

    @property
    def tasks(self) -> list[TaskResults]:
        """All but the landscapes, each with its target."""
        names = [name for name in self.workloads if not is_landscape(name)]
        return [
            self.task(name, ACCURACY_TARGET if PUBLISHED in name or SWEPT in name else None)
            for name in names
        ]

    @cached_property
    def labels(self) -> dict[str, str]:
        """What tables call the contenders."""
        labels = {name: contender.label for name, contender in everything().items()}
        return {name: labels[name] for name in classical()} | RETIRED | labels

    def cost_ratio(self, arm: str) -> Estimate | None:
        """Return the median ratio of an epoch's time to AdamW's, minus 1, in per cent."""
        if arm not in self.cost:
            return None
        one, base = np.array(self.cost[arm]), np.array(self.cost[BASELINE])
        return ratio_of_medians(one / base, np.ones(len(one)))


def is_landscape(workload: str) -> bool:
    """Say whether a task is a landscape.

    Args:
        workload: The task's name.
    """
    return workload.rpartition("-")[0] in nonconvex.NAMES


def read_study(folder: Path) -> Study:
    """Read a folder of results.

    Args:
        folder: Holds `results.jsonl`, which may be compressed, and what other files there are.

    Raises:
        FileNotFoundError: If there are no results.
    """
    files = [folder / name for name in RESULTS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(RESULTS)}.")

    def content(name: str) -> dict[str, Any]:
        file = folder / f"{name}.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    lines = read_results(files[0])
    # Of a study that is not finished, what can be compared already.
    ready = {r["workload"] for r in lines if (r["phase"], r["contender"]) == ("final", BASELINE)}
    comparison = Comparison([line for line in lines if line["workload"] in ready])
    return Study(comparison, *map(content, MEASURED))
