"""What is left of a circuit once it has been probed: a small table, evaluated anywhere."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from qsgd_jax._src import fourier, saving
from qsgd_jax._src.half_turns import half_turns
from qsgd_jax._src.provenance import Provenance
from qsgd_jax._src.trees import as_value

Readout = Literal["expectation", "probabilities"]
"""What the outputs are: expectation values, or the probability of each bitstring."""

_ARRAYS = ("coefficients", "origin", "standard_errors")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Surrogate:
    r"""A circuit's answers as the trigonometric polynomial of its inputs that they are.

    .. math:: f_o(\theta) = \sum_k c_{ok} \prod_j b_{k_j}(2\pi(\theta_j - \theta^0_j) / P_j),
      \qquad b(x) = [1, \cos x, \sin x, \dots, \cos R_j x, \sin R_j x]

    `qsgd_jax.probe` makes it. It is a value: frozen, a pytree of its arrays, compared and hashed
    by content, to be pickled, copied, saved and loaded. What is known of its zeros stays known
    where its arrays are traced.

    Attributes:
      coefficients: c, shape `(outputs, 2 R_1 + 1, …)`; float64 NumPy, unless traced, and zero where
        they are below 1e-14, the rounding of a simulator.
      origin: θ⁰, shape `(inputs,)`, in the inputs' own units.
      standard_errors: of the coefficients, where they were measured; of their shape.
      degree: R of each input.
      period: P of each input, in its own units.
      readout: `"expectation"` or `"probabilities"`.
      support: which of the flattened coefficients may be other than zero; `None` for all. Where
        they are traced, the others are taken to be zero and have no derivative;
        `with_coefficients` takes others.
      provenance: where it comes from.

    Raises:
      ValueError: if an array has the wrong shape or is not finite.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> surrogate = qsgd.probe(qsgd.Circuit(n_qubits=2))
      >>> surrogate
      Surrogate(2 inputs to 2 outputs, degree 1, period 2.0, 2 of 18 coefficients, lightning.qubit)
      >>> first, second = surrogate.evaluate([jnp.array([0.5, 0.0]), jnp.array([0.0, -0.5])])
      >>> print(first, second)
      [1. 0.] [ 0. -1.]

    References:
      Schreiber, Eisert, Meyer, "Classical surrogates for quantum learning models",
      arXiv:2206.11740; Schuld, Sweke, Meyer, arXiv:2008.08605.
    """

    coefficients: Float[Array, "outputs *sizes"] | np.ndarray
    origin: Float[Array, " inputs"] | np.ndarray
    standard_errors: Float[Array, "outputs *sizes"] | np.ndarray | None = None
    _: dataclasses.KW_ONLY
    degree: tuple[int, ...]
    period: tuple[float, ...]
    readout: Readout = "expectation"
    support: tuple[int, ...] | None = None
    provenance: Provenance = dataclasses.field(default_factory=Provenance)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            object.__setattr__(self, name, as_value(getattr(self, name)))
        sizes = tuple(2 * degree + 1 for degree in self.degree)
        if np.shape(self.coefficients)[1:] != sizes:
            raise ValueError(
                f"coefficients of shape {np.shape(self.coefficients)} must have that of degree="
                f"{self.degree}, (outputs, {', '.join(map(str, sizes))})."
            )
        for name, shape in (
            ("origin", (self.n_inputs,)),
            ("standard_errors", np.shape(self.coefficients)),
            ("period", (self.n_inputs,)),
        ):
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise ValueError(f"{name} of shape {np.shape(value)} must have shape {shape}.")
        for name in _ARRAYS:
            value = getattr(self, name)
            if isinstance(value, np.ndarray) and not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite; {(~np.isfinite(value)).sum()} are not.")
        if isinstance(self.coefficients, np.ndarray):
            table = np.where(np.abs(self.coefficients) > fourier.ZERO, self.coefficients, 0.0)
            object.__setattr__(self, "coefficients", as_value(table))
            nonzero = np.flatnonzero(table)
            few = nonzero.size < min(self.coefficients.size, fourier.MAX_UNROLLED_TERMS + 1)
            object.__setattr__(self, "support", tuple(nonzero.tolist()) if few else None)

    @property
    def n_inputs(self) -> int:
        """How many inputs it has."""
        return len(self.degree)

    @property
    def n_outputs(self) -> int:
        """How many outputs it has."""
        return self.coefficients.shape[0]

    @property
    def shots(self) -> int | None:
        """How often each setting was measured; `None` where the answers are exact."""
        return self.provenance.shots

    @property
    def sparse(self) -> bool:
        """Whether it is known which coefficients are zero."""
        return isinstance(self.coefficients, np.ndarray) or self.support is not None

    @property
    def traced(self) -> bool:
        """Whether JAX is tracing its numbers, so that their values are not known yet."""
        return isinstance(self.coefficients, Tracer) or isinstance(self.origin, Tracer)

    def evaluate(self, inputs: Sequence[ArrayLike]) -> list[Float[Array, "*shape"]]:
        r"""The outputs at many points: elementwise, sharded as the inputs are.

        .. math:: f_o(\theta_1, \dots, \theta_n)

        Args:
          inputs: one array for each input, all of one shape and real, in the inputs' own units.

        Returns:
          One array for each output, float32 (float64 for double precision), of that shape.

        Raises:
          TypeError: if an input is not real.
          ValueError: if there are not as many inputs, or their shapes differ.

        Example:
          >>> import jax.numpy as jnp, qsgd_jax as qsgd
          >>> print(qsgd.probe(qsgd.Circuit(n_qubits=1)).evaluate([jnp.array([0.5, -0.5])]))
          [Array([ 1., -1.], dtype=float32)]
        """
        if len(inputs) != self.n_inputs:
            raise ValueError(f"{len(inputs)} inputs are given; allowed are {self.n_inputs}.")
        arrays = [jnp.asarray(x) for x in inputs]
        if len({x.shape for x in arrays}) > 1:
            raise ValueError(f"inputs have shapes {[x.shape for x in arrays]}; allowed is one.")
        if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in arrays):
            raise TypeError(f"inputs of dtypes {[str(x.dtype) for x in arrays]} must be real.")
        dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
        origin = [
            x if period == 2 else x * (2 / period)
            for x, period in zip(self.origin, self.period, strict=True)
        ]
        halves = [
            half_turns(x.astype(dtype), period)
            for x, period in zip(arrays, self.period, strict=True)
        ]
        return fourier.evaluate(self.coefficients, halves, origin, self._nonzero)

    @functools.cached_property
    def _nonzero(self) -> Bool[np.ndarray, "outputs *sizes"] | None:
        if self.support is None:
            return None
        nonzero = np.zeros(self.coefficients.shape, bool)
        nonzero.ravel()[list(self.support)] = True
        return nonzero

    @functools.cached_property
    def elementwise(self) -> "Surrogate | None":
        """The surrogate of one input that serves each coordinate by itself, if there is one.

        That is so where output j depends on input j alone, and all by one polynomial.
        """
        alike = not self.traced and len(set(self.period)) == 1 and not self.origin.any()
        line = fourier.elementwise(self.coefficients) if alike else None
        if line is None:
            return None
        return Surrogate(line, self.origin[:1], degree=self.degree[:1], period=self.period[:1])

    @functools.cached_property
    def largest(self) -> float:
        """The largest absolute value of an output on the probe grid and at settings off it."""
        on_grid = fourier.values_on_grid(np.asarray(self.coefficients))
        theta = np.random.default_rng(0).uniform(-1, 1, (2**20 // len(on_grid) + 1, self.n_inputs))
        off_grid = fourier.interpolation(theta[:1000], self.degree) @ on_grid
        return max(np.abs(on_grid).max(), np.abs(off_grid).max())

    def with_coefficients(
        self, coefficients: Float[Array, "outputs *sizes"] | np.ndarray, shots: int | None = None
    ) -> "Surrogate":
        """The same polynomial with other coefficients, of which all may be other than zero.

        Args:
          coefficients: of the same shape.
          shots: how often their settings were measured; `None` if they are exact.

        Returns:
          The other surrogate.

        Raises:
          ValueError: if they have another shape, or are not finite.
        """
        provenance = dataclasses.replace(self.provenance, device="?", shots=shots, probed_at=None)
        return dataclasses.replace(
            self,
            coefficients=coefficients,
            standard_errors=None,
            support=None,
            provenance=provenance,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a small JSON file, which `Surrogate.load` reads without PennyLane.

        Args:
          path: of the file.

        Raises:
          ValueError: if it is traced.

        Example:
          >>> import tempfile, qsgd_jax as qsgd
          >>> surrogate = qsgd.probe(qsgd.Circuit())
          >>> with tempfile.NamedTemporaryFile() as file:
          ...     surrogate.save(file.name)
          ...     print(qsgd.Surrogate.load(file.name) == surrogate)
          True
        """
        if self.traced:
            raise ValueError("A surrogate that JAX is tracing has no values to save.")
        saving.write(path, "Surrogate", self.to_content())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Surrogate":
        """Read what `save` has written.

        Args:
          path: of the file.

        Returns:
          An equal surrogate.

        Raises:
          ValueError: if the file holds something else, or another version.
        """
        content = saving.read(path, "Surrogate")
        try:
            return cls.from_content(content)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{path} holds a surrogate that cannot be read: {error}.") from error

    def to_content(self) -> dict[str, Any]:
        """What `save` writes: a dictionary for JSON."""
        return saving.to_content(self)

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> "Surrogate":
        """The surrogate of such a dictionary."""
        return cls(**saving.from_content(content))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Its arrays by name, and what is static."""
        children = tuple((jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in _ARRAYS)
        return children, self._static

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], arrays: Iterable[Any]) -> "Surrogate":
        """Whatever JAX puts in the places of the arrays; values become NumPy again."""
        new = object.__new__(cls)
        names = ("degree", "period", "readout", "support", "provenance")
        for name, value in zip(names, static, strict=True):
            object.__setattr__(new, name, value)
        for name, value in zip(_ARRAYS, arrays, strict=True):
            object.__setattr__(new, name, as_value(value))
        if isinstance(new.coefficients, np.ndarray) and new.support is not None:
            outside = np.delete(new.coefficients.ravel(), list(new.support))
            if np.any(np.abs(outside) > fourier.ZERO):  # changed by hand
                object.__setattr__(new, "support", None)
        return new

    @property
    def _static(self) -> tuple[Any, ...]:
        return self.degree, self.period, self.readout, self.support, self.provenance

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        if self.traced:
            raise TypeError("A surrogate that JAX is tracing has no content to hash or compare.")
        arrays = (getattr(self, name) for name in _ARRAYS)
        return *self._static, *(x if x is None else (x.shape, x.tobytes()) for x in arrays)

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Surrogate):
            return self is other
        return not self.traced and not other.traced and self._content == other._content

    def __reduce__(self) -> tuple[Any, ...]:
        return Surrogate.tree_unflatten, (self._static, [getattr(self, name) for name in _ARRAYS])

    def __repr__(self) -> str:
        def one(values: tuple[Any, ...]) -> Any:
            return values[0] if len(set(values)) == 1 else values

        total, errors = np.size(self.coefficients), self.standard_errors
        parts = [
            f"{self.n_inputs} inputs to {self.n_outputs} outputs",
            f"degree {one(self.degree)}",
            f"period {one(self.period)}",
            f"{total if self.support is None else len(self.support)} of {total} coefficients",
            self.provenance.device,
        ]
        if self.readout != "expectation":
            parts.insert(1, self.readout)
        if isinstance(errors, np.ndarray):
            parts.append(f"standard errors up to {errors.max():.1g}")
        if self.traced:
            parts.append("traced")
        return f"Surrogate({', '.join(parts)})"


jax.tree_util.register_pytree_with_keys(
    Surrogate, Surrogate.tree_flatten_with_keys, Surrogate.tree_unflatten
)
