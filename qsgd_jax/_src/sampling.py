"""Random keys of steps and leaves, and joint measurements of a block's qubits."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

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
            return [s + 1 - 2 * (outcome >> (n - 1 - j) & 1) for j, s in enumerate(sums)], None

        start = [jnp.zeros_like(total)] * n
        sums, _ = jax.lax.scan(shot, start, jax.random.split(key, shots))
        return [jnp.where(jnp.isnan(total), jnp.nan, s / shots) for s in sums]

    @sample.defjvp
    def _refuse(primals, tangents):
        raise TypeError(
            f"Weights sampled with shots={shots} cannot be differentiated; shots=None can."
        )

    return jax.jit(sample)  # else its loop would be compiled in every step that is not
