"""A trigonometric polynomial of one scalar, evaluated at very many of them at once.

A circuit in which one input x turns `degree` rotations by x is, in its amplitudes,

    f(x) = Σ_ν a_ν cos νx + b_ν sin νx,   ν = degree/2, degree/2 − 1, …, ½ or 0,

and in its probabilities the same of twice the degree. Its `degree + 1` coefficients follow from
as many runs.

References:
  Schuld, Sweke, Meyer, "Effect of data encoding on the expressive power of
  variational quantum-machine-learning models", arXiv:2008.08605.
"""

import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qsgd_jax._src.half_turns import cospi, half_turns, sinpi
from qsgd_jax._src.trees import varying_axes
from qsgd_jax._src.xla import in_one_loop, sum_to

Coefficients = Float[Array, "2 frequencies *#shape"]
"""a and b, lowest frequency first; further axes broadcast against those of x."""

# Rows that a loop adds up before it writes, and harmonics whose sums it shares its cosines with.
# More of either, and XLA:CPU finds no vector instructions; fewer, and it waits for memory.
_ROWS, _HARMONICS = 16, 5


def frequencies(degree: int) -> np.ndarray:
    """The frequencies ν in radians⁻¹, lowest first.

    Example:
      >>> from qsgd_jax._src import harmonics
      >>> harmonics.frequencies(3), harmonics.frequencies(4)
      (array([0.5, 1.5]), array([0., 1., 2.]))
    """
    return np.arange(degree % 2, degree + 1, 2) / 2


def settings(degree: int) -> np.ndarray:
    """The `degree + 1` inputs to run the circuit at, in radians; none is 0."""
    return 2 * np.pi * (np.arange(degree + 1) + 0.25) / (degree + 1)


def coefficients(values: Float[Array, " settings"], degree: int) -> Coefficients:
    r"""The coefficients of the polynomial from its values at `settings`.

    .. math:: a_\nu = \frac{2 - \delta_{\nu 0}}{N + 1} \sum_s f(x_s) \cos \nu x_s, \qquad
      b_\nu = \frac{2}{N + 1} \sum_s f(x_s) \sin \nu x_s

    The sum of two frequencies is an integer below N + 1, also where both are halves of odd
    numbers; so the discrete orthogonality holds for either parity.

    Args:
      values: f at the settings, shape `(..., degree + 1)`.
      degree: N, the number of rotations by x (twice that for probabilities).

    Returns:
      a and b, shape `(2, frequencies, ...)`.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax._src import harmonics
      >>> x = harmonics.settings(2)
      >>> print(np.round(harmonics.coefficients(3 + 2 * np.sin(x), 2), 5) + 0.0)
      [[3. 0.]
       [0. 2.]]
    """
    phases = np.outer(settings(degree), frequencies(degree))
    dual = np.stack([np.cos(phases), np.sin(phases)]) * 2 / (degree + 1)
    dual[:, :, frequencies(degree) == 0] /= 2
    values = jnp.asarray(values)
    dual = jnp.asarray(dual, values.dtype)
    return jnp.einsum("...s,csf->cf...", values, dual, precision=jax.lax.Precision.HIGHEST)


def _cosine_and_sine(x: Array, halved: bool) -> tuple[Array, Array]:
    """Of x or of x/2; in float32 exact in the period up to 2·10⁵ radians."""
    if x.dtype == jnp.float64:
        angle = x / 2 if halved else x
        return jnp.cos(angle), jnp.sin(angle)
    turns = half_turns(x, (4 if halved else 2) * np.pi)
    return cospi(turns), sinpi(turns)


def _powers(x: Array, first: Array, degree: int) -> Iterator[tuple[Array, Array]]:
    """`first` times cos νx and sin νx for each frequency; by rotations, which keep errors small."""
    cosine, sine = _cosine_and_sine(x, halved=bool(degree % 2))
    if degree % 2:
        real, imaginary = first * cosine, first * sine
        cosine, sine = (cosine - sine) * (cosine + sine), 2 * cosine * sine
    else:
        real, imaginary = first, jnp.zeros_like(first)
    yield real, imaginary
    for _ in range(degree // 2):
        real, imaginary = real * cosine - imaginary * sine, imaginary * cosine + real * sine
        yield real, imaginary


def evaluate(table: Coefficients, degree: int, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""The polynomial at each x, elementwise, by Horner's rule in `e^{ix}`.

    .. math:: f(x) = \sum_\nu a_\nu \cos \nu x + b_\nu \sin \nu x

    Args:
      table: a and b, shape `(2, frequencies, ...)`; further axes broadcast against x.
      degree: N, of which `frequencies` are those of the table.
      x: in radians, float32 or float64. Beyond 2·10⁵, where neighbours among float32 numbers
        lie 0.016 radians apart, the period is no longer told exactly.

    Returns:
      f(x), of the shape and dtype of x.

    Example:
      >>> import jax.numpy as jnp
      >>> from qsgd_jax._src import harmonics
      >>> two_and_cosine = jnp.array([[2.0, 1.0], [0.0, 0.0]])
      >>> print(harmonics.evaluate(two_and_cosine, 2, jnp.array([0.0, jnp.pi])))
      [3. 1.]
    """
    lead = (1,) * (x.ndim - table.ndim + 2)
    table = table.astype(x.dtype).reshape((*table.shape[:2], *lead, *table.shape[2:]))
    cosine, sine = _cosine_and_sine(x, halved=bool(degree % 2))
    step, turn = (cosine, sine), (cosine, sine)
    if degree % 2:
        step = (cosine - sine) * (cosine + sine), 2 * cosine * sine
    # Re Σ (a − ib) z^k with z = e^{ix}: `real` and `imaginary` are those of the inner brackets.
    real, imaginary = table[0, -1], -table[1, -1]
    for a, b in zip(table[0, -2::-1], table[1, -2::-1], strict=True):
        real, imaginary = (
            real * step[0] - imaginary * step[1] + a,
            real * step[1] + imaginary * step[0] - b,
        )
    if degree % 2:
        real = real * turn[0] - imaginary * turn[1]
    return jnp.broadcast_to(real, x.shape)


def add_where(
    table: Coefficients,
    degree: int,
    factor: float,
    x: Float[Array, "*shape"],
    weights: Float[Array, "*shape"],
    allowed: Bool[Array, "*#shape"],
) -> Float[Array, "*shape"]:
    r"""The polynomial added to weights where that is allowed.

    .. math:: w + \mathbb{1}_\text{allowed}\, f(sx)

    Backward, it keeps x alone and goes over it twice, once for x and once for all coefficients.
    Reverse mode works, and any mode on top of it (`jax.hessian`); `jax.jvp` is refused by JAX.

    Args:
      table: a and b, shape `(2, frequencies, ...)`; further axes broadcast against x.
      degree: N, of which `frequencies` are those of the table.
      factor: s.
      x: in units of 1/s radians, float32 or float64, two axes or more.
      weights: what is added to, of the shape and dtype of x.
      allowed: where; broadcasts against x. Elsewhere not even NaN in x has an influence.

    Returns:
      The sum, of the shape and dtype of x.

    Example:
      >>> import jax.numpy as jnp
      >>> from qsgd_jax._src import harmonics
      >>> cosine, x = jnp.array([[0.0, 1.0], [0.0, 0.0]]), jnp.zeros((1, 2))
      >>> print(harmonics.add_where(cosine, 2, 1.0, x, x, jnp.array([True, False])))
      [[1. 0.]]
    """
    table, allowed = (_varying_as(y, x) for y in (table, allowed))
    return _add_where(table, degree, factor, x, weights, allowed)


def _varying_as(array: Array, other: Array) -> Array:
    """Within `jax.shard_map`: an array that all shards share, as one that each has of its own."""
    axes = tuple(varying_axes(other) - varying_axes(array))
    lax: Any = jax.lax  # pcast since jax 0.8, pvary before
    if not axes:
        return array
    return lax.pcast(array, axes, to="varying") if hasattr(lax, "pcast") else lax.pvary(array, axes)


def _forward(
    table: Coefficients,
    degree: int,
    factor: float,
    x: Array,
    weights: Array,
    allowed: Bool[Array, "..."],
) -> tuple[Array, Any]:
    # The select stands last because XLA:CPU would hand sums and products that end in a matrix
    # product to a library, which runs them one by one: three times slower.
    added = jnp.where(allowed, weights + evaluate(table, degree, factor * x), weights)
    return added, (table, x, allowed)


def _backward(degree: int, factor: float, saved: Any, cotangent: Array) -> tuple[Any, ...]:
    table, x, allowed = saved
    nu = jnp.asarray(factor * frequencies(degree), table.dtype).reshape(
        (-1,) + (1,) * (table.ndim - 2)
    )
    slope = evaluate(jnp.stack([nu * table[1], -nu * table[0]]), degree, factor * x)
    of_x = jnp.where(allowed, slope * cotangent, 0)
    of_table = _moments(x, cotangent, allowed, degree, factor, table.shape[2:])
    return of_table.astype(table.dtype), of_x, cotangent, None


_add_where: Any = jax.custom_vjp(lambda *inputs: _forward(*inputs)[0], nondiff_argnums=(1, 2))
_add_where.defvjp(_forward, _backward)


def _moments(
    x: Array,
    g: Array,
    allowed: Bool[Array, "..."],
    degree: int,
    factor: float,
    shape: tuple[int, ...],
) -> Coefficients:
    """Σ g cos νsx and Σ g sin νsx where allowed, over the axes that `shape` lacks.

    Written out for several rows at a time, so that little of what one loop adds up goes through
    memory; XLA:CPU would give each sum its own loop, and none a vector instruction. The rows are
    taken off an axis of their own: of a sharded axis XLA takes wrong ones by a stride.
    """
    if not x.size:
        return jnp.zeros((2, len(frequencies(degree)), *shape), x.dtype)
    arrays, length = (x, g, jnp.broadcast_to(allowed, x.shape)), x.shape[-2]
    whole = length - length % _ROWS
    blocks = [y[..., :whole, :].reshape((*y.shape[:-2], -1, _ROWS, y.shape[-1])) for y in arrays]
    parts = [[[y[..., r, :] for y in blocks] for r in range(_ROWS)]] if whole else []
    if whole < length:
        parts.append([[y[..., r, None, :] for y in arrays] for r in range(whole, length)])

    def powers(x: Array, g: Array, allowed: Array) -> list[Array]:
        x, g = jnp.where(allowed, factor * x, 0), jnp.where(allowed, g, 0)
        return [each for pair in _powers(x, g, degree) for each in pair]

    totals: Any = 0
    for part in parts:
        terms = zip(*(powers(*row) for row in part), strict=True)
        sums = [functools.reduce(operator.add, term) for term in terms]
        for first in range(0, len(sums), 2 * _HARMONICS):
            group = slice(first, first + 2 * _HARMONICS)
            sums[group] = in_one_loop(sums[group])
        totals += jnp.stack([sum_to(each, shape) for each in sums])
    return jnp.moveaxis(totals.reshape((-1, 2, *shape)), 1, 0)
