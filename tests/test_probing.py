"""`probe` of a user's own circuits: against runs of the circuit itself."""

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

import qsgd_jax as qsgd

RNG = np.random.default_rng(0)


def _by_rotations(x):
    """Each input enters by two RY: degree 2, period 2π."""
    for _ in range(2):
        for wire in range(3):
            qml.RY(x[..., wire], wire)
        qml.CRZ(0.7, (0, 1))
        qml.IsingXX(0.4, (1, 2))
    return [qml.expval(qml.Z(wire)) for wire in range(3)]


def _by_controlled_rotations(x):
    """Each input enters by a controlled RZ: half frequencies, so degree 2 in a period of 4π."""
    for wire in range(3):
        qml.Hadamard(wire)
        qml.RX(0.3 + wire, wire)
    for wire in range(3):
        qml.CRZ(x[..., wire], (wire, (wire + 1) % 3))
    for wire in range(3):
        qml.RX(0.9, wire)
    return [qml.expval(qml.Z(wire)) for wire in range(3)]


OWN = [
    (_by_rotations, {"degree": 2}),
    (_by_controlled_rotations, {"degree": 2, "period": 4 * math.pi}),
]


def _direct(qnode, settings):
    return np.array([qnode(setting) for setting in settings])


def _evaluated(surrogate, settings, dtype):
    return np.stack(surrogate.evaluate([jnp.asarray(x, dtype) for x in settings.T]), axis=-1)


@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
@pytest.mark.parametrize(("function", "options"), OWN)
@pytest.mark.parametrize("double", [False, True])
def test_own_qnode_equals_its_direct_runs(function, options, device, double, request):
    qnode = qml.QNode(function, qml.device(device, wires=3))
    surrogate = qsgd.probe(qnode, n_inputs=3, **options)
    settings = RNG.uniform(-20, 20, (100, 3)).astype(np.float32).astype(np.float64)
    expected = _direct(qnode, settings)
    if double:
        request.getfixturevalue("float64")
    found = _evaluated(surrogate, settings, np.float64 if double else np.float32)
    assert np.abs(found - expected).max() <= (1e-11 if double else 1e-6)


@pytest.mark.parametrize(("function", "options"), OWN)
def test_measured_own_qnode_is_within_five_standard_errors(function, options):
    qnode = qml.QNode(function, qml.device("default.qubit", wires=3, seed=1))
    surrogate = qsgd.probe(qnode, n_inputs=3, shots=2000, **options)
    assert surrogate.shots == 2000
    settings = RNG.uniform(-10, 10, (100, 3))
    deviation = _evaluated(surrogate, settings, np.float32) - _direct(qnode, settings)
    assert np.abs(deviation).max() <= 5 / math.sqrt(2000)
    assert np.abs(deviation).max() > 1e-4  # it was measured


def test_noise_that_does_not_depend_on_the_angles_leaves_a_polynomial():
    def noisy(x):
        for _ in range(2):
            for wire in range(3):
                qml.RY(x[wire], wire)
                qml.AmplitudeDamping(0.1, wire)
            qml.CRZ(0.7, (0, 1))
        return [qml.expval(qml.Z(wire)) for wire in range(3)]

    qnode = qml.QNode(noisy, qml.device("default.mixed", wires=3))
    surrogate = qsgd.probe(qnode, n_inputs=3, degree=2)
    settings = RNG.uniform(-3, 3, (20, 3)).astype(np.float32).astype(np.float64)
    deviation = _evaluated(surrogate, settings, np.float32) - _direct(qnode, settings)
    assert np.abs(deviation).max() <= 1e-6


@pytest.mark.parametrize("shots", [None, 1_000_000])
@pytest.mark.parametrize(
    ("function", "options"),
    [
        (_by_rotations, {"degree": 1}),
        (_by_rotations, {"degree": (2, 1, 2)}),
        (_by_rotations, {"degree": 2, "period": 3.0}),
        (_by_controlled_rotations, {"degree": 1}),
        (_by_controlled_rotations, {"degree": 1, "period": 4 * math.pi}),
    ],
)
def test_a_wrong_degree_or_period_is_refused_with_the_misfit(function, options, shots):
    qnode = qml.QNode(function, qml.device("default.qubit", wires=3, seed=1))
    with pytest.raises(ValueError, match=r"no trigonometric polynomial .* is up to [\d.]+ off"):
        qsgd.probe(qnode, n_inputs=3, shots=shots, **options)


def test_inputs_have_degrees_and_periods_of_their_own():
    def function(x):
        return np.sin(2 * np.pi * x[0] / 5) * np.cos(3 * 2 * np.pi * x[1] / 7), np.cos(
            2 * np.pi * x[1] / 7
        )

    surrogate = qsgd.probe(function, n_inputs=2, degree=(1, 3), period=(5, 7))
    assert surrogate.coefficients.shape == (2, 3, 7)
    settings = RNG.uniform(-30, 30, (50, 2)).astype(np.float32).astype(np.float64)
    expected = np.array([function(setting) for setting in settings])
    assert np.abs(_evaluated(surrogate, settings, np.float32) - expected).max() <= 2e-6


def _weighted(weights, x):
    qml.RY(x[..., 0], 0)
    qml.RY(x[..., 1], 1)
    qml.CNOT((0, 1))
    qml.RX(weights, 0)
    return {"z": qml.expval(qml.Z(0)), "x": qml.expval(qml.X(1))}


def test_a_batch_a_partial_and_a_function_of_jax_give_the_same():
    qnode = qml.QNode(_weighted, qml.device("default.qubit", wires=2))
    one_by_one = qsgd.probe(functools.partial(qnode, 0.3), n_inputs=2, degree=1)
    batched = qsgd.probe(functools.partial(qnode, 0.3), n_inputs=2, degree=1, batched=True)

    def function(x):
        return jnp.stack([qnode(0.3, x)["z"], qnode(0.3, x)["x"]])

    of_function = qsgd.probe(function, n_inputs=2, degree=1)
    for other in (batched, of_function):
        np.testing.assert_allclose(other.coefficients, one_by_one.coefficients, atol=1e-6)
    with pytest.raises(ValueError, match="a row for each setting"):
        qsgd.probe(lambda x: np.zeros(3), n_inputs=2, degree=1, batched=True)


def test_device_and_shots_replace_those_of_the_qnode():
    qnode = qml.QNode(_by_rotations, qml.device("default.qubit", wires=3), shots=10)
    measured: Any = qsgd.probe(qnode, n_inputs=3, degree=2)
    assert (measured.provenance.device, measured.shots) == ("default.qubit", 10)
    assert measured.standard_errors.max() <= 1
    other: Any = qsgd.probe(qnode, n_inputs=3, degree=2, device="lightning.qubit", shots=5000)
    assert (other.provenance.device, other.shots) == ("lightning.qubit", 5000)
    assert other.standard_errors.max() < measured.standard_errors.max() / 10
    sigma = qsgd.probe(qnode, n_inputs=3, degree=2, target_standard_error=0.02)
    assert sigma.shots == 2500
    with pytest.warns(qml.exceptions.PennyLaneDeprecationWarning, match="shots"):
        opened = qml.device("lightning.qubit", wires=3, shots=700)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PennyLane's: the QNode's are others
        own = [qsgd.probe(qnode, n_inputs=3, degree=2, device=opened, shots=x) for x in (None, 90)]
    assert [x.shots for x in own] == [700, 90]
    device = qml.device("default.qubit", wires=["a"])
    labelled = qml.QNode(lambda x: qml.expval(qml.Z("a")), device)
    assert (
        qsgd.probe(labelled, n_inputs=1, degree=1, device="lightning.qubit").coefficients[0, 0] == 1
    )


def test_transforms_of_the_qnode_are_kept_and_their_circuits_counted(capsys):
    @qml.transforms.split_non_commuting  # pyright: ignore[reportAttributeAccessIssue]
    @qml.qnode(qml.device("lightning.qubit", wires=1))
    def qnode(x):
        qml.RY(x[0], 0)
        return qml.expval(qml.X(0)), qml.expval(qml.Z(0))

    surrogate = qsgd.probe(qnode, n_inputs=1, degree=1, verbose=True)
    assert (
        "3 settings on the grid and 8 off it, 22 circuits, exact answers" in capsys.readouterr().out
    )
    sine, cosine = surrogate.evaluate([np.array(0.4)])
    np.testing.assert_allclose([sine, cosine], [np.sin(0.4), np.cos(0.4)], atol=1e-6)
    qsgd.probe(qsgd.Circuit(4, 2), shots=1000, verbose=True)
    assert "89 circuits, 1,000 shots each, 89,000 in all" in capsys.readouterr().out


def test_standard_errors_are_those_of_repeated_probes():
    qnode = qml.QNode(_weighted, qml.device("default.qubit", wires=2, seed=5))
    probes: list[Any] = [
        qsgd.probe(functools.partial(qnode, 0.3), n_inputs=2, degree=1, shots=400)
        for _ in range(100)
    ]
    found = np.std([one.coefficients for one in probes], axis=0)
    said = np.mean([one.standard_errors for one in probes], axis=0)
    np.testing.assert_allclose(said, found, rtol=0.35)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_traced_argument_makes_a_traced_surrogate_that_differentiates(jitted):
    qnode = qml.QNode(_weighted, qml.device("default.qubit", wires=2))

    def loss(weight):
        surrogate = qsgd.probe(functools.partial(qnode, weight), n_inputs=2, degree=1)
        assert surrogate.traced
        z, x = surrogate.evaluate([jnp.float32(0.4), jnp.float32(0.5)])
        return z + 2 * x

    gradient = jax.grad(loss)
    found = (jax.jit(gradient) if jitted else gradient)(0.3)

    def direct(weight):
        answer = qnode(weight, np.array([0.4, 0.5]))
        return answer["z"] + 2 * answer["x"]

    assert float(found) == pytest.approx((direct(0.301) - direct(0.299)) / 0.002, abs=1e-5)


QNODE = qml.QNode(_by_rotations, qml.device("default.qubit", wires=3))
TWO_ARGUMENTS = qml.QNode(lambda first, second: qml.expval(qml.Z(0)), QNODE.device)
FUNCTION = {"circuit": np.sin, "n_inputs": 1, "degree": 1}
OF_QNODE = {"circuit": QNODE, "n_inputs": 3, "degree": 2}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (OF_QNODE | {"degree": None}, ValueError, "degree=None"),
        (OF_QNODE | {"n_inputs": None}, ValueError, "n_inputs=None"),
        (OF_QNODE | {"n_inputs": 0}, ValueError, "n_inputs=0"),
        (OF_QNODE | {"degree": 0}, ValueError, "degree=0"),
        (OF_QNODE | {"degree": 1.5}, TypeError, "degree=1.5"),
        (OF_QNODE | {"degree": (1, 2)}, ValueError, r"degree=\(1, 2\).* 3"),
        (OF_QNODE | {"degree": 30}, ValueError, "226981 settings, .* at most 65536"),
        (OF_QNODE | {"period": -1}, ValueError, "period=-1"),
        (OF_QNODE | {"period": "2"}, ValueError, "period='2'"),
        (OF_QNODE | {"period": math.inf}, ValueError, "period=inf"),
        (OF_QNODE | {"batched": 1}, TypeError, "batched=1"),
        (OF_QNODE | {"verbose": "yes"}, TypeError, "verbose='yes'"),
        (OF_QNODE | {"readout": "x"}, ValueError, "readout='x'"),
        (OF_QNODE | {"shots": 0}, ValueError, "shots=0"),
        (OF_QNODE | {"shots": [5, 5]}, TypeError, r"shots=\[5, 5\]"),
        (OF_QNODE | {"shots": 9, "target_standard_error": 0.1}, ValueError, "shots=9 and target"),
        (OF_QNODE | {"target_standard_error": 2}, ValueError, "target_standard_error=2"),
        (OF_QNODE | {"device": "no.such"}, ValueError, "'no.such'"),
        (OF_QNODE | {"device": 3}, TypeError, "device=3"),
        (OF_QNODE | {"device": "default.qutrit"}, ValueError, "'default.qutrit' refuses"),
        (OF_QNODE | {"circuit": qml.set_shots(QNODE, (5, 5))}, ValueError, "vector of shots"),
        (OF_QNODE | {"n_inputs": 2}, ValueError, r"fails .* shape \(2,\), as n_inputs="),
        (OF_QNODE | {"circuit": TWO_ARGUMENTS}, ValueError, r"array of shape \(3,\).* 'second'"),
        (FUNCTION | {"circuit": 3}, TypeError, "circuit=3"),
        (FUNCTION | {"device": "default.qubit"}, ValueError, "device='default.qubit'"),
        (FUNCTION | {"circuit": lambda x: "?"}, ValueError, r"answers '\?'"),
        (FUNCTION | {"circuit": lambda x: 1j * x}, ValueError, "complex128"),
        (FUNCTION | {"circuit": lambda x: np.zeros(0)}, ValueError, r"shape \(11, 0\)"),
        (FUNCTION | {"circuit": lambda x: np.nan * x}, ValueError, "not finite"),
        (FUNCTION | {"circuit": lambda x: np.zeros(1 + (x[0] > 0))}, ValueError, "same shape"),
        ({"circuit": qsgd.Circuit(), "degree": 1}, ValueError, "'degree': 1.* Circuit"),
        ({"circuit": qsgd.Circuit(), "device": "default.qutrit"}, ValueError, "'default.qutrit'"),
        (
            {"circuit": qsgd.Circuit(12, 1)},
            ValueError,
            "531441 settings, .* by qsgd_jax.Direct",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Operator .* does not define a decomposition")
def test_bad_input_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        qsgd.probe(**arguments)


@pytest.mark.parametrize(
    ("function", "n_inputs", "message"),
    [
        (lambda x: 1.2 * np.sin(x), 1, "1.2; weights lie within ±1"),
        (lambda x: [np.sin(x[0])] * 3, 2, "3 outputs .* 2 inputs"),
    ],
)
def test_transformations_refuse_what_are_no_weights(function, n_inputs, message):
    surrogate = qsgd.probe(function, n_inputs=n_inputs, degree=1)
    for use in (qsgd.scale_by_superposition, qsgd.superpositional_adamw):
        with pytest.raises(ValueError, match=message):
            use(0.1, surrogate=surrogate)
    with pytest.raises(ValueError, match=message):
        qsgd.superposition_weights(surrogate, jnp.zeros(3))


def test_an_own_qnode_weighs_a_training_step():
    qnode = qml.QNode(_by_rotations, qml.device("lightning.qubit", wires=3))
    surrogate = qsgd.probe(qnode, n_inputs=3, degree=2)
    params = {"kernel": jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)}
    weights = qsgd.superposition_weights(surrogate, params, "everywhere")["kernel"]
    for first in (0, 3):
        for column in range(4):
            block = np.asarray(params["kernel"], np.float64)[first : first + 3, column]
            np.testing.assert_allclose(weights[first : first + 3, column], qnode(block), atol=1e-6)
