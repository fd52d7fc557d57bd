"""A circuit with a part of it taken away, its angles as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

import qsgd_jax as qsgd
from benchmarks.meta.gates import WithoutChains


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


def ablations(source: qsgd.SignalSuperposition) -> dict[str, qsgd.SignalSuperposition]:
    """Return the circuit as it is, with each signal muted, and without each layer's chain.

    Args:
        source: The circuit.
    """
    fields, own = _fields(source), _fields(source.circuit)
    depth = source.circuit.depth
    found = {"as it is": source}
    for name in source.signals:
        found[f"{name} muted"] = MutedSignal(**fields, muted=name)
    alone = range(depth) if depth > 1 else ()  # a single chain is all the entanglement
    unchained = {f"layer {layer + 1} without its chain": (layer,) for layer in alone}
    for label, layers in (unchained | {"no entanglement": tuple(range(depth))}).items():
        changed: dict[str, Any] = own | {"weights": source.circuit.angles}
        circuit: Any = WithoutChains(**changed, unchained=layers)
        found[label] = qsgd.SignalSuperposition(**fields | {"circuit": circuit})
    return found


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
