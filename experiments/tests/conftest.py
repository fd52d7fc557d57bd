"""Precision and central differences."""

import jax
import numpy as np
import pytest


@pytest.fixture
def float64():
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def central():
    """`(function, x, step=1e-5)`: the gradient of a scalar function by central differences."""

    def central(function, x, step=1e-5):
        shifts = step * np.eye(x.size).reshape(-1, *x.shape)
        slopes = [(function(x + shift) - function(x - shift)) / (2 * step) for shift in shifts]
        return np.reshape(slopes, x.shape)

    return central
