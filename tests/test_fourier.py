"""The Fourier form against exact reduction, explicit sums, `qml.fourier` and the circuit."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

import qsgd_jax as qsgd
from qsgd_jax._src import devices, fourier
from tests.combinations import pairwise

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
DEVICES = ("lightning.qubit", "default.qubit")


def _half_turns(x, function):
    """`function(πx)` from the libm, with x reduced exactly: IEEE's remainder has no rounding."""
    reduced = np.asarray(x, np.float64)
    return np.array([function(math.pi * math.remainder(value, 2)) for value in reduced])


# math.sin near ±π is off by the rounding of π alone, 1.2e-16.
@pytest.mark.bits
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
    ("ours", "libm"), [(fourier.sinpi, math.sin), (fourier.cospi, math.cos)], ids=["sin", "cos"]
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
    sinpi, cospi = (jax.jit(f) if jitted else f for f in (fourier.sinpi, fourier.cospi))
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
    for ours, libm in ((fourier.sinpi, math.sin), (fourier.cospi, math.cos)):
        result = (jax.jit(ours) if jitted else ours)(jnp.asarray(x))
        error = np.max(np.abs(np.asarray(result, np.float64) - _half_turns(x, libm)))
        assert error <= {"float32": 2e-7, "float64": 5e-16}[dtype.name]


def test_sinpi_keeps_relative_precision_near_zero(dtype):
    """What `sin(π · round(x))` would lose: the smallest θ have weights of πθ."""
    x = jnp.asarray([1e-30, -1e-12, 1e-5], dtype)
    relative = np.asarray(fourier.sinpi(x), np.float64) / (np.pi * np.asarray(x, np.float64))
    np.testing.assert_allclose(relative, 1, rtol={"float32": 3e-7, "float64": 1e-9}[dtype.name])


def test_sinpi_and_cospi_of_what_is_not_finite(dtype):
    x = jnp.asarray([np.inf, -np.inf, np.nan], dtype)
    assert np.all(np.isnan(fourier.sinpi(x))) and np.all(np.isnan(fourier.cospi(x)))


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_derivatives_of_sinpi_and_cospi(float64, mode):
    """Also where `round` and `min` in the reduction have kinks."""
    x = np.concatenate([np.random.default_rng(0).uniform(-9, 9, 50), np.arange(-3, 3.25, 0.25)])
    sine, cosine = np.sin(np.pi * x), np.cos(np.pi * x)
    for f, first, second in (
        (fourier.sinpi, np.pi * cosine, -(np.pi**2) * sine),
        (fourier.cospi, -np.pi * sine, -(np.pi**2) * cosine),
    ):
        np.testing.assert_allclose(jax.jit(jax.vmap(mode(f)))(x), first, atol=1e-12)
        np.testing.assert_allclose(jax.jit(jax.vmap(mode(mode(f))))(x), second, atol=1e-12)


@pytest.mark.parametrize(("n", "degree"), [(1, 1), (2, 1), (2, 3), (4, 1), (3, 2)])
def test_probe_grid_avoids_the_angles_that_a_transpiler_drops(n, degree):
    grid = fourier.probe_grid(n, degree)
    assert grid.shape == (fourier.n_settings(n, degree), n) == ((2 * degree + 1) ** n, n)
    assert len(np.unique(grid, axis=0)) == len(grid)
    assert np.min(np.abs(grid)) > 1e-3 and np.max(np.abs(grid)) <= 1


def _monomials(theta, degree):
    """Π_j b_{k_j}(θ_j) for every k, row-major, `(batch, (2 degree + 1)^n)`, from the definition."""
    harmonics = np.pi * np.arange(1, degree + 1) * theta[..., None]
    pairs = np.stack([np.cos(harmonics), np.sin(harmonics)], -1).reshape(*theta.shape, -1)
    basis = np.concatenate([np.ones((*theta.shape, 1)), pairs], -1)
    return np.array([[math.prod(term) for term in itertools.product(*row)] for row in basis])


SHAPES = ((1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (4, 1))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("n", "degree"), SHAPES)
def test_coefficients_of_a_known_polynomial(float64, n, degree, traced):
    table = np.random.default_rng(n).normal(size=(3,) + (2 * degree + 1,) * n)
    values = _monomials(fourier.probe_grid(n, degree), degree) @ table.reshape(3, -1).T
    find = functools.partial(fourier.coefficients, n_qubits=n, degree=degree)
    found = jax.jit(find)(values) if traced else find(values)
    assert isinstance(found, jax.Array if traced else np.ndarray)
    np.testing.assert_allclose(found, table, atol=1e-12)


@pairwise(
    shape=SHAPES,
    way=("unrolled", "dense", "traced"),
    dtype=("float32", "float64"),
    indirect=("dtype",),
)
def test_evaluation_is_the_sum_over_all_terms(dtype, monkeypatch, shape, way):
    n, degree = shape
    rng = np.random.default_rng(n)
    table = rng.normal(size=(2,) + (2 * degree + 1,) * n)
    table[rng.uniform(size=table.shape) < 0.3] = 0.0
    monkeypatch.setattr(fourier, "_MAX_UNROLLED_TERMS", 10**9 if way == "unrolled" else 0)
    theta = rng.uniform(-3, 3, (6, n)).astype(dtype)
    expected = _monomials(theta.astype(np.float64), degree) @ table.reshape(2, -1).T
    columns = [jnp.asarray(column.reshape(2, 3)) for column in theta.T]
    if way == "traced":
        result = jax.jit(fourier.evaluate)(jnp.asarray(table, dtype), columns)
    else:
        result = jax.jit(lambda columns: fourier.evaluate(table, columns))(columns)
    assert all(output.dtype == dtype and output.shape == (2, 3) for output in result)
    scale = np.sum(np.abs(table))
    for output, answer in zip(result, expected.T, strict=True):
        tolerance = {"float32": 1e-6, "float64": 1e-14}[dtype.name] * scale
        np.testing.assert_allclose(np.ravel(output), answer, atol=tolerance)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)])
@pytest.mark.parametrize("traced", [False, True])
def test_evaluation_keeps_any_shape(shape, traced):
    table = np.arange(18.0).reshape(2, 3, 3)
    thetas = [jnp.ones(shape), jnp.ones(shape)]
    outputs = fourier.evaluate(jnp.asarray(table) if traced else table, thetas)
    assert [output.shape for output in outputs] == [shape, shape]


def test_evaluation_of_a_constant_and_of_nothing():
    table = np.zeros((2, 3, 3))
    table[1, 0, 0] = 0.25
    outputs = fourier.evaluate(table, [jnp.ones((2, 2))] * 2)
    np.testing.assert_array_equal(outputs, [np.zeros((2, 2)), np.full((2, 2), 0.25)])


def _elementwise_table(n, lines):
    """Output j is the polynomial `lines[j]` of input j alone."""
    table = np.zeros((n,) + (3,) * n)
    for j, line in enumerate(lines):
        np.moveaxis(table[j], j, -1)[(0,) * (n - 1)] = line
    return table


@pytest.mark.parametrize("n", [1, 2, 3])
def test_elementwise_finds_the_polynomial_of_one_coordinate(n):
    line = [0.25, -0.5, 0.125]
    np.testing.assert_array_equal(
        fourier.elementwise(_elementwise_table(n, [line] * n)), np.array([line])
    )


def test_elementwise_refuses_all_else():
    line = [0.0, 0.0, 1.0]
    table = _elementwise_table(2, [line, line])
    assert fourier.elementwise(jnp.asarray(table)) is None  # its zeros are not known
    assert fourier.elementwise(_elementwise_table(2, [line, [0.0, 1e-9, 1.0]])) is None
    assert fourier.elementwise(table[::-1]) is None  # output 0 depends on input 1
    assert fourier.elementwise(np.zeros((4, 3, 3))) is None  # probabilities
    for place in ((0, 1, 1), (1, 0, 0), (1, 2, 0)):
        changed = table.copy()
        changed[place] += 1e-9
        assert fourier.elementwise(changed) is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "depth", "uploads"), [(1, 2, 3), (2, 1, 2), (2, 2, 1), (3, 2, 1)])
def test_coefficients_agree_with_pennylane(device, n, depth, uploads):
    circuit = qsgd.Circuit(n, depth, uploads, seed=5)
    qnode = circuit.qnode(device)
    found = qsgd.Superposition(circuit, device=device).coefficients
    for j in range(n):
        # Of period 2π in each input, `c[k] e^{i k·x}` with k = 0 … R, −R … −1.
        complex_table = qml.fourier.coefficients(
            lambda x, j=j: np.ravel(qnode(circuit.origin + np.asarray(x) / np.pi))[j], n, uploads
        )
        for _ in range(n):  # one axis at a time, from exponentials to [1, cos, sin, …]
            c = np.moveaxis(complex_table, 0, -1)
            rows = [c[..., 0]]
            for k in range(1, uploads + 1):
                rows += [c[..., k] + c[..., -k], 1j * (c[..., k] - c[..., -k])]
            complex_table = np.stack(rows, -1)
        np.testing.assert_allclose(found[j], complex_table, atol=1e-12)


@functools.cache
def _probed(device, n, depth, uploads, readout):
    circuit = qsgd.Circuit(n, depth, uploads, seed=n + depth)
    opened = devices.open_device(device, n)
    grid = circuit.origin + fourier.probe_grid(n, uploads)
    values = devices.run(circuit, opened, grid, readout)
    return circuit, opened, fourier.coefficients(values, n, uploads)


@pairwise(
    probed=(
        (1, 1, 2, "expectation"),
        (1, 0, 1, "probabilities"),
        (2, 3, 1, "expectation"),
        (2, 3, 1, "probabilities"),
        (3, 2, 2, "expectation"),
        (3, 2, 2, "probabilities"),
        (4, 0, 1, "expectation"),
        (4, 3, 2, "probabilities"),  # 625 settings
        (5, 1, 1, "probabilities"),
        (6, 2, 1, "expectation"),  # 729 settings
    ),
    device=DEVICES,
    dtype=("float32", "float64"),
    indirect=("dtype",),
)
def test_fourier_form_is_the_circuit(simulate, dtype, probed, device):
    n, depth, uploads, readout = probed
    circuit, opened, table = _probed(device, n, depth, uploads, readout)
    theta = np.random.default_rng(n).uniform(-3, 3, (5, n)).astype(dtype)
    direct = jax.jit(lambda x: devices.run(circuit, opened, x, readout))(theta)
    origin = circuit.origin
    evaluated = jax.jit(lambda x: jnp.stack(fourier.evaluate(table, list(x.T), origin), -1))(theta)
    assert direct.dtype == evaluated.dtype == dtype
    tolerance = TOLERANCE[dtype.name]
    np.testing.assert_allclose(evaluated, direct, atol=tolerance, rtol=0)
    reference = simulate(theta, circuit.angles, uploads)[readout == "probabilities"]
    np.testing.assert_allclose(direct, reference, atol=tolerance, rtol=0)
    np.testing.assert_allclose(evaluated, reference, atol=tolerance, rtol=0)
