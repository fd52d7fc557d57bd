"""Resume: a training killed with SIGKILL and restored from orbax is the one left alone."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import resume


@pytest.mark.slow
def test_a_training_killed_three_times_is_bit_for_bit_the_one_left_alone(tmp_path):
    resume.main(f"--kills 3 --steps 40 --output {tmp_path}".split())
    report = json.loads((tmp_path / "resume.json").read_text())
    assert report["kills"] == 3 and report["identical"]
    for training in report["trainings"]:
        *killed, last = training["lives"]
        assert all(life["killed"] for life in killed)
        assert last["to"] == 40 and not last["killed"]
        assert last["from"] > 0  # restored from a checkpoint, not begun again


def test_a_step_that_differs_is_named_and_fails_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "train", lambda *_: iter([(0, "a"), (1, "b"), (11, "c")]))
    lives = iter([({0: "a", 1: "B"}, True), ({1: "b", 11: "c"}, False)])
    monkeypatch.setattr(resume, "live", lambda *_: next(lives))
    with pytest.raises(SystemExit, match="Not all steps"):
        resume.main(f"--kills 1 --steps 11 --output {tmp_path}".split())
    report = json.loads((tmp_path / "resume.json").read_text())
    assert not report["identical"]
    assert [life["differing"] for life in report["trainings"][0]["lives"]] == [[1], []]


@pytest.mark.parametrize("change", ["one bit", "the random key"])
def test_digest_sees_every_bit(change):
    tree = {"weight": jnp.ones((3, 2)), "key": jax.random.key(0)}
    changed = dict(tree)
    if change == "one bit":
        changed["weight"] = tree["weight"].at[2, 1].set(jnp.nextafter(1.0, 2.0))
    else:
        changed["key"] = jax.random.key(1)
    assert resume.digest(tree) == resume.digest(jax.tree.map(jnp.copy, tree))
    assert resume.digest(changed) != resume.digest(tree)
