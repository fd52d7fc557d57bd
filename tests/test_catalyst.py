"""The probe compiled by Catalyst; most of it is run by `make test-catalyst`."""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd
from qsgd_jax._src import compiled, devices, fourier

# Not `importorskip`: importing Catalyst switches double precision on.
INSTALLED = importlib.util.find_spec("catalyst") is not None
needs_catalyst = pytest.mark.skipif(
    not INSTALLED, reason="the extra `catalyst`; `make test-catalyst` brings and tests it"
)
NAME = "lightning.qubit"
# n, depth, uploads
CIRCUITS = [(1, 0, 1), (2, 1, 2), (3, 2, 1), (4, 2, 1)]


def _grid(circuit):
    return np.asarray(circuit.origin) + fourier.probe_grid(circuit.n_qubits, circuit.uploads)


@needs_catalyst
@pytest.mark.parametrize("readout", ["expectation", "probabilities"])
@pytest.mark.parametrize("circuit", CIRCUITS, ids=str)
def test_compiled_answers(simulate, dtype, circuit, readout):
    """Of float64 in either precision of jax."""
    circuit = qsgd.Circuit(*circuit)
    theta = _grid(circuit)
    expected = simulate(theta, circuit.angles, circuit.uploads)[readout == "probabilities"]
    answers = compiled.program(circuit, NAME, readout)(theta)
    assert isinstance(answers, np.ndarray) and answers.dtype == np.float64
    np.testing.assert_allclose(answers, expected, atol=1e-12)
    opened = devices.open_device(NAME, circuit.n_qubits)
    ordinary = devices.run(circuit, opened, theta, readout)
    np.testing.assert_allclose(answers, ordinary, atol=1e-12)
    assert jnp.ones(1).dtype == dtype


@needs_catalyst
@pytest.mark.parametrize("shots", [None, 4])
def test_coefficients_are_those_of_the_ordinary_probe(monkeypatch, shots):
    circuit = qsgd.Circuit(3, 2, 2)
    expected = qsgd.Superposition(circuit, shots=shots).coefficients
    superposition = qsgd.Superposition(circuit, shots=shots, compiler="catalyst")
    monkeypatch.setattr(devices, "run", None)
    assert superposition.coefficients.dtype == np.float64
    np.testing.assert_allclose(superposition.coefficients, expected, atol=1e-12)


@needs_catalyst
def test_measured_answers(simulate):
    """Five standard errors of the mean of all; and each call measures anew."""
    circuit, shots = qsgd.Circuit(2, 1), 1000
    theta = np.tile(np.random.default_rng(0).uniform(-2, 2, (1, 2)), (50, 1))
    expected = simulate(theta[:1], circuit.angles)[0]
    run = compiled.program(circuit, NAME, shots=shots)
    first, second = run(theta), run(theta)
    assert (first != second).mean() > 0.5 and len(np.unique(first[:, 0])) > 10
    error = np.sqrt((1 - expected**2) / shots)
    deviation = np.abs(np.mean([first, second], axis=(0, 1)) - expected)
    assert (deviation < 5 * error / np.sqrt(2 * len(theta))).all()
    np.testing.assert_allclose(first.std(axis=0), error[0], rtol=0.5)


@needs_catalyst
@pytest.mark.parametrize("how", [{"probe_shots": 500}, {"target_standard_error": 0.05}], ids=str)
def test_measured_coefficients(how):
    circuit = qsgd.Circuit(2, 1)
    exact = qsgd.Superposition(circuit).coefficients
    superposition = qsgd.Superposition(circuit, compiler="catalyst", **how)
    assert superposition.measurements is not None
    deviation = np.abs(superposition.coefficients - exact).max()
    assert 1e-3 < deviation < 6 / np.sqrt(superposition.measurements)


@needs_catalyst
def test_one_compilation_for_all_probes(monkeypatch):
    catalyst, calls = compiled._catalyst(), []
    compile_ = catalyst.QJIT.compile
    monkeypatch.setattr(catalyst.QJIT, "compile", lambda *a: calls.append(a) or compile_(*a))
    circuit = qsgd.Circuit(2, 1)
    superposition = qsgd.Superposition(circuit, compiler="catalyst")
    for size in (3, 4):
        superposition.weights(jnp.ones(size))
    assert len(calls) == 1
    run = compiled.program(circuit, NAME)
    np.testing.assert_array_equal(run(_grid(circuit)), run(_grid(circuit)))
    assert len(calls) == 2


@needs_catalyst
@pytest.mark.parametrize("weigh", ["gradient", "update", "moments"])
def test_training_is_that_of_the_ordinary_probe(weigh):
    """Probed where the loop is traced, in a scan under jit."""
    target = jnp.linspace(-1, 1, 24).reshape(4, 6)

    def train(**how):
        superposition = qsgd.Superposition(qsgd.Circuit(3, 2), "everywhere", **how)
        tx = qsgd.superpositional_adamw(
            1e-2, quantum_weight=0.3, weigh=weigh, superposition=superposition
        )

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params - target, state, params)
            return (optax.apply_updates(params, updates), state), None

        @jax.jit
        def run(params):
            return jax.lax.scan(step, (params, tx.init(params)), length=5)[0][0]

        return run(jnp.full((4, 6), 0.2))

    trained = train(compiler="catalyst")
    assert trained.dtype == jnp.float32
    np.testing.assert_allclose(trained, train(), atol=1e-6)


@needs_catalyst
def test_jax_contexts_do_not_reach_the_compiler(simulate):
    """An explicit mesh, an outer vmap, a temporary precision."""
    circuit = qsgd.Circuit(2, 1)
    expected = simulate(_grid(circuit), circuit.angles)[0]

    def answers():
        return compiled.program(circuit, NAME)(_grid(circuit))

    explicit = (jax.sharding.AxisType.Explicit,)
    with jax.set_mesh(jax.make_mesh((2,), ("x",), axis_types=explicit)):
        np.testing.assert_allclose(answers(), expected, atol=1e-12)
    with compiled._enable_x64(True):
        np.testing.assert_allclose(answers(), expected, atol=1e-12)
        assert jnp.ones(1).dtype == jnp.float64
    assert jnp.ones(1).dtype == jnp.float32
    found: list[Any] = []
    jax.vmap(lambda x: found.append(answers()) or x)(jnp.ones(3))
    np.testing.assert_allclose(found[0], expected, atol=1e-12)


@needs_catalyst
def test_threads_get_their_own_answers(simulate):
    """From programs and from an ordinary device at once: PennyLane's queue is one for all."""
    circuits = [qsgd.Circuit(2, 1, seed=seed) for seed in range(16)]
    theta, opened = _grid(circuits[0]), devices.open_device(NAME, 2)

    def answers(circuit):
        program = compiled.program(circuit, NAME)
        ordinary = [devices.run(circuit, opened, theta) for _ in range(10)]
        return program(theta), *ordinary

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answers, circuits))
    for circuit, every in zip(circuits, found, strict=True):
        expected = simulate(theta, circuit.angles)[0]
        for answer in every:
            np.testing.assert_allclose(answer, expected, atol=1e-12)


@needs_catalyst
@pytest.mark.parametrize("precision", ["False", "True"])
def test_import_when_asked_for_only_and_without_a_trace(precision):
    """In a process in which Catalyst is not imported yet."""
    program = f"""
import sys, jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", {precision})
import qsgd_jax as qsgd
from qsgd_jax._src.compiled import _enable_x64
qsgd.superposition_weights(qsgd.Superposition(), jnp.ones(4))
assert "catalyst" not in sys.modules
with _enable_x64(not {precision}):
    superposition = qsgd.Superposition(compiler="catalyst")
assert "catalyst" in sys.modules and jax.config.jax_enable_x64 is {precision}
weights = jax.jit(superposition.weights)(jnp.full(4, 0.5))
assert jax.config.jax_enable_x64 is {precision}
print(weights.dtype)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False
    )
    expected = "float64\n" if precision == "True" else "float32\n"
    assert result.stdout == expected, result.stderr


@pytest.mark.skipif(INSTALLED, reason="Catalyst is installed")
def test_catalyst_is_not_installed():
    with pytest.raises(ImportError) as caught:
        qsgd.Superposition(compiler="catalyst")
    for word in ("compiler='catalyst'", "pip install 'qsgd_jax[catalyst]'", "compiler=None"):
        assert word in str(caught.value)
    assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.parametrize("compiler", ["xla", "", True, 3], ids=str)
def test_unknown_compilers(compiler):
    with pytest.raises(ValueError, match="None, 'catalyst'") as caught:
        qsgd.Superposition(compiler=compiler)
    assert f"compiler={compiler!r}" in str(caught.value)


@pytest.mark.parametrize("device", ["default.qubit", "lightning.kokkos", "instance"])
def test_devices_that_are_not_compiled(device):
    """An instance neither: what it does to wires and answers would be lost."""
    device = devices.open_device(NAME, 4) if device == "instance" else device
    with pytest.raises(ValueError, match="compiler='catalyst'") as caught:
        qsgd.Superposition(device=device, compiler="catalyst")
    for word in (f"device={device!r}", "allowed is the name 'lightning.qubit'"):
        assert word in str(caught.value)


@pytest.mark.parametrize("how", [{"execution": "direct"}, {"circuit": qsgd.Circuit(11)}], ids=str)
def test_nothing_to_compile(how):
    """In direct execution, also where a circuit is too wide for a probe."""
    with pytest.raises(ValueError, match="compiler='catalyst'") as caught:
        qsgd.Superposition(**how, compiler="catalyst")
    for word in (f"execution={how.get('execution', 'auto')!r}", "'fourier'", "compiler=None"):
        assert word in str(caught.value)


def test_traced_angles_are_not_compiled():
    def weights(angles):
        circuit = qsgd.Circuit(2, 1, weights=angles)
        return qsgd.Superposition(circuit, compiler="catalyst").weights(jnp.ones(2))

    with pytest.raises(ValueError, match="compiler='catalyst'") as caught:
        jax.jit(weights)(jnp.ones((1, 2, 2)))
    for word in ("weights=", "traced", "concrete"):
        assert word in str(caught.value)
