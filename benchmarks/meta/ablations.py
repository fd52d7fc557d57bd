"""The learned circuit with a part of it taken away, its angles as they were learned."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import pennylane as qml
from jaxtyping import Array

import qsgd_jax as qsgd


@dataclass(frozen=True, eq=False)
class MutedSignal(qsgd.SignalSuperposition):
    """A circuit that reads 0 in the place of one signal.

    Attributes:
        muted: The signal's name.
    """

    muted: str = "update"

    def answers(self, signals: Sequence[Array]) -> tuple[Array, Array]:
        """z₁ and z₂ of the other signals."""
        heard = [
            jnp.zeros_like(x) if name == self.muted else x
            for name, x in zip(self.signals, signals, strict=True)
        ]
        return super().answers(heard)


@dataclass(frozen=True)
class WithoutChains(qsgd.Circuit):
    """A circuit without the CNOT chains of some layers.

    Attributes:
        unchained: Which layers, from 0.
    """

    unchained: Collection[int] = ()

    def run(self, encoding: Any, angles: Any, readout: str = "expectation", wires: Any = None):
        """Apply the gates and measure Z on every wire."""
        wires = list(range(self.n_qubits)) if wires is None else list(wires)
        for wire in wires:
            qml.Hadamard(wire)
        for layer in range(self.depth):
            for j, wire in enumerate(wires):
                if layer < self.uploads:
                    qml.RY(encoding[..., layer, j], wire)
                qml.RY(angles[..., layer, j, 0], wire)
                qml.RZ(angles[..., layer, j, 1], wire)
            for pair in itertools.pairwise(wires) if layer not in self.unchained else ():
                qml.CNOT(pair)
        return tuple(qml.expval(qml.Z(wire)) for wire in wires)


def ablations(source: qsgd.SignalSuperposition) -> dict[str, qsgd.SignalSuperposition]:
    """Return the circuit as it is, with each signal muted, and without each layer's chain.

    Args:
        source: The learned circuit.
    """
    fields, own = _fields(source), _fields(source.circuit)
    depth = source.circuit.depth
    found = {"as learned": source}
    for name in source.signals:
        found[f"{name} muted"] = MutedSignal(**fields, muted=name)
    unchained = {f"layer {layer + 1} without its chain": (layer,) for layer in range(depth)}
    for label, layers in (unchained | {"no entanglement": tuple(range(depth))}).items():
        changed: dict[str, Any] = own | {"weights": source.circuit.angles}
        circuit: Any = WithoutChains(**changed, unchained=layers)
        found[label] = qsgd.SignalSuperposition(**fields | {"circuit": circuit})
    return found


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
