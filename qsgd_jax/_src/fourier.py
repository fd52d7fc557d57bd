"""A circuit as the trigonometric polynomial that it is: probe it once, evaluate it anywhere.

A circuit whose inputs enter only through `RY(−πθ_j)`, `R` times each, is exactly

    f(θ) = Σ_k c_k Π_j b_{k_j}(θ_j),   b = [1, cos πθ, sin πθ, …, cos Rπθ, sin Rπθ]

Its `(2R + 1)^n` coefficients follow from as many runs on a grid.

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

# A coefficient below this is rounding of a float64 simulator: dropping 729 of them
# moves a weight by less than 1e-11.
_ZERO = 1e-14
# More terms compile slowly as unrolled code; beyond, a matrix product serves them. So it does
# for traced coefficients, of which none can be left out, at few points; at many it is 20 times
# slower than unrolled code.
_MAX_UNROLLED_TERMS = 512
_FEW_POINTS = 1024

# sin(πs)/s in powers of s² (lowest first): least maximum error of the sine on [−½, ½],
# 8e-9, among coefficients that float32 holds exactly.
_SINPI_OVER_S = (
    3.1415927410125732,
    -5.1677141189575195,
    2.55012583732605,
    -0.5985169410705566,
    0.0780201405286789,
)


def _sinpi_core(s):
    """sin(πs) for |s| ≤ ½."""
    if s.dtype == jnp.float64:
        return jnp.sin(jnp.pi * s)
    z = s * s
    *lower, highest = _SINPI_OVER_S
    return s * functools.reduce(lambda total, c: total * z + c, reversed(lower), highest)


def within_period(x):
    """Half turns modulo the period 2, in [−1, 1]; exact in floating point."""
    return x - 2 * jnp.round(x / 2)


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
      >>> from qsgd_jax._src.fourier import sinpi
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
      >>> from qsgd_jax._src.fourier import cospi
      >>> print(cospi(jnp.array([0.0, 0.5, 1000001.0])))
      [ 1.  0. -1.]
    """
    return _sinpi_core(0.5 - jnp.abs(within_period(x)))


sinpi.defjvps(lambda tangent, _, x: jnp.pi * cospi(x) * tangent)
cospi.defjvps(lambda tangent, _, x: -jnp.pi * sinpi(x) * tangent)


def n_settings(n_qubits: int, degree: int) -> int:
    """Number of circuit runs that determine the polynomial, `(2 degree + 1)^n_qubits`."""
    return (2 * degree + 1) ** n_qubits


def _grid_points(degree: int) -> np.ndarray:
    """Equally spaced points over the period 2, none at 0, where a transpiler drops the gate."""
    size = 2 * degree + 1
    return -1 + 2 * (np.arange(size) + 0.25) / size


def probe_grid(n_qubits: int, degree: int) -> np.ndarray:
    """The settings of θ to probe, in half turns, shape `((2 degree + 1)^n_qubits, n_qubits)`."""
    return np.array(list(itertools.product(_grid_points(degree), repeat=n_qubits)))


def interpolation(theta: np.ndarray, degree: int) -> np.ndarray:
    r"""What the answers on the probe grid say about other settings.

    .. math:: f(\theta) = \sum_g K_g(\theta) f(\theta_g), \qquad
      K_g(\theta) = \prod_j \frac{1 + 2 \sum_{r=1}^{R} \cos r\pi(\theta_j - \theta_{gj})}{2R + 1}

    Args:
      theta: settings in half turns, shape `(settings, n_qubits)`.
      degree: R, the degree of the polynomial in each input.

    Returns:
      K, shape `(settings, (2 degree + 1)^n_qubits)`; the squares of a row add up to 1.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax._src import fourier
      >>> grid, theta = fourier.probe_grid(2, 1), np.array([[0.5, -1 / 6]])
      >>> (fourier.interpolation(theta, 1) @ np.sin(np.pi * grid)).round(6)
      array([[ 1. , -0.5]])
    """
    differences = np.pi * (theta[..., None] - _grid_points(degree))
    harmonics = np.arange(1, degree + 1) * differences[..., None]
    kernels = (1 + 2 * np.cos(harmonics).sum(-1)) / (2 * degree + 1)
    rows = np.ones((len(theta), 1))
    for j in range(theta.shape[-1]):
        rows = (rows[:, :, None] * kernels[:, j, None, :]).reshape(len(theta), -1)
    return rows


def coefficients(values, n_qubits: int, degree: int):
    r"""The Fourier coefficients of a circuit from its answers on the probe grid.

    .. math:: c_k = \sum_g f(\theta_g) \prod_j \tilde b_{k_j}(\theta_{g_j})

    with b̃ the discrete dual of the basis [1, cos πθ, sin πθ, …].

    Args:
      values: answers on `probe_grid`, shape `((2 degree + 1)^n_qubits, outputs)`;
        a NumPy array, or a JAX array that may be traced.
      n_qubits: number of inputs.
      degree: degree of the polynomial in each input.

    Returns:
      Coefficients of shape `(outputs, 2 degree + 1, …)`, an axis for each input,
      of the same kind of array.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax._src import fourier
      >>> grid = fourier.probe_grid(n_qubits=1, degree=1)
      >>> fourier.coefficients(np.sin(np.pi * grid), 1, 1).round(6) + 0.0
      array([[0., 0., 1.]])
    """
    size = 2 * degree + 1
    harmonics = np.pi * np.outer(np.arange(1, degree + 1), _grid_points(degree))
    dual = np.ones((size, size)) / size
    dual[1::2], dual[2::2] = 2 / size * np.cos(harmonics), 2 / size * np.sin(harmonics)
    xp: Any = jnp if isinstance(values, jax.Array) else np
    table = xp.moveaxis(values, -1, 0).reshape((-1,) + (size,) * n_qubits)
    for _ in range(n_qubits):  # each turn transforms the first input axis and sends it last
        table = _product(table, dual.astype(table.dtype).T)
    return table


def _product(table, matrix) -> Any:
    """Σ_k table[o, k, …] matrix[k, l], the axis l last; on a GPU not in TF32, its default."""
    if isinstance(table, np.ndarray) and isinstance(matrix, np.ndarray):
        return np.tensordot(table, matrix, (1, 0))
    return jnp.tensordot(table, matrix, (1, 0), precision=jax.lax.Precision.HIGHEST)


def _basis(cosine, sine, degree: int) -> list:
    """[1, cos πx, sin πx, …], higher harmonics by the addition theorems."""
    basis, c, s = [1.0], cosine, sine
    for harmonic in range(1, degree + 1):
        if harmonic > 1:
            c, s = c * cosine - s * sine, s * cosine + c * sine
        basis += [c, s]
    return basis


def _nested(table: Any, support: np.ndarray, bases: list):
    """Σ_k c_k Π_j b_{k_j} over the support alone; 0.0 where none is left."""
    if not support.any():
        return 0.0
    if table.ndim == 0:
        return table if isinstance(table, jax.Array) else float(table)
    total = 0.0
    for element, row, nonzero in zip(bases[0], table, support, strict=True):
        inner = _nested(row, nonzero, bases[1:])
        if isinstance(inner, float) and inner == 0.0:
            continue
        term = inner if isinstance(element, float) else element * inner
        total = term if isinstance(total, float) and total == 0.0 else total + term
    return total


def _dense(table, bases: list) -> list:
    """The same as one matrix product between the monomials of the two halves of the inputs."""
    shape, dtype, split = bases[0][1].shape, bases[0][1].dtype, len(bases) // 2

    def monomials(part):
        rows = (jnp.asarray(math.prod(factors), dtype) for factors in itertools.product(*part))
        return jnp.stack([jnp.broadcast_to(row, shape).ravel() for row in rows])

    right = monomials(bases[split:])
    matrix = jnp.asarray(table, dtype).reshape(-1, right.shape[0])
    inner = jnp.matmul(matrix, right, precision=jax.lax.Precision.HIGHEST)
    inner = inner.reshape(table.shape[0], matrix.shape[0] // table.shape[0], right.shape[1])
    outputs = (inner * monomials(bases[:split])).sum(1) if split else inner[:, 0]
    return [output.reshape(shape) for output in outputs]


def evaluate(
    table,
    thetas: Sequence[Float[Array, "..."]],
    origin: Any = None,
    support: Bool[np.ndarray, "outputs ..."] | None = None,
) -> list[Float[Array, "..."]]:
    r"""The polynomial at many points: elementwise, wherever the points lie.

    .. math:: f(\theta) = \sum_k c_k \prod_j b_{k_j}(\theta_j - \theta^0_j)

    Concrete (NumPy) coefficients are specialised: zeros cost nothing. Traced ones at no more
    than 1,024 points, and tables of more than 512 terms, go through a matrix product, which
    holds about `outputs * (2 degree + 1)^(n/2)` values a point in memory.

    Args:
      table: coefficients, shape `(outputs, 2 degree + 1, …)`.
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
    degree = (table.shape[1] - 1) // 2
    bases = [_basis(cosine, sine, degree) for cosine, sine in points]
    concrete, like = isinstance(table, np.ndarray), jnp.asarray(points[0][0])
    sparse = concrete or support is not None
    if concrete:
        nonzero: Any = np.abs(table) > _ZERO
    else:
        nonzero = np.ones(table.shape, bool) if support is None else support
    if nonzero.sum() > _MAX_UNROLLED_TERMS or (not sparse and like.size <= _FEW_POINTS):
        return _dense(table, bases)
    if not concrete:
        table = table.astype(like.dtype)
    outputs = [
        jnp.asarray(_nested(t, s, bases), like.dtype) for t, s in zip(table, nonzero, strict=True)
    ]
    return [jnp.broadcast_to(output, like.shape) for output in outputs]


def _moved(start: Any) -> bool:
    """Whether an origin differs from 0, as far as is known."""
    return isinstance(start, jax.Array) or start != 0


@jax.custom_jvp
def in_one_loop(arrays: list[Array]) -> list[Array]:
    """Arrays of one shape, unchanged, but computed together so that they share their sines.

    XLA:CPU gives each of them a loop of its own, which repeats all that it needs. Its only
    loop of several outputs is a reduction of several operands; this one adds a zero to each.
    """
    first = jax.lax.broadcasted_iota(jnp.int32, (2,) + (1,) * arrays[0].ndim, 0) == 0
    zeros = tuple(jnp.zeros((), array.dtype) for array in arrays)
    terms = tuple(jnp.where(first, array, zero) for array, zero in zip(arrays, zeros, strict=True))
    return list(jax.lax.reduce(terms, zeros, lambda x, y: tuple(map(operator.add, x, y)), (0,)))


in_one_loop.defjvp(lambda primals, tangents: (in_one_loop(*primals), *tangents))


def elementwise(table) -> np.ndarray | None:
    """The one-input table that serves each coordinate by itself, if the circuit allows it.

    That is so where output j depends on input j alone and by the same polynomial,
    as without entanglement at depth 0. It is read off the probed coefficients.

    Args:
      table: coefficients, shape `(outputs, 2 degree + 1, …)`.

    Returns:
      A table of shape `(1, 2 degree + 1)`, or `None`.
    """
    n = table.ndim - 1
    if not isinstance(table, np.ndarray) or table.shape[0] != n:
        return None
    rest = np.where(np.abs(table) > _ZERO, table, 0.0)
    first = None
    for j in range(n):
        line = tuple([j] + [0] * j + [slice(None)] + [0] * (n - 1 - j))
        first = rest[line].copy() if first is None else first
        if np.abs(rest[line] - first).max() > _ZERO:
            return None
        rest[line] = 0.0
    return None if first is None or rest.any() else first[None]
