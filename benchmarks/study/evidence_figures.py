"""The figures of the evidence study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarks import reporting
from benchmarks.study import stability
from benchmarks.study.contenders import BASELINE
from benchmarks.study.effects import Effect, Pair, Task
from benchmarks.study.evidence_report import (
    Study,
    control_effects,
    drawn_contenders,
    is_landscape,
    known_dimensions,
)
from benchmarks.study.report import panels, save
from benchmarks.study.superposed import FORMS, SHOTS, SWEEP
from benchmarks.study.table import LANDSCAPE_ARMS, PUBLISHED, SWEPT, TOPICS
from benchmarks.workloads import landscapes

CURVES = (BASELINE, "cautious", "paper", "noise", "everywhere", "circuit")


def draw(folder: Path, stem: str, study: Study) -> dict[str, str]:
    """Draw every figure that there are results for, and return the file names by figure.

    Args:
        folder: Where they go.
        stem: What their names begin with.
        study: The results.
    """
    tasks = [study.task(name) for name in study.workloads if not is_landscape(name)]
    drawings: dict[str, tuple[bool, Callable[[Path], None]]] = {
        "curves": (bool(tasks), lambda path: _curves(path, study, tasks)),
        "forest": (bool(tasks), lambda path: _forest(path, study, tasks)),
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


def _curves(path: Path, study: Study, tasks: list[Task]) -> None:
    shown = [task for task in tasks if SWEPT not in task.workload]
    figure, axes = panels(len(shown), 3.0)
    for panel, task in zip(axes, shown, strict=True):
        for name in drawn_contenders(task, CURVES):
            curves = task.curves(name)[:, 1:]  # untrained models hide the rest
            bands = [reporting.t_interval(column) for column in curves.T]
            mean = np.array([band.mean for band in bands])
            half = np.nan_to_num([band.half_width for band in bands])
            x = task.horizon * np.arange(1, len(mean) + 1) / len(mean)
            (line,) = panel.plot(x, mean, lw=1, label=study.labels[name])
            panel.fill_between(x, mean - half, mean + half, color=line.get_color(), alpha=0.2, lw=0)
        unit = "test loss" if task.measure.relative else "test accuracy, %"
        panel.set(title=task.workload, xlabel="step", ylabel=unit)
        if task.measure.relative:
            panel.set_yscale("log")
    axes[0].legend(fontsize="x-small")
    save(figure, path)


def _forest(path: Path, study: Study, tasks: list[Task]) -> None:
    """All effects against AdamW, and below them those against the matched controls."""
    shown = [
        task for task in tasks if PUBLISHED not in task.workload and SWEPT not in task.workload
    ]
    swept = {f"{weigh}-{value:g}" for weigh in FORMS for value in SWEEP}
    swept |= {f"shots-{shots}" for shots in SHOTS}
    groups = [
        (
            {pair: e for pair, e in task.against_baseline().items() if pair[0] not in swept},
            control_effects(task),
        )
        for task in shown
    ]
    height = 0.7 + 0.16 * max((sum(map(len, group)) for group in groups), default=1)
    figure, axes = panels(len(shown), height)
    for panel, task, group in zip(axes, shown, groups, strict=True):
        rows = group[0] | group[1]
        for i, effect in enumerate(rows.values()):
            _interval(panel, i, effect)
        panel.axvline(0, color="0.6", lw=0.8)
        panel.axhline(len(group[0]) - 0.5, color="0.8", lw=0.8)
        names = [_name(study, pair) for pair in rows]
        panel.set_yticks(range(len(rows)), names, fontsize="x-small")
        panel.invert_yaxis()
        side = "right" if task.measure.better > 0 else "left"
        panel.set(
            title=task.workload,
            xlabel=f"difference in {task.measure.name}, {task.measure.unit} (better: {side})",
        )
        panel.set_xscale("symlog", linthresh=2)  # what fails hides nothing that differs little
    save(figure, path)


def _interval(panel: Axes, row: int, effect: Effect) -> None:
    difference = effect.difference
    errors = np.nan_to_num(
        [[difference.mean - difference.low], [difference.high - difference.mean]]
    )
    color = "C3" if effect.adjusted_p < 0.05 else "C0"
    panel.errorbar([difference.mean], [row], xerr=errors, fmt="o", ms=3, capsize=2, color=color)


def _name(study: Study, pair: Pair) -> str:
    one, other = (study.labels[name] for name in pair)
    return one if pair[1] == BASELINE else f"{one} − {other}"


def _swept(tasks: list[Task]) -> list[Task]:
    return [task for task in tasks if "gradient-1" in task.contenders]


def _sweep(path: Path, tasks: list[Task]) -> None:
    """Differences to AdamW over λ, and over shots where they were run."""
    with_shots = [task for task in tasks if "shots-1" in task.contenders]
    figure, axes = panels(len(tasks) + len(with_shots), 2.8)
    for panel, task in zip(axes, tasks, strict=False):
        for weigh, form in FORMS.items():
            names = {value: f"{weigh}-{value:g}" for value in SWEEP}
            _line(panel, task, names, form)
        _finish(panel, task, "λ")
    for panel, task in zip(axes[len(tasks) :], with_shots, strict=True):
        _line(panel, task, {shots: f"shots-{shots}" for shots in SHOTS}, "everywhere, λ = 0.5")
        _finish(panel, task, "shots")
    save(figure, path)


def _line(panel: Axes, task: Task, names: dict[float, str], label: str) -> None:
    found = {x: name for x, name in names.items() if name in task.contenders}
    if not found:
        return
    effects = task.effects([(name, BASELINE) for name in found.values()]).values()
    means = np.array([effect.difference.mean for effect in effects])
    bounds = np.array([[e.difference.low, e.difference.high] for e in effects]).T
    errors = np.nan_to_num(np.abs(bounds - means))
    panel.errorbar(list(found), means, yerr=errors, fmt="o-", ms=3, lw=1, capsize=2, label=label)


def _finish(panel: Axes, task: Task, x: str) -> None:
    panel.axhline(0, color="0.6", lw=0.8)
    panel.set_xscale("log")
    panel.set_yscale("symlog", linthresh=2)
    panel.set(
        title=task.workload, xlabel=x, ylabel=f"{task.measure.name} to AdamW, {task.measure.unit}"
    )
    panel.legend(fontsize="x-small")


def _landscapes(path: Path, study: Study) -> None:
    names = [name for name in landscapes.NAMES if known_dimensions(study, name)]
    figure, axes = panels(len(names), 2.6)
    for panel, landscape in zip(axes, names, strict=True):
        dimensions = known_dimensions(study, landscape)
        tasks = [study.task(f"{landscape}-{n}", target=50.0) for n in dimensions]
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
