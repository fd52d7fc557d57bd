"""The optimizers under comparison, each with the range that its learning rate is tuned over."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from scipy.stats import qmc

import qsgd_jax as qsgd
from benchmarks.meta.gates import ClassicalGate

Hyper = dict[str, float]
Build = Callable[[Mapping[str, Any], optax.Schedule], optax.GradientTransformation]
BASELINE = "adamw"
WARMUP = (0.0, 0.2)  # share of the run
ADAM_LEARNING_RATES = (10**-4.0, 10**-1.5)
ADAM_WEIGHT_DECAYS = (10**-4.0, 10**-0.5)
# Lion's steps are larger: its authors advise lower rates, and as much more decay.
LION_LEARNING_RATES = (10**-5.0, 10**-2.5)
LION_WEIGHT_DECAYS = (10**-3.0, 10**0.5)
HALF_A_DECADE = 10**0.5
TRIALS_SEED = 2511


@dataclass(frozen=True)
class Contender:
    """An optimizer under test.

    Attributes:
        name: What files and the command line call it.
        label: What tables and figures call it.
        build: From the hyperparameters, which may be traced, and the schedule to the optimizer.
        learning_rate: Range of the log-uniform search.
        weight_decay: Range of the log-uniform search.
        quantum_weight: Range of the log-uniform search of λ, where λ is tuned.
        effort: How many times as many hyperparameters are tried as of the others.
        cosine: Whether the learning rate decays.
        evaluated: From the optimizer's state and parameters to those to evaluate.
        settings: What else its results depend on, numbers of a gate say, to tell results apart.
    """

    name: str
    label: str
    build: Build
    learning_rate: tuple[float, float] = ADAM_LEARNING_RATES
    weight_decay: tuple[float, float] = ADAM_WEIGHT_DECAYS
    quantum_weight: tuple[float, float] | None = None
    effort: int = 1
    cosine: bool = True
    evaluated: Callable[[PyTree, PyTree], PyTree] = lambda opt_state, params: params
    settings: str = ""

    def trials(self, count: int) -> list[Hyper]:
        """Return the settings to try: the same points of the unit cube for every contender.

        Args:
            count: Number of them for an effort of 1.
        """
        dimensions = 3 if self.quantum_weight is None else 4
        points = qmc.Halton(dimensions, rng=TRIALS_SEED).random(count * self.effort)
        return [self._hyper(point) for point in points]

    def _hyper(self, point: Float[np.ndarray, " dimensions"]) -> Hyper:
        low, high = WARMUP
        hyper = {
            "learning_rate": _log_uniform(self.learning_rate, point[0]),
            "weight_decay": _log_uniform(self.weight_decay, point[1]),
            "warmup": float(low + (high - low) * point[2]),
        }
        if self.quantum_weight is not None:
            hyper["quantum_weight"] = _log_uniform(self.quantum_weight, point[3])
        return hyper

    def widened(self, learning_rate: float, margin: float = 0.1) -> Contender | None:
        """Return the contender with a wider range if the best learning rate lies at its border.

        Args:
            learning_rate: The best of the trials.
            margin: Share of the range, in logarithms, that counts as the border.
        """
        low, high = self.learning_rate
        place = np.log(learning_rate / low) / np.log(high / low)
        if place < margin:
            return dataclasses.replace(self, learning_rate=(low / HALF_A_DECADE, high))
        if place > 1 - margin:
            return dataclasses.replace(self, learning_rate=(low, high * HALF_A_DECADE))
        return None


def _log_uniform(bounds: tuple[float, float], share: float) -> float:
    low, high = np.log(bounds)
    return float(np.exp(low + (high - low) * share))


def cautious(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    r"""Keep only the coordinates of a step that agree in sign with the gradient.

    .. math::
      \tilde u = u \, \varphi \, \frac{d}{\lVert \varphi \rVert_1 + 1}, \qquad
      \varphi = \mathbb{1}[u \, g > 0]

    for each tensor, of d coordinates.

    Args:
        inner: Makes the step u from the gradient g, before the learning rate's minus.

    References:
        Liang, Chen, Liu, Liu, Cautious Optimizers, arXiv:2411.16085.
    """

    def masked(step: Array, gradient: Array) -> Array:
        kept = step * gradient > 0
        return jnp.where(kept, step, 0) * (kept.size / (kept.sum() + 1)).astype(step.dtype)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        steps, state = inner.update(updates, state, params)
        return jax.tree.map(masked, steps, updates), state

    return optax.GradientTransformation(inner.init, update)


def _adamw(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=hyper["weight_decay"])


def _nesterov(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=hyper["weight_decay"], nesterov=True)


def _cautious(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        cautious(optax.scale_by_adam()),
        optax.add_decayed_weights(hyper["weight_decay"]),
        optax.scale_by_learning_rate(schedule),
    )


def _lion(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(schedule, weight_decay=hyper["weight_decay"])


def _schedule_free(
    hyper: Mapping[str, Any], schedule: optax.Schedule
) -> optax.GradientTransformation:
    rate: Any = schedule  # optax allows schedules here, but does not say so
    return optax.contrib.schedule_free_adamw(rate, weight_decay=hyper["weight_decay"])


def _paper(**options: Any) -> Build:
    def build(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
        return qsgd.superpositional_adamw(
            schedule, weight_decay=hyper["weight_decay"], quantum_weight=0.5, **options
        )

    return build


def learned(
    name: str, superposition: qsgd.SignalSuperposition, label: str | None = None
) -> Contender:
    """Return AdamW gated by a circuit, or by a classical stand-in for one.

    Args:
        name: What files call it.
        superposition: The gate.
        label: What tables call it; by default the name.
    """

    def build(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
        return qsgd.learned_superpositional_adamw(
            schedule, weight_decay=hyper["weight_decay"], superposition=superposition
        )

    return Contender(name, label or name, build, settings=_fingerprint(superposition))


def _fingerprint(superposition: qsgd.SignalSuperposition) -> str:
    """Name a gate by its numbers, to six digits, the same on every machine."""
    if isinstance(superposition, ClassicalGate):
        numbers = np.asarray(superposition.numbers)
    else:
        common = (
            superposition.signal_scales or (1.0,) * len(superposition.signals),
            superposition.quantum_weights,
            superposition.learning_rate_factor,
        )
        parts = [superposition.coefficients, *common]
        numbers = np.concatenate([np.ravel(part) for part in parts])
    digits = " ".join(f"{value:.6f}" for value in np.round(numbers.astype(float), 6) + 0.0)
    kind = f"{type(superposition).__name__} {superposition.signals} "
    return hashlib.sha256((kind + digits).encode()).hexdigest()[:12]


def random_angles(source: qsgd.SignalSuperposition, seed: int = 0) -> qsgd.SignalSuperposition:
    """Return the same circuit with angles drawn at random, and the same λ and κ: a control.

    Args:
        source: The learned circuit.
        seed: Of the angles.
    """
    circuit = dataclasses.replace(source.circuit, weights=None, seed=seed)
    return dataclasses.replace(source, circuit=circuit)


def classical() -> dict[str, Contender]:
    """Return the contenders that need no learned gate, AdamW first."""
    contenders: list[Contender] = [
        Contender("adamw", "AdamW", _adamw),
        Contender("cautious", "Cautious AdamW", _cautious),
        Contender("nesterov", "AdamW, Nesterov", _nesterov),
        Contender("lion", "Lion", _lion, LION_LEARNING_RATES, LION_WEIGHT_DECAYS),
        Contender(
            "schedule-free",
            "schedule-free AdamW",
            _schedule_free,
            cosine=False,
            evaluated=optax.contrib.schedule_free_eval_params,
        ),
        Contender("paper", "paper, Eq. 1, λ = 0.5", _paper(weigh="gradient")),
        Contender("paper-moments", "paper, moment updates", _paper(weigh="moments")),
    ]
    return {contender.name: contender for contender in contenders}


def with_circuit(version: int | None = None) -> dict[str, Contender]:
    """Return the shipped circuit, and it with random angles.

    Args:
        version: Of the circuit; by default the latest.
    """
    circuit = qsgd.load_superposition("adamw", version=version)
    # The latest was set by hand; the evidence study asks for one that was learned.
    label = "shipped circuit" if version is None else "learned circuit"
    contenders = [
        learned("circuit", circuit, label),
        learned("random-angles", random_angles(circuit), "random angles"),
    ]
    return {contender.name: contender for contender in contenders}
