"""The tables of the record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from benchmarks.reporting import markdown_table
from experiments.engine.contender import BASELINE
from experiments.engine.results import Result
from experiments.engine.statistics import Losses, curves_of
from experiments.noisy_cascades.probing import EXACT, REFITTED
from experiments.noisy_cascades.study import TASKS, Arm, kept, runs_of
from experiments.spectral_study.effects import Effect, Study
from experiments.spectral_study.plan import Task

ENOUGH = 0.3  # per cent of the loss, within which a device is said not to matter


def sections(arms: Iterable[Arm], lines: Sequence[Result], reference: Study) -> list[str]:
    """Return a table for each task whose runs are complete, with its title.

    Args:
        arms: All of them.
        lines: The runs.
        reference: The spectral study, for AdamW's runs.
    """
    arms, parts = list(arms), []
    for task in TASKS:
        if all(len(runs_of(task, arm, lines)) == task.seeds for arm in arms):
            parts += [f"### {task.name}", noise(task, arms, lines, reference)]
    return parts


def noise(task: Task, arms: Sequence[Arm], lines: Sequence[Result], reference: Study) -> str:
    """Return what each device's cascade costs.

    Args:
        task: The task.
        arms: All of them.
        lines: The runs.
        reference: The spectral study, for AdamW's runs.
    """
    found = {arm: curves_of(runs_of(task, arm, lines))[:, -1] for arm in arms}
    exact = found[Arm(EXACT, REFITTED)]
    adamw = curves_of(reference.finals(task.name, BASELINE)[: task.seeds])[:, -1]
    rows = []
    for arm, losses in found.items():
        if arm.device == EXACT:
            rows.append([EXACT, "", f"{losses.mean():.4f}", "", "", "1"])
            continue
        over = Effect.of(losses, exact)
        enough = "yes" if over.change.high <= ENOUGH else "no"
        left = _kept(adamw, exact, losses)
        rows.append([arm.device, arm.how, f"{losses.mean():.4f}", str(over), enough, left])
    columns = ["device", "how", "final loss", "to the exact cascade's"]
    return markdown_table([*columns, f"within {ENOUGH} %", "gain over AdamW that is left"], rows)


def _kept(adamw: Losses, exact: Losses, noisy: Losses) -> str:
    # The mean over seeds along the last axis, as scipy asks.
    found = stats.bootstrap(
        (adamw, exact, noisy),
        lambda *losses, axis=-1: kept(*losses),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return f"{kept(adamw, exact, noisy):.2f} [{found.low:.2f}, {found.high:.2f}]"
