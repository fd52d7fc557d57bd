"""Probing a slow, costly or failing device beside the training loop, between steps."""

import dataclasses
import datetime
import functools
import logging
import math
import random
import time
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from qsgd_jax._src import refreshable
from qsgd_jax._src.checks import check_integer, check_seconds, shots_for
from qsgd_jax._src.circuit import Circuit
from qsgd_jax._src.probing import checksum
from qsgd_jax._src.refreshable import RefreshableCoefficients
from qsgd_jax._src.remote.answers import Probe, RejectedError
from qsgd_jax._src.remote.process import EndedError, WorkerProcess, device_name

_LOG = logging.getLogger("qsgd_jax")
# With fewer, the answers of a device whose wires are swapped look like noise.
_FEWEST_SHOTS = 100
_MOST = 2**32 - 1  # the state counts in 32 bits
# Looking for an answer takes this share of the training's time, and is never put off by more
# than so many seconds.
_SHARE_OF_TIME = 0.01
_LONGEST_BLINK = 1.0


class ProbeError(RuntimeError):
    """A device did not answer, or what it answered cannot be believed."""


@dataclasses.dataclass
class ProbeAccounting:
    """What a `RemoteProber` has asked for and what came of it; `print` it.

    Attributes:
      jobs: jobs submitted, one a probe; those of the runs before that a state was resumed from
        included.
      max_jobs: how many there may be.
      shots: shots that those jobs asked for.
      max_shots: how many there may be.
      accepted: answers put into the state by this prober.
      rejected: answers that could not be believed.
      timed_out: jobs without an answer in time.
      failed: jobs that ended in an error.
      last_problem: the last reason why an answer is missing.
    """

    jobs: int
    max_jobs: int
    shots: int
    max_shots: int
    accepted: int = 0
    rejected: int = 0
    timed_out: int = 0
    failed: int = 0
    last_problem: str | None = None


class _News(NamedTuple):
    """What the process that submits tells itself and the others."""

    jobs: int
    shots: int
    problem: int = 0
    asked_at: int = 0
    table: np.ndarray | None = None


_NO_PROBLEM, _BREAKER_OPENED, _BUDGET_SPENT = range(3)


class RemoteProber:
    r"""Keeps the coefficients in an optimizer's state fresh from a device that may take its time.

    The device is opened in a process of its own, which is ended when a job hangs; `refresh`, called
    between steps, only looks whether an answer has come. Answers are checked, by settings off the
    grid and by ones whose answers are known, before they get into the state. After a failure the
    next attempt waits `backoff`, twice as long after each further one (at most `cool_down`), by
    half of it more or less at random; after `retries` of them the circuit breaker opens, and there
    is one attempt each `cool_down`.

    Args:
      device: the name of a PennyLane device, or a function without arguments that opens one,
        which must be importable: credentials stay with it, in its process.
      circuit: the circuit of the superposition, of concrete weights.
      probe_shots: how often each setting is measured, at least 100.
      target_standard_error: σ, instead of `probe_shots`: ⌈1/σ²⌉ shots.
      refresh_every: the age at which coefficients are measured again, in steps, or seconds as a
        `datetime.timedelta`.
      max_jobs: how many jobs may be submitted, failed ones included. A job is one batch of all
        settings; a provider may count each of them.
      max_shots: how many shots may be asked for, over all settings of all jobs; by default 2³² − 1,
        the most that the state can count.
      timeout: seconds after which a job without an answer is given up. What the provider does
        with it then is beyond this package.
      retries: attempts after the first before the breaker opens.
      backoff: seconds before the first retry.
      cool_down: seconds between attempts while the breaker is open.
      on_failure: when the breaker opens, `"hold"` keeps the coefficients there are and logs a
        warning, `"raise"` raises. That the budget is spent is logged in either case.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range, the device is not installed, too small, cannot
        be opened, or cannot run the circuit with shots, or the budget is too small for one probe.

    Example:
      >>> import jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> circuit, params = qsgd.Circuit(n_qubits=2), jnp.array([0.5, -0.5])
      >>> superposition = qsgd.Superposition(circuit, refreshable=True)
      >>> tx = qsgd.superpositional_adamw(0.1, superposition=superposition)
      >>> with qsgd.RemoteProber("default.qubit", circuit, probe_shots=1000, max_jobs=5) as prober:
      ...     state = prober.wait(tx.init(params))
      ...     for _ in range(3):
      ...         updates, state = tx.update(params, state, params)
      ...         state = prober.refresh(state)
      >>> prober.accounting.jobs, int(optax.tree.get(state, "age"))
      (1, 3)

    References:
      Schuld, Sweke, Meyer, arXiv:2008.08605, for why a probe is enough.
    """

    def __init__(
        self,
        device: Any,
        circuit: Circuit,
        *,
        max_jobs: int,
        probe_shots: int | None = None,
        target_standard_error: float | None = None,
        refresh_every: int | datetime.timedelta = 1000,
        max_shots: int = _MOST,
        timeout: float = 600.0,
        retries: int = 3,
        backoff: float = 1.0,
        cool_down: float = 300.0,
        on_failure: Literal["hold", "raise"] = "hold",
    ):
        self._device = device_name(device)
        if not isinstance(circuit, Circuit):
            raise TypeError(f"circuit={circuit!r} must be a qsgd_jax.Circuit.")
        if circuit.traced:
            raise ValueError("circuit must have concrete weights: a device cannot trace.")
        if on_failure not in ("hold", "raise"):
            raise ValueError(f"on_failure={on_failure!r} must be 'hold' or 'raise'.")
        check_integer("max_jobs", max_jobs, 1, _MOST)
        check_integer("retries", retries, 0, 100)
        for name, value in (("timeout", timeout), ("backoff", backoff), ("cool_down", cool_down)):
            check_seconds(name, value)
        if isinstance(refresh_every, datetime.timedelta):
            check_seconds("refresh_every", refresh_every.total_seconds())
        else:
            check_integer("refresh_every", refresh_every, 1, 2**31 - 1)
        shots = _shots(probe_shots, target_standard_error)
        self._probe = Probe(circuit, shots)
        self._shots_a_job = shots * self._probe.n_settings
        check_integer("max_shots", max_shots, 1, _MOST)
        if max_shots < self._shots_a_job:
            raise ValueError(
                f"max_shots={max_shots} is too small for one probe: {self._probe.n_settings} "
                f"settings of {shots} shots are {self._shots_a_job}."
            )
        self._circuit, self._refresh_every = circuit, refresh_every
        self._timeout, self._on_failure = timeout, on_failure
        self._retries, self._backoff, self._cool_down = retries, backoff, cool_down
        self.accounting = ProbeAccounting(0, max_jobs, 0, max_shots)

        # Of the state: its structure, which of its coefficients are of this circuit, what it says.
        self._structure: Any = None
        self._mine: list[int] = []
        self._told = 0, 0  # of jobs and shots
        self._measured_at = 0
        self._age = 0  # as far as is known
        self._age_underway: Any = None  # a copy that may still have to be computed

        self._latest: _News | None = None  # the last accepted answer
        self._deadline: float | None = None  # of the job under way, if one is
        self._asked_at = 0  # for it, in Unix seconds
        self._failures, self._not_before = 0, -math.inf
        self._next_look = -math.inf
        self._process: WorkerProcess | None = None
        self._is_closed = False
        _ = self._probe.exact  # now, rather than when the first answer has come
        shape = {name: int(getattr(circuit, name)) for name in ("n_qubits", "depth", "uploads")}
        angles = np.asarray(circuit.angles).tolist()
        self._start = functools.partial(
            WorkerProcess,
            {"device": self._device, "circuit": shape, "angles": angles, "shots": shots},
        )
        problem = self._open() if jax.process_index() == 0 else None
        if jax.process_count() > 1:  # else the others would wait for the first for ever
            failed = multihost_utils.broadcast_one_to_all(np.int32(problem is not None))
            problem = problem or ("could not be opened by the first process" if failed else None)
        if problem is not None:
            self.close()
            raise ValueError(f"device={self._device!r} {problem}.")

    def _open(self) -> str | None:
        """Start the process and have it open the device; what is wrong with it, if anything."""
        self._process = self._start()
        try:
            self._process.send({"job": 0})
            message: Any = self._process.wait(self._timeout)
        except EndedError as error:
            message = {"failed": str(error)}
        except BaseException:
            self.close()
            raise
        if message is None:
            return f"was not open within timeout={self._timeout} s"
        if "failed" in message:
            return (
                f"could not be opened for this circuit and shots: {message['failed']} (are its "
                "credentials where its client looks for them? Opened in your own process it says "
                "more)"
            )
        n, wires = self._circuit.n_qubits, message["wires"]
        if wires is not None and wires < n:
            return f"has {wires} wires; allowed are devices of at least n_qubits={n}"
        return None

    def refresh(self, opt_state: PyTree) -> PyTree:
        """Put the newest answer into the state, if one has come, and ask again when it is due.

        It never waits, and looks as rarely as it takes to cost one percent of the time. (Where
        several processes train together it waits for the others: each call is a broadcast from
        the first process, the one that submits. Call it every few steps there.)

        Args:
          opt_state: the state of an optimizer, or any tree that holds one, with a `refreshable`
            superposition of this circuit. Call it with the states of one training run.

        Returns:
          The same with new coefficients, or as it is.

        Raises:
          ValueError: if the state holds no coefficients of this circuit.
          ProbeError: if the breaker opens and `on_failure` is `"raise"`.
        """
        began = time.monotonic()
        if began < self._next_look and jax.process_count() == 1:
            return opt_state
        opt_state, problem = self._turn(opt_state)
        ended = time.monotonic()
        self._next_look = ended + min((ended - began) / _SHARE_OF_TIME, _LONGEST_BLINK)
        if problem == _BREAKER_OPENED and self._on_failure == "raise":
            self._raise()
        return opt_state

    def wait(self, opt_state: PyTree) -> PyTree:
        """Wait for the first answer, if the state holds none yet.

        Also to be called where a prober goes on to another training run, or back to an earlier
        state: it takes over what the state knows. The last answer is used for the new run.

        Args:
          opt_state: as for `refresh`; the first of a training run.

        Returns:
          The state with measured coefficients.

        Raises:
          ValueError: if the state holds no coefficients of this circuit.
          ProbeError: if the breaker opens, whatever `on_failure` is, or the budget is spent.
        """
        held, put_back, structure = refreshable.find(opt_state)
        _check_concrete(held)
        self._adopt(held, structure)
        said = self._told
        if not self._measured_at and self._latest is not None:
            opt_state = self._put(held, put_back, self._latest)
        while not self._measured_at:
            opt_state, problem = self._turn(opt_state)
            if problem:
                self._told = said  # by the state that the caller is left with
                self._raise()
            time.sleep(0.01)
        return opt_state

    def _raise(self):
        raise ProbeError(f"device={self._device!r}: {self.accounting.last_problem}.")

    def _turn(self, opt_state: PyTree) -> tuple[PyTree, int]:
        if self._is_closed:
            raise ValueError(f"{self} is closed.")
        held, put_back, structure = refreshable.find(opt_state)
        _check_concrete(held)
        if self._structure is None or structure != self._structure:
            self._adopt(held, structure)
        news = self._agreed(self._advance(held) if jax.process_index() == 0 else None)
        self.accounting.jobs, self.accounting.shots = news.jobs, news.shots
        if news.table is not None:
            self._latest = news
            self.accounting.accepted += 1
        if news.table is not None or news[:2] != self._told:
            opt_state = self._put(held, put_back, news)
        return opt_state, news.problem

    def _put(self, held: list[RefreshableCoefficients], put_back: Any, news: _News) -> PyTree:
        """An answer, or what has been spent, put into the state."""
        new: dict[str, Any] = {"jobs": self.accounting.jobs, "shots": self.accounting.shots}
        self._told = self.accounting.jobs, self.accounting.shots
        if news.table is not None:
            new |= {"table": news.table, "measured_at": news.asked_at}
            self._measured_at, self._age, self._age_underway = news.asked_at, 0, None
        renewed = list(held)
        for i in self._mine:
            arrays = {k: refreshable.overwrite(getattr(held[i], k), x) for k, x in new.items()}
            if news.table is not None:  # moved, so that no step has to be waited for
                arrays["age"] = held[i].steps_since_request
            arrays["steps_since_request"] = refreshable.overwrite(held[i].steps_since_request, 0)
            renewed[i] = held[i]._replace(**arrays)
        return put_back(renewed)

    def _adopt(self, held: list[RefreshableCoefficients], structure: Any) -> None:
        """Take over what a state knows, perhaps restored from an earlier run."""
        circuit = checksum(self._circuit)
        mine = [i for i, one in enumerate(held) if (refreshable.read(one.circuit) == circuit).all()]
        if not mine:
            raise ValueError(
                f"opt_state holds {len(held)} refreshable coefficients, none of this prober's "
                "circuit; allowed are states of optimizers with Superposition(circuit, "
                "refreshable=True)."
            )
        self._structure, self._mine, first = structure, mine, held[mine[0]]
        self._age, self._age_underway = int(refreshable.read(first.age).max()), None
        self._measured_at = int(refreshable.read(first.measured_at).min())
        done = self.accounting
        self._told = tuple(int(refreshable.read(x).max()) for x in (first.jobs, first.shots))
        done.jobs, done.shots = max(done.jobs, self._told[0]), max(done.shots, self._told[1])

    def _agreed(self, news: _News | None) -> _News:
        """The first process's news, on all of them."""
        if jax.process_count() == 1:
            return cast(_News, news)
        news = news or _News(0, 0)
        header = np.array([*news[:4], news.table is not None], np.uint32)
        *numbers, has_table = map(int, multihost_utils.broadcast_one_to_all(header))
        news = _News(*numbers, table=news.table)
        if not has_table:
            return news
        n, size = self._circuit.n_qubits, 2 * self._circuit.uploads + 1
        table = np.zeros((n,) + (size,) * n) if news.table is None else news.table
        return news._replace(table=np.asarray(multihost_utils.broadcast_one_to_all(table)))

    def _advance(self, held: list[RefreshableCoefficients]) -> _News:
        """Collect an answer that has come, or ask for one that is due."""
        problem, table = _NO_PROBLEM, None
        if self._deadline is not None:
            problem, table = self._collect()
        else:
            self._look_at_the_age(held[self._mine[0]].age)
            if self._is_due():
                problem = self._submit()
        return _News(self.accounting.jobs, self.accounting.shots, problem, self._asked_at, table)

    def _look_at_the_age(self, age: Any) -> None:
        """Without waiting for the steps that are still being computed."""
        if self._age_underway is None:
            local = age.addressable_data(0) if isinstance(age, jax.Array) else jnp.asarray(age)
            # A copy: the array itself may be donated to the next step.
            self._age_underway = jax.device_put(local, local.sharding, may_alias=False)
        if self._age_underway.is_ready():
            self._age, self._age_underway = int(np.max(np.asarray(self._age_underway))), None

    def _is_due(self) -> bool:
        if time.monotonic() < self._not_before:
            return False
        if not self._measured_at:
            return True
        if isinstance(self._refresh_every, datetime.timedelta):
            return time.time() - self._measured_at >= self._refresh_every.total_seconds()
        return self._age >= self._refresh_every

    def _submit(self) -> int:
        done, shots = self.accounting, self._shots_a_job
        if done.jobs + 1 > done.max_jobs or done.shots + shots > done.max_shots:
            problem = (
                f"the budget is spent: {done.jobs} of max_jobs={done.max_jobs} jobs, {done.shots} "
                f"of max_shots={done.max_shots} shots"
            )
            if done.last_problem != problem:
                _LOG.warning("%s: %s; the coefficients stay as they are", self, problem)
            done.last_problem = problem
            return _BUDGET_SPENT
        done.jobs += 1
        done.shots += shots
        self._deadline = time.monotonic() + self._timeout
        self._asked_at = int(time.time())
        if self._process is None:
            self._process = self._start()
        self._process.send({"job": done.jobs})
        _LOG.info("%s: job %d of %d submitted, %d shots", self, done.jobs, done.max_jobs, shots)
        return _NO_PROBLEM

    def _collect(self) -> tuple[int, np.ndarray | None]:
        """The coefficients of the job under way, if they have come and can be believed."""
        try:
            message = cast(WorkerProcess, self._process).receive()
            if message is not None and "failed" in message:
                return self._without_answer("failed", message["failed"]), None
            if message is not None:
                table = self._probe.coefficients(message["answers"])
            elif time.monotonic() < cast(float, self._deadline):
                return _NO_PROBLEM, None
            else:
                self._end_process()
                reason = f"no answer within timeout={self._timeout} s"
                return self._without_answer("timed_out", reason), None
        except EndedError as error:
            self._end_process()
            return self._without_answer("failed", str(error)), None
        except RejectedError as error:
            return self._without_answer("rejected", str(error)), None
        self._deadline, self._failures = None, 0
        _LOG.info("%s: job %d accepted", self, self.accounting.jobs)
        return _NO_PROBLEM, table

    def _without_answer(self, how: Literal["failed", "rejected", "timed_out"], reason: str) -> int:
        done = self.accounting
        setattr(done, how, getattr(done, how) + 1)
        done.last_problem = f"job {done.jobs} {how.replace('_', ' ')}: {reason}"
        self._deadline = None
        self._failures += 1
        opened = self._failures > self._retries
        pause = self._cool_down if opened else self._backoff * 2.0 ** (self._failures - 1)
        pause = min(pause, self._cool_down) * random.uniform(0.5, 1.5)
        self._not_before = time.monotonic() + pause
        _LOG.warning(
            "%s: %s; the coefficients stay as they are, next attempt in %.3g s at the earliest%s",
            self,
            done.last_problem,
            pause,
            " (the circuit breaker is open)" if opened else "",
        )
        return _BREAKER_OPENED if opened else _NO_PROBLEM

    def close(self) -> None:
        """End the device's process. A job under way is given up; its shots stay counted."""
        self._end_process()
        self._is_closed = True

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.end()
        self._process = self._deadline = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return f"RemoteProber({self._device!r})"

    def __reduce__(self):
        raise TypeError(f"{self} cannot be pickled: it holds an open device.")


def _check_concrete(held: list[RefreshableCoefficients]) -> None:
    if any(isinstance(one.circuit, Tracer) for one in held):
        raise TypeError("opt_state is traced: a prober is called between steps, not in them.")


def _shots(probe_shots: Any, target_standard_error: Any) -> int:
    if (probe_shots is None) == (target_standard_error is None):
        raise ValueError(
            f"probe_shots={probe_shots} and target_standard_error={target_standard_error}: one of "
            "them must be given."
        )
    if probe_shots is None:
        return shots_for(target_standard_error, _FEWEST_SHOTS**-0.5)
    check_integer("probe_shots", probe_shots, _FEWEST_SHOTS, 10**8)
    return int(probe_shots)
