"""Eq. 1 on real arrays: the parts that leaves have, and the arithmetic of one of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Part(NamedTuple):
    """A real leaf, or one part of a complex one, in the dtype that its weights have."""

    theta: Array
    key: Any
    update: Array | None = None
    gradient: Array | None = None


def parts_of(path: tuple, leaf: Any, key: Any, *others: Any) -> list[Part]:
    """The real parts of a leaf with those of its update and gradient, if there are any.

    None where nothing is to be weighed: a leaf, update or gradient that is missing or not
    an inexact number.
    """
    for name, other in zip(("update", "gradient"), others, strict=False):
        if other is not None and jnp.shape(other) != jnp.shape(leaf):
            raise ValueError(f"{_unlike(name, other, path, leaf)}.")
    thetas, rest = real_parts(leaf), [real_parts(other) for other in others]
    if not thetas or not all(rest):
        return []
    for name, other, found in zip(("update", "gradient"), others, rest, strict=False):
        if len(found) != len(thetas):
            raise ValueError(f"{_unlike(name, other, path, leaf)}: one is complex.")
    dtype = jnp.promote_types(thetas[0].dtype, jnp.float32)
    return [
        Part(theta.astype(dtype), None if key is None else jax.random.fold_in(key, i), *both)
        for i, (theta, *both) in enumerate(zip(thetas, *rest, strict=True))
    ]


def _unlike(name: str, other: Any, path: tuple, leaf: Any) -> str:
    place = f" at {jax.tree_util.keystr(path)}" if path else ""
    return (
        f"{name} of {jax.typeof(other)}{place} does not match its parameter of {jax.typeof(leaf)}"
    )


def real_parts(leaf: Any) -> tuple[Array, ...]:
    """A leaf as real arrays: itself, the two parts of a complex one, none of any other."""
    if leaf is None or jax.dtypes.result_type(leaf) == jax.dtypes.float0:
        return ()
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.real(leaf), jnp.imag(leaf)
    return (leaf,) if jnp.issubdtype(leaf.dtype, jnp.floating) else ()


def from_real_parts(parts: list[Array], shape: tuple[int, ...]) -> Array:
    """The inverse of `real_parts`; zeros of `shape` where there are none."""
    if not parts:
        return jnp.zeros(shape)
    return parts[0] if len(parts) == 1 else jax.lax.complex(*parts)


def perturbed(
    update: Array | None, strength: Array | None, weights: Array, gradient: Array | None
) -> Array:
    """Eq. 1's step; that of `"update"` without a gradient; the weights without an update."""
    if update is None:
        return weights
    if gradient is None:
        return scaled(update, strength, weights)
    return added(update, strength, weighed(weights, gradient))


def scaled(update: Any, strength: Any, weights: Array) -> Array:
    """The step u (1 + λ w), in the dtype of u."""
    # The update is read once: XLA would compute and keep one that is read twice.
    dtype = jnp.promote_types(update.dtype, weights.dtype)
    factor = 1 + strength.astype(dtype) * weights.astype(dtype)
    return (update.astype(dtype) * factor).astype(update.dtype)


def weighed(weights: Array, gradient: Array) -> Array:
    """The weighed gradient w ⊙ ∇L, in the wider of the two dtypes."""
    dtype = jnp.promote_types(weights.dtype, gradient.dtype)
    return weights.astype(dtype) * gradient.astype(dtype)


def added(update: Any, strength: Any, perturbation: Array) -> Array:
    """The step u + λ Q, in the dtype of u."""
    dtype = jnp.promote_types(update.dtype, perturbation.dtype)
    change = strength.astype(dtype) * perturbation.astype(dtype)
    return (update.astype(dtype) + change).astype(update.dtype)
