"""How many steps, and circuits, optimizers take to a ground state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
from flax import nnx
from jaxtyping import Array, Float

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.natural.problems import Problem
from benchmarks.natural.steps import optimizer
from qsgd_jax.nn import QuantumLayer

TARGETS = (1e-2, 1e-3)
RATES = (0.03, 0.1, 0.3, 1.0)
FIRST_TUNING_SEED = 1000

Runs = Callable[[Sequence[float], Sequence[int]], np.ndarray]


def errors(problem: Problem, metric: Any, *, steps: int) -> Runs:
    """Return what takes exact runs, compiled once and run at once, to the energy's relative errors.

    Args:
        problem: What is looked for.
        metric: `None` for Adam.
        steps: Of each run.
    """
    energy = problem.qnode("default.qubit")

    @jax.jit
    @jax.vmap
    def run(weights: Array, rate: Array) -> Array:
        tx = optimizer(metric, rate)

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            value, gradients = jax.value_and_grad(lambda x: energy(x["weights"]))(params)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), value

        params = {"weights": weights}
        return jax.lax.scan(step, (params, tx.init(params)), None, steps)[1]

    def runs(rates: Sequence[float], seeds: Sequence[int]) -> np.ndarray:
        starts = jnp.asarray(np.stack([problem.start(seed) for seed in seeds]))
        return np.asarray(run(starts, jnp.array(rates))) / -problem.ground + 1

    return runs


def measured_errors(
    problem: Problem, metric: Any, *, steps: int, shots: int, seconds: list[float]
) -> Runs:
    """Return what takes runs whose gradients and metrics are measured to their errors.

    Args:
        problem: What is looked for.
        metric: `None` for Adam.
        steps: Of each run.
        shots: Of each circuit.
        seconds: Are appended, those of each step.
    """
    exact = jax.jit(jax.vmap(problem.qnode("default.qubit")))
    qnode = problem.qnode("lightning.qubit", shots)

    @nnx.jit
    def step(layer: QuantumLayer, state: Any, rate: Array) -> Any:
        gradients = nnx.grad(lambda layer: layer(jnp.zeros(1)))(layer)
        params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
        updates, state = optimizer(metric, rate).update(nnx.to_pure_dict(gradients), state, params)
        nnx.update(layer, optax.apply_updates(params, updates))
        return state

    def run(rate: float, seed: int) -> np.ndarray:
        weights = problem.start(seed)
        layer = QuantumLayer(
            qnode,
            {"weights": problem.shape},
            weight_init={"weights": weights},
            rngs=nnx.Rngs(seed, shots=seed),
        )
        state, passed = optimizer(metric, rate).init({"weights": jnp.asarray(weights)}), []
        for _ in range(steps):
            passed.append(nnx.to_pure_dict(nnx.state(layer, nnx.Param))["weights"])
            began = time.perf_counter()
            state = jax.block_until_ready(step(layer, state, jnp.array(rate)))
            seconds.append(time.perf_counter() - began)
        return np.asarray(exact(jnp.stack(passed)))

    def runs(rates: Sequence[float], seeds: Sequence[int]) -> np.ndarray:
        return np.stack([*map(run, rates, seeds)]) / -problem.ground + 1

    return runs


def executions(problem: Problem, metric: Any, shots: int) -> int:
    """Count the circuits of a measured step.

    Args:
        problem: Has the circuit.
        metric: `None` for Adam.
        shots: Of each circuit.
    """
    qnode = problem.qnode("lightning.qubit", shots)
    layer = QuantumLayer(qnode, {"weights": problem.shape}, rngs=nnx.Rngs(0))
    with qml.Tracker(qnode.device) as tracker:
        jax.block_until_ready(nnx.grad(lambda layer: layer(jnp.zeros(1)))(layer))
    total = tracker.totals["executions"]
    if metric is not None:
        study = qsgd.FubiniStudy(qnode, metric.approx)
        with qml.Tracker(qnode.device) as tracker:
            jax.block_until_ready(study.measure({"weights": jnp.asarray(problem.start(0))}))
        total += tracker.totals["executions"]
    return int(total)


def reached(found: Float[np.ndarray, "seeds steps"]) -> dict[str, Any]:
    """Return how soon runs come near, and how many.

    Args:
        found: Their errors.
    """
    report = {}
    for target in TARGETS:
        near = found <= target
        steps = np.where(near.any(1), near.argmax(1), np.inf)
        median = float(np.median(steps))
        report[str(target)] = {"steps": reporting.finite(median), "seeds": int(near.any(1).sum())}
    return report


def tuned(runs: Runs, seeds: int) -> float:
    """Return the learning rate that comes nearest soonest: the lowest mean log of the error.

    Args:
        runs: From rates and seeds, one of each a run, to errors.
        seeds: How many are tried.
    """
    tried = [(rate, FIRST_TUNING_SEED + i) for rate in RATES for i in range(seeds)]
    found = np.nan_to_num(runs(*zip(*tried, strict=True)), nan=1.0, posinf=1.0)
    scores = np.log(np.clip(found, 1e-5, None)).reshape(len(RATES), -1).mean(1)
    return RATES[int(np.argmin(scores))]
