"""What is run: learning, the choice among what was learned, and held-out tasks."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from benchmarks import cascade_figure
from experiments.engine.contender import Hyper
from experiments.engine.plan import FIRST_TUNING_SEED, best_trial
from experiments.engine.results import Result
from experiments.engine.runner import Bench
from experiments.engine.statistics import curves_of
from experiments.learned_cascades import learning
from experiments.learned_cascades.cascades import COURSE, EARLY, FIXED, FORMS, LATE, start
from experiments.spectral_study.arms import FINE_TUNING_RATES, RATES, SPECTRAL
from experiments.spectral_study.measure import training
from experiments.spectral_study.plan import Run, Task, at_best_rates

# Looked at: some learn, the others choose among what was learned.
SYNTHETIC = tuple(
    Task(name, 300, RATES, shares=())
    for name in ("teacher-mlp", "regression-mlp", "markov-transformer", "topics-transformer")
)
TEXTS = tuple(Task(name, 300, RATES, shares=()) for name in ("characters", "word-problems"))
LEARN = (*SYNTHETIC, *TEXTS)
OTHERS = tuple(
    Task(name, 600, RATES, shares=()) for name in ("clean-teacher-mlp", "recall-transformer")
)
CHOOSE = (*OTHERS, *(dataclasses.replace(text, horizon=600) for text in TEXTS))
SOONER = 0.9  # of the steps
FINAL = (
    Task("wikitext", 1000, RATES, shares=(SOONER,)),
    Task("sources", 1000, RATES, shares=(SOONER,)),
    Task("hwu64", 1000, RATES, shares=(SOONER,)),
    Task("stories-wikitext", 200, FINE_TUNING_RATES, shares=(SOONER,)),
)
SEEDS = (0, 1)  # of each way of learning
LEARNING_RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
GENERATIONS, POPULATION, FIRST_GENERATION = 15, 10, 2000
EVOLVED_SHARE = 0.5  # of the horizon
ITERATIONS, UNROLLED = 60, 100
REST = {"weight_decay": 0.01, "warmup": 0.1, "beta": 0.9}
HAND_SET = "hand-set"

Learned = Mapping[str, Hyper]
Rests = Mapping[str, Hyper]  # the other hyperparameters, by task


def form_of(numbers: Hyper) -> str:
    """Return whether numbers are of one cascade or of a course."""
    return COURSE if LATE[0] in numbers else FIXED


def line(name: str, numbers: Hyper, rest: Hyper) -> Result:
    """Return what `Task.job` takes of a result.

    Args:
        name: What the cascade is called.
        numbers: The cascade.
        rest: The other hyperparameters.
    """
    form = FORMS[form_of(numbers)]
    return {
        "contender": form.name,
        "settings": form.settings,
        "trial": name,
        "hyper": {**rest, **numbers},
    }


def cascade_of(result: Result) -> str:
    """Return what the cascade of a run is called, whose trial also says at which rate."""
    return result["trial"].split(" x ")[0]


def without_numbers(hyper: Hyper) -> Hyper:
    """Return the hyperparameters that are not the cascade's."""
    return {name: value for name, value in hyper.items() if name not in EARLY + LATE}


def tuned(tasks: Iterable[Task], run: Run) -> Rests:
    """Return the other hyperparameters of each task, at the hand-set cascade's best learning rate.

    Args:
        tasks: The tasks.
        run: From jobs and what to call them to their results.
    """
    found = {}
    for task in tasks:
        lines = [
            line(f"rate {rate}", start(), REST | {"learning_rate": rate}) for rate in LEARNING_RATES
        ]
        jobs = [task.job("tuning", x, seed=FIRST_TUNING_SEED + i) for x in lines for i in range(2)]
        best = best_trial(run(jobs, f"{task.name}: hand-set"))
        found[task.name] = without_numbers(best["hyper"])
    return found


def evolved(form: str, seed: int, rests: Rests, run: Run) -> Hyper:
    """Return what evolution learns on all tasks, of the texts one a generation in turn.

    Args:
        form: `"fixed"` or `"course"`.
        seed: Of the search.
        rests: From `tuned`.
        run: From jobs and what to call them to their results.
    """

    def score(candidates: list[Hyper], generation: int) -> list[float]:
        tasks = (*SYNTHETIC, TEXTS[generation % len(TEXTS)])
        jobs = [
            task.job(
                "tuning",
                line(f"{form} {seed}, {generation}.{i}", numbers, rests[task.name]),
                seed=FIRST_GENERATION + generation,
                share=EVOLVED_SHARE,
            )
            for i, numbers in enumerate(candidates)
            for task in tasks
        ]
        losses = [log_loss(result) for result in run(jobs, f"generation {generation}")]
        return np.mean(np.reshape(losses, (len(candidates), -1)), axis=1).tolist()

    return learning.evolve(form, score, seed=seed, generations=GENERATIONS, population=POPULATION)


def descended(form: str, seed: int, rests: Rests, bench: Bench) -> Hyper:
    """Return what hypergradients learn.

    Args:
        form: `"fixed"` or `"course"`.
        seed: Of the trainings.
        rests: From `tuned`.
        bench: Has the tasks.
    """
    tasks = [(bench.workload(task.name, "validation"), rests[task.name]) for task in LEARN]
    return learning.descend(FORMS[form], tasks, seed=seed, iterations=ITERATIONS, steps=UNROLLED)


def ways(rests: Rests, run: Run, bench: Bench) -> dict[str, Callable[[], Hyper]]:
    """Return every way of learning, by its name.

    Args:
        rests: From `tuned`.
        run: From jobs and what to call them to their results.
        bench: Has the tasks.
    """
    found: dict[str, Callable[[], Hyper]] = {}
    for form, seed in itertools.product(FORMS, SEEDS):
        found[f"{form}, evolved, seed {seed}"] = partial(evolved, form, seed, rests, run)
        found[f"{form}, descended, seed {seed}"] = partial(descended, form, seed, rests, bench)
    return found


def log_loss(result: Result) -> float:
    """Return the logarithm of a run's final loss, the untrained model's where not finite."""
    return float(np.log(curves_of([result])[0, -1]))


def scores(learned: Learned, run: Run) -> dict[str, dict[str, float]]:
    """Return by cascade and task the mean logarithm of the ratio of its loss to the hand-set one's.

    Each at the best of half, once and twice the hand-set cascade's learning rate; two seeds.

    Args:
        learned: By name.
        run: From jobs and what to call them to their results.
    """
    cascades = {HAND_SET: start(), **learned}
    found: dict[str, dict[str, float]] = {name: {} for name in learned}
    rests = tuned((*OTHERS, *TEXTS), run)
    for task in CHOOSE:
        lines = {name: line(name, x, rests[task.name]) for name, x in cascades.items()}
        best = at_best_rates(task, lines, run)
        losses = {}
        for name, chosen in best.items():
            jobs = [task.job("tuning", chosen, seed=FIRST_TUNING_SEED + i) for i in range(2)]
            losses[name] = np.mean([log_loss(x) for x in run(jobs, f"{task.name}: {name}")])
        for name in learned:
            found[name][task.name] = float(losses[name] - losses[HAND_SET])
    return found


def best_of(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the cascade of the lowest mean score.

    Args:
        found: From `scores`.
    """
    return min(found, key=lambda name: np.mean(list(found[name].values())))


def finals(learned: Learned, tuning: Sequence[Result], run: Run) -> list[Result]:
    """Run the final seeds of the hand-set cascade and of learned ones, each at its best rate.

    Args:
        learned: By name.
        tuning: The spectral study's runs, whose best settings without a second moment are taken.
        run: From jobs and what to call them to their results.
    """
    results = []
    for task in FINAL:
        settings = best_trial(
            [
                x
                for x in tuning
                if (x["phase"], x["workload"], x["contender"]) == ("tuning", task.name, SPECTRAL)
            ]
        )
        cascades = {HAND_SET: start(), **learned}
        lines = {name: line(name, x, settings["hyper"]) for name, x in cascades.items()}
        best = at_best_rates(task, lines, run)
        jobs = [
            task.job("final", chosen, seed=seed, share=share)
            for name, chosen in best.items()
            for share in ((1.0,) if name == HAND_SET else (*task.shares, 1.0))
            for seed in range(task.seeds)
        ]
        results += run(jobs, f"{task.name}: final")
    return results


def singular_values(
    name: str, numbers: Hyper, lines: Sequence[Result], bench: Bench
) -> list[float]:
    """Return those of the momentum of a model that a cascade has trained, over its norm.

    Args:
        name: Of the cascade.
        numbers: The cascade.
        lines: From `finals`.
        bench: Has the task.
    """
    task = FINAL[0]
    hyper = next(
        x["hyper"]
        for x in lines
        if (x["workload"], x["steps"], cascade_of(x)) == (task.name, task.horizon, name)
    )
    contender, hyper = FORMS[form_of(numbers)], hyper | {"steps": task.horizon}
    workload = bench.workload(task.name, "validation")
    ((_, state),) = deque(training(workload, contender, hyper, steps=task.horizon), maxlen=1)
    return [float(f"{x:.4g}") for x in cascade_figure.singular_values(state)]
