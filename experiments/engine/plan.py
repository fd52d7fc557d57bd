"""What is to be compared: tuning, final and robustness runs, and what they will cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.engine.contender import BASELINE, Contender, Hyper
from experiments.engine.results import Job, Phase, Result, Results, final_loss
from experiments.engine.runner import Bench, run_jobs

FIRST_TUNING_SEED = 1000  # the final runs' seeds, 0, 1, ..., must not be tuned on
SHORTER = 0.75  # of the horizon, at which a better optimizer is to reach AdamW's loss
ROBUSTNESS_FACTORS = (0.1, 3.0)  # of the best learning rate


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        horizons: Length of a run on each task, by name, in steps.
        contenders: By name.
        trials: Hyperparameters to try, for each task and contender.
        seeds: Pairs of final runs.
        points: Evaluations a run; they divide the horizons and three quarters of them.
        robustness: Runs at learning rates around the best, for each task and contender.
        tuning_seeds: Runs of each trial; the mean of their losses counts.
        shares: Of the horizon, over which the final runs go.
        published: Hyperparameters for all contenders, which then are not tuned.
        screen: Contenders whose best trial is worse than AdamW's by more than this share, or whose
            trials have all diverged, get no final runs; all get them if `None`.
    """

    horizons: Mapping[str, int]
    contenders: Mapping[str, Contender]
    trials: int = 8
    seeds: int = 20
    points: int = 10
    robustness: int = 0
    tuning_seeds: int = 1
    shares: tuple[float, ...] = (SHORTER, 1.0)
    published: Hyper | None = None
    screen: float | None = None

    def __post_init__(self):
        for name in self.horizons:
            for steps in self.lengths(name):
                if steps % self.points:
                    raise ValueError(
                        f"points={self.points} must divide {steps} steps, a length of the final "
                        f"runs on {name}."
                    )

    def lengths(self, workload: str) -> list[int]:
        """Return the lengths of the final runs on a task, in steps."""
        return [round(share * self.horizons[workload]) for share in self.shares]

    def pairs(self) -> list[tuple[str, Contender]]:
        """Return every task with every contender."""
        return [(name, c) for name in self.horizons for c in self.contenders.values()]

    def steps(self, workload: str, contender: Contender, batch: int = 1) -> int:
        """Return all steps that a contender takes on a task, if no range is widened.

        Args:
            workload: Name of the task.
            contender: The optimizer.
            batch: Runs go together by as many, and fill the last batch up.
        """
        trials, seeds, robustness = self._whole(contender, batch)
        full = (trials + robustness) * self.horizons[workload]
        return full + seeds * sum(self.lengths(workload))

    def runs(self, contender: Contender, batch: int = 1) -> int:
        """Return the number of runs of a contender on a task, counted as in `steps`."""
        trials, seeds, robustness = self._whole(contender, batch)
        return trials + len(self.shares) * seeds + robustness

    def _whole(self, contender: Contender, batch: int) -> list[int]:
        trials = self.trials * contender.effort * self.tuning_seeds
        counts = (0 if self.published else trials, self.seeds, self.robustness)
        return [math.ceil(count / batch) * batch for count in counts]

    def job(
        self,
        phase: Phase,
        workload: str,
        contender: Contender,
        trial: str,
        hyper: Hyper,
        seed: int,
        steps: int | None = None,
    ) -> Job:
        """Return a job, over the whole horizon if nothing else is said."""
        return Job(
            phase,
            workload,
            contender.name,
            contender.settings,
            trial,
            hyper,
            seed,
            self.horizons[workload] if steps is None else steps,
            self.points,
        )

    def tuning(self, workload: str, contender: Contender, prefix: str = "") -> list[Job]:
        """Return a contender's trials on a task, all with the same seeds."""
        return [
            self.job("tuning", workload, contender, f"{prefix}{i}", hyper, FIRST_TUNING_SEED + seed)
            for i, hyper in enumerate(contender.trials(self.trials))
            for seed in range(self.tuning_seeds)
        ]

    def final(self, workload: str, contender: Contender, best: Result) -> list[Job]:
        """Return the runs that count, at the best trial's hyperparameters."""
        return [
            self.job("final", workload, contender, best["trial"], best["hyper"], seed, steps)
            for steps in self.lengths(workload)
            for seed in range(self.seeds)
        ]

    def robust(self, workload: str, contender: Contender, best: Result) -> list[Job]:
        """Return runs at learning rates from a tenth to three times the best, a seed each."""
        jobs = []
        for i, factor in enumerate(np.geomspace(*ROBUSTNESS_FACTORS, self.robustness)):
            rate = float(factor) * best["hyper"]["learning_rate"]
            hyper = best["hyper"] | {"learning_rate": rate}
            jobs.append(self.job("robustness", workload, contender, best["trial"], hyper, i))
        return jobs


def best_trial(results: Sequence[Result]) -> Result:
    """Return a run of the trial of the lowest final loss; if all have diverged, of the lowest rate.

    Args:
        results: Of one task and contender.
    """
    losses = losses_of_trials(results)
    return min(results, key=lambda line: (losses[line["trial"]], line["hyper"]["learning_rate"]))


def losses_of_trials(results: Sequence[Result]) -> dict[str, float]:
    """Return the mean final loss over the seeds of each trial; infinite if a run diverged.

    Args:
        results: Of one task and contender.
    """
    found: dict[str, list[float]] = {}
    for line in results:
        found.setdefault(line["trial"], []).append(final_loss(line))
    return {trial: float(np.mean(losses)) for trial, losses in found.items()}


def compare(plan: Plan, bench: Bench, results: Results, *, progress: bool = True) -> None:
    """Tune, run the final seeds, and try the learning rates around the best.

    Args:
        plan: What is to be compared.
        bench: What runs it.
        results: Where finished runs are looked up and appended.
        progress: Whether to show progress bars.
    """

    def run(jobs: Iterable[Job], label: str) -> list[Result]:
        return run_jobs(jobs, bench, results, label=label, progress=progress)

    best = chosen(plan, run)
    pairs = [(w, c, best[w, c.name]) for w, c in plan.pairs() if (w, c.name) in best]
    run((job for pair in pairs for job in plan.final(*pair)), "final")
    run((job for pair in pairs for job in plan.robust(*pair)), "robustness")


Choice = dict[tuple[str, str], Result]


def chosen(plan: Plan, run: Callable[[Iterable[Job], str], list[Result]]) -> Choice:
    """Return the hyperparameters of every task and contender that gets final runs.

    A range with its best trial at the border is widened by half a decade and searched again, once;
    the best of both searches counts.

    Args:
        plan: What is to be compared.
        run: From jobs and what to call them to their results.
    """
    if plan.published is not None:
        line = {"trial": "published", "hyper": plan.published}
        return {(workload, c.name): line for workload, c in plan.pairs()}
    first = {(w, c.name): plan.tuning(w, c) for w, c in plan.pairs()}
    lines = _grouped(run((job for jobs in first.values() for job in jobs), "tuning"))
    again: list[Job] = []
    for workload, contender in plan.pairs():
        best = best_trial(lines[workload, contender.name])
        wider = contender.widened(best["hyper"]["learning_rate"])
        if wider is not None:
            again += plan.tuning(workload, wider, prefix="wider-")
    for key, more in _grouped(run(again, "wider") if again else []).items():
        lines[key] += more
    if plan.screen is not None:
        lines = {
            key: found for key, found in lines.items() if not hopeless(lines, key, plan.screen)
        }
    return {key: best_trial(trials) for key, trials in lines.items()}


def hopeless(
    trials: Mapping[tuple[str, str], Sequence[Result]], key: tuple[str, str], screen: float
) -> bool:
    """Say whether a contender's best trial is worse than AdamW's by more than a share.

    Args:
        trials: Results of tuning by task and contender.
        key: A task and a contender.
        screen: The share.
    """

    def least(contender: str) -> float:
        return min(losses_of_trials(trials[key[0], contender]).values())

    return key[1] != BASELINE and not least(key[1]) <= (1 + screen) * least(BASELINE)


def _grouped(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for line in results:
        groups.setdefault((line["workload"], line["contender"]), []).append(line)
    return groups
