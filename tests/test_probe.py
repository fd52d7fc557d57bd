"""What a probe asks, and which answers it believes."""

import numpy as np
import pytest

import qsgd_jax as qsgd
from qsgd_jax import fourier
from qsgd_jax.probe import Probe, RejectedError

CIRCUITS = [(1, 0, 1), (2, 1, 2), (3, 2, 1), (4, 0, 1), (4, 2, 1)]
SHOTS = 1000


def _exact(simulate, circuit, probe):
    """The answers of all settings in NumPy, each with its own angles."""
    theta = -probe.encoding[:, 0] / np.pi
    repeated = (probe.encoding == probe.encoding[:, :1]).all(axis=(1, 2))
    answers = np.empty((probe.n_settings, circuit.n_qubits))
    for i, (row, angles) in enumerate(zip(theta, probe.angles, strict=True)):
        answers[i] = simulate(row[None], angles, circuit.uploads if repeated[i] else 1)[0]
    return answers


def _measured(exact, seed, shots=SHOTS):
    rng = np.random.default_rng(seed)
    return 2 * rng.binomial(shots, np.clip((1 + exact) / 2, 0, 1)) / shots - 1


@pytest.mark.parametrize("shape", CIRCUITS, ids=str)
def test_exact_answers_give_the_coefficients_of_the_circuit(simulate, float64, shape):
    circuit = qsgd.Circuit(*shape)
    probe = Probe(circuit, SHOTS)
    table = probe.coefficients(_exact(simulate, circuit, probe).tolist())
    theta = np.random.default_rng(1).uniform(-2, 2, (20, circuit.n_qubits))
    values = fourier.evaluate(table, list(theta.T), circuit.origin)
    expected = simulate(theta, circuit.angles, circuit.uploads)[0]
    np.testing.assert_allclose(np.stack(values, -1), expected, atol=1e-12)


@pytest.mark.parametrize("shape", CIRCUITS, ids=str)
def test_known_settings_tell_all_wires_apart(simulate, shape):
    circuit = qsgd.Circuit(*shape)
    probe = Probe(circuit, SHOTS)
    known = _exact(simulate, circuit, probe)[-circuit.n_qubits - 1 :]
    np.testing.assert_allclose(np.abs(known), 1, atol=1e-12)
    inputs = probe.encoding[-circuit.n_qubits - 1 :, 0]
    for patterns in (known, inputs):
        assert len({tuple(np.round(column, 6)) for column in patterns.T}) == circuit.n_qubits


@pytest.mark.parametrize("shots", [100, 1000, 10**6])
@pytest.mark.parametrize("noise", ["none", "damping", "readout"])
@pytest.mark.parametrize("shape", CIRCUITS, ids=str)
def test_answers_of_an_honest_device_are_believed(simulate, shape, noise, shots):
    """Also a noisy one: noise that does not depend on θ keeps the polynomial's form."""
    circuit = qsgd.Circuit(*shape)
    probe = Probe(circuit, shots)
    exact = _exact(simulate, circuit, probe)
    exact = {"none": exact, "damping": 0.8 * exact, "readout": 0.85 * exact + 0.05}[noise]
    for seed in range(50):
        probe.coefficients(_measured(exact, seed, shots))


WRONG = {
    "NaN": (lambda a, rng: np.where(np.arange(len(a))[:, None] == 7, np.nan, a), "not finite"),
    "too few": (lambda a, rng: a[:-1], "shape"),
    "ragged": (lambda a, rng: [list(row)[: 1 + i % 2] for i, row in enumerate(a)], "shape"),
    "text": (lambda a, rng: "0.5", "shape"),
    "too large": (lambda a, rng: 1.3 * a, "±1 is the most"),
    "wires": (lambda a, rng: np.roll(a, 1, axis=1), "wires swapped"),
    "sign": (lambda a, rng: -a, "wires swapped"),
    "no signal": (lambda a, rng: 0 * a, "wires swapped"),
    "reversed": (lambda a, rng: a[::-1], "wires swapped|±1 is the most"),
    "grid shuffled": (
        lambda a, rng: np.concatenate([rng.permutation(a[:-13]), a[-13:]]),
        "mixed up|±1 is the most",
    ),
    "grid reversed": (lambda a, rng: np.concatenate([a[:-13][::-1], a[-13:]]), "mixed up|±1"),
    "stuck": (lambda a, rng: np.concatenate([0 * a[:-13] + a[0], a[-13:]]), "mixed up"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("shape", [(4, 0, 1), (4, 2, 1)], ids=str)
def test_nonsense_is_rejected(simulate, shape, name):
    circuit = qsgd.Circuit(*shape)
    probe = Probe(circuit, SHOTS)
    exact = _exact(simulate, circuit, probe)
    spoil, reason = WRONG[name]
    rng = np.random.default_rng(0)
    for seed in range(20):
        with pytest.raises(RejectedError, match=reason):
            probe.coefficients(spoil(_measured(exact, seed), rng))
