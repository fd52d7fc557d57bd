"""The study's pictures: learning curves, differences, stages, and singular values over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

from benchmarks import reporting
from experiments.engine import report
from experiments.engine.contender import BASELINE
from experiments.engine.statistics import bootstrap, curves_of
from experiments.spectral_study.arms import ARMS, LABELS, SPECTRAL
from experiments.spectral_study.controls import CONTROLS
from experiments.spectral_study.effects import Effect, Study, against_adamw, muon_effects

COLORS = dict(zip(ARMS, ("C0", "C1", "C2"), strict=True))
STAGES = {1: "stages-1", 2: "stages-2", 3: SPECTRAL, 4: "stages-4", 5: "stages-5"}


def curves(path: Path, study: Study, tasks: Sequence[str]) -> None:
    """Draw the mean test loss along the runs, against steps and against seconds.

    Args:
        path: The PNG.
        study: The runs.
        tasks: A column each.
    """
    timed = study.seconds is not None
    figure, axes = plt.subplots(
        1 + timed,
        len(tasks),
        figsize=(3.4 * len(tasks), 2.9 * (1 + timed)),
        layout="constrained",
        squeeze=False,
    )
    for column, task in zip(axes.T, tasks, strict=True):
        for arm in ARMS:
            for share in (0.6, 1.0):
                runs = study.finals(task, arm, share)
                if not runs:
                    continue
                steps = np.linspace(0, runs[0]["steps"], len(runs[0]["validation"]))
                style = "-" if share == 1.0 else "--"
                _band(column[0], steps, curves_of(runs), COLORS[arm], style)
                if study.seconds is not None and task in study.seconds:
                    each = float(np.median(study.seconds[task][arm]))
                    _band(column[1], steps * each, curves_of(runs), COLORS[arm], style)
        base = study.losses(task, BASELINE).mean()
        for panel, label in zip(column, ("step", "seconds on two CPU cores"), strict=False):
            panel.axhline(base, color="0.6", lw=0.8)
            panel.set(xlabel=label, yscale="log", ylim=(0.95 * base, 1.6 * base))
            panel.yaxis.set_major_formatter(ScalarFormatter())
            panel.yaxis.set_minor_formatter(ScalarFormatter())
        column[0].set_title(task)
    axes[0, 0].set_ylabel("test loss")
    handles = [Line2D([], [], color=COLORS[arm], label=LABELS[arm]) for arm in ARMS]
    label = f"{LABELS[SPECTRAL]}, runs of 0.6 of the steps"
    handles.append(Line2D([], [], color=COLORS[SPECTRAL], ls="--", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    report.save(figure, path)


def _band(panel: Axes, x: Any, losses: Any, color: str, style: str) -> None:
    bands = [reporting.t_interval(column) for column in losses.T]
    mean = np.array([band.mean for band in bands])
    half = np.nan_to_num([band.half_width for band in bands])
    panel.plot(x, mean, style, color=color, lw=1)
    panel.fill_between(x, mean - half, mean + half, color=color, alpha=0.2, lw=0)


def forest(path: Path, study: Study, tasks: Sequence[str]) -> None:
    """Draw the differences to AdamW, over fewer steps and all, and to Muon, with their intervals.

    Args:
        path: The PNG.
        study: The runs.
        tasks: A row each.
    """
    figure, axes = report.panels(2, 0.8 + 0.45 * len(tasks))
    effects = against_adamw(study, tasks)
    for place, (share, label) in enumerate(((0.6, "0.6"), (0.75, "0.75"), (1.0, "all"))):
        shown = {task: x for (task, of), x in effects.items() if of == share}
        _errors(axes[0], shown, tasks, 0.2 * (place - 1), f"C{2 + place}", f"{label} of the steps")
    axes[0].legend(fontsize="small")
    axes[0].set(xlabel="test loss, % to AdamW's at all steps (less is better)")
    _errors(axes[1], muon_effects(study, tasks), tasks, 0.0, "C2", "")
    axes[1].axvline(0.3, color="C3", lw=0.8, ls="--")  # the bar
    axes[1].set(xlabel="test loss, % to Muon's at equal steps (less is better)")
    report.save(figure, path)


def _errors(
    panel: Axes,
    effects: Mapping[str, Effect],
    tasks: Sequence[str],
    shift: float,
    color: str,
    label: str,
) -> None:
    for task, x in effects.items():
        mean = x.change.mean
        errors = [[mean - x.change.low], [x.change.high - mean]]
        panel.errorbar(
            [mean],
            [tasks.index(task) + shift],
            xerr=errors,
            fmt="o",
            ms=4,
            capsize=2,
            color=color,
            label=label if task == next(iter(effects)) else None,
        )
    panel.axvline(0, color="0.6", lw=0.8)
    panel.set_yticks(range(len(tasks)), tasks)
    panel.set_ylim(len(tasks) - 0.5, -0.5)


def stages(path: Path, study: Study, tasks: Sequence[str]) -> None:
    """Draw the loss against the number of stages, beside one upload and the exact sign.

    Args:
        path: The PNG.
        study: The runs.
        tasks: With controls, a panel each.
    """
    figure, axes = report.panels(len(tasks), 3.2)
    for panel, task in zip(axes, tasks, strict=True):
        runs = study.of_controls(task)
        means = {name: bootstrap(curves_of(lines)[:, -1]) for name, lines in runs.items()}
        counts = [count for count, name in STAGES.items() if name in means]
        found = [means[STAGES[count]] for count in counts]
        errors = [[x.mean - x.low for x in found], [x.high - x.mean for x in found]]
        values = [x.mean for x in found]
        panel.errorbar(counts, values, yerr=errors, fmt="o-", ms=4, capsize=2, color="C2")
        for color, name in {"0.5": "one-upload", "C4": "svd-root", "C1": "svd-sign"}.items():
            loss = means[name].mean
            if loss < 1.2 * max(values):  # else the points would be a line
                panel.axhline(loss, color=color, lw=1, label=CONTROLS[name].label)
        panel.set(title=task, xlabel="stages of Polar Express", ylabel="test loss", xticks=counts)
        panel.legend(fontsize="small")
    report.save(figure, path)


def spectra(path: Path, found: Mapping[str, Any]) -> None:
    """Draw the singular values of how far a matrix moved, at some steps, a panel an optimizer.

    Args:
        path: The PNG.
        found: `steps`, and under `sigma` by optimizer what `measure.spectra` returned.
    """
    arms = list(found["sigma"])
    figure, axes = plt.subplots(
        1, len(arms), figsize=(3.4 * len(arms), 3), sharey=True, layout="constrained", squeeze=False
    )
    for panel, arm in zip(axes[0], arms, strict=True):
        for place, (step, sigma) in enumerate(
            zip(found["steps"], found["sigma"][arm], strict=True)
        ):
            color = plt.get_cmap("viridis")(place / max(1, len(found["steps"]) - 1))
            panel.plot(np.arange(1, len(sigma) + 1), sigma, color=color, label=f"step {step:,}")
        panel.set(title=LABELS[arm], xlabel="singular value, the largest first", yscale="log")
    axes[0, 0].set_ylabel("σ of the change since the start")
    axes[0, -1].legend(fontsize="small")
    report.save(figure, path)
