"""The circuits whose natural gradients are timed, and the ground states looked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pennylane as qml


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

    def qnode(self, device: str, shots: int | None = None) -> Any:
        """Return the circuit on a device.

        Args:
            device: Name of the device.
            shots: Measurements of a setting; `None` for exact answers.
        """
        opened = qml.device(device, wires=self.n_qubits)
        return qml.set_shots(qml.QNode(self.circuit, opened, interface="jax"), shots)

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
