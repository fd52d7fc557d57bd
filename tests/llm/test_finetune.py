"""`python -m benchmarks.llm_finetune` from the command line to its files."""

# optax and jax type what they take and return more widely than what it is here:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import llm_cost, llm_finetune
from benchmarks.llm import runs
from benchmarks.llm.checkpoints import load_parameters, open_checkpoint
from benchmarks.llm.text import open_text


def arguments(model, problems, output, *more):
    return [
        *("--model", str(model), "--data", str(problems / "train.jsonl"), "--output", str(output)),
        *("--context", "64", "--precision", "float32", "--learning-rate", "1e-2"),
        *("--checkpoint-every", "3", "--generate", "0", *more),
    ]


def losses(output, arm, seed=0):
    lines = (output / arm / f"seed-{seed}" / "steps.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def finished(tiny, problems, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    more = ("--control", "--seeds", "2", "--generate", "2", "--save-models", "--weigh", "update")
    llm_finetune.main(arguments(tiny, problems, output, *more))
    return output


def test_arms_are_paired_and_learn(finished):
    content = json.loads((finished / "llm_finetune.json").read_text())
    arms = content["arms"]
    assert list(arms) == ["adamw", "control", "update-leading-0.5"]
    assert content["arguments"]["steps"] == [12, 12]
    assert content["data"] == {
        "train": 12,
        "test": 5,
        "too_long": {"train": 0, "test": 0},
        "length": 64,
    }
    for seed in range(2):
        curves = {name: losses(finished, name, seed) for name in arms}
        assert all(len(curve) == 12 for curve in curves.values())
        assert curves["adamw"][0] == pytest.approx(curves["update-leading-0.5"][0], rel=1e-6)
        assert curves["adamw"] != curves["update-leading-0.5"]
        assert arms["adamw"]["runs"][seed]["train_loss"] == pytest.approx(np.mean(curves["adamw"]))
    assert losses(finished, "adamw", 0) != losses(finished, "adamw", 1)
    for arm in arms.values():
        assert arm["summary"]["test_nll"]["mean"] < 0.9 * content["untrained"]["test_nll"]
        assert arm["summary"]["test_nll"]["n"] == 2
        assert arm["summary"]["exact_match"]["mean"] in (0, 0.25, 0.5, 0.75, 1)
    assert arms["adamw"]["minus_first_arm"]["test_nll"]["mean"] == 0
    away = arms["control"]["distance_of_losses"]
    assert 0 < away < arms["update-leading-0.5"]["distance_of_losses"]
    assert (finished / "llm_finetune.png").stat().st_size > 10_000


def test_the_spectral_form_is_an_arm(tiny, problems, finished, tmp_path):
    llm_finetune.main(arguments(tiny, problems, tmp_path, "--optimizer", "spectral"))
    arms = json.loads((tmp_path / "llm_finetune.json").read_text())["arms"]
    assert list(arms) == ["adamw", "spectral"]
    assert losses(tmp_path, "adamw") == pytest.approx(losses(finished, "adamw"), rel=1e-6)
    curve = losses(tmp_path, "spectral")
    assert curve[0] == pytest.approx(losses(tmp_path, "adamw")[0], rel=1e-6)
    assert np.mean(curve[-3:]) < 0.95 * np.mean(curve[:3])


def test_the_spectral_form_has_a_learning_rate_of_its_own(tiny, problems, tmp_path, capsys):
    rates = {"same": (1e-3, None), "own": (2e-3, 1e-3)}
    for name, (rate, own) in rates.items():
        more = ["--optimizer", "spectral", "--learning-rate", str(rate)]
        more += [] if own is None else ["--spectral-learning-rate", str(own)]
        llm_finetune.main(arguments(tiny, problems, tmp_path / name, *more))
    same, own = (tmp_path / name for name in rates)
    assert losses(same, "spectral") == losses(own, "spectral")
    assert losses(same, "adamw") != losses(own, "adamw")
    arms = json.loads((own / "llm_finetune.json").read_text())["arms"]
    assert [arm["label"] for arm in arms.values()] == ["AdamW", "spectral, learning rate 0.001"]
    with pytest.raises(SystemExit):
        llm_finetune.main(arguments(tiny, problems, tmp_path, "--spectral-learning-rate", "1e-3"))
    assert "--spectral-learning-rate is that of --optimizer spectral" in capsys.readouterr().err


def test_what_is_finished_is_not_trained_again_and_other_settings_are_refused(
    finished, tiny, problems, tmp_path, capsys
):
    before = {file: file.stat().st_mtime_ns for file in finished.glob("*/*/*.json*")}
    assert len(before) >= 12
    more = ("--control", "--seeds", "2", "--generate", "2", "--save-models", "--weigh", "update")
    llm_finetune.main(arguments(tiny, problems, finished, *more))
    assert {file: file.stat().st_mtime_ns for file in finished.glob("*/*/*.json*")} == before
    with pytest.raises(SystemExit):
        llm_finetune.main(arguments(tiny, problems, finished, "--generate", "2", "--epochs", "2"))
    assert "holds runs with epochs=1, save_models=True" in capsys.readouterr().err
    other = shutil.copytree(problems, tmp_path / "other")
    lines = (other / "train.jsonl").read_text().splitlines()
    (other / "train.jsonl").write_text("\n".join(reversed(lines)))
    with pytest.raises(SystemExit):
        llm_finetune.main(arguments(tiny, other, finished, *more))
    assert "holds runs with data=['train.jsonl" in capsys.readouterr().err


def test_saved_models_are_what_was_trained(finished, tiny, problems, tmp_path):
    folder = finished / "adamw" / "seed-0" / "model"
    trained = load_parameters(open_checkpoint(folder))
    start = load_parameters(open_checkpoint(tiny))
    kernel = "blocks", 0, "query", "kernel"
    assert np.abs(_at(trained, kernel) - _at(start, kernel)).max() > 1e-3
    llm_finetune.main(arguments(folder, problems, tmp_path, "--optimizer", "adamw", "--limit", "1"))
    content = json.loads((tmp_path / "llm_finetune.json").read_text())
    result = json.loads((finished / "adamw" / "seed-0" / "result.json").read_text())
    assert content["untrained"]["test_nll"] == pytest.approx(result["test_nll"], rel=1e-5)


def _at(params, path):
    for key in path:
        params = params[key]
    return params[...]


@pytest.mark.slow
def test_interrupted_on_a_mesh_it_goes_on_where_it_was(tiny, problems, tmp_path, monkeypatch):
    more = ("--optimizer", "adamw", "--mesh", "2", "2", "--batch-size", "2")
    llm_finetune.main(arguments(tiny, problems, tmp_path / "whole", *more))
    fill = runs.fill
    seen = []

    def interrupted(examples, rows, shape):
        seen.append(rows)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return fill(examples, rows, shape)

    monkeypatch.setattr(runs, "fill", interrupted)
    output = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        llm_finetune.main(arguments(tiny, problems, output, *more))
    assert (output / "adamw" / "seed-0" / "checkpoints" / "3").is_dir()
    before = (output / "adamw" / "seed-0" / "steps.jsonl").read_text().splitlines()
    assert len(before) == 4
    llm_finetune.main(arguments(tiny, problems, output, *more))
    after = (output / "adamw" / "seed-0" / "steps.jsonl").read_text().splitlines()
    assert after[:3] == before[:3]  # seconds and all: these steps were not taken again
    assert len(seen) == 5 + 3
    np.testing.assert_allclose(losses(output, "adamw"), losses(tmp_path / "whole", "adamw"))
    assert not (output / "adamw" / "seed-0" / "checkpoints").exists()


def test_damaged_files_are_named(finished, tiny, problems, tmp_path, capsys):
    more = ("--control", "--seeds", "2", "--generate", "2", "--save-models", "--weigh", "update")
    for name, content, words in (
        ("adamw/seed-1/steps.jsonl", "", "steps.jsonl should hold 12 steps, but is damaged"),
        ("adamw/seed-1/steps.jsonl", '{"step": 1}\n' * 12, "steps.jsonl should hold 12 steps"),
        ("adamw/seed-1/result.json", '{"test_nll": 1', "result.json"),
        ("untrained.json", "", "untrained.json"),
        ("settings.json", "[]", "settings.json: expected a JSON object"),
        ("control/seed-0/arm.json", '{"label": "x"}', "holds runs with label='x', settings=None"),
    ):
        output = tmp_path / name.replace("/", "-") / str(len(content))
        shutil.copytree(finished, output, ignore=shutil.ignore_patterns("model"))
        (output / name).write_text(content)
        with pytest.raises(SystemExit):
            llm_finetune.main(arguments(tiny, problems, output, *more))
        assert words in capsys.readouterr().err


def test_answers_are_scored(tiny, problems, tmp_path, monkeypatch):
    """Of four, the first is right in another form, and the last as it stands."""
    lines = (problems / "test.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    right = [answer.split("####")[1].strip() for answer in answers]
    said = [f"so **#### ${right[0]}.00**", f"{right[1]}", "#### 12345", answers[3]]
    ids = open_text(tiny, open_checkpoint(tiny).config).tokenizer.encode

    def continued(task):
        def answer(params, prompts, lengths):
            out = np.zeros((len(prompts), 64), int)
            for row, text in enumerate(said):
                tokens = ids(f"{text}<|end|>#### {right[row]}", add_special_tokens=False)[:64]
                out[row, : len(tokens)] = tokens
            return out

        return answer

    monkeypatch.setattr(runs.Task, "continued", property(continued))
    more = ("--optimizer", "adamw", "--limit", "1", "--generate", "4")
    llm_finetune.main(arguments(tiny, problems, tmp_path, *more))
    content = json.loads((tmp_path / "llm_finetune.json").read_text())
    assert content["untrained"]["exact_match"] == 0.5
    assert content["untrained"]["answered"] == 4


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_with_the_same_losses(finished, tiny, problems, tmp_path):
    more = ("--weigh", "update", "--accumulate", "1")
    command = [sys.executable, "-m", "benchmarks.llm_finetune"]
    command += arguments(tiny, problems, tmp_path, *more)
    log = tmp_path / "update-leading-0.5" / "seed-0" / "steps.jsonl"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command,
        cwd=Path(llm_finetune.__file__).parents[1],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 240
        while not (log.exists() and len(log.read_text().splitlines()) >= 5):
            if process.poll() is not None:
                pytest.fail(f"it ended by itself: {process.communicate()[1].decode()[-2000:]}")
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (log.parent / "result.json").exists()
    folders = (log.parent / "checkpoints").glob("[0-9]*")  # half a save among them, perhaps
    kept = max(int(folder.name) for folder in folders if folder.name.isdecimal())
    assert 3 <= kept < 12
    before = log.read_text().splitlines()[:kept]
    llm_finetune.main(arguments(tiny, problems, tmp_path, *more))
    assert log.read_text().splitlines()[:kept] == before
    for arm in ("adamw", "update-leading-0.5"):
        np.testing.assert_allclose(losses(tmp_path, arm), losses(finished, arm), rtol=1e-5)


@pytest.mark.slow
def test_packing_accumulation_and_a_mesh(tiny, problems, tmp_path):
    more = ("--optimizer", "adamw", "--packing", "--accumulate", "2", "--batch-size", "2")
    llm_finetune.main(arguments(tiny, problems, tmp_path / "one", *more))
    llm_finetune.main(arguments(tiny, problems, tmp_path / "many", *more, "--mesh", "2", "2"))
    one, many = (losses(tmp_path / name, "adamw") for name in ("one", "many"))
    assert 1 <= len(one) < 3
    np.testing.assert_allclose(one, many, rtol=1e-4)


@pytest.mark.slow
def test_an_arm_that_diverges_is_reported_as_such(tiny, problems, tmp_path):
    more = ("--quantum-weight", "1e30", "--coverage", "everywhere", "--limit", "4")
    llm_finetune.main(arguments(tiny, problems, tmp_path, *more))
    content = json.loads((tmp_path / "llm_finetune.json").read_text())
    arm = content["arms"]["gradient-everywhere-1e+30"]
    assert arm["summary"]["train_loss"]["mean"] is None
    assert arm["runs"][0]["loss"][-1] is None
    assert content["arms"]["adamw"]["summary"]["train_loss"]["mean"] > 0


def test_the_schedule_rises_and_falls():
    schedule = llm_finetune.warmup_and_decay(2.0, warmup=4, steps=10)
    values = [float(schedule(jnp.int32(count))) for count in range(11)]
    expected = [0.5, 1, 1.5, 2, 2, 5 / 3, 4 / 3, 1, 2 / 3, 1 / 3, 0]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    for steps, expected in ((7473, 500), (36, 2), (3, 1)):
        assert llm_finetune.warmup_steps(argparse.Namespace(warmup_steps=None), steps) == expected
    assert llm_finetune.warmup_steps(argparse.Namespace(warmup_steps=5), 36) == 5
    assert float(llm_finetune.warmup_and_decay(1.0, warmup=0, steps=4)(0)) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_control_is_one_rounding_unit_away(tiny, precision):
    params = load_parameters(open_checkpoint(tiny))
    moved = llm_finetune.moved_by_one_rounding_unit(params, precision)
    narrow = lambda leaf: np.asarray(leaf.astype(precision), np.float64)  # noqa: E731
    pairs = list(zip(jax.tree.leaves(moved), jax.tree.leaves(params), strict=True))
    assert jax.tree.structure(moved) == jax.tree.structure(params)
    assert sum(np.sum(a != b) for a, b in pairs) == 1
    differing = [(narrow(a), narrow(b)) for a, b in pairs if np.any(narrow(a) != narrow(b))]
    ((after, before),) = differing
    unit = float(jnp.finfo(precision).eps)
    assert unit / 2 <= np.abs(after - before).max() / np.abs(before[0]) <= unit


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--context", "1024"), "--context 1024 is more than the model was made for, 512"),
        (("--context", "8"), "none of the 12 train problems fits into it; the shortest has"),
        (("--mesh", "3", "1"), "--batch-size 1 must be a multiple of the mesh's data axis, 3"),
        (("--test-data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--model", "nowhere"), "nowhere is not here"),
        (("--quantum-weight", "nan"), "quantum_weight"),
        (("--learning-rate", "0"), "--learning-rate: '0' must be greater than 0"),
        (("--arm", "adamw:quantum_weight=1"), "there are two arms called 'adamw'"),
        (("--arm", "x:y=1"), "unknown key 'y'"),
        (("--device", "no.such"), "no.such"),
        (("--quantum-weight", "0.5", "0.50"), "--quantum-weight 0.5 is there twice"),
        (("--arm", "../x:quantum_weight=1"), "'../x' must be letters"),
        (("--arm", "control:quantum_weight=1"), "two arms called 'control'"),
        (("--weight-decay", "nan"), "'nan' must not be less than 0"),
        (("--generate", "-1"), "'-1' must not be less than 0"),
    ],
)
def test_bad_input_is_named(tiny, problems, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit):
        llm_finetune.main(arguments(tiny, problems, tmp_path / "out", *more))
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*/*"))


def test_bad_weights_are_named_before_anything_is_written(tiny, problems, tmp_path, capsys):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(SystemExit):
        llm_finetune.main(arguments(copy, problems, tmp_path / "out"))
    assert "missing: model.norm.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    save_file({**tensors, "model.norm.weight": norm * np.nan}, copy / "model.safetensors")
    with pytest.raises(SystemExit):
        llm_finetune.main(arguments(copy, problems, tmp_path / "out"))
    assert "model.norm.weight has entries that are not finite" in capsys.readouterr().err


def test_examples_longer_than_the_context_are_counted(tiny, problems, tmp_path, capsys):
    folder = shutil.copytree(problems, tmp_path / "data")
    long = json.dumps({"question": "how many? " * 40, "answer": "#### 1"})
    with (folder / "train.jsonl").open("a") as file:
        file.write(long + "\n")
    more = ("--optimizer", "adamw", "--epochs", "1", "--accumulate", "13")
    llm_finetune.main(arguments(tiny, folder, tmp_path / "out", *more))
    assert "left out: 1 and 0" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "llm_finetune.json").read_text())
    assert content["data"]["too_long"] == {"train": 1, "test": 0}


def test_a_step_that_does_not_fit_is_refused_before_it_is_taken(
    tiny, problems, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("benchmarks.llm.memory.available", lambda: 300_000)
    with pytest.raises(SystemExit):
        llm_finetune.main(arguments(tiny, problems, tmp_path / "out", "--optimizer", "adamw"))
    assert "What would fit, estimated" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cost_of_a_step_is_told_with_and_without_running_it(tmp_path, capsys):
    options = ["--model", "tiny", "--context", "32", "--output", str(tmp_path)]
    llm_cost.main([*options, "--rounds", "6"])
    rows = json.loads((tmp_path / "llm_cost.json").read_text())["optimizers"]
    assert rows["AdamW"]["step"]["ratio"] == 1
    for name, row in rows.items():
        if name not in ("muon", "spectral"):  # which have one moment of matrices
            assert row["state_gib"] == pytest.approx(3 * 34_976 * 4 / 2**30, rel=0.05)
        assert row["share"] > 0 and row["update_seconds"] > 0  # how large, a busy machine decides
    assert rows["muon"]["state_gib"] == pytest.approx(rows["spectral"]["state_gib"], rel=1e-3)
    assert rows["muon"]["state_gib"] < 0.9 * rows["AdamW"]["state_gib"]
    llm_cost.main([*options, "--mesh", "1", "2"])
    halved = json.loads((tmp_path / "llm_cost.json").read_text())["optimizers"]
    assert halved["AdamW"]["state_gib"] < 0.6 * rows["AdamW"]["state_gib"]
    assert "step" not in halved["AdamW"]
    with pytest.raises(SystemExit):
        llm_cost.main([*options, "--rounds", "3"])
    assert "--rounds 3: at least 6" in capsys.readouterr().err


def test_the_manual_says_what_there_is(capsys):
    with pytest.raises(SystemExit):
        llm_finetune.main(["--help"])
    printed = capsys.readouterr().out
    for word in ("arms:", "examples:", "95 % t interval", "--quantum-weight", "default: 2048"):
        assert word in printed
