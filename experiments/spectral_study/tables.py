"""The study as markdown tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.reporting import markdown_table
from experiments.engine.contender import BASELINE
from experiments.engine.report import p_value
from experiments.engine.results import diverged
from experiments.engine.statistics import bootstrap, curves_of, holm
from experiments.spectral_study.arms import ARMS, LABELS, MUON, SPECTRAL
from experiments.spectral_study.controls import CONTROLS
from experiments.spectral_study.effects import (
    ARM_OF,
    SIGNIFICANT,
    Effect,
    Study,
    against_adamw,
    muon_effects,
    share_reached,
    step_ratio,
)

VARIANTS = {x.name: x.label for variants in ARMS.values() for x in variants}


def adamw_table(study: Study, tasks: Sequence[str]) -> str:
    """Return the table of the first question.

    Args:
        study: The runs.
        tasks: Those that count.
    """
    effects = against_adamw(study, tasks)
    rows = []
    for task in tasks:
        loss = bootstrap(study.losses(task, BASELINE))
        cells = []
        for share in (0.6, 0.75):
            x = effects.get((task, share))
            cells += ["–", "–"] if x is None else [str(x), p_value(x.p)]
        share, ratio = share_reached(effects, task), step_ratio(study, task)
        rows.append(
            [
                task,
                f"{loss.mean:.4f}",
                *cells,
                str(effects[task, 1.0]),
                p_value(effects[task, 1.0].p),
                "–" if math.isnan(ratio) else f"{ratio:.2f}",
                "–" if math.isinf(share) or math.isnan(ratio) else f"{share * ratio:.2f}",
            ]
        )
    columns = [
        "task",
        "AdamW's loss",
        "at 0.6 of the steps",
        "p (less)",
        "at 0.75",
        "p (less)",
        "at all",
        "p",
        "time of a step",
        "time to AdamW's loss",
    ]
    return markdown_table(columns, rows)


def muon_table(study: Study, tasks: Sequence[str]) -> str:
    """Return the table of the second question.

    Args:
        study: The runs.
        tasks: Those that count.
    """
    rows = []
    for task, x in muon_effects(study, tasks).items():
        to_adamw = Effect.of(study.losses(task, MUON), study.losses(task, BASELINE))
        loss = bootstrap(study.losses(task, MUON))
        ratio = step_ratio(study, task) / step_ratio(study, task, MUON)
        rows.append(
            [
                task,
                f"{loss.mean:.4f}",
                str(to_adamw),
                str(x),
                p_value(x.p),
                "–" if math.isnan(ratio) else f"{ratio:.2f}",
            ]
        )
    columns = [
        "task",
        "Muon's loss",
        "Muon to AdamW",
        "spectral form to Muon",
        "p",
        "time of a step to Muon's",
    ]
    return markdown_table(columns, rows)


def settings_table(study: Study, tasks: Sequence[str]) -> str:
    """Return what tuning chose.

    Args:
        study: The runs.
        tasks: Some of them.
    """
    rows = []
    for task in tasks:
        for arm in ARMS:
            line = study.finals(task, arm)[0]
            hyper = line["hyper"]
            tried = {
                x["trial"]
                for x in study.lines
                if (x["phase"], x["workload"]) == ("tuning", task) and ARM_OF[x["contender"]] == arm
            }
            name, decay = ("β₂", hyper["b2"]) if "b2" in hyper else ("β", hyper["beta"])
            rows.append(
                [
                    task,
                    VARIANTS[line["contender"]],
                    f"{hyper['learning_rate']:.4f}",
                    f"{hyper['weight_decay']:.4f}",
                    f"{hyper['warmup']:.2f}",
                    f"{name} = {decay:g}",
                    str(len(tried)),
                ]
            )
    columns = [
        "task",
        "chosen",
        "learning rate",
        "weight decay",
        "warm-up",
        "decay rate",
        "settings tried",
    ]
    return markdown_table(columns, rows)


def controls_table(study: Study, task: str) -> str:
    """Return the controls on a task, each beside the spectral form's three stages.

    Args:
        study: The runs.
        task: The task.
    """
    found = study.of_controls(task)
    base = curves_of(found[SPECTRAL])[:, -1]
    losses = {name: curves_of(runs)[:, -1] for name, runs in found.items()}
    others = [name for name in losses if name != SPECTRAL]
    effects = {name: Effect.of(losses[name], base) for name in others}
    adjusted = dict(zip(others, holm([x.p for x in effects.values()]), strict=True))
    rows = []
    for name, loss in losses.items():
        own = [""] * 2 if name == SPECTRAL else [str(effects[name]), p_value(adjusted[name])]
        rate = found[name][0]["hyper"]["learning_rate"]
        lost = f"{sum(map(diverged, found[name]))} of {len(loss)}"
        rows.append([CONTROLS[name].label, f"{rate:.4f}", f"{loss.mean():.4f}", *own, lost])
    columns = ["what is done", "learning rate", "loss", "to the first row", "p", "diverged"]
    return markdown_table(columns, rows)


def divergence_table(study: Study, tasks: Sequence[str]) -> str:
    """Return how many runs around the best learning rate diverged.

    Args:
        study: The runs.
        tasks: Those that count.
    """
    rows = []
    for arm in ARMS:
        counts = []
        for task in tasks:
            runs = [
                x
                for x in study.lines
                if (x["phase"], x["workload"]) == ("robustness", task)
                and ARM_OF[x["contender"]] == arm
            ]
            counts.append((sum(map(diverged, runs)), len(runs)))
        total = [sum(x) for x in zip(*counts, strict=True)]
        rows.append([LABELS[arm], *(f"{a} of {b}" for a, b in [*counts, total])])
    return markdown_table(["optimizer", *tasks, "all"], rows)


def divergences(study: Study) -> bool:
    """Say whether other learning rates were run."""
    return any(x["phase"] == "robustness" for x in study.lines)


def bars(study: Study, tasks: Sequence[str]) -> str:
    """Return the bars of the protocol, and whether each was met.

    Args:
        study: The runs.
        tasks: On which claims are made.
    """
    effects = against_adamw(study, tasks)

    def won(share: float) -> list[str]:
        return [
            task
            for task in tasks
            if (x := effects.get((task, share))) and x.p < SIGNIFICANT and x.change.mean < 0
        ]

    worst = max(tasks, key=lambda task: effects[task, 1.0].change.mean)
    muon = muon_effects(study, tasks)
    highest = max(tasks, key=lambda task: muon[task].change.high)
    times = {task: share_reached(effects, task) * step_ratio(study, task) for task in tasks}
    in_time = [task for task, x in times.items() if x <= 0.75]
    timed = not any(math.isnan(step_ratio(study, task)) for task in tasks)
    rows: list[tuple[str, str, bool]] = [
        ("AdamW's loss in 0.6 of the steps, on two tasks", _named(won(0.6)), len(won(0.6)) >= 2),
        ("AdamW's loss in 0.75 of the steps, on three", _named(won(0.75)), len(won(0.75)) >= 3),
        (
            "at all steps nowhere more than 1 % above AdamW's",
            f"at most {effects[worst, 1.0].change.mean:+.2f} % ({worst})",
            effects[worst, 1.0].change.mean <= 1,
        ),
        (
            "upper limit of the difference to Muon nowhere above +0.3 %",
            f"at most {muon[highest].change.high:+.2f} % ({highest})",
            muon[highest].change.high <= 0.3,
        ),
    ]
    if timed:
        rows.insert(
            3, ("AdamW's loss in 0.75 of its time, on two", _named(in_time), len(in_time) >= 2)
        )
    return markdown_table(
        ["bar", "seen", "met"], [[bar, seen, "yes" if met else "no"] for bar, seen, met in rows]
    )


def _named(tasks: Sequence[str]) -> str:
    return f"{len(tasks)} ({', '.join(tasks)})" if tasks else "none"


def sections(study: Study, claims: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return all tables with their titles; parts that were not run are left out.

    Args:
        study: The runs.
        claims: Tasks on which claims are made.
        others: The other tasks.
    """
    tasks = [task for task in claims if task in study.tasks]
    rest = [task for task in others if task in study.tasks]
    found = _differences(study, claims, others)
    found |= {
        f"What does it: {task}": controls_table(study, task)
        for task in tasks
        if study.of_controls(task)
    }
    if divergences(study):
        found["Diverged, at 0.1 to 3 times the best learning rate"] = divergence_table(study, tasks)
    found["What tuning chose"] = settings_table(study, [*tasks, *rest])
    return [part for title, table in found.items() for part in (f"### {title}", table)]


def findings(study: Study, claims: Sequence[str], others: Sequence[str]) -> str:
    """Return the tables of the page of findings.

    Args:
        study: The runs.
        claims: Tasks on which claims are made.
        others: The other tasks.
    """
    found = _differences(study, claims, others)
    return "\n\n".join(part for title, table in found.items() for part in (f"*{title}*", table))


def _differences(study: Study, claims: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Each group of tasks is a family of its own, over which p is adjusted."""
    found = {}
    if set(claims) <= set(study.tasks):
        found["The bars"] = bars(study, claims)
    for prefix, names in (("Against", claims), ("Other tasks, against", others)):
        if tasks := [task for task in names if task in study.tasks]:
            found[f"{prefix} AdamW"] = adamw_table(study, tasks)
            found[f"{prefix} Muon"] = muon_table(study, tasks)
    return found
