"""The tables of the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.reporting import markdown_table
from experiments.engine.report import p_value
from experiments.engine.results import Result
from experiments.engine.statistics import curves_of, holm
from experiments.learned_cascades.study import FINAL, HAND_SET, cascade_of
from experiments.spectral_study.arms import MUON
from experiments.spectral_study.effects import Effect, Losses, Study
from experiments.spectral_study.plan import Task


def sections(
    found: Mapping[str, Any], lines: Sequence[Result], reference: Sequence[Result]
) -> list[str]:
    """Return all tables with their titles; parts that were not run are left out.

    Args:
        found: What was learned, and its scores.
        lines: The runs.
        reference: Those of the spectral study, for Muon's.
    """
    parts = []
    if "scores" in found:
        parts += ["### On tasks that were looked at", choice(found)]
    if any(x["phase"] == "final" for x in lines):
        parts += ["### On held-out tasks", held_out(found["best"], lines, Study(reference))]
    return parts


def choice(found: Mapping[str, Any]) -> str:
    """Return what was learned, the best first, by its loss over the hand-set cascade's.

    Args:
        found: What was learned, and its scores.
    """
    scores = found["scores"]
    tasks = list(next(iter(scores.values())))
    ordered = sorted(scores, key=lambda name: np.mean(list(scores[name].values())))
    rows = []
    for name in ordered:
        each = [scores[name][task] for task in tasks]
        rows.append([name, *map(_change, each), _change(float(np.mean(each)))])
    return markdown_table(["what was learned", *tasks, "mean"], rows)


def _change(log_ratio: float) -> str:
    return f"{100 * np.expm1(log_ratio):+.2f} %"


def held_out(best: str, lines: Sequence[Result], study: Study) -> str:
    """Return the best learned cascade against the hand-set one and Muon.

    Args:
        best: Its name.
        lines: The runs.
        study: Muon's.
    """

    def losses(task: Task, name: str, share: float = 1.0) -> Losses:
        wanted = "final", task.name, round(share * task.horizon), name
        return curves_of(
            [x for x in lines if (x["phase"], x["workload"], x["steps"], cascade_of(x)) == wanted]
        )[:, -1]

    muon = {task: study.losses(task.name, MUON) for task in FINAL}
    sooner = {
        task: Effect.of(losses(task, best, task.shares[0]), muon[task], "less") for task in FINAL
    }
    adjusted = holm([effect.p for effect in sooner.values()])
    rows = []
    for (task, effect), p in zip(sooner.items(), adjusted, strict=True):
        hand_set = losses(task, HAND_SET)
        learned = losses(task, best)
        over, to_muon = Effect.of(learned, hand_set), Effect.of(learned, muon[task])
        first = [task.name, f"{hand_set.mean():.4f}", str(over), p_value(over.p), str(to_muon)]
        rows.append([*first, str(effect), p_value(p)])
    columns = ["task", "hand-set cascade's loss", "learned to it", "p", "learned to Muon"]
    return markdown_table([*columns, "in 0.9 of Muon's steps", "p (less)"], rows)
