"""The probe and its surrogate against NumPy, against the circuits probed, and as a value."""

import dataclasses
import functools
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from pennylane.devices import DefaultMixed

import qsgd_jax as qsgd
from qsgd_jax._src import fourier
from tests.combinations import pairwise

DEVICES = ("lightning.qubit", "default.qubit")


def _theta(n, points=20, seed=0):
    return np.random.default_rng(seed).uniform(-3, 3, (points, n))


def _answers(surrogate, theta):
    """`(points, inputs) -> (points, outputs)`."""
    columns = [jnp.asarray(column) for column in np.asarray(theta).T]
    return np.stack(jax.jit(surrogate.evaluate)(columns), axis=-1)


def _polynomial(table, origin, periods, theta):
    """Σ_k c_k Π_j b_{k_j}(2π (θ_j − θ⁰_j) / P_j) from the definition, `(points, outputs)`."""

    def basis(x, size):
        pairs = [(math.cos(r * x), math.sin(r * x)) for r in range(1, size // 2 + 1)]
        return [1.0, *itertools.chain(*pairs)]

    phases = 2 * np.pi * (theta - origin) / np.array(periods)
    monomials = [
        [math.prod(term) for term in itertools.product(*map(basis, row, table.shape[1:]))]
        for row in phases
    ]
    return np.array(monomials) @ table.reshape(len(table), -1).T


# Of a Circuit


@pairwise(
    shape=((1, 1, 1), (2, 1, 2), (3, 0, 1), (3, 2, 1), (4, 2, 1)),
    device=(*DEVICES, "default.mixed"),
    readout=("expectation", "probabilities"),
    dtype=("float32", "float64"),
    indirect=("dtype",),
)
def test_a_surrogate_is_the_circuit(simulate, dtype, shape, device, readout):
    circuit = qsgd.Circuit(*shape, seed=1)
    surrogate = qsgd.probe(circuit, device=device, readout=readout)
    theta = _theta(circuit.n_qubits).astype(dtype)
    answers = _answers(surrogate, theta)
    assert answers.dtype == dtype
    expected = simulate(theta, circuit.angles, circuit.uploads)[readout == "probabilities"]
    tolerance = {"float32": 1e-5, "float64": 1e-11}[dtype.name]
    np.testing.assert_allclose(answers, expected, atol=tolerance, rtol=0)
    assert isinstance(surrogate.coefficients, np.ndarray)
    assert surrogate.coefficients.dtype == surrogate.origin.dtype == np.float64
    assert (surrogate.n_inputs, surrogate.n_outputs) == (shape[0], expected.shape[1])
    assert (surrogate.degree, surrogate.period) == ((shape[2],) * shape[0], (2.0,) * shape[0])
    assert (surrogate.readout, surrogate.shots) == (readout, None)
    assert surrogate.standard_errors is None and surrogate.provenance.device == device


@pytest.mark.parametrize("device", DEVICES)
def test_a_concrete_circuit_is_probed_at_once_in_one_batch(device):
    """On the grid and at eight settings off it, and never again."""
    circuit, opened = qsgd.Circuit(2, 2, 2), qml.device(device, wires=2)
    with qml.Tracker(opened) as tracker:
        surrogate = qsgd.probe(circuit, device=opened)
        assert tracker.totals["executions"] == 5**2 + 8 and tracker.totals["batches"] == 1
        jax.block_until_ready(jax.jit(surrogate.evaluate)([jnp.ones(3)] * 2))
    assert tracker.totals["batches"] == 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_probe_inside_scan_leaks_no_tracer(device):
    made = []

    def step(p, _):
        made.append(qsgd.probe(qsgd.Circuit(2, 1), device=device))
        return p + 0.1 * qsgd.superposition_weights(made[-1], p), None

    jax.jit(lambda p: jax.lax.scan(step, p, length=2))(jnp.ones(3))
    assert not made[-1].traced and isinstance(made[-1].coefficients, np.ndarray)
    assert made[-1] == qsgd.probe(qsgd.Circuit(2, 1), device=device)


ANGLES = np.random.default_rng(3).normal(size=(1, 2, 2))


def test_traced_angles_take_one_probe_a_trace(float64):
    """Two callbacks for a gradient through five steps: the probe and its slopes."""
    opened = qml.device("lightning.qubit", wires=2)
    params = np.random.default_rng(0).normal(size=(4, 2))

    def trained(angles):
        surrogate = qsgd.probe(qsgd.Circuit(2, 1, 2, angles=angles), device=opened)
        moved = jnp.asarray(params)
        for _ in range(5):
            moved += 0.1 * qsgd.superposition_weights(surrogate, moved, "everywhere")
        return jnp.sum(moved**2)

    assert str(jax.make_jaxpr(trained)(ANGLES)).count("pure_callback[") == 1
    assert str(jax.make_jaxpr(jax.grad(trained))(ANGLES)).count("pure_callback[") == 2
    with qml.Tracker(opened) as tracker:
        jax.block_until_ready(jax.jit(jax.grad(trained))(ANGLES))
    assert tracker.totals["executions"] == 5**2
    assert tracker.totals["derivatives"] == 2 * 5**2  # lightning's own count is of both its calls


def _support_where_traced(circuit, angles, **options):
    """Which coefficients of a circuit of traced angles can be other than zero, `None` for all."""
    found = []

    def support(angles):
        surrogate = qsgd.probe(dataclasses.replace(circuit, angles=angles), **options)
        assert surrogate.traced
        found.append((surrogate.support, surrogate.coefficients.shape))
        return angles

    jax.eval_shape(support, angles)
    ((places, shape),) = found
    mask = np.zeros(shape, bool)
    if places is not None:
        mask.ravel()[list(places)] = True
    return None if places is None else mask


@pytest.mark.parametrize("readout", ["expectation", "probabilities"])
@pytest.mark.parametrize(("n", "depth", "uploads"), [(2, 1, 1), (4, 2, 1), (3, 2, 2), (4, 3, 1)])
def test_what_is_left_out_of_traced_circuits_is_zero_at_any_angles(n, depth, uploads, readout):
    angles = np.random.default_rng(7).uniform(-3, 3, (3, depth, n, 2))
    concrete = [qsgd.Circuit(n, depth, uploads, each) for each in angles]
    tables = np.abs([qsgd.probe(circuit, readout=readout).coefficients for circuit in concrete])
    options = {"device": "default.qubit", "readout": readout}
    support = _support_where_traced(concrete[0], angles[0], **options)
    assert support is not None and (depth == 3 or not support.all())
    assert tables[:, ~support].max(initial=0) < 1e-12
    assert (tables.max(0)[support] > 1e-6).all()


class _RingCircuit(qsgd.Circuit):
    def entangle(self, layer, wires):
        super().entangle(layer, wires)
        qml.CNOT((wires[-1], wires[0]))


def test_of_a_noisy_device_and_of_other_gates_no_coefficient_is_left_out():
    assert _support_where_traced(qsgd.Circuit(2, 1), ANGLES, device="default.mixed") is None
    assert _support_where_traced(_RingCircuit(2, 1), ANGLES, device="default.qubit") is None


# Devices that measure


def _kernels(theta, settings, degree):
    """K_g(θ) of each block and setting: how much an answer on the grid counts at θ."""
    difference = np.pi * (theta[:, None] - settings)
    harmonics = sum(2 * np.cos(r * difference) for r in range(1, degree + 1))
    return np.prod((1 + harmonics) / (2 * degree + 1), axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_estimated_weights_are_unbiased_with_the_variance_of_the_formula(simulate, device):
    circuit, shots, probes = qsgd.Circuit(2, 2, uploads=2, seed=3), 20, 400
    settings = fourier.probe_grid((2, 2)) + circuit.origin
    theta = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    theta[0] = settings[7]  # where only its own answer counts
    exact = simulate(theta, circuit.angles, 2)[0]
    kernels = _kernels(theta, settings, 2)
    np.testing.assert_allclose((kernels**2).sum(1), 1, rtol=1e-9)
    answers = simulate(settings, circuit.angles, 2)[0]
    variance = kernels**2 @ (1 - answers**2) / shots
    columns, draws = [jnp.asarray(column) for column in theta.T], []
    for _ in range(probes):
        surrogate = qsgd.probe(circuit, device=device, shots=shots)
        with jax.disable_jit():
            draws.append(np.stack(surrogate.evaluate(columns), -1))
    draws = np.array(draws, np.float64)
    assert np.all(np.abs(draws.mean(0) - exact) <= 5 * np.sqrt(variance / probes) + 1e-6)
    squares = (draws - exact) ** 2
    # Of a normal distribution; the sample's own is too small just where its squares are.
    spread = np.sqrt(2 / probes) * variance
    assert np.all(np.abs(squares.mean(0) - variance) <= 5 * spread + 1e-6)


@pytest.mark.parametrize("readout", ["expectation", "probabilities"])
def test_standard_errors_of_coefficients_are_those_of_the_formula(simulate, readout):
    circuit, shots = qsgd.Circuit(2, 2, uploads=2, seed=3), 4000
    surrogate = qsgd.probe(circuit, readout=readout, shots=shots)
    assert surrogate.shots == surrogate.provenance.shots == shots
    settings = fourier.probe_grid((2, 2))
    answers = simulate(settings + circuit.origin, circuit.angles, 2)[readout == "probabilities"]
    one_shot = answers * (1 - answers) if readout == "probabilities" else 1 - answers**2
    expected = np.sqrt(fourier.variances(one_shot / shots, (2, 2)))
    errors = surrogate.standard_errors
    assert isinstance(errors, np.ndarray) and errors.shape == surrogate.coefficients.shape
    np.testing.assert_allclose(errors, expected, rtol=0.15)
    # 50 or 100 coefficients, of which those of one output depend on each other a little.
    exact = qsgd.probe(circuit, readout=readout).coefficients
    assert 0.2 < np.mean(((surrogate.coefficients - exact) / errors) ** 2) < 2


def test_of_answers_that_never_vary_the_standard_errors_are_not_zero():
    """One odd outcome among all is taken to be possible."""
    surrogate = qsgd.probe(lambda x: np.ones(1), n_inputs=1, degree=1, shots=100)
    expected = np.sqrt(np.array([1, 2, 2]) / 3) / 100
    assert surrogate.standard_errors is not None
    np.testing.assert_allclose(surrogate.standard_errors, [expected], rtol=1e-12)


def test_a_target_standard_error_is_kept(simulate):
    circuit = qsgd.Circuit(2, 1)
    surrogate = qsgd.probe(circuit, target_standard_error=0.03)
    assert surrogate.shots == 1112  # 1 / 0.03²
    theta = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    error = _answers(surrogate, theta) - simulate(theta, circuit.angles)[0]
    assert 0 < np.sqrt(np.mean(error**2)) < 1.5 * 0.03


def test_the_shots_a_device_brings_are_used(simulate):
    with pytest.warns(qml.exceptions.PennyLaneDeprecationWarning):
        device = qml.device("lightning.qubit", wires=2, shots=10)
    circuit = qsgd.Circuit(2, 1)
    with qml.Tracker(device) as tracker:
        surrogate = qsgd.probe(circuit, device=device)
    assert surrogate.shots == 10 and tracker.totals["shots"] == (9 + 8) * 10
    error = _answers(surrogate, [[0.2, -0.4]]) - simulate([[0.2, -0.4]], circuit.angles)[0]
    assert 0 < np.abs(error).max() < 5 / np.sqrt(10)
    assert qsgd.probe(circuit, device=device, shots=7).shots == 7


def test_a_device_that_can_only_measure_is_told_how_often():
    client = type("RemoteDevice", (DefaultMixed,), {"__module__": "pennylane_qiskit.x"})
    mine = qml.qnode(client(wires=2))(lambda x: [qml.RY(x[0], 0), qml.expval(qml.Z(0))][1])
    for make in (
        functools.partial(qsgd.probe, qsgd.Circuit(2), device=client(wires=2)),
        functools.partial(qsgd.probe, mine, n_inputs=1, degree=1),
        functools.partial(qsgd.Direct, qsgd.Circuit(2), client(wires=2)),
    ):
        with pytest.raises(ValueError, match=r"shots=None: .* can only measure; say how often"):
            make()
        assert make(shots=50).shots == 50


# Of other circuits


def _mine(x):
    """Degree 2 in the first input, period 4π in the second, degree 3 and 1 of others."""
    qml.Hadamard(1)
    qml.RY(x[0], 0)
    qml.CRX(x[1], (0, 1))
    qml.RY(0.4, 1)
    qml.RZ(x[0], 0)
    qml.RX(3 * x[2], 1)
    qml.CNOT((1, 0))
    qml.PhaseShift(x[3], 0)
    qml.RY(0.7, 0)
    return [qml.expval(qml.X(0)), qml.expval(qml.X(0) @ qml.Y(1))]


MINE: Any = {
    "n_inputs": 4,
    "degree": (2, 2, 3, 1),
    "period": (2 * np.pi, 4 * np.pi, 2 * np.pi, 2 * np.pi),
}


@pairwise(device=(*DEVICES, "default.mixed"), dtype=("float32", "float64"), indirect=("dtype",))
def test_a_qnode_of_rotations_of_any_kind(dtype, device):
    opened = qml.device(device, wires=2)
    qnode = qml.QNode(_mine, opened)
    with qml.Tracker(opened) as tracker:
        surrogate = qsgd.probe(qnode, **MINE)
    assert tracker.totals["batches"] == 1
    assert tracker.totals["executions"] == 5 * 5 * 7 * 3 + 8
    theta = 10 * _theta(4).astype(dtype)
    expected = [np.array(qnode(row)) for row in theta.astype(np.float64)]
    tolerance = {"float32": 2e-5, "float64": 1e-11}[dtype.name]
    np.testing.assert_allclose(_answers(surrogate, theta), expected, atol=tolerance)
    assert (surrogate.n_inputs, surrogate.n_outputs) == (4, 2)
    assert (surrogate.degree, surrogate.period) == (MINE["degree"], MINE["period"])
    provenance = surrogate.provenance
    assert (provenance.circuit, provenance.device, provenance.checksum) == ("_mine", device, None)


def test_a_qnode_that_answers_all_settings_at_once(float64):
    opened = qml.device("default.qubit", wires=2)

    @qml.qnode(opened)
    def qnode(x):
        for wire in (0, 1):
            qml.RY(x[..., wire], wire)
        qml.CNOT((0, 1))
        return qml.expval(qml.X(0)), qml.probs(wires=1)

    with qml.Tracker(opened) as tracker:
        surrogate = qsgd.probe(qnode, n_inputs=2, degree=1, batched=True)
    assert tracker.totals["batches"] == tracker.totals["simulations"] == 1
    assert surrogate.n_outputs == 3
    one_by_one = qsgd.probe(qnode, n_inputs=2, degree=1)
    np.testing.assert_allclose(surrogate.coefficients, one_by_one.coefficients, atol=1e-12)


@pytest.mark.parametrize("traced", [False, True])
def test_a_function_of_numpy_or_jax(float64, traced):
    """Whose answers may be a tree, and part of the program where JAX computes them."""

    def answer(x, xp):
        return {"b": xp.cos(x[0]) * xp.sin(2 * x[1]), "a": [x[0] * 0 + 0.5, xp.sin(x)]}

    def expected(x):
        return [np.cos(x[0]) * np.sin(2 * x[1]), 0.5, *np.sin(x)]

    theta, found = _theta(2), []

    def evaluate(columns):
        function = functools.partial(answer, xp=jnp if traced else np)
        found.append(qsgd.probe(function, n_inputs=2, degree=2))
        return found[0].evaluate(columns)

    columns = jax.jit(evaluate)([jnp.asarray(column) for column in theta.T])
    np.testing.assert_allclose(np.stack(columns, -1), list(map(expected, theta)), atol=1e-11)
    assert found[0].traced == traced and found[0].provenance.device == "a function"


def _with_a_parameter(w, x, *, factor):
    for wire in (0, 1):
        qml.RY(x[wire], wire)
    qml.CRX(w, (0, 1))
    qml.RX(factor * w, 0)
    return [qml.expval(qml.Z(wire)) for wire in (0, 1)]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_bound_arguments_are_traced_and_differentiated(central, float64, device, batched):
    qnode = qml.QNode(_with_a_parameter, qml.device(device, wires=2))
    theta = _theta(2, points=3)

    def scalar(w):
        bound = functools.partial(qnode, w[0], factor=2.0)
        circuit = (lambda x: bound(x.T)) if batched else bound
        surrogate = qsgd.probe(circuit, n_inputs=2, degree=1, batched=batched)
        outputs = surrogate.evaluate([jnp.asarray(column) for column in theta.T])
        return jnp.sum(jnp.stack(outputs) * jnp.arange(1.0, 7).reshape(2, 3))

    def exact(w):
        outputs = np.array([qnode(float(w[0]), row, factor=2.0) for row in theta]).T
        return np.sum(outputs * np.arange(1.0, 7).reshape(2, 3))

    w = np.array([0.6])
    found, slope = jax.jit(jax.value_and_grad(scalar))(w)
    np.testing.assert_allclose([scalar(w), found], exact(w), atol=1e-10)
    np.testing.assert_allclose(slope, central(exact, w), atol=1e-8)


def test_a_device_that_answers_nonsense_is_named(monkeypatch):
    """Not a NaN that spreads through the training."""

    def answers(self, circuits, execution_config=None):
        return tuple((np.nan,) * 2 for _ in circuits)

    opened = qml.device("default.mixed", wires=2)
    monkeypatch.setattr(type(opened), "execute", answers)
    with pytest.raises(ValueError, match=r"default\.mixed"):
        qsgd.probe(qsgd.Circuit(2), device=opened)


def test_answers_of_shots_are_believed():
    """However few: what shots alone make of the comparison is no reason to refuse."""
    for shots in (1, 2, 10, 1000):
        for _ in range(20):
            qsgd.probe(qsgd.Circuit(2, 1), shots=shots)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"circuit": None, "n_inputs": 1, "degree": 1}, TypeError, ("circuit=None", "QNode")),
        ({"circuit": qsgd.Circuit}, ValueError, ("n_inputs=None",)),
        ({"readout": "amplitudes"}, ValueError, ("readout='amplitudes'", "'probabilities'")),
        ({"shots": 0}, ValueError, ("shots=0", "[1, ")),
        ({"shots": -3}, ValueError, ("shots=-3", "[1, ")),
        ({"shots": 1.5}, TypeError, ("shots=1.5", "integer")),
        ({"shots": True}, TypeError, ("shots=True", "integer")),
        (
            {"shots": 5, "target_standard_error": 0.1},
            ValueError,
            ("shots=5", "target_standard_error=0.1", "None"),
        ),
        ({"target_standard_error": 0.0}, ValueError, ("target_standard_error=0.0", "[0.0001, 1]")),
        (
            {"target_standard_error": np.nan},
            ValueError,
            ("target_standard_error=nan", "[0.0001, 1]"),
        ),
        ({"target_standard_error": "1"}, TypeError, ("target_standard_error='1'", "number")),
        ({"device": "lightning"}, ValueError, ("device='lightning'", "lightning.qubit")),
        ({"device": "lightning", "shots": 5}, ValueError, ("device='lightning'",)),
        ({"device": "x", "target_standard_error": 0.1}, ValueError, ("device='x'",)),
        ({"device": 4}, TypeError, ("device=4", "PennyLane device")),
        ({"device": ["lightning.qubit"]}, TypeError, ("device=['", "PennyLane device")),
        (
            {"device": qml.device("default.qubit", wires=3)},
            ValueError,
            ("default.qubit", "3 wires", "n_qubits=4"),
        ),
        (
            {"circuit": qsgd.Circuit(11)},
            ValueError,
            ("n_qubits=11", "177147", "65536", "qsgd_jax.Direct"),
        ),
        (
            {"circuit": qsgd.Circuit(10), "readout": "probabilities"},
            ValueError,
            ("n_qubits=10", "59049", "1024 outputs", "qsgd_jax.Direct"),
        ),
        ({"n_inputs": 4}, ValueError, ("'n_inputs': 4", "Circuit")),
        ({"degree": 1}, ValueError, ("'degree': 1", "Circuit")),
        ({"period": 2.0}, ValueError, ("'period': 2.0", "Circuit")),
        ({"batched": True}, ValueError, ("batched=True", "Circuit")),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    with pytest.raises(error) as caught:
        qsgd.probe(**{"circuit": qsgd.Circuit(), **arguments})
    for word in words:
        assert word in str(caught.value)


def test_measured_answers_have_no_derivative():
    with pytest.raises(ValueError, match="4 measurements, which have no derivative"):
        jax.eval_shape(
            lambda a: qsgd.probe(qsgd.Circuit(2, 1, angles=a), shots=4).coefficients, ANGLES
        )


# Evaluation


@pytest.mark.parametrize("sparse", [False, True])
def test_evaluation_is_the_sum_of_the_definition(dtype, sparse):
    rng = np.random.default_rng(0)
    table, origin, periods = rng.normal(size=(2, 5, 3)), np.array([0.3, -7.0]), (2.0, 11.5)
    if sparse:
        table[rng.uniform(size=table.shape) < 0.7] = 0
    surrogate = qsgd.Surrogate(table, origin, degree=(2, 1), period=periods)
    assert surrogate.support == (tuple(np.flatnonzero(table)) if sparse else None)
    theta = 30 * _theta(2).astype(dtype)
    expected = _polynomial(table, origin, periods, theta.astype(np.float64))
    tolerance = {"float32": 3e-5, "float64": 1e-12}[dtype.name]
    np.testing.assert_allclose(_answers(surrogate, theta), expected, atol=tolerance)
    other = rng.normal(size=table.shape)
    for given in (other, jnp.asarray(other)):
        changed = surrogate.with_coefficients(given)  # pyright: ignore[reportArgumentType]
        expected = _polynomial(other, origin, periods, theta.astype(np.float64))
        np.testing.assert_allclose(_answers(changed, theta), expected, atol=tolerance)
    found = jax.jit(lambda t, x: surrogate.with_coefficients(t).evaluate(list(x.T)))(other, theta)
    np.testing.assert_allclose(np.stack(found, -1), expected, atol=tolerance)


@pytest.mark.parametrize(
    ("names", "computed"),
    [
        (("float16", "bfloat16"), "float32"),
        (("int32", "bool"), "float32"),
        (("float32", "float64"), "float64"),
    ],
)
def test_dtypes_and_shapes_of_inputs(float64, names, computed):
    surrogate = qsgd.probe(qsgd.Circuit(2, 1))
    for shape in ((), (3, 0), (2, 3)):
        outputs = surrogate.evaluate([jnp.ones(shape, name) for name in names])
        assert [(x.shape, x.dtype) for x in outputs] == [(shape, computed)] * 2


def test_one_polynomial_for_each_coordinate_is_found_where_there_is_one():
    line = qsgd.probe(qsgd.Circuit(4)).elementwise
    assert line is not None and line.n_inputs == line.n_outputs == 1
    theta = _theta(1)
    np.testing.assert_allclose(_answers(line, theta), np.sin(np.pi * theta), atol=1e-6)
    assert qsgd.probe(qsgd.Circuit(4, 1)).elementwise is None
    assert qsgd.probe(qsgd.Circuit(2), readout="probabilities").elementwise is None
    moved = qsgd.Surrogate(
        [[0.0, 1.0, 0.0]] @ np.eye(3), np.array([0.25]), degree=(1,), period=(2.0,)
    )
    assert moved.elementwise is None
    periods = qsgd.probe(np.cos, n_inputs=2, degree=1, period=(2 * np.pi, 2 * np.pi))
    assert periods.elementwise is not None
    unlike = dataclasses.replace(periods, period=(2 * np.pi, 4 * np.pi))
    assert unlike.elementwise is None


# As a value


def test_nobody_changes_a_surrogate():
    table = np.array([[0.0, 0.5, 0.5]])
    surrogate: Any = qsgd.Surrogate(table, np.zeros(1), degree=(1,), period=(2.0,))
    before = hash(surrogate)
    table[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        surrogate.coefficients[:] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        surrogate.degree = (2,)
    assert surrogate.coefficients[0, 1] == 0.5 and hash(surrogate) == before


def test_its_numbers_can_be_differentiated(float64):
    surrogate = qsgd.probe(qsgd.Circuit(2, 1))
    x = [jnp.array(0.3), jnp.array(-0.4)]
    slopes = jax.grad(lambda s: s.evaluate(x)[1])(surrogate)
    theta, one = np.array([[0.3, -0.4]]), np.eye(9).reshape(9, 3, 3)
    expected = _polynomial(one, surrogate.origin, surrogate.period, theta).reshape(3, 3)
    expected = np.where(surrogate.coefficients[1] != 0, expected, 0)
    np.testing.assert_allclose(slopes.coefficients, [np.zeros((3, 3)), expected], atol=1e-12)
    step = 1e-6
    for j in range(2):
        moved = [
            dataclasses.replace(surrogate, origin=surrogate.origin + sign * step * np.eye(2)[j])
            for sign in (1, -1)
        ]
        plus, minus = (other.evaluate(x)[1] for other in moved)
        np.testing.assert_allclose(slopes.origin[j], (plus - minus) / (2 * step), atol=1e-8)


def test_many_at_once(simulate, float64):
    many, theta = np.stack([ANGLES, ANGLES + 0.2]), _theta(2)
    columns = [jnp.asarray(column) for column in theta.T]
    make = jax.vmap(lambda a: qsgd.probe(qsgd.Circuit(2, 1, angles=a), device="default.qubit"))
    outputs = jax.vmap(lambda s: s.evaluate(columns))(jax.jit(make)(many))
    expected = [simulate(theta, angles)[0] for angles in many]
    np.testing.assert_allclose(np.stack(outputs, -1), expected, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficients": [0.5]},
        {"degree": [1]},
        {"origin": [0.0]},
        {"period": [2.0]},
        {"support": [999, 1]},
        {"provenance": {}},
        {"outputs": "2"},
    ],
    ids=str,
)
def test_a_file_that_was_spoilt_is_refused(tmp_path, changes):
    path = tmp_path / "surrogate.json"
    qsgd.probe(qsgd.Circuit(2)).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match="cannot be read"):
        qsgd.Surrogate.load(path)


def test_what_is_traced_is_not_saved(tmp_path):
    surrogate = qsgd.probe(qsgd.Circuit(2))
    with pytest.raises(ValueError, match="tracing"):
        jax.eval_shape(lambda s: s.save(tmp_path / "surrogate.json"), surrogate)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coefficients": np.zeros((2, 3, 5))}, ("(2, 3, 5)", "(outputs, 3, 3)")),
        ({"coefficients": np.zeros((3, 3))}, ("(3, 3)", "(outputs, 3, 3)")),
        ({"coefficients": np.full((2, 3, 3), np.nan)}, ("coefficients", "finite", "18")),
        ({"origin": np.zeros(3)}, ("origin", "(3,)", "(2,)")),
        ({"origin": np.array([0, np.inf])}, ("origin", "finite")),
        ({"standard_errors": np.zeros((2, 3))}, ("standard_errors", "(2, 3)", "(2, 3, 3)")),
        ({"period": (2.0,)}, ("period", "(1,)", "(2,)")),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(qsgd.probe(qsgd.Circuit(2)), **changes)
    for word in words:
        assert word in str(caught.value)
