"""One trigonometric polynomial of very many scalars, against NumPy's cosine and sine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from qsgd_jax._src import harmonics

pytestmark = pytest.mark.bits  # how far a program of XLA's is from cosine and sine
DEGREES = (1, 2, 3, 8, 9, 36)


def table_of(rng, degree, shape=()):
    table = rng.normal(size=(2, len(harmonics.frequencies(degree)), *shape))
    table[1, harmonics.frequencies(degree) == 0] = 0
    return table


def polynomial(table, degree, x, derivative=False):
    total = np.zeros(np.broadcast_shapes(table.shape[2:], x.shape))
    for a, b, nu in zip(*table, harmonics.frequencies(degree), strict=True):
        if derivative:
            total += nu * (b * np.cos(nu * x) - a * np.sin(nu * x))
        else:
            total += a * np.cos(nu * x) + b * np.sin(nu * x)
    return total


@pytest.mark.parametrize("degree", DEGREES)
def test_values_on_the_settings_give_the_coefficients(float64, degree):
    table = table_of(np.random.default_rng(0), degree, (3, 1))
    settings = harmonics.settings(degree)
    assert len(settings) == degree + 1 and settings.all()
    found = harmonics.coefficients(jnp.asarray(polynomial(table, degree, settings)), degree)
    np.testing.assert_allclose(found, table[..., 0], atol=1e-13)


@pytest.mark.parametrize("degree", DEGREES)
def test_evaluation_is_exact_whatever_the_size_of_x(dtype, degree):
    rng = np.random.default_rng(degree)
    table = table_of(rng, degree, (3, 1, 1))
    x = rng.normal(size=(2, 3, 5, 7)) * 10.0 ** rng.integers(-3, 5, (2, 3, 5, 7))
    x = np.concatenate([x, x * 0, x * 0 + np.pi, x * 0 - 3 * np.pi], -1).astype(dtype)
    found = harmonics.evaluate(jnp.asarray(table, dtype), degree, jnp.asarray(x))
    assert found.dtype == dtype
    expected = polynomial(table, degree, x.astype(np.float64))
    # Rounding of the phase grows with the frequency, that of 10⁴ radians in float64 with x.
    atol = degree * (3e-7 if dtype == jnp.float32 else 1e-11)
    np.testing.assert_allclose(found, expected, atol=atol * np.abs(table).sum((0, 1)).max())


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1), (3, 33, 2), (2, 3, 80, 4)])
@pytest.mark.parametrize("degree", [3, 8, 36])
def test_what_is_added_and_its_derivatives(float64, degree, shape):
    """Whatever number of rows the loops take at a time, and what the mask and x's factor say."""
    rng = np.random.default_rng(degree)
    heads = (3, 1, 1) if len(shape) == 4 else ()
    table = table_of(rng, degree, heads)
    x, weights, cotangent = rng.normal(size=(3, *shape))
    allowed = rng.random((*shape[:-2], 1, shape[-1])) < 0.6
    allowed[..., 0] = True
    x = np.where(allowed, x, np.nan)  # of no influence
    factor = 2.5

    def added(table, x, weights):
        return harmonics.add_where(table, degree, factor, x, weights, jnp.asarray(allowed))

    @jax.jit
    def found_and_slopes(*arguments):
        found, pull = jax.vjp(added, *arguments)
        return found, *pull(cotangent)

    found, of_table, of_x, of_weights = found_and_slopes(table, x, weights)
    clean, g = np.where(allowed, x, 0), np.where(allowed, cotangent, 0)
    expected = weights + np.where(allowed, polynomial(table, degree, factor * clean), 0)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    slope = factor * g * polynomial(table, degree, factor * clean, derivative=True)
    np.testing.assert_allclose(of_x, slope, atol=1e-11)
    np.testing.assert_array_equal(of_weights, cotangent)
    axes = (0, 2, 3) if heads else tuple(range(len(shape)))
    for nu, a, b in zip(harmonics.frequencies(degree), *of_table, strict=True):
        for each, basis in ((a, np.cos), (b, np.sin)):
            moment = (g * basis(nu * factor * clean)).sum(axes).reshape(heads)
            np.testing.assert_allclose(each, moment, atol=1e-11)


def test_coefficients_of_many_scores_lose_nothing_to_rounding():
    """A million float32 terms: added one by one, the sums of equal terms would stand still."""
    x = jnp.zeros((64, 128, 128), jnp.float32)
    everywhere = jnp.array(True)
    pull = jax.vjp(lambda t: harmonics.add_where(t, 8, 1.0, x, x, everywhere), jnp.zeros((2, 5)))[1]
    (found,) = pull(jnp.full(x.shape, 0.1, jnp.float32))
    np.testing.assert_allclose(found[0], 0.1 * x.size, rtol=1e-5)


@pytest.mark.slow
def test_derivatives_of_derivatives(float64):
    rng = np.random.default_rng(0)
    everywhere = jnp.array(True)
    table, x = jnp.asarray(table_of(rng, 3)), jnp.asarray(rng.normal(size=(3, 2)))

    def loss(table, x):
        return (harmonics.add_where(table, 3, 2.0, x, x, everywhere) ** 3).sum()

    check_grads(jax.grad(loss, (0, 1)), (table, x), order=1, modes=("rev", "fwd"))
