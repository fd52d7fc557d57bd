"""From parameters to superposition weights, and what these make of a tree of updates."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsgd_jax._src.coverage import Answer, Coverage, Leading
from qsgd_jax._src.direct import Direct
from qsgd_jax._src.sampling import Sampled, leaf_key, slice_keys
from qsgd_jax._src.surrogate import Surrogate
from qsgd_jax._src.trees import check_gradients, is_none, is_number, wider
from qsgd_jax._src.typing import PyTree

Weigher = Surrogate | Sampled | Direct
"""What answers the weights of blocks."""


class _Leaf(NamedTuple):
    """A real leaf, what its weights act on, and how many of its axes stack layers."""

    theta: Float[Array, "*shape"]
    x: Float[Array, "*shape"] | None
    key: Array | None
    stacked: int


class _Complex(NamedTuple):
    """A complex leaf as two real ones, as `optax.contrib.split_real_and_imaginary` has them."""

    real: Array
    imaginary: Array


def weigh(
    weigher: Weigher,
    coverage: Coverage,
    params: PyTree,
    x: PyTree | None,
    strength: Float[Array, ""] | None = None,
    key: Array | None = None,
) -> PyTree:
    r"""What the weights of all parameters make of a tree.

    .. math:: w(\theta) \odot x, \qquad\text{with a strength } x \odot (1 + \lambda w(\theta))

    Args:
      weigher: answers the weights of blocks.
      coverage: which coordinates have one.
      params: θ, a tree of arrays, and of whatever x has no leaf for.
      x: a tree of arrays of the same shapes; `None` for the weights themselves.
      strength: λ, a scalar.
      key: the step's random key, for sampled weights.

    Returns:
      A tree like x, each leaf in the wider of the dtypes of its weights and of x; `None` where
      nothing is weighed: a leaf that is missing, or is not a real or complex number.

    Raises:
      ValueError: if the trees or their shapes differ, one of two leaves is complex, or a leaf has
        fewer axes than stack layers.
    """
    thetas = _split(params)
    stacks = jax.tree.map(
        lambda n, part: jax.tree.map(lambda _: n, part), coverage.stacks(params), thetas
    )
    try:
        leaves = jax.tree_util.tree_map_with_path(
            functools.partial(_leaf, key=key),
            thetas if x is None else _split(x),
            thetas,
            stacks,
            is_leaf=is_none,
        )
    except ValueError:
        if x is not None:
            check_gradients(x, params)
        raise
    leaves = leaves if x is not None else _without_x(leaves)
    together = isinstance(_source(weigher), Direct) or (
        isinstance(coverage, Leading) and not (isinstance(weigher, Surrogate) and weigher.sparse)
    )
    weighed = (_together if together else _one_by_one)(weigher, coverage.plain, leaves, strength)
    return jax.tree.map(_merged, weighed, is_leaf=_is_complex)


def _split(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda z: _Complex(jnp.real(z), jnp.imag(z)) if is_number(z, jnp.complexfloating) else z,
        tree,
    )


def _is_complex(leaf: Any) -> bool:
    return isinstance(leaf, _Complex)


def _merged(z: Any) -> Any:
    if not isinstance(z, _Complex):
        return z
    return None if z.real is None else jax.lax.complex(*z)


def _leaf(path: tuple[Any, ...], x: Any, theta: Any, stacked: int, key: Any) -> _Leaf | None:
    if _is_complex(theta) and is_number(x, jnp.floating):
        raise ValueError(  # the other way round the trees differ
            f"update of {jax.typeof(x)} at {jax.tree_util.keystr(path)!r} does not match its "
            f"parameter of {jax.typeof(theta.real)}: one is complex."
        )
    if not (is_number(x, jnp.floating) and is_number(theta, jnp.floating)):
        return None
    if jnp.shape(x) != jnp.shape(theta):
        raise ValueError(
            f"update of {jax.typeof(x)} at {jax.tree_util.keystr(path)!r} does not match its "
            f"parameter of {jax.typeof(theta)}."
        )
    if stacked > jnp.ndim(theta):
        raise ValueError(
            f"stacked_axes={stacked} at {jax.tree_util.keystr(path)!r}: allowed are at most the "
            f"{jnp.ndim(theta)} axes of the leaf."
        )
    return _Leaf(theta, x, None if key is None else leaf_key(key, path), stacked)


def _is_leaf(leaf: Any) -> bool:
    return isinstance(leaf, _Leaf)


def _without_x(leaves: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf._replace(x=None), leaves, is_leaf=_is_leaf)


def _source(weigher: Weigher) -> Surrogate | Direct:
    return weigher.surrogate if isinstance(weigher, Sampled) else weigher


def _is_traced(weigher: Weigher) -> bool:
    source = _source(weigher)
    return isinstance(source, Surrogate) and source.traced


def _one_by_one(
    weigher: Weigher, coverage: Coverage, leaves: PyTree, strength: Array | None
) -> PyTree:
    """Each leaf by itself: sharded as it is, and one body for all leaves of one shape."""
    traced = _is_traced(weigher)
    of_leaf = _of_leaf_traced if traced else _of_leaf_known

    def weigh_leaf(leaf: _Leaf) -> Array:
        def weighed(given: Weigher | None, *arrays: Any) -> Array:
            return of_leaf(given or weigher, coverage, leaf.stacked, *arrays)

        sharding = jax.typeof(leaf.theta).sharding
        if sharding.mesh.explicit_axes:  # every slice would need a sharding; XLA knows better
            weighed = cast(Any, jax.sharding.auto_axes(weighed, out_sharding=sharding))
        # What is traced outside must not be closed over there.
        return weighed(weigher if traced else None, leaf.theta, leaf.x, strength, leaf.key)

    return jax.tree.map(weigh_leaf, leaves, is_leaf=_is_leaf)


def _of_leaf(
    weigher: Weigher,
    coverage: Coverage,
    stacked: int,
    theta: Float[Array, "*shape"],
    x: Float[Array, "*shape"] | None,
    strength: Float[Array, ""] | None,
    key: Array | None,
    outputs: list[Array] | None = None,
) -> Float[Array, "*shape"]:
    """One leaf; `outputs` are those of the circuit at its blocks, where they are known already."""
    if stacked:  # as many tensors as the first axis is long
        inner = functools.partial(_of_leaf, weigher, coverage, stacked - 1)
        keys = None if key is None else slice_keys(key, (len(theta),))
        return jax.vmap(inner, (0, 0, None, 0, 0))(theta, x, strength, keys, outputs)
    theta = _as_weights(theta)
    if x is not None:
        x = jnp.asarray(x, wider(theta.dtype, jnp.result_type(x)))
        strength = None if strength is None else strength.astype(x.dtype)
    n, source = weigher.n_inputs, _source(weigher)
    line = None
    if isinstance(weigher, Surrogate) and outputs is None:
        line = weigher.elementwise
        source = weigher if line is None else line

    def answer(thetas: list[Array]) -> list[Array]:
        found = source.evaluate(thetas) if outputs is None else outputs
        if not isinstance(weigher, Sampled):
            return found
        return weigher.sample(found, cast(Array, key), coverage.numbers(theta.shape, n))

    return coverage.weigh(Answer(n, answer, line is not None), theta, x, strength)


def _as_weights(theta: Any) -> Array:
    """A leaf in the dtype that its weights have."""
    return jnp.asarray(theta, wider(jnp.result_type(theta), jnp.float32))


# Traced once for each shape. Nothing in them depends on the leaf's place among the others, so that
# leaves of one shape share XLA's compiled kernels. A known surrogate is a constant of the program.
_of_leaf_known = jax.jit(_of_leaf, static_argnums=(0, 1, 2))
_of_leaf_traced = jax.jit(_of_leaf, static_argnums=(1, 2))


def _together(
    weigher: Weigher, coverage: Coverage, leaves: PyTree, strength: Array | None
) -> PyTree:
    """The blocks of all leaves as one batch: for a device, or where each leaf has one block."""
    flat, treedef = jax.tree.flatten(leaves, is_leaf=_is_leaf)
    if not flat:
        return leaves
    shardings = [jax.typeof(leaf.theta).sharding for leaf in flat]
    stacked = [leaf.stacked for leaf in flat]

    def weighed(
        given: Weigher | None, flat: list[tuple[Any, ...]], strength: Array | None
    ) -> list[Array]:
        found = [_Leaf(*leaf, stacked=n) for leaf, n in zip(flat, stacked, strict=True)]
        return _in_one_batch(given or weigher, coverage, found, strength)

    if any(sharding.mesh.explicit_axes for sharding in shardings):
        weighed = cast(Any, jax.sharding.auto_axes(weighed, out_sharding=shardings))
    given = weigher if _is_traced(weigher) else None
    return treedef.unflatten(weighed(given, [leaf[:3] for leaf in flat], strength))


def _in_one_batch(
    weigher: Weigher, coverage: Coverage, leaves: list[_Leaf], strength: Array | None
) -> list[Array]:
    source, n = _source(weigher), weigher.n_inputs
    leaves = [leaf._replace(theta=_as_weights(leaf.theta)) for leaf in leaves]
    dtype = wider(*(leaf.theta.dtype for leaf in leaves))

    def blocks(leaf: _Leaf) -> list[Array]:
        cut = functools.partial(coverage.blocks, n=n)
        return functools.reduce(lambda f, _: jax.vmap(f), range(leaf.stacked), cut)(leaf.theta)

    sets = [blocks(leaf) for leaf in leaves]
    batch = [
        jnp.concatenate([column.astype(dtype).ravel() for column in columns])
        for columns in zip(*sets, strict=True)
    ]
    outputs = source.evaluate(batch)
    if isinstance(weigher, Sampled) and isinstance(coverage, Leading):
        # One loop over the shots, rather than one for each leaf.
        keys = jnp.concatenate(
            [slice_keys(cast(Array, leaf.key), leaf.theta.shape[: leaf.stacked]) for leaf in leaves]
        )
        outputs = jax.vmap(weigher.sample, (0, 0, None))(outputs, keys, jnp.int32(0))
        weigher = source
    ends = np.cumsum([columns[0].size for columns in sets])[:-1]
    parts = zip(*(jnp.split(output, ends) for output in outputs), strict=True)
    return [
        _of_leaf(
            weigher,
            coverage,
            leaf.stacked,
            leaf.theta,
            leaf.x,
            strength,
            leaf.key,
            [part.reshape(columns[0].shape).astype(leaf.theta.dtype) for part in found],
        )
        for leaf, columns, found in zip(leaves, sets, parts, strict=True)
    ]
