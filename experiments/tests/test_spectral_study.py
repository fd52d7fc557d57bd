"""The study of the spectral form: its plan, controls and tasks."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.spectral_time import is_axes_or_none, matrix_axes
from experiments.engine import report
from experiments.engine.contender import Contender
from experiments.engine.results import Results, read_results
from experiments.engine.runner import Bench, run_jobs
from experiments.engine.statistics import curves_of
from experiments.engine.workload import Workload, training_run
from experiments.spectral_study import arms, effects, larger_model, measure, plan, tables
from experiments.spectral_study.__main__ import CLAIMS, CONTENDERS, OTHERS, TASKS, read
from experiments.spectral_study.controls import CONTROLS, by_svd
from experiments.tests.test_engine import DATA, quadratic, sgd
from experiments.workloads.unseen import UNSEEN

HERE = Path(__file__).resolve().parents[1]
NARROW = (0.0099, 0.0101)
BOWL = plan.Task("bowl", 20, NARROW, shares=(0.6,), seeds=6, points=4)


def _arm(name, factor):
    """A poor variant, and one that should be chosen."""
    return sgd(f"{name}-poor", 0.1), sgd(name, factor)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    planned = plan.Plan(
        {"base": _arm("base", 1.0), "double": _arm("double", 1.0), "better": _arm("better", 5.0)},
        "better",
        trials=4,
        again=2,
        robustness=3,
    )
    contenders = {x.name: x for variants in planned.arms.values() for x in variants}
    bench = Bench(quadratic, contenders)
    path = tmp_path_factory.mktemp("study") / "results.jsonl"
    results = Results(path)

    def run(jobs, label):
        return run_jobs(jobs, bench, results, label=label, progress=False)

    chosen = planned.chosen(BOWL, run)
    run(planned.finals(BOWL, chosen), "final")
    run(planned.other_rates(BOWL, chosen), "other rates")
    return planned, chosen, path, run


def _losses(path, contender, steps=20):
    wanted = ("final", contender, steps)
    runs = [x for x in read_results(path) if (x["phase"], x["contender"], x["steps"]) == wanted]
    return curves_of(runs)[:, -1]


def test_a_planted_effect_is_found_and_two_names_of_one_optimizer_do_not_differ(finished):
    _, chosen, path, _ = finished
    assert {name: line["contender"] for name, line in chosen.items()} == {
        name: name for name in chosen
    }
    base = _losses(path, "base")
    np.testing.assert_array_equal(_losses(path, "double"), base)
    assert (_losses(path, "better") < base).all()
    assert (_losses(path, "better", 12) < base).all()
    assert len(base) == 6


def test_the_chosen_trial_has_the_lowest_mean_over_three_seeds(finished):
    planned, chosen, path, _ = finished
    lines = [x for x in read_results(path) if x["phase"] == "tuning"]
    assert {x["seed"] for x in lines} == {1000, 1001, 1002}
    for name, variants in planned.arms.items():
        own = [x for x in lines if x["contender"] in {v.name for v in variants}]
        tried = {x["trial"] for x in own}
        assert len(tried) == 8 or any("wider" in trial for trial in tried)
        again = {x["trial"] for x in own if x["seed"] == 1002}
        means = {
            trial: np.mean([x["validation"][-1] for x in own if x["trial"] == trial])
            for trial in again
        }
        assert len(again) == 2
        assert chosen[name]["trial"] == min(means, key=lambda trial: means[trial])


def test_settings_are_taken_over_with_the_rate_tried_anew(finished):
    planned, chosen, _, run = finished
    longer = dataclasses.replace(BOWL, horizon=40, like="bowl")
    with pytest.raises(ValueError, match=r"like=None: bowl takes the settings of bowl over"):
        planned.chosen(longer, run)
    found = planned.chosen(longer, run, BOWL)
    for name, line in found.items():
        rate = line["hyper"]["learning_rate"] / chosen[name]["hyper"]["learning_rate"]
        assert np.log2(rate) == round(np.log2(rate))
        assert line["steps"] == 40


@pytest.mark.parametrize(
    ("best", "further"), [(1.0, ()), (2**-4, (2**-2, 2**-3, 2**-4, 2**-5)), (4.0, (4.0, 8.0))]
)
def test_rates_are_tried_beyond_the_border_until_the_best_is_not_there(best, further):
    asked: list[float] = []

    def run(jobs: Any, label: str) -> Any:
        del label
        found = []
        for job in jobs:
            asked.append(job.hyper["learning_rate"])
            off = abs(np.log2(job.hyper["learning_rate"] / best))
            losses = [9.0, float(off)]
            found.append(job.as_json() | {"train": losses, "validation": losses})
        return found

    hyper = {"learning_rate": 1.0}
    line = {"contender": "adamw", "settings": "", "trial": "t", "hyper": hyper}
    for beyond, expected in ((False, ()), (True, further)):
        asked.clear()
        found = plan.at_best_rates(BOWL, {"a": line}, run, beyond=beyond)
        assert asked == [*plan.FACTORS, *expected]
        rate = found["a"]["hyper"]["learning_rate"]
        assert rate == (best if beyond else np.clip(best, 0.5, 2))


def test_the_cost_counts_what_is_run(finished):
    planned, _, path, _ = finished
    lines = read_results(path)
    for name, whole in planned.runs(BOWL).items():
        own = {x.name for x in planned.arms[name]}
        found = [x for x in lines if x["contender"] in own and "wider" not in x["trial"]]
        found = [x for x in found if x["steps"] <= 20]
        assert sum(x["steps"] for x in found) / 20 == pytest.approx(whole)


PARAMS: Any = {
    "attention": {"query": {"kernel": jnp.ones((8, 2, 4))}, "out": {"kernel": jnp.ones((2, 4, 8))}},
    "embedding": {"embedding": jnp.ones((12, 8))},
    "expand": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)},
    "head": {"kernel": jnp.ones((8, 12))},
}


def _step(contender: Contender) -> Any:
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
    hyper = {"learning_rate": 0.1, "weight_decay": 0.0, "beta": 0.9, "b2": 0.99}
    optimizer = contender.build(hyper, 0.1)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    return gradients, updates


@pytest.mark.parametrize("name", CONTENDERS)
def test_arms_move_the_same_leaves_by_like_sizes(name):
    _, updates = _step(CONTENDERS[name])
    first = 0.1 if name in ("adamw", "muon-plain") else 0.14737  # of Adam, Nesterov's
    kernel, head = updates["expand"]["kernel"], updates["head"]["kernel"]
    size = first if name.startswith("adamw") else 0.02
    assert jnp.sqrt(jnp.mean(kernel**2)) == pytest.approx(size, rel=0.3)
    np.testing.assert_allclose(jnp.abs(head), first, rtol=1e-3)


def _sigmas(update: Any, rows: int) -> np.ndarray:
    return np.linalg.svd(np.asarray(update).reshape(rows, -1), compute_uv=False)


def test_controls_by_svd_have_the_singular_values_that_they_name():
    gradients, updates = _step(CONTROLS["svd-sign"])
    query = _sigmas(updates["attention"]["query"]["kernel"], 8)
    np.testing.assert_allclose(query, query[0], rtol=1e-4)
    _, updates = _step(CONTROLS["svd-root"])
    before = _sigmas(gradients["expand"]["kernel"], 8)
    after = _sigmas(updates["expand"]["kernel"], 8)
    np.testing.assert_allclose(after / after[0], np.sqrt(before / before[0]), rtol=1e-4)
    _, updates = _step(CONTROLS["random-spectrum"])
    assert np.std(_sigmas(updates["attention"]["out"]["kernel"], 8)) > 0
    for control in ("svd-sign", "svd-root", "random-spectrum"):
        _, updates = _step(CONTROLS[control])
        for leaf in (updates["expand"]["kernel"], updates["attention"]["query"]["kernel"]):
            assert jnp.sqrt(jnp.mean(leaf**2)) == pytest.approx(0.02, rel=1e-3)


def test_a_random_spectrum_is_drawn_anew_in_each_step():
    optimizer: Any = by_svd(lambda sigma, key: jax.random.uniform(key, sigma.shape))
    leaf = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)}
    first, state = optimizer.update(leaf, optimizer.init(leaf), leaf)
    second, _ = optimizer.update(leaf, state, leaf)
    assert jnp.abs(first["kernel"] - second["kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "spectral"),
    [
        ("spectral", {"query", "out", "expand"}),
        ("attention", {"query", "out"}),
        ("feed-forward", {"expand"}),
        ("everything", {"query", "out", "expand", "head", "embedding"}),
        ("muon-routing", {"expand", "head", "embedding"}),
    ],
)
def test_controls_of_leaves_take_those(name, spectral):
    _, updates = _step(CONTROLS[name])
    leaves = {
        "query": updates["attention"]["query"]["kernel"],
        "out": updates["attention"]["out"]["kernel"],
        "expand": updates["expand"]["kernel"],
        "head": updates["head"]["kernel"],
        "embedding": updates["embedding"]["embedding"],
    }
    # Of Adam's first step all entries have one size.
    found = {name for name, x in leaves.items() if np.ptp(np.abs(np.asarray(x))) > 1e-3}
    assert found == spectral


def test_circuits_of_a_degree_come_nearer_to_the_sign():
    def spread(name):
        _, updates = _step(CONTROLS[name])
        sigma = _sigmas(updates["expand"]["kernel"], 8)
        return sigma.std() / sigma.mean()

    spreads = [spread(f"degree-{n}") for n in (3, 7, 15, 31)]
    assert spreads[-1] < spreads[1] < spreads[0]
    assert spread("muon-cascade") < spread("one-upload")


def test_muon_takes_the_spectral_form_s_matrices():
    axes = jax.tree.leaves(matrix_axes(PARAMS), is_leaf=is_axes_or_none)
    _, updates = _step(arms.ARMS["muon"][0])
    # Of Adam's first step all entries have one size.
    moved = [np.ptp(np.abs(np.asarray(x))) > 1e-3 for x in jax.tree.leaves(updates)]
    assert moved == [x is not None for x in axes]


# Tasks


@pytest.mark.parametrize("name", [x for x in UNSEEN if x != "sources"])
def test_missing_data_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is missing; expected is .* of "):
        UNSEEN[name](tmp_path)


def test_sources_of_another_python_are_refused(monkeypatch):
    monkeypatch.setattr("experiments.workloads.unseen.SOURCES_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"expected is 0{64}, of CPython 3\.11\.7"):
        UNSEEN["sources"](Path())


def test_lengths_of_runs_are_whole_parts():
    for task in TASKS.values():
        for share in (*task.shares, 1.0):
            assert task.horizon * share % task.points == pytest.approx(0)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the data in {DATA}")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wikitext", "hwu64", "stories-wikitext"])
def test_tasks_train_and_their_splits_differ_in_what_is_evaluated_alone(name):
    workload, test = (UNSEEN[name](DATA, split) for split in ("validation", "test"))
    key = jax.random.key(0)
    (train, looked_at), (same, other) = workload.data(key), test.data(key)
    assert jax.tree.all(jax.tree.map(np.array_equal, train, same))
    assert not jax.tree.all(jax.tree.map(np.array_equal, looked_at, other))
    curves = jax.jit(
        lambda data: training_run(
            workload, lambda _: optax.adamw(1e-3), data, key, steps=4, points=1
        )
    )(workload.data(key))
    assert curves.validation_loss[1] < curves.validation_loss[0]


# What the runs say


def _line(contender, task="wikitext", seed=0, steps=1000, loss=1.0, phase="final"):
    hyper = {"learning_rate": 0.01, "weight_decay": 0.1, "warmup": 0.1, "b2": 0.99}
    return {
        "phase": phase,
        "workload": task,
        "contender": contender,
        "settings": "",
        "trial": f"{contender} 0",
        "hyper": hyper,
        "seed": seed,
        "steps": steps,
        "points": 2,
        "train": [1.0, 1.0],
        "validation": [3.0, 2.0, loss],
    }


def _study(rng=None, **losses):
    """Final runs of 20 seeds, by contender, of both lengths of the spectral form."""
    rng = np.random.default_rng(0) if rng is None else rng
    noise = rng.normal(scale=0.01, size=20)
    lines = []
    for contender, loss in losses.items():
        steps = (600, 750, 1000) if contender.startswith("spectral") else (1000,)
        for n in steps:
            lines += [
                _line(contender, seed=s, steps=n, loss=loss + noise[s] + 0.03 * (1000 - n) / 400)
                for s in reversed(range(20))
            ]
    return effects.Study(lines, seconds={"wikitext": {"adamw": [1, 2], "spectral": [1.2, 2.4]}})


def test_differences_are_those_of_numpy_in_pairs():
    study = _study(**{"adamw-nesterov": 1.0, "muon": 0.98, "spectral": 0.96})
    found = effects.against_adamw(study, ["wikitext"])

    def losses(contender, steps):
        lines = [x for x in study.lines if (x["contender"], x["steps"]) == (contender, steps)]
        return np.array([x["validation"][-1] for x in sorted(lines, key=lambda x: x["seed"])])

    for share, steps in ((0.6, 600), (0.75, 750), (1.0, 1000)):
        change = 100 * (losses("spectral", steps) / losses("adamw-nesterov", 1000) - 1)
        assert found["wikitext", share].change.mean == pytest.approx(change.mean())
    muon = effects.muon_effects(study, ["wikitext"])["wikitext"]
    change = 100 * (losses("spectral", 1000) / losses("muon", 1000) - 1)
    assert muon.change.mean == pytest.approx(change.mean())
    assert effects.share_reached(found, "wikitext") == 0.6
    assert effects.step_ratio(study, "wikitext") == pytest.approx(1.2)
    assert "| 1.20 | 0.72 |" in tables.adamw_table(study, ["wikitext"])


def test_the_bars_are_met_by_what_is_better_alone():
    good = tables.bars(_study(adamw=1.0, muon=0.98, spectral=0.96), ["wikitext"])
    assert [row.endswith("| yes |") for row in good.splitlines()[2:]] == [
        False,  # one task is not two
        False,
        True,
        False,
        True,
    ]
    bad = tables.bars(_study(adamw=1.0, muon=0.98, spectral=1.02), ["wikitext"])
    assert not any(row.endswith("| yes |") for row in bad.splitlines()[2:])


def test_runs_that_are_no_pairs_are_refused():
    study = _study(adamw=1.0, muon=0.98, spectral=0.96)
    cut = effects.Study([x for x in study.lines if (x["contender"], x["seed"]) != ("muon", 3)])
    with pytest.raises(ValueError, match=r"20 and 19 runs are no pairs"):
        effects.muon_effects(cut, ["wikitext"])


def test_what_diverged_is_counted():
    lines = [_line("adamw", phase="robustness", seed=i, loss=x) for i, x in enumerate((1, 5, 2))]
    lines += [_line("muon", phase="robustness"), _line("spectral", phase="robustness")]
    table = tables.divergence_table(effects.Study(lines), ["wikitext"])
    assert "| AdamW | 1 of 3 | 1 of 3 |" in table
    losses = {"spectral": (1, 1), "svd-root": (1, 5)}
    controls = [_line(x, seed=i, loss=loss) for x in losses for i, loss in enumerate(losses[x])]
    rows = tables.controls_table(effects.Study([], controls), "wikitext").splitlines()[2:]
    assert [row.split(" | ")[-1] for row in rows] == ["0 of 2 |", "1 of 2 |"]


def test_a_step_s_time_leaves_out_what_is_no_step(finished, monkeypatch):
    _, chosen, _, _ = finished

    class Timed(Bench):
        def run(self, jobs):
            seconds = 5 + (0.1 if jobs[0].contender == "base" else 0.2) * jobs[0].steps
            return [{"seconds": seconds}]

    found = measure.step_seconds([BOWL], {"bowl": chosen}, Timed(quadratic, {}))
    assert found["bowl"]["base"] == pytest.approx([0.1] * measure.ROUNDS)
    assert found["bowl"]["better"] == pytest.approx([0.2] * measure.ROUNDS)


def test_singular_values_along_a_training_are_those_of_the_change():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)

    def loss(params, data, key=None):
        return jnp.sum(params["kernel"] * leaf)

    workload = Workload(
        "plane", "mlp", lambda key: {"kernel": jnp.zeros((4, 6))}, lambda key: (), loss, loss
    )
    descent = Contender("sgd", "SGD", lambda hyper, schedule: optax.sgd(hyper["learning_rate"]))
    hyper = {"learning_rate": 0.5, "warmup": 0.0}
    found = measure.spectra(workload, descent, hyper, leaf="kernel", steps=4, looks=(1, 3))
    sigma = np.linalg.svd(np.asarray(leaf), compute_uv=False)
    np.testing.assert_allclose(found, [0.5 * sigma, 1.5 * sigma], rtol=1e-4)


def test_each_optimizers_loss_stands_at_its_own_learning_rate():
    def content(rate, own, adamw, spectral):
        arms = {"adamw": adamw, "spectral": spectral}
        return {
            "arguments": {"learning_rate": rate, "spectral_learning_rate": own},
            "arms": {x: {"summary": {"test_nll": {"mean": loss}}} for x, loss in arms.items()},
        }

    found = larger_model.tuning_table(
        [content(1e-4, None, 0.9, 1.1), content(1e-4, 1e-3, 0.9, 1.05)]
    )
    assert found.splitlines()[2:] == ["| 0.0001 | 0.9000 | 1.1000 |", "| 0.001 | – | 1.0500 |"]


def _between(path, begin):
    _, found, rest = path.read_text().partition(begin)
    content, end, _ = rest.partition(report.END)
    assert found and end
    return content.strip()


def test_the_record_and_the_findings_are_what_the_stored_runs_say():
    stored, records = HERE / "results" / "spectral_study", HERE / "records"
    study = read(stored)
    text = _between(records / "spectral_study.md", report.BEGIN)
    larger = larger_model.sections(stored)
    assert larger
    for part in [*tables.sections(study, CLAIMS, OTHERS), *larger]:
        assert part in text
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures and all((records / file).is_file() for file in pictures)
    begin = report.BEGIN.replace("results", "results of the spectral study")
    quoted = _between(HERE.parent / "docs" / "findings.md", begin)
    assert quoted == tables.findings(study, CLAIMS, OTHERS)
    assert sum(file.stat().st_size for file in stored.iterdir()) < 1e6
