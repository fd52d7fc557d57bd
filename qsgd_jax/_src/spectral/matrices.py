"""The steps of a model's matrices: their axes, equal shapes together, whole on each device."""

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers

from qsgd_jax._src.spectral.cascade import SpectralCascade
from qsgd_jax._src.spectral.products import on_matrix
from qsgd_jax._src.spectral.whole import Stack, on_whole_matrices
from qsgd_jax._src.trees import wider

# Added to the norm of a matrix, as `optax.contrib.muon` does: below it, noise is not raised to a
# step of full size.
_EPSILON = 1e-8


def real(x: Any, dtype: Any) -> Array:
    """As a real number of that precision: beside complex parameters optax injects complex ones."""
    return jnp.real(x).astype(jnp.finfo(dtype).dtype)


def checked_product_dtype(dtype: Any) -> Any:
    """A real floating dtype, or `None`."""
    try:
        fits = dtype is None or jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"product_dtype={dtype!r} must be a real floating dtype, or None.")
    return None if dtype is None else jnp.dtype(dtype)


def turned(
    cascade: SpectralCascade,
    momenta: Sequence[Array],
    axes: Sequence[MuonDimensionNumbers],
    product_dtype: Any | None = None,
) -> list[Array]:
    """Of each matrix M = ‖M‖ U Σ Vᵀ of each leaf: U f(Σ) Vᵀ, over its root mean square.

    Args:
      cascade: f.
      momenta: the leaves.
      axes: which axes of each are rows, and which columns; the others count matrices.
      product_dtype: as for `on_matrix`.
    """

    def act(momenta: Sequence[Array], cascade: SpectralCascade) -> list[Array]:
        stacks = list(map(_as_stack, momenta, axes))
        places: dict[Any, list[int]] = {}
        for place, stack in enumerate(stacks):
            alone = None if len(stack) == 1 else place  # stacks may be sharded over their layers
            places.setdefault((alone, stack.shape, stack.dtype), []).append(place)
        steps: dict[int, Array] = {}
        for together in places.values():
            found = _of_stack(
                cascade, jnp.concatenate([stacks[i] for i in together]), product_dtype
            )
            ends = np.cumsum([len(stacks[i]) for i in together])[:-1]
            steps |= dict(zip(together, jnp.split(found, ends), strict=True))
        return [
            _as_leaf(steps[i], m, numbers)
            for i, (m, numbers) in enumerate(zip(momenta, axes, strict=True))
        ]

    shardings = [jax.typeof(m).sharding for m in momenta]
    if any(sharding.mesh.explicit_axes for sharding in shardings):
        # Every product would need a sharding; XLA knows better.
        act = cast(Any, jax.sharding.auto_axes(act, out_sharding=shardings))
    # What is traced outside must not be closed over there.
    return act(momenta, cascade)


def _as_stack(m: Array, numbers: MuonDimensionNumbers) -> Stack:
    """A leaf's matrices, no longer than wide."""
    order, _, shape = _layout(m.shape, numbers)
    return jnp.asarray(m, wider(m.dtype, jnp.float32)).transpose(order).reshape(-1, *shape)


def _as_leaf(stack: Stack, m: Array, numbers: MuonDimensionNumbers) -> Array:
    order, moved, _ = _layout(m.shape, numbers)
    return stack.reshape(moved).transpose(np.argsort(order))


def _layout(shape: tuple[int, ...], numbers: MuonDimensionNumbers) -> Any:
    """The order of a leaf's axes, its shape in that order, and a matrix's."""
    rows, columns = cast(Any, numbers)
    count = tuple(axis for axis in range(len(shape)) if axis not in rows + columns)
    sides = {axes: math.prod(shape[axis] for axis in axes) for axes in (rows, columns)}
    short, long = sorted((rows, columns), key=lambda axes: sides[axes])
    order = (*count, *short, *long)
    return order, [shape[axis] for axis in order], (sides[short], sides[long])


def _of_stack(cascade: SpectralCascade, stack: Stack, product_dtype: Any) -> Stack:
    """Each matrix by itself: a known cascade is a constant of the program."""
    of_each = _of_each if cascade.traced else _of_known
    return of_each(cascade, product_dtype, stack)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_known(cascade: SpectralCascade, product_dtype: Any, stack: Stack) -> Stack:
    return on_whole_matrices(functools.partial(_of_each, cascade, product_dtype))(stack)


def _of_each(cascade: SpectralCascade, product_dtype: Any, stack: Stack) -> Stack:
    of_matrix = functools.partial(_of_matrix, cascade, product_dtype)
    if len(stack) == 1:
        return of_matrix(stack[0])[None]
    # XLA's products of stacked matrices are slow on a CPU, and fast where they are small on a GPU.
    return jax.lax.platform_dependent(
        stack, cpu=functools.partial(jax.lax.map, of_matrix), default=jax.vmap(of_matrix)
    )


def _of_matrix(
    cascade: SpectralCascade, product_dtype: Any, m: Float[Array, "m n"]
) -> Float[Array, "m n"]:
    """Of M/‖M‖ = U Σ Vᵀ: U f(Σ) Vᵀ, over its root mean square."""
    largest = jnp.abs(m).max()  # the square of a small or a large number is none in float32
    x = m / jnp.where(largest == 0, 1, largest)
    norm = _root(jnp.sum(jnp.abs(x) ** 2))
    x = on_matrix(cascade, x / norm, product_dtype=product_dtype)
    size, damping = norm * largest, _root(jnp.mean(jnp.abs(x) ** 2))
    return x * (size / (size + _EPSILON) / damping)


def _root(x: Array) -> Array:
    """Of a sum of squares; 1 where it is 0, for what is 0 itself to be divided by it."""
    return jnp.sqrt(jnp.where(x == 0, 1, x))
