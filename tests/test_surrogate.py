"""The probe and its surrogate against NumPy, against the circuits probed, and as a value."""

import copy
import dataclasses
import functools
import itertools
import json
import math
import pickle
import subprocess
import sys
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


def test_what_a_probe_costs_is_printed(capsys):
    circuit = qsgd.Circuit(2, 1)
    qsgd.probe(circuit)
    assert not capsys.readouterr().out
    qsgd.probe(circuit, verbose=True)
    words = "Circuit(n_qubits=2, depth=1, uploads=1)", "lightning.qubit", "9 settings", "8 off it"
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*words, "17 circuits", "exact"))
    qsgd.probe(circuit, shots=1000, verbose=True)
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*words, "1,000 shots", "17,000 in all"))


# Of a user's own circuit


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


def test_an_input_in_other_units(float64):
    """Turns, degrees and half turns are told by the period."""

    @qml.qnode(qml.device("default.qubit", wires=1))
    def qnode(x):
        qml.RX(0.3, 0)
        qml.RY(2 * np.pi * x[0], 0)
        qml.RX(np.pi / 180 * x[1], 0)
        qml.RY(-np.pi * x[2], 0)
        return qml.probs(wires=0)

    surrogate = qsgd.probe(qnode, n_inputs=3, degree=1, period=[1, 360, 2], readout="probabilities")
    theta = _theta(3) * [1, 360, 2]
    expected = [qnode(row) for row in theta]
    np.testing.assert_allclose(_answers(surrogate, theta), expected, atol=1e-10)
    assert surrogate.readout == "probabilities" and surrogate.period == (1.0, 360.0, 2.0)


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
        return [0.5, *np.sin(x), np.cos(x[0]) * np.sin(2 * x[1])]

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
        bound: Any = functools.partial(qnode, w[0], factor=2.0)
        if batched:

            def bound(x, one=bound):
                return one(x.T)

        surrogate = qsgd.probe(bound, n_inputs=2, degree=1, batched=batched)
        outputs = surrogate.evaluate([jnp.asarray(column) for column in theta.T])
        return jnp.sum(jnp.stack(outputs) * jnp.arange(1.0, 7).reshape(2, 3))

    def exact(w):
        outputs = np.array([qnode(float(w[0]), row, factor=2.0) for row in theta]).T
        return np.sum(outputs * np.arange(1.0, 7).reshape(2, 3))

    w = np.array([0.6])
    found, slope = jax.jit(jax.value_and_grad(scalar))(w)
    np.testing.assert_allclose([scalar(w), found], exact(w), atol=1e-10)
    np.testing.assert_allclose(slope, central(exact, w), atol=1e-8)


def test_a_qnode_on_another_device_and_with_shots():
    """Of the labels of its own wires; with its own shots, unless others are asked for."""

    @qml.qnode(qml.device("default.qubit", wires=["a", "b"]))
    def qnode(x):
        qml.RY(x[0], "a")
        qml.CNOT(("a", "b"))
        return qml.expval(qml.X("b")), qml.expval(qml.Z("b"))

    how: Any = {"n_inputs": 1, "degree": 1}
    exact = qsgd.probe(qnode, **how)
    assert exact.shots is None
    for device in ("lightning.qubit", qml.device("default.mixed", wires=["a", "b"])):
        other = qsgd.probe(qnode, device=device, **how)
        assert other.provenance.device == (device if isinstance(device, str) else device.name)
        np.testing.assert_allclose(other.coefficients, exact.coefficients, atol=1e-12)
    measured = qml.set_shots(qnode, shots=300)
    for circuit, options, shots in (
        (measured, {}, 300),
        (qnode, {"shots": 400}, 400),
        (measured, {"shots": 400}, 400),
        (measured, {"target_standard_error": 0.1}, 100),
    ):
        surrogate = qsgd.probe(circuit, **options, **how)
        assert surrogate.shots == shots and surrogate.standard_errors is not None
        deviation = np.abs(surrogate.coefficients - exact.coefficients)
        assert 0 < np.max(deviation) and np.all(deviation <= 5 * surrogate.standard_errors)


def test_what_a_transform_makes_of_a_qnode_is_probed(capsys):
    """Several circuits for a setting, whose answers belong together."""
    opened = qml.device("default.qubit", wires=1)

    @qml.transforms.split_non_commuting
    @qml.qnode(opened)
    def qnode(x):
        qml.RY(x[0], 0)
        return qml.expval(qml.Z(0)), qml.expval(qml.X(0))

    with qml.Tracker(opened) as tracker:
        surrogate = qsgd.probe(qnode, n_inputs=1, degree=1, verbose=True)
    assert tracker.totals["executions"] == 2 * (3 + 8) and "22 circuits" in capsys.readouterr().out
    table = [[0, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(surrogate.coefficients, table, atol=1e-12)


def _wrong(function, **options):
    return functools.partial(qsgd.probe, function, **({"n_inputs": 1, "degree": 1} | options))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_wrong(lambda x: np.cos(2 * x)), ("degree=(1,)", "Is a degree larger")),
        (_wrong(lambda x: np.cos(0.5 * x)), ("period=(6.28", "4π")),
        (_wrong(lambda x: x), ("no trigonometric polynomial",)),
        (_wrong(lambda x: 100 * np.cos(2 * x), shots=100), ("no trigonometric polynomial",)),
        (_wrong(lambda x: np.nan * x), ("not finite",)),
        (_wrong(lambda x: np.cos(x) + 0j), ("complex128", "real")),
        (_wrong(lambda x: ["a"]), ("circuit answers",)),
        (_wrong(lambda x: None), ("circuit answers", "None")),
        (_wrong(lambda x: np.ones(len(x) if x[0] > 0 else 2)), ("circuit answers",)),
        (_wrong(lambda x: np.ones((3, 1)), batched=True), ("(3, 1)", "(11, outputs)")),
        (_wrong(lambda x: np.zeros((len(x), 0)), batched=True), ("(11, outputs)",)),
    ],
)
def test_answers_that_are_no_such_polynomial_are_refused(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


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


@qml.qnode(qml.device("default.qubit", wires=1))
def _partitioned(x):
    qml.RY(x[0], 0)
    return qml.expval(qml.Z(0))


_partitioned = qml.set_shots(_partitioned, shots=(10, 20))
ONE: Any = {"n_inputs": 1, "degree": 1}


@pytest.mark.parametrize(
    ("circuit", "arguments", "error", "words"),
    [
        (4, ONE, TypeError, ("circuit=4", "Circuit", "QNode")),
        (None, ONE, TypeError, ("circuit=None", "Circuit", "QNode")),
        (
            qsgd.Circuit(),
            {"readout": "amplitudes"},
            ValueError,
            ("'amplitudes'", "'probabilities'"),
        ),
        (qsgd.Circuit(), {"shots": 0}, ValueError, ("shots=0", "[1, ")),
        (qsgd.Circuit(), {"shots": -3}, ValueError, ("shots=-3", "[1, ")),
        (qsgd.Circuit(), {"shots": 1.5}, TypeError, ("shots=1.5", "integer")),
        (qsgd.Circuit(), {"shots": True}, TypeError, ("shots=True", "integer")),
        (
            qsgd.Circuit(),
            {"shots": 5, "target_standard_error": 0.1},
            ValueError,
            ("shots=5", "target_standard_error=0.1", "None"),
        ),
        (
            qsgd.Circuit(),
            {"target_standard_error": 0.0},
            ValueError,
            ("target_standard_error=0.0", "[0.0001, 1]"),
        ),
        (
            qsgd.Circuit(),
            {"target_standard_error": np.nan},
            ValueError,
            ("target_standard_error=nan", "[0.0001, 1]"),
        ),
        (
            qsgd.Circuit(),
            {"target_standard_error": "1"},
            TypeError,
            ("target_standard_error='1'", "number"),
        ),
        (qsgd.Circuit(), {"device": "lightning"}, ValueError, ("'lightning'", "lightning.qubit")),
        (qsgd.Circuit(), {"device": "lightning", "shots": 5}, ValueError, ("device='lightning'",)),
        (
            qsgd.Circuit(),
            {"device": "x", "target_standard_error": 0.1},
            ValueError,
            ("device='x'",),
        ),
        (qsgd.Circuit(), {"device": 4}, TypeError, ("device=4", "PennyLane device")),
        (
            qsgd.Circuit(),
            {"device": qml.device("default.qubit", wires=3)},
            ValueError,
            ("default.qubit", "3 wires", "n_qubits=4"),
        ),
        (
            qsgd.Circuit(11),
            {},
            ValueError,
            ("n_qubits=11", "177147", "65536", "qsgd_jax.Direct"),
        ),
        (
            qsgd.Circuit(10),
            {"readout": "probabilities"},
            ValueError,
            ("n_qubits=10", "59049", "1024 outputs", "qsgd_jax.Direct"),
        ),
        (qsgd.Circuit(), {"n_inputs": 4}, ValueError, ("'n_inputs': 4", "Circuit")),
        (qsgd.Circuit(), {"degree": 1}, ValueError, ("'degree': 1", "Circuit")),
        (qsgd.Circuit(), {"period": 2.0}, ValueError, ("'period': 2.0", "Circuit")),
        (qsgd.Circuit(), {"batched": True}, ValueError, ("batched=True", "Circuit")),
        (qsgd.Circuit(), {"batched": 1}, TypeError, ("batched=1", "True or False")),
        (qsgd.Circuit(), {"verbose": "yes"}, TypeError, ("verbose='yes'", "True or False")),
        (np.cos, {"degree": 1}, ValueError, ("n_inputs=None", "number")),
        (np.cos, {"n_inputs": 1}, ValueError, ("degree=None", "number")),
        (np.cos, ONE | {"n_inputs": 0}, ValueError, ("n_inputs=0", "[1, ")),
        (np.cos, ONE | {"n_inputs": 1.0}, TypeError, ("n_inputs=1.0", "integer")),
        (np.cos, ONE | {"degree": 0}, ValueError, ("degree=0", "[1, ")),
        (np.cos, ONE | {"degree": [1, 1]}, ValueError, ("degree=[1, 1]", "each of 1")),
        (np.cos, ONE | {"degree": "1"}, ValueError, ("degree='1'", "one number")),
        (np.cos, ONE | {"degree": 1.0}, TypeError, ("degree=1.0", "integer")),
        (np.cos, ONE | {"degree": 2**15}, ValueError, ("65537", "65536")),
        (np.cos, ONE | {"period": [1.0, 2.0]}, ValueError, ("period=[1.0, 2.0]", "each of 1")),
        (np.cos, ONE | {"period": -1.0}, ValueError, ("period=-1.0", "positive")),
        (np.cos, ONE | {"period": np.inf}, ValueError, ("period=inf", "finite")),
        (np.cos, ONE | {"period": True}, ValueError, ("period=True", "positive")),
        (np.cos, ONE | {"device": "lightning.qubit"}, ValueError, ("lightning.qubit", "QNode")),
        (_partitioned, ONE, ValueError, ("_partitioned", "vector of shots", "shots=")),
    ],
)
def test_bad_input_is_refused(circuit, arguments, error, words):
    with pytest.raises(error) as caught:
        qsgd.probe(circuit, **arguments)
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
        changed = surrogate.with_coefficients(given)
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


def test_inputs_that_do_not_fit_are_refused():
    surrogate = qsgd.probe(qsgd.Circuit(2))
    with pytest.raises(ValueError, match="3 inputs are given; allowed are 2"):
        surrogate.evaluate([jnp.ones(3)] * 3)
    with pytest.raises(ValueError, match=r"shapes \[\(3,\), \(1,\)\]"):
        surrogate.evaluate([jnp.ones(3), jnp.ones(1)])
    with pytest.raises(TypeError, match="complex64.* must be real"):
        surrogate.evaluate([jnp.ones(3), jnp.ones(3, complex)])


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


def _examples():
    return (
        qsgd.probe(qsgd.Circuit(2, 1)),
        qsgd.probe(qsgd.Circuit(3, 2, 3)),  # dense
        qsgd.probe(qsgd.Circuit(2, 1), shots=50),
        qsgd.probe(qsgd.Circuit(2), readout="probabilities"),
        qsgd.probe(qml.QNode(_mine, qml.device("default.qubit", wires=2)), **MINE),
    )


@pytest.mark.parametrize("which", range(5))
def test_copies_are_equal(tmp_path, which):
    surrogate = _examples()[which]
    surrogate.save(tmp_path / "surrogate.json")
    copies = (
        copy.copy(surrogate),
        copy.deepcopy(surrogate),
        pickle.loads(pickle.dumps(surrogate)),
        qsgd.Surrogate.load(tmp_path / "surrogate.json"),
        jax.tree.unflatten(*reversed(jax.tree.flatten(surrogate))),
    )
    for other in copies:
        assert other == surrogate and hash(other) == hash(surrogate)
        for field in dataclasses.fields(surrogate):
            ours, theirs = getattr(surrogate, field.name), getattr(other, field.name)
            assert type(ours) is type(theirs)
            if isinstance(ours, np.ndarray):
                assert np.array_equal(ours, theirs) and not theirs.flags.writeable
        assert dataclasses.asdict(other.provenance) == dataclasses.asdict(surrogate.provenance)
        assert repr(other) == repr(surrogate)


def test_surrogates_are_told_apart_by_what_they_answer():
    surrogate = qsgd.probe(qsgd.Circuit(2, 1))
    assert surrogate == qsgd.probe(qsgd.Circuit(2, 1))
    others = (
        qsgd.probe(qsgd.Circuit(2, 1, seed=1)),
        qsgd.probe(qsgd.Circuit(2, 1), readout="probabilities"),
        qsgd.probe(qsgd.Circuit(2, 1), shots=100),
        dataclasses.replace(surrogate, period=(2.0, 4.0)),
        dataclasses.replace(surrogate, origin=np.zeros(2)),
        surrogate.with_coefficients(surrogate.coefficients + 1e-9),
        "surrogate",
    )
    assert all(other != surrogate for other in others)
    assert len({surrogate, *others}) == len(others) + 1


def test_equal_surrogates_are_compiled_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def first(surrogate, x):
        traces.append(surrogate)
        return surrogate.evaluate([x, x])[0]

    for _ in range(2):
        first(qsgd.probe(qsgd.Circuit(2, 1)), jnp.ones(2))
    assert len(traces) == 1


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


def test_as_an_argument_of_a_compiled_function(simulate, float64):
    """Of which the zeros stay known: the same terms are written out."""
    circuit = qsgd.Circuit(3, 2)
    surrogate, theta = qsgd.probe(circuit), _theta(3)
    columns = [jnp.asarray(column) for column in theta.T]

    @jax.jit
    def evaluate(surrogate, columns):
        assert surrogate.traced and surrogate.sparse and "traced" in repr(surrogate)
        with pytest.raises(TypeError, match="tracing"):
            hash(surrogate)
        return surrogate.evaluate(columns)

    found = np.stack(evaluate(surrogate, columns), -1)
    np.testing.assert_allclose(found, simulate(theta, circuit.angles)[0], atol=1e-12)
    known, argument = (
        str(jax.make_jaxpr(make)(surrogate, columns)).count(" mul ")
        for make in (lambda _, x: surrogate.evaluate(x), lambda s, x: s.evaluate(x))
    )
    assert argument <= known + surrogate.coefficients.size
    returned = jax.jit(lambda s: s)(surrogate)
    assert returned == surrogate


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


def test_a_saved_surrogate_is_used_without_pennylane(tmp_path):
    surrogate = qsgd.probe(qsgd.Circuit(3, 1))
    surrogate.save(tmp_path / "surrogate.json")
    program = f"""
import sys, jax.numpy as jnp, qsgd_jax as qsgd
surrogate = qsgd.Surrogate.load({str(tmp_path / "surrogate.json")!r})
tx, params = qsgd.superpositional_adamw(0.1, surrogate=surrogate), jnp.full(3, 0.2)
updates, _ = tx.update(params, tx.init(params), params)
assert "pennylane" not in sys.modules
print(surrogate)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.stdout == f"{surrogate}\n", result.stderr


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": "other", "version": 1}',
        '{"format": "qsgd_jax.Surrogate", "version": 2}',
        '{"format": "qsgd_jax.Surrogate", "version": 1}',
        '{"format": "qsgd_jax.Surrogate"}',
    ],
)
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "surrogate.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"surrogate\.json"):
        qsgd.Surrogate.load(path)


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
