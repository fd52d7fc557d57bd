"""Detours around what XLA does badly, each with the jax version it was seen on.

`python -m benchmarks.step_time` measures the first two again, `python -m benchmarks.attention_time`
the third. `tests/test_mesh.py` fails without the fourth where XLA still does what it did.
"""

import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def in_one_loop(arrays: list[Array]) -> list[Array]:
    """Arrays of one shape, unchanged, but computed together so that they share their sines.

    XLA:CPU gives each of them a loop of its own, which repeats all that it needs. Its only
    loop of several outputs is a reduction of several operands; this one adds a zero to each.
    (jax 0.10.2)
    """
    if len(arrays) == 1:
        return arrays
    first = jax.lax.broadcasted_iota(jnp.int32, (2,) + (1,) * arrays[0].ndim, 0) == 0
    zeros = tuple(jnp.zeros((), array.dtype) for array in arrays)
    terms = tuple(
        jnp.where(first, array[None], zero) for array, zero in zip(arrays, zeros, strict=True)
    )
    return list(jax.lax.reduce(terms, zeros, lambda x, y: tuple(map(operator.add, x, y)), (0,)))


in_one_loop.defjvp(lambda primals, tangents: (in_one_loop(*primals), *tangents))


def apart(rows: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """An array, unchanged, but not computed in the loop that uses it: a sum of one term.

    XLA fuses no reduction into a larger loop. It would else read the first coordinates of a leaf
    in the loop that overwrites the donated leaf, and copy the leaf before. (jax 0.10.2)
    """
    diagonal = jnp.eye(rows.shape[-1], dtype=bool)
    diagonal = diagonal.reshape((1,) * (rows.ndim - 1) + diagonal.shape)
    return jnp.sum(jnp.where(diagonal, rows[..., None, :], jnp.zeros((), rows.dtype)), axis=-1)


def sum_to(array: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The sum over the axes that broadcasting from `shape` would have added.

    First over the last of them: XLA:CPU would add a million terms one by one, which costs two
    digits, and makes one sum of two that follow each other. (jax 0.7.1)
    """
    lead = array.ndim - len(shape)
    kept = [lead + i for i, size in enumerate(shape) if size > 1]
    summed = [i for i in range(array.ndim) if i not in kept]
    rows = jax.lax.optimization_barrier(array.sum(summed[-1:], keepdims=True))
    return rows.sum(summed[:-1]).reshape(shape)


def every_nth(
    leaf: Float[Array, "..."], n: int, axis: int, borders: tuple[int, int]
) -> Float[Array, "..."]:
    """Each n-th entry of an axis between two borders.

    Of a sharded axis that is shorter than the stride, XLA takes the wrong entries. (jax 0.10.2)
    """
    start, stop = borders
    if leaf.shape[axis] <= n:
        n, stop = 1, min(stop, start + 1)
    return jax.lax.slice_in_dim(leaf, min(start, leaf.shape[axis]), stop, n, axis)
