"""The evidence study as markdown: claims, effects, controls, sweeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import reporting
from benchmarks.study.contenders import BASELINE
from benchmarks.study.effects import (
    ACCURACY,
    EXCESS,
    LOSS,
    Effect,
    Measure,
    Task,
    Values,
    effect_of,
    ratio_of_medians,
    slopes,
    success,
)
from benchmarks.study.report import markdown_table, p_value, replaced
from benchmarks.study.results import read_results
from benchmarks.study.statistics import Comparison, Estimate, bootstrap, holm
from benchmarks.study.superposed import PAIRS, SWEEPS, SWEPT_ARMS, everything
from benchmarks.study.table import (
    LANDSCAPE_ARMS,
    PARTS,
    PUBLISHED,
    SCREEN,
    SWEPT,
    TOPICS,
    TOPICS_ATTENTION,
    split_name,
)
from benchmarks.workloads import landscapes

RESULTS = ("results.jsonl", "results.jsonl.gz")
MEASURED = ("stability", "norms", "cost", "provenance")
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
    "at equal settings",
    "seeds",
    "tuning runs",
    "trial",
    "diverged",
)
PAIR_COLUMNS = ("task", "held against", "difference", "p (Holm)", "seeds")
ATTENTION_COLUMNS = ("task", "optimizer", "accuracy", "p (Holm)", "seeds")
SWEEP_COLUMNS = ("task", "what is varied", "difference to AdamW", "p (Holm)", "seeds")
CLAIM_COLUMNS = ("claim of λ = 0.5 against Adam", "the paper", "its settings", "every arm tuned")
LEGEND = (
    "Accuracy and success in per cent and their differences in points; losses, and their "
    "differences in per cent of the other's. Means with 95 % bootstrap intervals (percentiles; of "
    "10 values they cover some 90 %); differences are paired by seed; p by flips of sign, "
    "two-sided: uncorrected in the table above, else after Holm over a table's rows. They hold "
    "for the trial that tuning chose. At equal settings: over the trials that AdamW has too, the "
    "median difference in validation loss, and in how many it is lower. IQM: interquartile mean. "
    "To target: median share of the run until the curve reaches AdamW's mean at the end (90 % at "
    "the paper's settings); missed: runs that never do. Trial: which was chosen, and its learning "
    "rate. Diverged: a loss that is not finite, or ends above the untrained model's."
)


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

    @property
    def tasks(self) -> list[Task]:
        """All but the landscapes, each with its target."""
        names = [name for name in self.workloads if not is_landscape(name)]
        return [
            self.task(name, ACCURACY_TARGET if PUBLISHED in name or SWEPT in name else None)
            for name in names
        ]

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

    lines = read_results(files[0])
    # Of a study that is not finished, what can be compared already.
    ready = {r["workload"] for r in lines if (r["phase"], r["contender"]) == ("final", BASELINE)}
    comparison = Comparison([line for line in lines if line["workload"] in ready])
    return Study(comparison, *map(content, MEASURED))


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
    runs = [{run["seed"]: run for run in task.runs(name)} for name in (MAIN, BASELINE)]
    both = runs[0].keys() & runs[1].keys()
    one, other = (task.until_target([by_seed[seed] for seed in both]) for by_seed in runs)
    return ratio_of_medians(one, other)


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
    low, high = _signed(estimate.low), _signed(estimate.high)
    return f"{_signed(estimate.mean)} [{low}, {high}] {unit}"


def _signed(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:+.2f}".replace("-", "−").replace("inf", "∞")


def task_table(study: Study, task: Task) -> str:
    """Return what everyone reaches on a task, without the sweeps.

    Args:
        study: The results.
        task: One of its tasks.
    """
    names = [name for name in task.contenders if name not in SWEPT_ARMS]
    effects = task.against_baseline(names)
    adjusted = dict(zip(effects, holm([effect.p for effect in effects.values()]), strict=True))
    rows = []
    for name in names:
        pair = (name, BASELINE)
        reached, equal = task.reached(name), task.at_equal_settings(name)
        value, digits = reached.value, 4 if task.measure.relative else 1
        trial, learning_rate = reached.trial
        rows.append(
            [
                study.labels[name],
                f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]",
                f"{reached.interquartile_mean:.{digits}f}",
                _show(effects[pair].difference, task.measure.unit) if pair in effects else "",
                p_value(adjusted[pair]) if pair in effects else "",
                _share(reached.steps_to_target),
                str(reached.misses),
                _equal(equal) if name != BASELINE else "",
                str(reached.seeds),
                str(reached.trials),
                f"{trial}, {learning_rate:.2g}",
                str(reached.diverged),
            ]
        )
    return markdown_table(TASK_COLUMNS, rows)


def _share(share: float) -> str:
    return "never" if math.isinf(share) else f"{share:.2f}"


def _equal(found: tuple[float, int, int] | None) -> str:
    return "–" if found is None else f"{_signed(found[0])} % ({found[1]} of {found[2]})"


def _corrected(columns: Sequence[str], found: Sequence[tuple[Sequence[str], str, Effect]]) -> str:
    """A table of effects, with what each is called and its unit, and Holm over all of it."""
    adjusted = holm([effect.p for _, _, effect in found])
    rows = [
        [*names, _show(effect.difference, unit), p_value(p), str(effect.seeds)]
        for (names, unit, effect), p in zip(found, adjusted, strict=True)
    ]
    return markdown_table(columns, rows)


def _attention_effects(study: Study) -> list[tuple[Sequence[str], str, Effect]]:
    """Quantum attention against classical attention, with the same optimizer and seed."""
    found = []
    for suffix in (PUBLISHED, ""):
        if {TOPICS + suffix, TOPICS_ATTENTION + suffix} <= set(study.workloads):
            one, other = study.task(TOPICS_ATTENTION + suffix), study.task(TOPICS + suffix)
            for name in one.contenders:
                if name in other.contenders:
                    values = ACCURACY.differences(one.runs(name), other.runs(name))
                    names = (TOPICS + suffix, study.labels[name])
                    found.append((names, "points", effect_of(values)))
    return found


def _pair_effects(study: Study) -> list[tuple[Sequence[str], str, Effect]]:
    """Forms of the method against their matched controls and other counterparts."""
    return [
        ((task.workload, f"{study.labels[one]} − {study.labels[other]}"), task.measure.unit, effect)
        for task in study.tasks
        for (one, other), effect in task.effects(PAIRS).items()
    ]


def _sweep_effects(study: Study) -> list[tuple[Sequence[str], str, Effect]]:
    """Each value of λ and each number of shots against AdamW, and the trend over their decades."""
    found = []
    for task in study.tasks:
        for varied, names in SWEEPS.items():
            known = {value: name for value, name in names.items() if name in task.contenders}
            effects = task.against_baseline(known.values())
            for value, name in known.items():
                if (name, BASELINE) in effects:
                    label = (task.workload, f"{varied}: {value:g}")
                    found.append((label, task.measure.unit, effects[name, BASELINE]))
            finals = {value: task.measure.final(task.runs(name)) for value, name in known.items()}
            if len(finals) > 2 and len({len(values) for values in finals.values()}) == 1:
                label = (task.workload, f"{varied}: slope")
                unit = f"{task.measure.unit} a decade"
                found.append((label, unit, effect_of(slopes(finals))))
    return found


def landscape_tables(study: Study) -> tuple[str, str]:
    """Return success rates and median final excesses, both with a mark where AdamW differs.

    Args:
        study: The results.
    """
    success_rows, excess_rows = [], []
    for workload in filter(is_landscape, study.workloads):
        task = study.task(workload)
        excess = Task(study.comparison, workload, EXCESS, 0.0, list(study.labels))
        names = [name for name in LANDSCAPE_ARMS if name in task.contenders]
        effects = {pair[0]: effect.p for pair, effect in task.against_baseline(names).items()}
        ends = {name: EXCESS.final(excess.runs(name)) for name in names}
        ranks = {name: _signed_rank_p(ends[name], ends[BASELINE]) for name in names[1:]}
        success_rows.append(
            [
                workload,
                *_marked({name: f"{task.reached(name).value.mean:.0f}" for name in names}, effects),
            ]
        )
        excess_rows.append(
            [workload, *_marked({name: f"{np.median(ends[name]):.2g}" for name in names}, ranks)]
        )
    columns = ("task", *(study.labels[name] for name in LANDSCAPE_ARMS))
    return markdown_table(columns, success_rows), markdown_table(columns, excess_rows)


def _marked(cells: Mapping[str, str], p_values: Mapping[str, float]) -> list[str]:
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    significant = {name for name, p in adjusted.items() if p < 0.05}
    return [
        (cells[name] + ("*" if name in significant else "")).replace("-", "−")
        if name in cells
        else "–"
        for name in LANDSCAPE_ARMS
    ]


def _signed_rank_p(one: Values, other: Values) -> float:
    """Excesses differ by orders of magnitude, which a mean would be made of."""
    if not np.any(one != other):
        return 1.0
    found: Any = stats.wilcoxon(one, other)
    return float(found.pvalue)


def _without_finals(study: Study) -> str:
    sentences = []
    for task in study.tasks:
        screened = task.screened(SCREEN)
        unfinished = [name for name in task.without_finals if name not in screened]
        for what, names in (("screened out", screened), ("not run to the end", unfinished)):
            if names:
                listed = "; ".join(study.labels[name] for name in names)
                sentences.append(f"{task.workload}, {what}: {listed}.")
    return " ".join(sentences) or "No arm was screened out."


def _code(study: Study) -> str:
    commits = {
        part: dict.fromkeys(run["git"]["revision"][:7] for run in runs)
        for part, runs in study.provenance.items()
    }
    listed = "; ".join(f"{part} {', '.join(found)}" for part, found in commits.items())
    return f"Runs by the code of: {listed}." if listed else ""


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
    return markdown_table(("form", "first of 15 parts", "middle", "last"), rows)


def _norm(value: Estimate) -> str:
    return f"{value.mean:.2g} [{value.low:.2g}, {value.high:.2g}]"


# --- The report -----------------------------------------------------------------------------------


def markdown(study: Study, figures: Mapping[str, str], note: str = "") -> str:
    """Return the generated part of the report.

    Args:
        study: The results.
        figures: File names by figure; those that are missing are left out.
        note: What to say first.
    """

    def figure(name: str, text: str) -> list[str]:
        return [f"![{text}]({figures[name]})"] if name in figures else []

    parts = [note, "### The paper's claims", claims(study), LEGEND, _code(study)]
    parts += figure("forest", "Differences to AdamW, and to matched controls")
    for title, columns, effects in (
        ("Against matched controls and other counterparts", PAIR_COLUMNS, _pair_effects(study)),
        (
            "Quantum attention minus classical attention",
            ATTENTION_COLUMNS,
            _attention_effects(study),
        ),
    ):
        parts += [f"### {title}", _corrected(columns, effects)] if effects else []
    for task in study.tasks:
        if SWEPT not in task.workload:
            title = f"### {task.workload}: {task.measure.name}, {task.horizon:,} steps"
            parts += [title, task_table(study, task)]
    parts += [_without_finals(study), *figure("curves", "Learning curves")]
    if sweeps := _sweep_effects(study):
        parts += ["### More and more of it", _corrected(SWEEP_COLUMNS, sweeps)]
        parts += figure("sweep", "Differences to AdamW over λ and over shots")
    if any(map(is_landscape, study.workloads)):
        seeds = {len(study.task(w).runs(BASELINE)) for w in filter(is_landscape, study.workloads)}
        rates, excesses = landscape_tables(study)
        parts += [
            "### Landscapes: runs that succeed, in per cent",
            f"{', '.join(map(str, sorted(seeds)))} starts a cell; * p < 0.05 against AdamW, by "
            "flips of sign, after Holm over the row.",
            rates,
            "### Landscapes: median excess over the minimum at the end",
            "* p < 0.05 against AdamW, by Wilcoxon's signed ranks, after Holm over the row.",
            excesses,
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
    return "\n\n".join(filter(None, parts))


def write(path: Path, study: Study, figures: Mapping[str, str], note: str = "") -> None:
    """Write the generated part between the markers of a markdown file.

    Args:
        path: The file, made where missing.
        study: The results.
        figures: As in `markdown`.
        note: As in `markdown`.
    """
    old = path.read_text() if path.exists() else ""
    reporting.write_atomically(path, replaced(old, markdown(study, figures, note)))


def quote(path: Path, study: Study) -> None:
    """Write the claims' table between the markers of the README.

    Args:
        path: The README.
        study: The results.
    """
    reporting.write_atomically(path, replaced(path.read_text(), claims(study)))
