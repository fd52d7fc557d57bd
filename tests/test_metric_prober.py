"""Measuring a metric beside the training loop: what gets into the state, and what does not.

As a script, this file is one of two processes.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest
from flax import nnx
from jax.experimental import multihost_utils

import qsgd_jax as qsgd
from qsgd_jax._src.remote import beside
from tests import meshes

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def made(monkeypatch):
    """The module of the metrics, importable here and in the prober's process."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.setattr(beside, "_SHARE_OF_TIME", 1.0)  # or it would look less often
    import made_metrics  # pyright: ignore[reportMissingImports]

    return made_metrics


def _weights(seed=0, dtype: Any = np.float32):
    return jnp.asarray(np.random.default_rng(seed).uniform(0, 3, (1, 2, 3)), dtype)


def _metric_of(state):
    return [np.asarray(g) for g in optax.tree.get(state, "metric")]


def _until(condition, act, seconds=60):
    """Act until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        act()
        time.sleep(0.01)
        assert time.monotonic() < end


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_state_gets_the_metric_at_the_parameters_of_the_question(made, dtype, request):
    if dtype is np.float64:
        request.getfixturevalue("float64")
    study = made.energy()
    tx = qsgd.scale_by_metric(study, 1e-2)
    params = [{"weights": _weights(seed, dtype)} for seed in range(2)]
    with qsgd.MetricProber(made.energy, max_jobs=10, refresh_every=5) as prober:
        state = prober.wait(tx.init(params[0]), params[0])
        first, second = (study.measure(x)[0] for x in params)
        np.testing.assert_allclose(
            _metric_of(state)[0], first, atol=1e-12 if dtype is np.float64 else 1e-7
        )
        assert state.metric[0].dtype == dtype
        kept = jax.jit(tx.update)(params[0], state, params[0])[1]
        np.testing.assert_array_equal(_metric_of(kept)[0], _metric_of(state)[0])
        for _ in range(4):  # not yet due
            kept = prober.refresh(kept, params[1])
        assert prober.accounting.jobs == 1

        def refresh():
            nonlocal kept
            kept = prober.refresh(kept, params[1])

        _until(lambda: prober.accounting.accepted == 2, refresh)
    # Half of it is what was there: `decay`.
    expected = np.asarray(first + second, dtype) / 2
    np.testing.assert_allclose(_metric_of(kept)[0], expected, atol=1e-6)


def test_of_several_circuits_with_data_beside_classical_weights_in_flax(made):
    class Model(nnx.Module):
        def __init__(self):
            self.before = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
            self.first = nnx.Dict(weights=nnx.Param(_weights(0)))
            self.second = nnx.Dict(weights=nnx.Param(_weights(1)))

    def labels(params):
        def label(path, _):
            name = jax.tree_util.keystr(path[:1], simple=True)
            return "classical" if name == "before" else "quantum"

        return jax.tree_util.tree_map_with_path(label, params)

    study, model = made.blocks(), Model()
    tx: dict = {"quantum": qsgd.scale_by_metric(study), "classical": optax.adam(0.1)}
    optimizer = nnx.Optimizer(model, optax.partition(tx, labels), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    data = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    batch = {"first": data, "second": jnp.asarray(2 * data)}
    with qsgd.MetricProber(made.blocks, max_jobs=3) as prober:
        optimizer.opt_state = prober.wait(optimizer.opt_state, params, batch)
    own = {"first": {"weights": _weights(0)}, "second": {"weights": _weights(1)}}
    found = jax.tree.leaves(nnx.state(optimizer), is_leaf=lambda x: False)
    found = [x for x in found if x.shape == (6, 6)]
    assert len(found) == 2
    for one, g in zip(found, study.measure(own, batch), strict=True):
        np.testing.assert_allclose(one, g, atol=1e-6)
    nnx.jit(lambda model, optimizer: optimizer.update(model, params, batch=batch))(model, optimizer)


def test_a_wait_does_not_take_what_was_asked_before(made):
    study, tx = made.energy(), qsgd.scale_by_metric(made.energy())
    params = [{"weights": _weights(seed)} for seed in range(2)]
    with qsgd.MetricProber(made.energy, max_jobs=9, refresh_every=3) as prober:
        state = prober.refresh(tx.init(params[0]), params[0])  # asked, and not yet answered
        assert prober.accounting.jobs == 1 and prober.accounting.accepted == 0
        state = prober.wait(state, params[1])
        assert prober.accounting.accepted == 2
    expected = (study.measure(params[0])[0] + study.measure(params[1])[0]) / 2  # `decay`
    np.testing.assert_allclose(_metric_of(state)[0], expected, atol=1e-6)


def test_after_a_failure_the_next_attempt_is_not_a_whole_age_away(made, monkeypatch):
    monkeypatch.setenv("FAULTS", "fine,raise,fine")
    params = {"weights": _weights()}
    with qsgd.MetricProber(made.faulty, max_jobs=9, refresh_every=50, backoff=0.01) as prober:
        state = prober.wait(qsgd.scale_by_metric(made.energy()).init(params), params)
        for _ in range(50):
            state = prober.refresh(state, params)
        calls = 0

        def refresh():
            nonlocal state, calls
            state, calls = prober.refresh(state, params), calls + 1

        _until(lambda: prober.accounting.failed == 1, refresh)
        calls = 0
        _until(lambda: prober.accounting.jobs == 3, refresh)
        assert calls < 50


def test_parameters_that_are_not_found_or_twice_are_told(made):
    tx = qsgd.scale_by_metric(made.energy())
    state = tx.init({"weights": _weights()})
    with qsgd.MetricProber(made.energy, max_jobs=9) as prober:
        for params, words in (
            ({"kernel": _weights()}, "params have no leaf of circuits"),
            ({"a": {"weights": 1.0}, "b": {"weights": 1.0}}, "'a.weights', 'b.weights'"),
        ):
            with pytest.raises(ValueError, match=words):
                prober.wait(state, params)


def test_measured_metrics_count_their_shots(made):
    params, batch = {"weights": _weights()}, np.zeros((4, 2), np.float32)
    state = qsgd.scale_by_metric(made.measured(), 0.1).init(params)
    with qsgd.MetricProber(made.measured, max_jobs=3) as prober:
        state = prober.wait(state, params, batch)
    study = made.measured()
    with qml.Tracker(study.devices[0]) as seen:
        study.measure(params, batch)
    assert prober.accounting.shots == seen.totals["shots"] >= 3 * 4 * 100
    exact = qsgd.FubiniStudy(made._qnode(), "block-diag").measure(params, batch)
    assert 0 < np.abs(_metric_of(state)[0] - exact[0]).max() < 0.2


def test_nothing_of_what_fails_gets_into_the_state(made, monkeypatch, caplog, capfd):
    caplog.set_level(logging.INFO, "qsgd_jax")
    faults = ["raise", "NaN", "shape", "skewed", "negative"]
    monkeypatch.setenv("FAULTS", ",".join(["fine", *faults, "hang", "fine"]))
    params = {"weights": _weights()}
    tx = qsgd.scale_by_metric(made.energy(), 0.1)
    with qsgd.MetricProber(made.faulty, max_jobs=9, backoff=0.01, cool_down=0.02) as prober:
        state = prober.wait(tx.init(params), params)
        first = _metric_of(state)[0]

        def refresh():
            nonlocal state
            state = prober.refresh(state, params)
            np.testing.assert_array_equal(_metric_of(state)[0], first)

        done = prober.accounting
        _until(lambda: done.failed + done.rejected == len(faults), refresh)
        assert (done.failed, done.rejected, done.accepted) == (1, 4, 1)
        prober._asker.end()  # its process; another begins anew
    assert "secret" not in caplog.text + "".join(capfd.readouterr())
    with pytest.raises(ValueError, match="is closed"):
        prober.refresh(state, params)


def test_what_hangs_is_given_up_and_a_spent_budget_said(made, monkeypatch):
    monkeypatch.setenv("FAULTS", "hang")
    params = {"weights": _weights()}
    state = qsgd.scale_by_metric(made.energy(), 0.1).init(params)
    with qsgd.MetricProber(made.faulty, max_jobs=1, backoff=0.01) as prober:
        prober._asker._policy = prober._asker._policy._replace(timeout=0.5)
        with pytest.raises(qsgd.ProbeError, match="budget is spent: 1 of max_jobs=1"):
            prober.wait(state, params)
        assert prober.accounting.timed_out == 1


def test_bad_arguments_are_refused_by_name(made):
    with pytest.raises(TypeError, match=r"metric=.*function without arguments"):
        qsgd.MetricProber(lambda: made.energy(), max_jobs=1)
    with pytest.raises(TypeError, match=r"metric='default\.qubit'"):
        qsgd.MetricProber("default.qubit", max_jobs=1)
    with pytest.raises(ValueError, match="metric='made_metrics:no_metric' could not be opened"):
        qsgd.MetricProber(made.no_metric, max_jobs=1)
    wrong = {"max_jobs": 0, "refresh_every": 0, "timeout": 0, "retries": -1, "on_failure": "shrug"}
    for name, value in wrong.items():
        arguments: dict[str, Any] = {"max_jobs": 1} | {name: value}
        with pytest.raises(ValueError, match=f"{name}="):
            qsgd.MetricProber(made.energy, **arguments)


def test_states_without_a_metric_and_traced_ones_are_refused(made):
    params = {"weights": _weights()}
    tx = qsgd.scale_by_metric(made.energy())
    with qsgd.MetricProber(made.energy, max_jobs=1) as prober:
        with pytest.raises(ValueError, match="opt_state holds 0 metrics"):
            prober.refresh(optax.adam(0.1).init(params), params)
        with pytest.raises(ValueError, match="opt_state holds 2 metrics"):
            prober.refresh(optax.chain(tx, tx).init(params), params)
        with pytest.raises(TypeError, match="between steps"):
            jax.jit(lambda state: prober.refresh(state, params))(tx.init(params))


# Two processes.


def _natural_steps():
    """Steps on two processes, or on one: of an exact metric in the step, replicated."""
    sys.path.insert(0, str(PLUGINS))
    import made_metrics  # pyright: ignore[reportMissingImports]

    mesh = jax.make_mesh((8,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    circuit = made_metrics.energy()._circuits[""].held.qnode
    tx = optax.chain(qsgd.scale_by_metric(qsgd.FubiniStudy(circuit), 0.1), optax.sgd(0.1))
    params = jax.device_put({"weights": np.asarray(_weights())}, everywhere)
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    return {"params": params, "metric": optax.tree.get(state, "metric")}


def _prober_of_two():
    import made_metrics  # pyright: ignore[reportMissingImports]

    mesh = jax.make_mesh((8,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put({"weights": np.asarray(_weights())}, everywhere)
    state = jax.jit(qsgd.scale_by_metric(made_metrics.energy()).init)(params)
    with qsgd.MetricProber(made_metrics.energy, max_jobs=2) as prober:
        assert (prober._asker._process is not None) == (jax.process_index() == 0)
        for _ in range(2):  # the second is mixed with the first
            state = prober.wait(state, params)
    return np.asarray(optax.tree.get(state, "metric")[0].addressable_data(0))


@pytest.mark.slow
def test_two_processes_train_as_one(made, tmp_path):
    seen = meshes.seen_by_two_processes(__file__, tmp_path)
    expected = _natural_steps()
    np.testing.assert_allclose(
        seen["['params']['weights']"], expected["params"]["weights"], rtol=1e-5, atol=1e-5
    )
    (g,) = made.energy().measure({"weights": _weights()})
    np.testing.assert_allclose(seen["['probed']"][:6], g, atol=1e-6)


if __name__ == "__main__":
    with meshes.one_of_two_processes(*sys.argv[1:]) as write:
        found = _natural_steps()
        probed = multihost_utils.process_allgather(_prober_of_two())
        np.testing.assert_array_equal(probed[0], probed[1])
        write(found | {"probed": probed[0]})
