"""What is weighed, by which circuit and where: from parameters to superposition weights."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from qsgd_jax import coverage as coverages
from qsgd_jax import devices, fourier
from qsgd_jax.circuit import Circuit, Readout
from qsgd_jax.sampling import key_data, leaf_key, mean_of_shots, step_key

# 65,536 tapes are about 4 seconds on lightning.qubit and 1 GB of host memory; 2²²
# coefficients are 32 MiB of constants in every compiled step.
_MAX_SETTINGS = 2**16
_MAX_COEFFICIENTS = 2**22
_EXECUTIONS = ("auto", "fourier", "direct")


class _Part(NamedTuple):
    """A real leaf, or one part of a complex one, in the dtype that its weights have."""

    theta: Array
    factor: Array | None
    key: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Superposition:
    r"""How parameters become superposition weights.

    .. math:: w_j(\theta) = \langle Z_j \rangle_{\theta_1 \dots \theta_n} \in [-1, 1]

    Coordinates of each tensor are grouped into blocks of `circuit.n_qubits`, and the
    circuit answers a weight for each coordinate of a block. Everything in it is static:
    `optax.inject_hyperparams` leaves it alone.

    Args:
      circuit: the circuit that weighs a block.
      coverage: `"leading"`, the first `n_qubits` row-major coordinates of each tensor as
        one block (the paper), or `"everywhere"`, all coordinates, in blocks of adjacent
        rows (the last axis but one; the only axis of a vector).
      device: a PennyLane device name or instance.
      execution: `"fourier"` probes the circuit once, on a grid of `(2 uploads + 1)^n_qubits`
        settings, and evaluates the polynomial that it is; `"direct"` runs the circuit at
        every block in every step; `"auto"` is `"fourier"` where the grid is small enough.
      shots: `None` for exact expectations; `k` for the mean of k joint measurements of
        all qubits, fresh in each step and block.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is not among the allowed values, the device is not
        installed or too small, or the Fourier grid is too large.

    Example:
      >>> import qsgd_jax as qsgd
      >>> circuit = qsgd.Circuit(n_qubits=4, depth=2)
      >>> superposition = qsgd.Superposition(circuit, coverage="everywhere", shots=16)

    References:
      Eq. 2 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918; Schuld, Sweke, Meyer,
      arXiv:2008.08605.
    """

    circuit: Circuit = dataclasses.field(default_factory=Circuit)
    coverage: coverages.Coverage = "leading"
    device: Any = "lightning.qubit"
    execution: str = "auto"
    shots: int | None = None

    def __post_init__(self):
        if not isinstance(self.circuit, Circuit):
            raise TypeError(f"circuit={self.circuit!r} must be a qsgd_jax.Circuit.")
        for name, allowed in (
            ("coverage", get_args(coverages.Coverage)),
            ("execution", _EXECUTIONS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}."
                )
        if self.shots is not None:
            if isinstance(self.shots, bool) or not isinstance(self.shots, (int, np.integer)):
                raise TypeError(f"shots={self.shots!r} must be None or an integer of at least 1.")
            if self.shots < 1:
                raise ValueError(f"shots={self.shots} must be None or at least 1.")
        if self.execution == "fourier" and not self._grid_fits:
            raise ValueError(
                f"execution='fourier' needs {self._n_settings} probe settings of "
                f"{self.circuit.n_outputs(self.readout)} outputs for n_qubits="
                f"{self.circuit.n_qubits}, uploads={self.circuit.uploads}; allowed are at most "
                f"{_MAX_SETTINGS} settings and {_MAX_COEFFICIENTS} values. "
                "execution='direct' serves such a circuit."
            )
        # Opening the device now makes a wrong one fail here. Traced angles are probed now
        # as well: a probe first needed inside `lax.scan` would leak that loop's tracers.
        _ = self._device
        if self.circuit.traced and self._fourier:
            _ = self.coefficients

    @functools.cached_property
    def _device(self):
        return devices.open_device(self.device, self.circuit.n_qubits)

    @property
    def readout(self) -> Readout:
        """What the circuit is asked for; joint samples need joint probabilities."""
        return "expectation" if self.shots is None else "probabilities"

    @property
    def _n_settings(self) -> int:
        return fourier.n_settings(self.circuit.n_qubits, self.circuit.uploads)

    @property
    def _grid_fits(self) -> bool:
        values = self._n_settings * self.circuit.n_outputs(self.readout)
        return self._n_settings <= _MAX_SETTINGS and values <= _MAX_COEFFICIENTS

    @property
    def _fourier(self) -> bool:
        return self.execution != "direct" and self._grid_fits

    @functools.cached_property
    def coefficients(self):
        """The circuit's Fourier coefficients, `(outputs, 2 uploads + 1, …)`, probed once.

        Returns:
          A float64 NumPy array, or a JAX array where the circuit's angles are traced.
        """
        n, degree = self.circuit.n_qubits, self.circuit.uploads
        grid = fourier.probe_grid(n, degree)
        values = devices.run(self.circuit, self._device, grid, self.readout)
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            raise ValueError(f"device={self._device.name!r} answered with values not finite.")
        return fourier.coefficients(values, n, degree)

    def weights(self, params: PyTree[Array], key: Array | None = None) -> PyTree[Array]:
        r"""The weight of every coordinate; see `superposition_weights`.

        .. math:: w_j(\theta) = \langle Z_j \rangle_{\theta_1 \dots \theta_n}

        Args:
          params: arrays of any shape and dtype.
          key: the step's typed random key; needed with `shots` only.

        Returns:
          For each leaf an array of its shape, float32 (float64 for double precision);
          complex for complex leaves, whose two parts are weighed as two real leaves;
          zeros for leaves that are not inexact numbers.

        Raises:
          ValueError: if `key` is missing and `shots` are asked for.

        Example:
          >>> import jax.numpy as jnp, qsgd_jax as qsgd
          >>> print(qsgd.Superposition().weights(jnp.array([0.5, -0.5])))
          [ 1. -1.]
        """
        return self._on_leaves(params, None, key)

    def perturbation(
        self, params: PyTree[Array], gradients: PyTree[Array], key: Array | None = None
    ) -> PyTree[Array]:
        r"""The perturbation of Eq. 2, the gradients times their weights.

        .. math:: Q(\theta, \nabla L) = w(\theta) \odot \nabla L

        Args:
          params: arrays of any shape and dtype.
          gradients: arrays of the same shapes, `None` where there is no gradient.
          key: the step's typed random key; needed with `shots` only.

        Returns:
          Arrays as `weights` returns them; without meaning where the gradient is `None`.

        Raises:
          ValueError: if a gradient has another shape than its parameter, or only one of
            them is complex, or `key` is missing and `shots` are asked for.

        Example:
          >>> import jax.numpy as jnp, qsgd_jax as qsgd
          >>> params, gradients = jnp.array([0.5, -0.5]), jnp.array([2.0, 3.0])
          >>> print(qsgd.Superposition().perturbation(params, gradients))
          [ 2. -3.]
        """
        return self._on_leaves(params, gradients, key)

    def _on_leaves(self, params, gradients, key):
        if self.shots is not None and key is None:
            raise ValueError(f"key=None must be a random key, for shots={self.shots}.")
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        factors: list[Any] = [None] * treedef.num_leaves
        if gradients is not None:
            factors = treedef.flatten_up_to(gradients)
        parts: list[_Part] = []
        for (path, leaf), factor in zip(paths_and_leaves, factors, strict=True):
            parts += _parts(path, leaf, factor, key)
        results: dict[int, Array] = {}
        for dtype in dict.fromkeys(part.theta.dtype for part in parts):
            chosen = [i for i, part in enumerate(parts) if part.theta.dtype == dtype]
            answers = self._weigh([parts[i] for i in chosen])
            results |= dict(zip(chosen, answers, strict=True))
        stream = iter(results[i] for i in range(len(parts)))
        return treedef.unflatten(
            [
                from_real_parts([next(stream) for _ in real_parts(leaf)], jnp.shape(leaf))
                for _, leaf in paths_and_leaves
            ]
        )

    def _weigh(self, parts: list[_Part]) -> list[Array]:
        """The weights, times the factors, of real leaves of one dtype."""
        if self._fourier and self.shots is None:
            return [self._weigh_leaf(part.theta, part.factor) for part in parts]
        n = self.circuit.n_qubits
        if self.coverage == "everywhere":
            answers = self._outputs([coverages.blocks(part.theta, n) for part in parts])
            if self.shots is not None:
                keys = [part.key for part in parts]
                answers = list(map(self._sample, answers, keys))
            weights = (
                coverages.from_blocks(answer, part.theta.shape)
                for answer, part in zip(answers, parts, strict=True)
            )
            return [_times(w, part.factor) for w, part in zip(weights, parts, strict=True)]
        # One block a leaf: all leaves together are one small batch.
        joined = jnp.stack([coverages.leading_block(part.theta, n) for part in parts])
        (columns,) = self._outputs([list(joined.T)])
        if self.shots is not None:
            columns = jax.vmap(self._sample)(columns, jnp.stack([part.key for part in parts]))
        rows = jnp.stack(columns, axis=-1)
        return [self._spread(row, *part[:2]) for row, part in zip(rows, parts, strict=True)]

    @functools.cached_property
    def _weigh_leaf(self):
        """`(theta, factor) -> w(theta) * factor` by the Fourier form, for one leaf.

        Traced once for each shape. Nothing in it depends on the leaf's place among the
        others, so that leaves of one shape share XLA's compiled kernels.
        """

        def weigh(theta: Array, factor: Array | None) -> Array:
            n, table = self.circuit.n_qubits, self.coefficients
            line = fourier.elementwise(table)
            if self.coverage == "leading":
                block = coverages.leading_block(theta, n)
                weights = (
                    jnp.stack(fourier.evaluate(table, list(block)))
                    if line is None
                    else fourier.evaluate(line, [block])[0]
                )
                # A sum of one term: XLA fuses no reduction into a larger loop. It would else
                # read the block where it overwrites the donated leaf, and copy the leaf first.
                weights = jnp.sum(jnp.where(jnp.eye(n, dtype=bool), weights, 0), axis=1)
                return self._spread(weights, theta, factor)
            if line is not None:
                return _times(fourier.evaluate(line, [theta])[0], factor)
            outputs = fourier.evaluate(table, coverages.blocks(theta, n))
            return _times(coverages.from_blocks(outputs, theta.shape), factor)

        # A function that closes over traced coefficients must not outlive their trace.
        compiled = weigh if self.circuit.traced else jax.jit(weigh)

        def as_sharded(theta: Array, factor: Array | None) -> Array:
            sharding = jax.typeof(theta).sharding
            if not sharding.mesh.explicit_axes:
                return compiled(theta, factor)
            # On a mesh of explicit axes slices would need a sharding each; XLA knows better.
            automatic: Any = jax.sharding.auto_axes(compiled, out_sharding=sharding)
            return automatic(theta, factor)

        return as_sharded

    def _spread(self, block: Array, theta: Array, factor: Array | None) -> Array:
        """A leading block's weights, times the factors, at their places in the leaf.

        The factors are read at the block alone: XLA would read every one of them to multiply
        most by zero, which is a tenth of AdamW's memory traffic.
        """
        if factor is not None:
            block = block * coverages.leading_block(factor, self.circuit.n_qubits)
        return coverages.from_leading_block(block, theta.shape)

    def _outputs(self, block_sets: list[list[Array]]) -> list[list[Array]]:
        """The circuit's exact answers for sets of blocks, each `n` arrays of one shape."""
        if self._fourier:
            return [fourier.evaluate(self.coefficients, thetas) for thetas in block_sets]
        shapes = [thetas[0].shape for thetas in block_sets]
        batch = jnp.concatenate(
            [jnp.stack([theta.ravel() for theta in thetas], -1) for thetas in block_sets]
        )
        answers = jnp.asarray(
            devices.run(self.circuit, self._device, batch, self.readout), batch.dtype
        )
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        return [
            [column.reshape(shape) for column in split.T]
            for split, shape in zip(jnp.split(answers, ends), shapes, strict=True)
        ]

    def _sample(self, probabilities: list[Array], key: Array) -> list[Array]:
        return mean_of_shots(self.circuit.n_qubits, cast(int, self.shots))(probabilities, key)


def superposition_weights(
    superposition: Superposition, params: PyTree[Array], *, key: Array | int = 0
) -> PyTree[Array]:
    r"""What the circuit says about parameters: the weight of every coordinate.

    .. math:: w_j(\theta) = \langle Z_j \rangle_{\theta_1 \dots \theta_n}

    Args:
      superposition: circuit, coverage and device.
      params: arrays of any shape and dtype.
      key: a seed or a random key; used with `shots` only. The transforms draw the same
        sample in their first step from the same key.

    Returns:
      For each leaf an array of its shape with values in [−1, 1], zero where no weight
      acts; float32, or float64 for double precision. A complex leaf is weighed as two
      real ones and gets a complex array.

    Raises:
      TypeError: if `superposition` is not a `Superposition`, or `key` is neither a
        seed nor a threefry key.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> params = {"bias": jnp.array([0.5, -0.5, 0.0, 1.0, 0.5])}
      >>> print(qsgd.superposition_weights(qsgd.Superposition(), params)["bias"])
      [ 1. -1.  0.  0.  0.]

    References:
      Eq. 2 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918.
    """
    if not isinstance(superposition, Superposition):
        raise TypeError(f"superposition={superposition!r} must be a qsgd_jax.Superposition.")
    return superposition.weights(params, step_key(key_data(key), 0))


def _parts(path: tuple, leaf: Any, factor: Any, key: Array | None) -> list[_Part]:
    thetas, factors = real_parts(leaf), () if factor is None else real_parts(factor)
    if factor is not None and thetas:
        found = (jnp.shape(factor), len(factors))
        if found != (jnp.shape(leaf), len(thetas)):
            raise ValueError(
                f"gradient of {jax.typeof(factor)} at {jax.tree_util.keystr(path)} does not match "
                f"its parameter of {jax.typeof(leaf)}."
            )
    parts = []
    for i, theta in enumerate(thetas):
        dtype = jnp.promote_types(theta.dtype, jnp.float32)
        stream = None if key is None else leaf_key(key, path, i)
        scale = factors[i].astype(dtype) if factors else None
        parts.append(_Part(theta.astype(dtype), scale, stream))
    return parts


def _times(weights: Array, factor: Array | None) -> Array:
    return weights if factor is None else weights * factor


def real_parts(leaf: Any) -> tuple[Array, ...]:
    """A leaf as real arrays: itself, the two parts of a complex one, none of any other."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.real(leaf), jnp.imag(leaf)
    return (leaf,) if jnp.issubdtype(leaf.dtype, jnp.floating) else ()


def from_real_parts(parts: list[Array], shape: tuple[int, ...]) -> Array:
    """The inverse of `real_parts`; zeros of `shape` where there are none."""
    if not parts:
        return jnp.zeros(shape)
    return parts[0] if len(parts) == 1 else jax.lax.complex(*parts)
