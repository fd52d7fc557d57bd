"""The benchmark scripts: small runs end to end, their statistics, and bad input."""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest

import benchmarks
import qsgd_jax as qsgd
from benchmarks import (
    arms,
    attention_time,
    cascade_figure,
    character_model,
    character_report,
    characters,
    circuit_throughput,
    comparison,
    datasets,
    device_matrix,
    landscapes,
    natural_gradient,
    quantum_layer_time,
    reporting,
    spectral_time,
    step_time,
    text_classification,
    training,
)
from benchmarks.natural import ground_states, steps
from benchmarks.natural.problems import entangled
from benchmarks.natural.tables import tables

CLINC = {
    "data_full.json": {
        split: [["freeze my account please", "freeze"], ["what's the weather", "weather"]] * 2
        for split in ("train", "val", "test")
    },
    "domains.json": {"banking": ["freeze"], "travel": ["weather"]},
}


@pytest.fixture
def clinc(tmp_path):
    """A folder in CLINC150's form, and a function that rewrites one of its files."""

    def write(name, content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        return tmp_path

    for name, content in CLINC.items():
        write(name, content)
    return write


@pytest.mark.slow
def test_text_classification_runs_end_to_end_and_pairs_its_arms(tmp_path, capsys):
    text_classification.main(
        (
            "--arms adam lambda-0.5 --arm idle:quantum_weight=0,weigh=update "
            f"--seeds 2 --epochs 1 --train-size 64 --output {tmp_path}"
        ).split()
    )
    report = json.loads((tmp_path / "text_classification.json").read_text())
    assert (tmp_path / "text_classification.png").stat().st_size > 5_000
    adam, idle = (report["arms"][name]["runs"] for name in ("adam", "idle"))
    for one, other in zip(adam, idle, strict=True):  # λ = 0 on the same seeds is Adam itself
        assert one["validation_loss"] == other["validation_loss"]
    assert adam[0]["validation_loss"] != adam[1]["validation_loss"]
    superposed = report["arms"]["lambda-0.5"]["runs"]
    assert superposed[0]["validation_loss"] != adam[0]["validation_loss"]
    assert report["dataset"]["test"] == 10_000
    assert report["provenance"]["versions"]["optax"] == optax.__version__
    printed = capsys.readouterr().out
    assert "λ = 0.5" in printed and "Minus Adam" in printed


@pytest.mark.slow
def test_text_classification_with_quantum_attention_is_paired_and_looked_into(tmp_path):
    text_classification.main(
        (
            "--arms adam --attention classical quantum --readout probability --seeds 1 --epochs 1 "
            f"--train-size 32 --output {tmp_path}"
        ).split()
    )
    report = json.loads((tmp_path / "text_classification.json").read_text())
    assert (tmp_path / "quantum_attention.png").stat().st_size > 5_000
    classical, quantum = (report["arms"][name] for name in ("adam", "adam, quantum"))
    assert (classical["attention"], quantum["attention"]) == ("classical", "quantum")
    assert "attention" not in classical["runs"][0]
    (run,) = quantum["runs"]
    # Of 16 tokens, none is padding: the softmax's mean is 1/16, and more its root mean square.
    for epoch in run["attention"]["epochs"]:
        assert all(1 / 16 < rms < 0.5 for rms in epoch["softmax_rms"])
        for mean, rms in zip(epoch["phi_mean"], epoch["phi_rms"], strict=True):
            assert 0 < mean < rms < 1
    assert len(run["attention"]["epochs"]) == 2
    for layer in run["attention"]["layers"]:
        assert layer["frequencies"] == list(range(9)) and layer["spectrum"][0][0] > 0
    assert quantum["minus_classical"] == quantum["minus_first_arm"]
    assert classical["minus_classical"] is None


@pytest.mark.slow
def test_attention_time_compares_with_flax_and_with_circuits(tmp_path, monkeypatch):
    monkeypatch.setattr(attention_time, "BATCH", 1)
    monkeypatch.setattr(attention_time, "DEPTH", 1)
    monkeypatch.setattr(attention_time, "N_QUBITS", 2)
    attention_time.main(
        (
            f"--lengths 16 --rounds 6 --circuits-length 4 --circuits-rounds 6 --output {tmp_path}"
        ).split()
    )
    report = json.loads((tmp_path / "attention_time.json").read_text())
    for rows in report["lengths"]["16"].values():
        assert list(rows) == ["flax", "flax again", "amplitude", "probability"]
        assert rows["flax"]["ratio"] == 1 and rows["flax"]["rounds"] == 6
        assert all(row["largest_over_scores"] > 0 for row in rows.values())
    assert report["circuits"]["rows"]["amplitude"]["ratio"] == 1
    assert report["circuits"]["largest_difference"] < 1e-5


@pytest.mark.bits
@pytest.mark.slow
def test_seeds_trained_together_equal_a_plain_loop():
    task = datasets.topic_order(train_size=64, validation_size=8, test_size=8)
    optimizer = optax.adamw(1e-2)
    settings = {"epochs": 2, "batch_size": 16, "on_epoch": lambda runs: None}
    together = training.train(lambda seed: optimizer, task, seeds=[0, 1, 2], **settings)
    for seed in (0, 1, 2):
        (alone,) = training.train(lambda seed: optimizer, task, seeds=[seed], **settings).runs
        np.testing.assert_array_equal(together.runs[seed].train_loss, alone.train_loss)
    graph, params = training.new_model(task, jax.random.split(jax.random.key(1))[0])
    loss, _ = training.compiled_evaluation(graph)(params, *training.on_device(task.validation))
    np.testing.assert_allclose(together.runs[1].validation_loss[0], loss, rtol=1e-6)


def test_bag_of_words_says_nothing_about_the_synthetic_task():
    task = datasets.topic_order(train_size=20_000, validation_size=1, test_size=1)
    counts = np.array([np.bincount(row, minlength=49) for row in task.train.tokens])
    means = np.stack([counts[task.train.labels == c].mean(axis=0) for c in range(8)])
    noise = counts.std(axis=0) / np.sqrt(len(counts) / 8)
    assert np.abs(means - counts.mean(axis=0)).max() < 5 * noise.max()
    again = datasets.topic_order(train_size=20, validation_size=1, test_size=1)
    np.testing.assert_array_equal(again.test.tokens, task.test.tokens)


def test_epochs_to_target_interpolates_the_smoothed_curve():
    curve = np.array([0.0, 0.3, 0.6, 0.9, 0.9, 0.9])
    # smoothed: 0.15, 0.3, 0.6, 0.8, 0.9, 0.9
    assert comparison.epochs_to_target(curve, 0.7) == pytest.approx(2.5)
    assert comparison.epochs_to_target(curve, 0.95) == np.inf
    assert comparison.seconds_at(2.5, [1, 1, 2, 2, 2]) == pytest.approx(3.0)
    assert comparison.seconds_at(np.inf, [1.0]) == np.inf


def test_runs_that_never_cross_are_counted_and_not_dropped():
    runs = [{"epochs_to_target": value} for value in (3.0, np.inf, np.inf)]
    summary = comparison.summary(runs)["epochs_to_target"]
    assert summary["infinite"] == 2
    assert summary["mean"] is None and summary["median"] is None


def test_t_interval_of_known_values():
    interval = reporting.t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)


def test_clinc150_reads_words_labels_and_unknowns(clinc, tmp_path):
    clinc("data_full.json", CLINC["data_full.json"] | {"val": [["freeze rain", "weather"]]})
    task = datasets.clinc150(tmp_path, "intents")
    assert (task.n_classes, task.vocabulary_size) == (2, 2 + 7)
    known = task.train.tokens[0][0]
    tokens = task.validation.tokens[0]
    assert set(tokens[2:]) == {datasets.PAD} and datasets.UNKNOWN in tokens[:2]
    assert known not in (datasets.PAD, datasets.UNKNOWN)
    np.testing.assert_array_equal(task.train.labels, [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_full.json", '{"train": [\n[', "data_full.json, line 2.*expected JSON"),
        ("data_full.json", [], "data_full.json: expected a JSON object"),
        ("data_full.json", {"train": []}, r"expected a list of \[text, intent\] pairs"),
        (
            "data_full.json",
            CLINC["data_full.json"] | {"val": [["a"]]},
            r"'val' entry 0: expected \[text, intent\]",
        ),
        (
            "data_full.json",
            CLINC["data_full.json"] | {"test": [["a", "fly"]]},
            "'test' entry 0: intent 'fly'",
        ),
        ("domains.json", {"banking": "freeze"}, "key 'banking': expected a list"),
    ],
)
def test_malformed_clinc150_names_file_place_and_form(clinc, name, content, message):
    folder = clinc(name, content)
    with pytest.raises(ValueError, match=message):
        datasets.clinc150(folder)


def test_missing_data_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"domains.json cannot be read; expected"):
        datasets.clinc150(tmp_path)


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("wide", "expected NAME:KEY=VALUE"),
        ("wide:colour=red", "unknown key 'colour'; the keys are quantum_weight, weigh"),
        ("wide:depth=two", "depth='two' must be of type int"),
        ("wide:depth=-1", "depth=-1 must be 0 or more"),
        ("wide:weigh=grad", "weigh='grad' must be"),
        ("wide:device=nope.qubit", "device='nope.qubit' is not installed"),
        ("wide:coverage=some", "coverage='some' must be"),
        ("wide:shots=4,probe_shots=4", "shots=4 are drawn from exact probabilities"),
        ("wide:execution=direct", "unknown key 'execution'"),
        ("wide:quantum_weight=nan", "quantum_weight=nan must be a finite"),
    ],
)
def test_bad_arms_are_refused_before_training(specification, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        arms.parse_arm(specification)


def test_an_arm_is_what_its_specification_says():
    wide = arms.parse_arm("wide:n_qubits=2,depth=1,seed=3,coverage=everywhere,quantum_weight=2")
    params = np.linspace(-0.9, 0.9, 10).reshape(2, 5).astype(np.float32)
    gradient = np.ones_like(params)
    optimizer = wide.build({"seed": 0, "weight_decay": 0.0}, 1.0)
    update: Any = optimizer.update(gradient, optimizer.init(params), params)[0]
    qnode = qsgd.Circuit(2, 1, seed=3).qnode(qml.device("default.qubit", wires=2))
    weights = np.array([qnode(column) for column in params.T]).T
    np.testing.assert_allclose(update, -1 - 2 * weights, rtol=1e-4)  # Adam's first step is 1


@pytest.mark.parametrize(
    ("weights", "device", "shots", "expected"),
    [
        (arms.Weights(), None, None, ("lightning.qubit", None)),
        (arms.Weights(device="default.qubit"), None, None, ("default.qubit", None)),
        (arms.Weights(device="default.qubit"), "default.mixed", None, ("default.mixed", None)),
        (arms.Weights(probe_shots=9), None, None, ("lightning.qubit", 9)),
        (arms.Weights(probe_shots=9), "default.mixed", 7, ("default.mixed", 7)),
        (arms.Weights(target_standard_error=0.5), None, None, ("lightning.qubit", 4)),
    ],
)
def test_the_command_line_replaces_the_device_and_the_shots_of_an_arm(
    weights, device, shots, expected
):
    surrogate = weights.probed(device, shots)
    assert (surrogate.provenance.device, surrogate.shots) == expected
    assert weights.probed(device, shots) is surrogate  # for the next seed


def test_an_arm_of_shots_draws_by_its_seed():
    arm = arms.parse_arm("sampled:weigh=update,quantum_weight=1,shots=1")
    params, gradient = np.zeros(4, np.float32), np.ones(4, np.float32)

    def step(seed):
        optimizer = arm.build({"seed": seed, "weight_decay": 0.0}, 1.0)
        return np.asarray(optimizer.update(gradient, optimizer.init(params), params)[0])

    steps = np.array([step(seed) for seed in range(8)])
    assert set(np.round(steps, 4).ravel()) == {-2.0, 0.0}  # a weight of one shot is ±1
    np.testing.assert_array_equal(step(3), steps[3])


def test_the_default_arms_are_eq_1_of_the_paper():
    params = np.full(5, 0.25, np.float32)
    gradient = np.full(5, 3.0, np.float32)
    for name, quantum_weight in (("lambda-0.1", 0.1), ("lambda-0.5", 0.5)):
        optimizer = arms.ARMS[name].build({"seed": 0, "weight_decay": 0.0}, 1.0)
        update: Any = optimizer.update(gradient, optimizer.init(params), params)[0]
        expected = -1 - quantum_weight * np.sin(np.pi / 4) * 3
        np.testing.assert_allclose(update, [*[expected] * 4, -1], rtol=1e-5)


def test_help_reads_like_a_manual(capsys):
    with pytest.raises(SystemExit):
        text_classification.main(["--help"])
    printed = capsys.readouterr().out
    for word in ("arms:", "examples:", "--learning-rate", "epochs to target", "lambda-0.5"):
        assert word in printed


@pytest.mark.slow
def test_step_time_reports_ratios_of_every_optimizer(tmp_path, monkeypatch):
    chosen = ("adamw", "leading", "everywhere, depth 1")
    small = {name: step_time.optimizers()[name] for name in chosen}
    monkeypatch.setattr(step_time, "optimizers", lambda: small)
    monkeypatch.setattr(step_time, "LAYERS_TO_COMPILE", 2)
    # Of this width no shard of the 8 devices breaks a block, which would take more memory.
    arguments = ["--millions", "2", "--rounds", "8", "--repeats", "1", "--output", str(tmp_path)]
    step_time.main(arguments)
    report = json.loads((tmp_path / "step_time.json").read_text())
    ((count, rows),) = report["steps"].items()
    assert 1.8e6 < int(count) < 2.2e6
    assert rows["adamw"]["ratio"] == 1.0 and set(rows) == {
        *chosen,
        "everywhere, depth 1, for memory",
    }
    assert all(row["floor_milliseconds"] > 0 for row in rows.values())
    held = report["memory"][count]["optimizers"]
    peak = 4 * 4 * int(count)  # parameters, gradients and two moments
    assert 0 <= held["leading"]["default"] - held["adamw"]["default"] < 0.01 * peak
    entangled, leaf = held["everywhere, depth 1"], report["memory"][count]["largest_leaf"]
    assert 0 < entangled["memory_optimized"] <= 1.01 * leaf < entangled["default"]
    assert 0 < held["leading"]["state"] - held["adamw"]["state"] < 64 * 1024
    assert report["probe_seconds"] > 0 and set(report["compile_seconds"]) == set(small)


def test_quantum_layer_time_compares_with_vmap_and_a_peer(tmp_path, monkeypatch):
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import sys\nprint('{}', flush=True)\nfor _ in sys.stdin: print(7.0, flush=True)"
    )
    monkeypatch.setattr(quantum_layer_time, "PEER", peer)
    monkeypatch.setattr(quantum_layer_time, "ACCURACY", 0.6)
    quantum_layer_time.main(
        f"--devices lightning.qubit --qubits 2 --batches 3 --rounds 2 --python {sys.executable} "
        f"--output {tmp_path}".split()
    )
    report = json.loads((tmp_path / "quantum_layer_time.json").read_text())
    ((configuration,),) = report["passes"].values()
    arms = configuration["arms"]
    assert list(arms) == ["layer", "vmap", "torch"]
    assert arms["torch"]["milliseconds"] == 7000 and arms["torch"]["first"] == 7
    assert arms["layer"]["ratio"] == 1
    for name, row in report["training"]["lightning.qubit"].items():
        assert row["seconds"] > 0 and row["steps"] <= 200, name
    passes, trained = quantum_layer_time.tables(report)
    assert [row[0] for row in passes.rows][-1] == "2 qubits, batch 3: torch"
    assert len(trained.rows) == 2
    report["training"]["lightning.qubit"]["vmap"] = {"seconds": None, "steps": None}
    assert quantum_layer_time.tables(report)[1].rows[1][1:] == ["never", "–"]


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # PennyLane's own, under vmap
@pytest.mark.parametrize("kind", quantum_layer_time.ARMS)
def test_both_arms_of_the_layer_s_time_compute_the_same(kind):
    loss, (_, by_inputs) = quantum_layer_time.compiled(
        quantum_layer_time.ARMS[kind], "lightning.qubit", 2, 3
    )()
    expected, (_, by_expected) = quantum_layer_time.compiled(
        quantum_layer_time.Mapped, "default.qubit", 2, 3
    )()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(by_inputs, by_expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # PennyLane's own
def test_natural_gradient_compares_steps_and_starts(tmp_path, monkeypatch):
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import sys\nprint('{}', flush=True)\nfor _ in sys.stdin: print(7.0, flush=True)"
    )
    monkeypatch.setattr(steps, "PEER", peer)
    monkeypatch.setattr(ground_states, "RATES", (0.1,))
    natural_gradient.main(
        f"--devices default.qubit --timed-qubits 2 --depth 1 --rounds 6 --qubits 4 --seeds 2 "
        f"--tuning-seeds 1 --steps 20 --shots 100 --python {sys.executable} "
        f"--output {tmp_path}".split()
    )
    report = json.loads((tmp_path / "natural_gradient.json").read_text())
    (row,) = report["steps"]
    assert list(row["arms"]) == ["by hand", "whole", "block-diag", "adam", "QNGOptimizerQJIT"]
    assert row["arms"]["QNGOptimizerQJIT"]["milliseconds"] == 7000 and row["parameters"] == 4
    assert [x["problem"] for x in report["exact"]] == ["ising", "maxcut"]
    assert report["exact"][0]["arms"]["natural, whole"]["reached"]["0.01"]["seeds"] == 2
    adam, natural = report["measured"][0]["arms"].values()
    assert 0 < adam["executions"] < natural["executions"]
    a_step, exact, measured = tables(report)
    assert len(a_step.rows) == 5 and len(exact.rows) == len(measured.rows) == 4
    x = report["exact"][0]["arms"]["natural, whole"]
    seconds = x["reached"]["0.01"]["steps"] * x["step_ms"]["default.qubit"] / 1000
    assert exact.columns[3:6] == ["steps to 0.01", "seeds", "seconds, default.qubit"]
    assert float(exact.rows[1][5]) == pytest.approx(seconds, rel=1e-2)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # PennyLane's own
@pytest.mark.parametrize("kind", ["by hand", "whole"])
def test_metrics_of_the_natural_gradient_s_time_are_the_same(kind):
    problem = entangled(2, 1)
    chosen = steps.metrics(problem, "default.qubit")
    params = {"weights": jnp.linspace(0.1, 1, 4).reshape(1, 2, 2)}
    expected: Any = qml.metric_tensor(
        qml.QNode(problem.circuit, qml.device("default.qubit", wires=3), interface="autograd")
    )(qml.numpy.array(params["weights"]))
    (found,) = chosen[kind].measure(params)
    np.testing.assert_allclose(found, np.reshape(expected, (4, 4)), atol=1e-5)


def test_a_slow_pass_is_not_waited_for_again():
    counts = {"slow": 0, "quick": 0}

    def call(name, seconds):
        counts[name] += 1
        return seconds

    calls = {name: partial(call, name, x) for name, x in (("slow", 3.0), ("quick", 1.0))}
    found = quantum_layer_time.measure(calls, rounds=9, patience=2.0)
    assert counts == {"slow": 4, "quick": 4}
    assert found["quick"]["ratio"] == pytest.approx(1 / 3)
    quantum_layer_time.measure(calls, rounds=9, patience=4.0)
    assert counts == {"slow": 15, "quick": 15}


@pytest.mark.slow
def test_spectral_time_compares_with_optaxs_muon_and_whole_steps_with_adamws(tmp_path, monkeypatch):
    monkeypatch.setattr(spectral_time, "tree", lambda name: spectral_time.layers(2, 8, embedding=9))
    monkeypatch.setattr(spectral_time, "LAYERS_TO_COMPILE", (1, 2))
    monkeypatch.setattr(spectral_time, "WHOLE", {8: 6})
    spectral_time.rate.cache_clear()
    spectral_time.main(
        ["--trees", "64", "llama", "--rounds", "6", "--whole", "--output", str(tmp_path)]
    )
    report = json.loads((tmp_path / "spectral_time.json").read_text())
    found, abstract = (report["trees"][name]["optimizers"] for name in ("64", "llama"))
    assert list(found) == list(abstract) == list(spectral_time.optimizers())
    *others, rounded = found.values()
    timed = dict(zip(found, others, strict=False))
    assert 1e-4 < rounded["error"] < 0.1 and "ratio" not in rounded
    assert timed["optax.contrib.muon"]["ratio"] == 1 == report["whole"]["8"]["adamw"]["ratio"]
    for row in timed.values():
        assert row["rounds"] == 6 and row["milliseconds"] > 0 and row["compile_seconds"] > 0
    assert timed["adamw"]["floor_milliseconds"] == 0 < timed["five quintics"]["floor_milliseconds"]
    states = [row["state_bytes"] for row in timed.values()]
    assert states[1] == states[2] > states[3] == states[4] and abs(states[0] - states[3]) < 64
    assert not any("ratio" in row for row in abstract.values())
    one, two = ([row["products"] for row in rows.values()] for rows in report["compiling"].values())
    assert two[0] == 2 * one[0] > one[3] and two[1:] == one[1:]  # but optax's do not grow
    step, shapes, compiling, whole = spectral_time.tables(report)
    assert len(step.columns) == len(step.rows[0]) == len(step.rows[-1]) == 9
    assert len(whole.columns) == len(whole.rows[0]) == len(shapes.columns) == 8
    assert len(compiling.columns) == len(compiling.rows[0]) == 5
    assert step.rows[-1][1] == "" and step.rows[-1][-1] != ""


def test_the_floor_counts_the_operations_of_each_matrix_product():
    params = spectral_time.layers(4, 8)  # 16 matrices of m × m, 8 of m × 4 m
    m3 = 2 * 8**3
    counted = {
        name: spectral_time.operations(optimizer, params).get("float32", 0) / m3
        for name, optimizer in spectral_time.optimizers().items()
    }
    # X Xᵀ, its square, and a factor times X, in each of five stages
    assert counted["optax.contrib.muon"] == 5 * (16 * (1 + 1 + 1) + 8 * (4 + 1 + 4))
    # of long ones, in two runs, X Xᵀ and a product with X once a run, on squares all else: a square
    # a stage, and between stages a product of factors and two of the Gram matrix
    assert counted["five quintics"] == 5 * 16 * 3 + 8 * (2 * (4 + 4) + 5 + 3 * 3)
    assert counted["adamw"] == 0


def test_optaxs_muon_has_the_matrices_and_axes_of_the_spectral_form():
    shapes = {"embedding": (9, 8), "head": (8, 9), "bias": (8,), "up": (8, 32)}
    shapes |= {"query": (8, 2, 4), "out": (2, 4, 8)}
    params = spectral_time.drawn(
        {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    )
    axes = spectral_time.matrix_axes(params)
    assert {name: each for name, each in axes.items() if each is not None} == {
        "up": ((0,), (1,)),
        "query": ((0,), (1, 2)),
        "out": ((0, 1), (2,)),
    }
    muon = spectral_time.optax_muon(1e-3)
    updates, _ = jax.jit(muon.update)(params, muon.init(params), params)
    for name, shape in (("query", (8, 8)), ("out", (8, 8)), ("up", (8, 32))):
        sigma = np.linalg.svd(np.reshape(updates[name], shape), compute_uv=False)
        assert sigma.min() > 0.2 * sigma.max()


def test_text_classification_refuses_a_device_before_it_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "qiskit_aer.noise", None)  # as if it were not installed
    for device in ("lightning.qbit", "qiskit.aer-manila"):
        with pytest.raises(SystemExit):
            text_classification.main(["--device", device, "--output", str(tmp_path)])
        assert f"device '{device}'" in capsys.readouterr().err


def test_the_device_matrix_compares_probe_and_direct_execution(tmp_path):
    names = ["lightning.qubit", "default.mixed"]
    arguments = ["--devices", *names, "--shots", "200", "--output", str(tmp_path)]
    device_matrix.main(arguments)
    rows = json.loads((tmp_path / "device_matrix.json").read_text())["devices"]
    assert [row["device"] for row in rows] == ["lightning.qubit"] * 6 + ["default.mixed"] * 6
    for row in rows:
        settings = 8 + (9 if row["circuit"] == "of the package" else 125)
        assert row["jobs"] == 1 and row["circuits"] == settings and row["seconds"] > 0
        measured = row["measurements"] is not None
        assert row["shots"] == (settings * 200 if measured else 0)
        assert row["difference"] < (5.5 if measured else 1e-6)
        assert row["from_exact"] < (0.12 if measured else 1e-6)


def test_circuit_throughput_times_each_device(tmp_path):
    names = ["default.qubit", "lightning.qubit"]
    size = ["--qubits", "1", "--depth", "1", "--repeats", "1"]
    arguments = ["--devices", *names, *size, "--broadcasting", "--output", str(tmp_path)]
    circuit_throughput.main(arguments)
    found = json.loads((tmp_path / "circuit_throughput.json").read_text())["seconds"]
    assert set(found) == {*names, *(f"{name}, broadcast QNode" for name in names)}
    assert all(seconds > 0 for row in found.values() for seconds in row.values())


def test_landscapes_show_where_eq_1_climbs(tmp_path):
    landscapes.main(["--steps", "300", "--output", str(tmp_path)])
    ends = json.loads((tmp_path / "landscapes.json").read_text())["ends"]
    climbed = ends["Rosenbrock"]["gradient, λ = 0.5"]["x"]
    assert climbed is None or max(map(abs, climbed)) > 1e6  # on its way to NaN
    assert ends["parabola"]["gradient, λ = 0.05"]["x"][0] == pytest.approx(9.61, abs=0.02)
    assert ends["parabola"]["update, λ = 0.5"]["x"][0] < 9
    assert (
        float(landscapes.rosenbrock(jnp.ones(4))) == 0 == float(landscapes.parabola(-jnp.ones(2)))
    )


ROOT = Path(reporting.__file__).parents[1]


def test_a_script_runs_from_anywhere_whichever_benchmarks_python_finds_first(tmp_path):
    script = "llm_cost"  # which imports from a package within
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise ImportError('another one')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for command, folder in (
        ([str(ROOT / "benchmarks" / f"{script}.py")], tmp_path),
        (["-m", f"benchmarks.{script}"], ROOT),
    ):
        found = subprocess.run(
            [sys.executable, *command, "--help"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0 and f"usage: python -m benchmarks.{script}" in found.stdout


@pytest.mark.parametrize("script", ["-m benchmarks.step_time", "benchmarks/step_time.py"])
def test_a_missing_module_is_told_with_what_brings_it(script, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['tqdm'] = None")
    found = subprocess.run(
        [sys.executable, *script.split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    assert found.stderr.endswith("What brings it: python -m pip install 'qsgd_jax[benchmarks]'\n")


def test_whatever_a_script_imports_is_brought_by_the_package_or_by_a_named_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.split("[>=]", line)[0].replace("-", "_") for line in project["dependencies"]}
    known = {module for modules in benchmarks.EXTRAS.values() for module in modules}
    inside = {"qsgd_jax", "benchmarks", "autograd"}  # PennyLane brings autograd
    imported = set()
    for path in (ROOT / "benchmarks").rglob("*.py"):
        if path.parent.name != "peers":  # for environments of their own
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add((node.module or "").partition(".")[0])
    assert imported - core - inside - sys.stdlib_module_names == known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset clinc150", "needs --data PATH, a folder with .*github.com/clinc/oos-eval"),
        ("--dataset clinc150 --data nowhere", "cannot be read; .*github.com/clinc/oos-eval"),
    ],
)
def test_missing_data_are_told_with_where_they_come_from(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        text_classification.main([*arguments.split(), "--output", str(tmp_path)])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_the_character_model_runs_end_to_end_and_pairs_its_arms(tmp_path, capsys):
    sizes = "--steps 40 --every 20 --seeds 1 --device default.qubit --shots 100000"
    character_model.main([*sizes.split(), "--output", str(tmp_path)])
    report = json.loads((tmp_path / "character_model.json").read_text())
    for name in ("character_model.png", "cascade.png"):
        assert (tmp_path / name).stat().st_size > 5_000
    assert list(report["arms"]) == ["adamw", "paper", "spectral"]
    curves = [arm["runs"][0]["validation_loss"] for arm in report["arms"].values()]
    assert all(len(curve) == 3 and curve[0] > curve[1] > curve[2] for curve in curves)
    starts, ends = {curve[0] for curve in curves}, {curve[-1] for curve in curves}
    assert len(starts) == 1 and len(ends) == 3
    adamw = report["arms"]["adamw"]
    assert adamw["time_a_step"] == 1 and adamw["summary"]["step_reached"]["mean"] <= 40
    assert report["cascade"]["device"] == "default.qubit" and report["cascade"]["shots"] == 100_000
    assert report["provenance"]["versions"]["optax"] == optax.__version__
    printed = capsys.readouterr().out
    for words in ("['layers'][0]['attention']['query']", "attention's input", "minus AdamW"):
        assert words in printed


@pytest.mark.slow
def test_the_character_models_sweep_trains_each_arm_with_each_rate(tmp_path, capsys):
    sizes = "--arms adamw --steps 2 --every 2 --seeds 1 --learning-rates 1e-3 1e-2"
    character_model.main([*sizes.split(), "--output", str(tmp_path)])
    runs = json.loads((tmp_path / "character_model_rates.json").read_text())["runs"]
    assert [run["learning_rate"] for run in runs] == [1e-3, 1e-2]
    ends = [run["validation_loss"][-1] for run in runs]
    assert ends[0] != ends[1] and f"*{min(ends):.3f}" in capsys.readouterr().out


def test_the_text_of_the_character_model_is_what_its_readme_says():
    assert character_model.TEXT.stat().st_size <= 300_000
    words = character_model.TEXT.read_text()
    assert words.startswith("First Citizen:\n") and words.endswith(".\n")
    text = characters.read_text(character_model.TEXT)
    assert len(text.train) == int(0.9 * len(words))
    spelled = "".join(text.characters[i] for i in [*text.train[-3:], *text.windows[0]])
    assert spelled == words[len(text.train) - 3 :][: characters.CONTEXT + 4]


def test_a_loss_is_reached_between_two_evaluations():
    curve = [4.0, 3.0, 2.0, 2.5, 1.0]
    assert character_report.step_reached(curve, 2.25, every=10) == pytest.approx(17.5)
    assert character_report.step_reached(curve, 0.5, every=10) == np.inf
    assert character_report.step_reached(curve, 5.0, every=10) == 0


def test_the_schedule_rises_and_falls_to_zero():
    rates = np.array([characters.schedule(0.5, 100)(step) for step in range(101)])
    assert rates.argmax() == 5 and rates[5] == pytest.approx(0.5)
    assert rates[0] == 0 and rates[100] == pytest.approx(0, abs=1e-8)


def test_what_a_probe_has_measured_is_drawn_with_its_errors():
    angles, shots = [0.3, -1.1, 2.0], 2_000
    exact, noisy = (
        qsgd.spectral_cascade(angles=[angles], device="default.qubit", shots=n).stages[0]
        for n in (None, shots)
    )
    grid = [[-1 + 2 * (k + 0.25) / 11] for k in range(11)]
    answers = [float(qsgd.spectral_circuit(angles)(theta)) for theta in grid]
    sigma, answer, error = cascade_figure.measured(exact)
    np.testing.assert_allclose(sigma, np.sin(np.pi * np.ravel(grid)), atol=1e-12)
    np.testing.assert_allclose(answer, answers, atol=1e-6)
    assert not error.any()
    _, answer, error = cascade_figure.measured(noisy)
    counts = (1 + answer) / 2 * shots  # whole numbers of measurements: these were measured
    np.testing.assert_allclose(counts, counts.round(), atol=2e-3)
    assert (np.abs(answer - answers) < 5 * error).all() and error.max() < 1.01 / shots**0.5


def test_singular_values_are_those_of_the_momentums_matrices():
    rng = np.random.default_rng(0)
    gradients = {
        "embedding": rng.normal(size=(9, 6)),
        "attention": {"query": rng.normal(size=(6, 2, 3)), "out": rng.normal(size=(2, 3, 6))},
    }
    gradients = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients)
    optimizer = qsgd.superpositional_muon(0.1)
    state = optimizer.update(gradients, optimizer.init(gradients), gradients)[1]
    expected = []
    for name, shape in (("out", (6, 6)), ("query", (6, 6))):
        matrix = np.reshape(gradients["attention"][name], shape)
        expected += [*np.linalg.svd(matrix, compute_uv=False) / np.linalg.norm(matrix)]
    np.testing.assert_allclose(cascade_figure.singular_values(state), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--every 30", "argument --every: 30 must divide --steps, 400"),
        ("--learning-rates 0.1 -1", "argument --learning-rates: '-1' must be greater than 0"),
        ("--shots 0", "argument --shots: '0' must be greater than 0"),
        ("--device nope.qubit", "argument --device: device 'nope.qubit'"),
        ("--device default.qubit --shots 3", "argument --shots: 3 on --device default.qubit: "),
        ("--arms muon", "argument --arms: invalid choice: 'muon'"),
    ],
)
def test_the_character_model_names_a_bad_option(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        character_model.main([*arguments.split(), "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
