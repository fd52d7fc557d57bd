"""The tables of the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.reporting import markdown_table
from experiments.engine.report import p_value
from experiments.engine.results import Result
from experiments.engine.statistics import curves_of, holm
from experiments.learned_cascades.study import FINAL, HAND_SET, SOONER, cascade_of
from experiments.spectral_study.arms import MUON
from experiments.spectral_study.effects import Effect, Losses, Study
from experiments.spectral_study.plan import Task


def sections(
    found: Mapping[str, Any], lines: Sequence[Result], reference: Sequence[Result]
) -> list[str]:
    """Return all tables with their titles, without those of which a run is missing.

    Args:
        found: What was learned, and its scores.
        lines: The runs.
        reference: Those of the spectral study, for Muon's.
    """
    parts = []
    if "scores" in found:
        parts += ["### On tasks that were looked at", choice(found)]
    if "best" in found:
        best, study = found["best"], Study(reference)
        if _all_there(lines, best, SOONER):
            parts += ["### On held-out tasks, in 0.9 of Muon's steps", sooner(best, lines, study)]
        if _all_there(lines, HAND_SET) and _all_there(lines, best):
            parts += ["### On held-out tasks, in as many steps", in_as_many(best, lines, study)]
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


def sooner(best: str, lines: Sequence[Result], study: Study) -> str:
    """Return the best learned cascade in fewer steps than Muon's.

    Args:
        best: Its name.
        lines: The runs.
        study: Muon's.
    """
    muon = {task: study.losses(task.name, MUON) for task in FINAL}
    effects = {
        task: Effect.of(_losses(lines, task, best, SOONER), muon[task], "less") for task in FINAL
    }
    adjusted = holm([effect.p for effect in effects.values()])
    rows = [
        [task.name, f"{muon[task].mean():.4f}", str(effect), p_value(p)]
        for (task, effect), p in zip(effects.items(), adjusted, strict=True)
    ]
    return markdown_table(["task", "Muon's loss", "learned to it", "p (less)"], rows)


def in_as_many(best: str, lines: Sequence[Result], study: Study) -> str:
    """Return the best learned cascade against the hand-set one and Muon.

    Args:
        best: Its name.
        lines: The runs.
        study: Muon's.
    """
    rows = []
    for task in FINAL:
        hand_set, learned = (_losses(lines, task, name) for name in (HAND_SET, best))
        over = Effect.of(learned, hand_set)
        to_muon = Effect.of(learned, study.losses(task.name, MUON))
        first = [task.name, f"{hand_set.mean():.4f}", str(over), p_value(over.p)]
        rows.append([*first, str(to_muon), p_value(to_muon.p)])
    columns = ["task", "hand-set cascade's loss", "learned to it", "p", "learned to Muon", "p"]
    return markdown_table(columns, rows)


def _losses(lines: Sequence[Result], task: Task, name: str, share: float = 1.0) -> Losses:
    return curves_of(_runs(lines, task, name, share))[:, -1]


def _all_there(lines: Sequence[Result], name: str, share: float = 1.0) -> bool:
    return all(
        sorted(x["seed"] for x in _runs(lines, task, name, share)) == list(range(task.seeds))
        for task in FINAL
    )


def _runs(lines: Sequence[Result], task: Task, name: str, share: float) -> list[Result]:
    wanted = "final", task.name, round(share * task.horizon), name
    return [x for x in lines if (x["phase"], x["workload"], x["steps"], cascade_of(x)) == wanted]
