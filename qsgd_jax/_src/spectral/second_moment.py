"""A running mean of the squares of turned matrices, and steps divided by its root."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers

from qsgd_jax._src.trees import wider

_DECAY = 0.99  # β₂, of 0.9, 0.95 and 0.99 the best
# Beside entries about 1, for those that have always been 0 to be divided by it.
_EPSILON = 1e-8


def check_second_moment(form: object) -> None:
    """Refuse what is no form of it."""
    if form not in (None, "entry"):
        raise ValueError(f"second_moment={form!r} must be 'entry', or None.")


def check_fits(form: str | None, second: object) -> None:
    """Refuse a state made with a second moment where there is none, and the reverse."""
    if (form is None) != (second is None):
        has = "no second moment" if second is None else "a second moment"
        raise ValueError(
            f"second_moment={form!r}, but state has {has}: was it made by another optimizer?"
        )


def zero_moment(momenta: optax.Updates) -> optax.Updates:
    """As of no steps: real numbers of no fewer bits than float32."""
    return jax.tree.map(
        lambda m: jnp.zeros_like(m, dtype=wider(jnp.finfo(m.dtype).dtype, jnp.float32)), momenta
    )


def evened(o: Array, second: Array, numbers: MuonDimensionNumbers) -> tuple[Array, Array]:
    r"""Divide each entry of a leaf's matrices by the root of the running mean of its squares.

    .. math:: v \leftarrow \beta_2 v + (1 - \beta_2) |O|^2, \qquad O / \sqrt v

    and give each matrix the size that it had. That v begins at 0 makes it smaller by one factor
    for all entries, which the size takes back: it is not corrected. This is AdaMuon's
    (arXiv:2507.11005); one mean for each output, NorMuon's (arXiv:2510.05491), was no better
    than none where both were screened.

    Args:
      o: O, the leaf.
      second: v.
      numbers: which axes of it are rows, and which columns; the others count matrices.

    Returns:
      The quotient and the new v.
    """
    rows, columns = cast(Any, numbers)

    def mean(squares: Array) -> Array:
        return jnp.mean(squares, axis=rows + columns, keepdims=True)

    squares = jnp.abs(o) ** 2
    v = _DECAY * jnp.asarray(second, squares.dtype) + (1 - _DECAY) * squares
    x = o / jnp.sqrt(v + _EPSILON**2)
    before, after = mean(squares), mean(jnp.abs(x) ** 2)
    # The derivative is to be finite of what is 0, too.
    root, other = (jnp.sqrt(jnp.where(y == 0, 1, y)) for y in (before, after))
    return x * jnp.where(before == 0, 0, root / other), v.astype(second.dtype)
