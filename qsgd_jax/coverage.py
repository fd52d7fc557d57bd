"""From a leaf's coordinates to blocks of `n` and back, without moving them across devices.

A set of blocks is held as `n` arrays of one shape: array j holds coordinate j of every
block. Nothing here merges axes of a leaf, which would gather it where it is sharded.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Coverage = Literal["leading", "everywhere"]


def leading_block(leaf: Float[Array, "..."], n: int) -> Float[Array, " n"]:
    """The first `n` row-major coordinates of a leaf as one block, padded with 0.

    Args:
      leaf: a real array of any rank and size.
      n: block size.

    Returns:
      A vector of `n`.

    Example:
      >>> import jax.numpy as jnp
      >>> from qsgd_jax import coverage
      >>> print(coverage.leading_block(jnp.ones((2, 1)), 4))
      [1. 1. 0. 0.]
    """
    corner = leaf[tuple(slice(0, size) for size in _corner_shape(leaf.shape, n))].ravel()[:n]
    return jnp.pad(corner, (0, n - corner.size))


def from_leading_block(block: Float[Array, " n"], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The values of a leading block at their places in a leaf of `shape`, 0 elsewhere.

    Only the leaf's first row is written out. The rest is an elementwise expression of the
    index, which XLA fuses with the optimizer's own arithmetic: a scatter into the whole leaf,
    or a pad, would double the step's time.

    Args:
      block: a vector of `n`.
      shape: the leaf's shape.

    Returns:
      An array of `shape`.
    """
    whole = shape or (1,)
    corner = _corner_shape(whole, block.size)
    values = jnp.pad(block, (0, max(0, math.prod(corner) - block.size)))[: math.prod(corner)]
    outer = next((i for i, size in enumerate(corner) if size != 1), len(whole) - 1)
    row = jnp.zeros((1,) * outer + whole[outer:], block.dtype)
    row = jax.lax.dynamic_update_slice(row, values.reshape(corner), (0,) * len(whole))
    first = jnp.bool_(True)
    for axis in range(outer):
        first &= jax.lax.broadcasted_iota(jnp.int32, whole, axis) == 0
    return jnp.where(first, row, jnp.zeros((), block.dtype)).reshape(shape)


def blocks(leaf: Float[Array, "..."], n: int) -> list[Float[Array, "..."]]:
    """All coordinates of a leaf in blocks of `n` neighbours along one axis, padded with 0.

    A block is `n` adjacent rows (the last axis but one), so that loads stay contiguous
    and both of the last axes may be sharded; a vector has its only axis. Where a shard's
    size along that axis is a multiple of `n`, no coordinate leaves its device.

    Args:
      leaf: a real array of any rank and size.
      n: block size.

    Returns:
      `n` arrays of one shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from qsgd_jax import coverage
      >>> first, second = coverage.blocks(jnp.arange(6.0).reshape(3, 2), 2)
      >>> print(first.tolist(), second.tolist())
      [[0.0, 1.0], [4.0, 5.0]] [[2.0, 3.0], [0.0, 0.0]]
    """
    leaf, axis = jnp.atleast_1d(leaf), _block_axis(leaf.shape)
    rows = leaf.shape[axis]
    if rows % n == 0:
        split = leaf.reshape((*leaf.shape[:axis], rows // n, n, *leaf.shape[axis + 1 :]))
        return [jax.lax.index_in_dim(split, j, axis + 1, keepdims=False) for j in range(n)]
    # Padding the whole leaf would copy it.
    columns = [jax.lax.slice_in_dim(leaf, min(j, rows), rows, n, axis) for j in range(n)]
    missing = [-(-rows // n) - column.shape[axis] for column in columns]
    return [
        jnp.pad(column, [(0, m if i == axis else 0) for i in range(leaf.ndim)]) if m else column
        for column, m in zip(columns, missing, strict=True)
    ]


def from_blocks(block: list[Float[Array, "..."]], shape: tuple[int, ...]):
    """The inverse of `blocks` for a leaf of `shape`; the padding's values are dropped.

    Args:
      block: `n` arrays of one shape, as `blocks` returns them.
      shape: the leaf's shape.

    Returns:
      An array of `shape`.
    """
    axis, whole = _block_axis(shape), shape or (1,)
    stacked = jnp.stack(block, axis + 1)
    rows = stacked.shape[axis] * stacked.shape[axis + 1]
    joined = stacked.reshape((*whole[:axis], rows, *whole[axis + 1 :]))
    if rows == whole[axis]:
        return joined.reshape(shape)
    return jax.lax.slice_in_dim(joined, 0, whole[axis], axis=axis).reshape(shape)


def _block_axis(shape: tuple[int, ...]) -> int:
    return max(len(shape) - 2, 0)


def _corner_shape(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The smallest corner of an array that holds its first `n` row-major coordinates."""
    corner, needed = [], n
    for size in reversed(shape):
        corner.append(min(size, needed))
        needed = -(-needed // max(size, 1))
    return tuple(reversed(corner))
