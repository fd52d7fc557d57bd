"""Time a QNode as a layer beside the same QNode under `jax.vmap`, and PennyLane's TorchLayer.

Run it as `python -m benchmarks.quantum_layer_time`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
from flax import nnx
from jaxtyping import PyTree
from tqdm import tqdm

from benchmarks import reporting
from benchmarks.arguments import positive
from benchmarks.peer_step import Peer
from benchmarks.step_time import ratios
from qsgd_jax.nn import QuantumLayer

DESCRIPTION = """\
Time one forward and backward pass (the sum of the answers' squares, and its derivatives by inputs
and weights) of AngleEmbedding and two StronglyEntanglingLayers, each qubit's Z measured:

  layer    qsgd_jax.nn.QuantumLayer, compiled
  vmap     jax.vmap of the QNode, compiled
  torch    pennylane.qnn.TorchLayer in PyTorch, with --python PATH, in an environment of its own:
           make layer-peer

first is the first call, with what is traced and compiled then; ms is one call after it, the median
over rounds, in which each has its turn in a random order. Ratios are to the layer's within the
round, with their 95 % intervals (order statistics). Where a call takes more than --patience
seconds, there are two rounds alone; batches of more than --amplitudes amplitudes are left out. On
default.qubit the layer is the vmap of the QNode; two equal rows tell the noise.

The last table trains the model of examples/hybrid_classifier.py with the layer, and with jax.vmap
of the QNode in its place, to a test accuracy of 95 %: seconds, those of compiling included.
"""

DEPTH = 2
DEVICES = ("default.qubit", "lightning.qubit", "lightning.kokkos")
PEER = Path(__file__).parent / "peers" / "torch_layer.py"
ACCURACY = 0.95

Call = Callable[[], Any]


def circuit(device: str, n_qubits: int) -> qml.QNode:
    """Build the QNode that is timed.

    Args:
        device: Name of its device.
        n_qubits: Its wires.
    """

    @qml.qnode(qml.device(device, wires=n_qubits), interface="jax")
    def qnode(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(n_qubits))
        qml.StronglyEntanglingLayers(weights, wires=range(n_qubits))
        return [qml.expval(qml.Z(wire)) for wire in range(n_qubits)]

    return qnode


class Mapped(nnx.Module):
    """What one writes today: the QNode under `jax.vmap`."""

    def __init__(self, qnode: Any, weight_shapes: Mapping[str, Any], *, rngs: nnx.Rngs):
        drawn = jax.random.uniform(rngs.params(), weight_shapes["weights"], maxval=2 * np.pi)
        self.weights: nnx.Param[Any] = nnx.Param(drawn)
        self.qnode = qnode

    def __call__(self, inputs: Any) -> Any:
        """Return the answers of a batch."""
        return jax.vmap(lambda x: jnp.stack(self.qnode(x, self.weights[...])))(inputs)


ARMS: dict[str, Any] = {"layer": QuantumLayer, "vmap": Mapped}


def compiled(kind: Any, device: str, n_qubits: int, batch: int) -> Call:
    """Return a call of the whole pass; the first one compiles it.

    Args:
        kind: `QuantumLayer` or `Mapped`.
        device: Name of the device.
        n_qubits: Of the circuit.
        batch: Inputs of a pass.
    """
    layer = kind(circuit(device, n_qubits), {"weights": (DEPTH, n_qubits, 3)}, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    inputs = np.random.default_rng(0).normal(size=(batch, n_qubits)).astype(np.float32)

    @jax.jit
    def run(state: PyTree, inputs: Any) -> Any:
        def loss(state: PyTree, inputs: Any) -> Any:
            return jnp.sum(nnx.merge(graph, state)(inputs) ** 2)

        return jax.value_and_grad(loss, (0, 1))(state, inputs)

    return lambda: jax.block_until_ready(run(state, inputs))


def measure(
    calls: Mapping[str, Callable[[], float]], rounds: int, patience: float
) -> dict[str, Any]:
    """Time first calls, and then calls in turns.

    Args:
        calls: Each returns its seconds.
        rounds: Turns of each.
        patience: Seconds of a call beyond which there are two rounds alone.
    """
    first = {name: call() for name, call in calls.items()}
    warm = {name: call() for name, call in calls.items()}
    rounds = 2 if max(warm.values()) > patience else rounds
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(calls)):
            seconds[name].append(calls[name]())
    found = ratios({name: np.array(times) for name, times in seconds.items()})
    for row in found.values():  # of two rounds there is no interval
        row |= {bound: reporting.finite(row[bound]) for bound in ("low", "high")}
    return {name: {**row, "first": first[name]} for name, row in found.items()}


def timed(call: Call) -> Callable[[], float]:
    """Return what calls and returns the seconds that it took."""

    def run() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return run


def moons(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw points of two interleaved half circles, and which of the two each is of."""
    rng = np.random.default_rng(seed)
    moon, angle = rng.integers(0, 2, n), rng.uniform(0, np.pi, n)
    x = np.stack([np.cos(angle) + moon, (0.5 - moon) + (1 - 2 * moon) * np.sin(angle)], axis=1)
    return (x + rng.normal(0, 0.1, (n, 2))).astype(np.float32), moon


def seconds_to_accuracy(kind: Any, device: str, steps: int = 200) -> dict[str, float | None]:
    """Train a hybrid classifier until it reads the test points rightly.

    Args:
        kind: `QuantumLayer` or `Mapped`.
        device: Name of the device.
        steps: The most.

    Returns:
        Seconds and steps until then; `None` if it was not reached.
    """
    began, n_qubits, rngs = time.perf_counter(), 4, nnx.Rngs(0)
    shapes = {"weights": (DEPTH, n_qubits, 3)}
    model = nnx.Sequential(
        nnx.Linear(2, n_qubits, rngs=rngs),
        kind(circuit(device, n_qubits), shapes, rngs=rngs),
        nnx.Linear(n_qubits, 2, rngs=rngs),
    )
    optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)
    (points, labels), (test, answers) = moons(512, 0), moons(256, 1)

    @nnx.jit
    def train_step(model: Any, optimizer: Any, points: Any, labels: Any) -> None:
        def loss(model: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(points), labels).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    read, rng = nnx.jit(lambda model, x: model(x).argmax(1)), np.random.default_rng(2)
    for step in range(1, steps + 1):
        drawn = rng.integers(0, len(points), 32)
        train_step(model, optimizer, points[drawn], labels[drawn])
        if step % 5 == 0 and np.mean(read(model, test) == answers) >= ACCURACY:
            return {"seconds": time.perf_counter() - began, "steps": step}
    return {"seconds": None, "steps": None}


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the tables of a stored run."""
    found = []
    for device, configurations in report["passes"].items():
        rows = [
            [
                f"{each['n_qubits']} qubits, batch {each['batch']}: {name}",
                f"{row['first']:.2f}",
                f"{row['milliseconds']:.1f}",
                f"{row['ratio']:.2f}",
                "" if row["low"] is None else f"{row['low']:.2f} … {row['high']:.2f}",
            ]
            for each in configurations
            for name, row in each["arms"].items()
        ]
        columns = ["circuit", "first, s", "ms", "ratio to the layer", "95 % interval"]
        found.append(reporting.Table(f"{device}, forward and backward", columns, rows))
    rows = [
        [
            f"{device}: {name}",
            "never" if row["seconds"] is None else f"{row['seconds']:.1f}",
            "–" if row["steps"] is None else f"{row['steps']}",
        ]
        for device, arms in report["training"].items()
        for name, row in arms.items()
    ]
    columns = ["device", "seconds", "steps"]
    found.append(reporting.Table(f"A hybrid classifier to {ACCURACY:.0%}", columns, rows))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantum_layer_time",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--devices", nargs="+", default=DEVICES, metavar="NAME", help="(default: three simulators)")
    add("--qubits", nargs="+", type=positive(int), default=(2, 4, 6, 10, 14), metavar="N")
    add("--batches", nargs="+", type=positive(int), default=(8, 32, 256), metavar="B")
    add("--rounds", type=positive(int), default=11, metavar="X", help="(default: %(default)s)")
    add("--patience", type=float, default=2.0, metavar="S", help="(default: %(default)s)")
    add("--amplitudes", type=positive(int), default=2**20, metavar="X", help="(default: 2^20)")
    add("--python", metavar="PATH", help="of the environment with PyTorch")
    add("--output", type=Path, default=Path("results/quantum_layer_time"), metavar="PATH")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {
        "benchmark": "quantum_layer_time",
        "provenance": reporting.provenance(),
        "passes": {},
        "training": {},
    }
    for device in args.devices:  # what is loaded at the first use is not to be timed
        for arm in ARMS.values():
            compiled(arm, device, 1, 1)()
    grid = [(n, b) for n in args.qubits for b in args.batches if b * 2**n <= args.amplitudes]
    for device in args.devices:
        for n_qubits, batch in tqdm(grid, desc=device):
            calls = {
                name: timed(compiled(kind, device, n_qubits, batch)) for name, kind in ARMS.items()
            }
            if args.python is None:
                arms = measure(calls, args.rounds, args.patience)
            else:
                with Peer([args.python, PEER, device, n_qubits, DEPTH, batch]) as peer:
                    calls["torch"] = lambda peer=peer: peer.ask("step")
                    arms = measure(calls, args.rounds, args.patience)
            each = {"n_qubits": n_qubits, "batch": batch, "arms": arms}
            report["passes"].setdefault(device, []).append(each)
        report["training"][device] = {
            name: seconds_to_accuracy(kind, device) for name, kind in ARMS.items()
        }
        args.output.mkdir(parents=True, exist_ok=True)
        reporting.write_json(args.output / "quantum_layer_time.json", report)
    for table in tables(report):
        table.print()


if __name__ == "__main__":
    main()
