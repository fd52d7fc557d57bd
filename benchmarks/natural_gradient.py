"""Compare natural gradients with Adam, and their cost with PennyLane's and a Jacobian by hand.

Run it as `python -m benchmarks.natural_gradient`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
from flax import nnx
from jaxtyping import Array, Float
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.arguments import positive
from benchmarks.peer_step import Peer
from benchmarks.step_time import ratios
from qsgd_jax.nn import QuantumLayer

DESCRIPTION = """\
Three questions to qsgd_jax.scale_by_metric.

What does a step cost? One step (gradient, metric, update) of layers of RY, RZ and a ring of CNOT, a
transverse-field Ising energy:

  by hand        on default.qubit, the Jacobian of the state as jax.jacfwd gives it
  whole, block-diag    qsgd_jax.FubiniStudy
  QNGOptimizerQJIT     PennyLane's, block-diagonal, with --python PATH, in an environment whose jax
                 its metric tensor runs on: make test-catalyst makes .catalyst
  adam           without a metric

Does it take fewer steps? The ground state of two problems, exact, learning rates tuned for each
optimizer on seeds of their own, then --seeds more: steps until the relative error of the energy is
0.01 and 0.001, the median, and how many seeds come that far.

  ising    a ring in a transverse field; couplings and field act in turns, n/2 + 1 times
  maxcut   of a ring whose opposite vertices are joined; each edge and vertex has an angle of its
           own, twice

And with --shots measurements, on the smallest of each: there circuits count. Seconds are steps
times the median time of a step of that problem.
"""

DAMPING = 1e-3
PEER = Path(__file__).parent / "peers" / "natural_gradient.py"
PARTS = ("steps", "exact", "measured")
TARGETS = (1e-2, 1e-3)
RATES = (0.03, 0.1, 0.3, 1.0)
FIRST_TUNING_SEED = 1000

Params = dict[str, Array]
Qnode = Any
Runs = Callable[[Sequence[float], Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """A ground state that is looked for.

    Attributes:
        name: `ising` or `maxcut`.
        n_qubits: Its size.
        gates: From weights to the circuit.
        shape: Of the weights.
        hamiltonian: Whose ground state it is.
    """

    name: str
    n_qubits: int
    gates: Callable[[Any], None]
    shape: tuple[int, ...]
    hamiltonian: Any

    @functools.cached_property
    def ground(self) -> float:
        """The lowest energy."""
        sparse = self.hamiltonian.sparse_matrix(wire_order=range(self.n_qubits))
        return float(np.linalg.eigvalsh(sparse.toarray())[0].real)

    def circuit(self, weights: Any, inputs: Any = None) -> Any:
        """Prepare a state and ask for its energy.

        Args:
            weights: Of `shape`.
            inputs: None are there; a `QuantumLayer` takes some.
        """
        self.gates(weights)
        return qml.expval(self.hamiltonian)

    def start(self, seed: int) -> np.ndarray:
        """Draw weights to start from.

        Args:
            seed: Of the draw.
        """
        return np.random.default_rng(seed).uniform(-0.5, 0.5, self.shape).astype(np.float32)


def ising(n_qubits: int) -> Problem:
    """Build a ring in a transverse field.

    Args:
        n_qubits: Its length.
    """
    wires, depth = range(n_qubits), n_qubits // 2 + 1
    pairs = [(wire, (wire + 1) % n_qubits) for wire in wires]

    def gates(weights: Any) -> None:
        for wire in wires:
            qml.Hadamard(wire)
        for layer in range(depth):
            for pair in pairs:
                qml.IsingZZ(weights[layer, 0], wires=pair)
            for wire in wires:
                qml.RX(weights[layer, 1], wires=wire)

    return Problem("ising", n_qubits, gates, (depth, 2), _ising_energy(n_qubits))


def _ising_energy(n_qubits: int) -> Any:
    pairs = [qml.Z(i) @ qml.Z((i + 1) % n_qubits) for i in range(n_qubits)]
    fields = [qml.X(i) for i in range(n_qubits)]
    return qml.Hamiltonian([-1.0] * (2 * n_qubits), pairs + fields)


def maxcut(n_qubits: int) -> Problem:
    """Build a cut of a ring whose opposite vertices are joined.

    Args:
        n_qubits: Its vertices, an even number.
    """
    ring = [(i, (i + 1) % n_qubits) for i in range(n_qubits)]
    edges = ring + [(i, i + n_qubits // 2) for i in range(n_qubits // 2)]

    def gates(weights: Any) -> None:
        for wire in range(n_qubits):
            qml.Hadamard(wire)
        for layer in range(2):
            for i, edge in enumerate(edges):
                qml.IsingZZ(weights[layer, i], wires=edge)
            for wire in range(n_qubits):
                qml.RX(weights[layer, len(edges) + wire], wires=wire)

    cut = qml.Hamiltonian([0.5] * len(edges), [qml.Z(i) @ qml.Z(j) for i, j in edges])
    offset = qml.Hamiltonian([-0.5 * len(edges)], [qml.I(0)])
    return Problem("maxcut", n_qubits, gates, (2, len(edges) + n_qubits), cut + offset)


PROBLEMS = {"ising": ising, "maxcut": maxcut}


def entangled(n_qubits: int, depth: int) -> Problem:
    """Build the circuit whose step is timed.

    Args:
        n_qubits: Its wires.
        depth: Its layers, of two angles a wire.
    """

    def gates(weights: Any) -> None:
        for layer in range(depth):
            for wire in range(n_qubits):
                qml.RY(weights[layer, wire, 0], wires=wire)
                qml.RZ(weights[layer, wire, 1], wires=wire)
            for wire in range(n_qubits):
                qml.CNOT(wires=[wire, (wire + 1) % n_qubits])

    return Problem("entangled", n_qubits, gates, (depth, n_qubits, 2), _ising_energy(n_qubits))


# Steps


class ByHand:
    """The metric as one writes it in JAX, for a `scale_by_metric` of its own."""

    every, decay = 1, 0.0

    def __init__(self, problem: Problem, device: str):
        @qml.qnode(qml.device(device, wires=problem.n_qubits), interface="jax")
        def state(weights: Any) -> Any:
            problem.gates(weights)
            return qml.state()

        self._state = state
        self.find = qsgd.FubiniStudy(_qnode(problem, device)).find

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


def _qnode(problem: Problem, device: str, shots: int | None = None) -> Qnode:
    opened = qml.device(device, wires=problem.n_qubits)
    return qml.set_shots(qml.QNode(problem.circuit, opened, interface="jax"), shots)


def metrics(problem: Problem, device: str) -> dict[str, Any]:
    """Return the metrics that a device's step is timed with, by name.

    Args:
        problem: Has the circuit.
        device: Name of the device.
    """
    found: dict[str, Any] = {
        "whole": qsgd.FubiniStudy(_qnode(problem, device)),
        "block-diag": qsgd.FubiniStudy(_qnode(problem, device), "block-diag"),
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
    layer = QuantumLayer(_qnode(problem, device), {"weights": problem.shape}, rngs=nnx.Rngs(0))
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
        chosen = {"adam": None, "natural, whole": qsgd.FubiniStudy(_qnode(problem, device))}
        calls = {name: stepper(problem, device, metric) for name, metric in chosen.items()}
        for name, row in _in_turns(calls, rounds).items():
            found[name][device] = row["milliseconds"]
    return found


# Steps to a ground state


def errors(problem: Problem, metric: Any, *, steps: int) -> Runs:
    """Return what takes exact runs, compiled once and run at once, to the energy's relative errors.

    Args:
        problem: What is looked for.
        metric: `None` for Adam.
        steps: Of each run.
    """
    energy = _qnode(problem, "default.qubit")

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
    exact = jax.jit(jax.vmap(_qnode(problem, "default.qubit")))
    qnode = _qnode(problem, "lightning.qubit", shots)

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
    qnode = _qnode(problem, "lightning.qubit", shots)
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


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the tables of a stored run."""
    found = []
    for row in report["steps"]:
        rows = [
            [
                name,
                f"{x['first']:.2f}",
                f"{x['milliseconds']:.2f}",
                f"{x['ratio']:.2f}",
                f"{x['low']:.2f} … {x['high']:.2f}",
            ]
            for name, x in row["arms"].items()
        ]
        columns = ["step", "first, s", "ms", "ratio to the first row", "95 % interval"]
        title = (
            f"A step on {row['device']}, {row['n_qubits']} qubits, {row['parameters']} parameters"
        )
        found.append(reporting.Table(title, columns, rows))
    for key, title in (("exact", "Steps, exact"), ("measured", "Steps, measured")):
        rows = [
            [f"{row['problem']}, {row['n_qubits']} qubits", name, f"{x['rate']:g}"]
            + ([f"{x['executions']:,}"] if key == "measured" else [])
            + [text for y in x["reached"].values() for text in _how_soon(y, x, report["seeds"])]
            for row in report[key]
            for name, x in row["arms"].items()
        ]
        if not rows:
            continue
        columns = ["problem", "optimizer", "learning rate"]
        columns += ["circuits a step"] if key == "measured" else []
        for target in TARGETS:
            columns += [f"steps to {target:g}", "seeds"]
            timed_on = report[key][0]["arms"]["adam"]["step_ms"]
            columns += [f"seconds, {device}" for device in timed_on]
        found.append(reporting.Table(title, columns, rows))
    return found


def _how_soon(found: Mapping[str, Any], arm: Mapping[str, Any], seeds: int) -> list[str]:
    steps, times = found["steps"], arm["step_ms"].values()
    shown = "–" if steps is None else f"{steps:.0f}"
    seconds = ["–" if steps is None else f"{steps * x / 1000:.3g}" for x in times]
    return [shown, f"{found['seeds']} of {seeds}", *seconds]


def exact_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what exact runs came to, problem by problem.

    Args:
        args: Of the command line.
    """
    problems = [problem(n) for n in args.qubits for problem in PROBLEMS.values()]
    times = [step_times(x, args.devices, args.rounds) for x in problems]  # while nothing else runs
    for problem, step_ms in zip(tqdm(problems, desc="exact"), times, strict=True):
        whole = qsgd.FubiniStudy(_qnode(problem, "default.qubit"))
        arms = {}
        for arm, metric in (("adam", None), ("natural, whole", whole)):
            runs = errors(problem, metric, steps=args.steps)
            arms[arm] = _tuned_and_run(runs, args) | {"step_ms": step_ms[arm]}
        yield {"problem": problem.name, "n_qubits": problem.n_qubits, "arms": arms}


def measured_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what runs in shots came to, problem by problem, of the smallest size.

    Args:
        args: Of the command line.
    """
    for name in tqdm(PROBLEMS, desc="measured"):
        problem = PROBLEMS[name](min(args.qubits))
        qnode = _qnode(problem, "lightning.qubit", args.shots)
        block = qsgd.FubiniStudy(qnode, "block-diag", decay=0.9)
        arms = {}
        for arm, metric in (("adam", None), ("natural, block-diag", block)):
            seconds: list[float] = []
            runs = measured_errors(
                problem, metric, steps=args.steps, shots=args.shots, seconds=seconds
            )
            arms[arm] = _tuned_and_run(runs, args) | {
                "executions": executions(problem, metric, args.shots),
                "step_ms": {"lightning.qubit": 1000 * float(np.median(seconds))},
            }
        yield {"problem": name, "n_qubits": min(args.qubits), "arms": arms}


def _tuned_and_run(runs: Runs, args: argparse.Namespace) -> dict[str, Any]:
    rate = tuned(runs, args.tuning_seeds)
    return {"rate": rate, "reached": reached(runs([rate] * args.seeds, range(args.seeds)))}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.natural_gradient",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is run (default: all)")
    add("--devices", nargs="+", default=("default.qubit", "lightning.qubit"), metavar="NAME")
    add("--timed-qubits", nargs="+", type=positive(int), default=(4, 8), metavar="N")
    add("--qubits", nargs="+", type=positive(int), default=(4, 8, 12), metavar="N")
    add("--depth", type=positive(int), default=4, metavar="X", help="of what is timed")
    add("--seeds", type=positive(int), default=20, metavar="X", help="(default: %(default)s)")
    add("--tuning-seeds", type=positive(int), default=5, metavar="X")
    add("--steps", type=positive(int), default=200, metavar="X", help="(default: %(default)s)")
    add("--shots", type=positive(int), default=1000, metavar="X", help="(default: %(default)s)")
    add("--rounds", type=positive(int), default=21, metavar="X", help="(default: %(default)s)")
    add("--python", metavar="PATH", help="of the environment with PennyLane's optimizer")
    add("--output", type=Path, default=Path("results/natural_gradient"), metavar="PATH")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "benchmark": "natural_gradient",
        "provenance": reporting.provenance(),
        "seeds": args.seeds,
        "steps": [],
        "exact": [],
        "measured": [],
    }

    def store(key: str, row: dict[str, Any]) -> None:
        report[key].append(row)
        reporting.write_json(args.output / "natural_gradient.json", report)

    if "steps" in args.parts:
        for device, n_qubits in itertools.product(args.devices, args.timed_qubits):
            arms = timed(device, n_qubits, args.depth, args.python, args.rounds)
            parameters = 2 * n_qubits * args.depth
            row = {"device": device, "n_qubits": n_qubits, "parameters": parameters, "arms": arms}
            store("steps", row)
    if "exact" in args.parts:
        for row in exact_rows(args):
            store("exact", row)
    if "measured" in args.parts:
        for row in measured_rows(args):
            store("measured", row)
    for table in tables(report):
        table.print()


if __name__ == "__main__":
    main()
