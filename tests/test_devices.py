"""Batches of circuits on every kind of device against a simulation in NumPy."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

import qsgd_jax as qsgd
from qsgd_jax._src import devices, fourier, harmonics, host
from qsgd_jax._src.circuit import Readout

NAMES = ("lightning.qubit", "lightning.kokkos", "default.qubit", "default.mixed")
# n, depth, uploads: an encoding after the last layer, so that no RZ is dead.
CIRCUIT = (2, 1, 2)
TOLERANCE = {"float32": 5e-6, "float64": 1e-12}


def _theta(batch, n=2, seed=0):
    return np.random.default_rng(seed).uniform(-2, 2, (batch, n))


def _callbacks(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("pure_callback[")


@pytest.mark.parametrize("readout", ["expectation", "probabilities"])
@pytest.mark.parametrize(("n", "batch"), [(1, 1), (2, 0), (3, 5)])
@pytest.mark.parametrize("device", NAMES)
def test_answers_of_a_batch(simulate, dtype, device, n, batch, readout):
    circuit, theta = qsgd.Circuit(n, 2), _theta(batch, n)
    expected = simulate(theta, circuit.angles)[readout == "probabilities"]
    opened = devices.open_device(device, n)
    concrete = devices.run(circuit, opened, theta, readout)
    assert isinstance(concrete, np.ndarray) and concrete.dtype == np.float64
    np.testing.assert_allclose(concrete, expected, atol=1e-12)
    traced = jax.jit(lambda x: devices.run(circuit, opened, x, readout))(theta.astype(dtype))
    assert traced.dtype == dtype
    np.testing.assert_allclose(traced, expected, atol=TOLERANCE[dtype.name])


@pytest.mark.parametrize("wires", [["a", "b"], ["x", 7, "z"], None], ids=str)
@pytest.mark.parametrize("device", NAMES)
def test_a_device_keeps_its_wires(simulate, float64, device, wires):
    circuit, theta = qsgd.Circuit(*CIRCUIT), _theta(3)
    opened = devices.open_device(qml.device(device, wires=wires), 2)
    expected = simulate(theta, circuit.angles, circuit.uploads)[0]
    np.testing.assert_allclose(devices.run(circuit, opened, theta), expected, atol=1e-12)
    traced = jax.jit(lambda x: devices.run(circuit, opened, x))(theta)
    np.testing.assert_allclose(traced, expected, atol=1e-12)


@pytest.mark.parametrize("device", NAMES)
def test_one_call_of_the_device_for_a_batch(device):
    circuit, opened = qsgd.Circuit(*CIRCUIT), devices.open_device(device, 2)
    with qml.Tracker(opened) as tracker:
        devices.run(circuit, opened, _theta(9))
    assert tracker.totals["batches"] == 1 and tracker.totals["executions"] == 9


@pytest.mark.parametrize("device", NAMES)
def test_a_gate_with_an_angle_of_its_own_keeps_it(float64, monkeypatch, device):
    """No angle is put into a gate by its place in the circuit alone."""
    original = qsgd.Circuit.run

    def run(self, encoding, angles, readout: Readout = "expectation", wires=None):
        qml.RX(0.3, wires=0 if wires is None else wires[0])
        return original(self, encoding, angles, readout, wires)

    monkeypatch.setattr(qsgd.Circuit, "run", run)
    circuit, opened, theta = qsgd.Circuit(2), devices.open_device(device, 2), _theta(3)
    expected = np.sin(np.pi * theta) * [np.cos(0.3), 1]
    np.testing.assert_allclose(devices.run(circuit, opened, theta), expected, atol=1e-12)
    traced = jax.jit(lambda x: devices.run(circuit, opened, x))(theta)
    np.testing.assert_allclose(traced, expected, atol=1e-12)


@pytest.mark.parametrize("device", ["lightning.qubit", "lightning.kokkos", "default.mixed"])
def test_one_host_call_for_a_traced_batch(device):
    circuit, opened = qsgd.Circuit(*CIRCUIT), devices.open_device(device, 2)
    answer = jax.jit(lambda x: devices.run(circuit, opened, x))
    assert _callbacks(answer, _theta(9)) == 1
    with qml.Tracker(opened) as tracker:
        jax.block_until_ready(answer(_theta(9)))
    assert tracker.totals["batches"] == 1 and tracker.totals["executions"] == 9


def test_default_qubit_becomes_part_of_the_program():
    circuit, opened = qsgd.Circuit(*CIRCUIT), devices.open_device("default.qubit", 2)

    def slope(x):
        return jax.grad(lambda x: devices.run(circuit, opened, x).sum())(x)

    with qml.Tracker(opened) as tracker:
        text = jax.jit(slope).lower(_theta(9)).compile().as_text()
    assert text is not None and "callback" not in text
    assert tracker.totals.get("batches", 0) <= 1  # at trace time


@pytest.mark.parametrize("device", NAMES)
def test_large_batches_are_cut(simulate, monkeypatch, device):
    monkeypatch.setattr(host, "MAX_BATCH", 4)
    circuit, opened, theta = qsgd.Circuit(2, 1), devices.open_device(device, 2), _theta(10)
    with qml.Tracker(opened) as tracker:
        answers = devices.run(circuit, opened, theta)
    assert tracker.totals["batches"] == 3
    np.testing.assert_allclose(answers, simulate(theta, circuit.angles)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("device", NAMES)
def test_vmap_over_settings_and_angles(simulate, float64, device):
    n, depth, uploads = CIRCUIT
    opened, theta = devices.open_device(device, n), _theta(12).reshape(3, 4, n)
    angles = np.random.default_rng(1).normal(size=(3, depth, n, 2))

    def answers(theta, angles):
        circuit = qsgd.Circuit(n, depth, uploads, angles=angles)
        return devices.run(circuit, opened, theta)

    every = [[simulate(t, a, uploads)[0] for a in angles] for t in theta]
    pairs = [every[i][i] for i in range(3)]
    first = [row[0] for row in every]
    for axes, expected in (((0, 0), pairs), ((0, None), first), ((None, 0), every[0])):
        theta_in = theta if axes[0] == 0 else theta[0]
        angles_in = angles if axes[1] == 0 else angles[0]
        result = jax.jit(jax.vmap(answers, axes))(theta_in, angles_in)
        np.testing.assert_allclose(result, expected, atol=1e-12)


@pytest.mark.parametrize("device", NAMES)
def test_fresh_answers_inside_scan(simulate, float64, device):
    circuit, opened = qsgd.Circuit(2, 1), devices.open_device(device, 2)

    @jax.jit
    def walk(theta):
        def step(theta, _):
            answers = devices.run(circuit, opened, theta)
            return theta + 0.1 * answers, answers

        return jax.lax.scan(step, theta, length=3)[1]

    theta = _theta(4)
    for answers in walk(theta):
        expected = simulate(theta, circuit.angles)[0]
        np.testing.assert_allclose(answers, expected, atol=1e-12)
        theta = theta + 0.1 * expected


def _scalar_of_the_angles(device, readout: Readout = "expectation"):
    """A function of settings and angles in which no first or second derivative is symmetric."""
    n, depth, uploads = CIRCUIT
    opened = devices.open_device(device, n)

    def scalar(theta, angles):
        circuit = qsgd.Circuit(n, depth, uploads, angles=angles)
        answers = devices.run(circuit, opened, theta, readout)
        return jnp.sum(answers * jnp.cos(jnp.arange(1.0, answers.size + 1)).reshape(answers.shape))

    return scalar


def _numpy_scalar(simulate, readout="expectation"):
    def scalar(theta, angles):
        answers = simulate(theta, angles, CIRCUIT[2])[readout == "probabilities"]
        return np.sum(answers * np.cos(np.arange(1.0, answers.size + 1)).reshape(answers.shape))

    return scalar


ANGLES = np.random.default_rng(2).normal(size=(CIRCUIT[1], CIRCUIT[0], 2))


@pytest.mark.parametrize("readout", ["expectation", "probabilities"])
@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("device", NAMES)
def test_first_derivatives(simulate, central, float64, device, mode, readout):
    theta, exact = _theta(2), _numpy_scalar(simulate, readout)
    by_theta, by_angles = jax.jit(mode(_scalar_of_the_angles(device, readout), (0, 1)))(
        theta, ANGLES
    )
    np.testing.assert_allclose(by_theta, central(lambda x: exact(x, ANGLES), theta), atol=1e-8)
    np.testing.assert_allclose(by_angles, central(lambda a: exact(theta, a), ANGLES), atol=1e-8)


@pytest.mark.parametrize(("first", "second"), [(jax.jacrev, jax.jacfwd), (jax.jacrev, jax.jacrev)])
def test_second_derivatives(simulate, central, float64, first, second):
    theta = _theta(1)
    hessians = [
        jax.jit(second(first(_scalar_of_the_angles(device), (0, 1)), (0, 1)))(theta, ANGLES)
        for device in ("lightning.qubit", "default.qubit")
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), *hessians)
    exact = _numpy_scalar(simulate)

    def slope(angles):
        return central(lambda a: exact(theta, a), angles, 1e-3)

    np.testing.assert_allclose(hessians[0][1][1], central(slope, ANGLES, 1e-3), atol=1e-4)


def test_derivatives_under_vmap(float64):
    theta, angles = _theta(6).reshape(3, 2, 2), np.stack([ANGLES, ANGLES + 0.1, ANGLES - 0.2])
    slopes = [
        jax.jit(jax.vmap(jax.grad(_scalar_of_the_angles(device), (0, 1))))(theta, angles)
        for device in ("lightning.qubit", "default.qubit")
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), *slopes)
    alone = jax.grad(_scalar_of_the_angles("lightning.qubit"), (0, 1))(theta[1], angles[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-11), slopes[0], alone)


@pytest.mark.parametrize(
    ("device", "readout"),
    [
        ("lightning.qubit", "expectation"),
        ("lightning.kokkos", "expectation"),
        ("lightning.qubit", "probabilities"),
        ("default.mixed", "expectation"),
    ],
)
def test_number_of_host_calls_does_not_grow_with_the_gates(float64, device, readout):
    """One for the value, and one for the slopes, or for all shifts of all gates of an argument."""
    opened = qml.device(device, wires=CIRCUIT[0])
    adjoint = device.startswith("lightning") and readout == "expectation"
    scalar, theta, many = _scalar_of_the_angles(opened, readout), _theta(3), np.stack([ANGLES] * 4)
    for function, angles, calls in (
        (scalar, ANGLES, 1),
        (jax.value_and_grad(scalar, 1), ANGLES, 2),
        (jax.value_and_grad(scalar, (0, 1)), ANGLES, 2 if adjoint else 3),
        (jax.vmap(scalar, (None, 0)), many, 1),
        (jax.vmap(jax.value_and_grad(scalar, 1), (None, 0)), many, 2),
    ):
        assert _callbacks(function, theta, angles) == calls
        with qml.Tracker(opened) as tracker:
            jax.block_until_ready(jax.jit(function)(theta, angles))
        by_adjoint = adjoint and calls > 1
        assert ("derivatives" in tracker.totals) == by_adjoint
        assert tracker.totals["batches"] == (1 if by_adjoint else calls)


def test_many_blocks_under_jit_do_not_deadlock():
    """A host callback that waits for XLA's threads does; in a process that can be ended."""
    program = """
import jax, jax.numpy as jnp, numpy as np, qsgd_jax as qsgd
from jax import lax
direct = qsgd.Direct(qsgd.Circuit())
params = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (200, 100)), jnp.float32)

@jax.jit
def weigh(p):
    return qsgd.superposition_weights(direct, jnp.tanh(p @ p.T @ p), "everywhere")

weights = weigh(params)
expected = np.sin(np.pi * np.tanh(params @ params.T @ params))
assert weights.shape == (200, 100) and np.abs(weights - expected).max() < 1e-4
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.stdout == "done\n", result.stderr


def test_threads_that_import_do_not_deadlock_with_a_simulator():
    """Who looks for thread pools holds the loader's lock; a process that hangs can be ended."""
    program = """
import ctypes, threading, qsgd_jax as qsgd
done = threading.Event()
def load():
    while not done.is_set():
        ctypes.CDLL("libm.so.6")  # as the import of any extension module does
qsgd.probe(qsgd.Circuit(1))
threading.Thread(target=load, daemon=True).start()
for seed in range(300):
    qsgd.probe(qsgd.Circuit(1, 1, seed=seed))
done.set()
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout == "done\n", result.stderr


def test_unknown_device_name_lists_those_installed():
    with pytest.raises(ValueError) as caught:
        devices.open_device("lightning.qbit", 2)
    for word in ("device='lightning.qbit'", "default.qubit", "lightning.qubit"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("device", "package"),
    [("qiskit.remote", "pennylane-qiskit"), ("braket.aws.qubit", "amazon-braket-pennylane-plugin")],
)
def test_a_missing_plugin_is_named(monkeypatch, device, package):
    monkeypatch.setattr(qml, "plugin_devices", {"default.qubit": None})
    with pytest.raises(ValueError, match=f"`pip install {package}` brings it"):
        devices.open_device(device, 2)


@pytest.mark.parametrize("device", [None, 3, qml.QNode, ["default.qubit"]], ids=str)
def test_what_is_no_device_is_refused(device):
    with pytest.raises(TypeError, match="device=") as caught:
        devices.open_device(device, 2)
    assert repr(device) in str(caught.value)


@pytest.mark.parametrize("device", NAMES)
def test_too_few_wires_are_refused(device):
    with pytest.raises(ValueError) as caught:
        devices.open_device(qml.device(device, wires=2), 3)
    for word in (device, "2 wires", "n_qubits=3"):
        assert word in str(caught.value)
    assert devices.open_device(qml.device(device, wires=3), 3).wires is not None


@pytest.fixture
def _switching_often():
    """Threads that take turns so fast meet in every line."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_switching_often")
@pytest.mark.parametrize("shared", [True, False])
def test_threads_get_their_own_answers(simulate, shared):
    """From a device that they share, or from their own: PennyLane's queue is one for all."""
    circuit = qsgd.Circuit(2, 1)
    opened = [devices.open_device("lightning.qubit", 2) for _ in range(4)]
    batches = [_theta(20, seed=seed) for seed in range(200)]

    def answer(seed):
        return devices.run(circuit, opened[0 if shared else seed % 4], batches[seed])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, range(len(batches))))
    for theta, found in zip(batches, answers, strict=True):
        np.testing.assert_allclose(found, simulate(theta, circuit.angles)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("device", NAMES)
def test_what_a_device_does_to_its_answers_is_done(float64, device):
    """As error mitigation does, which leaves the circuit as it is."""

    @qml.transform
    def halve(tape):
        return [tape], lambda results: tuple(0.5 * np.array(results[0]))

    halved: Any = halve(qml.device(device, wires=2))
    theta = np.array([[0.5, -1 / 6]])
    expected = [[0.5, -0.25]]
    answers = devices.run(qsgd.Circuit(2), halved, theta)
    np.testing.assert_allclose(answers, expected, atol=1e-12)


@pytest.mark.parametrize("device", ["lightning.qubit", "default.mixed"])
def test_an_empty_batch_has_a_derivative(device):
    circuit, opened = qsgd.Circuit(2, 1), devices.open_device(device, 2)
    slope = jax.jit(jax.grad(lambda theta: devices.run(circuit, opened, theta).sum()))
    assert slope(jnp.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("angles", [np.ones((1, 2, 2), int), np.ones((1, 2, 2))], ids=str)
@pytest.mark.parametrize("device", NAMES)
def test_traced_angles_of_any_dtype_are_probed_in_float32(simulate, device, angles):
    opened, theta = devices.open_device(device, 2), _theta(3)
    traced = jnp.asarray(angles, int if angles.dtype == int else jnp.bfloat16)
    answers = jax.jit(lambda a: devices.run(qsgd.Circuit(2, 1, angles=a), opened, theta))(traced)
    np.testing.assert_allclose(answers, simulate(theta, angles)[0], atol=5e-6)


@pytest.mark.parametrize("n", [1, 2])
def test_concrete_settings_are_answered_in_double_precision_whatever_jax_is_set_to(simulate, n):
    circuit = qsgd.Circuit(n, depth=1, seed=n)
    device = devices.open_device("default.qubit", n)
    theta = np.random.default_rng(0).uniform(-1, 1, (5, n))
    answers = devices.run(circuit, device, theta)
    np.testing.assert_allclose(answers, simulate(theta, circuit.angles)[0], atol=1e-12, rtol=0)


def _run_on(device, **options):
    opened = devices.open_device(device, 2)

    def run(angles):
        circuit = qsgd.Circuit(*CIRCUIT, angles=angles)
        return devices.run(circuit, opened, _theta(5).astype(np.float32), **options)

    return run


def _coefficients(angles):
    values = _run_on("default.qubit")(angles)
    values = jnp.resize(values, (fourier.n_settings((2, 2)), 2))
    return fourier.coefficients(values, (2, 2))


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(_run_on("default.qubit"), id="traced"),
        pytest.param(_run_on("default.qubit", readout="amplitudes"), id="traced amplitudes"),
        pytest.param(_run_on("lightning.qubit"), id="adjoint"),
        pytest.param(_run_on("default.mixed"), id="parameter shift"),
        pytest.param(_coefficients, id="coefficients"),
        pytest.param(
            lambda x: fourier.evaluate(_coefficients(x), [jnp.ones(3), jnp.ones(3)]), id="evaluate"
        ),
        pytest.param(lambda x: harmonics.coefficients(x.ravel(), 3), id="harmonics"),
    ],
)
def test_no_product_of_matrices_is_left_to_the_precision_of_the_accelerator(function):
    """A GPU multiplies float32 in TF32, with 10 bits, where nothing is said."""
    jaxpr = str(jax.make_jaxpr(jax.jacfwd(function))(np.zeros((1, 2, 2), np.float32)))
    products = jaxpr.count("dot_general[")
    assert products and jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products
