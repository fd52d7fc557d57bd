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

    def answers(self, signals: Sequence[Array]) -> tuple[Array, ...]:
        """The gates of the other signals."""
        heard = [
            jnp.zeros_like(x) if name == self.muted else x
            for name, x in zip(self.signals, signals, strict=True)
        ]
        return super().answers(heard)


def ablations(source: qsgd.SignalSuperposition) -> dict[str, qsgd.SignalSuperposition]:
    """Return the circuit as it is, and with a part of it taken away.

    Each signal is muted, then the gate of the trend and each layer's chain are left out.

    Args:
        source: The circuit.
    """
    fields, own = _fields(source), _fields(source.circuit)
    depth, weights = source.circuit.depth, tuple(source.quantum_weights)
    found = {"as it is": source}
    for name in source.signals:
        found[f"{name} muted"] = MutedSignal(**fields, muted=name)
    if len(weights) == 3:
        silent: dict[str, Any] = fields | {"quantum_weights": (*weights[:2], 0.0)}
        found["without the trend's gate"] = qsgd.SignalSuperposition(**silent)
    alone = range(depth) if depth > 1 else ()  # a single chain is all the entanglement
    unchained = {f"layer {layer + 1} without its chain": (layer,) for layer in alone}
    for label, layers in (unchained | {"no entanglement": tuple(range(depth))}).items():
        options: dict[str, Any] = own | {"weights": source.circuit.angles}
        circuit: Any = WithoutChains(**options, unchained=layers)
        found[label] = qsgd.SignalSuperposition(**fields | {"circuit": circuit})
    return found


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
