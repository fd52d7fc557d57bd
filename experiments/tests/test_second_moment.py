"""The screening of a second moment: its record is made from the stored runs."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qsgd_jax as qsgd
from experiments.engine.plan import Plan
from experiments.spectral import second_moment

DECAY = 0.99  # the package's
ROOT = Path(__file__).parents[2]
STORED = ROOT / "experiments" / "results" / "second_moment"
RECORD = ROOT / "experiments" / "records" / "second_moment.md"


def test_the_record_is_made_from_the_stored_runs(tmp_path):
    written = tmp_path / RECORD.name
    written.write_text(RECORD.read_text())
    second_moment.main(["--output", str(STORED), "--report", str(written)])
    assert written.read_text() == RECORD.read_text()


def test_decay_rates_are_chosen_over_both_tasks_and_learning_rates_for_each():
    asked: list[Any] = []

    def loss(job: Any) -> float:
        factor = job.hyper["learning_rate"] / second_moment.BEST[job.workload]["learning_rate"]
        best = 0.7 if job.workload == "characters" else 1.4
        return 1 + abs(factor - best) + abs(job.hyper["decay"] - 0.95)

    def run(jobs: Any, label: str) -> list[dict[str, Any]]:
        del label
        jobs = list(jobs)
        asked.extend(jobs)
        return [job.as_json() | {"train": [], "validation": [9.0, loss(job)]} for job in jobs]

    plan = Plan(
        dict.fromkeys(second_moment.TASKS, 20),
        second_moment.CONTENDERS,
        seeds=3,
        tuning_seeds=2,
        shares=(1.0,),
    )
    second_moment.compare(plan, run)
    finals = [job for job in asked if job.phase == "final"]
    assert len(finals) == 2 * 3 * 3
    for job in finals:
        decay = 0 if job.contender == "none" else 0.95
        factor = 0.7 if job.workload == "characters" else 1.4
        assert job.trial == f"{decay:g} x {factor:g}"


@pytest.mark.parametrize("form", ["none", "entry", "row"])
def test_steps_are_those_of_the_package_or_of_the_equation(form):
    rng = np.random.default_rng(0)
    params: Any = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in (("query", (6, 2, 4)), ("kernel", (4, 12)), ("bias", (3,)))
    }
    hyper = {"weight_decay": 0.1, "decay": DECAY}
    ours: Any = second_moment.CONTENDERS[form].build(hyper, 0.1)
    package: Any = qsgd.superpositional_muon(
        0.1,
        weight_decay=0.1,
        adam_weight_decay=0.1,
        second_moment="entry" if form == "entry" else None,
    )
    state, expected_state, second = ours.init(params), package.init(params), 0.0
    for _ in range(3):
        gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        updates, state = ours.update(gradients, state, params)
        expected, expected_state = package.update(gradients, expected_state, params)
        if form == "row":
            decayed = -0.1 * 0.1 * params["kernel"]
            o = np.asarray(expected["kernel"] - decayed, np.float64)
            second = DECAY * second + (1 - DECAY) * np.mean(o**2, axis=0)
            quotient = o / np.sqrt(second)
            quotient *= np.linalg.norm(o) / np.linalg.norm(quotient)
            expected = {"kernel": quotient + decayed}
        for name, value in expected.items():
            np.testing.assert_allclose(updates[name], value, rtol=1e-4, atol=1e-6)
        params = jax.tree.map(jnp.add, params, updates)
