"""The evidence study: planted effects are found, double arms are not, tables are the runs'."""

import dataclasses
import gzip
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import experiments.evidence.__main__ as evidence
from experiments.engine.contender import Contender
from experiments.engine.plan import Plan, best_trial, compare
from experiments.engine.report import BEGIN, END
from experiments.engine.results import Results, identity, read_results, write_compressed
from experiments.engine.runner import Bench
from experiments.engine.statistics import Comparison, holm
from experiments.engine.workload import Workload
from experiments.evidence import cost, norms, table
from experiments.evidence import report as evidence_report
from experiments.evidence.effects import (
    ACCURACY,
    LOSS,
    TaskResults,
    ratio_of_medians,
    slopes,
    success,
)
from experiments.evidence.study import read_study
from experiments.evidence.superposed import PAIRS, RETIRED, SWEEPS, everything
from experiments.evidence.tables import claims

HERE = Path(__file__).parents[1]
STORED, RECORDS = HERE / "results" / "evidence", HERE / "records"


def line(contender, seed, accuracy, loss=(2.0, 1.0), *, workload="topic-order", phase="final"):
    return {
        "phase": phase,
        "workload": workload,
        "contender": contender,
        "settings": "",
        "trial": "0",
        "hyper": {"learning_rate": 1e-3},
        "seed": seed,
        "steps": 100,
        "points": len(accuracy) - 1,
        "train": [1.0],
        "validation": list(loss),
        "accuracy": list(accuracy),
        "seconds": 1.0,
    }


def drawn(rng, effects, seeds=20, spread=0.01, noise=0.005):
    """Final accuracies of arms that share what a seed does and add their own effect and noise."""
    common = rng.normal(0.9, spread, seeds)
    values = {
        name: common + effect + rng.normal(0, noise, seeds) for name, effect in effects.items()
    }
    lines = [
        line(name, seed, [0.1, float(value)])
        for name, found in values.items()
        for seed, value in enumerate(found)
    ]
    return TaskResults(Comparison(lines), "topic-order", ACCURACY)


# --- Planted and null effects ---------------------------------------------------------------------


def test_a_planted_effect_of_one_standard_deviation_is_found_among_arms_without_one():
    rng = np.random.default_rng(0)
    arms = {"adamw": 0.0, "paper": 0.01, "noise": 0.0, "signs": 0.0}
    found = [drawn(rng, arms).against_baseline()["paper", "adamw"] for _ in range(40)]
    assert np.mean([effect.p < 0.05 / 3 for effect in found]) > 0.95
    assert np.mean([effect.difference.mean for effect in found]) == pytest.approx(1.0, abs=0.1)
    covered = [effect.difference.low < 1.0 < effect.difference.high for effect in found]
    assert np.mean(covered) > 0.8


@pytest.mark.slow
def test_identical_arms_under_other_names_differ_no_more_often_than_the_stated_rate():
    rng = np.random.default_rng(1)
    arms = dict.fromkeys(("adamw", "paper", "noise", "signs", "rates"), 0.0)
    repeats = 150
    families = [drawn(rng, arms).against_baseline().values() for _ in range(repeats)]
    wrong = sum(min(holm([effect.p for effect in family])) < 0.05 for family in families)
    # Three standard deviations of a binomial above 5 %.
    assert wrong / repeats < 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    single = [effect.p for family in families for effect in family]
    assert 0.4 < np.mean(single) < 0.6


def bowl(name, split):
    """A noisy quadratic whose `accuracy` is the share of coordinates near the optimum."""

    def loss(params, data, key):
        return jnp.sum((params["x"] - 1 + 0.3 * jax.random.normal(key, (16,))) ** 2)

    def evaluation(params, data):
        excess = (params["x"] - 1) ** 2
        return jnp.sum(excess), jnp.mean(excess < 0.1)

    return Workload(
        name,
        "mlp",
        init=lambda key: {"x": jax.random.normal(key, (16,))},
        data=lambda key: jnp.zeros(()),
        loss=loss,
        validation_loss=lambda params, data: evaluation(params, data)[0],
        evaluation=evaluation,
    )


def noisy_sgd(name, *, stream=0, factor=1.0, **options):
    """SGD with noise of its own, from a stream of its own."""

    def build(hyper, schedule):
        key = jax.random.fold_in(jax.random.key(hyper["seed"]), stream)

        def update(updates, state, params=None):
            leaves, treedef = jax.tree.flatten(updates)
            drawn = jax.random.normal(jax.random.fold_in(key, state), leaves[0].shape)
            return treedef.unflatten([leaves[0] + drawn]), state + 1

        return optax.chain(
            optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update),
            optax.scale_by_learning_rate(lambda count: factor * schedule(count)),
        )

    return Contender(name, name, build, learning_rate=(0.0049, 0.0051), **options)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A whole comparison: AdamW's place taken by noisy SGD, with a double, a better, a lost one."""
    contenders = [
        noisy_sgd("adamw"),
        noisy_sgd("paper", stream=1),
        noisy_sgd("noise", stream=2, factor=3.0),
        noisy_sgd("signs", factor=1e3),
        noisy_sgd("adamw-twice", effort=2),
    ]
    named = {contender.name: contender for contender in contenders}
    plan = Plan(
        {"topic-order": 40},
        named,
        trials=2,
        seeds=20,
        points=5,
        tuning_seeds=3,
        shares=(1.0,),
        screen=0.5,
    )
    path = tmp_path_factory.mktemp("evidence") / "results.jsonl"
    compare(plan, Bench(bowl, named, batch=20), Results(path), progress=False)
    return plan, path


def test_through_the_runner_the_better_arm_is_found_and_the_double_is_not(studied):
    task = TaskResults(Comparison(read_results(studied[1])), "topic-order", ACCURACY)
    effects = task.against_baseline()
    assert effects["noise", "adamw"].difference.low > 5
    assert effects["noise", "adamw"].p < 0.001
    assert effects["paper", "adamw"].p > 0.05
    assert any(task.measure.differences(task.runs("paper"), task.runs("adamw")))
    assert task.reached("noise").steps_to_target < 0.7 < task.reached("adamw").steps_to_target


def test_hopeless_arms_get_no_final_runs_and_are_named(studied):
    task = TaskResults(Comparison(read_results(studied[1])), "topic-order", ACCURACY)
    assert task.without_finals == task.screened(0.5) == ["signs"]
    assert task.screened(1e9) == ["signs"]  # which diverged
    # In the order in which their runs ended, which is up to the threads.
    assert set(task.contenders) == {"adamw", "paper", "noise", "adamw-twice"}


def test_twice_the_effort_is_twice_the_trials_each_with_every_tuning_seed(studied):
    plan, path = studied
    task = TaskResults(Comparison(read_results(path)), "topic-order", ACCURACY)
    assert task.reached("adamw").trials == 2 * 3
    assert task.reached("adamw-twice").trials == 2 * 2 * 3
    assert plan.runs(plan.contenders["adamw-twice"]) == 2 * 2 * 3 + 20
    assert plan.steps("topic-order", plan.contenders["adamw"]) == (2 * 3 + 20) * 40
    tuning = [r for r in read_results(path) if r["phase"] == "tuning" and r["contender"] == "paper"]
    assert {r["seed"] for r in tuning} == {1000, 1001, 1002}


def test_the_mean_over_tuning_seeds_chooses_not_the_luckiest_run(tmp_path):
    lucky = [("0", 1.0, [0.1]), ("0", 9.0, [0.1]), ("1", 3.0, [0.2]), ("1", 4.0, [0.2])]
    lines: list[dict[str, Any]] = [
        {
            "trial": trial,
            "validation": [10.0, loss],
            "train": [1.0],
            "hyper": {"learning_rate": rate},
        }
        for trial, loss, (rate,) in lucky
    ]
    assert best_trial(lines)["trial"] == "1"


# --- Measures -------------------------------------------------------------------------------------


def test_measures_pair_by_seed_and_count_what_diverged_as_untrained():
    one = [line("a", 1, [0.1, 0.5]), line("a", 0, [0.2, 0.9]), line("a", 7, [0.2, 0.3])]
    other = [line("b", 0, [0.1, 0.8]), line("b", 1, [0.1, 0.7])]
    np.testing.assert_allclose(ACCURACY.differences(one, other), [10, -20])
    lost = [line("a", 0, [0.2, 0.9], [2.0, None])]
    assert ACCURACY.final(lost).tolist() == [20.0]
    reached_then_lost = [line("a", 0, [0.2, 0.9, 0.9], [2.0, 0.1, None])]
    assert LOSS.curves(reached_then_lost).tolist() == [[2.0, 2.0, 2.0]]
    a, b = [line("a", 0, [0, 0], [2.0, 0.9])], [line("b", 0, [0, 0], [2.0, 1.0])]
    np.testing.assert_allclose(LOSS.differences(a, b), [-10])
    assert success(0.95).final([*a, line("a", 1, [0, 0], [2.0, 1.0])]).tolist() == [100.0, 0.0]


def test_the_target_is_reached_between_two_points_or_never():
    lines = [
        line("adamw", 0, [0.0, 0.5, 1.0]),
        line("paper", 0, [0.0, 1.0, 0.9]),
        line("noise", 0, [0.0, 0.5, 0.6]),
    ]
    lines = [one | {"validation": [2.0, 1.5, 1.0]} for one in lines]
    task = TaskResults(Comparison(lines), "topic-order", ACCURACY, target=75.0)
    assert task.until_target(task.runs("adamw")).tolist() == [0.75]
    assert task.until_target(task.runs("paper")).tolist() == [0.375]
    reached = task.reached("noise")
    assert math.isinf(reached.steps_to_target)
    assert reached.misses == 1


def test_ratios_of_medians_and_their_intervals():
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 2, 40)
    found = ratio_of_medians(0.8 * base, base)
    np.testing.assert_allclose([found.mean, found.low, found.high], -20)
    noisy = ratio_of_medians(base * rng.uniform(0.7, 0.9, 40), base)
    assert -30 < noisy.low < noisy.mean < noisy.high < -10
    assert math.isnan(ratio_of_medians(np.full(40, np.inf), base).mean)
    often = ratio_of_medians(np.where(np.arange(40) < 18, np.inf, base), base)
    assert math.isfinite(often.mean)
    assert often.high == math.inf  # in some draws most runs miss


def test_slopes_are_those_of_least_squares_over_decades():
    seeds = np.array([0.0, 5.0, -3.0])
    varied = {value: seeds + 2 * math.log10(value) for value in (0.1, 1.0, 30.0)}
    np.testing.assert_allclose(slopes(varied), 2)


def test_at_equal_settings_the_luck_of_a_trial_does_not_count():
    def tuned(contender, trial, rate, losses):
        return [
            line(contender, 1000 + i, [0, 0], (2.0, loss), phase="tuning")
            | {"trial": trial, "hyper": {"learning_rate": rate}}
            for i, loss in enumerate(losses)
        ]

    lines = [
        *[line(name, 0, [0, 0.5]) for name in ("adamw", "paper")],
        *tuned("adamw", "0", 0.1, [1.0, 1.4]),
        *tuned("adamw", "1", 0.2, [0.8, 0.8]),
        *tuned("adamw", "2", 0.3, [1.0, None]),
        *tuned("paper", "0", 0.1, [0.6, 0.6]),
        *tuned("paper", "1", 0.2, [0.88, 0.88]),
        *tuned("paper", "2", 0.3, [0.5, 0.5]),
        *tuned("paper", "wider-0", 0.5, [0.1, 0.1]),
    ]
    task = TaskResults(Comparison(lines), "topic-order", ACCURACY)
    median, lower, count = task.at_equal_settings("paper") or (0, 0, 0)
    assert median == pytest.approx(100 * ((0.5 + 1.1) / 2 - 1))
    assert (lower, count) == (1, 2)
    assert task.at_equal_settings("noise") is None


# --- The table ------------------------------------------------------------------------------------


def test_every_part_names_known_arms_and_tasks_and_has_adamw_and_whole_points():
    known = everything()
    for name, part in table.PARTS.items():
        plan = part.plan(known)
        assert next(iter(plan.contenders)) == "adamw", name
        for smoke in (part.smoke().plan(known), plan):
            assert len(smoke.contenders) > 1, name
    assert {name for pair in PAIRS for name in pair} <= known.keys() | RETIRED.keys()
    assert {name for names in SWEEPS.values() for name in names.values()} <= known.keys()


def test_an_outermost_trial_widens_the_range():
    for effort in (1, 2):
        contender = dataclasses.replace(everything()["adamw"], effort=effort)
        rates = sorted(hyper["learning_rate"] for hyper in contender.trials(8))
        for rate, moved in ((rates[0], 0), (rates[-1], 1)):
            wider = contender.widened(rate)
            assert wider is not None
            assert wider.learning_rate[moved] != contender.learning_rate[moved]
        assert contender.widened(rates[len(rates) // 2]) is None


def test_published_settings_are_the_papers_constant_and_tuned_nowhere():
    plan = table.PARTS["paper"].plan(everything())
    assert plan.published == {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup": 0.0}
    assert not any(contender.cosine for contender in plan.contenders.values())
    assert plan.runs(plan.contenders["adamw"]) == 20


def test_a_tuned_quantum_weight_is_searched_log_uniformly_within_its_range():
    tuned = everything()["paper-tuned"]
    trials = tuned.trials(32)
    values = np.array([hyper["quantum_weight"] for hyper in trials])
    assert len(trials) == 64
    assert 0.1 <= values.min() < 0.2
    assert 50 < values.max() <= 100
    assert np.median(values) == pytest.approx(math.sqrt(0.1 * 100), rel=0.3)


@pytest.mark.parametrize(
    "name", ["digits-few", "digits-mislabelled", "rastrigin-2", "spin-glass-10"]
)
def test_tasks_are_opened_by_name_whatever_their_settings(name):
    for suffix in ("", table.PUBLISHED, table.SWEPT):
        workload = table.open_workload(Path("nowhere"), name + suffix, "test")
        assert workload.name == name
        params = workload.init(jax.random.key(0))
        found = workload.validation_loss(params, workload.data(jax.random.key(0)))
        assert jnp.isfinite(found)


# --- Norms and cost -------------------------------------------------------------------------------


def test_relative_norms_are_those_of_equation_one_in_numpy():
    workload = dataclasses.replace(
        bowl("bowl", "test"), loss=lambda params, data, key: jnp.sum((params["x"] - 3) ** 2)
    )
    (found,) = norms.relative_norms(
        workload,
        learning_rate=0.0,
        steps=2,
        points=1,
        seeds=[5],
        weigh="gradient",
        quantum_weight=0.5,
        coverage="everywhere",
    )
    x = np.asarray(workload.init(jax.random.split(jax.random.key(5))[0])["x"], np.float64)
    gradient = 2 * (x - 3)
    step = gradient / (np.abs(gradient) + 1e-8)  # Adam's, of the same gradient each time
    expected = np.linalg.norm(0.5 * np.sin(np.pi * x) * gradient) / np.linalg.norm(step)
    assert found[0] == pytest.approx(expected, rel=1e-3)


def test_cost_times_every_arm_once_a_round(monkeypatch):
    monkeypatch.setattr(cost, "TOPICS_ATTENTION", "bowl of another kind")
    known = {name: noisy_sgd(name) for name in ("adamw", "paper")}
    found = cost.epoch_seconds(bowl, known, rounds=3, arms=("adamw", "paper"), steps=4)
    assert {name: len(seconds) for name, seconds in found.items()} == {
        "adamw": 3,
        "paper": 3,
        "bowl of another kind": 3,
    }


# --- The report -----------------------------------------------------------------------------------


def test_the_compressed_results_make_the_same_report(studied, tmp_path):
    raw, packed = tmp_path / "raw", tmp_path / "packed"
    raw.mkdir()
    packed.mkdir()
    (raw / "results.jsonl").write_text(studied[1].read_text())
    write_compressed(packed / "results.jsonl.gz", read_results(studied[1]))
    (raw / "stability.json").write_text("{}")
    reports = [evidence_report.markdown(read_study(folder), {}) for folder in (raw, packed)]
    assert reports[0] == reports[1]
    assert "| control: noise |" in reports[0]
    first = (packed / "results.jsonl.gz").read_bytes()
    (packed / "unpacked.jsonl").write_bytes(gzip.decompress(first))  # to go on from
    resumed = Results(packed / "unpacked.jsonl")
    assert len(resumed._found) == len(read_results(studied[1]))
    write_compressed(packed / "results.jsonl.gz", read_results(studied[1]))
    assert (packed / "results.jsonl.gz").read_bytes() == first


def test_an_unfinished_study_is_reported_as_far_as_it_goes(studied, tmp_path):
    lines = read_results(studied[1])
    other = [one | {"workload": "digits-few"} for one in lines if one["phase"] == "tuning"]
    partly = [one for one in lines if one["contender"] != "paper" or one["phase"] == "tuning"]
    text = "\n".join(json.dumps(one) for one in [*partly, *other])
    (tmp_path / "results.jsonl").write_text(text + "\n")
    study = read_study(tmp_path)
    report = evidence_report.markdown(study, {})
    assert study.workloads == ["topic-order"]
    assert "topic-order, screened out: control: random signs." in report
    assert "topic-order, not run to the end: paper, Eq. 1, λ = 0.5." in report


def between_markers(path):
    text = path.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def test_the_report_and_the_findings_are_what_the_stored_results_say():
    study = read_study(STORED)
    report = between_markers(RECORDS / "evidence.md")
    names = ("curves", "forest", "sweep", "landscapes", "norms", "stability")
    figures = {name: f"evidence_{name}.png" for name in names}
    assert report == evidence_report.markdown(study, figures)
    assert all((RECORDS / file).is_file() for file in figures.values())
    assert between_markers(HERE.parent / "docs" / "findings.md") == claims(study)
    assert sum(file.stat().st_size for file in STORED.iterdir()) < 1e6


def test_the_command_line_refuses_and_leaves_out_what_it_cannot_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evidence.main(["--report", str(tmp_path / "report.md"), "--results", str(tmp_path)])
    assert "holds neither results.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evidence.main(["--full", "--parts", "everything"])
    with pytest.raises(SystemExit):
        evidence.main([])
    assert "nothing to do" in capsys.readouterr().err
    part = evidence._without_data(table.PARTS["real"])
    assert not part.horizons
    assert "clinc-intents is left out: it needs --data." in capsys.readouterr().out


@pytest.mark.slow
def test_a_smoke_run_makes_a_labelled_report_and_is_resumed(tmp_path, capsys):
    report = tmp_path / "report.md"
    arguments = ["--quick", "--output", str(tmp_path / "runs"), "--report", str(report)]
    parts = ["--parts", "paper", "small", "landscapes", "stability", "norms", "cost"]
    evidence.main([*arguments, *parts])
    text = report.read_text()
    assert "Smoke run" in text
    assert "Where Eq. 1 stalls" in text
    assert (tmp_path / "report_stability.png").is_file()
    runs = tmp_path / "runs" / "results.jsonl"
    lines = runs.read_text().splitlines()
    assert len({identity(json.loads(one)) for one in lines}) == len(lines)
    runs.write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:40])
    evidence.main([*arguments, "--parts", "paper", "small", "landscapes"])
    again = runs.read_text().splitlines()
    assert {identity(json.loads(one)) for one in again} == {
        identity(json.loads(one)) for one in lines
    }
    assert len(again) == len(lines)
    evidence.main(["--output", str(tmp_path / "runs"), "--pack", str(tmp_path / "packed")])
    packed = read_study(tmp_path / "packed")
    assert evidence_report.markdown(packed, {}) == evidence_report.markdown(
        read_study(tmp_path / "runs"), {}
    )
    assert packed.stability
