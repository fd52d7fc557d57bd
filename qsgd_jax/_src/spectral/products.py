"""An odd function of a matrix's singular values, by matrix products alone, in two forms."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qsgd_jax._src.spectral import polynomials
from qsgd_jax._src.spectral.cascade import SpectralCascade

Form = Literal["products", "gram"]

# Terms of a polynomial up to which its powers keep as many digits as its Chebyshev polynomials.
_FEW_POWERS = 4
# Of the update, relative: what the form on the Gram matrix may lose in float32.
_ROUNDING = 3e-4

Product = Callable[[Array, Array], Array]


def on_matrix(
    cascade: SpectralCascade,
    x: Float[Array, "m n"],
    form: Form | None = None,
    product_dtype: Any | None = None,
) -> Float[Array, "m n"]:
    r"""The cascade on the singular values of a matrix: :math:`U f(\Sigma) V^\top`.

    An odd polynomial of :math:`X` is one, P, of its Gram matrix :math:`A = X X^\dagger`, times X.
    Stage by stage that is, as Muon has it,

    .. math:: X \leftarrow P_s(X X^\dagger) \, X

    or, since P and A commute, without X but in the last product:

    .. math:: Q \leftarrow P_s(A) \, Q, \qquad A \leftarrow P_s(A) \, A \, P_s(A), \qquad Q X

    The second takes fewer operations where X is long. It squares σ: the rounding of A, about ε,
    is raised as a small σ² is, by the slopes :math:`P_s(0)^2`. So it begins anew where that
    would exceed 3e-4.

    Args:
      cascade: its polynomials and scales.
      x: real or complex, m ≤ n, of singular values within [0, 1].
      form: `"products"` with X, or on the `"gram"` matrix; by default the shorter, of traced
        polynomials, and where `product_dtype` is given, the former.
      product_dtype: what matrices are rounded to before they are multiplied; sums keep the dtype
        of x. By default nothing is rounded, on a GPU neither (to TF32).

    Returns:
      A matrix of that shape.
    """
    stages = list(
        zip(cascade.polynomials, cascade.input_scales, cascade.output_scales, strict=True)
    )
    product = functools.partial(_product, dtype=product_dtype)
    if form is None:
        known = product_dtype is None and not cascade.traced
        form = shorter_form(x.shape) if known else "products"
    for run in _runs(stages, x.dtype) if form == "gram" else [[stage] for stage in stages]:
        x = _on_gram(run, x, product) if len(run) > 1 else _on_product(run[0], x, product)
    return x


def shorter_form(shape: tuple[int, ...]) -> Form:
    """The form of fewer floating-point operations, for m ≤ n.

    Each stage after the first costs two products with X, 2 m²n, or three of A's size, 3 m³.
    """
    m, n = shape
    return "gram" if 2 * n > 3 * m else "products"


def _runs(stages: Sequence[Any], dtype: Any) -> list[Sequence[Any]]:
    """Stages that one Gram matrix carries: as few runs as rounding allows, of equal lengths."""

    def lost(run: Sequence[Any]) -> float:
        slopes = [o / i * float(odd @ polynomials.powers(len(odd))[:, 0]) for odd, i, o in run[:-1]]
        return float(jnp.finfo(dtype).eps) / 2 * math.prod(slopes) ** 2

    for count in range(1, len(stages) + 1):
        ends = [place * len(stages) // count for place in range(count + 1)]
        runs = [stages[start:end] for start, end in itertools.pairwise(ends)]
        if all(lost(run) <= _ROUNDING for run in runs):
            return runs
    raise AssertionError("A run of one stage loses nothing.")


def _product(a: Array, b: Array, dtype: Any) -> Array:
    if dtype is None:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=a.dtype)


def _on_product(stage: Any, x: Array, product: Product) -> Array:
    odd, i, o = stage
    y = x / i
    if len(odd) == 1:
        return _numbers(odd * o, y)[0] * y
    return product(_factor(odd * o, product(y, y.conj().T), product), y)


def _on_gram(stages: Sequence[Any], x: Array, product: Product) -> Array:
    gram, factors = product(x, x.conj().T), []
    for odd, i, o in stages:
        if factors:
            gram = product(factors[-1], product(gram, factors[-1]))
        factors.append(_factor(odd * (o / i), gram / i**2, product))
    return product(functools.reduce(lambda total, factor: product(factor, total), factors), x)


def _numbers(coefficients: Any, y: Array) -> list[Any]:
    """As Python's, unless traced: neither arrays of the program nor of a precision of their own."""
    if isinstance(coefficients, np.ndarray):
        return coefficients.tolist()
    return list(jnp.asarray(coefficients, y.real.dtype))


def _factor(odd: Any, gram: Array, product: Product) -> Array:
    r"""P(A) of f(Y) = P(Y Y†) Y, of singular values within [0, 1].

    In powers of A, as Muon sums it, or, of high degree, where powers lose all digits, by
    Clenshaw's recurrence, :math:`T_{2j+1}(x) = (4x^2 - 2) T_{2j-1}(x) - T_{2j-3}(x)`.
    """
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    if len(odd) <= _FEW_POWERS:
        first, *others = _numbers(odd @ polynomials.powers(len(odd)), gram)
        if not others:
            return first * identity
        total = others[-1] * gram
        for c in others[-2::-1]:
            total = c * gram + product(total, gram)
        return first * identity + total
    odd, step = _numbers(odd, gram), 4 * gram - 2 * identity
    after, now = odd[-1] * identity, odd[-2] * identity + odd[-1] * step
    for c in odd[-3::-1]:
        after, now = now, c * identity + product(step, now) - after
    return now - after
