"""Circuits that Catalyst compiles, and program capture; run by `make test-catalyst`."""

import importlib.util
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest

import qsgd_jax as qsgd
from tests import documents

# Not `importorskip`: importing Catalyst switches double precision on.
INSTALLED = importlib.util.find_spec("catalyst") is not None
needs_catalyst = pytest.mark.skipif(
    not INSTALLED, reason="the extra `catalyst`; `make test-catalyst` brings and tests it"
)
NAME = "lightning.qubit"
# n, depth, uploads
CIRCUITS = [(1, 0, 1), (2, 1, 2), (3, 2, 1), (4, 2, 1)]


@pytest.fixture
def catalyst(float64):
    """Catalyst, which compiles in double precision alone, and the precision of before behind."""
    return importlib.import_module("catalyst")


@pytest.fixture
def capture(float64):
    """Program capture, a switch of the whole process, which PennyLane allows with this jax."""
    qml.capture.enable()
    yield
    qml.capture.disable()


def _probed(circuit, function, readout: Any = "expectation", **options):
    """What a user says of a `Circuit` that is compiled or batched: all that it says itself."""
    n, degree = circuit.n_qubits, circuit.uploads
    return qsgd.probe(function, n_inputs=n, degree=degree, period=2, readout=readout, **options)


def _compiled(circuit, readout="expectation", shots=None) -> Any:
    return qml.qjit(qml.set_shots(circuit.qnode(NAME, readout), shots=shots))


def _evaluated(surrogate, theta):
    return np.stack(surrogate.evaluate([jnp.asarray(column) for column in theta.T]), axis=-1)


def _theta(n, points=9):
    return np.random.default_rng(n).uniform(-3, 3, (points, n))


@needs_catalyst
@pytest.mark.usefixtures("catalyst")
@pytest.mark.parametrize("readout", ["expectation", "probabilities"])
@pytest.mark.parametrize("circuit", CIRCUITS, ids=str)
def test_the_surrogate_of_a_compiled_circuit_is_that_of_the_circuit(simulate, circuit, readout):
    circuit = qsgd.Circuit(*circuit)
    surrogate = _probed(circuit, _compiled(circuit, readout), readout)
    theta = _theta(circuit.n_qubits)
    found = _evaluated(surrogate, theta)
    expected = simulate(theta, circuit.angles, circuit.uploads)[readout == "probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    ordinary = qsgd.probe(circuit, readout=readout)
    np.testing.assert_allclose(found, _evaluated(ordinary, theta), atol=1e-12)
    assert (surrogate.readout, surrogate.shots) == (readout, None)
    assert surrogate.provenance.device == NAME and not surrogate.traced


@needs_catalyst
@pytest.mark.parametrize("circuit", CIRCUITS, ids=str)
def test_a_batch_by_the_vmap_of_catalyst(catalyst, simulate, circuit):
    circuit = qsgd.Circuit(*circuit)
    compiled = qml.qjit(catalyst.vmap(circuit.qnode(NAME)))
    surrogate, theta = _probed(circuit, compiled, batched=True), _theta(circuit.n_qubits)
    expected = simulate(theta, circuit.angles, circuit.uploads)[0]
    np.testing.assert_allclose(_evaluated(surrogate, theta), expected, atol=1e-12)


@needs_catalyst
@pytest.mark.parametrize("readout", ["expectation", "probabilities"])
@pytest.mark.parametrize("batched", [False, True])
def test_measured_answers(catalyst, simulate, readout, batched):
    """Of an error that the surrogate tells, and others in each probe."""
    circuit, shots = qsgd.Circuit(2, 1), 1000
    qnode = qml.set_shots(circuit.qnode(NAME, readout), shots=shots)
    # Of a batch only its author knows how often each circuit is measured.
    options = {"batched": True, "shots": shots} if batched else {}
    compiled = qml.qjit(catalyst.vmap(qnode) if batched else qnode)
    exact = _probed(circuit, circuit.qnode(NAME, readout), readout)
    first, second = (_probed(circuit, compiled, readout, **options) for _ in range(2))
    assert first.shots == second.shots == shots and first != second
    for surrogate in (first, second):
        errors, deviation = surrogate.standard_errors, surrogate.coefficients - exact.coefficients
        assert errors is not None and np.all(np.abs(deviation) <= 5 * errors)
        assert 0.2 < np.mean((deviation / errors) ** 2) < 3
    theta = _theta(2)
    expected = simulate(theta, circuit.angles)[readout == "probabilities"]
    assert np.abs(_evaluated(first, theta) - expected).max() <= 5 / np.sqrt(shots)


@needs_catalyst
@pytest.mark.usefixtures("catalyst")
def test_what_does_not_fit_is_refused():
    circuit = qsgd.Circuit(2, 1, 2)
    compiled = _compiled(circuit)
    with pytest.raises(ValueError, match=r"superposition on 'lightning.qubit' is no trigonometric"):
        qsgd.probe(compiled, n_inputs=2, degree=1, period=2)
    with pytest.raises(ValueError, match=r"device='default.qubit': allowed is None, unless"):
        _probed(circuit, compiled, device="default.qubit")
    with pytest.raises(ValueError, match="n_inputs=None"):
        qsgd.probe(compiled)


@needs_catalyst
@pytest.mark.usefixtures("catalyst")
def test_the_code_of_its_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents.run(documents.ROOT / "docs" / "catalyst.md")


@needs_catalyst
def test_one_compilation_for_all_settings(catalyst, monkeypatch):
    calls, compile_ = [], catalyst.QJIT.compile
    monkeypatch.setattr(catalyst.QJIT, "compile", lambda *a: calls.append(a) or compile_(*a))
    circuit = qsgd.Circuit(2, 1)
    compiled = _compiled(circuit)
    assert _probed(circuit, compiled) == _probed(circuit, compiled)
    assert len(calls) == 1


@needs_catalyst
@pytest.mark.usefixtures("catalyst")
@pytest.mark.parametrize("weigh", ["gradient", "update", "moments"])
def test_training_is_that_of_the_ordinary_probe(weigh):
    """In single precision too, where the surrogate was probed in double."""
    circuit, target = qsgd.Circuit(3, 2), np.linspace(-1, 1, 24).reshape(4, 6)
    surrogates = qsgd.probe(circuit), _probed(circuit, _compiled(circuit))

    def train(surrogate, dtype):
        optimizer = qsgd.superpositional_adamw(
            1e-2, quantum_weight=0.3, weigh=weigh, surrogate=surrogate, coverage="everywhere"
        )

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(params - jnp.asarray(target, dtype), state, params)
            return (optax.apply_updates(params, updates), state), None

        @jax.jit
        def run(params):
            return jax.lax.scan(step, (params, optimizer.init(params)), length=5)[0][0]

        return run(jnp.full((4, 6), 0.2, dtype))

    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-6)):
        jax.config.update("jax_enable_x64", dtype == "float64")
        expected, trained = (train(surrogate, dtype) for surrogate in surrogates)
        assert trained.dtype == dtype
        np.testing.assert_allclose(trained, expected, atol=tolerance)


@needs_catalyst
@pytest.mark.usefixtures("catalyst")
def test_a_probe_where_jax_is_at_work(simulate):
    """On an explicit mesh, on which Catalyst does not compile, and where JAX traces."""
    circuit, theta = qsgd.Circuit(2, 1), _theta(2)
    expected = simulate(theta, circuit.angles)[0]
    explicit, compiled = (jax.sharding.AxisType.Explicit,), _compiled(circuit)
    compiled(theta[0])
    with jax.set_mesh(jax.make_mesh((2,), ("x",), axis_types=explicit)):
        surrogate = _probed(circuit, compiled)
    np.testing.assert_allclose(_evaluated(surrogate, theta), expected, atol=1e-12)

    def evaluate(columns):
        return _probed(circuit, _compiled(circuit)).evaluate(list(columns))

    columns = jnp.asarray(theta.T)
    found = jax.jit(evaluate)(columns), [x[0] for x in jax.vmap(evaluate)(columns[None])]
    for outputs in found:
        np.testing.assert_allclose(np.stack(outputs, -1), expected, atol=1e-12)


@needs_catalyst
def test_threads_get_their_own_answers():
    """From compiled circuits and from ordinary ones at once, in a process that can be ended.

    Catalyst's programs and PennyLane's queue are one for all threads.
    """
    program = """
from concurrent.futures import ThreadPoolExecutor
import catalyst, jax.numpy as jnp, numpy as np, pennylane as qml, qsgd_jax as qsgd
theta = [jnp.linspace(-1, 1, 5), jnp.linspace(1, 0, 5)]

def answers(circuit):
    compiled = qsgd.probe(qml.qjit(circuit.qnode()), n_inputs=2, degree=1, period=2)
    return [s.evaluate(theta) for s in (compiled, *(qsgd.probe(circuit) for _ in range(10)))]

circuits = [qsgd.Circuit(2, 1, seed=seed) for seed in range(16)]
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(answers, circuits))
for circuit, every in zip(circuits, found, strict=True):
    expected = qsgd.probe(circuit, device="default.qubit").evaluate(theta)
    for answer in every:
        np.testing.assert_allclose(answer, expected, atol=1e-12)
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout == "done\n", result.stderr


@needs_catalyst
def test_the_package_does_not_import_catalyst():
    """Which would switch double precision on."""
    program = """
import sys, jax, jax.numpy as jnp, pennylane as qml
import qsgd_jax as qsgd
from qsgd_jax import nn
circuit = qsgd.Circuit()
qsgd.probe(circuit.qnode(), n_inputs=4, degree=1, period=2)
optimizer, params = qsgd.superpositional_adamw(0.1, surrogate=qsgd.probe(circuit)), jnp.ones(4)
updates, _ = optimizer.update(params, optimizer.init(params), params)
qsgd.superposition_weights(qsgd.Direct(circuit), params)
assert "catalyst" not in sys.modules
print(updates.dtype, jax.config.jax_enable_x64)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.stdout == "float32 False\n", result.stderr


# Program capture


@needs_catalyst
@pytest.mark.usefixtures("capture")
@pytest.mark.parametrize("device", [NAME, "default.qubit", "default.mixed"])
def test_probes_while_programs_are_captured(simulate, device):
    """Tapes would stay empty; and capture is on again afterwards."""
    circuit, theta = qsgd.Circuit(2, 1, 2), _theta(2)
    expected = simulate(theta, circuit.angles, 2)[0]
    for surrogate in (
        qsgd.probe(circuit, device=device),
        _probed(circuit, circuit.qnode(device)),
        _probed(circuit, circuit.qnode(NAME), device=device),
    ):
        assert qml.capture.enabled()
        np.testing.assert_allclose(_evaluated(surrogate, theta), expected, atol=1e-12)
    measured = qsgd.probe(circuit, device=device, shots=100)
    assert measured.shots == 100 and qml.capture.enabled()


@needs_catalyst
@pytest.mark.usefixtures("capture")
@pytest.mark.parametrize("device", [NAME, "default.qubit"])
def test_traced_probes_and_direct_execution_while_programs_are_captured(simulate, central, device):
    circuit, theta = qsgd.Circuit(2, 1, 2), _theta(2, 4)
    weights = simulate(theta, circuit.angles, 2)[0]
    direct = qsgd.Direct(circuit, device)

    def weigh(params):
        return qsgd.superposition_weights(direct, params, qsgd.Leading(stacked_axes=1))

    for function in (weigh, jax.jit(weigh)):
        np.testing.assert_allclose(function(jnp.asarray(theta)), weights, atol=1e-12)
        assert qml.capture.enabled()

    def total(angles):
        surrogate = qsgd.probe(qsgd.Circuit(2, 1, 2, angles=angles), device=device)
        return sum(jnp.sum(x) for x in surrogate.evaluate(list(jnp.asarray(theta.T))))

    slopes = jax.jit(jax.grad(total))(circuit.angles)
    expected = central(lambda a: simulate(theta, a, 2)[0].sum(), circuit.angles)
    np.testing.assert_allclose(slopes, expected, atol=1e-8)
    assert qml.capture.enabled()


@needs_catalyst
@pytest.mark.usefixtures("catalyst", "capture")
def test_a_compiled_circuit_whose_program_is_captured(simulate):
    circuit, theta = qsgd.Circuit(2, 1), _theta(2)
    surrogate = _probed(circuit, _compiled(circuit))
    expected = simulate(theta, circuit.angles)[0]
    np.testing.assert_allclose(_evaluated(surrogate, theta), expected, atol=1e-12)
    assert qml.capture.enabled()
