"""The steps of a model's matrices: their axes, equal shapes together, whole on each device."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers

from qsgd_jax._src.spectral.cascade import SpectralCascade
from qsgd_jax._src.spectral.products import on_matrix
from qsgd_jax._src.spectral.whole import PARTITIONS_EXPLICIT_AXES, Stack, on_whole_matrices
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
    steps: dict[int, Array] = {}
    for mesh, together in _places(jax.typeof(m).sharding.mesh for m in momenta).items():
        own, numbers = [momenta[i] for i in together], [axes[i] for i in together]

        def act(momenta: Sequence[Array], traced: Any, numbers: Any = numbers) -> list[Array]:
            return _of_leaves(
                cascade if traced is None else traced, momenta, numbers, product_dtype
            )

        if mesh.explicit_axes:  # every product would need a sharding; XLA knows better
            shardings = [jax.typeof(m).sharding for m in own]
            act = cast(Any, jax.sharding.auto_axes(act, out_sharding=shardings))
        # What is traced outside must not be closed over there; what is known stays so.
        handed = cascade.traced or (mesh.explicit_axes and not PARTITIONS_EXPLICIT_AXES)
        found = act(own, cascade if handed else None)
        steps |= dict(zip(together, found, strict=True))
    return [steps[place] for place in range(len(momenta))]


def _places(keys: Iterable[Any]) -> dict[Any, list[int]]:
    """The places of what is alike."""
    found: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return found


def _of_leaves(
    cascade: SpectralCascade,
    momenta: Sequence[Array],
    axes: Sequence[MuonDimensionNumbers],
    product_dtype: Any,
) -> list[Array]:
    stacks = list(map(_as_stack, momenta, axes))

    def kind(place: int) -> Any:
        """Of matrices that are joined: stacks may be sharded over their layers and stay alone."""
        stack, m = stacks[place], momenta[place]
        device = None if isinstance(m, Tracer) else m.sharding
        return stack.shape, stack.dtype, device, place if len(stack) > 1 else None

    steps: dict[int, Array] = {}
    for together in _places(map(kind, range(len(stacks)))).values():
        joined = jnp.concatenate([stacks[place] for place in together])
        ends = np.cumsum([len(stacks[place]) for place in together])[:-1]
        found = jnp.split(_of_stack(cascade, joined, product_dtype), ends)
        steps |= dict(zip(together, found, strict=True))
    return [
        _as_leaf(steps[place], m, numbers)
        for place, (m, numbers) in enumerate(zip(momenta, axes, strict=True))
    ]


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
    """Each matrix by itself: a known cascade is a constant of the program.

    Under `jax.shard_map` devices hold matrices whole, or `check_leaf` has refused them.
    """
    plain = cascade.traced or jax.sharding.get_abstract_mesh().manual_axes
    of_each = _of_each if plain else _of_known
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
    # x does not depend on it: no derivative, whose square would be none in float32 either.
    largest = jax.lax.stop_gradient(largest)
    x = m / jnp.where(largest == 0, 1, largest)
    norm = _root(jnp.sum(jnp.abs(x) ** 2))
    x = on_matrix(cascade, x / norm, product_dtype=product_dtype)
    size, damping = norm * largest, _root(jnp.mean(jnp.abs(x) ** 2))
    return x * (size / (size + _EPSILON) / damping)


def _root(x: Array) -> Array:
    """Of a sum of squares; 1 where it is 0, for what is 0 itself to be divided by it."""
    return jnp.sqrt(jnp.where(x == 0, 1, x))
