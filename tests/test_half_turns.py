"""Sine and cosine of half turns against the libm, with exact reduction."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qsgd_jax._src import half_turns


def _half_turns(x, function):
    """`function(πx)` from the libm, with x reduced exactly: IEEE's remainder has no rounding."""
    reduced = np.asarray(x, np.float64)
    return np.array([function(math.pi * math.remainder(value, 2)) for value in reduced])


# math.sin near ±π is off by the rounding of π alone, 1.2e-16.
@pytest.mark.bits
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
    ("ours", "libm"),
    [(half_turns.sinpi, math.sin), (half_turns.cospi, math.cos)],
    ids=["sin", "cos"],
)
def test_sinpi_and_cospi_on_a_dense_sweep(dtype, ours, libm, jitted):
    x = np.linspace(-1, 1, 200_001).astype(dtype)
    result = (jax.jit(ours) if jitted else ours)(jnp.asarray(x))
    assert result.dtype == dtype
    error = np.max(np.abs(np.asarray(result, np.float64) - _half_turns(x, libm)))
    assert error <= {"float32": 2e-7, "float64": 5e-16}[dtype.name]
    assert np.max(np.abs(result)) <= 1


@pytest.mark.bits
@pytest.mark.parametrize("jitted", [False, True])
def test_sinpi_and_cospi_are_exact_at_quarter_turns(dtype, jitted):
    sinpi, cospi = (jax.jit(f) if jitted else f for f in (half_turns.sinpi, half_turns.cospi))
    integers = np.concatenate([np.arange(-1000, 1001), [10**6, -(10**6), 10**6 - 1, 2**22 + 1]])
    parity = 1 - 2 * (integers % 2)
    whole, half = jnp.asarray(integers, dtype), jnp.asarray(integers + 0.5, dtype)
    assert np.array_equal(sinpi(whole), np.zeros(len(integers)))
    assert np.array_equal(cospi(half), np.zeros(len(integers)))
    one = {"float32": 1e-7, "float64": 1e-15}[dtype.name]
    np.testing.assert_allclose(cospi(whole), parity, rtol=one)
    np.testing.assert_allclose(sinpi(half), parity, rtol=one)


@pytest.mark.bits
@pytest.mark.parametrize("largest", [3.0, 1e3, 1e6])
@pytest.mark.parametrize("jitted", [False, True])
def test_sinpi_and_cospi_at_large_arguments(dtype, jitted, largest):
    x = np.random.default_rng(0).uniform(-largest, largest, 20_000).astype(dtype)
    for ours, libm in ((half_turns.sinpi, math.sin), (half_turns.cospi, math.cos)):
        result = (jax.jit(ours) if jitted else ours)(jnp.asarray(x))
        error = np.max(np.abs(np.asarray(result, np.float64) - _half_turns(x, libm)))
        assert error <= {"float32": 2e-7, "float64": 5e-16}[dtype.name]


def test_sinpi_keeps_relative_precision_near_zero(dtype):
    """What `sin(π · round(x))` would lose: the smallest θ have weights of πθ."""
    x = jnp.asarray([1e-30, -1e-12, 1e-5], dtype)
    relative = np.asarray(half_turns.sinpi(x), np.float64) / (np.pi * np.asarray(x, np.float64))
    np.testing.assert_allclose(relative, 1, rtol={"float32": 3e-7, "float64": 1e-9}[dtype.name])


def test_sinpi_and_cospi_of_what_is_not_finite(dtype):
    x = jnp.asarray([np.inf, -np.inf, np.nan], dtype)
    assert np.all(np.isnan(half_turns.sinpi(x))) and np.all(np.isnan(half_turns.cospi(x)))


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_derivatives_of_sinpi_and_cospi(float64, mode):
    """Also where `round` and `min` in the reduction have kinks."""
    x = np.concatenate([np.random.default_rng(0).uniform(-9, 9, 50), np.arange(-3, 3.25, 0.25)])
    sine, cosine = np.sin(np.pi * x), np.cos(np.pi * x)
    for f, first, second in (
        (half_turns.sinpi, np.pi * cosine, -(np.pi**2) * sine),
        (half_turns.cospi, -np.pi * sine, -(np.pi**2) * cosine),
    ):
        np.testing.assert_allclose(jax.jit(jax.vmap(mode(f)))(x), first, atol=1e-12)
        np.testing.assert_allclose(jax.jit(jax.vmap(mode(mode(f))))(x), second, atol=1e-12)


PERIODS = (2.0, 2 * math.pi, 4 * math.pi, 1.0, 0.3, 360.0, 1e-3, 7e4 / 3)


@pytest.mark.bits
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("period", PERIODS)
def test_an_input_of_any_period_loses_nothing_to_the_periods_before_it(dtype, period, jitted):
    """Up to 32,768 of them. Rounded first, 2x/P would in float32 be off by 0.004 half turns."""
    convert = functools.partial(half_turns.half_turns, period=period)
    x = np.random.default_rng(0).uniform(-32_000, 32_000, 5_000) * period
    x = np.concatenate([x, np.linspace(-1, 1, 101) * period]).astype(dtype)
    result = (jax.jit(convert) if jitted else convert)(jnp.asarray(x))
    assert result.dtype == dtype
    expected = [math.remainder(value, period) * 2 / period for value in x.astype(np.float64)]
    # The ends of a period are one point.
    error = np.abs(np.remainder(np.asarray(result, np.float64) - expected + 1, 2) - 1)
    assert np.max(error) <= {"float32": 4e-7, "float64": 3e-11}[dtype.name]


@pytest.mark.parametrize("period", PERIODS)
def test_the_derivative_of_half_turns(dtype, period):
    slope = jax.vmap(jax.grad(lambda x: half_turns.half_turns(x, period)))
    x = jnp.asarray([-3.3, 0.0, 0.5, 1.0, 70.2], dtype) * period
    np.testing.assert_allclose(slope(x), 2 / period, rtol=1e-6)
