"""A circuit as the trigonometric polynomial that it is: probe it once, evaluate it anywhere.

A circuit whose input j enters only through rotations by multiples of it, of degree R_j in all, is
exactly

    f(θ) = Σ_k c_k Π_j b_{k_j}(θ_j),   b = [1, cos πθ, sin πθ, …, cos Rπθ, sin Rπθ]

with inputs in half turns, of which two are a period. Its `Π_j (2R_j + 1)` coefficients follow from
as many runs on a grid.

References:
  Schuld, Sweke, Meyer, "Effect of data encoding on the expressive power of
  variational quantum-machine-learning models", arXiv:2008.08605.
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qsgd_jax._src.half_turns import cospi, sinpi, within_period

# A coefficient below this is rounding of a float64 simulator: dropping 729 of them
# moves a weight by less than 1e-11.
ZERO = 1e-14
# More terms compile slowly as unrolled code; beyond, a matrix product serves them. So it does
# for traced coefficients, of which none can be left out, at few points; at many it is 20 times
# slower than unrolled code.
MAX_UNROLLED_TERMS = 512
_FEW_POINTS = 1024

Table = Float[Array, "outputs *sizes"] | Float[np.ndarray, "outputs *sizes"]
"""Coefficients, an axis of size 2R + 1 for each input."""
Degrees = Sequence[int]
"""R_j of each input."""


def n_settings(degrees: Degrees) -> int:
    """Number of circuit runs that determine the polynomial, `Π_j (2 R_j + 1)`."""
    return math.prod(2 * degree + 1 for degree in degrees)


def _grid_points(degree: int) -> Float[np.ndarray, " size"]:
    """Equally spaced points over the period 2, none at 0, where a transpiler drops the gate."""
    size = 2 * degree + 1
    return -1 + 2 * (np.arange(size) + 0.25) / size


def probe_grid(degrees: Degrees) -> Float[np.ndarray, "settings inputs"]:
    """The settings of θ to probe, in half turns."""
    return np.array(list(itertools.product(*map(_grid_points, degrees))))


def interpolation(
    theta: Float[np.ndarray, "settings inputs"], degrees: Degrees
) -> Float[np.ndarray, "settings grid"]:
    r"""What the answers on the probe grid say about other settings.

    .. math:: f(\theta) = \sum_g K_g(\theta) f(\theta_g), \qquad
      K_g(\theta) = \prod_j \frac{1 + 2 \sum_{r=1}^{R_j} \cos r\pi(\theta_j - \theta_{gj})}
        {2R_j + 1}

    Args:
      theta: settings in half turns.
      degrees: R, the degree of the polynomial in each input.

    Returns:
      K; the squares of a row add up to 1 at most.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax._src import fourier
      >>> grid, theta = fourier.probe_grid((1, 1)), np.array([[0.5, -1 / 6]])
      >>> (fourier.interpolation(theta, (1, 1)) @ np.sin(np.pi * grid)).round(6)
      array([[ 1. , -0.5]])
    """
    rows = np.ones((len(theta), 1))
    for j, degree in enumerate(degrees):
        differences = np.pi * (theta[:, j, None] - _grid_points(degree))
        harmonics = np.arange(1, degree + 1) * differences[..., None]
        kernel = (1 + 2 * np.cos(harmonics).sum(-1)) / (2 * degree + 1)
        rows = (rows[:, :, None] * kernel[:, None, :]).reshape(len(theta), -1)
    return rows


def coefficients(values: Any, degrees: Degrees) -> Any:
    r"""The Fourier coefficients of a circuit from its answers on the probe grid.

    .. math:: c_k = \sum_g f(\theta_g) \prod_j \tilde b_{k_j}(\theta_{g_j})

    with b̃ the discrete dual of the basis [1, cos πθ, sin πθ, …].

    Args:
      values: answers on `probe_grid`, shape `(settings, outputs)`; a NumPy array, or a JAX array
        that may be traced.
      degrees: R, the degree of the polynomial in each input.

    Returns:
      Coefficients of shape `(outputs, 2 R_1 + 1, …)`, of the same kind of array.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax._src import fourier
      >>> grid = fourier.probe_grid((1,))
      >>> fourier.coefficients(np.sin(np.pi * grid), (1,)).round(6) + 0.0
      array([[0., 0., 1.]])
    """
    return _transformed(values, [_dual(degree) for degree in degrees])


def values_on_grid(table: np.ndarray) -> Float[np.ndarray, "settings outputs"]:
    """The polynomial on the probe grid: the inverse of `coefficients`."""
    outputs = table.shape[0]
    for size in table.shape[1:]:
        table = _product(table, np.linalg.inv(_dual((size - 1) // 2)).T)
    return table.reshape(outputs, -1).T


def variances(
    values: Float[np.ndarray, "settings outputs"], degrees: Degrees
) -> Float[np.ndarray, "outputs *sizes"]:
    """The variance of each coefficient, from those of independent answers on the probe grid."""
    return _transformed(values, [_dual(degree) ** 2 for degree in degrees])


def _dual(degree: int) -> Float[np.ndarray, "size size"]:
    size = 2 * degree + 1
    harmonics = np.pi * np.outer(np.arange(1, degree + 1), _grid_points(degree))
    dual = np.ones((size, size)) / size
    dual[1::2], dual[2::2] = 2 / size * np.cos(harmonics), 2 / size * np.sin(harmonics)
    return dual


def _transformed(values: Any, duals: list[np.ndarray]) -> Any:
    xp: Any = jnp if isinstance(values, jax.Array) else np
    table = xp.moveaxis(values, -1, 0).reshape((-1, *map(len, duals)))
    for dual in duals:  # each turn transforms the first input axis and sends it last
        table = _product(table, dual.astype(table.dtype).T)
    return table


def _product(table: Any, matrix: Any) -> Any:
    """Σ_k table[o, k, …] matrix[k, l], the axis l last; on a GPU not in TF32, its default."""
    if isinstance(table, np.ndarray) and isinstance(matrix, np.ndarray):
        return np.tensordot(table, matrix, (1, 0))
    return jnp.tensordot(table, matrix, (1, 0), precision=jax.lax.Precision.HIGHEST)


def _basis(cosine: Array, sine: Array, degree: int) -> list[Any]:
    """[1, cos πx, sin πx, …], higher harmonics by the addition theorems."""
    basis, c, s = [1.0], cosine, sine
    for harmonic in range(1, degree + 1):
        if harmonic > 1:
            c, s = c * cosine - s * sine, s * cosine + c * sine
        basis += [c, s]
    return basis


def _nested(table: Any, support: Bool[np.ndarray, "..."], bases: list[list[Any]]) -> Any:
    """Σ_k c_k Π_j b_{k_j} over the support alone; 0.0 where none is left."""
    if not support.any():
        return 0.0
    if table.ndim == 0:
        return table if isinstance(table, jax.Array) else float(table)
    total: Any = 0.0
    for element, row, nonzero in zip(bases[0], table, support, strict=True):
        inner = _nested(row, nonzero, bases[1:])
        if isinstance(inner, float) and inner == 0.0:
            continue
        term = inner if isinstance(element, float) else element * inner
        total = term if isinstance(total, float) and total == 0.0 else total + term
    return total


def _dense(table: Any, bases: list[list[Any]]) -> list[Array]:
    """The same as one matrix product between the monomials of the two halves of the inputs."""
    shape, dtype, split = bases[0][0].shape, bases[0][0].dtype, len(bases) // 2

    def monomials(part: list[list[Any]]) -> Array:
        rows = (functools.reduce(operator.mul, x) for x in itertools.product(*part))
        return jnp.stack([row.ravel() for row in rows])

    right = monomials(bases[split:])
    matrix = jnp.asarray(table, dtype).reshape(-1, right.shape[0])
    inner = jnp.matmul(matrix, right, precision=jax.lax.Precision.HIGHEST)
    inner = inner.reshape(table.shape[0], matrix.shape[0] // table.shape[0], right.shape[1])
    outputs = (inner * monomials(bases[:split])[None]).sum(1) if split else inner[:, 0]
    return [output.reshape(shape) for output in outputs]


def evaluate(
    table: Table,
    thetas: Sequence[Float[Array, "*shape"]],
    origin: Any = None,
    support: Bool[np.ndarray, "outputs *sizes"] | None = None,
) -> list[Float[Array, "*shape"]]:
    r"""The polynomial at many points: elementwise, wherever the points lie.

    .. math:: f(\theta) = \sum_k c_k \prod_j b_{k_j}(\theta_j - \theta^0_j)

    Concrete (NumPy) coefficients are specialised: zeros cost nothing. Traced ones at no more
    than 1,024 points, and tables of more than 512 terms, go through a matrix product, which
    holds about `outputs * (2 degree + 1)^(n/2)` values a point in memory.

    Args:
      table: coefficients, shape `(outputs, 2 R_1 + 1, …)`.
      thetas: one array for each input, all of one shape, in half turns.
      origin: θ⁰, the point about which the coefficients are meant, in half turns; by
        default zero.
      support: where traced coefficients can be other than zero, a boolean array of the table's
        shape; by default everywhere.

    Returns:
      One array for each output, of that shape and dtype.

    Example:
      >>> import numpy as np, jax.numpy as jnp
      >>> from qsgd_jax._src import fourier
      >>> product = np.array([[[0, 0, 0], [0, 0, 0], [0, 0, 1.0]]])  # sin πx · sin πy
      >>> print(fourier.evaluate(product, [jnp.array(0.5), jnp.array(1 / 6)])[0])
      0.5
    """
    points = []
    origin = [0.0] * len(thetas) if origin is None else origin
    for theta, start in zip(thetas, origin, strict=True):
        x = within_period(theta) - jnp.asarray(start, theta.dtype) if _moved(start) else theta
        points.append((cospi(x), sinpi(x)))
    sizes = zip(points, table.shape[1:], strict=True)
    bases = [_basis(cosine, sine, size // 2) for (cosine, sine), size in sizes]
    concrete, like = isinstance(table, np.ndarray), jnp.asarray(points[0][0])
    sparse = concrete or support is not None
    if concrete:
        nonzero: Any = np.abs(table) > ZERO
    else:
        nonzero = np.ones(table.shape, bool) if support is None else support
    if nonzero.sum() > MAX_UNROLLED_TERMS or (not sparse and like.size <= _FEW_POINTS):
        return _dense(table, [[jnp.ones_like(like), *basis[1:]] for basis in bases])
    if not concrete:
        table = table.astype(like.dtype)
    outputs = [
        jnp.asarray(_nested(t, s, bases), like.dtype) for t, s in zip(table, nonzero, strict=True)
    ]
    return [jnp.broadcast_to(output, like.shape) for output in outputs]


def _moved(start: Any) -> bool:
    """Whether an origin differs from 0, as far as is known."""
    return isinstance(start, jax.Array) or start != 0


def elementwise(table: Table) -> Float[np.ndarray, "1 size"] | None:
    """The one-input table that serves each coordinate by itself, if the circuit allows it.

    That is so where output j depends on input j alone and by the same polynomial,
    as without entanglement at depth 0. It is read off the probed coefficients.

    Args:
      table: coefficients, shape `(outputs, 2 R_1 + 1, …)`.

    Returns:
      A table of shape `(1, 2 R + 1)`, or `None`.
    """
    n = table.ndim - 1
    if not isinstance(table, np.ndarray) or table.shape[0] != n or len(set(table.shape[1:])) > 1:
        return None
    rest = np.where(np.abs(table) > ZERO, table, 0.0)
    first = None
    for j in range(n):
        line = tuple([j] + [0] * j + [slice(None)] + [0] * (n - 1 - j))
        first = rest[line].copy() if first is None else first
        if np.abs(rest[line] - first).max() > ZERO:
            return None
        rest[line] = 0.0
    return None if first is None or rest.any() else first[None]
