"""The circuit against a state-vector simulation in NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from pennylane.tape import make_qscript

import qsgd_jax as qsgd

DEVICES = ("lightning.qubit", "default.qubit")


def _theta(batch, n):
    return np.random.default_rng(n).uniform(-3, 3, (batch, n))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("n", "depth", "uploads"), [(1, 0, 1), (1, 2, 3), (2, 1, 2), (3, 2, 1), (4, 3, 2), (5, 1, 1)]
)
def test_qnode_is_the_circuit_of_the_formula(simulate, device, n, depth, uploads):
    circuit, theta = qsgd.Circuit(n, depth, uploads, seed=3), _theta(3, n)
    expectations, probabilities = simulate(theta, circuit.angles, uploads)
    expectation, probability = (circuit.qnode(device, r) for r in ("expectation", "probabilities"))
    for block, z, p in zip(theta, expectations, probabilities, strict=True):
        np.testing.assert_allclose(np.ravel(expectation(block)), z, atol=1e-12)
        np.testing.assert_allclose(probability(block), p, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_qnode_at_depth_zero_is_the_sine(device):
    theta = _theta(1, 4)[0]
    answer = qsgd.Circuit(n_qubits=4).qnode(device)(theta)
    np.testing.assert_allclose(answer, np.sin(np.pi * theta), atol=1e-12)


def test_qnode_takes_other_angles_and_a_batch(simulate):
    circuit, theta = qsgd.Circuit(2, 2, seed=0), _theta(5, 2)
    other = np.random.default_rng(1).normal(size=(2, 2, 2))
    answer = circuit.qnode("default.qubit")(theta, angles=other)
    np.testing.assert_allclose(np.transpose(answer), simulate(theta, other)[0], atol=1e-12)


def test_qnode_is_differentiable_in_jax(float64):
    qnode = qsgd.Circuit(n_qubits=1).qnode("default.qubit")
    slope = jax.grad(lambda x: jnp.sum(jnp.asarray(qnode(x))))(jnp.array([0.2]))
    np.testing.assert_allclose(slope, [np.pi * np.cos(0.2 * np.pi)], atol=1e-12)


def test_gates_are_drawn_in_the_order_of_the_formula():
    """Also the last RZ, which no measurement of Z can see."""
    circuit = qsgd.Circuit(n_qubits=2, depth=1, uploads=2, angles=np.full((1, 2, 2), 0.5))
    tape = make_qscript(circuit.run)(circuit.encoding(np.ones(2)), circuit.angles)
    gates = [(gate.name, list(gate.wires)) for gate in tape.operations]
    single = [[(name, [wire]) for wire in (0, 1)] for name in ("Hadamard", "RY")]
    layer = [(name, [wire]) for wire in (0, 1) for name in ("RY", "RZ")]
    assert gates == [*single[0], *single[1], *layer, ("CNOT", [0, 1]), *single[1]]
    drawing = qml.draw(circuit.qnode())(np.array([1.0, 0.0]))
    assert "RZ(0.50)" in drawing and "RY(-3.14)" in drawing and "<Z>" in drawing


@pytest.mark.parametrize("device", [*DEVICES, "default.mixed"])
def test_qnode_runs_on_the_wires_of_a_device(simulate, device):
    circuit, theta = qsgd.Circuit(2, 2), _theta(1, 2)
    for wires in (["a", "b"], ["a", 1, "c"], None):
        answer = circuit.qnode(qml.device(device, wires=wires))(theta[0])
        np.testing.assert_allclose(answer, simulate(theta, circuit.angles)[0][0], atol=1e-12)


def test_seed_chooses_the_angles():
    first, again, other = (qsgd.Circuit(3, 50, seed=seed).angles for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (50, 3, 2)
    assert -np.pi <= np.min(first) < -3 and 3 < np.max(first) < np.pi


def test_traced_angles_are_known_as_such():
    angles = np.zeros((1, 2, 2))
    assert not qsgd.Circuit(2, 1, angles=angles).traced
    assert not qsgd.Circuit(2, 1, angles=jnp.asarray(angles)).traced
    seen = []
    jax.eval_shape(lambda a: seen.append(qsgd.Circuit(2, 1, angles=a).traced), angles)
    assert seen == [True]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"n_qubits": 0}, ValueError, ("n_qubits=0", "at least 1")),
        ({"n_qubits": -2}, ValueError, ("n_qubits=-2", "at least 1")),
        ({"n_qubits": 2.0}, TypeError, ("n_qubits=2.0", "integer")),
        ({"n_qubits": True}, TypeError, ("n_qubits=True", "integer")),
        ({"n_qubits": "4"}, TypeError, ("n_qubits='4'", "integer")),
        ({"depth": -1}, ValueError, ("depth=-1", "0 or more")),
        ({"depth": 1.5}, TypeError, ("depth=1.5", "integer")),
        ({"depth": None}, TypeError, ("depth=None", "integer")),
        ({"depth": False}, TypeError, ("depth=False", "integer")),
        ({"uploads": 0}, ValueError, ("uploads=0", "1…1")),
        ({"uploads": 2}, ValueError, ("uploads=2", "1…1")),
        ({"depth": 2, "uploads": 4}, ValueError, ("uploads=4", "1…3")),
        ({"uploads": 1.0}, TypeError, ("uploads=1.0", "integer")),
        ({"uploads": True}, TypeError, ("uploads=True", "integer")),
        ({"seed": -1}, ValueError, ("seed=-1", "0 or more")),
        ({"seed": 0.5}, TypeError, ("seed=0.5", "integer")),
        ({"angles": np.zeros((1, 4, 2))}, ValueError, ("angles", "(1, 4, 2)", "(0, 4, 2)")),
        ({"depth": 1, "angles": np.zeros((1, 4))}, ValueError, ("angles", "(1, 4)")),
        ({"depth": 1, "angles": 0.5}, ValueError, ("angles", "()", "(1, 4, 2)")),
        ({"n_qubits": 1, "depth": 1, "angles": [[[np.nan, 0.0]]]}, ValueError, ("angles", "nan")),
        ({"n_qubits": 1, "depth": 1, "angles": [[[0.0, np.inf]]]}, ValueError, ("angles", "inf")),
        ({"n_qubits": 1, "depth": 1, "angles": [[["a", "b"]]]}, TypeError, ("angles", "'a'")),
        ({"n_qubits": 1, "depth": 1, "angles": [[[1j, 0]]]}, TypeError, ("angles", "1j")),
        ({"n_qubits": 1, "depth": 1, "angles": [[[0.0], []]]}, ValueError, ("angles",)),
        (
            {"n_qubits": 1, "depth": 1, "angles": np.array([[[1j, 0]]])},
            TypeError,
            ("angles", "1.j"),
        ),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    with pytest.raises(error) as caught:
        qsgd.Circuit(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_integers_of_numpy_are_integers():
    integers: Any = np.int64(2), np.int32(1), np.int8(2)
    circuit = qsgd.Circuit(*integers)
    assert circuit.angles.shape == (1, 2, 2)


def test_qnode_refuses_what_does_not_fit_and_is_differentiable():
    circuit = qsgd.Circuit(2, 1)
    with pytest.raises(ValueError, match=r"has 1 wires; allowed are devices of at least"):
        circuit.qnode(qml.device("default.qubit", wires=1))
    with pytest.raises(ValueError, match=r"theta has shape \(4,\); allowed is \(..., 2\)"):
        circuit.qnode("default.qubit")(np.zeros(4))
    with pytest.raises(ValueError, match=r"angles has shape \(3, 5, 2\)"):
        circuit.qnode("default.qubit")(np.zeros(2), np.zeros((3, 5, 2)))
    theta = qml.numpy.array([0.1, 0.2], requires_grad=True)
    plain = qsgd.Circuit(2).qnode("lightning.qubit")
    slope = qml.grad(lambda x: plain(x)[0])(theta)
    np.testing.assert_allclose(slope, [np.pi * np.cos(0.1 * np.pi), 0], atol=1e-9)


def test_a_circuit_keeps_its_own_copy_of_the_angles():
    angles = np.ones((1, 2, 2))
    circuit = qsgd.Circuit(2, 1, angles=angles)
    angles[:] = 0
    np.testing.assert_array_equal(circuit.angles, 1)


def test_a_changed_copy_never_keeps_what_it_should_draw_anew():
    circuit = qsgd.Circuit(2, 1, seed=3)
    with pytest.raises(ValueError, match=r"seed=5 .* angles are given"):
        dataclasses.replace(circuit, seed=5)
    with pytest.raises(ValueError, match="angles has shape"):
        dataclasses.replace(circuit, depth=2)
    same = dataclasses.replace(circuit, n_qubits=2)
    np.testing.assert_array_equal(same.angles, circuit.angles)
