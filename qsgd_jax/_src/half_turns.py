"""Sine and cosine of half turns, exact in their period."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# sin(πs)/s in powers of s² (lowest first): least maximum error of the sine on [−½, ½],
# 8e-9, among coefficients that float32 holds exactly.
_SINPI_OVER_S = (
    3.1415927410125732,
    -5.1677141189575195,
    2.55012583732605,
    -0.5985169410705566,
    0.0780201405286789,
)


def _sinpi_core(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """sin(πs) for |s| ≤ ½."""
    if s.dtype == jnp.float64:
        return jnp.sin(jnp.pi * s)
    z = s * s
    *lower, highest = _SINPI_OVER_S
    return s * functools.reduce(lambda total, c: total * z + c, reversed(lower), highest)


def within_period(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Half turns modulo the period 2, in [−1, 1]; exact in floating point."""
    return x - 2 * jnp.round(x / 2)


def half_turns(x: Float[Array, "..."], period: float) -> Float[Array, "..."]:
    r"""An input as half turns, of which two are a period.

    .. math:: 2 x / P

    In float32 whole periods are taken off before, exactly up to 32,768 of them: a rounded product
    would be as wrong as `x` is large.

    Args:
      x: float32 or float64, any shape.
      period: P, in the units of `x`.

    Returns:
      Half turns of the same shape and dtype.

    Example:
      >>> import jax.numpy as jnp, math
      >>> from qsgd_jax._src.half_turns import half_turns
      >>> print(half_turns(jnp.array([0.5, 3.0]) * math.pi, 2 * math.pi))
      [ 0.5 -1. ]
    """
    if period == 2 or x.dtype == jnp.float64:
        return x if period == 2 else x * (2 / period)
    turns = jnp.round(x * (1 / period))
    for part in _parts(period):
        x = x - turns * jnp.asarray(part, x.dtype)
    return x * (2 / period)


@functools.cache
def _parts(period: float) -> tuple[float, float, float]:
    """A number in parts of few bits, so that their products with small integers are exact."""

    def leading_bits(value: float) -> float:
        mantissa, exponent = math.frexp(value)
        return math.ldexp(math.floor(math.ldexp(mantissa, 8)), exponent - 8)

    first = leading_bits(period)
    second = leading_bits(period - first)
    return first, second, period - first - second


@jax.custom_jvp
def sinpi(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""The sine of πx, exact in its period and zero at every integer.

    .. math:: \operatorname{sinpi}(x) = \sin(\pi x)

    XLA's own sine costs about 25 times more on CPU and, once `π * x` is rounded,
    is wrong for large `x`.

    Args:
      x: half turns, float32 or float64, any shape and size of value.

    Returns:
      Values in [−1, 1] of the same shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from qsgd_jax._src.half_turns import sinpi
      >>> print(sinpi(jnp.array([0.5, 1.0, 1000001.5])))
      [ 1.  0. -1.]
    """
    y = within_period(x)
    # Folded into [−½, ½]. A comparison is one instruction; jnp.minimum guards NaN with more.
    y = jnp.where(y < 1 - y, y, 1 - y)
    return _sinpi_core(jnp.where(y > -1 - y, y, -1 - y))


@jax.custom_jvp
def cospi(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""The cosine of πx, exact in its period and zero at every odd half.

    .. math:: \operatorname{cospi}(x) = \cos(\pi x)

    Args:
      x: half turns, float32 or float64, any shape and size of value.

    Returns:
      Values in [−1, 1] of the same shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from qsgd_jax._src.half_turns import cospi
      >>> print(cospi(jnp.array([0.0, 0.5, 1000001.0])))
      [ 1.  0. -1.]
    """
    return _sinpi_core(0.5 - jnp.abs(within_period(x)))


sinpi.defjvps(lambda tangent, _, x: jnp.pi * cospi(x) * tangent)
cospi.defjvps(lambda tangent, _, x: -jnp.pi * sinpi(x) * tangent)
