"""Precision and the references that several test modules share."""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Before anything asks jax for a device: the meshes of the tests, and of optax's, need eight.
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8"


def pytest_addoption(parser):
    parser.addoption(
        "--trainings", type=int, default=1, help="how many trainings test_resume kills"
    )


@pytest.fixture(autouse=True)
def _precision_stays():
    """A test that leaves double precision on would change those after it in its process."""
    yield
    left_on = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_x64", False)
    assert not left_on, "the test left double precision on"


@pytest.fixture
def float64():
    """Double precision for one test, so that both precisions share a process.

    For all threads: `jax.enable_x64` would leave those that run host callbacks in float32.
    """
    jax.config.update("jax_enable_x64", True)
    yield jnp.float64
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Each of the two precisions, as the only one that a test computes in."""
    if request.param == "float64":
        request.getfixturevalue("float64")
    return jnp.dtype(request.param)


def _simulate(theta, angles, uploads=1):
    """Circuit's formula on a state vector, `(blocks, n) -> ⟨Z⟩ (blocks, n), p (blocks, 2^n)`."""
    theta = np.asarray(theta, np.float64)
    blocks, n = theta.shape
    state = np.full((blocks,) + (2,) * n, 2 ** (-n / 2), np.complex128)

    def apply(gate, j):  # the gate's matrix, the same for all blocks or one for each
        nonlocal state
        moved = np.moveaxis(state, j + 1, -1)
        gate = gate.reshape((-1,) + (1,) * (n - 1) + (2, 2))
        state = np.moveaxis((gate @ moved[..., None])[..., 0], -1, j + 1)

    for layer in range(max(len(angles), uploads)):
        if layer < uploads:
            for j in range(n):
                apply(_ry(-np.pi * theta[:, j]), j)
        if layer < len(angles):
            for j in range(n):
                apply(_ry(angles[layer, j, 0]), j)
                apply(_rz(angles[layer, j, 1]), j)
            for j in range(n - 1):
                control = np.moveaxis(state, (j + 1, j + 2), (0, 1))  # a view: flips in place
                control[1] = control[1, ::-1].copy()
    probabilities = np.abs(state.reshape(blocks, 2**n)) ** 2
    z = np.array(list(itertools.product([1, -1], repeat=n)))  # the first qubit leads
    return probabilities @ z, probabilities


def _ry(angle):
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    return np.moveaxis(np.array([[c, -s], [s, c]]), (0, 1), (-2, -1))


def _rz(angle):
    return np.diag([np.exp(-0.5j * angle), np.exp(0.5j * angle)])


@pytest.fixture(scope="session")
def simulate():
    """`(theta, angles, uploads=1) -> (expectations, probabilities)` in plain NumPy."""
    return _simulate


def _central(function, x, step=1e-5):
    shifts = step * np.eye(x.size).reshape(-1, *x.shape)
    slopes = [(function(x + shift) - function(x - shift)) / (2 * step) for shift in shifts]
    return np.moveaxis(np.array(slopes), 0, -1).reshape(*np.shape(slopes[0]), *x.shape)


@pytest.fixture(scope="session")
def central():
    """`(function, x, step=1e-5)`: central differences, the axes of `x` behind those of values."""
    return _central
