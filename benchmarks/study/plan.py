"""What is to be compared: tuning, final and robustness runs, and what they will cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.study.contenders import Contender, Hyper
from benchmarks.study.results import Job, Phase, Result, Results, final_loss
from benchmarks.study.runner import Bench, run_jobs

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
    """

    horizons: Mapping[str, int]
    contenders: Mapping[str, Contender]
    trials: int = 8
    seeds: int = 20
    points: int = 10
    robustness: int = 0

    def __post_init__(self):
        for name, steps in self.horizons.items():
            if steps % self.points or self.shorter(name) % self.points:
                raise ValueError(
                    f"points={self.points} must divide the horizon of {name}, {steps}, and "
                    f"{SHORTER} of it."
                )

    def shorter(self, workload: str) -> int:
        """Return the length of the shorter of the final runs."""
        return round(SHORTER * self.horizons[workload])

    def pairs(self) -> list[tuple[str, Contender]]:
        """Return every task with every contender."""
        return [(name, c) for name in self.horizons for c in self.contenders.values()]

    def steps(self, workload: str, batch: int = 1) -> int:
        """Return all steps that one contender takes on a task, if no range is widened.

        Args:
            workload: Name of the task.
            batch: Runs go together by as many, and fill the last batch up.
        """
        trials, seeds, robustness = self._whole(batch)
        full = trials + seeds + robustness
        return full * self.horizons[workload] + seeds * self.shorter(workload)

    def runs(self, batch: int = 1) -> int:
        """Return the number of runs of one contender on a task, counted as in `steps`."""
        trials, seeds, robustness = self._whole(batch)
        return trials + 2 * seeds + robustness

    def _whole(self, batch: int) -> list[int]:
        counts = (self.trials, self.seeds, self.robustness)
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
        """Return a contender's trials on a task, each with the same one seed."""
        return [
            self.job("tuning", workload, contender, f"{prefix}{i}", hyper, FIRST_TUNING_SEED)
            for i, hyper in enumerate(contender.trials(self.trials))
        ]

    def final(self, workload: str, contender: Contender, best: Result) -> list[Job]:
        """Return the runs that count, at the best trial's hyperparameters."""
        return [
            self.job("final", workload, contender, best["trial"], best["hyper"], seed, steps)
            for steps in (self.shorter(workload), self.horizons[workload])
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
    """Return the trial of the lowest final loss; if all have diverged, of the lowest rate.

    Args:
        results: Of one task and contender.
    """
    return min(results, key=lambda line: (final_loss(line), line["hyper"]["learning_rate"]))


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

    best = tuned(plan, run)
    pairs = [(workload, c, best[workload, c.name]) for workload, c in plan.pairs()]
    run((job for pair in pairs for job in plan.final(*pair)), "final")
    run((job for pair in pairs for job in plan.robust(*pair)), "robustness")


def tuned(
    plan: Plan, run: Callable[[Iterable[Job], str], list[Result]]
) -> dict[tuple[str, str], Result]:
    """Return the best trial of every task and contender.

    A range with its best trial at the border is widened by half a decade and searched again, once;
    the best of both searches counts.

    Args:
        plan: What is to be compared.
        run: From jobs and what to call them to their results.
    """
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
    return {key: best_trial(trials) for key, trials in lines.items()}


def _grouped(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for line in results:
        groups.setdefault((line["workload"], line["contender"]), []).append(line)
    return groups


@dataclass(frozen=True)
class Cost:
    """What a contender costs on a task, on one core beside another.

    Attributes:
        compile_seconds: To compile its training run for one split.
        step_seconds: A step, in a full batch of runs.
        look_seconds: An evaluation, likewise.
    """

    compile_seconds: float
    step_seconds: float
    look_seconds: float


def measure(plan: Plan, bench: Bench, workload: str, contender: Contender) -> Cost:
    """Time short runs of a contender on a task.

    Args:
        plan: Whose evaluations are counted.
        bench: What runs it.
        workload: Name of the task.
        contender: The optimizer.
    """
    hyper = contender.trials(1)[0]
    bench.workload(workload, "validation")  # its loading is not to be timed

    def seconds(steps: int) -> float:
        job = plan.job("tuning", workload, contender, "timing", hyper, 0, steps)
        return bench.run([job] * bench.batch)[0]["seconds"]

    began = time.perf_counter()
    seconds(plan.points)
    compiled = time.perf_counter() - began
    short, long = seconds(plan.points), seconds(4 * plan.points)
    step = max(0.0, (long - short) / (3 * plan.points))
    looks = max(0.0, short - step * plan.points) / (plan.points + 1)
    return Cost(compiled - bench.batch * short, step, looks)


def total_seconds(plan: Plan, workload: str, cost: Cost, batch: int = 1) -> float:
    """Return the core seconds of one contender on one task, tuning to robustness.

    Args:
        plan: What is to be compared.
        workload: Name of the task.
        cost: What was measured.
        batch: Of the bench.
    """
    looks = plan.runs(batch) * (plan.points + 1) * cost.look_seconds
    return 2 * cost.compile_seconds + plan.steps(workload, batch) * cost.step_seconds + looks
