"""From the evidence study's runs to figures: what each arm reaches, and paired differences.

A run that diverged counts with what the untrained model reaches, as in `statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from benchmarks.study.contenders import BASELINE
from benchmarks.study.results import Result, diverged
from benchmarks.study.statistics import (
    Comparison,
    Estimate,
    bootstrap,
    curves_of,
    holm,
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


def _accuracies(runs: Runs) -> Float[np.ndarray, "seeds points+1"]:
    ordered = sorted(runs, key=lambda run: run["seed"])
    curves = np.array([run["accuracy"] for run in ordered], dtype=float)
    lost = np.array([None in run["validation"] for run in ordered])
    return 100 * np.where(lost[:, None], curves[:, :1], curves)


ACCURACY = Measure("accuracy", "points", 1, _accuracies)
LOSS = Measure("loss", "%", -1, curves_of, relative=True)


def success(tolerance: float) -> Measure:
    """Return the share of runs, in per cent, that end within a tolerance of the minimum.

    Args:
        tolerance: Of the excess.
    """
    return Measure("success", "points", 1, lambda runs: 100.0 * (curves_of(runs) <= tolerance))


@dataclass(frozen=True)
class Effect:
    """One set of runs held against another.

    Attributes:
        seeds: Number of pairs.
        difference: At the end; in the measure's unit.
        p: That there is none, two-sided, by flips of sign.
        adjusted_p: The same after Holm, over the comparisons that were asked for together.
    """

    seeds: int
    difference: Estimate
    p: float
    adjusted_p: float


def paired_effects(measure: Measure, pairs: Sequence[tuple[Runs, Runs]]) -> list[Effect]:
    """Compare pairs of runs; Holm's correction is over them all.

    Args:
        measure: What is compared.
        pairs: Runs, and those that they are held against.
    """
    found = [measure.differences(one, other) for one, other in pairs]
    p_values = [sign_flip_p(differences) for differences in found]
    return [
        Effect(len(differences), bootstrap(differences), p, adjusted)
        for differences, p, adjusted in zip(found, p_values, holm(p_values), strict=True)
    ]


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
        diverged: Number of final runs that diverged.
        learning_rate: The best of tuning.
    """

    contender: str
    value: Estimate
    interquartile_mean: float
    steps_to_target: float
    misses: int
    seeds: int
    trials: int
    diverged: int
    learning_rate: float


class Task:
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
    def screened(self) -> list[str]:
        """Names of those that were tuned and then dropped."""
        tuned = {r["contender"] for r in self._tuning()}
        return self._in_order(tuned - set(self.contenders))

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

    def until_target(self, contender: str) -> Values:
        """Return when each run reaches the target, as a share of the run; infinite if never."""
        sign = -self.measure.better  # `steps_to` looks for what falls
        return steps_to(sign * self.curves(contender), sign * self.target)

    def reached(self, contender: str) -> Reached:
        """Return the figures of a contender."""
        runs = self.runs(contender)
        final, until = self.measure.final(runs), self.until_target(contender)
        return Reached(
            contender,
            bootstrap(final),
            float(stats.trim_mean(final, 0.25)),
            float(np.median(until)),
            int(np.isinf(until).sum()),
            len(runs),
            sum(r["contender"] == contender for r in self._tuning()),
            sum(map(diverged, runs)),
            runs[0]["hyper"]["learning_rate"],
        )

    def effects(self, pairs: Sequence[Pair]) -> dict[Pair, Effect]:
        """Compare pairs of contenders; Holm's correction is over them all.

        Args:
            pairs: A contender and what it is held against.
        """
        found = paired_effects(self.measure, [(self.runs(a), self.runs(b)) for a, b in pairs])
        return dict(zip(pairs, found, strict=True))

    def against_baseline(self) -> dict[Pair, Effect]:
        """Compare everyone with AdamW."""
        return self.effects([(name, BASELINE) for name in self.contenders if name != BASELINE])


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
    found = stats.bootstrap(
        (one, other),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    )
    return Estimate(
        value, float(found.confidence_interval.low), float(found.confidence_interval.high)
    )
