"""The evidence study as markdown: claims, effects, controls, sweeps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import reporting
from benchmarks.study.contenders import BASELINE
from benchmarks.study.effects import (
    ACCURACY,
    LOSS,
    Effect,
    Measure,
    Pair,
    Reached,
    Task,
    Values,
    paired_effects,
    ratio_of_medians,
    success,
)
from benchmarks.study.report import markdown_table, p_value, replaced
from benchmarks.study.results import read_results
from benchmarks.study.statistics import Comparison, Estimate, bootstrap
from benchmarks.study.superposed import CONTROLS, everything
from benchmarks.study.table import (
    DIMENSIONS,
    LANDSCAPE_ARMS,
    PARTS,
    PUBLISHED,
    SWEPT,
    TOPICS,
    TOPICS_ATTENTION,
    split_name,
)
from benchmarks.workloads import landscapes

RESULTS = ("results.jsonl", "results.jsonl.gz")
ACCURACY_TARGET = 90.0  # per cent, the paper's
MAIN = "paper"
TASK_COLUMNS = (
    "optimizer",
    "at the end",
    "IQM",
    "difference to AdamW",
    "p (Holm)",
    "to target",
    "missed",
    "seeds",
    "tuning runs",
    "diverged",
    "learning rate",
)
CONTROL_COLUMNS = ("task", "held against", "difference", "p (Holm)", "seeds")
CLAIM_COLUMNS = ("claim of λ = 0.5 against Adam", "the paper", "its settings", "every arm tuned")
ATTENTION_COLUMNS = ("task", "optimizer", "accuracy", "p (Holm)", "seeds")
LEGEND = (
    "Accuracy and success in per cent and their differences in points; losses, and their "
    "differences in per cent of the other's. Means with 95 % bootstrap intervals; differences are "
    "paired by seed; p by flips of sign, two-sided, after Holm over the rows of a table. IQM: "
    "interquartile mean. To target: median share of the run until the curve reaches AdamW's mean "
    "at the end (90 % at the paper's settings); missed: runs that never do."
)


@dataclass(frozen=True)
class Study:
    """What a folder of results holds.

    Attributes:
        comparison: The runs.
        stability: Maps of Eq. 1 on a parabola, by form.
        norms: Relative norms of the perturbation, by form, of each seed.
        cost: Seconds of an epoch, by arm, of each round.
        provenance: Where and when.
    """

    comparison: Comparison
    stability: Mapping[str, Any]
    norms: Mapping[str, Any]
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def task(self, workload: str, target: float | None = None) -> Task:
        """Return the results of a task with its measure.

        Args:
            workload: The task's name.
            target: As in `Task`.
        """
        measure = self._measure(workload)
        return Task(self.comparison, workload, measure, target, list(self.labels))

    def _measure(self, workload: str) -> Measure:
        if is_landscape(workload):
            return success(landscapes.landscape(*split_name(workload)).tolerance)
        runs = self.comparison.runs(workload, BASELINE).values()
        return ACCURACY if "accuracy" in next(iter(runs)) else LOSS

    @property
    def workloads(self) -> list[str]:
        """The tasks with final runs of AdamW, in the table's order."""
        known = [name for part in PARTS.values() for name in part.horizons]
        return [name for name in known if name in self.comparison.workloads]

    @cached_property
    def labels(self) -> dict[str, str]:
        """What tables call the contenders."""
        return {name: contender.label for name, contender in everything().items()}

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
    return workload.rpartition("-")[0] in landscapes.NAMES


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

    others = (content(name) for name in ("stability", "norms", "cost", "provenance"))
    return Study(Comparison(read_results(files[0])), *others)


# --- Tables ---------------------------------------------------------------------------------------


def claims(study: Study) -> str:
    """Return the paper's claims beside what was measured, as a table.

    Args:
        study: The results.
    """
    published, tuned = (
        study.task(name, ACCURACY_TARGET) if name in study.workloads else None
        for name in (TOPICS + PUBLISHED, TOPICS)
    )
    cost = study.cost_ratio(MAIN)
    columns = [published, tuned]
    rows = [
        ["final accuracy", "+2.3 points", *(_claimed_accuracy(task) for task in columns)],
        ["epochs to 90 %", "−37.8 %", *(_show(_until(task), "%") for task in columns)],
        ["time to 90 %", "−16 %", *(_show(_seconds(_until(task), cost), "%") for task in columns)],
        ["time an epoch", "+35 %", _show(cost, "%"), ""],
    ]
    return markdown_table(CLAIM_COLUMNS, rows)


def _claimed_accuracy(task: Task | None) -> str:
    if task is None or MAIN not in task.contenders:
        return "–"
    (effect,) = task.effects([(MAIN, BASELINE)]).values()
    return f"{_show(effect.difference, 'points')}, p = {p_value(effect.p)}, {effect.seeds} seeds"


def _until(task: Task | None) -> Estimate | None:
    if task is None or MAIN not in task.contenders:
        return None
    return ratio_of_medians(*_paired(task, task.until_target))


def _paired(task: Task, values: Any) -> tuple[Values, Values]:
    one, other = (np.asarray(values(name)) for name in (MAIN, BASELINE))
    both = min(len(one), len(other))  # seeds are 0, 1, ... in both
    return one[:both], other[:both]


def _seconds(epochs: Estimate | None, cost: Estimate | None) -> Estimate | None:
    """Epochs at their cost; the cost's own interval is far narrower and left out."""
    if epochs is None or cost is None:
        return None
    factor = 1 + cost.mean / 100
    values = (100 * ((1 + x / 100) * factor - 1) for x in (epochs.mean, epochs.low, epochs.high))
    return Estimate(*values)


def _show(estimate: Estimate | None, unit: str) -> str:
    if estimate is None or math.isnan(estimate.mean):
        return "–"
    return f"{estimate.mean:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}] {unit}"


def task_table(study: Study, task: Task) -> str:
    """Return what everyone reaches on a task.

    Args:
        study: The results.
        task: One of its tasks.
    """
    effects = task.against_baseline()
    rows = [
        _cells(study, task, task.reached(name), effects.get((name, BASELINE)))
        for name in task.contenders
    ]
    return markdown_table(TASK_COLUMNS, rows)


def _cells(study: Study, task: Task, reached: Reached, effect: Effect | None) -> list[str]:
    value, digits = reached.value, 4 if task.measure.relative else 1
    return [
        study.labels[reached.contender],
        f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]",
        f"{reached.interquartile_mean:.{digits}f}",
        "" if effect is None else _show(effect.difference, task.measure.unit),
        "" if effect is None else p_value(effect.adjusted_p),
        "never" if math.isinf(reached.steps_to_target) else f"{reached.steps_to_target:.2f}",
        str(reached.misses),
        str(reached.seeds),
        str(reached.trials),
        str(reached.diverged),
        f"{reached.learning_rate:.2g}",
    ]


def control_effects(task: Task) -> dict[Pair, Effect]:
    """Hold each form of the method against its own matched controls.

    Args:
        task: With runs of both.
    """
    pairs = [
        (name, control)
        for name, controls in CONTROLS.items()
        for control in controls
        if {name, control} <= set(task.contenders)
    ]
    return task.effects(pairs)


def _attention_table(study: Study) -> str:
    """Quantum attention against classical attention, with the same optimizer and seed."""
    rows = []
    for suffix in (PUBLISHED, ""):
        if {TOPICS + suffix, TOPICS_ATTENTION + suffix} <= set(study.workloads):
            one, other = study.task(TOPICS_ATTENTION + suffix), study.task(TOPICS + suffix)
            names = [name for name in one.contenders if name in other.contenders]
            pairs = [(one.runs(name), other.runs(name)) for name in names]
            for name, effect in zip(names, paired_effects(ACCURACY, pairs), strict=True):
                rows.append(
                    [
                        TOPICS + suffix,
                        study.labels[name],
                        _show(effect.difference, "points"),
                        p_value(effect.adjusted_p),
                        str(effect.seeds),
                    ]
                )
    return markdown_table(ATTENTION_COLUMNS, rows)


def _control_table(study: Study) -> str:
    rows = []
    for workload in study.workloads:
        if not is_landscape(workload):
            task = study.task(workload)
            rows += [
                [
                    workload,
                    f"{study.labels[one]} − {study.labels[other]}",
                    _show(effect.difference, task.measure.unit),
                    p_value(effect.adjusted_p),
                    str(effect.seeds),
                ]
                for (one, other), effect in control_effects(task).items()
            ]
    return markdown_table(CONTROL_COLUMNS, rows)


def landscape_table(study: Study) -> str:
    """Return success rates, and the median share of the run until success.

    Args:
        study: The results.
    """
    rows = []
    for workload in filter(is_landscape, study.workloads):
        task = study.task(workload, target=50.0)  # a run's curve goes from 0 to 100
        effects = task.against_baseline()
        cells = []
        for name in LANDSCAPE_ARMS:
            if name not in task.contenders:
                cells.append("screened out" if name in task.screened else "–")
                continue
            rate = task.reached(name).value.mean
            effect = effects.get((name, BASELINE))
            mark = "*" if effect is not None and effect.adjusted_p < 0.05 else ""
            cells.append(f"{rate:.0f}{mark}")
        rows.append([workload, *cells])
    return markdown_table(("task", *(study.labels[name] for name in LANDSCAPE_ARMS)), rows)


def _screened(study: Study) -> str:
    found = {name: study.task(name).screened for name in study.workloads}
    listed = [
        f"{workload}: {', '.join(study.labels[name] for name in names)}"
        for workload, names in found.items()
        if names and not is_landscape(workload)
    ]
    return "; ".join(listed) or "none"


def _cost_table(study: Study) -> str:
    labels = study.labels | {
        "adamw-twice": "AdamW again",
        TOPICS_ATTENTION: "AdamW, quantum attention",
    }
    ratios = {arm: study.cost_ratio(arm) for arm in study.cost if arm != BASELINE}
    rows = [[labels[arm], _show(ratio, "%")] for arm, ratio in ratios.items()]
    rounds = len(study.cost[BASELINE])
    return markdown_table(("optimizer", f"an epoch's time, against AdamW, {rounds} rounds"), rows)


def _norm_table(study: Study) -> str:
    rows = []
    for label, runs in study.norms.items():
        each = np.array(runs)
        rows.append([label, *(_norm(bootstrap(each[:, i])) for i in (0, each.shape[1] // 2, -1))])
    return markdown_table(("form", "first tenth", "middle", "last tenth"), rows)


def _norm(value: Estimate) -> str:
    return f"{value.mean:.2g} [{value.low:.2g}, {value.high:.2g}]"


# --- The report -----------------------------------------------------------------------------------


def markdown(study: Study, figures: Mapping[str, str]) -> str:
    """Return the generated part of the report.

    Args:
        study: The results.
        figures: File names by figure; those that are missing are left out.
    """

    def figure(name: str, text: str) -> list[str]:
        return [f"![{text}]({figures[name]})"] if name in figures else []

    parts = ["### The paper's claims", claims(study), LEGEND]
    parts += figure("forest", "Differences to AdamW and to the matched controls")
    parts += ["### Against matched controls", _control_table(study)]
    if any(TOPICS_ATTENTION in name for name in study.workloads):
        parts += ["### Quantum attention minus classical attention", _attention_table(study)]
    for workload in study.workloads:
        if not is_landscape(workload):
            target = ACCURACY_TARGET if PUBLISHED in workload or SWEPT in workload else None
            task = study.task(workload, target)
            title = f"### {workload}: {task.measure.name}, {task.horizon:,} steps"
            parts += [title, task_table(study, task)]
    parts += [f"Screened out after tuning: {_screened(study)}."]
    parts += figure("curves", "Learning curves") + figure("sweep", "More and more of it")
    if any(map(is_landscape, study.workloads)):
        seeds = {len(study.task(w).runs(BASELINE)) for w in filter(is_landscape, study.workloads)}
        parts += [
            "### Landscapes: runs that end at the global minimum, in per cent",
            f"{', '.join(map(str, sorted(seeds)))} starts a cell; * p < 0.05 against AdamW after "
            "Holm over the row.",
            landscape_table(study),
            *figure("landscapes", "Success over the dimension"),
        ]
    if study.stability:
        parts += ["### Where Eq. 1 stalls or diverges", *figure("stability", "Stability")]
    if study.norms:
        parts += [
            "### Norm of the perturbation over the norm of Adam's step",
            _norm_table(study),
            *figure("norms", "Norms along training"),
        ]
    if study.cost:
        parts += ["### Cost", _cost_table(study)]
    return "\n\n".join(parts)


def write(path: Path, study: Study, figures: Mapping[str, str]) -> None:
    """Write the generated part between the markers of a markdown file.

    Args:
        path: The file, made where missing.
        study: The results.
        figures: As in `markdown`.
    """
    old = path.read_text() if path.exists() else ""
    reporting.write_atomically(path, replaced(old, markdown(study, figures)))


def quote(path: Path, study: Study) -> None:
    """Write the claims' table between the markers of the README.

    Args:
        path: The README.
        study: The results.
    """
    reporting.write_atomically(path, replaced(path.read_text(), claims(study)))


def known_dimensions(study: Study, name: str) -> Sequence[int]:
    """Return the dimensions in which a landscape was run.

    Args:
        study: The results.
        name: Of the landscape.
    """
    return [n for n in DIMENSIONS if f"{name}-{n}" in study.workloads]


def drawn_contenders(task: Task, wanted: Iterable[str]) -> list[str]:
    """Return those of the wanted contenders that have runs.

    Args:
        task: Where.
        wanted: Names.
    """
    return [name for name in wanted if name in task.contenders]
