"""Cascades as numbers, how they are learned, and the study of them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd
from experiments.engine.results import read_results
from experiments.engine.runner import Bench
from experiments.learned_cascades import cascades, figures, learning, study, tables
from experiments.learned_cascades.cascades import COURSE, EARLY, FIXED, FORMS, LATE
from experiments.workloads.synthetic import task

SIGMA = np.linspace(0, 1, 101)
REST = study.REST | {"learning_rate": 0.02}


def _moved(seed=0):
    """Numbers of a course that changes."""
    rng = np.random.default_rng(seed)
    return {name: value + 0.1 * rng.normal() for name, value in learning.initial(COURSE).items()}


def _updates(contender, numbers, steps=3):
    optimizer = contender.build(REST | numbers | {"steps": 4}, optax.constant_schedule(0.02))
    params = {"dense": {"kernel": jnp.ones((3, 4))}, "bias": jnp.ones(4)}
    state = optimizer.init(params)
    found = []
    for i in range(steps):
        gradients = jax.tree.map(
            lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape), params
        )
        updates, state = jax.jit(optimizer.update)(gradients, state, params)
        found.append(updates)
    return found


def test_learning_begins_at_the_hand_set_cascade():
    found = cascades.cascade(cascades.start()).evaluate(SIGMA)
    expected = cascades.hand_set().evaluate(SIGMA)
    np.testing.assert_allclose(found / found[-1], expected / expected[-1], atol=1e-6)


def test_a_fill_is_how_much_of_the_next_range_a_stage_takes_up():
    numbers = cascades.start() | {"fill_0": 0.5, "fill_1": 0.3}
    cascade = cascades.cascade(numbers)
    first, second, third = (
        lambda x, stage=stage: stage.evaluate([np.arcsin(x) / np.pi])[0] for stage in cascade.stages
    )
    expected = third(second(first(SIGMA) / math.exp(0.25)) / math.exp(0.09))
    np.testing.assert_allclose(cascade.evaluate(SIGMA), expected, atol=1e-5)  # float32


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_course_is_a_line_between_two_cascades(share):
    numbers = _moved()
    now = {name: numbers[name] + share * numbers[f"late_{name}"] for name in EARLY}
    np.testing.assert_allclose(
        cascades.cascade(numbers, share).evaluate(SIGMA),
        cascades.cascade(now).evaluate(SIGMA),
        atol=1e-12,
    )


def test_the_forms_step_as_the_package_does_with_their_cascades():
    hand_set = qsgd.superpositional_muon(
        0.02, cascades.hand_set(), beta=0.9, weight_decay=0.01, adam_weight_decay=0.01
    )

    class Direct:
        build = staticmethod(lambda hyper, schedule: hand_set)

    expected = _updates(Direct, {})
    still = cascades.start() | dict.fromkeys(LATE, 0.0)
    for form, numbers in ((FIXED, cascades.start()), (COURSE, still)):
        for one, other in zip(_updates(FORMS[form], numbers), expected, strict=True):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one, other)
    moved = _moved()
    course = _updates(FORMS[COURSE], moved)
    third = cascades.cascade(moved, 0.5)  # the third of four steps
    numbers = {name: moved[name] + 0.5 * moved[f"late_{name}"] for name in EARLY}
    fixed = _updates(FORMS[FIXED], numbers)
    kernel = course[2]["dense"]["kernel"]
    np.testing.assert_allclose(kernel, fixed[2]["dense"]["kernel"], atol=1e-6)
    assert not np.allclose(kernel, expected[2]["dense"]["kernel"], atol=1e-4)
    assert third.evaluate([1.0]) == pytest.approx(cascades.cascade(numbers).evaluate([1.0]))


def test_evolution_finds_a_planted_cascade():
    planted = {name: x + 0.1 for name, x in learning.initial(FIXED).items()}

    def score(candidates, generation):
        return [sum((x[name] - planted[name]) ** 2 for name in planted) for x in candidates]

    found = learning.evolve(FIXED, score, seed=0, generations=60, population=10)
    assert found == pytest.approx(planted, abs=0.01)
    assert found == learning.evolve(FIXED, score, seed=0, generations=60, population=10)


def test_hypergradients_are_those_of_a_training():
    value_and_gradient = learning.hypergradient(FORMS[COURSE], task("teacher-mlp"), REST, steps=4)
    numbers, key = jax.tree.map(jnp.float32, _moved()), jax.random.key(1)
    loss, found = value_and_gradient(numbers, key)
    for name in ("angle_0_1", "fill_1", "late_angle_2_0"):
        step = 0.02
        up, down = (
            value_and_gradient(numbers | {name: numbers[name] + change}, key)[0]
            for change in (step, -step)
        )
        assert float(found[name]) == pytest.approx(float(up - down) / (2 * step), rel=0.1, abs=1e-4)
    assert float(loss) < math.log(3)


def _line(phase, workload, trial, seed, loss, steps=1000):
    return {
        "phase": phase,
        "workload": workload,
        "trial": trial,
        "seed": seed,
        "steps": steps,
        "contender": "muon" if trial == "muon" else FIXED,
        "validation": [3.0, loss],
    }


def test_tables_compare_the_best_with_the_hand_set_and_with_muon(tmp_path):
    rng = np.random.default_rng(0)
    learned = {"a": learning.initial(FIXED), "b": _moved()}
    scores = {"a": {"x": 0.01, "y": 0.03}, "b": {"x": -0.02, "y": 0.0}}
    assert study.best_of(scores) == "b"
    lines, reference = [], []
    for one in study.FINAL:
        early = 1.03 if one is study.FINAL[0] else 1.02
        for seed in range(one.seeds):
            base = 2 + 0.01 * rng.normal()
            lines.append(_line("final", one.name, "hand-set x 0.5", seed, 1.01 * base, one.horizon))
            lines.append(_line("final", one.name, "b x 1", seed, base, one.horizon))
            lines.append(
                _line("final", one.name, "b x 1", seed, early * base, round(0.9 * one.horizon))
            )
            reference.append(_line("final", one.name, "muon", seed, base / 0.98, one.horizon))
    parts = tables.sections({"scores": scores, "best": "b"}, lines, reference)
    assert len(parts) == 6
    _, chosen, _, sooner, _, in_as_many = parts
    assert chosen.index("| b |") < chosen.index("| a |") and "| +2.02 % |" in chosen
    for one in study.FINAL:
        (early,), (late,) = (
            [row for row in table.splitlines() if row.startswith(f"| {one.name} |")]
            for table in (sooner, in_as_many)
        )
        p = float(early.split("|")[-2])
        if one is study.FINAL[0]:
            assert "+0.94 %" in early and p == 1
        else:
            assert "-0.04 %" in early and p < 0.01
        assert "-0.99 % [-0.99, -0.99]" in late and "-2.00 %" in late
    for trial, share, left in (
        ("b x 1", 0.9, parts[:2] + parts[4:]),
        ("b x 1", 1.0, parts[:4]),
        ("hand-set x 0.5", 1.0, parts[:4]),
    ):
        one = study.FINAL[1]
        missing = one.name, trial, share * one.horizon, 19
        unfinished = [
            x for x in lines if (x["workload"], x["trial"], x["steps"], x["seed"]) != missing
        ]
        assert len(unfinished) == len(lines) - 1
        found = tables.sections({"scores": scores, "best": "b"}, unfinished, reference)
        assert found == left
    found = {"learned": learned, "best": "b", "singular_values": [0.9, 0.1, 0.001]}
    for draw in (figures.curves, figures.courses, figures.best):
        draw(tmp_path / f"{draw.__name__}.png", found)
        assert (tmp_path / f"{draw.__name__}.png").stat().st_size > 10_000


def test_the_command_says_what_it_does():
    command = [sys.executable, "-m", "experiments.learned_cascades"]
    folder = Path(__file__).parents[2]
    told = subprocess.run([*command, "--help"], cwd=folder, capture_output=True, text=True)
    assert told.returncode == 0 and "--report FILE" in told.stdout
    empty = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert empty.returncode == 2 and "nothing to do" in empty.stderr


def _answer(jobs, label=""):
    """A loss that is least at a learning rate of 0.02, and all angles 0.1 above the hand-set."""
    planted = {name: x + 0.1 for name, x in cascades.start().items() if "angle" in name}
    results = []
    for job in jobs:
        away = np.log(job.hyper["learning_rate"] / 0.02) ** 2
        away += sum((job.hyper[name] - x) ** 2 for name, x in planted.items())
        results.append(job.as_json() | {"validation": [9.0, float(np.exp(away))], "train": [9.0]})
    return results


def test_a_generation_has_all_synthetic_tasks_and_one_text_in_turn(monkeypatch):
    rests = study.tuned(study.LEARN, _answer)
    monkeypatch.setattr(study, "GENERATIONS", 3)
    generations = []

    def run(jobs, label):
        generations.append({job.workload for job in jobs})
        assert {job.steps for job in jobs} == {150}
        return _answer(jobs)

    study.evolved(COURSE, 0, rests, run)
    even, odd = ({one.name for one in study.SYNTHETIC} | {text.name} for text in study.TEXTS)
    assert len(even) == 5 and generations == [even, odd, even]


def test_the_study_learns_chooses_and_ends_at_each_cascade_s_best_rate(monkeypatch):
    rests = study.tuned(study.LEARN, _answer)
    assert {x["learning_rate"] for x in rests.values()} == {0.02}
    monkeypatch.setattr(study, "GENERATIONS", 40)
    learned = {"evolved": study.evolved(FIXED, 0, rests, _answer), "hand": cascades.start()}
    scores = study.scores(learned, _answer)
    assert study.best_of(scores) == "evolved" and set(scores["hand"].values()) == {0.0}
    assert scores["evolved"]["characters"] == pytest.approx(-0.09, abs=0.01)  # nine angles, 0.1²
    before = [
        {"phase": "tuning", "workload": one.name, "contender": "spectral", "trial": "a"}
        | {"validation": [9.0, 2.0], "train": [9.0], "hyper": study.REST | {"learning_rate": 0.01}}
        for one in study.FINAL
    ]
    lines = study.finals({"evolved": learned["evolved"]}, before, _answer)
    assert {x["hyper"]["learning_rate"] for x in lines} == {0.02}
    for one in study.FINAL:
        mine = [x for x in lines if x["workload"] == one.name]
        shares = sorted((x["trial"].split(" x ")[0], x["steps"] / one.horizon) for x in mine)
        expected = [("evolved", 0.9), ("evolved", 1.0), ("hand-set", 1.0)]
        assert shares == [x for x in expected for _ in range(20)]


def test_a_trained_model_s_singular_values_are_of_the_momentum_at_the_final_settings(monkeypatch):
    one = study.Task("markov-transformer", 3, study.RATES)
    monkeypatch.setattr(study, "FINAL", (one,))
    moved = _moved()
    lines = [
        {"workload": one.name, "steps": steps, "trial": f"{name} x 2", "hyper": hyper}
        for name, steps, hyper in (
            ("hand-set", 3, {}),
            ("b", 2, {}),
            ("b", 3, study.REST | {"learning_rate": 0.02} | moved),
        )
    ]
    bench = Bench(lambda name, split: task(name), FORMS)
    found = study.singular_values("b", moved, lines, bench)
    assert max(found) <= 1 and min(found) >= 0
    model = task(one.name).init(jax.random.key(0))
    shapes = [x.shape for x in jax.tree.leaves(model) if x.ndim > 1]
    # Over the Frobenius norm the squares of a matrix's values have the sum 1; embeddings have none.
    matrices = np.sum(np.square(found))
    assert matrices == pytest.approx(round(matrices), abs=1e-3) and 0 < matrices < len(shapes)


def test_the_record_is_what_the_stored_runs_say():
    experiments = Path(__file__).parents[1]
    stored = experiments / "results"
    found = json.loads((stored / "learned_cascades" / "learned.json").read_text())
    assert study.best_of(found["scores"]) == found["best"]
    lines, reference = (
        read_results(stored / name / "results.jsonl.gz")
        for name in ("learned_cascades", "spectral_study")
    )
    parts = tables.sections(found, lines, reference)
    text = (experiments / "records" / "learned_cascades.md").read_text()
    assert "\n\n".join(parts) + "\n\n![" in text
