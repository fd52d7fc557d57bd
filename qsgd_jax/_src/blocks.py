"""From a leaf's coordinates to blocks of `n` and back, without moving them across devices.

A set of blocks is held as `n` arrays of one shape: array j holds coordinate j of every
block. Nothing here merges axes of a leaf, which would gather it where it is sharded.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from qsgd_jax._src.xla import every_nth


def leading_block(leaf: Float[Array, "..."], n: int) -> Float[Array, " n"]:
    """The first `n` row-major coordinates of a leaf as one block, padded with 0.

    Args:
      leaf: a real array of any rank and size.
      n: block size.

    Returns:
      A vector of `n`.

    Example:
      >>> import jax.numpy as jnp
      >>> from qsgd_jax._src import blocks
      >>> print(blocks.leading_block(jnp.ones((2, 1)), 4))
      [1. 1. 0. 0.]
    """
    return corner_blocks(leaf, n)[(0,) * leaf.ndim]


def corner_blocks(leaf: Float[Array, "..."], n: int) -> Float[Array, "... n"]:
    """The leading block of each part of a leaf that may be a shard; that of the leaf is first.

    So each shard has a block at hand that it may answer for, and asks no other for it.

    Args:
      leaf: a real array of any rank and size.
      n: block size.

    Returns:
      Vectors of `n`, padded with 0, behind an axis for each axis of the leaf.
    """
    corner = _corner_shape(leaf.shape, n)
    parts = _parts(leaf.shape, corner)
    split = leaf.reshape(_paired(parts, _quotients(leaf.shape, parts)))
    corners = split[_paired([slice(None)] * leaf.ndim, [slice(0, size) for size in corner])]
    ordered = corners.transpose(*range(0, split.ndim, 2), *range(1, split.ndim, 2))
    block = ordered.reshape((*parts, math.prod(corner)))[..., :n]
    return jnp.pad(block, [(0, 0)] * leaf.ndim + [(0, n - block.shape[-1])])


def from_leading_block(block: Float[Array, "... n"], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The values of a leading block at their places in a leaf of `shape`, 0 elsewhere.

    Only the first row of a shard is written out. The rest is an elementwise expression of the
    index, which XLA fuses with the optimizer's own arithmetic: a scatter into the whole leaf,
    or a pad, would double the step's time.

    Args:
      block: a vector of `n`, or one for each part of the leaf as `corner_blocks` returns them,
        of which the first counts.
      shape: the leaf's shape.

    Returns:
      An array of `shape`.
    """
    whole, n = shape or (1,), block.shape[-1]
    corner = _corner_shape(whole, n)
    parts = _parts(whole, corner)
    rank, held, sizes = len(whole), math.prod(corner), _quotients(whole, parts)
    values = jnp.broadcast_to(block, (*parts, n))
    values = jnp.pad(values, [(0, 0)] * rank + [(0, max(0, held - n))])[..., :held]
    values = values.reshape((*parts, *corner))
    values = values.transpose([axis for i in range(rank) for axis in (i, rank + i)])
    outer = next((i for i, size in enumerate(corner) if size != 1), rank - 1)
    row = jnp.zeros(_paired(parts, (1,) * outer + sizes[outer:]), block.dtype)
    row = jax.lax.dynamic_update_slice(row, values, (0,) * (2 * rank))
    first = jnp.bool_(True)
    for axis in (*range(0, 2 * rank, 2), *range(1, 2 * outer, 2)):
        first &= jax.lax.broadcasted_iota(jnp.int32, _paired(parts, sizes), axis) == 0
    return jnp.where(first, row, jnp.zeros((), block.dtype)).reshape(shape)


def blocks(leaf: Float[Array, "..."], n: int, *, borrow: bool = True) -> list[Float[Array, "..."]]:
    """All coordinates of a leaf in blocks of `n` neighbours along one axis, padded with 0.

    A block is `n` adjacent rows (the last axis but one), so that loads stay contiguous
    and both of the last axes may be sharded; a vector has its only axis. Where a shard's
    size along that axis is a multiple of `n`, no coordinate leaves its device; elsewhere
    a block across the border of two shards is held by both, and they exchange `n - 1` rows.

    Args:
      leaf: a real array of any rank and size.
      n: block size.
      borrow: whether shards exchange rows; otherwise those of another shard are 0.

    Returns:
      `n` arrays of one shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from qsgd_jax._src import blocks
      >>> first, second = blocks.blocks(jnp.arange(6.0).reshape(3, 2), 2)
      >>> print(first.tolist(), second.tolist())
      [[0.0, 1.0], [4.0, 5.0]] [[2.0, 3.0], [0.0, 0.0]]
    """
    if n == 1:  # each coordinate is a block
        return [leaf]
    leaf, axis = jnp.atleast_1d(leaf), _block_axis(leaf.shape)
    if (cut := _cut(leaf.shape[axis], n)) is not None:
        leaf, axis = cut.split(leaf, axis, borrow), axis + 2
    rows = leaf.shape[axis]
    if rows % n == 0:
        split = leaf.reshape((*leaf.shape[:axis], rows // n, n, *leaf.shape[axis + 1 :]))
        return [jax.lax.index_in_dim(split, j, axis + 1, keepdims=False) for j in range(n)]
    # Padding the whole leaf would copy it.
    columns = [every_nth(leaf, n, axis, (j, rows)) for j in range(n)]
    missing = [-(-rows // n) - column.shape[axis] for column in columns]
    return [
        jnp.pad(column, [(0, m if i == axis else 0) for i in range(leaf.ndim)]) if m else column
        for column, m in zip(columns, missing, strict=True)
    ]


def from_blocks(block: list[Float[Array, "..."]], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The inverse of `blocks` for a leaf of `shape`; the padding's values are dropped.

    Args:
      block: `n` arrays of one shape, as `blocks` returns them, or the first `n_filled` of them.
      shape: the leaf's shape.

    Returns:
      An array of `shape`.
    """
    if len(block) == 1:
        return block[0].reshape(shape)
    axis, whole = _block_axis(shape), shape or (1,)
    cut = _cut(whole[axis], len(block))
    inner = axis if cut is None else axis + 2
    stacked = jnp.stack(block, inner + 1)
    rows = stacked.shape[inner] * stacked.shape[inner + 1]
    joined = stacked.reshape((*stacked.shape[:inner], rows, *whole[axis + 1 :]))
    if cut is not None:
        return cut.join(joined, axis).reshape(shape)
    if rows == whole[axis]:
        return joined.reshape(shape)
    return jax.lax.slice_in_dim(joined, 0, whole[axis], axis=axis).reshape(shape)


def block_numbers(shape: tuple[int, ...], n: int) -> Int32[Array, "..."]:
    """The place of every block among those of a leaf, in the layout of `blocks`.

    A block across the border of two groups of rows is held twice, under one number.

    Args:
      shape: the leaf's shape.
      n: block size.

    Returns:
      An array of the first axes of each of `blocks`, up to that of the blocks.
    """
    if n == 1 and not shape:
        return jnp.int32(0)
    axis, whole = _block_axis(shape), shape or (1,)
    total, cut = -(-whole[axis] // n), _cut(whole[axis], n)
    held = (total,) if cut is None else (cut.strips, cut.groups, cut.held // n)

    def index(i: int) -> Array:
        return jax.lax.broadcasted_iota(jnp.int32, (*whole[:axis], *held), i)

    numbers = index(axis)
    if cut is not None:
        first = (index(axis) * cut.groups + index(axis + 1)) * cut.size // n
        numbers = first + index(axis + 2)
    for i in range(axis):
        numbers += index(i) * (total * math.prod(whole[i + 1 : axis]))
    return numbers


def n_filled(shape: tuple[int, ...], n: int) -> int:
    """How many of a leaf's `n` arrays hold coordinates: the others are padding throughout.

    Args:
      shape: the leaf's shape.
      n: block size.

    Returns:
      `n`, or the number of the leaf's rows if that is smaller, but at least 1.
    """
    return max(1, min(n, (shape or (1,))[_block_axis(shape)]))


class _Cut(NamedTuple):
    """Rows in strips, as fine as blocks allow, of groups, as fine as shards can be.

    Shards that are whole strips hold whole blocks. In a strip blocks lie across the borders of
    groups, so that a group borrows its neighbours' rows which its first and last block need.
    XLA turns this shift of a few rows into a halo, where it would gather a sharded leaf that
    it is told to cut into blocks.

    Attributes:
      n: block size.
      strips: number of strips.
      groups: number of groups of a strip.
      size: number of rows of a group.
    """

    n: int
    strips: int
    groups: int
    size: int

    @property
    def offsets(self) -> np.ndarray:
        """Rows from the start of a group's first block to its first row."""
        return np.arange(self.groups) * self.size % self.n

    @property
    def held(self) -> int:
        """Rows of all blocks of a group: as many as the one with the most needs."""
        return -(-(self.size + int(self.offsets.max())) // self.n) * self.n

    def split(self, leaf: Float[Array, "..."], axis: int, borrow: bool) -> Float[Array, "..."]:
        """`(..., rows, ...)` to `(..., strips, groups, held, ...)`, all blocks of each group."""
        group, row, halo = axis + 1, axis + 2, self.n - 1
        cut = (self.strips, self.groups, self.size)
        own = leaf.reshape((*leaf.shape[:axis], *cut, *leaf.shape[axis + 1 :]))
        spare = max(0, self.held - self.size - halo)
        if borrow:
            last = jax.lax.slice_in_dim(own, self.size - halo, self.size, axis=row)
            first = jax.lax.slice_in_dim(own, 0, halo, axis=row)
            before = _padded(last, {group: (1, -1)})
            after = _padded(first, {group: (-1, 1), row: (0, spare)})
            wide = jnp.concatenate([before, own, after], row)
        else:
            wide = _padded(own, {row: (halo, halo + spare)})
        return self._window(wide, row, halo - self.offsets, self.held)

    def join(self, held: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
        """The inverse of `split`: each group's own rows."""
        own = self._window(held, axis + 2, self.offsets, self.size)
        return own.reshape((*own.shape[:axis], -1, *own.shape[axis + 3 :]))

    def _window(
        self, leaf: Float[Array, "..."], row: int, starts: np.ndarray, size: int
    ) -> Float[Array, "..."]:
        """`size` rows of each group from its start on, elementwise: a gather is not sharded."""
        windows = [
            (starts == start, jax.lax.slice_in_dim(leaf, start, start + size, axis=row))
            for start in np.unique(starts).tolist()
        ]
        (_, chosen), *others = windows
        for here, window in others:
            here = here.reshape((-1,) + (1,) * (leaf.ndim - row))
            chosen = jnp.where(here, window, chosen)
        return chosen


def _cut(rows: int, n: int) -> _Cut | None:
    """How to cut a leaf's rows, where a shard of them may not be a multiple of `n`."""
    parts = _numbers_of_parts(rows, n)
    strips = max(k for k in parts if k == 1 or rows // k % n == 0)
    groups = max(k for k in parts if k % strips == 0) // strips
    return _Cut(n, strips, groups, rows // (strips * groups)) if groups > 1 else None


def _numbers_of_parts(size: int, least: int) -> list[int]:
    """All numbers of shards, of at least `least`, that an axis may be cut into."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = math.prod(mesh.shape[name] for name in mesh.manual_axes)
    devices = jax.device_count() if mesh.empty else mesh.size // manual
    most = max(1, min(devices, size // max(least, 1)))
    return [k for k in range(1, most + 1) if devices % k == size % k == 0]


def _parts(shape: tuple[int, ...], corner: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(_numbers_of_parts(*pair)) for pair in zip(shape, corner, strict=True))


def _quotients(shape: tuple[int, ...], parts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size // part for size, part in zip(shape, parts, strict=True))


def _paired(outer, inner) -> tuple:
    return tuple(entry for pair in zip(outer, inner, strict=True) for entry in pair)


def _padded(leaf: Float[Array, "..."], widths: dict[int, tuple[int, int]]) -> Float[Array, "..."]:
    """A leaf with zeros added to some axes, or rows cut off where a width is negative."""
    padding = [(*widths.get(axis, (0, 0)), 0) for axis in range(leaf.ndim)]
    return jax.lax.pad(leaf, jnp.zeros((), leaf.dtype), padding)


def _block_axis(shape: tuple[int, ...]) -> int:
    return max(len(shape) - 2, 0)


def _corner_shape(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The smallest corner of an array that holds its first `n` row-major coordinates."""
    corner, needed = [], n
    for size in reversed(shape):
        corner.append(min(size, needed))
        needed = -(-needed // max(size, 1))
    return tuple(reversed(corner))
