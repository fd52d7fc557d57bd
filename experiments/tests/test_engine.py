"""A comparison: what is tuned, run, resumed, tested and reported, on tiny tasks."""

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

from experiments.engine import report, statistics
from experiments.engine.compute import measure, total_seconds
from experiments.engine.contender import Contender
from experiments.engine.plan import Plan, best_trial, compare
from experiments.engine.results import Results, diverged, final_loss, identity, read_results
from experiments.engine.runner import Bench
from experiments.engine.workload import Workload, learning_rates, training_run
from experiments.optimizers import cautious, classical
from experiments.workloads.real import HELD_OUT, LOOKED_AT

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TASKS = HELD_OUT | LOOKED_AT


def quadratic(name, split):
    """A noisy quadratic: the test split has another offset than the validation split."""
    scales = jnp.geomspace(0.3, 3, 6)
    offset = 0.5 if split == "validation" else 0.7

    def loss(params, data, key):
        noise = 0.1 * jax.random.normal(key, (6,))
        return jnp.sum(data * (params["x"] - 1 + noise) ** 2)

    return Workload(
        name=name,
        family="mlp",
        init=lambda key: {"x": jax.random.normal(key, (6,))},
        data=lambda key: scales,
        loss=loss,
        validation_loss=lambda params, data: jnp.sum(data * (params["x"] - 1) ** 2) + offset,
    )


def sgd(name, factor=1.0, learning_rate=(0.003, 0.1)):
    def build(hyper, schedule):
        return optax.chain(
            optax.add_decayed_weights(hyper["weight_decay"]),
            optax.scale_by_learning_rate(lambda count: factor * schedule(count)),
        )

    return Contender(name, name, build, learning_rate=learning_rate, weight_decay=(1e-6, 1e-5))


class Counting(Bench):
    def __init__(self, contenders, batch):
        super().__init__(quadratic, contenders, batch=batch)
        self.ran = []

    def run(self, jobs):
        self.ran += jobs
        return super().run(jobs)


def planned(*contenders, batch=1, **options):
    named = {contender.name: contender for contender in contenders}
    settings: dict[str, Any] = {"trials": 4, "seeds": 6, "points": 5} | options
    return Plan({"bowl": 20}, named, **settings), Counting(named, batch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """AdamW's place taken by SGD, its double, and a better one, all at the same fixed rates."""
    narrow = (0.0099, 0.0101)
    plan, bench = planned(
        sgd("adamw", 1.0, narrow),
        sgd("double", 1.0, narrow),
        sgd("better", 5.0, narrow),
        robustness=3,
    )
    path = tmp_path_factory.mktemp("study") / "results.jsonl"
    compare(plan, bench, Results(path), progress=False)
    return plan, bench, path


def rows_of(path):
    return {row.contender: row for row in statistics.Comparison(read_results(path)).rows("bowl")}


def test_a_better_optimizer_is_found_and_its_double_makes_no_difference(finished):
    _, _, path = finished
    rows = rows_of(path)
    assert rows["better"].difference.high < -5
    assert rows["better"].adjusted_p <= 2 * rows["better"].p < 0.1
    assert rows["better"].steps_to_target < 0.75
    assert rows["better"].shorter_difference.high < 0
    assert rows["better"].shorter_p < 0.05
    assert rows["double"].difference == statistics.Estimate(0, 0, 0)
    assert rows["double"].p == rows["double"].adjusted_p == 1
    assert rows["double"].loss == rows["adamw"].loss
    assert rows["double"].shorter_p > 0.5  # shorter runs of the same are worse
    assert {row.seeds for row in rows.values()} == {6}
    assert {row.robustness for row in rows.values()} == {(3, 0)}
    assert not any(row.diverged for row in rows.values())


def test_tuning_sees_other_seeds_and_another_split_than_the_final_runs(finished):
    plan, bench, _ = finished
    seeds = {
        phase: {j.seed for j in bench.ran if j.phase == phase} for phase in ("tuning", "final")
    }
    assert not seeds["tuning"] & seeds["final"]
    assert {job.split for job in bench.ran if job.phase == "final"} == {"test"}
    assert {job.split for job in bench.ran if job.phase != "final"} == {"validation"}
    assert {job.steps for job in bench.ran if job.phase == "final"} == {15, 20}
    robust = [j.hyper["learning_rate"] for j in bench.ran if j.phase == "robustness"]
    assert max(robust) / min(robust) == pytest.approx(30, rel=0.05)
    any_one = plan.contenders["better"]
    assert plan.runs(any_one) == 4 + 2 * 6 + 3
    assert plan.steps("bowl", any_one) == (4 + 6 + 3) * 20 + 6 * 15
    assert plan.runs(any_one, batch=4) == 4 + 2 * 8 + 4
    assert plan.steps("bowl", any_one, batch=4) == (4 + 8 + 4) * 20 + 8 * 15


def test_resuming_after_half_a_line_runs_that_job_alone_and_counts_nothing_twice(
    finished, tmp_path
):
    plan, _, path = finished
    whole = path.read_text()
    cut = tmp_path / "results.jsonl"
    cut.write_text(whole[:-40])
    bench = Counting(plan.contenders, 1)
    compare(plan, bench, Results(cut), progress=False)
    assert len(bench.ran) == 1

    def content(text):
        lines = [json.loads(line) | {"seconds": 0} for line in text.splitlines()]
        return sorted(json.dumps(line) for line in lines)

    assert content(cut.read_text()) == content(whole)


def test_runs_in_batches_are_those_one_by_one(finished, tmp_path):
    plan, _, path = finished
    bench = Counting(plan.contenders, 4)  # which divides neither 6 seeds nor 3 robustness runs
    compare(plan, bench, Results(tmp_path / "results.jsonl"), progress=False)
    one_by_one = {identity(line): line for line in read_results(path)}
    batched = {identity(line): line for line in read_results(tmp_path / "results.jsonl")}
    assert one_by_one.keys() == batched.keys() and len(bench.ran) == len(one_by_one)
    for name, line in one_by_one.items():
        for curve in ("train", "validation"):
            np.testing.assert_allclose(batched[name][curve], line[curve], rtol=2e-5)


def test_other_hyperparameters_settings_and_lengths_are_other_jobs(finished):
    plan, _, path = finished
    results = Results(path)
    one = plan.tuning("bowl", plan.contenders["adamw"])[0]
    assert results.find(one) is not None
    for change in (
        {"hyper": one.hyper | {"warmup": 0.01}},
        {"settings": "other angles"},
        {"steps": 25},
        {"points": 4},
        {"seed": 3},
        {"phase": "robustness"},
    ):
        assert results.find(dataclasses.replace(one, **change)) is None


def test_final_runs_of_two_settings_in_one_file_are_refused(finished):
    lines = read_results(finished[2])
    final = next(line for line in lines if line["phase"] == "final")
    with pytest.raises(ValueError, match="settings '' and 'other'"):
        statistics.Comparison([*lines, final | {"settings": "other"}])
    unfinished = [r for r in lines if r["phase"] == "tuning" or r["steps"] == 15]
    with pytest.raises(ValueError, match="no final runs of adamw"):
        statistics.Comparison(unfinished)
    with pytest.raises(ValueError, match="no final runs of adamw"):
        statistics.Comparison([line for line in lines if line["contender"] != "adamw"])


def test_a_corrupt_line_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"phase": "final"}\n')
    with pytest.raises(ValueError, match="line 1: not a result"):
        Results(path)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((1e-5, 1e-3), (1e-5, 1e-3 * 10**0.5)), ((3.0, 30.0), (3 / 10**0.5, 30.0))],
)
def test_a_best_trial_at_the_border_widens_the_range_once(bounds, expected, tmp_path):
    contender = sgd("adamw", learning_rate=bounds)
    # With so many trials, one lies at the border.
    plan, bench = planned(contender, trials=32, seeds=1)
    compare(plan, bench, Results(tmp_path / "results.jsonl"), progress=False)
    wider = [job for job in bench.ran if job.trial.startswith("wider-") and job.phase == "tuning"]
    rates = [job.hyper["learning_rate"] for job in wider]
    assert len(wider) == 32
    assert expected[0] <= min(rates) < max(rates) <= expected[1]
    assert min(rates) < bounds[0] or max(rates) > bounds[1]


def test_all_contenders_try_the_same_points_and_more_trials_keep_the_first():
    contenders = classical()
    assert next(iter(contenders)) == "adamw"
    adam, lion = (contenders[name].trials(8) for name in ("adamw", "lion"))
    for one, other in zip(adam, lion, strict=True):
        assert other["learning_rate"] == pytest.approx(one["learning_rate"] / 10)
        assert other["weight_decay"] == pytest.approx(one["weight_decay"] * 10)
        assert other["warmup"] == one["warmup"]
        assert 1e-4 <= one["learning_rate"] <= 10**-1.5
        assert 1e-4 <= one["weight_decay"] <= 10**-0.5
        assert 0 <= one["warmup"] <= 0.2
    assert contenders["adamw"].trials(3) == adam[:3]
    assert contenders["adamw"].widened(1e-3) is None


def test_what_diverges_is_never_chosen_and_counts_with_the_untrained_loss():
    def line(curve, rate=0.1):
        hyper = {"learning_rate": rate}
        return {"validation": curve, "train": [1.0], "seed": 0, "hyper": hyper, "trial": str(curve)}

    fine, up, lost = line([2.0, 1.0]), line([2.0, 2.1]), line([2.0, None], 0.01)
    assert [diverged(one) for one in (fine, up, lost)] == [False, True, True]
    assert final_loss(up) == math.inf
    assert best_trial([lost, up, fine]) is fine
    assert best_trial([up, lost]) is lost  # of the lower rate
    assert statistics.curves_of([lost])[0].tolist() == [2.0, 2.0]


def test_cautious_steps_are_those_of_the_equation():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 3, 4)).astype(np.float32)
    optimizer = cautious(optax.scale_by_adam())
    params = jnp.zeros((3, 4))
    state = optimizer.init(params)
    m, v, mask = np.zeros((3, 3, 4))
    for t, g in enumerate(gradients, start=1):
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        mask = (u * g > 0).astype(float)
        np.testing.assert_allclose(np.asarray(updates), u * mask * 12 / (mask.sum() + 1), rtol=2e-4)
    assert 0 < mask.sum() < 12


def test_the_schedule_warms_up_and_decays_as_in_numpy():
    steps, warmup = 40, 0.2
    count = np.arange(steps)
    done = count / steps
    cosine = 0.5 * (1 + np.cos(np.pi * (done - warmup) / (1 - warmup)))
    for decays, after in ((True, cosine), (False, np.ones(steps))):
        expected = 0.3 * np.where(count < 8, (count + 1) / 8, after)
        schedule = learning_rates(0.3, jnp.int32(steps), warmup=jnp.float32(warmup), cosine=decays)
        np.testing.assert_allclose(schedule(jnp.asarray(count)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(classical()))
def test_every_contender_learns_the_bowl_with_traced_hyperparameters(name):
    contender = classical()[name]
    plan, bench = planned(contender)
    job = plan.tuning("bowl", contender)[0]
    rate = 0.03 if name == "lion" else 0.1
    hyper = job.hyper | {"learning_rate": rate, "weight_decay": 0.0}
    (result,) = bench.run([dataclasses.replace(job, hyper=hyper, steps=50)])
    assert result["validation"][-1] < 0.8 * result["validation"][0]
    (longer,) = bench.run([dataclasses.replace(job, hyper=hyper, steps=100)])
    assert longer["validation"][-1] < result["validation"][0]
    assert len(longer["validation"]) == len(longer["train"]) + 1 == 6


def test_holm_steps_down_and_leaves_out_what_is_not_tested():
    adjusted = statistics.holm([0.01, math.nan, 0.04, 0.03])
    np.testing.assert_allclose(adjusted, [0.03, math.nan, 0.06, 0.06])


def test_sign_flips_agree_with_counting_all_of_them():
    differences = np.array([0.5, -0.2, 1.3, 0.7, 0.1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    means = (signs * differences[:, None]).mean(axis=0)
    expected = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    assert statistics.sign_flip_p(differences) == pytest.approx(expected)
    assert statistics.sign_flip_p(-differences, "less") == pytest.approx(expected / 2)


def test_steps_to_a_target_are_interpolated():
    curves = np.array([[4.0, 2.0, 1.0], [4.0, 4.0, 3.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(statistics.steps_to(curves, 1.5), [0.75, math.inf, 0.0])


def test_the_report_stands_between_its_markers_beside_its_figures(finished, tmp_path):
    packed = tmp_path / "results.jsonl.gz"
    packed.write_bytes(gzip.compress(finished[2].read_bytes()))
    path = tmp_path / "records" / "study.md"
    path.parent.mkdir()
    path.write_text(f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n")
    for _ in range(2):
        report.write(path, statistics.Comparison(read_results(packed)), {})
        text = path.read_text()
        assert text.startswith("# Title\n") and text.endswith("\n\nAfter.\n")
        assert "old" not in text
        assert text.count("| better |") == 2  # the bars, and the task's table
        assert "### bowl, 20 steps" in text
    assert sorted(file.name for file in path.parent.glob("*.png")) == [
        "study_curves.png",
        "study_forest.png",
    ]
    with pytest.raises(ValueError, match="markers"):
        report.replaced(f"{report.END} {report.BEGIN}", "")


def test_bars_are_held_task_by_task(finished):
    rows = list(rows_of(finished[2]).values())
    better = next(one for one in statistics.bars(rows) if one.contender == "better")
    assert better.faster == ()  # six pairs are too few to tell
    enough = [dataclasses.replace(row, seeds=20, shorter_p=0.001) for row in rows]
    better = next(one for one in statistics.bars(enough) if one.contender == "better")
    assert better.faster == ("bowl",)
    assert better.worst == rows[2].difference.mean
    assert (better.diverged, better.runs) == (0, 3)


def test_the_compute_is_measured(finished):
    plan, bench, _ = finished
    cost = measure(plan, bench, "bowl", plan.contenders["adamw"])
    assert total_seconds(plan, "bowl", plan.contenders["adamw"], cost) > 0


def test_evaluations_must_divide_both_lengths():
    with pytest.raises(ValueError, match="points=7 must divide 15 steps"):
        planned(sgd("adamw"), points=7)


@pytest.mark.parametrize("name", TASKS)
def test_missing_data_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is missing; expected is .* of "):
        TASKS[name](tmp_path)


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the data in {DATA}")


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", ["clinc-domains", "characters", "stories", "word-problems"])
def test_splits_of_real_tasks_differ_in_what_is_evaluated_alone(name):
    validation, test = (TASKS[name](DATA, split) for split in ("validation", "test"))
    key = jax.random.key(0)
    data = validation.data(key)
    params = jax.eval_shape(validation.init, key)
    loss, gradients = jax.eval_shape(jax.value_and_grad(validation.loss), params, data, key)
    assert loss.shape == ()
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert data is validation.data(jax.random.key(1))
    (train, looked_at), (same, other) = data, test.data(key)
    assert jax.tree.all(jax.tree.map(np.array_equal, train, same))
    assert not jax.tree.all(jax.tree.map(np.array_equal, looked_at, other))


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["clinc-intents", "characters", "stories", "word-problems"])
def test_real_tasks_train(name):
    workload, key = TASKS[name](DATA), jax.random.key(0)
    curves = jax.jit(
        lambda data: training_run(
            workload, lambda _: optax.adamw(1e-3), data, key, steps=4, points=1
        )
    )(workload.data(key))
    assert curves.validation_loss[1] < curves.validation_loss[0]


@needs_data
def test_stories_starts_from_what_it_has_learned():
    workload = HELD_OUT["stories"](DATA)
    first, second = (jax.tree.leaves(workload.init(jax.random.key(seed))) for seed in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    loss = workload.validation_loss(
        workload.init(jax.random.key(0)), workload.data(jax.random.key(0))
    )
    assert loss < np.log(512)
