"""What can be learned: the circuit, and classical gates with as many free numbers as controls.

Each is a vector of numbers: those of the gate itself, then the logarithms of the signals' scales,
λ₁, λ₂ and log κ.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

import qsgd_jax as qsgd

SIGNALS = qsgd.SignalSuperposition.signals
Numbers = Float[Array, " size"]
# Of the numbers by hand: scales of the agreement and of the other signals, λ₁ and λ₂, κ.
CAUTIOUS_AGREEMENT, CAUTIOUS_OTHERS = 10.0, 0.3
CAUTIOUS_WEIGHTS, CAUTIOUS_FACTOR = (1.0, 0.6), 0.7
Answer = Callable[[Numbers, Sequence[Array]], tuple[Array, Array]]


@dataclass(frozen=True)
class Gate:
    """A family of gates.

    Attributes:
        name: What tables and files call it.
        size: How many numbers are learned, scales, λ₁, λ₂ and log κ among them.
        build: From the numbers, which may be traced, to what `learned_superpositional_adamw`
            takes.
        start: From a seed to numbers to start from.
        cautious: Numbers set by hand, if there are any: a soft form of Cautious AdamW's step and
            some of the gradient, κ (u (1 + z) + λ₂ tanh ĝ), z = c u ĝ/√(1 + (c u ĝ)²).
    """

    name: str
    size: int
    build: Callable[[Any], qsgd.SignalSuperposition]
    start: Callable[[int], np.ndarray]
    cautious: np.ndarray | None = None

    @property
    def is_circuit(self) -> bool:
        """Whether it is a circuit as `qsgd_jax.Circuit` has it, which a file can tell of."""
        built = self.build(self.start(0))
        plain = type(built) is qsgd.SignalSuperposition
        return plain and type(built.circuit) is qsgd.Circuit

    def probed(self, numbers: Any) -> Any:
        """Return what `restored` makes the gate of, without running a circuit again.

        Args:
            numbers: May be traced.
        """
        superposition = self.build(numbers)
        traced = superposition.circuit.traced
        return numbers, superposition.coefficients if traced else ()

    def restored(self, probed: Any) -> qsgd.SignalSuperposition:
        """Return the gate in a training loop, outside of which `probed` was asked."""
        numbers, known = probed
        superposition = self.build(numbers)
        if superposition.circuit.traced:
            vars(superposition)["coefficients"] = known  # the cache of this property
        return superposition


def _common(numbers: Any, signals: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of `SignalSuperposition` that every gate learns, from the last numbers."""
    scales = jnp.exp(numbers[-3 - len(signals) : -3])
    return {
        "quantum_weights": (numbers[-3], numbers[-2]),
        "learning_rate_factor": jnp.exp(numbers[-1]),
        "signals": signals,
        "signal_scales": tuple(scales),
        "device": "default.qubit",
    }


class ClassicalGate(qsgd.SignalSuperposition):
    """A control: the same step, gated by something that is no circuit."""

    numbers: Any
    _answer: Callable[[Sequence[Array]], tuple[Array, Array]]

    def __init__(self, answer: Answer, numbers: Any, signals: tuple[str, ...] = SIGNALS):
        super().__init__(qsgd.Circuit(len(signals)), **_common(numbers, signals))
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "_answer", partial(answer, numbers))

    def answers(self, signals: Sequence[Array]) -> tuple[Array, Array]:
        """z₁ and z₂ by the classical formula, averaged over mirrored signals as a circuit's are."""
        squashed = [_squashed(x) for x in signals]
        mirrored = [
            x if name == "agreement" else -x for name, x in zip(self.signals, squashed, strict=True)
        ]
        z1, z2 = map(operator.add, self._answer(squashed), self._answer(mirrored))
        return z1 / 2, z2 / 2


def _squashed(x: Array) -> Array:
    """Sin πs = x/√(1 + x²), the signal as a qubit carries it."""
    return x * lax.rsqrt(1 + x * x)


def circuit(depth: int, signals: tuple[str, ...] = SIGNALS) -> Gate:
    """The circuit: its angles."""
    n = len(signals)
    angles = depth * n * 2

    def build(numbers: Any) -> qsgd.SignalSuperposition:
        weights = numbers[:angles].reshape(depth, n, 2)
        return qsgd.SignalSuperposition(
            qsgd.Circuit(n, depth, weights=weights), **_common(numbers, signals)
        )

    name = f"circuit-{depth}"
    for missing in SIGNALS:
        name += "" if missing in signals else f"-without-{missing}"
    # After one chain a readout is the product of sin(πs − ω) of its wire and those before it.
    half_turned = signals == SIGNALS and depth == 1
    by_hand = [-np.pi / 2, 0.0] * (n - 1) + [0.0, 0.0] if half_turned else None
    return _gate(name, angles, signals, build, by_hand)


@dataclass(frozen=True, eq=False)
class WithoutChains(qsgd.Circuit):
    """A circuit without the CNOT chains of some layers.

    Attributes:
        unchained: Which layers, from 0.
    """

    unchained: Collection[int] = ()

    def entangle(self, layer: int, wires: Sequence[Any]) -> None:
        """Queue the layer's chain, if it has one."""
        if layer not in self.unchained:
            super().entangle(layer, wires)


def unentangled(depth: int = 2) -> Gate:
    """Without entanglement: each readout sees one signal, z₁ the agreement and z₂ the update."""
    signals = ("update", "agreement")
    angles = depth * len(signals) * 2

    def build(numbers: Any) -> qsgd.SignalSuperposition:
        weights = numbers[:angles].reshape(depth, len(signals), 2)
        circuit = WithoutChains(len(signals), depth, weights=weights, unchained=range(depth))
        return qsgd.SignalSuperposition(circuit, **_common(numbers, signals))

    return _gate(f"unentangled-{depth}", angles, signals, build)


def perceptron(hidden: int = 2) -> Gate:
    """A tiny perceptron: four inputs, one hidden layer, two outputs, tanh after both."""
    inputs = len(SIGNALS)
    sizes = (inputs * hidden, hidden, hidden * 2, 2)

    def answer(numbers: Numbers, signals: Sequence[Array]) -> tuple[Array, Array]:
        ends = np.cumsum(sizes)[:-1]
        first, shift, second, offset = jnp.split(numbers[: sum(sizes)], ends)
        first, second = first.reshape(hidden, inputs), second.reshape(2, hidden)
        inner = [
            jnp.tanh(sum(w * x for w, x in zip(row, signals, strict=True)) + b)
            for row, b in zip(first, shift, strict=True)
        ]
        z1, z2 = (
            jnp.tanh(sum(w * x for w, x in zip(row, inner, strict=True)) + b)
            for row, b in zip(second, offset, strict=True)
        )
        return z1, z2

    # z₁ = tanh(1.5 tanh 1.5 a) of the agreement's squashed a is close to a; z₂ = tanh 2 to 1.
    first, second = np.zeros((hidden, inputs)), np.zeros((2, hidden))
    first[0, SIGNALS.index("agreement")] = second[0, 0] = 1.5
    by_hand = [*first.ravel(), *np.zeros(hidden), *second.ravel(), 0.0, 2.0]
    name = f"perceptron-{hidden}"
    return _gate(name, sum(sizes), SIGNALS, partial(ClassicalGate, answer), by_hand)


def multilinear() -> Gate:
    """Eight coefficients a gate: of all products of signals that mirroring leaves as they are."""
    odd = [j for j, name in enumerate(SIGNALS) if name != "agreement"]
    pairs = [(), *itertools.combinations(odd, 2)]
    subsets = pairs + [(*pair, SIGNALS.index("agreement")) for pair in pairs]
    size = 2 * len(subsets)

    def answer(numbers: Numbers, signals: Sequence[Array]) -> tuple[Array, Array]:
        table = numbers[:size].reshape(2, -1)
        terms = [math.prod((signals[j] for j in subset), start=1.0) for subset in subsets]
        z1, z2 = (sum(map(operator.mul, row, terms), jnp.zeros(())) for row in table)
        return z1, z2

    by_hand = np.zeros((2, len(subsets)))
    by_hand[0, subsets.index((SIGNALS.index("agreement"),))] = 1  # z₁
    by_hand[1, subsets.index(())] = 1  # z₂
    build = partial(ClassicalGate, answer)
    return _gate("multilinear", size, SIGNALS, build, by_hand.ravel())


def _gate(
    name: str,
    size: int,
    signals: tuple[str, ...],
    build: Callable[[Any], qsgd.SignalSuperposition],
    by_hand: Sequence[float] | np.ndarray | None = None,
) -> Gate:
    """The gate of `size` numbers of its own, which may be set by hand for `Gate.cautious`."""

    def start(seed: int) -> np.ndarray:
        """Random numbers for the gate, scales of 1, λ = 0.3 for both, κ = 1."""
        drawn = np.random.default_rng(seed).normal(0, 0.7, size)
        common = [*(0.0 for _ in signals), 0.3, 0.3, 0.0]
        return np.concatenate([drawn, common]).astype(np.float32)

    cautious = None
    if by_hand is not None:
        scales = np.log(
            [CAUTIOUS_AGREEMENT if s == "agreement" else CAUTIOUS_OTHERS for s in signals]
        )
        common = [*scales, *CAUTIOUS_WEIGHTS, math.log(CAUTIOUS_FACTOR)]
        cautious = np.concatenate([by_hand, common]).astype(np.float32)
    return Gate(name, size + len(signals) + 3, build, start, cautious)


def all_gates() -> dict[str, Gate]:
    """Return the circuit, its ablations and the classical controls, by name."""
    gates = [circuit(depth) for depth in (1, 2, 3, 4)]
    gates += [circuit(2, tuple(s for s in SIGNALS if s != gone)) for gone in SIGNALS]
    gates += [unentangled(), perceptron(), perceptron(3), multilinear()]
    return {gate.name: gate for gate in gates}
