"""Run jobs, each contender compiled once on each task, on all cores."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks.study.contenders import Contender
from benchmarks.study.results import Job, Result, Results, identity
from benchmarks.workloads.base import Curves, Workload, learning_rates, training_run
from benchmarks.workloads.real import Split

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
    missing = {identity(job.as_json()): job for job in jobs if results.find(job) is None}
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
