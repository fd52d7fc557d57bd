"""Blocks of a leaf against flattening and slicing in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qsgd_jax._src import blocks

SHAPES = (
    (),
    (3,),
    (9,),
    (2, 3),
    (5, 7),
    (7, 1),
    (1, 7),
    (2, 3, 5),
    (2, 5, 4, 3),
    (0,),
    (3, 0),
    (2, 0, 3),
)
SIZES = (1, 3, 4)


@pytest.fixture(params=[1, 8], autouse=True)
def _devices(request, monkeypatch):
    """What a leaf may be cut into follows from the number of devices."""
    monkeypatch.setattr(jax, "device_count", lambda: request.param)


def _compiled(function, size):
    """A function of one argument, traced anew for the number of devices."""
    return jax.jit(lambda x: function(x, size))


def _leaf(shape):
    """Every coordinate another value, none of them the 0 of the padding."""
    return np.arange(1, 1 + np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def _rows_in_blocks(leaf, n):
    """`blocks` as the design words it: n adjacent rows, or n neighbours of a vector."""
    rows = np.moveaxis(np.atleast_1d(leaf), max(leaf.ndim - 2, 0), 0)
    padded = np.concatenate([rows, np.zeros((-len(rows) % n, *rows.shape[1:]), leaf.dtype)])
    return [np.moveaxis(padded[j::n], 0, max(leaf.ndim - 2, 0)) for j in range(n)]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leading_block_is_the_head_of_the_flat_leaf(shape, n):
    leaf = _leaf(shape)
    head = np.zeros(n)
    head[: min(n, leaf.size)] = leaf.ravel()[:n]
    block = _compiled(blocks.leading_block, n)(leaf)
    assert block.dtype == leaf.dtype and block.shape == (n,)
    np.testing.assert_array_equal(block, head)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_leading_block_returns_to_the_head_and_nowhere_else(shape, n):
    values = -np.arange(1, n + 1, dtype=np.float32)
    expected = np.zeros(shape, np.float32)
    covered = min(n, expected.size)
    expected.reshape(-1)[:covered] = values[:covered]
    result = _compiled(blocks.from_leading_block, shape)(values)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, expected)


def test_a_leading_block_spreads_no_nan():
    """Where a `values * mask` would, the uncovered coordinates stay zero."""
    result = blocks.from_leading_block(jnp.array([np.nan, np.inf]), (2, 2))
    np.testing.assert_array_equal(result, [[np.nan, np.inf], [0, 0]])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_are_adjacent_rows(shape, n):
    leaf = _leaf(shape)
    block = _compiled(blocks.blocks, n)(leaf)
    assert len(block) == n
    for column, expected in zip(block, _rows_in_blocks(leaf, n), strict=True):
        np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_hold_every_coordinate_once_and_return(shape, n):
    leaf = _leaf(shape)
    block = _compiled(blocks.blocks, n)(leaf)
    held = np.sort(np.concatenate([np.ravel(column) for column in block]))
    np.testing.assert_array_equal(held[held > 0], np.arange(1, leaf.size + 1))
    result = _compiled(blocks.from_blocks, shape)(block)
    assert result.dtype == jnp.float32 and result.shape == shape
    np.testing.assert_array_equal(result, leaf)


@pytest.mark.parametrize("way", ["leading", "everywhere"])
def test_blocks_keep_double_precision(float64, way):
    leaf = jnp.full((3, 3), 1 + 1e-12)
    if way == "leading":
        result = blocks.from_leading_block(blocks.leading_block(leaf, 9), leaf.shape)
    else:
        result = blocks.from_blocks(blocks.blocks(leaf, 2), leaf.shape)
    assert result.dtype == jnp.float64
    np.testing.assert_array_equal(result, leaf)


def test_no_axes_of_a_sharded_leaf_are_merged():
    """A reshape may split the block axis; merging two axes would gather a sharded leaf."""
    leaf = jnp.zeros((6, 8, 10))
    jaxpr = jax.make_jaxpr(lambda x: blocks.from_blocks(blocks.blocks(x, 4), x.shape))(leaf)
    shapes = {v.aval.shape for eqn in jaxpr.eqns for v in (*eqn.invars, *eqn.outvars)}
    assert all(shape[0] == 6 and shape[-1] == 10 for shape in shapes if shape)
    head = jax.make_jaxpr(lambda x: blocks.leading_block(x, 4))(leaf)
    split = [v.aval.shape for eqn in head.eqns for v in eqn.outvars if v.aval.size == leaf.size]
    for shape in split:
        assert tuple(x * y for x, y in zip(shape[::2], shape[1::2], strict=True)) == leaf.shape
