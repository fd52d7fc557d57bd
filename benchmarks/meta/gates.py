"""What can be learned: the circuit, and classical gates with as many free numbers as controls.

Each is a vector of numbers: those of the gate itself, then λ₁, λ₂ and log κ.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

import qsgd_jax as qsgd

SIGNALS = qsgd.SignalSuperposition.signals
Numbers = Float[Array, " size"]
Answer = Callable[[Numbers, Sequence[Array]], tuple[Array, Array]]


@dataclass(frozen=True)
class Gate:
    """A family of gates.

    Attributes:
        name: What tables and files call it.
        size: How many numbers are learned, λ₁, λ₂ and log κ among them.
        build: From the numbers, which may be traced, to what `learned_superpositional_adamw`
            takes.
        start: From a seed to numbers to start from.
    """

    name: str
    size: int
    build: Callable[[Any], qsgd.SignalSuperposition]
    start: Callable[[int], np.ndarray]


class ClassicalGate(qsgd.SignalSuperposition):
    """A control: the same step, gated by something that is no circuit."""

    _answer: Callable[[Sequence[Array]], tuple[Array, Array]]

    def __init__(self, answer: Answer, numbers: Any, signals: tuple[str, ...] = SIGNALS):
        super().__init__(
            qsgd.Circuit(len(signals)),
            (numbers[-3], numbers[-2]),
            jnp.exp(numbers[-1]),
            signals,
            device="default.qubit",
        )
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


def circuit(depth: int = 3, signals: tuple[str, ...] = SIGNALS) -> Gate:
    """The circuit: its angles."""
    n = len(signals)
    angles = depth * n * 2

    def build(numbers: Any) -> qsgd.SignalSuperposition:
        return qsgd.SignalSuperposition(
            qsgd.Circuit(n, depth, weights=numbers[:angles].reshape(depth, n, 2)),
            (numbers[-3], numbers[-2]),
            jnp.exp(numbers[-1]),
            signals,
            device="default.qubit",
        )

    name = f"circuit-{depth}"
    for missing in SIGNALS:
        name += "" if missing in signals else f"-without-{missing}"
    return Gate(name, angles + 3, build, partial(_start, angles))


def unentangled(depth: int = 3) -> Gate:
    """Without entanglement: each readout sees one signal, z₁ the agreement and z₂ the update.

    A qubit by itself answers `c + a cos π(s − s₀) + b sin π(s − s₀)`, all but s from its angles.
    """
    angles = depth * 2 * 2

    def answer(numbers: Numbers, signals: Sequence[Array]) -> tuple[Array, Array]:
        layers = numbers[:angles].reshape(2, depth, 1, 2)
        answers = []
        for sine, weights in zip(reversed(signals), layers, strict=True):
            one = qsgd.Circuit(1, depth, weights=weights)
            constant, a, b = qsgd.Superposition(one, device="default.qubit").coefficients[0]
            origin, cosine = jnp.pi * one.origin[0], jnp.sqrt(1 - sine * sine)
            turned = cosine * jnp.cos(origin) + sine * jnp.sin(origin)
            slope = sine * jnp.cos(origin) - cosine * jnp.sin(origin)
            answers.append(constant + a * turned + b * slope)
        return answers[0], answers[1]

    build = partial(ClassicalGate, answer, signals=("update", "agreement"))
    return Gate(f"unentangled-{depth}", angles + 3, build, partial(_start, angles))


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

    size = sum(sizes)
    build = partial(ClassicalGate, answer)
    return Gate(f"perceptron-{hidden}", size + 3, build, partial(_start, size))


def multilinear() -> Gate:
    """Eight coefficients a gate: of all products of signals that mirroring leaves as they are."""
    odd = [j for j, name in enumerate(SIGNALS) if name != "agreement"]
    pairs = [(), *combinations(odd, 2)]
    subsets = pairs + [(*pair, SIGNALS.index("agreement")) for pair in pairs]
    size = 2 * len(subsets)

    def answer(numbers: Numbers, signals: Sequence[Array]) -> tuple[Array, Array]:
        table = numbers[:size].reshape(2, -1)
        terms = [math.prod((signals[j] for j in subset), start=1.0) for subset in subsets]
        z1, z2 = (sum(map(operator.mul, row, terms), jnp.zeros(())) for row in table)
        return z1, z2

    build = partial(ClassicalGate, answer)
    return Gate("multilinear", size + 3, build, partial(_start, size))


def _start(size: int, seed: int) -> np.ndarray:
    """Random numbers for the gate, λ = 0.3 for both, κ = 1."""
    drawn = np.random.default_rng(seed).normal(0, 0.7, size)
    return np.concatenate([drawn, [0.3, 0.3, 0.0]]).astype(np.float32)


def all_gates() -> dict[str, Gate]:
    """Return the circuit, its ablations and the classical controls, by name."""
    gates = [circuit(depth) for depth in (1, 2, 3, 4)]
    gates += [circuit(3, tuple(s for s in SIGNALS if s != gone)) for gone in SIGNALS]
    gates += [unentangled(), perceptron(), perceptron(3), multilinear()]
    return {gate.name: gate for gate in gates}
