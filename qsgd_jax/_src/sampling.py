"""Random keys of steps and leaves, and joint measurements of a block's qubits."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt32

from qsgd_jax._src.checks import check_integer
from qsgd_jax._src.direct import Direct
from qsgd_jax._src.surrogate import Surrogate

_KEY_IMPLEMENTATION = "threefry2x32"


def key_data(key: Array | int) -> UInt32[Array, "2"]:
    """Raw data of a random key, from a seed, a typed threefry key or raw data.

    Typed keys in an optimizer's state break `flax.serialization`.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if not -(2**31) <= key < 2**32:  # JAX would drop the other bits
            raise ValueError(f"key={key} must be a seed of 32 bits, or a random key.")
        key = jax.random.key(key, impl=_KEY_IMPLEMENTATION)
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jnp.integer) and key.shape == ():
            key = jax.random.key(jnp.asarray(key), impl=_KEY_IMPLEMENTATION)
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(jnp.asarray(key))
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return jnp.asarray(key)
    raise TypeError(f"key={key!r} must be an integer seed or one {_KEY_IMPLEMENTATION} key.")


def step_key(data: UInt32[Array, "2"], count: Array | int) -> Array:
    """The typed random key of the step `count`."""
    return jax.random.fold_in(jax.random.wrap_key_data(data, impl=_KEY_IMPLEMENTATION), count)


def leaf_key(key: Array, path: tuple) -> Array:
    """A stream for each leaf, by its path: an index would repeat under `optax.partition`."""
    return jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))


def slice_keys(key: Array, shape: tuple[int, ...]) -> Array:
    """A stream for each slice of a leaf that stacks layers, along one axis; itself for none."""
    keys = key[None]
    for size in shape:
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(size))
        keys = keys.ravel()
    return keys


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["surrogate"], meta_fields=["shots"]
)
@dataclasses.dataclass(frozen=True)
class Sampled:
    """A surrogate of joint probabilities whose outputs are drawn anew in each step: see `sampled`.

    Attributes:
      surrogate: of the probabilities.
      shots: of how many joint measurements a weight is the mean.
    """

    surrogate: Surrogate | Direct
    shots: int

    @property
    def n_inputs(self) -> int:
        """How many inputs it has, and weights it gives."""
        return self.surrogate.n_inputs

    def sample(
        self, probabilities: list[Float[Array, "..."]], key: Array, numbers: Int32[Array, "..."]
    ) -> list[Float[Array, "..."]]:
        """The weights of blocks from the probabilities of their bitstrings; see `mean_of_shots`."""
        return mean_of_shots(self.n_inputs, self.shots)(probabilities, key, numbers)


def sampled(surrogate: Surrogate | Direct, shots: int) -> Sampled:
    r"""Weights as a device would measure them: means of joint measurements, fresh in each step.

    .. math:: w_j = \frac1k \sum_{s=1}^{k} (-1)^{b_{sj}}, \qquad b_s \sim p(b \mid \theta)

    drawn by JAX from exact probabilities, all qubits of a block together, so that their
    correlations are the circuit's. Each step, leaf and block has a stream of its own. Such weights
    have no derivative.

    Args:
      surrogate: made by `probe(..., readout="probabilities")`, or a `Direct` of that readout.
      shots: k, how many measurements a weight is the mean of.

    Returns:
      What a transformation takes in a surrogate's place.

    Raises:
      TypeError: if `surrogate` is neither.
      ValueError: if it answers something else, or was measured itself, or `shots` is not positive.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> surrogate = qsgd.probe(qsgd.Circuit(n_qubits=2), readout="probabilities")
      >>> weights = qsgd.superposition_weights(qsgd.sampled(surrogate, shots=16), jnp.zeros(2))
      >>> bool(jnp.all(jnp.abs(weights) <= 1))
      True
    """
    if not isinstance(surrogate, (Surrogate, Direct)):
        raise TypeError(f"surrogate={surrogate!r} must be a qsgd_jax.Surrogate or Direct.")
    check_integer("shots", shots, 1, 2**31 - 1)
    n = surrogate.n_inputs
    if surrogate.readout != "probabilities" or surrogate.n_outputs != 2**n:
        raise ValueError(
            f"surrogate answers {surrogate.n_outputs} values of readout={surrogate.readout!r}; "
            f"allowed are the {2**n} joint probabilities of {n} qubits, readout='probabilities'."
        )
    measured = surrogate.shots
    if measured is not None:
        raise ValueError(
            f"shots={shots} are drawn from exact probabilities; surrogate={surrogate!r} estimates "
            f"them by {measured} measurements. Allowed is one that was probed without shots."
        )
    return Sampled(surrogate, int(shots))


@functools.cache
def mean_of_shots(n: int, shots: int):
    """A function `(probabilities, key, numbers) -> weights`: the mean of joint measurements of Z.

    `numbers` are those of the blocks along the first axes. Each is a stream of its own, so that
    a block draws the same samples on every shard that holds it, however the leaf is cut.
    Each probability within 1e-4 (float32; 1e-10 in float64) below zero is rounding and
    counts as zero; anything further below makes the block's weights NaN.
    """

    @jax.custom_jvp
    def sample(probabilities: list[Array], key: Array, numbers: Array) -> list[Array]:
        shape, dtype = probabilities[0].shape, probabilities[0].dtype
        tolerance = 1e-10 if dtype == jnp.float64 else 1e-4
        steps, total = [], jnp.zeros_like(probabilities[0])
        for p in probabilities:
            total += jnp.where(p < -tolerance, jnp.nan, jnp.maximum(p, 0))
            steps.append(total)

        def shot(sums, key):
            def draw(number):
                stream = jax.random.fold_in(key, number)
                return jax.random.uniform(stream, shape[numbers.ndim :], dtype)

            level = functools.reduce(lambda f, _: jax.vmap(f), shape[: numbers.ndim], draw)(numbers)
            level *= total
            outcome = sum((level >= step).astype(jnp.int32) for step in steps[:-1])
            signs = [1 - 2 * (outcome >> (n - 1 - j) & 1) for j in range(n)]
            return [s + jnp.asarray(sign, dtype) for s, sign in zip(sums, signs, strict=True)], None

        start = [jnp.zeros_like(total)] * n
        sums, _ = jax.lax.scan(shot, start, jax.random.split(key, shots))
        return [jnp.where(jnp.isnan(total), jnp.nan, s / shots) for s in sums]

    @sample.defjvp
    def _refuse(primals, tangents):
        raise TypeError(
            f"Weights sampled with shots={shots} cannot be differentiated; shots=None can."
        )

    return jax.jit(sample)  # else its loop would be compiled in every step that is not
