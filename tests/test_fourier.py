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


@pytest.mark.parametrize("degrees", [(1,), (1, 1), (3, 3), (1, 1, 1, 1), (2, 2, 2), (1, 3, 2)])
def test_probe_grid_avoids_the_angles_that_a_transpiler_drops(degrees):
    grid, size = fourier.probe_grid(degrees), math.prod(2 * degree + 1 for degree in degrees)
    assert grid.shape == (fourier.n_settings(degrees), len(degrees)) == (size, len(degrees))
    assert len(np.unique(grid, axis=0)) == len(grid)
    assert [len(np.unique(x.round(9))) for x in grid.T] == [2 * degree + 1 for degree in degrees]
    assert np.min(np.abs(grid)) > 1e-3 and np.max(np.abs(grid)) <= 1


def _monomials(theta, degrees):
    """Π_j b_{k_j}(θ_j) for every k, row-major, `(batch, Π_j (2 R_j + 1))`, from the definition."""

    def basis(x, degree):
        pairs = [
            (math.cos(r * math.pi * x), math.sin(r * math.pi * x)) for r in range(1, degree + 1)
        ]
        return [1.0, *itertools.chain(*pairs)]

    rows = ([basis(x, degree) for x, degree in zip(row, degrees, strict=True)] for row in theta)
    return np.array([[math.prod(term) for term in itertools.product(*row)] for row in rows])


def _sizes(degrees):
    return tuple(2 * degree + 1 for degree in degrees)


DEGREES = ((1,), (3,), (1, 1), (2, 2), (1, 1, 1), (1, 1, 1, 1), (3, 1), (1, 2, 1))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("degrees", DEGREES)
def test_coefficients_of_a_known_polynomial(float64, degrees, traced):
    table = np.random.default_rng(len(degrees)).normal(size=(3, *_sizes(degrees)))
    values = _monomials(fourier.probe_grid(degrees), degrees) @ table.reshape(3, -1).T
    find = functools.partial(fourier.coefficients, degrees=degrees)
    found = jax.jit(find)(values) if traced else find(values)
    assert isinstance(found, jax.Array if traced else np.ndarray)
    np.testing.assert_allclose(found, table, atol=1e-12)
    np.testing.assert_allclose(fourier.values_on_grid(table), values, atol=1e-12)


@pytest.mark.parametrize("degrees", DEGREES)
def test_interpolation_is_the_polynomial_off_the_grid(degrees):
    rng = np.random.default_rng(0)
    table, theta = rng.normal(size=(3, *_sizes(degrees))), rng.uniform(-3, 3, (7, len(degrees)))
    values = _monomials(fourier.probe_grid(degrees), degrees) @ table.reshape(3, -1).T
    expected = _monomials(theta, degrees) @ table.reshape(3, -1).T
    rows = fourier.interpolation(theta, degrees)
    np.testing.assert_allclose(rows @ values, expected, atol=1e-12)
    assert np.all((rows**2).sum(1) <= 1 + 1e-12)
    np.testing.assert_allclose(
        fourier.interpolation(fourier.probe_grid(degrees), degrees),
        np.eye(fourier.n_settings(degrees)),
        atol=1e-12,
    )


@pytest.mark.parametrize("degrees", DEGREES)
def test_variances_are_those_of_a_linear_map_of_independent_answers(degrees):
    settings = fourier.n_settings(degrees)
    each = np.stack([fourier.coefficients(row[:, None], degrees)[0] for row in np.eye(settings)])
    answers = np.random.default_rng(0).uniform(0, 1, (settings, 2))
    expected = np.einsum("sk,so->ok", each.reshape(settings, -1) ** 2, answers)
    found = fourier.variances(answers, degrees)
    np.testing.assert_allclose(found, expected.reshape(2, *_sizes(degrees)), atol=1e-13)


@pairwise(
    degrees=DEGREES,
    way=("unrolled", "dense", "traced at few points", "traced at many", "traced, zeros known"),
    dtype=("float32", "float64"),
    indirect=("dtype",),
)
def test_evaluation_is_the_sum_over_all_terms(dtype, monkeypatch, degrees, way):
    rng = np.random.default_rng(len(degrees))
    table = rng.normal(size=(2, *_sizes(degrees)))
    table[rng.uniform(size=table.shape) < 0.3] = 0.0
    monkeypatch.setattr(fourier, "MAX_UNROLLED_TERMS", 0 if way == "dense" else 10**9)
    monkeypatch.setattr(fourier, "_FEW_POINTS", 0 if way == "traced at many" else 10**9)
    theta = rng.uniform(-3, 3, (6, len(degrees))).astype(dtype)
    expected = _monomials(theta.astype(np.float64), degrees) @ table.reshape(2, -1).T
    columns = [jnp.asarray(column.reshape(2, 3)) for column in theta.T]
    if way.startswith("traced"):
        support = table != 0 if way == "traced, zeros known" else None
        given = table if support is None else np.where(support, table, np.nan)
        find = functools.partial(fourier.evaluate, support=support)
        result = jax.jit(find)(jnp.asarray(given, dtype), columns)
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
    assert fourier.elementwise(np.zeros((2, 3, 5))) is None  # of different degrees
    for place in ((0, 1, 1), (1, 0, 0), (1, 2, 0)):
        changed = table.copy()
        changed[place] += 1e-9
        assert fourier.elementwise(changed) is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "depth", "uploads"), [(1, 2, 3), (2, 1, 2), (2, 2, 1), (3, 2, 1)])
def test_coefficients_agree_with_pennylane(device, n, depth, uploads):
    circuit = qsgd.Circuit(n, depth, uploads, seed=5)
    qnode = circuit.qnode(device)
    found = qsgd.probe(circuit, device=device).coefficients
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
    grid = circuit.origin + fourier.probe_grid((uploads,) * n)
    values = devices.run(circuit, opened, grid, readout)
    return circuit, opened, fourier.coefficients(values, (uploads,) * n)


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
