"""Run jobs, each contender compiled once on each task, on all cores or batched on a GPU."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.engine.contender import Contender
from experiments.engine.results import Job, Result, Results, identity
from experiments.engine.workload import Curves, SplitName, Workload, learning_rates, training_run

Open = Callable[[str, SplitName], Workload]


class Bench:
    """Compiles each contender on each task once, and runs jobs.

    Args:
        open_workload: From a task's name and a split to the task.
        contenders: By name.
        batch: Number of runs that are mapped into one program, of tasks whose data do not depend
            on the key; on CPU it is faster to run them one by one.
    """

    def __init__(self, open_workload: Open, contenders: Mapping[str, Contender], *, batch: int = 1):
        self._open = open_workload
        self._contenders = contenders
        self.batch = batch
        self._lock = threading.Lock()
        self._once: dict[tuple[Any, ...], _Once] = {}

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Train, and return the lines of the results.

        Args:
            jobs: As many as `batch` at most, of one task, contender, length and split.
        """
        workload = self.workload(jobs[0].workload, jobs[0].split)
        run = self.compiled(jobs[0])
        began = time.perf_counter()
        curves: Curves = jax.device_get(run(*self._arguments(jobs, workload)))
        each = (time.perf_counter() - began) / len(jobs)
        names = {"train": curves.train_loss, "validation": curves.validation_loss}
        names |= {} if curves.accuracy is None else {"accuracy": curves.accuracy}
        lines = {name: np.reshape(values, (self.batch, -1)) for name, values in names.items()}
        return [  # what follows the jobs fills the batch up
            job.as_json()
            | {name: _rounded(values[i]) for name, values in lines.items()}
            | {"seconds": round(each, 3)}
            for i, job in enumerate(jobs)
        ]

    def batches(self, jobs: Iterable[Job]) -> list[list[Job]]:
        """Return the jobs in groups that can run together."""
        groups: dict[tuple[Any, ...], list[list[Job]]] = {}
        for job in jobs:
            alike = (job.workload, job.contender, job.split, job.steps, job.points)
            found = groups.setdefault(alike, [[]])
            if len(found[-1]) == self.batch:
                found.append([])
            found[-1].append(job)
        return [group for found in groups.values() for group in found]

    def workload(self, name: str, split: SplitName) -> Workload:
        """Return a task, built at the first call."""
        return self._once_for("workload", name, split).get(lambda: self._open(name, split))

    def compiled(self, job: Job) -> Callable[..., Curves]:
        """Return the training run of a job's task and contender, compiled at the first call.

        Hyperparameters, seeds and horizons are arguments of the one compiled run.
        """
        workload = self.workload(job.workload, job.split)
        arguments = self._arguments([job], workload)
        # A split changes nothing but the data: where their shapes agree, one run serves both.
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments[0]))
        over = [] if self.batch == 1 else [(None, 0, 0)]
        run = _run(workload, self._contenders[job.contender], job.points, over)
        return self._once_for("run", job.workload, job.contender, job.points, shapes).get(
            lambda: jax.jit(run).lower(*arguments).compile()
        )

    def _arguments(self, jobs: Sequence[Job], workload: Workload) -> tuple[Any, ...]:
        """Data, hyperparameters, keys and length; the last job fills the batch up."""
        filled = [*jobs, *[jobs[-1]] * (self.batch - len(jobs))]
        shape = () if self.batch == 1 else (self.batch,)
        hyper = {
            name: jnp.reshape(jnp.array([job.hyper[name] for job in filled], jnp.float32), shape)
            for name in jobs[0].hyper
        }
        # For what an optimizer draws itself, and what it changes along the run.
        for name in ("seed", "steps"):
            values = jnp.array([getattr(job, name) for job in filled], jnp.int32)
            hyper[name] = jnp.reshape(values, shape)
        keys = jnp.stack([jax.random.key(job.seed) for job in filled]).reshape(shape)
        # What is real of the data does not depend on a key.
        data = workload.data(jax.random.key(jobs[0].seed))
        return data, hyper, keys, jnp.int32(jobs[0].steps)

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


def _run(
    workload: Workload, contender: Contender, points: int, over: Sequence[tuple[Any, Any, Any]]
) -> Callable[..., Curves]:
    def run(data: Any, hyper: Any, key: Any, steps: Any) -> Curves:
        def optimizer(hyper: Any) -> optax.GradientTransformation:
            schedule = learning_rates(
                hyper["learning_rate"], steps, warmup=hyper["warmup"], cosine=contender.cosine
            )
            return contender.build(hyper, schedule)

        return training_run(
            workload,
            optimizer,
            data,
            key,
            hyper,
            steps=steps,
            points=points,
            evaluated=contender.evaluated,
            over=over,
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

    With batches two threads do: one compiles while the other's program has the device.

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
    threads = 2 if bench.batch > 1 else os.cpu_count() or 1
    with bar, ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(bench.run, batch) for batch in bench.batches(missing.values())]
        try:
            for future in as_completed(futures):
                for result in future.result():
                    results.append(result)
                    bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found = [results.find(job) for job in jobs]
    return [result for result in found if result is not None]
