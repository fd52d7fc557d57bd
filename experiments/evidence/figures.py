"""The figures of the evidence study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks import reporting
from experiments.engine.contender import BASELINE
from experiments.engine.report import panels, save
from experiments.evidence import stability
from experiments.evidence.effects import Effect, Pair, TaskResults
from experiments.evidence.study import Study, is_landscape
from experiments.evidence.superposed import PAIRS, SWEEPS, SWEPT_ARMS
from experiments.evidence.table import DIMENSIONS, LANDSCAPE_ARMS, PUBLISHED, SWEPT, TOPICS
from experiments.workloads import nonconvex

CURVES = (BASELINE, "cautious", "paper", "noise", "everywhere", "circuit")


def draw(folder: Path, stem: str, study: Study) -> dict[str, str]:
    """Draw every figure that there are results for, and return the file names by figure.

    Args:
        folder: Where they go.
        stem: What their names begin with.
        study: The results.
    """
    tasks = study.tasks
    curves = [task for task in tasks if SWEPT not in task.workload]
    forest = [task for task in curves if PUBLISHED not in task.workload]
    drawings: dict[str, tuple[bool, Callable[[Path], None]]] = {
        "curves": (bool(curves), lambda path: _curves(path, study, curves)),
        "forest": (bool(forest), lambda path: _forest(path, study, forest)),
        "sweep": (bool(_swept(tasks)), lambda path: _sweep(path, _swept(tasks))),
        "landscapes": (
            any(map(is_landscape, study.workloads)),
            lambda path: _landscapes(path, study),
        ),
        "norms": (bool(study.norms), lambda path: _norms(path, study)),
        "stability": (
            bool(study.stability),
            lambda path: stability.plot(path, study.stability),
        ),
    }
    names = {name: f"{stem}_{name}.png" for name, (wanted, _) in drawings.items() if wanted}
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in names.items():
        drawings[name][1](folder / file)
    return names


def _curves(path: Path, study: Study, tasks: list[TaskResults]) -> None:
    figure, axes = panels(len(tasks), 3.0)
    for panel, task in zip(axes, tasks, strict=True):
        for color, name in enumerate(CURVES):
            if name not in task.contenders:
                continue
            curves = task.curves(name)[:, 1:]  # untrained models hide the rest
            bands = [reporting.t_interval(column) for column in curves.T]
            mean = np.array([band.mean for band in bands])
            half = np.nan_to_num([band.half_width for band in bands])
            x = task.horizon * np.arange(1, len(mean) + 1) / len(mean)
            look: dict[str, Any] = {"color": f"C{color}"}
            panel.plot(x, mean, lw=1, label=study.labels[name], **look)
            panel.fill_between(x, mean - half, mean + half, alpha=0.2, lw=0, **look)
        unit = "test loss" if task.measure.relative else "test accuracy, %"
        panel.set_title(task.workload, fontsize="medium")
        panel.set(xlabel="step", ylabel=unit)
        panel.legend(fontsize="x-small")
    save(figure, path)


def _forest(path: Path, study: Study, tasks: list[TaskResults]) -> None:
    """Effects against AdamW, and below them those against controls, a column a task."""
    effects = [
        task.against_baseline(name for name in task.contenders if name not in SWEPT_ARMS)
        | task.effects(PAIRS)
        for task in tasks
    ]
    against = [(name, BASELINE) for name in study.labels]
    rows = [pair for pair in [*against, *PAIRS] if any(pair in found for found in effects)]
    line = sum(pair[1] == BASELINE for pair in rows) - 0.5
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(4 + 2.2 * len(tasks), 1 + 0.17 * len(rows)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, task, found in zip(axes[0], tasks, effects, strict=True):
        for i, pair in enumerate(rows):
            if pair in found:
                _interval(panel, i, found[pair])
        panel.axvline(0, color="0.6", lw=0.8)
        panel.axhline(line, color="0.8", lw=0.8)
        side = "right" if task.measure.better > 0 else "left"
        panel.set_title(task.workload.replace(", ", ",\n"), fontsize="small")
        panel.set_xlabel(
            f"{task.measure.name}, {task.measure.unit}\n(better: {side})", fontsize="small"
        )
    axes[0, 0].set_yticks(range(len(rows)), [_name(study, pair) for pair in rows], fontsize="small")
    axes[0, 0].invert_yaxis()
    save(figure, path)


def _interval(panel: Axes, row: int, effect: Effect) -> None:
    difference = effect.difference
    errors = np.nan_to_num(
        [[difference.mean - difference.low], [difference.high - difference.mean]]
    )
    panel.errorbar([difference.mean], [row], xerr=errors, fmt="o", ms=3, capsize=2, color="C0")


def _name(study: Study, pair: Pair) -> str:
    one, other = (study.labels[name] for name in pair)
    return one if pair[1] == BASELINE else f"{one} − {other}"


def _swept(tasks: list[TaskResults]) -> list[TaskResults]:
    return [task for task in tasks if SWEPT_ARMS & set(task.contenders)]


def _sweep(path: Path, tasks: list[TaskResults]) -> None:
    """Differences to AdamW over λ, and over shots where they were run."""
    drawn = {
        (task, x): {
            varied: found
            for varied, names in SWEEPS.items()
            if varied.startswith(x)
            and (found := {v: name for v, name in names.items() if name in task.contenders})
        }
        for x in ("λ", "shots")
        for task in tasks
    }
    drawn = {key: lines for key, lines in drawn.items() if lines}
    figure, axes = panels(len(drawn), 2.8)
    for panel, ((task, x), lines) in zip(axes, drawn.items(), strict=True):
        for varied, names in lines.items():
            _line(panel, task, names, varied.removeprefix(f"{x}, "))
        _finish(panel, task, x)
    save(figure, path)


def _line(panel: Axes, task: TaskResults, names: dict[float, str], label: str) -> None:
    effects = task.against_baseline(names.values())
    known = [value for value, name in names.items() if (name, BASELINE) in effects]
    means = np.array([effect.difference.mean for effect in effects.values()])
    bounds = np.array([[e.difference.low, e.difference.high] for e in effects.values()]).T
    errors = np.nan_to_num(np.abs(bounds - means))
    panel.errorbar(known, means, yerr=errors, fmt="o-", ms=3, lw=1, capsize=2, label=label)


def _finish(panel: Axes, task: TaskResults, x: str) -> None:
    panel.axhline(0, color="0.6", lw=0.8)
    panel.set_xscale("log")
    panel.set(
        title=task.workload,
        xlabel=x,
        ylabel=f"{task.measure.name} less AdamW's, {task.measure.unit}",
    )
    panel.legend(fontsize="x-small")


def _landscapes(path: Path, study: Study) -> None:
    names = [name for name in nonconvex.NAMES if _dimensions(study, name)]
    figure, axes = panels(len(names), 2.6)
    for panel, landscape in zip(axes, names, strict=True):
        dimensions = _dimensions(study, landscape)
        tasks = [study.task(f"{landscape}-{n}") for n in dimensions]
        for i, name in enumerate(LANDSCAPE_ARMS):
            rates = [
                task.reached(name).value.mean if name in task.contenders else np.nan
                for task in tasks
            ]
            x = np.array(dimensions) * 1.03 ** (i - len(LANDSCAPE_ARMS) / 2)  # many lie at 0 or 100
            panel.plot(x, rates, "o-", ms=3, lw=1, label=study.labels[name])
        panel.set(title=landscape, xlabel="dimension", ylabel="success, %", ylim=(-5, 105))
        panel.set_xscale("log")
    axes[0].legend(fontsize="x-small")
    save(figure, path)


def _dimensions(study: Study, name: str) -> list[int]:
    return [n for n in DIMENSIONS if f"{name}-{n}" in study.workloads]


def _norms(path: Path, study: Study) -> None:
    figure, (panel,) = panels(1, 3.2)
    for label, runs in study.norms.items():
        each = np.array(runs)
        x = (np.arange(each.shape[1]) + 0.5) / each.shape[1]
        (line,) = panel.plot(x, each.mean(0), label=label)
        panel.fill_between(x, each.min(0), each.max(0), color=line.get_color(), alpha=0.2, lw=0)
    panel.set(
        title=f"{TOPICS}, the paper's settings",
        xlabel="share of the run",
        ylabel="norm of perturbation / norm of step",
        yscale="log",
    )
    panel.legend(fontsize="x-small")
    save(figure, path)
