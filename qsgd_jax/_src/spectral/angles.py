"""From an odd polynomial to the angles of the one-qubit circuit whose ⟨Z⟩ it is."""

from typing import Any

import numpy as np
from jaxtyping import Float

from qsgd_jax._src.spectral.polynomials import Odd, odd_coefficients, peak

# A polynomial that touches ±1 has a factor with double roots on the unit circle, at which Newton's
# method halves its error only; so much below 1 it does not.
MARGIN = 1e-9
_MOST_STEPS = 100  # 25 were the most at degree 101


def spectral_angles(polynomial: Any) -> Float[np.ndarray, " angles"]:
    r"""The angles at which `spectral_circuit` answers with an odd polynomial.

    .. math:: \langle Z \rangle_\alpha(\sigma) = f(\sigma) \, \min(1, (1 - 10^{-9}) / \max |f|)

    One that touches ±1 is scaled by :math:`1 - 10^{-9}`.

    Args:
      polynomial: f, by its coefficients of σ, σ³, σ⁵, …, or a `Polynomial` or `Chebyshev` of
        `numpy.polynomial`; beyond a degree of about 20 powers of σ lose digits that Chebyshev
        polynomials keep.

    Returns:
      α in radians, (degree + 1) / 2 of them.

    Raises:
      TypeError: if it is no polynomial.
      ValueError: if it has an even part, or leaves ±1 somewhere in [−1, 1].

    Example:
      >>> import qsgd_jax as qsgd
      >>> print(qsgd.spectral_angles([0.5]).round(6))  # σ/2
      [2.617994]

    References:
      Dong, Lin, Ni, Wang, arXiv:2205.07848; Motlagh, Wiebe, arXiv:2308.01501.
    """
    odd = odd_coefficients(polynomial)
    where, largest = peak(odd)
    if largest > 1 + MARGIN:
        raise ValueError(
            f"polynomial={polynomial!r} is {largest:.12g} at σ = {where:.4g}; a circuit answers "
            f"within ±1. Divided by {largest:.12g}, an output scale, it does."
        )
    return angles(odd * min(1.0, (1 - MARGIN) / largest))


def angles(odd: Odd) -> Float[np.ndarray, " angles"]:
    r"""The same of Chebyshev coefficients, |f| < 1.

    With w = exp(i arccos σ) there is a real polynomial h with 1 + f = |h(w)|². Before the last
    upload the qubit is in the state (P(w²), Q(w²)), with P and Q the odd and the even coefficients
    of h: then |P|² + |Q|² = 1, since f is odd. The last rotation is the one that leaves P no
    lowest and Q no highest coefficient; taken off, with two uploads, it leaves one degree less.
    """
    h = _factor(odd)
    p, q = h[1::2], h[0::2]
    found = []
    while len(p) > 1:
        angle = 2 * np.arctan2(-p[0], q[0])
        c, s = np.cos(angle / 2), np.sin(angle / 2)
        p, q = (c * p + s * q)[1:], (c * q - s * p)[:-1]
        found.append(angle)
    found.append(2 * np.arctan2(q[0], p[0]))
    return np.array(found[::-1])


def _factor(odd: Odd) -> Float[np.ndarray, " coefficients"]:
    """The real h with 1 + f = |h|², all roots of it outside the unit circle.

    That is Σ_j h_j h_{j+k} = r_k, by Newton's method. From a constant it converges to that h.
    (Wilson, SIAM J. Numer. Anal. 6, 1969)
    """
    r = np.zeros(2 * len(odd))
    r[0], r[1::2] = 1, odd / 2
    place = np.arange(len(r))
    later, earlier = place[:, None] + place, place - place[:, None]
    h, error = np.zeros(len(r)), np.inf
    h[0] = np.sqrt(r[0] + 2 * np.abs(r[1:]).sum())
    for _ in range(_MOST_STEPS):
        shifted = np.concatenate([h, np.zeros(len(r))])[later]
        residual = r - shifted @ h
        last, error = error, np.abs(residual).max()
        if error >= last and error < 1e-6:
            return h
        h = h + np.linalg.solve(shifted + np.where(earlier >= 0, h[earlier], 0), residual)
    raise ValueError(f"{odd} has no angles: it is not within ±1.")
