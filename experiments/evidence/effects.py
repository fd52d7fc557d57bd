"""From the evidence study's runs to figures: what each arm reaches, and paired differences.

A run whose loss ceased to be finite counts, all along, with what the untrained model reaches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from experiments.engine.contender import BASELINE
from experiments.engine.plan import hopeless, losses_of_trials
from experiments.engine.results import Result, diverged
from experiments.engine.statistics import (
    Comparison,
    Estimate,
    bootstrap,
    sign_flip_p,
    steps_to,
)

Values = Float[np.ndarray, " seeds"]
Runs = Sequence[Result]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Measure:
    """What is compared on a task.

    Attributes:
        name: `"accuracy"`, `"loss"` or `"success"`.
        unit: Of the differences.
        better: 1 if more is better, −1 if less is.
        curves: From runs to the measure along them, ordered by seed.
        relative: Whether differences are in per cent of the other's value, or in points.
    """

    name: str
    unit: str
    better: int
    curves: Callable[[Runs], Float[np.ndarray, "seeds points+1"]]
    relative: bool = False

    def final(self, runs: Runs) -> Values:
        """Return the measure at the end of each run, ordered by seed."""
        return self.curves(runs)[:, -1]

    def differences(self, one: Runs, other: Runs) -> Values:
        """Return the paired differences at the end, over the seeds that both have.

        Args:
            one: Runs of a contender.
            other: Of what it is compared with.
        """
        seeds = {run["seed"] for run in one} & {run["seed"] for run in other}
        a, b = (self.final([run for run in runs if run["seed"] in seeds]) for runs in (one, other))
        return 100 * (a / b - 1) if self.relative else a - b


def _curves(runs: Runs, name: str = "validation") -> Float[np.ndarray, "seeds points+1"]:
    ordered = sorted(runs, key=lambda run: run["seed"])
    curves = np.array([run[name] for run in ordered], dtype=float)  # null becomes NaN
    lost = np.array([None in run["validation"] for run in ordered])
    return np.where(lost[:, None], curves[:, :1], curves)


def _accuracies(runs: Runs) -> Float[np.ndarray, "seeds points+1"]:
    return 100 * _curves(runs, "accuracy")


ACCURACY = Measure("accuracy", "points", 1, _accuracies)
LOSS = Measure("loss", "%", -1, _curves, relative=True)
EXCESS = Measure("excess", "", -1, _curves)


def success(tolerance: float) -> Measure:
    """Return the share of runs, in per cent, that end within a tolerance of the minimum.

    Args:
        tolerance: Of the excess.
    """
    return Measure("success", "points", 1, lambda runs: 100.0 * (_curves(runs) <= tolerance))


@dataclass(frozen=True)
class Effect:
    """One set of runs held against another.

    Attributes:
        seeds: Number of pairs.
        difference: At the end; in the measure's unit.
        p: That there is none, two-sided, by flips of sign, uncorrected.
    """

    seeds: int
    difference: Estimate
    p: float


def effect_of(values: Values) -> Effect:
    """Return the mean of paired differences, its interval and p-value.

    Args:
        values: One a seed.
    """
    return Effect(len(values), bootstrap(values), sign_flip_p(values))


@dataclass(frozen=True)
class Reached:
    """What a contender reaches on a task.

    Attributes:
        contender: Its name.
        value: Of the measure at the end.
        interquartile_mean: Of the same.
        steps_to_target: Median share of the run until the target is reached; infinite if most
            runs never do.
        misses: Number of runs that never reach it.
        seeds: Number of final runs.
        trials: Number of tuning runs.
        diverged: Number of final runs whose loss ceased to be finite, or ended above the untrained
            model's.
        trial: The best of tuning, and its learning rate.
    """

    contender: str
    value: Estimate
    interquartile_mean: float
    steps_to_target: float
    misses: int
    seeds: int
    trials: int
    diverged: int
    trial: tuple[str, float]


class TaskResults:
    """The results of one task.

    Args:
        comparison: All results.
        workload: The task's name.
        measure: What is compared.
        target: Of the measure, that runs race to; by default AdamW's mean at the end.
        order: Names of contenders as they are to be listed; others follow.
    """

    def __init__(
        self,
        comparison: Comparison,
        workload: str,
        measure: Measure,
        target: float | None = None,
        order: Sequence[str] = (),
    ):
        self._comparison = comparison
        self._place = {name: place for place, name in enumerate(order)}
        self.workload, self.measure = workload, measure
        reached = measure.final(self.runs(BASELINE)).mean()
        self.target = float(reached) if target is None else target

    @property
    def contenders(self) -> list[str]:
        """Names of those with final runs, AdamW first."""
        return self._in_order(self._comparison.contenders(self.workload))

    @property
    def without_finals(self) -> list[str]:
        """Names of those that were tuned and have no final runs."""
        tuned = {r["contender"] for r in self._tuning()}
        return self._in_order(tuned - set(self.contenders))

    def screened(self, share: float) -> list[str]:
        """Return those that got no final runs because their best trial is hopeless.

        Args:
            share: How much worse than AdamW's it may be.
        """
        trials: dict[tuple[str, str], list[Result]] = {}
        for line in self._tuning():
            trials.setdefault((self.workload, line["contender"]), []).append(line)
        names = self.without_finals
        return [name for name in names if hopeless(trials, (self.workload, name), share)]

    def _in_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: self._place.get(name, len(self._place)))

    @property
    def horizon(self) -> int:
        """Length of the runs, in steps."""
        return self._comparison.horizon(self.workload)

    def runs(self, contender: str) -> list[Result]:
        """Return the final runs of a contender, by seed."""
        return list(self._comparison.runs(self.workload, contender).values())

    def _tuning(self) -> list[Result]:
        return self._comparison.tuning(self.workload)

    def curves(self, contender: str) -> Float[np.ndarray, "seeds points+1"]:
        """Return the measure along the final runs of a contender."""
        return self.measure.curves(self.runs(contender))

    def until_target(self, runs: Runs) -> Values:
        """Return when each run reaches the target, as a share of the run; infinite if never.

        Args:
            runs: Of the task; they are taken by seed.
        """
        sign = -self.measure.better  # `steps_to` looks for what falls
        return steps_to(sign * self.measure.curves(runs), sign * self.target)

    def reached(self, contender: str) -> Reached:
        """Return the figures of a contender."""
        runs = self.runs(contender)
        final, until = self.measure.final(runs), self.until_target(runs)
        return Reached(
            contender,
            bootstrap(final),
            float(stats.trim_mean(final, 0.25)),
            float(np.median(until)),
            int(np.isinf(until).sum()),
            len(runs),
            sum(r["contender"] == contender for r in self._tuning()),
            sum(map(diverged, runs)),
            (runs[0]["trial"], runs[0]["hyper"]["learning_rate"]),
        )

    def effects(self, pairs: Iterable[Pair]) -> dict[Pair, Effect]:
        """Compare pairs of contenders, those that have final runs of common seeds.

        Args:
            pairs: A contender and what it is held against.
        """
        known = set(self.contenders)
        found = {
            (one, other): self.measure.differences(self.runs(one), self.runs(other))
            for one, other in pairs
            if {one, other} <= known
        }
        return {pair: effect_of(values) for pair, values in found.items() if len(values)}

    def against_baseline(self, names: Iterable[str] | None = None) -> dict[Pair, Effect]:
        """Compare contenders with AdamW.

        Args:
            names: Of the contenders; by default all.
        """
        names = self.contenders if names is None else names
        return self.effects([(name, BASELINE) for name in names if name != BASELINE])

    def at_equal_settings(self, contender: str) -> tuple[float, int, int] | None:
        """Compare validation losses at the hyperparameters that AdamW was tuned over as well.

        What a contender gains by the luck of its best trial is not in it.

        Args:
            contender: Its name.

        Returns:
            The median over trials of the difference to AdamW's mean loss over the tuning seeds, in
            per cent (a trial that diverged counts as infinite); in how many trials it is lower;
            and how many there are in which AdamW did not diverge. `None` if there are none.
        """
        one, base = (self._mean_losses(name) for name in (contender, BASELINE))
        common = [hyper for hyper in base if hyper in one and math.isfinite(base[hyper])]
        if not common:
            return None
        ratios = np.array([one[hyper] / base[hyper] for hyper in common])
        return 100 * float(np.median(ratios) - 1), int((ratios < 1).sum()), len(ratios)

    def _mean_losses(self, contender: str) -> dict[str, float]:
        lines = [r for r in self._tuning() if r["contender"] == contender]
        settings = {r["trial"]: json.dumps(r["hyper"], sort_keys=True) for r in lines}
        losses = losses_of_trials(lines).items() if lines else ()
        return {settings[trial]: loss for trial, loss in losses}


def slopes(curves: Mapping[float, Values]) -> Values:
    """Return the slope of each seed's values over the decades of what was varied.

    Args:
        curves: Values by seed, for each value of what was varied.
    """
    decades = np.log10(list(curves))
    return np.polyfit(decades, np.stack(list(curves.values())), 1)[0]


def ratio_of_medians(one: Values, other: Values) -> Estimate:
    """Return the ratio of two medians over paired seeds, minus 1, in per cent.

    Args:
        one: A contender's values, infinite where it missed the target.
        other: AdamW's, with the same seeds.

    Returns:
        NaN where a median is infinite; the interval is a paired bootstrap's, 95 %.
    """

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return 100 * (np.median(a, axis=axis) / np.median(b, axis=axis) - 1)

    value = float(ratio(one, other))
    if not math.isfinite(value) or len(one) < 2:
        return Estimate(math.nan, math.nan, math.nan)
    # scipy's bootstrap computes a standard error too, which medians that are infinite do not have.
    draws = np.random.default_rng(0).integers(len(one), size=(9_999, len(one)))
    drawn = ratio(one[draws], other[draws])
    low, high = np.percentile(drawn, (2.5, 97.5), method="inverted_cdf")
    return Estimate(value, float(low), float(high))
