"""A cascade of one-qubit circuits: a function of singular values, from their probes alone."""

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from qsgd_jax._src import saving
from qsgd_jax._src.spectral import polynomials
from qsgd_jax._src.surrogate import Surrogate
from qsgd_jax._src.trees import is_none

# How large a part of an answer that is not odd may be: noise leaves some, another circuit more.
_MOST_NOT_ODD = 0.1
# How far below 0 an answer may be, over its largest: noise leaves as much about σ = 0.
_MOST_AGAINST = 0.02


@dataclasses.dataclass(frozen=True)
class SpectralCascade:
    r"""Circuits of one qubit, one after the other, as the odd function of a singular value.

    .. math:: \sigma \leftarrow o_s \, f_s(\sigma / i_s), \qquad s = 1, 2, \dots

    On a matrix :math:`U \Sigma V^\top` it acts as :math:`U f(\Sigma) V^\top`, by products alone.
    `spectral_cascade` makes it. It is a value: a pytree, compared and hashed by content, to be
    pickled, copied, saved and loaded.

    Attributes:
      stages: the surrogate of each circuit, of one input θ with σ = sin(2πθ / period). Of its
        coefficients those of sin(2πkθ / period), k odd, are the polynomial f in σ.
      input_scales: i.
      output_scales: o.
      deviations: for each stage how far its answer, times its output scale, is from the polynomial
        that it was made for, over that scale, at most in [0, 1]; `None` where there is none.

    Raises:
      ValueError: if there are not as many scales as stages, a stage has not one input and one
        output, its answer is not odd, or it leaves the range of the next one.

    Example:
      >>> import qsgd_jax as qsgd
      >>> cascade = qsgd.spectral_cascade("muon")
      >>> print(cascade.evaluate([0.0, 0.01, 1.0]).round(3))
      [0.    0.699 0.696]

    References:
      Quantum singular value transformation: Gilyén, Su, Low, Wiebe, arXiv:1806.01838.
    """

    stages: tuple[Surrogate, ...]
    input_scales: tuple[Any, ...]
    output_scales: tuple[Any, ...]
    deviations: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("stages", "input_scales", "output_scales", "deviations"):
            object.__setattr__(self, name, one_for_each_stage(name, getattr(self, name)))
        object.__setattr__(self, "deviations", self.deviations or (None,) * len(self.stages))
        for name in ("input_scales", "output_scales", "deviations"):
            if len(getattr(self, name)) != len(self.stages) or not self.stages:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one for each of {len(self.stages)} "
                    "stages, of which there must be one at least."
                )
        for place, stage in enumerate(self.stages):
            if not isinstance(stage, Surrogate):
                raise TypeError(f"stage {place}: {stage!r} must be a Surrogate.")
            if (stage.n_inputs, stage.n_outputs) != (1, 1) or stage.readout != "expectation":
                raise ValueError(
                    f"stage {place}: {stage!r} must have one input and one output, an expectation."
                )
        if not self.traced:
            self._check_ranges()

    @property
    def traced(self) -> bool:
        """Whether JAX is tracing its numbers."""
        return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self))

    @property
    def polynomials(self) -> list[Any]:
        """The coefficients of T₁, T₃, T₅, … of each stage: NumPy, unless traced."""
        return [odd_part(stage) for stage in self.stages]

    def not_odd(self) -> list[float]:
        """How large the part of each stage's answer is that is not odd in σ, and is left out."""
        return [_not_odd(stage) for stage in self.stages]

    def evaluate(self, sigma: Any) -> np.ndarray:
        """The function of singular values in [0, 1] that it is, in NumPy and float64."""
        sigma = np.asarray(sigma, np.float64)
        for odd, i, o in self._steps():
            sigma = o * polynomials.value(odd, sigma / i)
        return sigma

    def weights(self, sigma: Any) -> np.ndarray:
        """The weight of singular values in (0, 1], f(σ)/σ."""
        return self.evaluate(sigma) / np.asarray(sigma, np.float64)

    def _steps(self) -> Any:
        return zip(self.polynomials, self.input_scales, self.output_scales, strict=True)

    def _check_ranges(self) -> None:
        reach = 1.0
        for place, (odd, i, o) in enumerate(self._steps()):
            for name, scale in (("input", i), ("output", o)):
                if not (isinstance(scale, float) and 0 < scale < math.inf):
                    raise ValueError(
                        f"{name}_scales[{place}]={scale!r} must be positive and finite."
                    )
            stage, rest = self.stages[place], _not_odd(self.stages[place])
            if rest > _MOST_NOT_ODD:
                raise ValueError(
                    f"stage {place}: {stage!r} has a part of {rest:.2g} that is not odd in σ = "
                    f"sin(2πθ / {stage.period[0]:.4g}); allowed is {_MOST_NOT_ODD}, for noise. "
                    + (
                        "More shots make it smaller."
                        if stage.shots
                        else "It must be g(−θ) = −g(θ) and, with its period P, g(P/2 − θ) = g(θ)."
                    )
                )
            if reach > i * (1 + 1e-6):
                before = "singular values begin" if not place else f"stage {place - 1} answers"
                raise ValueError(
                    f"input_scales[{place}]={float(i):.6g}: {before} up to {reach:.6g}, beyond "
                    "what the circuit takes; allowed is that or more."
                )
            reach = o * polynomials.peak(odd, reach / i)[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a small JSON file, which `SpectralCascade.load` reads without PennyLane.

        Args:
          path: of the file.

        Raises:
          ValueError: if it is traced.
        """
        if self.traced:
            raise ValueError("A cascade that JAX is tracing has no values to save.")
        content = {
            "stages": [stage.to_content() for stage in self.stages],
            "input_scales": list(map(float, self.input_scales)),
            "output_scales": list(map(float, self.output_scales)),
            "deviations": list(self.deviations),
        }
        saving.write(path, "SpectralCascade", content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SpectralCascade":
        """Read what `save` has written.

        Args:
          path: of the file.

        Returns:
          An equal cascade.

        Raises:
          ValueError: if the file holds something else, or another version.
        """
        content = saving.read(path, "SpectralCascade")
        try:
            numbers = (
                tuple(content[name]) for name in ("input_scales", "output_scales", "deviations")
            )
            return cls(tuple(map(Surrogate.from_content, content["stages"])), *numbers)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{path} holds a cascade that cannot be read: {error}.") from error

    def __repr__(self) -> str:
        degrees = ", ".join(str(stage.degree[0]) for stage in self.stages)
        devices = ", ".join(dict.fromkeys(stage.provenance.device for stage in self.stages))
        return f"SpectralCascade({len(self.stages)} stages of degree {degrees}, {devices})"


def _flatten(cascade: SpectralCascade) -> tuple[Any, Any]:
    return (cascade.stages, cascade.input_scales, cascade.output_scales), cascade.deviations


def _unflatten(deviations: Any, arrays: Any) -> SpectralCascade:
    """Whatever JAX puts in the places of numbers; values become Python's again."""
    new = object.__new__(SpectralCascade)
    stages, *scales = arrays
    plain = (jax.tree.map(_plain, one, is_leaf=is_none) for one in scales)
    for field, value in zip(
        dataclasses.fields(SpectralCascade), (stages, *plain, deviations), strict=True
    ):
        object.__setattr__(new, field.name, value)
    return new


jax.tree_util.register_pytree_node(SpectralCascade, _flatten, _unflatten)


@functools.lru_cache(maxsize=64)  # steps that are not compiled ask in each
def check_descent(cascade: SpectralCascade) -> None:
    """Refuse a function of σ whose steps would climb: ⟨U f(Σ) Vᵀ, U Σ Vᵀ⟩ = Σ f(σ) σ."""
    sigma = np.linspace(0, 1, 1001)
    f = cascade.evaluate(sigma)
    if not f @ sigma > 0:
        raise ValueError(
            f"{cascade!r} answers against σ, or not at all: the steps would climb. Where ⟨Z⟩ falls "
            "with σ, its negative is a stage."
        )
    if f.min() < -_MOST_AGAINST * np.abs(f).max():
        warnings.warn(
            f"{cascade!r} answers against some singular values, most at σ = {sigma[f.argmin()]:.2g}"
            f" (f = {f.min():.2g}): along these a step climbs.",
            stacklevel=2,
        )


def one_for_each_stage(name: str, values: Any) -> tuple[Any, ...]:
    """A sequence as a tuple, its numbers as Python's."""
    if isinstance(values, Iterable) and not isinstance(values, str):
        each = tuple(values)  # a generator answers once
        if not any(np.ndim(x) for x in each if not isinstance(x, Surrogate)):
            return tuple(map(_plain, each))
    raise TypeError(f"{name}={values!r} must be a sequence, one for each stage.")


def _plain(value: Any) -> Any:
    """A number whose value is known as a float of Python's, which is hashed by it."""
    known = isinstance(value, (jax.Array, np.ndarray, np.generic, int, float))
    if not known or isinstance(value, (Tracer, bool)) or np.ndim(value):
        return value
    return float(value) if np.asarray(value).dtype.kind in "fiu" else value


def _harmonics(stage: Surrogate) -> tuple[Any, Any, Any]:
    """A stage's constant, and its coefficients of cos 2πkθ/P and sin 2πkθ/P about θ = 0."""
    table = stage.coefficients[0]
    cosines, sines = table[1::2], table[2::2]
    turn = 2 * np.pi / stage.period[0] * stage.origin[0] * np.arange(1, stage.degree[0] + 1)
    xp: Any = jnp if isinstance(turn, jax.Array) or isinstance(table, jax.Array) else np
    c, s = xp.cos(turn), xp.sin(turn)
    return table[0], c * cosines - s * sines, s * cosines + c * sines


def odd_part(stage: Surrogate) -> Any:
    r"""The coefficients of T₁, T₃, T₅, … in σ of a stage's answer.

    .. math:: \sin k\pi\theta = (-1)^{(k-1)/2} \, T_k(\sin \pi\theta), \qquad k \text{ odd}
    """
    sines = _harmonics(stage)[2][::2]
    return sines * (-1.0) ** np.arange(len(sines))


def _not_odd(stage: Surrogate) -> float:
    constant, cosines, sines = _harmonics(stage)
    even = np.where(np.arange(len(sines)) % 2, sines, 0.0)
    angles = np.outer(np.arange(1, len(sines) + 1), np.linspace(0, 2 * np.pi, 257))
    found = constant + cosines @ np.cos(angles) + even @ np.sin(angles)
    return float(np.abs(found).max())
