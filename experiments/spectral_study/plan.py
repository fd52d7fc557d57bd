"""What is run: each optimizer's trials on a task, its best settings again, and the final seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from experiments.engine.contender import Contender
from experiments.engine.plan import (
    FIRST_TUNING_SEED,
    ROBUSTNESS_FACTORS,
    best_trial,
    losses_of_trials,
)
from experiments.engine.results import Job, Phase, Result

Run = Callable[[Iterable[Job], str], list[Result]]
Variants = tuple[Contender, ...]
FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Task:
    """A task, and how long and how often its runs are.

    Attributes:
        name: Of the workload.
        horizon: Length of a run, in steps.
        rates: Range of learning rates.
        shares: Of the horizon, over which the spectral form runs besides.
        seeds: Of the final runs.
        points: Evaluations a run.
        like: Another task, whose best settings are taken over; the learning rate is tried anew,
            at half, once and twice theirs, and beyond while the best is at the border.
    """

    name: str
    horizon: int
    rates: tuple[float, float]
    shares: tuple[float, ...] = (0.6, 0.75)
    seeds: int = 20
    points: int = 10
    like: str | None = None

    def job(self, phase: Phase, line: Result, *, seed: int, share: float = 1.0) -> Job:
        """Return a run at the settings of another.

        Args:
            phase: What it is for.
            line: A result, whose contender, trial and hyperparameters it takes.
            seed: Of the run.
            share: Of the horizon.
        """
        return Job(
            phase,
            self.name,
            line["contender"],
            line["settings"],
            line["trial"],
            line["hyper"],
            seed,
            round(share * self.horizon),
            self.points,
        )


@dataclass(frozen=True)
class Plan:
    """How arms are tuned on a task, and what they then run.

    Attributes:
        arms: Variants of each optimizer, by its name.
        shorter: The arm that also runs over shorter horizons.
        trials: Of each variant, with one seed.
        again: So many of an arm's best trials are run with more seeds.
        more_seeds: So many.
        robustness: Runs at learning rates from a tenth to three times the best.
    """

    arms: Mapping[str, Variants]
    shorter: str
    trials: int = 12
    again: int = 3
    more_seeds: int = 2
    robustness: int = 25

    def runs(self, task: Task) -> dict[str, float]:
        """Return what each arm runs on a task, in whole runs, if no range is widened.

        Args:
            task: The task.
        """
        found = {}
        for name, variants in self.arms.items():
            tuning = len(FACTORS) if task.like else self.trials * len(variants)
            more = 0 if task.like else self.again * self.more_seeds + self.robustness
            found[name] = tuning + more + task.seeds * sum(self._shares(task, name))
        return found

    def _shares(self, task: Task, name: str) -> tuple[float, ...]:
        return (*task.shares, 1.0) if name == self.shorter else (1.0,)

    def chosen(self, task: Task, run: Run, like: Task | None = None) -> dict[str, Result]:
        """Return a run of each arm at its best settings.

        Args:
            task: The task.
            run: From jobs and what to call them to their results.
            like: The task that `task.like` names.
        """
        if task.like is None:
            return {name: self._tuned(task, name, run) for name in self.arms}
        if like is None or like.name != task.like:
            raise ValueError(f"like={like!r}: {task.name} takes the settings of {task.like} over.")
        return at_best_rates(task, self.chosen(like, run), run, beyond=True)

    def finals(self, task: Task, chosen: Mapping[str, Result]) -> list[Job]:
        """Return the runs that count.

        Args:
            task: The task.
            chosen: A result of each arm at its best settings.
        """
        return [
            task.job("final", line, seed=seed, share=share)
            for seed in range(task.seeds)
            for name, line in chosen.items()
            for share in self._shares(task, name)
        ]

    def other_rates(self, task: Task, chosen: Mapping[str, Result]) -> list[Job]:
        """Return runs at learning rates around the best, a seed each.

        Args:
            task: The task.
            chosen: A result of each arm at its best settings.
        """
        return [
            task.job("robustness", times(line, factor), seed=i)
            for line in chosen.values()
            for i, factor in enumerate(np.geomspace(*ROBUSTNESS_FACTORS, self.robustness))
        ]

    def _tuned(self, task: Task, name: str, run: Run) -> Result:
        """A run of the best trial.

        A range with its best learning rate at the border is widened by half a decade, once, and
        its variant searched again.
        """
        variants = [dataclasses.replace(x, learning_rate=task.rates) for x in self.arms[name]]
        label = f"{task.name}: {name}"
        found = run([job for x in variants for job in self._trials(task, x)], label)
        first = best_trial(found)
        variant = next(x for x in variants if x.name == first["contender"])
        wider = variant.widened(first["hyper"]["learning_rate"])
        if wider is not None:
            found += run(self._trials(task, wider, "wider "), label)
        losses = losses_of_trials(found)
        best = sorted(losses, key=lambda trial: losses[trial])[: self.again]
        lines = [line for line in found if line["trial"] in best]
        more = [
            task.job("tuning", line, seed=FIRST_TUNING_SEED + seed)
            for line in lines
            for seed in range(1, 1 + self.more_seeds)
        ]
        return best_trial(lines + run(more, label))

    def _trials(self, task: Task, variant: Contender, prefix: str = "") -> list[Job]:
        return [
            task.job(
                "tuning",
                {
                    "contender": variant.name,
                    "settings": variant.settings,
                    "trial": f"{prefix}{variant.name} {i}",
                    "hyper": hyper,
                },
                seed=FIRST_TUNING_SEED,
            )
            for i, hyper in enumerate(variant.trials(self.trials))
        ]


def times(line: Result, factor: float) -> Result:
    """Return the settings of a result at another learning rate.

    Args:
        line: The result.
        factor: Of its learning rate.
    """
    hyper = line["hyper"] | {"learning_rate": float(factor) * line["hyper"]["learning_rate"]}
    return line | {"hyper": hyper, "trial": f"{line['trial']} x {factor:.3g}"}


def at_best_rates(
    task: Task, lines: Mapping[str, Result], run: Run, *, beyond: bool = False
) -> dict[str, Result]:
    """Return a run of each at the best of half, once and twice its learning rate.

    Args:
        task: Where it is tried.
        lines: Results, whose settings are taken, by any name.
        run: From jobs and what to call them to their results.
        beyond: Whether a rate at the border is halved or doubled until the best is not.
    """
    tried: dict[str, dict[float, Result]] = {name: {} for name in lines}
    ahead = dict.fromkeys(lines, FACTORS)
    while ahead:
        trials = [(name, factor) for name, factors in ahead.items() for factor in factors]
        jobs = [
            task.job("tuning", times(lines[name], factor), seed=FIRST_TUNING_SEED)
            for name, factor in trials
        ]
        found = run(jobs, f"{task.name}: rates")
        for (name, factor), result in zip(trials, found, strict=True):
            tried[name][factor] = result
        ahead = {name: _past_the_border(tried[name]) for name in ahead} if beyond else {}
        ahead = {name: factors for name, factors in ahead.items() if factors}
    return {name: best_trial([*results.values()]) for name, results in tried.items()}


def _past_the_border(tried: Mapping[float, Result]) -> tuple[float, ...]:
    best = best_trial([*tried.values()])
    if best is tried[min(tried)]:
        return (min(tried) / 2,)
    return (2 * max(tried),) if best is tried[max(tried)] else ()


def controls(task: Task, names: Iterable[str], line: Result, run: Run) -> None:
    """Run controls at the settings of another run, each at its best learning rate.

    Args:
        task: The task.
        names: Of the controls.
        line: The other run.
        run: From jobs and what to call them to their results.
    """
    chosen = at_best_rates(task, {name: line | {"contender": name} for name in names}, run)
    finals = [
        task.job("final", best, seed=seed) for best in chosen.values() for seed in range(task.seeds)
    ]
    run(finals, f"{task.name}: controls")
