"""What a step costs: of Adam, of natural gradients, of PennyLane's optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
from flax import nnx
from jaxtyping import Array

import qsgd_jax as qsgd
from benchmarks.natural.problems import Problem, entangled
from benchmarks.peer_step import Peer
from benchmarks.step_time import ratios
from qsgd_jax.nn import QuantumLayer

DAMPING = 1e-3
PEER = Path(__file__).parents[1] / "peers" / "natural_gradient.py"

Params = dict[str, Array]


class ByHand:
    """The metric as one writes it in JAX, for a `scale_by_metric` of its own."""

    every, decay = 1, 0.0

    def __init__(self, problem: Problem, device: str):
        @qml.qnode(qml.device(device, wires=problem.n_qubits), interface="jax")
        def state(weights: Any) -> Any:
            problem.gates(weights)
            return qml.state()

        self._state = state
        self.find = qsgd.FubiniStudy(problem.qnode(device)).find

    def measure(self, params: Params, batch: Any = None, *, key: Any = None) -> list[Array]:
        """Measure it, as `qsgd_jax.FubiniStudy` does."""
        del batch, key

        def real(weights: Array) -> Array:
            psi = self._state(weights)
            return jnp.stack([psi.real, psi.imag])

        weights = params["weights"]
        slopes = jax.jacfwd(real)(weights).reshape(2, -1, weights.size)
        slopes, psi = slopes[0] + 1j * slopes[1], self._state(weights)
        overlaps = slopes.conj().T @ psi
        return [(slopes.conj().T @ slopes - jnp.outer(overlaps, overlaps.conj())).real]


def metrics(problem: Problem, device: str) -> dict[str, Any]:
    """Return the metrics that a device's step is timed with, by name.

    Args:
        problem: Has the circuit.
        device: Name of the device.
    """
    found: dict[str, Any] = {
        "whole": qsgd.FubiniStudy(problem.qnode(device)),
        "block-diag": qsgd.FubiniStudy(problem.qnode(device), "block-diag"),
    }
    by_hand = {"by hand": ByHand(problem, device)} if device == "default.qubit" else {}
    return by_hand | found


def optimizer(metric: Any, rate: Any) -> optax.GradientTransformationExtraArgs:
    """Return Adam, or with a metric gradient descent by it.

    Args:
        metric: `None` for Adam.
        rate: The learning rate.
    """
    if metric is None:
        return optax.with_extra_args_support(optax.adam(rate))
    return optax.chain(qsgd.scale_by_metric(metric, DAMPING), optax.sgd(rate))


def stepper(problem: Problem, device: str, metric: Any) -> Callable[[], float]:
    """Return what takes a step and returns its seconds.

    Args:
        problem: Has the circuit.
        device: Name of the device.
        metric: `None` for Adam.
    """
    tx, energy = optimizer(metric, 0.01), _energy(problem, device)
    params = {"weights": jnp.linspace(0.1, 3.0, int(np.prod(problem.shape))).reshape(problem.shape)}
    held = [params, tx.init(params)]

    @jax.jit
    def step(params: Params, state: Any) -> Any:
        gradients = jax.grad(lambda x: energy(x["weights"]))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def run() -> float:
        began = time.perf_counter()
        held[:] = jax.block_until_ready(step(*held))
        return time.perf_counter() - began

    return run


def _energy(problem: Problem, device: str) -> Callable[[Array], Array]:
    """By a layer, so that a device that JAX cannot trace is asked in one call."""
    layer = QuantumLayer(problem.qnode(device), {"weights": problem.shape}, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def energy(weights: Array) -> Array:
        held = nnx.merge(graph, jax.tree.map(lambda _: weights, state))
        return held(jnp.zeros(1))

    return energy


def timed(device: str, n_qubits: int, depth: int, python: str | None, rounds: int) -> Any:
    """Time steps in turns.

    Args:
        device: Name of the device.
        n_qubits: Wires of the circuit.
        depth: Its layers.
        python: Of the environment with PennyLane's optimizer, if any.
        rounds: Turns of each.
    """
    problem = entangled(n_qubits, depth)
    chosen: dict[str, Any] = {**metrics(problem, device), "adam": None}
    calls = {name: stepper(problem, device, metric) for name, metric in chosen.items()}
    if python is None:
        return _in_turns(calls, rounds)
    with Peer([python, PEER, device, n_qubits, depth, "block-diag"]) as peer:
        return _in_turns(calls | {"QNGOptimizerQJIT": lambda: peer.ask("step")}, rounds)


def _in_turns(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    first = {name: call() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rng = np.random.default_rng(0)
    for i in range(1 + rounds):
        for name in rng.permutation(list(calls)):
            taken = calls[name]()
            if i:
                seconds[name].append(taken)
    found = ratios({name: np.array(times) for name, times in seconds.items()})
    return {name: {**row, "first": first[name]} for name, row in found.items()}


def step_times(
    problem: Problem, devices: Sequence[str], rounds: int
) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of exact steps, by optimizer and device.

    Args:
        problem: What is looked for.
        devices: Their names.
        rounds: Turns of each.
    """
    found: dict[str, dict[str, float]] = {"adam": {}, "natural, whole": {}}
    for device in devices:
        chosen = {"adam": None, "natural, whole": qsgd.FubiniStudy(problem.qnode(device))}
        calls = {name: stepper(problem, device, metric) for name, metric in chosen.items()}
        for name, row in _in_turns(calls, rounds).items():
            found[name][device] = row["milliseconds"]
    return found
