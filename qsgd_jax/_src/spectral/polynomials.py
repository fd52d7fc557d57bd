"""Odd polynomials of a singular value: their coefficients, their range, and where they come from.

One is held as the coefficients c of its odd Chebyshev polynomials, `f(σ) = Σ_j c_j T_{2j+1}(σ)`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.polynomial import Chebyshev, Polynomial, chebyshev

Odd = Float[np.ndarray, " terms"]
"""Coefficients of T₁, T₃, T₅, …"""

MUON = (3.4445, -4.7750, 2.0315)
"""Of σ, σ³, σ⁵: one step of Muon's Newton–Schulz iteration. (Jordan et al., 2024)"""

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""The same of each step of Polar Express, as printed there. (Amsel et al., arXiv:2505.16932)"""


def odd_coefficients(polynomial: Any) -> Odd:
    """What a user may give as an odd polynomial.

    Args:
      polynomial: coefficients of σ, σ³, σ⁵, …, or a polynomial of `numpy.polynomial`.

    Returns:
      Those of its odd Chebyshev polynomials.

    Raises:
      TypeError: if it is something else.
      ValueError: if it has an even part, no coefficient, or one that is not finite.
    """
    if isinstance(polynomial, (Polynomial, Chebyshev)):
        found = polynomial.convert(domain=(-1, 1), kind=Chebyshev, window=(-1, 1))
        every = np.asarray(found.coef, np.float64)
        _check_finite(polynomial, every)
        even = np.abs(every[::2]).max()
        if even > 1e-12 * np.abs(every).max():
            raise ValueError(
                f"{polynomial!r} has an even part, of {even:.2g} in Chebyshev polynomials; allowed "
                "are odd ones, since σ and −σ are one singular value."
            )
        coefficients = every[1::2]
    else:
        powers = np.asarray(polynomial)
        other = isinstance(polynomial, np.poly1d)  # it begins with its highest power
        if other or powers.ndim != 1 or powers.dtype.kind not in "fiu":
            raise TypeError(
                f"polynomial={polynomial!r} must be the coefficients of σ, σ³, σ⁵, …, or a "
                "numpy.polynomial.Polynomial or Chebyshev; of a circuit, what qsgd_jax.probe makes."
            )
        _check_finite(polynomial, powers)
        every = np.zeros(2 * len(powers) + 1)
        every[1::2] = powers
        coefficients = chebyshev.poly2cheb(every)[1::2]
    if not coefficients.any():
        raise ValueError(f"polynomial={polynomial!r} is zero; allowed is one that moves something.")
    return coefficients


def _check_finite(polynomial: Any, coefficients: np.ndarray) -> None:
    if not coefficients.size or not np.isfinite(coefficients).all():
        raise ValueError(f"polynomial={polynomial!r} must have finite coefficients, at least one.")


def value(odd: Odd, sigma: Any) -> Any:
    """f(σ)."""
    return _series(odd)(np.asarray(sigma, np.float64))


def peak(odd: Odd, limit: float = 1.0) -> tuple[float, float]:
    """The σ in [0, limit] where |f| is largest, and that largest."""
    series = _series(odd)
    turning = series.deriv().roots() if len(odd) > 1 else np.zeros(0)
    turning = turning[np.abs(turning.imag) < 1e-6].real
    candidates = np.append(turning[(turning > 0) & (turning < limit)], limit)
    found = np.abs(series(candidates))
    return float(candidates[found.argmax()]), float(found.max())


def rescaled(odd: Odd, input_scale: float, output_scale: float) -> Odd:
    """The polynomial f(in · y) / out."""
    series = _series(odd)
    found = Chebyshev.interpolate(lambda y: series(input_scale * y), 2 * len(odd) - 1)
    return np.asarray(found.coef[1::2], np.float64) / output_scale


def powers(terms: int) -> Float[np.ndarray, "terms terms"]:
    """The coefficients of σ, σ³, σ⁵ and so on in T₁, T₃, T₅ and so on, row by row."""
    rows = (Chebyshev.basis(2 * j + 1).convert(kind=Polynomial).coef[1::2] for j in range(terms))
    return np.array([np.pad(row, (0, terms - len(row))) for row in rows])


def _series(odd: Odd) -> Chebyshev:
    every = np.zeros(2 * len(odd))
    every[1::2] = odd
    return Chebyshev(every)


def ranges(polynomials: Sequence[Odd]) -> list[float]:
    """How far σ can reach before each of a cascade's polynomials, and after the last.

    Singular values begin in [0, 1]. Where the first polynomial maps the range of the second one
    into itself, both have that range: equal polynomials are then one circuit.
    """
    found = [1.0]
    for odd in polynomials:
        found.append(peak(odd, found[-1])[1])
    wider = max(found[:2])
    if math.isclose(peak(polynomials[0], wider)[1], found[1], rel_tol=1e-12):
        found[0] = wider
    return found
