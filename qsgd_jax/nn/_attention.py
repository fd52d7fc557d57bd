"""Attention whose weights are the softmax's plus what a circuit says of each score."""

import functools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float

from qsgd_jax._src import devices, harmonics
from qsgd_jax._src.checks import check_integer
from qsgd_jax._src.circuit import Circuit, Device, Readout

AttentionReadout = Literal["amplitude", "probability"]
"""What is read off the first `n_qubits` basis states: Re ψ_k, or |ψ_k|²."""

_ANSWERS: dict[str, Readout] = {"amplitude": "amplitudes", "probability": "probabilities"}
_MOST_QUBITS = 20  # 2^20 amplitudes of each of n L + 1 settings are held at once
_MOST_ROTATIONS = 128  # each is a harmonic, of which every score computes all


class QuantumAttention(nnx.Module):
    r"""Dot-product attention plus a circuit run on every score; an `attention_fn` for Flax.

    .. math::
      \text{Attention} = \Big(\operatorname{softmax}\frac{QK^\top}{\sqrt{d_k}}
        + \Phi(QK^\top)\Big) V, \qquad
      \Phi(x) = \sum_{k<n} \operatorname{Re} \psi_k(x), \qquad
      |\psi(x)\rangle = \prod_{l=1}^{L} \Big[ C \prod_{j=1}^{n}
        R_Z(\phi_{lj}) R_Y(x + \theta_{lj}) \Big] H^{\otimes n} |0\rangle

    with C a chain of CNOTs between neighbours, and `Re ψ_k` replaced by `|ψ_k|²` if
    `readout="probability"`. Φ is zero wherever the mask forbids attention, and dropout acts on
    the sum.

    Φ is one function of one scalar, a trigonometric polynomial of degree nL in x/2 (in x for
    probabilities). So a forward pass runs nL + 1 circuits (2nL + 1), whatever the batch, the
    heads and the length, and evaluates the polynomial at each score: exactly, in float32 or
    better, also where the inputs are bfloat16. Reverse-mode derivatives are exact, in the angles
    too; those of a device that measures are measured by the parameter-shift rule. `jax.jvp` is
    refused, but not on top of `jax.grad`, as in `jax.hessian`.

    Args:
      n_qubits: n, the width of the circuit, and how many basis states are read.
      depth: L, the number of layers.
      readout: `"amplitude"` or `"probability"`.
      num_heads: a circuit for each head; `None` shares one among all.
      device: a PennyLane device name or instance; `"default.qubit"` becomes part of the
        compiled step, any other is asked by one callback a pass. A name can be pickled.
      shots: how often the device measures each circuit of each pass, with
        `readout="probability"`; `None` for its exact answers, or as often as the instance says.
        What is measured is the device's chance: no seed repeats it. The module then keeps a
        stream of keys whatever else does, and `phi` and `spectrum` take from it too.
      angle_init: initializer of the angles. By default θ is uniform in [−π, π), and φ zero but
        for the last layer's first, which is π: then every amplitude is imaginary, to the
        rounding of π in `param_dtype`, and the layer begins as plain attention. (Probabilities
        cannot vanish: there φ is uniform, too.)
        `nnx.initializers.uniform(2 * np.pi)` draws all at random.
      param_dtype: of the angles.
      rngs: source of the angles (`params`) and, with `shots`, of a stream (`shots`) by which
        JAX tells one pass from the next.

    Attributes:
      angles: θ, φ in radians, `nnx.Param` of shape `(depth, n_qubits, 2)`, after an axis of
        `num_heads` if there is a circuit for each head.

    Raises:
      TypeError: if an integer argument is not an integer, `device` no device, or
        `param_dtype` not floating.
      ValueError: if an argument is out of range, or the device cannot answer the readout.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from qsgd_jax.nn import QuantumAttention
      >>> rngs = nnx.Rngs(0)
      >>> attention = nnx.MultiHeadAttention(
      ...     num_heads=4, in_features=64, decode=False, rngs=rngs,
      ...     attention_fn=QuantumAttention(n_qubits=4, depth=2, rngs=rngs))
      >>> attention(jnp.ones((2, 8, 64))).shape
      (2, 8, 64)

    References:
      Eq. 3-5 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918. It leaves open where the score
      enters and which part of ψ_k is meant; that each rotation is turned by it, and the real
      part, are our reading.
    """

    def __init__(
        self,
        n_qubits: int = 4,
        depth: int = 2,
        *,
        readout: AttentionReadout = "amplitude",
        num_heads: int | None = None,
        device: Any = "default.qubit",
        shots: int | None = None,
        angle_init: nnx.Initializer | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_integer("n_qubits", n_qubits, 1, _MOST_QUBITS)
        check_integer("depth", depth, 1, _MOST_ROTATIONS // n_qubits)
        if readout not in get_args(AttentionReadout):
            allowed = " or ".join(map(repr, get_args(AttentionReadout)))
            raise ValueError(f"readout={readout!r} must be {allowed}.")
        if num_heads is not None:
            check_integer("num_heads", num_heads, 1, 2**16)
        if shots is not None:
            check_integer("shots", shots, 1, 2**31 - 1)
        if not jnp.issubdtype(param_dtype, jnp.floating):
            raise TypeError(f"param_dtype={param_dtype!r} must be a floating type.")
        if not isinstance(device, (str, Device)):
            raise TypeError(f"device={device!r} must be a PennyLane device or the name of one.")
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"rngs={rngs!r} must be flax.nnx.Rngs(...).")
        self.n_qubits: int = n_qubits
        self.depth: int = depth
        self.readout: AttentionReadout = readout
        self.num_heads: int | None = num_heads
        self.device: Any = device
        self.shots: int | None = self._checked_shots(shots)
        shape = (*(() if num_heads is None else (num_heads,)), depth, n_qubits, 2)
        init = angle_init or (_silent if readout == "amplitude" else _uniform)
        self.angles: nnx.Param[Any] = nnx.Param(init(rngs.params(), shape, param_dtype))
        if self.angles.shape != shape:
            raise ValueError(f"angle_init gave angles of shape {self.angles.shape}, not {shape}.")
        self.rngs: Any = nnx.data(None) if self.shots is None else rngs.shots.fork()

    def _checked_shots(self, shots: int | None) -> int | None:
        """How often the device measures, once it is known that it can answer the readout."""
        device = devices.opened(self.device, self.n_qubits)
        circuit = Circuit(self.n_qubits, self.depth, self.depth)
        if self.readout == "amplitude" and (shots or device.shots or devices.measures_only(device)):
            raise ValueError(
                f"readout='amplitude': {device.name!r} measures, and no measurement tells an "
                "amplitude; allowed is readout='probability'."
            )
        shots = devices.n_shots(circuit, device, None if shots is None else int(shots))
        devices.try_out(circuit, device, shots, _ANSWERS[self.readout])
        return shots

    @property
    def degree(self) -> int:
        """The degree of Φ in x/2, one less than the circuits that a pass runs."""
        return self.n_qubits * self.depth * (1 if self.readout == "amplitude" else 2)

    def coefficients(self, dtype: DTypeLike = jnp.float32) -> Float[Array, "2 frequencies ..."]:
        r"""The Fourier coefficients of Φ; this runs the circuits.

        .. math:: \Phi(x) = \sum_\nu a_\nu \cos \nu x + b_\nu \sin \nu x

        Args:
          dtype: float32 or float64, that of the coefficients and of the simulation in JAX.

        Returns:
          a and b for each of `frequencies`, shape `(2, frequencies)`, and an axis of `num_heads`
          if there is a circuit for each head.
        """
        key = None if self.rngs is None else jax.random.key_data(self.rngs())
        angles, device = self.angles[...].astype(dtype), devices.opened(self.device, self.n_qubits)
        return _coefficients(angles, key, device, self.readout, self.shots)

    @property
    def frequencies(self) -> np.ndarray:
        """The frequencies ν of Φ in radians⁻¹, lowest first."""
        return harmonics.frequencies(self.degree)

    def spectrum(self) -> Float[Array, "frequencies ..."]:
        r"""How strong each of Φ's `frequencies` is, to look at.

        .. math:: \sqrt{a_\nu^2 + b_\nu^2}

        Returns:
          Shape `(frequencies,)`, and an axis of `num_heads` if there is a circuit for each head.

        Example:
          >>> from flax import nnx
          >>> from qsgd_jax.nn import QuantumAttention
          >>> attention = QuantumAttention(n_qubits=1, depth=1, rngs=nnx.Rngs(0))
          >>> attention.frequencies, attention.spectrum().shape
          (array([0.5]), (1,))
        """
        return jnp.hypot(*self.coefficients())

    def phi(self, scores: Float[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        """Φ at any scores, to look at: `plot(x, attention.phi(x))`.

        Args:
          scores: unscaled scores QKᵀ in radians, float32 or float64, of any shape.

        Returns:
          Φ of the same shape and dtype, after an axis of `num_heads` if there is a circuit for
          each head.

        Example:
          >>> import jax.numpy as jnp
          >>> from flax import nnx
          >>> from qsgd_jax.nn import QuantumAttention
          >>> attention = QuantumAttention(num_heads=4, rngs=nnx.Rngs(0))
          >>> attention.phi(jnp.linspace(-3, 3, 100)).shape
          (4, 100)
        """
        scores = jnp.asarray(scores)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        table = self.coefficients(scores.dtype)
        return harmonics.evaluate(
            table.reshape(table.shape + (1,) * scores.ndim),
            self.degree,
            jnp.broadcast_to(scores, table.shape[2:] + scores.shape),
        )

    def __call__(
        self,
        query: Float[Array, "*batch queries heads features"],
        key: Float[Array, "*batch keys key_heads features"],
        value: Float[Array, "*batch keys key_heads channels"],
        *,
        mask: Bool[ArrayLike, "*#batch #heads #queries #keys"] | None = None,
        dropout_rng: Array | None = None,
        dropout_rate: float = 0.0,
        broadcast_dropout: bool = True,
        deterministic: bool = False,
        dtype: DTypeLike | None = None,
        precision: jax.lax.PrecisionLike = None,
        module: nnx.Module | None = None,
        is_causal: bool = False,
    ) -> Float[Array, "*batch queries heads channels"]:
        """Attend, with the arguments by which `nnx.MultiHeadAttention` calls its `attention_fn`.

        A score that is not finite, where it is allowed, makes its query's output NaN, as NaN and
        +∞ do in plain attention; −∞ does as well here. Forbid by the mask.

        Args:
          query: float array; the features are split among heads already.
          key: as many heads, or a divisor: then several query heads share one.
          value: as `key`, of any number of channels.
          mask: true where attention is allowed.
          dropout_rng: key of the dropout.
          dropout_rate: share of the weights that is dropped.
          broadcast_dropout: drop the same weights throughout batch and heads.
          deterministic: drop nothing.
          dtype: of the computation, by default that of the inputs; Φ is in float32 at least.
          precision: of the matrix products; the error of a score is one of Φ's argument.
          module: sows `attention_weights` (the sum) and `quantum_attention_weights` (Φ).
          is_causal: forbid attention to later positions.

        Returns:
          One vector for each query and head.

        Raises:
          ValueError: if the shapes do not fit each other or the circuits' number, or a dropout
            has no key.
        """
        self._check_shapes(query, key, value)
        query, key, value = promote_dtype((query, key, value), dtype=dtype)
        dtype = query.dtype
        if (repeats := query.shape[-2] // key.shape[-2]) > 1:
            key, value = (jnp.repeat(x, repeats, axis=-2) for x in (key, value))
        wide, unit = jnp.promote_types(dtype, jnp.float32), math.sqrt(query.shape[-1])
        product = functools.partial(
            jnp.einsum, "...qhd,...khd->...hqk", precision=precision, preferred_element_type=wide
        )
        if dtype == wide:  # XLA:CPU would spread a factor of the scores out to an array
            scores, factor = product(query / jnp.asarray(unit, dtype), key), unit
            scaled = scores
        else:  # while Φ should know of no rounding but that of the inputs
            scores, factor = product(query, key), 1.0
            scaled = scores / jnp.asarray(unit, wide)
        allowed = _allowed(mask, is_causal, scores)
        if mask is not None or is_causal:
            scaled = jnp.where(allowed, scaled, jnp.finfo(wide).min)
        softmax = jax.nn.softmax(scaled)
        table = self.coefficients(wide)
        table = table.reshape(table.shape + (1,) * (2 if self.num_heads else 0))
        weights = harmonics.add_where(table, self.degree, factor, scores, softmax, allowed)
        if module is not None:
            module.sow(nnx.Intermediate, "attention_weights", weights.astype(dtype))
            module.sow(nnx.Intermediate, "quantum_attention_weights", weights - softmax)
        if dropout_rate > 0 and not deterministic:
            shape = scores.shape[-2:] if broadcast_dropout else scores.shape
            if dropout_rng is None:
                raise ValueError(f"dropout_rate={dropout_rate} needs a dropout_rng.")
            kept = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, shape)
            weights = jnp.where(kept, weights / (1 - dropout_rate), 0)
        return jnp.einsum(
            "...hqk,...khd->...qhd", weights.astype(dtype), value, precision=precision
        )

    def _check_shapes(self, query, key, value):
        shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
        if not query.ndim == key.ndim == value.ndim >= 3 or not (
            query.shape[:-3] == key.shape[:-3] == value.shape[:-3]
            and key.shape[:-1] == value.shape[:-1]
            and query.shape[-1] == key.shape[-1]
        ):
            raise ValueError(
                f"The shapes do not fit: {shapes}; allowed are (*batch, queries, heads, features), "
                "(*batch, keys, key_heads, features) and (*batch, keys, key_heads, channels)."
            )
        heads, key_heads = query.shape[-2], key.shape[-2]
        if heads % key_heads:
            raise ValueError(f"The {key_heads} heads of key must divide query's {heads}: {shapes}.")
        if self.num_heads not in (None, heads):
            raise ValueError(f"num_heads={self.num_heads} circuits; query has {heads} heads.")


def _uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -np.pi, np.pi)


def _silent(key, shape, dtype):
    angles = _uniform(key, shape, dtype).at[..., 1].set(0)
    return angles.at[..., -1, 0, 1].set(np.pi)


@functools.partial(jax.jit, static_argnames=("device", "readout", "shots"))
def _coefficients(angles, key, device, readout, shots):
    *heads, depth, n_qubits, _ = angles.shape
    degree = n_qubits * depth * (1 if readout == "amplitude" else 2)
    settings = harmonics.settings(degree)[:, None].repeat(n_qubits, axis=1)

    def values(angles):
        # RY(x) before RY(θ) is RY(x + θ): the score is encoded anew before each layer.
        circuit = Circuit(n_qubits, depth, depth, angles=angles)
        answers = devices.run(circuit, device, -settings / np.pi, _ANSWERS[readout], shots, key)
        return answers[:, :n_qubits].sum(1)

    found = jax.vmap(values)(angles) if heads else values(angles)
    return harmonics.coefficients(found, degree)


def _allowed(mask, is_causal, scores):
    """Where attention is allowed; without any mask, wherever the softmax is not NaN anyway."""
    shape = scores.shape if mask is None else np.shape(mask)
    try:
        fits = np.broadcast_shapes(shape, scores.shape) == scores.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask has shape {shape}; allowed is what broadcasts to {scores.shape}.")
    if not is_causal:
        return scores == scores if mask is None else jnp.asarray(mask, bool)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return causal if mask is None else causal & jnp.asarray(mask, bool)
