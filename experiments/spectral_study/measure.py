"""What is measured beside the runs: a step's time, and singular values along a training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from benchmarks.spectral_time import is_axes_or_none, matrix_axes
from experiments.engine.contender import Contender
from experiments.engine.results import Result
from experiments.engine.runner import Bench
from experiments.engine.workload import Workload, learning_rates
from experiments.spectral_study.plan import Task

SHORT, LONG = 20, 120
ROUNDS = 9


def step_seconds(
    tasks: Sequence[Task], chosen: Mapping[str, Mapping[str, Result]], bench: Bench
) -> dict[str, dict[str, list[float]]]:
    """Time training steps of all optimizers at their best settings, in a random order each round.

    The difference of a longer and a shorter run leaves out what is not a step.

    Args:
        tasks: The tasks.
        chosen: A result of each optimizer, by task and optimizer.
        bench: What runs it; the machine should be idle.

    Returns:
        Seconds of a step by task and optimizer, one a round.
    """
    found: dict[str, dict[str, list[float]]] = {}
    rng = np.random.default_rng(0)
    for task in tasks:
        lines = chosen[task.name]
        seconds: dict[str, list[float]] = {name: [] for name in lines}
        for index in tqdm(range(-1, ROUNDS), desc=task.name):  # the first compiles
            for name in rng.permutation(list(lines)):
                each = []
                for steps in (SHORT, LONG):
                    job = task.job("tuning", lines[name], seed=0, share=steps / task.horizon)
                    each.append(bench.run([job])[0]["seconds"])
                if index >= 0:
                    seconds[name].append((each[1] - each[0]) / (LONG - SHORT))
        found[task.name] = seconds
    return found


def spectra(
    workload: Workload,
    contender: Contender,
    hyper: Mapping[str, Any],
    *,
    leaf: str,
    steps: int,
    looks: Sequence[int],
) -> list[list[float]]:
    """Return the singular values of how far a matrix has moved, along one training of seed 0.

    Args:
        workload: The task.
        contender: The optimizer.
        hyper: Its settings.
        leaf: A part of the matrix's path.
        steps: Length of the run.
        looks: After how many steps.
    """
    trained = training(workload, contender, hyper, steps=steps)
    first, _ = next(trained)
    axes = jax.tree.leaves(matrix_axes(first), is_leaf=is_axes_or_none)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(first)]
    (place,) = [i for i, path in enumerate(paths) if leaf in path and axes[i] is not None]
    rows = np.prod([jax.tree.leaves(first)[place].shape[i] for i in axes[place].reduction_axis])
    found = []
    for done, (params, _) in enumerate(itertools.islice(trained, max(looks)), start=1):
        if done in looks:
            moved = jax.tree.leaves(params)[place] - jax.tree.leaves(first)[place]
            sigma = np.linalg.svd(np.asarray(moved).reshape(int(rows), -1), compute_uv=False)
            found.append([float(f"{x:.5g}") for x in sigma])
    return found


def training(
    workload: Workload, contender: Contender, hyper: Mapping[str, Any], *, steps: int
) -> Iterator[tuple[Any, Any]]:
    """Yield parameters and optimizer state of seed 0, before the first step and after each.

    Args:
        workload: The task.
        contender: The optimizer.
        hyper: Its settings.
        steps: Length of the run.
    """
    rates = learning_rates(hyper["learning_rate"], steps, warmup=hyper["warmup"], cosine=True)
    optimizer = contender.build(hyper, rates)
    initial, drawn = jax.random.split(jax.random.key(0))
    params = workload.init(initial)
    data, state = workload.data(jax.random.key(0)), optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, i: Any) -> Any:
        key = jax.random.fold_in(drawn, i)
        gradients = jax.grad(workload.loss)(params, data, key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    yield params, state
    for i in range(steps):
        params, state = step(params, state, jnp.int32(i))
        yield params, state
