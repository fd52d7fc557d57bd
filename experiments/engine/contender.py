"""An optimizer under comparison, and the ranges that it is tuned over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, PyTree
from scipy.stats import qmc

from benchmarks.arm import Arm

Hyper = dict[str, float]
BASELINE = "adamw"
WARMUP = (0.0, 0.2)  # share of the run
LEARNING_RATES = (10**-4.0, 10**-1.5)
WEIGHT_DECAYS = (10**-4.0, 10**-0.5)
HALF_A_DECADE = 10**0.5
TRIALS_SEED = 2511


@dataclass(frozen=True)
class Contender(Arm):
    """An optimizer under test whose hyperparameters, which may be traced, are tuned.

    Attributes:
        learning_rate: Range of the log-uniform search.
        weight_decay: Range of the log-uniform search.
        quantum_weight: Range of the log-uniform search of λ, where λ is tuned.
        choices: Other hyperparameters, each with the values that are tried.
        effort: How many times as many hyperparameters are tried as of the others.
        cosine: Whether the learning rate decays.
        evaluated: From the optimizer's state and parameters to those to evaluate.
    """

    learning_rate: tuple[float, float] = LEARNING_RATES
    weight_decay: tuple[float, float] = WEIGHT_DECAYS
    quantum_weight: tuple[float, float] | None = None
    choices: tuple[tuple[str, tuple[float, ...]], ...] = ()
    effort: int = 1
    cosine: bool = True
    evaluated: Callable[[PyTree, PyTree], PyTree] = lambda opt_state, params: params

    def trials(self, count: int) -> list[Hyper]:
        """Return the settings to try: the same points of the unit cube for every contender.

        Args:
            count: Number of them for an effort of 1.
        """
        dimensions = 3 + (self.quantum_weight is not None) + len(self.choices)
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
        for (name, values), share in zip(self.choices, point[::-1], strict=False):
            hyper[name] = values[int(share * len(values))]
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
