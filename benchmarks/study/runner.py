"""Run the comparison: jobs, their results as JSON lines, and what to run after what."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.study.contenders import Contender, Hyper
from benchmarks.workloads.base import Curves, Workload, learning_rates, training_run
from benchmarks.workloads.real import Split

Phase = Literal["tuning", "final", "robustness"]
Result = dict[str, Any]
FIRST_TUNING_SEED = 1000  # the final runs' seeds, 0, 1, ..., must not be tuned on
SHORTER = 0.75  # of the horizon, at which a better optimizer is to reach AdamW's loss
ROBUSTNESS_FACTORS = (0.1, 3.0)  # of the best learning rate


@dataclass(frozen=True)
class Job:
    """One training run; two jobs are the same if all of this is.

    Attributes:
        phase: What the run is for.
        workload: Name of the task.
        contender: Name of the optimizer.
        settings: `Contender.settings`.
        trial: Number of the hyperparameters among those tried; for the reader alone.
        hyper: The hyperparameters.
        seed: Of initial parameters, batches and dropout; the same for all contenders.
        steps: Length of the run.
        points: How often it is evaluated.
    """

    phase: Phase
    workload: str
    contender: str
    settings: str
    trial: str
    hyper: Hyper
    seed: int
    steps: int
    points: int

    @property
    def split(self) -> Split:
        """What the evaluations read."""
        return "test" if self.phase == "final" else "validation"

    def as_json(self) -> dict[str, Any]:
        """Return all fields, as a line of the results begins."""
        return dataclasses.asdict(self)


def _identity(line: Mapping[str, Any]) -> str:
    fields = {field.name: line[field.name] for field in dataclasses.fields(Job)}
    return json.dumps(fields, sort_keys=True)


class Results:
    """The finished runs of a file of JSON lines, to which more are appended.

    Args:
        path: The file; it need not exist. A last line that was cut off is removed.

    Raises:
        ValueError: If another line is no result.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._found: dict[str, Result] = {}
        if path.exists():
            _drop_half_a_line(path)
            self._found = {_identity(line): line for line in read_results(path)}

    def find(self, job: Job) -> Result | None:
        """Return the result of a job, or `None` if it is still to be run."""
        return self._found.get(_identity(job.as_json()))

    def append(self, result: Result) -> None:
        """Add a finished run, safely on the disk when this returns."""
        text = json.dumps(result, allow_nan=False) + "\n"
        with self._lock, self.path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            self._found[_identity(result)] = result


def _drop_half_a_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def read_results(path: Path) -> list[Result]:
    """Read a file of JSON lines, which may be compressed (`.gz`).

    Args:
        path: The file.

    Raises:
        ValueError: If a line is no result; the message names it.
    """
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    results = []
    for number, written in enumerate(text.splitlines(), start=1):
        try:
            line = json.loads(written)
            _identity(line)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a result ({error!r}).") from error
        results.append(line)
    return results


Open = Callable[[str, Split], Workload]


class Bench:
    """Compiles each contender on each task once, and runs jobs.

    Args:
        open_workload: From a task's name and a split to the task.
        contenders: By name.
    """

    def __init__(self, open_workload: Open, contenders: Mapping[str, Contender]):
        self._open = open_workload
        self._contenders = contenders
        self._lock = threading.Lock()
        self._once: dict[tuple[Any, ...], _Once] = {}

    def run(self, job: Job) -> Result:
        """Train, and return the line of the results."""
        workload = self.workload(job.workload, job.split)
        run = self.compiled(job)
        began = time.perf_counter()
        curves: Curves = jax.device_get(run(*_arguments(job, workload)))
        return job.as_json() | {
            "train": _rounded(curves.train_loss),
            "validation": _rounded(curves.validation_loss),
            "seconds": round(time.perf_counter() - began, 3),
        }

    def workload(self, name: str, split: Split) -> Workload:
        """Return a task, built at the first call."""
        return self._once_for("workload", name, split).get(lambda: self._open(name, split))

    def compiled(self, job: Job) -> Callable[..., Curves]:
        """Return the training run of a job's task and contender, compiled at the first call.

        Hyperparameters, seeds and horizons are arguments of the one compiled run.
        """
        workload = self.workload(job.workload, job.split)
        arguments = _arguments(job, workload)
        # A split changes nothing but the data: where their shapes agree, one run serves both.
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments[0]))
        run = _run(workload, self._contenders[job.contender], job.points)
        return self._once_for("run", job.workload, job.contender, job.points, shapes).get(
            lambda: jax.jit(run).lower(*arguments).compile()
        )

    def _once_for(self, *key: Any) -> _Once:
        with self._lock:
            return self._once.setdefault(key, _Once())


class _Once:
    """What is made once, by the first thread that asks for it; the others wait."""

    def __init__(self):
        self._lock = threading.Lock()
        self._made: Any = None

    def get(self, make: Callable[[], Any]) -> Any:
        with self._lock:
            if self._made is None:
                self._made = make()
            return self._made


def _arguments(job: Job, workload: Workload) -> tuple[Any, ...]:
    hyper = {name: jnp.float32(value) for name, value in job.hyper.items()}
    key = jax.random.key(job.seed)
    return workload.data(key), hyper, key, jnp.int32(job.steps)


def _run(workload: Workload, contender: Contender, points: int) -> Callable[..., Curves]:
    def run(data: Any, hyper: Any, key: Any, steps: Any) -> Curves:
        schedule = learning_rates(
            hyper["learning_rate"], steps, warmup=hyper["warmup"], cosine=contender.cosine
        )
        optimizer = contender.build(hyper, schedule)
        return training_run(
            workload,
            optimizer,
            data,
            key,
            steps=steps,
            points=points,
            evaluated=contender.evaluated,
        )

    return run


def _rounded(values: Any) -> list[float | None]:
    """Six digits; JSON has no NaN, so null stands for what is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def final_loss(result: Result) -> float:
    """Return the loss at the end of a run; infinite if the run has diverged.

    Args:
        result: A line of the results.
    """
    return math.inf if diverged(result) else result["validation"][-1]


def diverged(result: Result) -> bool:
    """Say whether a loss is not finite, or at the end above the untrained model's.

    Args:
        result: A line of the results.
    """
    curve = result["validation"]
    return None in curve or None in result["train"] or curve[-1] > curve[0]


def run_jobs(
    jobs: Iterable[Job],
    bench: Bench,
    results: Results,
    *,
    label: str = "runs",
    progress: bool = True,
) -> list[Result]:
    """Run what has no result yet, on one thread per core, and return all results in order.

    Args:
        jobs: What to run.
        bench: What runs it.
        results: Where finished runs are looked up and appended.
        label: Of the progress bar.
        progress: Whether to show it.
    """
    jobs = list(jobs)
    missing = {_identity(job.as_json()): job for job in jobs if results.find(job) is None}
    bar = tqdm(
        desc=f"{label:12}",
        total=len(jobs),
        initial=len(jobs) - len(missing),
        unit="run",
        disable=not progress,
    )
    with bar, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        futures = [pool.submit(bench.run, job) for job in missing.values()]
        try:
            for future in as_completed(futures):
                results.append(future.result())
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found = [results.find(job) for job in jobs]
    return [result for result in found if result is not None]


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

    def steps(self, workload: str) -> int:
        """Return all steps that one contender takes on a task, if no range is widened."""
        full = self.trials + self.seeds + self.robustness
        return full * self.horizons[workload] + self.seeds * self.shorter(workload)

    def runs(self) -> int:
        """Return the number of runs of one contender on a task."""
        return self.trials + 2 * self.seeds + self.robustness

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
        step_seconds: A step.
        look_seconds: An evaluation.
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
        return bench.run(plan.job("tuning", workload, contender, "timing", hyper, 0, steps))[
            "seconds"
        ]

    began = time.perf_counter()
    seconds(plan.points)
    compiled = time.perf_counter() - began
    short, long = seconds(plan.points), seconds(4 * plan.points)
    step = max(0.0, (long - short) / (3 * plan.points))
    looks = max(0.0, short - step * plan.points) / (plan.points + 1)
    return Cost(compiled - short, step, looks)


def total_seconds(plan: Plan, workload: str, cost: Cost) -> float:
    """Return the core seconds of one contender on one task, tuning to robustness.

    Args:
        plan: What is to be compared.
        workload: Name of the task.
        cost: What was measured.
    """
    looks = plan.runs() * (plan.points + 1) * cost.look_seconds
    return 2 * cost.compile_seconds + plan.steps(workload) * cost.step_seconds + looks
