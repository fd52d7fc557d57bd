"""From the final runs to figures: means, paired differences to AdamW, tests, steps to a target.

A run whose loss ceased to be finite counts with the untrained model's loss, so that an optimizer
that diverges gains nothing by it; such runs, and those that end above it, are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from experiments.engine.contender import BASELINE
from experiments.engine.plan import SHORTER
from experiments.engine.results import Result, diverged

RESAMPLES = 19_999
Losses = Float[np.ndarray, " seeds"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval; the bounds of fewer than two values are NaN."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One contender on one task.

    Attributes:
        workload: Name of the task.
        contender: Name of the optimizer.
        hyper: The best hyperparameters.
        seeds: Number of pairs with AdamW, the fewer of both lengths.
        trials: Number of hyperparameters tried.
        diverged: Number of runs that diverged, of both lengths.
        loss: Final test loss.
        difference: To AdamW's with the same seed, in per cent of the latter.
        p: That there is no difference, two-sided, by flips of sign.
        adjusted_p: The same after Holm, over the contenders of the task.
        shorter_difference: Loss after 0.75 of the horizon, minus AdamW's after all, in per cent.
        shorter_p: That the former is not lower, one-sided, by flips of sign.
        steps_to_target: Median share of the horizon until the loss along the curve reaches the
            mean of AdamW's at the end; infinite if most runs never do.
        robustness: Runs at other learning rates, and how many of them diverged.
    """

    workload: str
    contender: str
    hyper: Mapping[str, float]
    seeds: int
    trials: int
    diverged: int
    loss: Estimate
    difference: Estimate
    p: float
    adjusted_p: float
    shorter_difference: Estimate
    shorter_p: float
    steps_to_target: float
    robustness: tuple[int, int]


def bootstrap(values: Losses) -> Estimate:
    """Return the mean and its interval.

    Args:
        values: One a seed.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    found = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9_999, rng=np.random.default_rng(0)
    )
    low, high = found.confidence_interval
    return Estimate(mean, float(low), float(high))


def sign_flip_p(differences: Losses, alternative: str = "two-sided") -> float:
    """Return the p-value that paired differences have mean 0, by flipping their signs.

    Args:
        differences: One a seed.
        alternative: `"two-sided"`, or `"less"` if only a negative mean counts.
    """
    if len(differences) < 2:
        return math.nan
    options: dict[str, Any] = {"alternative": alternative, "n_resamples": RESAMPLES}
    return float(
        stats.permutation_test(
            (differences,),
            _mean,
            permutation_type="samples",
            vectorized=True,
            rng=np.random.default_rng(0),
            **options,
        ).pvalue
    )


def _mean(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(x, axis=axis)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, by Holm; NaNs are not counted.

    Args:
        p_values: One a hypothesis.
    """
    order = [i for i in np.argsort(p_values) if not math.isnan(p_values[i])]
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def steps_to(
    curves: Float[np.ndarray, "seeds points+1"], target: float
) -> Float[np.ndarray, " seeds"]:
    """Return when each curve first reaches a loss, as a share of its length; infinite if never.

    Args:
        curves: Losses after equal parts of the run, the untrained model's first.
        target: The loss, interpolated linearly.
    """
    return np.array([_first_at(curve, target) for curve in curves]) / (curves.shape[1] - 1)


def _first_at(curve: Float[np.ndarray, " points"], target: float) -> float:
    below: Bool[np.ndarray, " points"] = curve <= target
    if not below.any():
        return math.inf
    i = int(np.argmax(below))
    if i == 0:
        return 0.0
    return i - 1 + (curve[i - 1] - target) / (curve[i - 1] - curve[i])


def curves_of(runs: Sequence[Result]) -> Float[np.ndarray, "seeds points+1"]:
    """Return the losses along the runs, ordered by seed; the untrained model's where not finite.

    Args:
        runs: Of one task, contender and length.
    """
    ordered = sorted(runs, key=lambda run: run["seed"])
    curves = np.array([run["validation"] for run in ordered], dtype=float)  # null becomes NaN
    return np.where(np.isfinite(curves), curves, curves[:, :1])


class Comparison:
    """All results of a file, found by task and contender.

    Args:
        results: The lines.

    Raises:
        ValueError: If a task has no final runs of AdamW, or one seed has two results that do not
            belong to the same hyperparameters.
    """

    def __init__(self, results: Sequence[Result]):
        self._results = results
        self.workloads = list(dict.fromkeys(r["workload"] for r in results))
        self._finals: dict[tuple[str, str, int], dict[int, Result]] = {}
        for result in results:
            if result["phase"] == "final":
                self._add(result)
        for workload in self.workloads:
            if not self.runs(workload, BASELINE):
                raise ValueError(
                    f"{workload}: there are no final runs of {BASELINE} over the horizon."
                )

    def _add(self, result: Result) -> None:
        key = result["workload"], result["contender"], result["steps"]
        runs = self._finals.setdefault(key, {})
        other = runs.setdefault(result["seed"], result)
        for name in ("hyper", "settings", "points"):
            if other[name] != result[name]:
                raise ValueError(
                    f"{key[0]}, {key[1]}, seed {result['seed']}: final runs with {name} "
                    f"{other[name]!r} and {result[name]!r} are in one file."
                )

    def contenders(self, workload: str) -> list[str]:
        """Return the contenders with final runs on a task, AdamW first."""
        found = dict.fromkeys(name for task, name, _ in self._finals if task == workload)
        return [BASELINE, *(name for name in found if name != BASELINE)]

    def horizon(self, workload: str) -> int:
        """Return the length of the longest runs, which tuning takes first."""
        return max(result["steps"] for result in self._results if result["workload"] == workload)

    def tuning(self, workload: str) -> list[Result]:
        """Return all tuning runs on a task."""
        return [r for r in self._results if (r["phase"], r["workload"]) == ("tuning", workload)]

    def runs(self, workload: str, contender: str, *, share: float = 1.0) -> dict[int, Result]:
        """Return the final runs over this share of the horizon, by seed."""
        steps = round(share * self.horizon(workload))
        return self._finals.get((workload, contender, steps), {})

    def curves(self, workload: str, contender: str) -> Float[np.ndarray, "seeds points+1"]:
        """Return the losses along the full runs, ordered by seed."""
        return curves_of(list(self.runs(workload, contender).values()))

    def paired(self, workload: str, contender: str, *, share: float = 1.0) -> tuple[Losses, Losses]:
        """Return final losses over this share, and AdamW's over all, of the seeds that have both.

        Args:
            workload: Name of the task.
            contender: Name of the optimizer.
            share: Of the horizon, for the contender's runs.
        """
        one, other = self.runs(workload, contender, share=share), self.runs(workload, BASELINE)
        seeds = sorted(one.keys() & other.keys())
        if not seeds:
            return np.empty(0), np.empty(0)
        one, other = ([runs[seed] for seed in seeds] for runs in (one, other))
        return curves_of(one)[:, -1], curves_of(other)[:, -1]

    def differences(self, workload: str, contender: str, *, share: float = 1.0) -> Losses:
        """Return the differences of `paired` in per cent of AdamW's loss."""
        losses, baseline = self.paired(workload, contender, share=share)
        return 100 * (losses / baseline - 1)

    def rows(self, workload: str) -> list[Row]:
        """Return the table of a task, AdamW first."""
        names = [name for name in self.contenders(workload) if self.runs(workload, name)]
        p_values = [
            math.nan if name == BASELINE else sign_flip_p(self.differences(workload, name))
            for name in names
        ]
        adjusted = holm(p_values)
        return [
            self._row(workload, name, p, holm_p)
            for name, p, holm_p in zip(names, p_values, adjusted, strict=True)
        ]

    def _row(self, workload: str, contender: str, p: float, adjusted_p: float) -> Row:
        full = self.runs(workload, contender)
        shorter = self.runs(workload, contender, share=SHORTER)
        early = self.differences(workload, contender, share=SHORTER)
        differences = self.differences(workload, contender)
        _, baseline = self.paired(workload, BASELINE)
        curves = self.curves(workload, contender)
        robust = self._of("robustness", workload, contender)
        return Row(
            workload=workload,
            contender=contender,
            hyper=next(iter(full.values()))["hyper"],
            seeds=min(len(differences), len(early)),
            trials=len(self._of("tuning", workload, contender)),
            diverged=sum(map(diverged, [*full.values(), *shorter.values()])),
            loss=bootstrap(curves[:, -1]),
            difference=_estimate(differences),
            p=p,
            adjusted_p=adjusted_p,
            shorter_difference=_estimate(early),
            shorter_p=sign_flip_p(early, "less"),
            steps_to_target=float(np.median(steps_to(curves, float(baseline.mean())))),
            robustness=(len(robust), sum(map(diverged, robust))),
        )

    def _of(self, phase: str, workload: str, contender: str) -> list[Result]:
        wanted = (phase, workload, contender)
        return [r for r in self._results if (r["phase"], r["workload"], r["contender"]) == wanted]


def _estimate(values: Losses) -> Estimate:
    return bootstrap(values) if len(values) else Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Bars:
    """How a contender fares against the bars that were set before the first run.

    Attributes:
        contender: Name of the optimizer.
        faster: Tasks on which it reaches AdamW's loss in 0.75 of the steps, with p < 0.01 over at
            least 20 pairs.
        worst: Greatest mean difference to AdamW's final loss over the tasks, in per cent.
        diverged: Diverged runs around the best learning rate.
        runs: Runs around the best learning rate.
        to_cautious: Mean over tasks of the mean difference to Cautious AdamW's, in per cent.
    """

    contender: str
    faster: tuple[str, ...]
    worst: float
    diverged: int
    runs: int
    to_cautious: float


def bars(rows: Sequence[Row]) -> list[Bars]:
    """Hold every contender but AdamW against the bars.

    Args:
        rows: Of all tasks.
    """
    names = dict.fromkeys(row.contender for row in rows if row.contender != BASELINE)
    cautious = {row.workload: row.loss.mean for row in rows if row.contender == "cautious"}
    return [_bars(name, [r for r in rows if r.contender == name], cautious) for name in names]


def _bars(name: str, rows: Sequence[Row], cautious: Mapping[str, float]) -> Bars:
    ratios = [r.loss.mean / cautious[r.workload] - 1 for r in rows if r.workload in cautious]
    return Bars(
        contender=name,
        faster=tuple(r.workload for r in rows if r.shorter_p < 0.01 and r.seeds >= 20),
        worst=max(row.difference.mean for row in rows),
        diverged=sum(row.robustness[1] for row in rows),
        runs=sum(row.robustness[0] for row in rows),
        to_cautious=100 * float(np.mean(ratios)) if ratios else math.nan,
    )
