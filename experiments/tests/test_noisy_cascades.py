"""Cascades of devices as numbers, what is done with them, and how runs become a table."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest

import qsgd_jax as qsgd
from experiments.engine import command
from experiments.engine.results import read_results
from experiments.engine.statistics import curves_of
from experiments.noisy_cascades import figures, probing, study, tables
from experiments.noisy_cascades.probing import AS_PROBED, DRIFT, EXACT, REFITTED
from experiments.noisy_cascades.study import NEVER_REFRESHED, REFRESHED, Arm
from experiments.spectral_study.__main__ import read
from experiments.spectral_study.arms import SPECTRAL
from experiments.spectral_study.effects import Study

SIGMA = np.linspace(0, 1, 101)
HYPER = {"weight_decay": 0.01, "beta": 0.9, "learning_rate": 0.02, "warmup": 0.1}


def _measured(shots=2000, seed=0):
    return probing.hand_set(device=qml.device("lightning.qubit", 1, seed=seed), shots=shots)


def test_a_measured_cascade_comes_back_from_its_numbers():
    cascade = _measured()
    found = probing.from_numbers(probing.as_numbers(cascade), probing.hand_set())
    np.testing.assert_allclose(found.evaluate(SIGMA), cascade.evaluate(SIGMA), atol=1e-12)
    assert np.abs(found.evaluate(SIGMA) - probing.hand_set().evaluate(SIGMA)).max() > 1e-3


def test_the_scale_as_it_was_is_the_exact_one_or_what_the_next_stage_takes():
    exact = probing.hand_set()
    assert probing.scale_as_it_was(exact).output_scales == pytest.approx(exact.output_scales)
    device = probing.drifting(1.0)  # smaller answers, so that the refitted scale is larger
    noisy = probing.hand_set(device=device)
    assert min(np.divide(noisy.output_scales, exact.output_scales)) > 1
    assert probing.scale_as_it_was(noisy).output_scales == pytest.approx(exact.output_scales)
    for seed in range(5):
        probing.scale_as_it_was(_measured(2000, seed))  # a stage beyond the next would be refused


def test_the_device_that_drifts_begins_without_noise_and_ends_as_said():
    start = probing.hand_set(device=probing.drifting(0.0))
    np.testing.assert_allclose(start.evaluate(SIGMA), probing.hand_set().evaluate(SIGMA), atol=1e-9)
    angles = [0.3, -0.4]
    found = qsgd.spectral_circuit(angles, probing.drifting(1.0))([0.1])
    rho, over = np.diag([1.0, 0.0]).astype(complex), qml.RY(probing.OVER_ROTATION, 0)
    paulis, p = [qml.X(0), qml.Y(0), qml.Z(0)], probing.DEPOLARIZING

    def around(matrix: np.ndarray, gate: qml.operation.Operator) -> np.ndarray:
        unitary = np.asarray(gate.matrix())
        return unitary @ matrix @ unitary.conj().T

    clean = qml.workflow.construct_tape(qsgd.spectral_circuit(angles, "default.qubit"))
    for op in clean([0.1]).operations:
        rho = around(rho, op)
        if op.name == "RY":
            rho = around(rho, over)
            rho = (1 - p) * rho + p / 3 * sum(around(rho, pauli) for pauli in paulis)
    assert float(found) == pytest.approx((rho[0, 0] - rho[1, 1]).real, abs=1e-9)


def _cascades():
    """Two probes of a device, and three of one that drifts, as `probing` writes them."""
    rows = [probing.as_numbers(_measured(5000, seed)).tolist() for seed in range(5)]
    exact = probing.as_numbers(probing.hand_set()).tolist()
    return {
        EXACT: {REFITTED: [exact]},
        "noisy": {REFITTED: rows[:2], AS_PROBED: rows[:2]},
        DRIFT: {REFITTED: rows[2:]},
    }


def test_each_seed_has_a_probe_of_its_own_and_drift_is_followed_or_not():
    rows, places = study.table(_cascades())
    assert rows.shape == (8, 3, 5)
    assert places[Arm(EXACT, REFITTED)] == [(0, 0)] * probing.PROBES
    assert places[Arm("noisy", REFITTED)] == [(1, 1), (2, 2)]
    assert places[Arm("noisy", AS_PROBED)] == [(3, 3), (4, 4)]
    assert places[Arm(DRIFT, NEVER_REFRESHED)] == [(5, 5)] * probing.PROBES
    assert places[Arm(DRIFT, REFRESHED)] == [(5, 7)] * probing.PROBES
    assert len(places) == 5


def _updates(optimizer, steps):
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    state, found, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for i in range(steps):
        gradients = jax.tree.map(
            lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape), params
        )
        updates, state = update(gradients, state, params)
        found.append(np.asarray(updates["kernel"]))
    return found


def test_a_training_goes_through_the_cascades_from_the_first_to_the_last():
    rows, _ = study.table(_cascades())
    schedule = optax.constant_schedule(0.02)

    def contender(first, last):
        hyper = HYPER | {"steps": 6, "first": first, "last": last}
        return _updates(study.contender(rows).build(hyper, schedule), 6)

    def package(place):
        cascade = probing.from_numbers(np.float64(rows[place]), probing.hand_set())
        form = qsgd.superpositional_muon(
            schedule, cascade, beta=0.9, weight_decay=0.01, adam_weight_decay=0.01
        )
        return _updates(form, 6)

    alone = {place: package(place) for place in (5, 6, 7)}  # momentum does not depend on them
    for i, (fixed, moving) in enumerate(zip(contender(5, 5), contender(5, 7), strict=True)):
        np.testing.assert_allclose(fixed, alone[5][i], atol=1e-6)
        np.testing.assert_allclose(moving, alone[5 + i // 2][i], atol=1e-6)
    assert not np.allclose(alone[5][4], alone[7][4], atol=1e-4)


def _tuning(task):
    common = {"phase": "tuning", "workload": task, "contender": SPECTRAL, "settings": "spectral"}
    rest = {"seed": 1000, "steps": 1000, "points": 10, "train": []}
    return [
        common | rest | {"trial": name, "hyper": HYPER | {"beta": beta}, "validation": [4.0, loss]}
        for name, beta, loss in (("0", 0.9, 2.0), ("1", 0.95, 1.0))
    ]


def test_runs_are_at_the_study_s_best_settings_and_become_a_table():
    task = study.TASKS[0]
    cascades = _cascades()
    for ways in cascades.values():
        for how, each in ways.items():
            if len(each) == 2:
                ways[how] = (each * 5)[: probing.PROBES]
    rows, places = study.table(cascades)
    runs = study.jobs(task, study.contender(rows), places, _tuning(task.name))
    other = study.contender(rows + np.float32(1e-6)).name  # its runs are other runs
    assert {run.contender for run in runs} == {study.contender(rows).name} != {other}
    assert {run.hyper["beta"] for run in runs} == {0.95} and len(runs) == 5 * probing.PROBES
    losses = {"noisy | scale as it was": 1.5, "noisy | refitted scale": 1.002}
    lines = []
    for run in runs:
        loss = losses.get(run.trial, 1.0) * (1 + 0.01 * run.seed)
        lines.append(run.as_json() | {"train": [], "validation": [4.0, loss]})
    adamw = [
        line | {"contender": "adamw", "validation": [4.0, 2 * (1 + 0.01 * line["seed"])]}
        for line in lines[: probing.PROBES]
    ]
    assert tables.sections(places, lines[1:], Study(adamw)) == []  # a run is missing
    _, table = tables.sections(places, lines, Study(adamw))
    rows = [line for line in table.splitlines() if line.startswith("| noisy")]
    half = next(row for row in rows if AS_PROBED in row)
    assert "+50.00 % [+50.00, +50.00]" in half and "no" in half and "0.50 [0.50, 0.50]" in half
    near = next(row for row in rows if REFITTED in row)
    assert "+0.20 %" in near and "yes" in near and "1.00 [1.00, 1.00]" in near
    assert curves_of(study.runs_of(task, Arm(DRIFT, REFRESHED), lines)).shape == (10, 2)


def test_the_share_that_is_left_is_of_mean_gains():
    adamw, exact, noisy = np.array([3.0, 5.0]), np.array([1.0, 1.0]), np.array([2.0, 3.0])
    assert study.kept(adamw, exact, noisy) == pytest.approx(1.5 / 3)


def test_the_figure_is_drawn(tmp_path):
    figures.functions(tmp_path / "f.png", _cascades())
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_probing_keeps_what_is_done_and_probes_again_what_is_refused(tmp_path, monkeypatch):
    opened = []

    def open_device():
        opened.append(len(opened))
        return qml.device("lightning.qubit", 1, seed=len(opened))

    one = "lightning", [open_device] * 2, 300  # of which some are refused
    two = DRIFT, [lambda: probing.drifting(1.0)], 2000
    monkeypatch.setattr(probing, "kinds", lambda: iter([one]))
    probing.main(["--output", str(tmp_path)])
    file = tmp_path / probing.FILE
    first = json.loads(file.read_text())
    assert len(first["cascades"]["lightning"][REFITTED]) == 2
    assert first["refused"]["lightning"] == len(opened) - 2 > 0
    count = len(opened)
    monkeypatch.setattr(probing, "kinds", lambda: iter([one, two]))
    probing.main(["--output", str(tmp_path)])
    second = json.loads(file.read_text())
    assert (
        len(opened) == count and second["cascades"]["lightning"] == first["cascades"]["lightning"]
    )
    assert list(second["cascades"][DRIFT]) == [REFITTED]


def test_a_study_without_results_is_not_packed(tmp_path):
    with pytest.raises(FileNotFoundError, match="none of results"):
        command.pack(tmp_path, tmp_path / "packed", ["results.jsonl"], [])
    assert not (tmp_path / "packed").exists()


def test_the_record_is_what_the_stored_runs_say():
    experiments = Path(__file__).parents[1]
    stored = experiments / "results"
    folder = stored / "noisy_cascades"
    arms = study.table(json.loads((folder / probing.FILE).read_text())["cascades"])[1]
    lines = read_results(folder / "results.jsonl.gz")
    parts = tables.sections(arms, lines, read(stored / "spectral_study"))
    assert len(parts) == 2 * len(study.TASKS)
    text = (experiments / "records" / "noisy_cascades.md").read_text()
    assert all(part in text for part in parts)
