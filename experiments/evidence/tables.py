"""The tables of the evidence study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.reporting import markdown_table
from experiments.engine.contender import BASELINE
from experiments.engine.report import p_value
from experiments.engine.statistics import Estimate, bootstrap, holm
from experiments.evidence.effects import (
    ACCURACY,
    EXCESS,
    Effect,
    TaskResults,
    Values,
    effect_of,
    ratio_of_medians,
    slopes,
)
from experiments.evidence.study import ACCURACY_TARGET, Study, is_landscape
from experiments.evidence.superposed import PAIRS, SWEEPS, SWEPT_ARMS
from experiments.evidence.table import LANDSCAPE_ARMS, PUBLISHED, SCREEN, TOPICS, TOPICS_ATTENTION

Named = tuple[Sequence[str], str, Effect]  # what an effect is called, and its unit
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


def _claimed_accuracy(task: TaskResults | None) -> str:
    if task is None or MAIN not in task.contenders:
        return "–"
    (effect,) = task.effects([(MAIN, BASELINE)]).values()
    return f"{_show(effect.difference, 'points')}, p = {p_value(effect.p)}, {effect.seeds} seeds"


def _until(task: TaskResults | None) -> Estimate | None:
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


def task_table(study: Study, task: TaskResults) -> str:
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


def corrected(columns: Sequence[str], found: Sequence[Named]) -> str:
    """Return a table of effects, with Holm's correction over all of it.

    Args:
        columns: Titles.
        found: The effects.
    """
    adjusted = holm([effect.p for _, _, effect in found])
    rows = [
        [*names, _show(effect.difference, unit), p_value(p), str(effect.seeds)]
        for (names, unit, effect), p in zip(found, adjusted, strict=True)
    ]
    return markdown_table(columns, rows)


def attention_effects(study: Study) -> list[Named]:
    """Compare quantum attention against classical attention, with the same optimizer and seed.

    Args:
        study: The results.
    """
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


def pair_effects(study: Study) -> list[Named]:
    """Compare forms of the method against their matched controls and other counterparts.

    Args:
        study: The results.
    """
    return [
        ((task.workload, f"{study.labels[one]} − {study.labels[other]}"), task.measure.unit, effect)
        for task in study.tasks
        for (one, other), effect in task.effects(PAIRS).items()
    ]


def sweep_effects(study: Study) -> list[Named]:
    """Compare each λ and number of shots with AdamW, and take the trend over their decades.

    Args:
        study: The results.
    """
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
        excess = TaskResults(study.comparison, workload, EXCESS, 0.0, list(study.labels))
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


def without_finals(study: Study) -> str:
    """Say which arms have no final runs, and why.

    Args:
        study: The results.
    """
    sentences = []
    for task in study.tasks:
        screened = task.screened(SCREEN)
        unfinished = [name for name in task.without_finals if name not in screened]
        for what, names in (("screened out", screened), ("not run to the end", unfinished)):
            if names:
                listed = "; ".join(study.labels[name] for name in names)
                sentences.append(f"{task.workload}, {what}: {listed}.")
    return " ".join(sentences) or "No arm was screened out."


def code(study: Study) -> str:
    """Say by which commits the parts were run.

    Args:
        study: The results.
    """
    commits = {
        part: dict.fromkeys(run["git"]["revision"][:7] for run in runs)
        for part, runs in study.provenance.items()
    }
    listed = "; ".join(f"{part} {', '.join(found)}" for part, found in commits.items())
    return f"Runs by the code of: {listed}." if listed else ""


def cost_table(study: Study) -> str:
    """Return the time of an epoch, against AdamW's.

    Args:
        study: The results.
    """
    labels = study.labels | {
        "adamw-twice": "AdamW again",
        TOPICS_ATTENTION: "AdamW, quantum attention",
    }
    ratios = {arm: study.cost_ratio(arm) for arm in study.cost if arm != BASELINE}
    rows = [[labels[arm], _show(ratio, "%")] for arm, ratio in ratios.items()]
    rounds = len(study.cost[BASELINE])
    return markdown_table(("optimizer", f"an epoch's time, against AdamW, {rounds} rounds"), rows)


def norm_table(study: Study) -> str:
    """Return the relative norms of the perturbation along training.

    Args:
        study: The results.
    """
    rows = []
    for label, runs in study.norms.items():
        each = np.array(runs)
        rows.append([label, *(_norm(bootstrap(each[:, i])) for i in (0, each.shape[1] // 2, -1))])
    return markdown_table(("form", "first of 15 parts", "middle", "last"), rows)


def _norm(value: Estimate) -> str:
    return f"{value.mean:.2g} [{value.low:.2g}, {value.high:.2g}]"
