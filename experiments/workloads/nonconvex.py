"""Non-convex landscapes of any dimension, as workloads: four classics and a spin glass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.landscapes import rosenbrock
from experiments.engine.workload import KeyArray, Scalar, Workload

Parameters = dict[str, Float[Array, " n"]]
Constants = dict[str, Array]
EXACT = 20  # spins, up to which the minimum of a spin glass is known by enumeration
DESCENTS = 1000  # of single flips, the best of which counts beyond
# The root of 4 a³ − 32 a + 5 that is the global minimum of x⁴ − 16 x² + 5 x.
STYBLINSKI_TANG_MINIMUM = -2.903534027771177


@dataclass(frozen=True)
class Landscape:
    """A function to minimise, and what counts as having done so.

    Attributes:
        name: Of the function, one of `NAMES`.
        workload: Its parameters are `{"x": Float[Array, "n"]}`, drawn uniformly from the usual
            search box; both its losses are the excess over the minimum, so that 0 is the best.
            Beyond 20 spins the minimum of a spin glass is only the best known, and a better
            vertex has a negative excess.
        tolerance: A run has succeeded if its excess is at most this. It lies below every local
            minimum of the four classics, so that all that succeeds is in the global basin.
    """

    name: str
    workload: Workload
    tolerance: float


def rastrigin(x: Float[Array, " n"]) -> Scalar:
    """Σ x² + 10 − 10 cos 2πx, zero at 0; the next minima, of 0.995, have one coordinate at ±1."""
    return jnp.sum(x**2 + 20 * jnp.sin(jnp.pi * x) ** 2)  # float32 keeps no 10 − 10 cos near 0


def ackley(x: Float[Array, " n"]) -> Scalar:
    """20 + e − 20 exp(−0.2 √mean x²) − exp(mean cos 2πx), zero at 0, a cone there."""
    square = jnp.mean(x**2)
    # The root's gradient at 0 is infinite, and infinity times 0 is NaN: there, take 0.
    distance = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    ripple = -2 * jnp.mean(jnp.sin(jnp.pi * x) ** 2)  # mean cos 2πx − 1
    return -20 * jnp.expm1(-0.2 * distance) - jnp.e * jnp.expm1(ripple)


def styblinski_tang(x: Float[Array, " n"]) -> Scalar:
    """½ Σ x⁴ − 16 x² + 5 x, and 39.166 more each; the next minima, of 14.13, at 2.747 in one."""
    a = STYBLINSKI_TANG_MINIMUM
    # Factored, for the sum is of hundreds, of which float32 has few digits to spare at the minimum.
    return jnp.sum(0.5 * (x - a) ** 2 * (x**2 + 2 * a * x + 3 * a**2 - 16))


def spin_glass(x: Float[Array, " n"], couplings: Float[Array, "n n"]) -> Scalar:
    """−½ sᵀ J s of the spins s = sin πx.

    It is linear in each spin, so that its minimum lies where all are ±1.

    Args:
        x: Coordinates.
        couplings: J, symmetric, zero on the diagonal.
    """
    spins = jnp.sin(jnp.pi * x)
    # Else a GPU rounds the products to three digits.
    return -0.5 * jnp.dot(spins, jnp.dot(couplings, spins, precision="highest"))


@dataclass(frozen=True)
class _Classic:
    """A function of minimum 0, half the width of its box, and the tolerance."""

    function: Callable[[Float[Array, " n"]], Scalar]
    box: float
    tolerance: float


_CLASSICS: dict[str, _Classic] = {
    "rastrigin": _Classic(rastrigin, 5.12, 0.5),
    # Its lowest local minimum falls from 2.6 in two dimensions to 0.9 in many: there the cone is
    # steeper than the ripples of a few coordinates.
    "ackley": _Classic(ackley, 5.0, 0.4),
    "styblinski-tang": _Classic(styblinski_tang, 5.0, 5.0),
    # From four dimensions on there is a local minimum near (−1, 1, …, 1), of 3.7 or more.
    "rosenbrock": _Classic(rosenbrock, 2.0, 0.1),
}
NAMES = (*_CLASSICS, "spin-glass")


def landscape(name: str, dimension: int) -> Landscape:
    """Return a landscape.

    Args:
        name: One of `NAMES`.
        dimension: Number of coordinates, at least 2.

    Raises:
        ValueError: If there is no such landscape.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r} must be one of {', '.join(NAMES)}.")
    if not isinstance(dimension, int) or dimension < 2:
        raise ValueError(f"dimension={dimension!r} must be an integer of at least 2.")
    if name == "spin-glass":
        return _spin_glass(dimension)
    classic = _CLASSICS[name]
    # Unshifted, the minima of Rastrigin and Ackley have integer coordinates, where sin πx, the
    # weight of the circuit without entanglement, is 0: the method would do nothing just there,
    # which favours or handicaps it for no reason that other tasks share.
    shift = np.random.default_rng(dimension).uniform(-0.5, 0.5, dimension)
    workload = _workload(
        f"{name}-{dimension}",
        dimension,
        classic.box,
        {"shift": jnp.asarray(shift)},
        lambda x, data: classic.function(x - data["shift"]),
    )
    return Landscape(name, workload, classic.tolerance)


def _spin_glass(dimension: int) -> Landscape:
    minimum = spin_glass_minimum(dimension)
    workload = _workload(
        f"spin-glass-{dimension}",
        dimension,
        1.0,
        {"couplings": jnp.asarray(spin_glass_couplings(dimension))},
        lambda x, data: spin_glass(x, data["couplings"]) - minimum,
    )
    return Landscape("spin-glass", workload, 1e-2 * abs(minimum))


def _workload(
    name: str,
    dimension: int,
    box: float,
    constants: Constants,
    excess: Callable[[Float[Array, " n"], Constants], Scalar],
) -> Workload:
    def init(key: KeyArray) -> Parameters:
        return {"x": jax.random.uniform(key, (dimension,), minval=-box, maxval=box)}

    return Workload(
        name=name,
        family="landscape",
        init=init,
        data=lambda key: constants,
        loss=lambda params, data, key: excess(params["x"], data),
        validation_loss=lambda params, data: excess(params["x"], data),
    )


def spin_glass_couplings(dimension: int) -> Float[np.ndarray, "n n"]:
    """Return Sherrington's and Kirkpatrick's couplings, fixed by the number of spins.

    Args:
        dimension: n, the number of spins; each coupling has variance 1/n, the diagonal is zero.
    """
    drawn = np.random.default_rng(dimension).standard_normal((dimension, dimension))
    upper = np.triu(drawn, 1) / np.sqrt(dimension)
    return upper + upper.T


@functools.cache
def spin_glass_minimum(dimension: int) -> float:
    """Return the least energy, exact up to 20 spins; beyond, only the best known.

    Args:
        dimension: Number of spins.
    """
    couplings = spin_glass_couplings(dimension)
    return _enumerated(couplings) if dimension <= EXACT else _best_of_descents(couplings)


def _enumerated(couplings: Float[np.ndarray, "n n"]) -> float:
    """The least energy of all vertices: two halves, and what couples them, as one matrix."""
    n = len(couplings)
    first, second = slice(0, n // 2), slice(n // 2, n)

    def vertices(count: int) -> Float[np.ndarray, "vertices spins"]:
        return 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)

    def energies(spins: Float[np.ndarray, "vertices spins"], half: slice) -> np.ndarray:
        return -0.5 * np.einsum("vi,ij,vj->v", spins, couplings[half, half], spins)

    one = vertices(n // 2)
    other = vertices(n - n // 2)
    other = other[: len(other) // 2]  # flipping all spins changes nothing: the last one is up
    between = -one @ couplings[first, second] @ other.T
    return float((energies(one, first)[:, None] + energies(other, second) + between).min())


def _best_of_descents(couplings: Float[np.ndarray, "n n"]) -> float:
    """The least energy of descents from random vertices that flip the spin that gains most."""
    n = len(couplings)
    spins = np.random.default_rng(n).choice([-1.0, 1.0], (DESCENTS, n))
    fields = spins @ couplings
    rows = np.arange(DESCENTS)
    while True:
        aligned = spins * fields  # a flip changes the energy by twice this
        chosen = aligned.argmin(1)
        # Rounding must not flip a spin for ever that gains nothing.
        going = aligned[rows, chosen] < -1e-9
        if not going.any():
            return float((-0.5 * aligned.sum(1)).min())
        moved, flipped = rows[going], chosen[going]
        spins[moved, flipped] *= -1
        fields[moved] += 2 * spins[moved, flipped, None] * couplings[flipped]
