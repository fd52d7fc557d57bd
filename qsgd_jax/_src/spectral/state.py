"""What spectral superposition keeps between steps, and whether a step fits it."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from qsgd_jax._src.spectral.routing import SPECTRAL, Route
from qsgd_jax._src.trees import varying_axes


class ScaleBySpectralSuperpositionState(NamedTuple):
    """State of `scale_by_spectral_superposition`.

    Attributes:
      count: steps taken.
      mu: the momentum of each matrix; `optax.MaskedNode` in the places of other leaves.
      nu: the running mean of the squares of each matrix's turned momentum, in its place; `None`
        without `second_moment`.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: optax.Updates
    nu: optax.Updates | None = None


def is_state(x: Any) -> bool:
    """Whether it is that of the transformation itself."""
    return isinstance(x, ScaleBySpectralSuperpositionState)


def is_masked_or_none(x: Any) -> bool:
    """Whether a leaf is another's, or missing."""
    return x is None or isinstance(x, optax.MaskedNode)


def momentum_of(state: Any) -> Any:
    """The momentum of matrices, somewhere in a state of `superpositional_muon`."""
    found = [x.mu for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]
    if len(found) != 1:
        raise ValueError(
            f"state has {len(found)} of ScaleBySpectralSuperpositionState, where that of this "
            "optimizer has one: was it made by another?"
        )
    return found[0]


def check_leaf(place: str, gradient: Any, momentum: Any, route: Route, product_dtype: Any) -> None:
    """Refuse a gradient that is not of the leaf that the momentum was made for."""
    if momentum is None:
        raise ValueError(f"gradient at {place!r} has no momentum: `init` has seen no leaf there.")
    if route.label != SPECTRAL:
        raise ValueError(
            f"state has a momentum at {place!r}, which is routed to {route.label!r} "
            f"({route.why}): was it made by another optimizer?"
        )
    if jnp.shape(gradient) != momentum.shape:
        raise ValueError(
            f"gradient of shape {jnp.shape(gradient)} at {place!r} does not match its momentum of "
            f"shape {momentum.shape}: was the state made by another optimizer?"
        )
    if jnp.iscomplexobj(gradient) and not jnp.iscomplexobj(momentum):
        raise ValueError(f"gradient at {place!r} is complex, its momentum is not.")
    rows, columns = cast(Any, route.numbers)
    whole = momentum.ndim == len(rows) + len(columns)
    if whole and (axes := varying_axes(momentum) | varying_axes(gradient)):
        raise ValueError(
            f"the matrix at {place!r} is another on each device along {', '.join(sorted(axes))}, "
            "axes of jax.shard_map: its shards would be taken for matrices. Gather it before "
            "(jax.lax.all_gather), or update outside; if each device has a model of its own, "
            "allowed is jax.shard_map(…, check_vma=False)."
        )
    if product_dtype is not None and jnp.iscomplexobj(momentum):
        raise ValueError(
            f"product_dtype={product_dtype.name}: the matrix at {place!r} is complex; "
            "allowed is None there."
        )
