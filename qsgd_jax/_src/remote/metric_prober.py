"""Measuring a metric on a slow, costly or failing device beside the training loop."""

import datetime
import functools
import time
from typing import Any, Literal

import jax
import numpy as np
from jax.tree_util import tree_leaves_with_path

from qsgd_jax._src import refreshable
from qsgd_jax._src.hybrid.fubini_study import leaf_name
from qsgd_jax._src.natural import ScaleByMetricState
from qsgd_jax._src.remote.answers import RejectedError
from qsgd_jax._src.remote.asker import News
from qsgd_jax._src.remote.beside import MOST, BesideTheLoop, check_concrete, checked_policy
from qsgd_jax._src.remote.messages import encoded
from qsgd_jax._src.remote.process import device_name
from qsgd_jax._src.typing import PyTree

# A covariance that few shots estimate may be a little less than positive.
_NEGATIVE = 0.1


class MetricProber(BesideTheLoop):
    r"""Keeps the metric in the state of `scale_by_metric` fresh, from a device that takes its time.

    The circuits and their devices are made in a process of their own, which is ended when a job
    hangs; `refresh`, called between steps, only looks whether a metric has come, and asks for the
    next one, at the parameters of now, when it is due. What comes must be finite, symmetric, of
    the right shape, and not negative beyond shots. After failures it waits and asks again as
    `RemoteProber` does.

    Args:
      metric: a function without arguments that makes a `FubiniStudy`, which must be importable:
        credentials stay with it, in its process. Its own `every` does not count.
      max_jobs: how many metrics may be asked for, failed ones included.
      refresh_every: the age at which a metric is measured again, in calls of `refresh`, or seconds
        as a `datetime.timedelta`.
      timeout: seconds after which a job without an answer is given up.
      retries: attempts after the first before the breaker opens.
      backoff: seconds before the first retry.
      cool_down: seconds between attempts while the breaker is open.
      on_failure: when the breaker opens, `"hold"` keeps the metric there is and logs a warning,
        `"raise"` raises.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range, or the circuits cannot be made.

    Example:
      >>> import jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> from benchmarks.devices import ising_metric  # a QNode with 1000 shots, and every=None
      >>> tx = optax.chain(qsgd.scale_by_metric(ising_metric(), damping=0.1), optax.sgd(0.1))
      >>> params = {"weights": jnp.ones((1, 2, 3))}
      >>> with qsgd.MetricProber(ising_metric, max_jobs=10) as prober:
      ...     state = prober.wait(tx.init(params), params)
      ...     for _ in range(3):
      ...         updates, state = tx.update(params, state, params)
      ...         state = prober.refresh(state, params)
      >>> prober.accounting.accepted >= 1
      True

    References:
      Stokes, Izaac, Killoran, Carleo, "Quantum natural gradient", arXiv:1909.02108.
    """

    def __init__(
        self,
        metric: Any,
        *,
        max_jobs: int,
        refresh_every: int | datetime.timedelta = 1,
        timeout: float = 600.0,
        retries: int = 3,
        backoff: float = 1.0,
        cool_down: float = 300.0,
        on_failure: Literal["hold", "raise"] = "hold",
    ):
        name = device_name("metric", metric)
        policy = checked_policy(refresh_every, 0, timeout, retries, backoff, cool_down)
        super().__init__(
            name,
            {"kind": "metric", "metric": name, "x64": bool(jax.config.read("jax_enable_x64"))},
            self._accepted,
            policy,
            max_jobs=max_jobs,
            max_shots=MOST,
            on_failure=on_failure,
        )
        self._sizes: list[int] = []
        # Calls of `refresh`: all, when the job under way was asked, and when the metric there is.
        self._steps = self._asked = self._measured = 0
        self._said = self._open("metric")

    def refresh(self, opt_state: PyTree, params: PyTree, batch: Any = None) -> PyTree:
        """Put the newest metric into the state, if one has come, and ask again when it is due.

        It does not wait for the device; when it asks, it waits for the parameters. (Where several
        processes train together it waits for the others: call it every few steps there.)

        Args:
          opt_state: the state of an optimizer with one `scale_by_metric`.
          params: where the next metric is measured, whole: other leaves than the circuits' are
            left out.
          batch: the circuits' data, as `FubiniStudy.measure` takes it.

        Returns:
          The state with a new metric, or as it is.

        Raises:
          ValueError: if the state has no metric, or several.
          ProbeError: if the breaker opens and `on_failure` is `"raise"`.
        """
        self._steps += 1
        return self._looked(opt_state, functools.partial(self._turn, params=params, batch=batch))

    def wait(self, opt_state: PyTree, params: PyTree, batch: Any = None) -> PyTree:
        """Wait for a metric: at the start, or where a run is resumed.

        Args:
          opt_state: as for `refresh`.
          params: likewise.
          batch: likewise.

        Returns:
          The state with a metric measured now.

        Raises:
          ValueError: if the state has no metric, or several.
          ProbeError: if the breaker opens, whatever `on_failure` is, or the budget is spent.
        """
        asked = self.accounting.jobs  # a job under way was asked earlier, elsewhere perhaps
        while self._latest is None or self._latest.jobs <= asked:
            self._asker.status = self._asker.status._replace(measured_at=0)
            opt_state, problem = self._turn(opt_state, params, batch)
            if problem:
                self._raise()
            time.sleep(0.01)
        return opt_state

    def _turn(self, opt_state: PyTree, params: PyTree, batch: Any) -> tuple[PyTree, int]:
        self._check_open()
        found, put_back, _ = refreshable.find(opt_state, ScaleByMetricState)
        if len(found) != 1:
            raise ValueError(
                f"opt_state holds {len(found)} metrics; allowed are states of optimizers with one "
                "scale_by_metric, which may have several circuits."
            )
        ((count, *metrics),) = found
        check_concrete(metrics)
        for leaf in jax.tree.leaves((params, batch)):
            if isinstance(leaf, jax.Array) and not (
                leaf.is_fully_addressable or leaf.is_fully_replicated
            ):
                raise ValueError(
                    "params and batch must be on the first process whole: there the device is "
                    "asked. Replicate them, or gather a part of the batch."
                )
        self._sizes = [g.shape[-1] for g in metrics]
        mine = self._asked_for(params, batch, metrics) if jax.process_index() == 0 else None
        news = self._agreed(mine, (sum(n * n for n in self._sizes),))
        if news.table is not None:
            parts = np.split(news.table, np.cumsum([n * n for n in self._sizes])[:-1])
            new = [
                refreshable.overwrite(old, part.reshape(old.shape))
                for old, part in zip(metrics, parts, strict=True)
            ]
            opt_state = put_back([[count, *new]])
        return opt_state, news.problem

    def _asked_for(self, params: PyTree, batch: Any, metrics: list[Any]) -> News:
        """What the device says, as a running mean, and what it is asked next."""

        def question() -> dict[str, Any]:
            self._asked = self._steps
            own = {name: jax.device_get(leaf) for name, leaf in self._own(params).items()}
            return {"params": encoded(own), "batch": encoded(batch)}

        status = self._asker.status
        self._asker.status = status._replace(age=self._steps - self._measured)
        news = self._asker.turn(question)
        if news.table is None:
            return news
        self._measured = self._asked
        self._asker.status = self._asker.status._replace(measured_at=news.asked_at)
        old = [refreshable.read(g) for g in metrics]
        none_yet = all((g == np.eye(len(g))).all() for g in old)
        decay = 0.0 if none_yet else self._said["decay"]
        flat = np.concatenate([g.ravel() for g in old])
        return news._replace(table=decay * flat + (1 - decay) * news.table)

    def _own(self, params: PyTree) -> dict[str, Any]:
        """The circuits' parameters, by their names."""
        names, own = self._said["parameters"], {}
        for path, leaf in tree_leaves_with_path(params):
            parent, _, name = leaf_name(path).rpartition(".")
            if name in names.get("" if "" in names else parent, ()):
                own[leaf_name(path)] = leaf
        parents = {name.rpartition(".")[0] for name in own}
        if not own or ("" in names and len(parents) > 1):
            raise ValueError(
                f"params have {sorted(own) or 'no leaf'} of circuits with parameters {names}; give "
                "the part of the tree that is theirs, or name circuits in FubiniStudy's mapping."
            )
        return own

    def _accepted(self, answers: Any) -> np.ndarray:
        """The metrics of an answer, flat one after the other, if they can be believed."""
        found = [np.asarray(g, np.float64) for g in answers]
        shapes, expected = [g.shape for g in found], [(n, n) for n in self._sizes]
        if shapes != expected:
            raise RejectedError(f"metrics of {shapes}, where the state has {expected}")
        for g in found:
            if not np.isfinite(g).all():
                raise RejectedError(f"{np.sum(~np.isfinite(g))} of {g.size} entries not finite")
            most = np.abs(g).max()
            if np.abs(g - g.T).max() > 1e-4 * most:
                raise RejectedError("a metric that is not symmetric")
            if np.linalg.eigvalsh(g).min() < -_NEGATIVE * most:
                raise RejectedError("a metric that is not positive")
        return np.concatenate([g.ravel() for g in found])
