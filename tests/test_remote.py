"""Probing beside the training loop: a device that fails, a budget, a clock, other processes."""

import datetime
import logging
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest
from flax import nnx

import qsgd_jax as qsgd
from qsgd_jax._src import devices, fourier, refreshable
from qsgd_jax._src.remote import asker, beside
from qsgd_jax._src.remote import prober as prober_module
from qsgd_jax._src.remote.answers import Probe
from qsgd_jax._src.remote.process import EndedError, WorkerProcess

PLUGINS = Path(__file__).parent / "plugins"
FAULTS = {"raise", "NaN", "wrong shape", "disconnect", "hang"} | {
    f"{what} in another order" for what in ("wires", "settings")
}
CIRCUIT = qsgd.Circuit(2, 1)
SHOTS = 1000
SHOTS_A_JOB = SHOTS * Probe(CIRCUIT, SHOTS).n_settings
SURROGATE = qsgd.probe(CIRCUIT)
OTHER = qsgd.probe(qsgd.Circuit(2, 1, seed=1))
OPTIMIZER = qsgd.superpositional_adamw(0.01, surrogate=qsgd.refreshable(SURROGATE))
PARAMS = {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3), "bias": jnp.ones(3)}


@jax.jit
def _step(params, state):
    gradients = jax.tree.map(lambda p: jnp.sin(3 * p), params)
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def _held(state, name):
    return np.asarray(optax.tree.get(state, name))


def _standard_errors():
    """Of the coefficients, by propagating the variance of each setting's answer."""
    grid = CIRCUIT.origin + fourier.probe_grid((CIRCUIT.uploads,) * CIRCUIT.n_qubits)
    exact = devices.run(CIRCUIT, devices.open_device("lightning.qubit", 2), grid)
    duals = [fourier.coefficients(np.outer(one, [1, 1]), (1, 1)) for one in np.eye(len(grid))]
    variances = (1 - exact**2)[..., None, None] / SHOTS
    return np.sqrt(sum(dual**2 * v for dual, v in zip(duals, variances, strict=True)))


# A device that fails, in a process of its own.


@pytest.fixture
def faulty_device(monkeypatch, tmp_path):
    """Install the plugin for this process and those it starts; `(fault) -> log of its jobs`."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.setenv("FAULTY_DEVICE_LOG", str(tmp_path / "jobs"))
    monkeypatch.setenv("FAULTY_DEVICE_TOKEN", SECRET)
    (tmp_path / "jobs").touch()
    qml.refresh_devices()

    def faults(which):
        monkeypatch.setenv("FAULTY_DEVICE", which)
        return lambda: (tmp_path / "jobs").read_text().splitlines()

    yield faults
    monkeypatch.undo()
    qml.refresh_devices()


SECRET = "d41d8cd98f00b204e9800998ecf8427e"


@pytest.mark.slow
def test_a_thousand_steps_beside_a_failing_device(faulty_device, monkeypatch, caplog, capfd):
    monkeypatch.setattr(beside, "_SHARE_OF_TIME", 1.0)  # or it would ask less often
    caplog.set_level(logging.INFO, "qsgd_jax")
    jobs, threads = faulty_device("all"), threading.active_count()
    errors = 5 * _standard_errors()
    params, state = PARAMS, OPTIMIZER.init(PARAMS)
    steps, tables = 0, []
    with qsgd.RemoteProber(
        "qsgd.faulty",
        CIRCUIT,
        probe_shots=SHOTS,
        refresh_every=10,
        max_jobs=40,
        timeout=15,
        backoff=0.01,
        cool_down=0.05,
    ) as prober:
        state = prober.wait(state)
        while steps < 1000 or not set(jobs()) >= FAULTS or not prober.accounting.timed_out:
            params, state = _step(params, state)
            state = prober.refresh(state)
            steps += 1
            time.sleep(0.01)
            if prober.accounting.accepted > len(tables):
                tables.append(_held(state, "table"))
            assert steps < 20_000
        worker = prober._asker._process
    done = prober.accounting
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert len(tables) >= 15
    for table in tables:
        assert (np.abs(table - SURROGATE.coefficients) <= errors).all()
    # Every job is accounted for; one may have been under way when the loop ended.
    ended = done.accepted + done.rejected + done.timed_out + done.failed
    assert 0 <= done.jobs - ended <= 1 and len(jobs()) <= done.jobs <= 40
    assert done.shots == done.jobs * SHOTS_A_JOB
    seen = [jobs().count(fault) for fault in ("raise", "disconnect", "wrong shape")]
    assert abs(done.failed - sum(seen)) <= 1 and done.timed_out == jobs().count("hang") == 1
    # Once per event.
    for text, count in (
        ("submitted", done.jobs),
        ("accepted", done.accepted),
        ("rejected:", done.rejected),
        ("timed out:", done.timed_out),
        ("failed:", done.failed),
    ):
        assert sum(text in message for message in caplog.messages) == count
    assert threading.active_count() == threads
    assert worker is None or worker._popen.poll() is not None
    # No secret anywhere.
    shown = capfd.readouterr()
    for text in (caplog.text, shown.out, shown.err, repr(prober), repr(prober.accounting)):
        assert SECRET not in text
    assert SECRET.encode() not in flax.serialization.to_bytes(state)


@pytest.mark.parametrize("fault", ["raise", "NaN", "wires in another order"])
def test_what_a_device_says_wrong_never_gets_into_the_state(faulty_device, caplog, fault):
    jobs, state = faulty_device(fault), OPTIMIZER.init(PARAMS)
    options = {"retries": 1, "backoff": 0.01, "max_jobs": 10, "probe_shots": SHOTS}
    with qsgd.RemoteProber("qsgd.faulty", CIRCUIT, **options) as prober:
        with pytest.raises(qsgd.ProbeError, match="job 2 ") as caught:
            prober.wait(state)
        assert jobs() == [fault] * 2 and prober.accounting.accepted == 0
        assert SECRET not in str(caught.value) + caplog.text
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(prober)


PROGRAM = """
import os, signal, sys, time, qsgd_jax as qsgd
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs behind
sys.path.insert(0, {plugins!r})
import pennylane as qml
qml.refresh_devices()
circuit = qsgd.Circuit(2, 1)
surrogate = qsgd.refreshable(qsgd.probe(circuit))
state = qsgd.scale_by_superposition(0.5, surrogate).init(None)
prober = qsgd.RemoteProber("qsgd.faulty", circuit, probe_shots=100, max_jobs=9)
state = prober.refresh(state)
while not os.path.getsize(os.environ["FAULTY_DEVICE_LOG"]):
    time.sleep(0.01)
print(prober._asker._process._popen.pid, flush=True)
{rest}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rest", "sent"),
    [
        ("", None),
        ("prober.wait(state)", signal.SIGINT),
        ("while True: state = prober.refresh(state)", signal.SIGINT),
        ("time.sleep(600)", signal.SIGKILL),
    ],
    ids=["exit", "Ctrl-C while waiting", "Ctrl-C while training", "killed"],
)
def test_a_hanging_job_keeps_nobody_alive(faulty_device, rest, sent):
    faulty_device("hang")
    program = PROGRAM.format(plugins=str(PLUGINS), rest=rest)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as trainer:
        assert trainer.stdout is not None
        try:
            worker = int(trainer.stdout.readline())
            if sent is not None:
                trainer.send_signal(sent)
            trainer.communicate(timeout=60)
        finally:
            trainer.kill()
    assert trainer.returncode == {None: 0, signal.SIGINT: -2, signal.SIGKILL: -9}[sent]
    until = time.monotonic() + 60
    while _runs(worker):
        assert time.monotonic() < until, "the device's process outlived the training"
        time.sleep(0.05)


def _runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_clients_that_start_processes_print_and_ask(faulty_device):
    jobs = faulty_device("none")
    import faulty_device as plugin  # pyright: ignore[reportMissingImports]

    with qsgd.RemoteProber(plugin.with_helpers, CIRCUIT, probe_shots=100, max_jobs=1) as prober:
        prober.wait(OPTIMIZER.init(PARAMS))
        (pids,) = jobs()
        assert _runs(int(pids.split()[0]))
    until = time.monotonic() + 30
    while any(_runs(int(pid)) for pid in pids.split()):
        assert time.monotonic() < until, "what the device's client started outlived it"
        time.sleep(0.05)


# What is wrong with the device is said when the prober is made.


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("no_credentials", ["PermissionError in faulty_device", "credentials"]),
        ("no_device", ["TypeError"]),
        ("two_wires", ["2 wires", "n_qubits=3"]),
        ("exact_only", ["DeviceError"]),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_before_the_first_job(faulty_device, device, words):
    faulty_device("none")
    import faulty_device as plugin  # pyright: ignore[reportMissingImports]

    circuit = qsgd.Circuit(3 if device == "two_wires" else 2, 1)
    with pytest.raises(ValueError) as caught:
        qsgd.RemoteProber(getattr(plugin, device), circuit, probe_shots=SHOTS, max_jobs=1)
    for word in [f"device='faulty_device:{device}'", *words]:
        assert word in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"device": "qiskit.remot"}, ValueError, ["not installed", "pip install pennylane-qiskit"]),
        ({"device": qml.device("default.qubit", wires=2)}, TypeError, ["device=", "function"]),
        ({"device": lambda: None}, TypeError, ["device=", "function"]),
        ({"circuit": 4}, TypeError, ["circuit=4"]),
        ({"probe_shots": None}, ValueError, ["probe_shots=None", "target_standard_error=None"]),
        ({"target_standard_error": 0.01}, ValueError, ["probe_shots=1000", "0.01"]),
        ({"probe_shots": 99}, ValueError, ["probe_shots=99", "100"]),
        ({"probe_shots": 1e3}, TypeError, ["probe_shots=1000.0"]),
        ({"probe_shots": None, "target_standard_error": 0.2}, ValueError, ["0.2", "0.1"]),
        ({"probe_shots": None, "target_standard_error": "1"}, TypeError, ["'1'"]),
        ({"max_jobs": 0}, ValueError, ["max_jobs=0"]),
        ({"max_jobs": True}, TypeError, ["max_jobs=True"]),
        ({"max_shots": SHOTS_A_JOB - 1}, ValueError, ["too small for one probe", "20000"]),
        ({"probe_shots": 10**8 * 3}, ValueError, ["probe_shots=300000000"]),
        (
            {"probe_shots": 10**8, "circuit": qsgd.Circuit(4)},
            ValueError,
            ["too small for one probe", "4294967295"],
        ),
        ({"refresh_every": 0}, ValueError, ["refresh_every=0"]),
        ({"refresh_every": datetime.timedelta(0)}, ValueError, ["refresh_every=0.0"]),
        ({"timeout": -1}, ValueError, ["timeout=-1"]),
        ({"timeout": None}, TypeError, ["timeout=None"]),
        ({"backoff": float("nan")}, ValueError, ["backoff=nan"]),
        ({"retries": -1}, ValueError, ["retries=-1"]),
        ({"on_failure": "ignore"}, ValueError, ["on_failure='ignore'", "'hold'", "'raise'"]),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, dict) else "",
)
def test_bad_arguments_are_refused(monkeypatch, changed, error, words):
    monkeypatch.setattr(asker, "WorkerProcess", None)  # nothing is started
    given = {"device": "default.qubit", "circuit": CIRCUIT, "max_jobs": 1, "probe_shots": SHOTS}
    with pytest.raises(error) as caught:
        qsgd.RemoteProber(**(given | changed))
    for word in words:
        assert word in str(caught.value)


def test_traced_angles_are_refused(monkeypatch):
    monkeypatch.setattr(asker, "WorkerProcess", None)
    with pytest.raises(ValueError, match="concrete angles"):
        jax.jit(
            lambda w: qsgd.RemoteProber(
                "default.qubit", qsgd.Circuit(2, 1, angles=w), probe_shots=SHOTS, max_jobs=1
            )
        )(jnp.zeros((1, 2, 2)))


# When it asks and what it does with answers: a scripted device, and a clock that is set.


class _Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def time(self):
        return self.now

    monotonic = time

    def sleep(self, seconds):
        self.now += seconds


class _Script:
    """What the device will do: seconds to an answer, an exception's name, None for silence."""

    def __init__(self, clock, *acts):
        self.clock, self.acts, self.submitted, self.started = clock, list(acts), [], 0
        probe = Probe(CIRCUIT, SHOTS)
        exact = devices.run_settings(
            CIRCUIT, devices.open_device("lightning.qubit", 2), probe.encoding, probe.angles, None
        )
        self.answers = exact.tolist()

    def process(self, specification):
        assert specification["shots"] == SHOTS
        self.started += 1
        return _ScriptedProcess(self)


class _ScriptedProcess:
    def __init__(self, script):
        self.script, self.ready, self.message, self.ended = script, 0.0, None, False

    def send(self, message):
        clock = self.script.clock
        if message["job"] == 0:
            return
        self.script.submitted.append(clock.now)
        act = self.script.acts.pop(0) if self.script.acts else 0.0
        self.ready = clock.now + (act if isinstance(act, float) else 0)
        answers = self.script.answers
        if act is None:
            self.ready = float("inf")
        elif act == "raise":
            self.message = {"failed": "ConnectionError in client, line 1"}
        elif act == "end":
            self.message = None
        elif act == "NaN":
            self.message = {"answers": (np.nan * np.array(answers)).tolist()}
        else:
            self.message = {"answers": answers}

    def receive(self):
        assert not self.ended
        if self.script.clock.now < self.ready:
            return None
        if self.message is None:
            raise EndedError("its process ended with exit code 3")
        return self.message

    def wait(self, seconds):
        return {"wires": 2}

    def end(self):
        self.ended = True


@pytest.fixture
def scripted(monkeypatch):
    """`(*acts, **options) -> prober, script, clock` without any process."""
    clock = _Clock()
    for module in (beside, prober_module, asker):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(asker.random, "uniform", lambda low, high: 1.0)
    put = jax.device_put  # of the age, which else might be seen a step later
    monkeypatch.setattr(jax, "device_put", lambda *a, **k: jax.block_until_ready(put(*a, **k)))

    def make(*acts, **options):
        script = _Script(clock, *acts)
        monkeypatch.setattr(asker, "WorkerProcess", script.process)
        given = {"probe_shots": SHOTS, "max_jobs": 100, "refresh_every": 10, "timeout": 50.0}
        return qsgd.RemoteProber("default.qubit", CIRCUIT, **(given | options)), script, clock

    return make


def _train(prober, state, steps, clock=None, seconds=1.0):
    for _ in range(steps):
        _, state = _step(PARAMS, state)
        state = prober.refresh(state)
        if clock is not None:
            clock.now += seconds
    return state


def test_coefficients_start_as_the_simulator_s_and_are_replaced(scripted):
    prober, script, clock = scripted(5.0)
    state = OPTIMIZER.init(PARAMS)
    assert _held(state, "measured_at") == 0
    script.answers = (0.9 * np.array(script.answers)).tolist()
    state = prober.refresh(state)
    assert len(script.submitted) == 1 and _held(state, "jobs") == 1
    assert _held(state, "shots") == prober.accounting.shots == SHOTS_A_JOB
    asked = clock.now
    state = _train(prober, state, 5, clock)  # the answer comes when five steps were taken
    np.testing.assert_allclose(_held(state, "table"), SURROGATE.coefficients, atol=1e-7)
    state = prober.refresh(state)
    np.testing.assert_allclose(_held(state, "table"), 0.9 * SURROGATE.coefficients, atol=1e-7)
    assert _held(state, "measured_at") == int(asked) and _held(state, "age") == 5
    assert prober.refresh(state) is state
    state = _train(prober, state, 4, clock)
    assert len(script.submitted) == 1 and _held(state, "age") == 9
    state = _train(prober, state, 1, clock)
    assert len(script.submitted) == 2  # at an age of ten
    assert prober.accounting.accepted == 1


def test_wait_is_for_the_first_answer_only(scripted):
    prober, script, clock = scripted(30.0)
    before = clock.now
    state = prober.wait(OPTIMIZER.init(PARAMS))
    assert clock.now - before >= 30 and _held(state, "measured_at") == int(before)
    assert prober.wait(state) is state and len(script.submitted) == 1
    # Another training run with the same prober takes the answer there is, and what was spent.
    state = _train(prober, state, 12)
    another = prober.wait(OPTIMIZER.init(PARAMS))
    assert len(script.submitted) == 2 and _held(another, "age") == 0
    np.testing.assert_array_equal(_held(another, "table"), _held(state, "table"))
    assert _held(another, "jobs") == 2 and _held(another, "shots") == 2 * SHOTS_A_JOB


def test_what_was_spent_is_never_lost_to_the_state(scripted):
    """Also by those who catch an error, and those who go back to an earlier state."""
    prober, _, clock = scripted(*["raise"] * 99, max_jobs=3, retries=9)
    state = OPTIMIZER.init(PARAMS)
    with pytest.raises(qsgd.ProbeError, match="budget"):
        prober.wait(state)
    state = _train(prober, state, 3, clock)
    assert prober.accounting.jobs == _held(state, "jobs") == 3
    prober, script, _ = scripted(max_jobs=3)
    with pytest.raises(qsgd.ProbeError, match="budget"):
        prober.wait(state)
    assert not script.submitted

    prober, _, clock = scripted()
    state = earlier = prober.wait(OPTIMIZER.init(PARAMS))
    state = _train(prober, state, 40, clock)
    assert _held(state, "jobs") > 1
    again = _train(prober, prober.wait(earlier), 1, clock)
    assert _held(again, "jobs") == prober.accounting.jobs >= _held(state, "jobs")


def test_the_age_is_that_of_the_state_however_late_it_is_seen(scripted, monkeypatch):
    """As where steps are computed long after they have been asked for."""
    prober, script, clock = scripted(*[5.0] * 9)
    state = prober.wait(OPTIMIZER.init(PARAMS))

    def put(age, *_, **__):
        return jax.block_until_ready(jnp.maximum(age - 3, 0))

    monkeypatch.setattr(jax, "device_put", put)  # the copy by which the prober sees the age
    for _ in range(40):
        asked, accepted = len(script.submitted), prober.accounting.accepted
        state = _train(prober, state, 1, clock)
        if len(script.submitted) > asked:
            assert _held(state, "age") == 13  # due at 10, seen 3 steps later
        if prober.accounting.accepted > accepted:
            assert _held(state, "age") == 5  # steps of a second each since it was asked for
    assert prober.accounting.accepted == 3


def test_refresh_every_so_many_seconds(scripted):
    prober, script, clock = scripted(refresh_every=datetime.timedelta(seconds=100))
    state = prober.wait(OPTIMIZER.init(PARAMS))
    state = _train(prober, state, 98, clock)
    assert len(script.submitted) == 1
    state = _train(prober, state, 4, clock)
    assert len(script.submitted) == 2


@pytest.mark.parametrize("every", [10, datetime.timedelta(seconds=10)], ids=str)
def test_a_resumed_run_asks_nothing_before_it_is_due(scripted, every):
    prober, script, clock = scripted(refresh_every=every)
    state = _train(prober, prober.wait(OPTIMIZER.init(PARAMS)), 4, clock)
    saved = flax.serialization.to_bytes(state)
    prober, script, _ = scripted(refresh_every=every, max_jobs=2)
    state = flax.serialization.from_bytes(OPTIMIZER.init(PARAMS), saved)
    assert prober.wait(state) is state
    state = _train(prober, state, 5, clock)
    assert not script.submitted and _held(state, "age") == 9
    state = _train(prober, state, 3, clock)
    assert len(script.submitted) == 1
    # The jobs of the run before belong to the budget.
    assert prober.accounting.jobs == _held(state, "jobs") == 2
    assert prober.accounting.shots == _held(state, "shots") == 2 * SHOTS_A_JOB
    _train(prober, state, 30, clock)
    assert len(script.submitted) == 1 and "max_jobs=2" in str(prober.accounting.last_problem)


@pytest.mark.parametrize("limit", [{"max_jobs": 3}, {"max_shots": 4 * SHOTS_A_JOB - 1}], ids=str)
def test_the_budget_is_never_exceeded_whatever_happens(scripted, caplog, limit):
    prober, script, clock = scripted(0.0, "raise", None, **limit)
    state = prober.wait(OPTIMIZER.init(PARAMS))
    _train(prober, state, 300, clock)
    done = prober.accounting
    assert len(script.submitted) == done.jobs == 3 and done.shots == 3 * SHOTS_A_JOB
    assert (done.accepted, done.failed, done.timed_out) == (1, 1, 1)
    assert sum("the budget is spent" in message for message in caplog.messages) == 1
    with pytest.raises(qsgd.ProbeError, match="budget"):
        scripted(None, max_jobs=1, retries=5)[0].wait(OPTIMIZER.init(PARAMS))


def test_attempts_back_off_until_the_breaker_opens_and_closes(scripted, caplog):
    acts = ["raise", "end", "NaN", "raise", "raise", 0.0, "raise", 0.0]
    prober, script, clock = scripted(*acts, retries=3, backoff=2.0, cool_down=60.0)
    _train(prober, OPTIMIZER.init(PARAMS), 1000, clock, 0.25)
    pauses = np.diff(script.submitted[:8])
    #        after 1, 2, 3 failures; open; half open; an answer, due again; closed: from the start
    np.testing.assert_allclose(pauses, [2.25, 4.25, 8.25, 60.25, 60.25, 2.75, 2.25], atol=0.3)
    done = prober.accounting
    assert (done.failed, done.rejected) == (5, 1)
    assert sum("breaker is open" in message for message in caplog.messages) == 2
    assert script.started == 2  # anew after the process had ended


def test_pauses_are_random_by_half(scripted, monkeypatch):
    drawn = []
    prober, script, clock = scripted("raise", retries=3, backoff=8.0)

    def uniform(low, high):
        drawn.append((low, high))
        return low

    monkeypatch.setattr(asker.random, "uniform", uniform)
    _train(prober, OPTIMIZER.init(PARAMS), 100, clock, 0.25)
    assert drawn == [(0.5, 1.5)]
    np.testing.assert_allclose(np.diff(script.submitted[:2]), 4.25, atol=0.3)


@pytest.mark.parametrize("on_failure", ["hold", "raise"])
def test_hold_or_raise_when_the_breaker_opens(scripted, on_failure):
    prober, _, clock = scripted(*["raise"] * 9, retries=1, on_failure=on_failure)
    state = OPTIMIZER.init(PARAMS)
    if on_failure == "raise":
        with pytest.raises(qsgd.ProbeError, match="ConnectionError"):
            _train(prober, state, 100, clock)
    else:
        state = _train(prober, state, 100, clock)
        np.testing.assert_allclose(_held(state, "table"), SURROGATE.coefficients, atol=1e-7)
        assert prober.accounting.failed == 2 and _held(state, "age") == 100
    with pytest.raises(qsgd.ProbeError, match="ConnectionError"):
        scripted(*["raise"] * 9, retries=1)[0].wait(OPTIMIZER.init(PARAMS))


def test_a_job_without_an_answer_ends_its_process(scripted):
    prober, script, clock = scripted(None, 0.0, backoff=1.0)
    state = OPTIMIZER.init(PARAMS)
    process = prober._asker._process
    state = _train(prober, state, 49, clock)
    assert not process.ended
    _train(prober, state, 6, clock)
    assert process.ended and script.started == 2 and prober.accounting.timed_out == 1


def test_a_prober_that_is_closed_asks_no_more(scripted):
    prober, script, _ = scripted()
    state = prober.wait(OPTIMIZER.init(PARAMS))
    prober.close()
    with pytest.raises(ValueError, match="is closed"):
        _train(prober, state, 20)
    assert len(script.submitted) == script.started == 1


def test_pauses_are_never_longer_than_the_breaker_s(scripted):
    prober, script, clock = scripted(*["raise"] * 99, retries=90, backoff=1.0, cool_down=8.0)
    _train(prober, OPTIMIZER.init(PARAMS), 400, clock, 0.25)
    assert 8 <= np.diff(script.submitted).max() < 9


def test_looking_costs_a_hundredth_of_the_time(scripted, monkeypatch):
    prober, _, clock = scripted()
    state, looks, find = prober.wait(OPTIMIZER.init(PARAMS)), [], refreshable.find

    def slow(state, kind):
        looks.append(clock.now)
        clock.now += 0.001
        return find(state, kind)

    monkeypatch.setattr(refreshable, "find", slow)
    _train(prober, state, 1000, clock, 0.01)
    np.testing.assert_allclose(np.diff(looks), 0.105, atol=0.01)


def test_inside_a_compiled_step_it_is_refused(scripted):
    prober = scripted()[0]
    state = prober.wait(OPTIMIZER.init(PARAMS))
    for call in (prober.refresh, prober.wait):
        with pytest.raises(TypeError, match="between steps"):
            jax.jit(call)(state)


def test_an_answer_that_cannot_be_read_is_a_failure():
    process = WorkerProcess({})
    process._received = b"no JSON\n"
    with pytest.raises(EndedError, match="cannot be read"):
        process.receive()
    process.end()


# In every kind of state.


def test_states_of_another_circuit_are_refused(scripted):
    prober, script, _ = scripted()
    for optimizer in (
        optax.adamw(0.1),
        qsgd.superpositional_adamw(0.1),
        qsgd.superpositional_adamw(0.1, surrogate=qsgd.refreshable(OTHER)),
    ):
        with pytest.raises(ValueError, match="none of this prober's circuit"):
            prober.refresh(optimizer.init(PARAMS))
    assert not script.submitted


def test_each_state_is_looked_at_for_itself(scripted):
    """The circuits of another optimizer may stand elsewhere in its state."""
    both = optax.chain(
        qsgd.scale_by_superposition(0.5, qsgd.refreshable(OTHER)),
        qsgd.scale_by_superposition(0.5, qsgd.refreshable(SURROGATE)),
    )
    prober, script, _ = scripted()
    script.answers = (0.9 * np.array(script.answers)).tolist()
    state = prober.wait(OPTIMIZER.init(PARAMS))
    assert prober.accounting.accepted == 1
    state = prober.wait(both.init(PARAMS))
    np.testing.assert_allclose(state[0].coefficients.table, OTHER.coefficients, atol=1e-7)
    np.testing.assert_allclose(state[1].coefficients.table, 0.9 * SURROGATE.coefficients, atol=1e-7)
    with pytest.raises(ValueError, match="none of this prober's circuit"):
        scripted()[0].refresh(
            qsgd.scale_by_superposition(0.5, qsgd.refreshable(OTHER)).init(PARAMS)
        )


def test_a_state_of_several_circuits(scripted):
    prober, script, _ = scripted()
    optimizer = optax.partition(
        {
            "kernel": qsgd.scale_by_superposition(0.5, qsgd.refreshable(OTHER)),
            "bias": optax.chain(
                optax.trace(0.9), qsgd.scale_by_superposition(0.5, qsgd.refreshable(SURROGATE))
            ),
        },
        {"kernel": "kernel", "bias": "bias"},
    )
    script.answers = (0.9 * np.array(script.answers)).tolist()
    state = prober.wait(optimizer.init(PARAMS))
    table = state.inner_states["bias"].inner_state[1].coefficients.table
    np.testing.assert_allclose(table, 0.9 * SURROGATE.coefficients, atol=1e-7)
    table = state.inner_states["kernel"].inner_state.coefficients.table
    np.testing.assert_allclose(table, OTHER.coefficients, atol=1e-7)


def test_states_that_are_wrapped_mapped_and_donated(scripted):
    prober, script, _ = scripted()
    script.answers = (0.9 * np.array(script.answers)).tolist()
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1, leaf + 2]), PARAMS)
    optimizer = optax.MultiSteps(OPTIMIZER, 2)
    state = prober.wait(jax.vmap(optimizer.init)(seeds))
    step = jax.jit(jax.vmap(optimizer.update), donate_argnums=(1,))
    for _ in range(24):
        _, state = step(seeds, state, seeds)
        state = prober.refresh(state)
    np.testing.assert_allclose(_held(state, "table"), [0.9 * SURROGATE.coefficients] * 3, atol=1e-7)
    assert len(script.submitted) == 2 and (_held(state, "age") == 2).all()


def test_the_state_of_a_flax_optimizer(scripted):
    prober, script, _ = scripted()
    script.answers = (0.9 * np.array(script.answers)).tolist()
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    optimizer.opt_state = prober.wait(optimizer.opt_state)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: (model(jnp.ones(3)) ** 2).sum())(model))

    for _ in range(12):
        step(model, optimizer)
        optimizer.opt_state = prober.refresh(optimizer.opt_state)
    held = optimizer.opt_state[0][1].coefficients
    np.testing.assert_allclose(held.table[...], 0.9 * SURROGATE.coefficients, atol=1e-7)
    assert len(script.submitted) == 2 and held.age[...] == 2


@pytest.mark.parametrize("coverage", ["leading", "everywhere"])
@pytest.mark.parametrize("axes", list(jax.sharding.AxisType)[:2], ids=str)
def test_a_state_on_a_mesh(scripted, axes, coverage):
    prober, script, _ = scripted()
    surrogate = qsgd.refreshable(SURROGATE)
    optimizer = qsgd.superpositional_adamw(0.01, surrogate=surrogate, coverage=coverage)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axes,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        kernel = jax.device_put(jnp.ones((8, 3)), jax.NamedSharding(mesh, jax.P("data")))
        state = prober.wait(jax.jit(optimizer.init)({"kernel": kernel}))
        step = jax.jit(optimizer.update, donate_argnums=(1,))
        for _ in range(12):
            _, state = step({"kernel": kernel}, state, {"kernel": kernel})
            state = prober.refresh(state)
    assert len(script.submitted) == 2 and _held(state, "age") == 2
    table = optax.tree.get(state, "table")
    assert table.sharding.is_fully_replicated and len(table.sharding.device_set) == 4
