"""Probing a slow, costly or failing device beside the training loop, between steps."""

import datetime
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from qsgd_jax._src import refreshable
from qsgd_jax._src.checks import check_integer, shots_for
from qsgd_jax._src.circuit import Circuit
from qsgd_jax._src.probing import checksum
from qsgd_jax._src.refreshable import RefreshableCoefficients
from qsgd_jax._src.remote.answers import Probe
from qsgd_jax._src.remote.asker import News
from qsgd_jax._src.remote.beside import MOST, BesideTheLoop, check_concrete, checked_policy
from qsgd_jax._src.remote.process import device_name
from qsgd_jax._src.typing import PyTree

# With fewer, the answers of a device whose wires are swapped look like noise.
_FEWEST_SHOTS = 100


class RemoteProber(BesideTheLoop):
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
      circuit: the circuit of the surrogate, of concrete angles.
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
      >>> surrogate = qsgd.refreshable(qsgd.probe(circuit))
      >>> tx = qsgd.superpositional_adamw(0.1, surrogate=surrogate)
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
        max_shots: int = MOST,
        timeout: float = 600.0,
        retries: int = 3,
        backoff: float = 1.0,
        cool_down: float = 300.0,
        on_failure: Literal["hold", "raise"] = "hold",
    ):
        name = device_name("device", device)
        if not isinstance(circuit, Circuit):
            raise TypeError(f"circuit={circuit!r} must be a qsgd_jax.Circuit.")
        if circuit.traced:
            raise ValueError("circuit must have concrete angles: a device cannot trace.")
        shots = _shots(probe_shots, target_standard_error)
        probe = Probe(circuit, shots)
        shots_a_job = shots * probe.n_settings
        policy = checked_policy(refresh_every, shots_a_job, timeout, retries, backoff, cool_down)
        check_integer("max_shots", max_shots, 1, MOST)
        if max_shots < shots_a_job:
            raise ValueError(
                f"max_shots={max_shots} is too small for one probe: {probe.n_settings} "
                f"settings of {shots} shots are {shots_a_job}."
            )
        shape = {x: int(getattr(circuit, x)) for x in ("n_qubits", "depth", "uploads")}
        angles = np.asarray(circuit.angles).tolist()
        order = {"kind": "coefficients", "device": name, "circuit": shape, "angles": angles}
        super().__init__(
            name,
            {**order, "shots": shots},
            probe.coefficients,
            policy,
            max_jobs=max_jobs,
            max_shots=max_shots,
            on_failure=on_failure,
        )
        _ = probe.exact  # now, rather than when the first answer has come
        self._circuit = circuit
        n, size = circuit.n_qubits, 2 * circuit.uploads + 1
        self._shape = (n, *(size,) * n)
        # Of the state: its structure, which of its coefficients are of this circuit, and how many
        # jobs and shots it knows of.
        self._structure: Any = None
        self._mine: list[int] = []
        self._told = 0, 0
        self._age_underway: Any = None  # a copy of the age that may still have to be computed
        self._open("device")

    def refresh(self, opt_state: PyTree) -> PyTree:
        """Put the newest answer into the state, if one has come, and ask again when it is due.

        It never waits, and looks as rarely as it takes to cost one percent of the time. (Where
        several processes train together it waits for the others: each call is a broadcast from
        the first process, the one that submits. Call it every few steps there.)

        Args:
          opt_state: the state of an optimizer, or any tree that holds one, with a `refreshable`
            surrogate of this circuit. Call it with the states of one training run.

        Returns:
          The same with new coefficients, or as it is.

        Raises:
          ValueError: if the state holds no coefficients of this circuit.
          ProbeError: if the breaker opens and `on_failure` is `"raise"`.
        """
        return self._looked(opt_state, self._turn)

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
        held, put_back, structure = _found(opt_state)
        self._adopt(held, structure)
        said = self._told
        if not self._asker.status.measured_at and self._latest is not None:
            opt_state = self._put(held, put_back, self._latest)
        while not self._asker.status.measured_at:
            opt_state, problem = self._turn(opt_state)
            if problem:
                self._told = said  # by the state that the caller is left with
                self._raise()
            time.sleep(0.01)
        return opt_state

    def _turn(self, opt_state: PyTree) -> tuple[PyTree, int]:
        self._check_open()
        held, put_back, structure = _found(opt_state)
        if self._structure is None or structure != self._structure:
            self._adopt(held, structure)
        mine = self._turned(held) if jax.process_index() == 0 else None
        news = self._agreed(mine, self._shape)
        if news.table is not None or news[:2] != self._told:
            opt_state = self._put(held, put_back, news)
        return opt_state, news.problem

    def _put(self, held: list[RefreshableCoefficients], put_back: Any, news: News) -> PyTree:
        """An answer, or what has been spent, put into the state."""
        new: dict[str, Any] = {"jobs": self.accounting.jobs, "shots": self.accounting.shots}
        self._told = self.accounting.jobs, self.accounting.shots
        if news.table is not None:
            new |= {"table": news.table, "measured_at": news.asked_at}
            self._asker.status = self._asker.status._replace(measured_at=news.asked_at, age=0)
            self._age_underway = None
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
                "circuit; allowed are states of optimizers with refreshable(probe("
                "circuit))."
            )
        self._structure, self._mine, first = structure, mine, held[mine[0]]
        self._age_underway = None
        self._asker.status = self._asker.status._replace(
            age=int(refreshable.read(first.age).max()),
            measured_at=int(refreshable.read(first.measured_at).min()),
        )
        done = self.accounting
        self._told = tuple(int(refreshable.read(x).max()) for x in (first.jobs, first.shots))
        done.jobs, done.shots = max(done.jobs, self._told[0]), max(done.shots, self._told[1])

    def _turned(self, held: list[RefreshableCoefficients]) -> News:
        """What the device has to say, once it is known how old the coefficients are.

        That does not wait for the steps that are still being computed.
        """
        status, age = self._asker.status, held[self._mine[0]].age
        if status.deadline is None and self._age_underway is None:
            local = age.addressable_data(0) if isinstance(age, jax.Array) else jnp.asarray(age)
            # A copy: the array itself may be donated to the next step.
            self._age_underway = jax.device_put(local, local.sharding, may_alias=False)
        if self._age_underway is not None and self._age_underway.is_ready():
            known = int(np.max(np.asarray(self._age_underway)))
            self._asker.status, self._age_underway = status._replace(age=known), None
        return self._asker.turn()


def _found(opt_state: PyTree) -> tuple[list[RefreshableCoefficients], Any, Any]:
    held, put_back, structure = refreshable.find(opt_state, RefreshableCoefficients)
    check_concrete(held)
    return [RefreshableCoefficients(*one) for one in held], put_back, structure


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
