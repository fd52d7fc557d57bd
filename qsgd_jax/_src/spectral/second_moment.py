"""A second moment of the turned momentum."""

from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers

_EPSILON = 1e-8


def evened(
    form: str, decay: Any, o: Array, v: Array, numbers: MuonDimensionNumbers
) -> tuple[Array, Array]:
    rows, columns = cast(Any, numbers)
    squares = jnp.abs(o) ** 2
    mean = squares if form == "entry" else jnp.mean(squares, axis=rows, keepdims=True)
    v = decay * v + (1 - decay) * mean
    x = o / jnp.sqrt(v + _EPSILON**2)
    before, after = (
        jnp.mean(y, axis=rows + columns, keepdims=True) for y in (squares, jnp.abs(x) ** 2)
    )
    return x * jnp.sqrt(before / jnp.where(after == 0, 1, after)), v
