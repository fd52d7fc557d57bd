"""What the superposition is held against: perturbations as large, on the same coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, Key

import qsgd_jax as qsgd

Kind = Literal["noise", "shuffled", "signs", "rates"]
Base = Literal["gradient", "update"]
Coverage = Literal["leading", "everywhere"]
Vector = Float[Array, " coordinates"]


class ControlState(NamedTuple):
    """State of `matched_control`.

    Attributes:
        count: Steps taken.
        inner_state: State of the wrapped transformation.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    inner_state: optax.OptState


def matched_control(
    inner: optax.GradientTransformation,
    kind: Kind,
    quantum_weight: float,
    surrogate: qsgd.Surrogate,
    coverage: Coverage,
    *,
    base: Base,
    key: Key[Array, ""],
) -> optax.GradientTransformation:
    r"""Perturb a step as much as the superposition would, where it would, by something else.

    .. math::
      u + \lambda \, c \, \frac{\lVert w(\theta) \odot b \rVert}{\lVert c \rVert}

    for each tensor, over the coordinates that the superposition weighs; b is the gradient (Eq. 1)
    or the step u itself. By `kind`

    * `"noise"`: c is Gaussian, drawn anew each step;
    * `"shuffled"`: c = w' ⊙ b, with the weights w of this step in a random order;
    * `"signs"`: c = r ⊙ b, with random signs r;
    * `"rates"`: c = r ⊙ u, with r uniform in [−1, 1] and the same in every step: learning rates
      of its own for each coordinate.

    Args:
        inner: Makes the step u from the gradient, before the learning rate's minus.
        kind: What c is.
        quantum_weight: λ.
        surrogate: Whose weights w are matched.
        coverage: Which coordinates have one.
        base: What is weighed.
        key: Source of what is random.

    Raises:
        ValueError: If `kind` or `base` is unknown.
    """
    for name, value, known in (("kind", kind, Kind), ("base", base, Base)):
        if value not in get_args(known):
            raise ValueError(f"{name}={value!r} must be one of {', '.join(get_args(known))}.")

    def init(params: Any) -> Any:
        return ControlState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        steps, inner_state = inner.update(updates, state.inner_state, params)
        leaves, treedef = jax.tree.flatten(steps)
        drawn = key if kind == "rates" else jax.random.fold_in(key, state.count)
        keys = jax.random.split(drawn, len(leaves))
        perturbed = [
            _perturbed(leaf_key, *leaf)
            for leaf_key, *leaf in zip(
                keys,
                leaves,
                jax.tree.leaves(updates),
                jax.tree.leaves(qsgd.superposition_weights(surrogate, params, coverage)),
                strict=True,
            )
        ]
        return treedef.unflatten(perturbed), ControlState(state.count + 1, inner_state)

    def _perturbed(key: Any, step: Array, gradient: Array, weights: Array) -> Array:
        size = step.size
        if coverage == "leading":
            size = min(size, surrogate.n_inputs)
        u, g, w = (jnp.ravel(x)[:size] for x in (step, gradient, weights))
        b = g if base == "gradient" else u
        change = quantum_weight * _rescaled(_DIRECTIONS[kind](key, u, b, w), w * b)
        return jnp.ravel(step).at[:size].add(change.astype(step.dtype)).reshape(step.shape)

    return optax.GradientTransformation(init, update)


def _noise(key: Any, u: Vector, b: Vector, w: Vector) -> Vector:
    return jax.random.normal(key, b.shape, b.dtype)


def _shuffled(key: Any, u: Vector, b: Vector, w: Vector) -> Vector:
    return jax.random.permutation(key, w) * b


def _signs(key: Any, u: Vector, b: Vector, w: Vector) -> Vector:
    return jax.random.rademacher(key, b.shape, b.dtype) * b


def _rates(key: Any, u: Vector, b: Vector, w: Vector) -> Vector:
    return jax.random.uniform(key, u.shape, u.dtype, -1, 1) * u


_DIRECTIONS: dict[Kind, Callable[..., Vector]] = {
    "noise": _noise,
    "shuffled": _shuffled,
    "signs": _signs,
    "rates": _rates,
}


def _rescaled(direction: Vector, like: Vector) -> Vector:
    tiny = np.finfo(np.float32).tiny  # a direction that vanishes has no norm to match
    return direction * (jnp.linalg.norm(like) / jnp.maximum(jnp.linalg.norm(direction), tiny))
