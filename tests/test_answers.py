"""What a probe asks, and which answers it believes."""

import numpy as np
import pytest

import qsgd_jax as qsgd
from qsgd_jax._src import fourier
from qsgd_jax._src.remote.answers import Probe, RejectedError

CIRCUITS = [(1, 0, 1), (2, 1, 2), (3, 2, 1), (4, 0, 1), (4, 2, 1)]
SHOTS = 1000


def _exact(simulate, circuit, probe, rotation=1.0):
    """The answers of all settings in NumPy, each with its own angles, turned too far."""
    theta = -rotation * probe.encoding[:, 0] / np.pi
    repeated = (probe.encoding == probe.encoding[:, :1]).all(axis=(1, 2))
    answers = np.empty((probe.n_settings, circuit.n_qubits))
    for i, (row, angles) in enumerate(zip(theta, probe.angles, strict=True)):
        uploads = circuit.uploads if repeated[i] else 1
        answers[i] = simulate(row[None], rotation * angles, uploads)[0]
    return answers


def _measured(exact, seed, shots=SHOTS):
    rng = np.random.default_rng(seed)
    return 2 * rng.binomial(shots, np.clip((1 + exact) / 2, 0, 1)) / shots - 1


@pytest.mark.parametrize("shape", CIRCUITS, ids=str)
def test_exact_answers_give_the_coefficients_of_the_circuit(simulate, float64, shape):
    circuit = qsgd.Circuit(*shape)
    probe = Probe(circuit, SHOTS)
    np.testing.assert_allclose(probe.exact, _exact(simulate, circuit, probe), atol=1e-12)
    table = probe.coefficients(_exact(simulate, circuit, probe).tolist())
    theta = np.random.default_rng(1).uniform(-2, 2, (20, circuit.n_qubits))
    values = fourier.evaluate(table, list(theta.T), circuit.origin)
    expected = simulate(theta, circuit.angles, circuit.uploads)[0]
    np.testing.assert_allclose(np.stack(values, -1), expected, atol=1e-12)


@pytest.mark.parametrize("shape", CIRCUITS, ids=str)
def test_sure_settings_tell_all_wires_apart(simulate, shape):
    circuit = qsgd.Circuit(*shape)
    probe = Probe(circuit, SHOTS)
    known = _exact(simulate, circuit, probe)[-circuit.n_qubits - 1 :]
    np.testing.assert_allclose(np.abs(known), 1, atol=1e-12)
    inputs = probe.encoding[-circuit.n_qubits - 1 :, 0]
    for patterns in (known, inputs):
        assert len({tuple(np.round(column, 6)) for column in patterns.T}) == circuit.n_qubits


@pytest.mark.parametrize("shots", [100, 1000, 10**6])
@pytest.mark.parametrize("noise", ["none", "damping", "readout", "turned too far", "too little"])
@pytest.mark.parametrize("shape", CIRCUITS, ids=str)
def test_answers_of_an_honest_device_are_believed(simulate, shape, noise, shots):
    """Also a noisy one: noise that does not depend on θ keeps the polynomial's form."""
    circuit = qsgd.Circuit(*shape)
    probe = Probe(circuit, shots)
    exact = _exact(simulate, circuit, probe)
    if noise.startswith("t"):
        exact = _exact(simulate, circuit, probe, 1.02 if noise == "turned too far" else 0.98)
    exact = {"damping": 0.6 * exact, "readout": 0.85 * exact + 0.05}.get(noise, exact)
    for seed in range(50):
        probe.coefficients(_measured(exact, seed, shots))


WRONG = {
    "NaN": (lambda a, rng: np.where(np.arange(len(a))[:, None] == 7, np.nan, a), "not finite"),
    "too few": (lambda a, rng: a[:-1], "shape"),
    "ragged": (lambda a, rng: [list(row)[: 1 + i % 2] for i, row in enumerate(a)], "shape"),
    "text": (lambda a, rng: "0.5", "shape"),
    "too large": (lambda a, rng: 1.3 * a, "±1 is the most"),
    "wires": (lambda a, rng: np.roll(a, 1, axis=1), "of the 5 sure ones"),
    "sign": (lambda a, rng: -a, "5 of the 5 sure ones"),
    "little signal": (lambda a, rng: 0.3 * a, "5 of the 5 sure ones"),
    "reversed": (lambda a, rng: a[::-1], "of the 5 sure ones"),
    "grid shuffled": (
        lambda a, rng: np.concatenate([rng.permutation(a[:-13]), a[-13:]]),
        "mixed up",
    ),
    "grid reversed": (lambda a, rng: np.concatenate([a[:-13][::-1], a[-13:]]), "mixed up"),
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


def test_two_settings_whose_answers_differ_much_are_not_exchanged_unseen(simulate):
    circuit, rng = qsgd.Circuit(4, 2), np.random.default_rng(0)
    probe = Probe(circuit, SHOTS)
    exact, refused = _exact(simulate, circuit, probe), 0
    for seed in range(300):
        i, j = rng.choice(81, 2, replace=False)
        if np.abs(exact[i] - exact[j]).max() < 0.5 + 10 / np.sqrt(SHOTS):
            continue
        answers = _measured(exact, seed)
        answers[[i, j]] = answers[[j, i]]
        with pytest.raises(RejectedError, match="2 of 94 settings \\(0 of the 5 sure ones"):
            probe.coefficients(answers)
        refused += 1
    assert refused > 100


@pytest.mark.parametrize(("off", "believed"), [(0.48, True), (0.52, False)])
def test_how_far_an_answer_may_be_off(off, believed):
    probe = Probe(qsgd.Circuit(4, 2), 10**8)
    answers = probe.exact.copy()
    answers[-1] *= 1 - off
    if believed:
        probe.coefficients(answers)
    else:
        with pytest.raises(RejectedError, match=r"1 of 94 settings \(1 of the 5 sure ones"):
            probe.coefficients(answers)


@pytest.mark.parametrize(("off", "believed"), [(0.09, True), (0.11, False)])
def test_how_far_answers_off_the_grid_may_be_off(off, believed):
    probe = Probe(qsgd.Circuit(4, 2), 10**8)
    answers = probe.exact.copy()
    answers[81:89] += off * np.sign(-answers[81:89])
    if believed:
        probe.coefficients(answers)
    else:
        with pytest.raises(RejectedError, match=r"differ by 0\.11"):
            probe.coefficients(answers)
