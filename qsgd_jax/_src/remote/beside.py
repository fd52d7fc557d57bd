"""What probers have in common: a device's process, a budget, and news for all processes."""

import datetime
import math
import time
from collections.abc import Callable
from typing import Any, Literal, Self, cast

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils

from qsgd_jax._src.checks import check_integer, check_seconds
from qsgd_jax._src.remote.asker import BREAKER_OPENED, Asker, News
from qsgd_jax._src.remote.schedule import Policy, ProbeAccounting

MOST = 2**32 - 1  # the state counts in 32 bits
# Looking for an answer takes this share of the training's time, and is never put off by more
# than so many seconds.
_SHARE_OF_TIME = 0.01
_LONGEST_BLINK = 1.0


class ProbeError(RuntimeError):
    """A device did not answer, or what it answered cannot be believed."""


class BesideTheLoop:
    """Asks a device in a process of its own, and puts what it answers into an optimizer's state.

    Args:
      device: what the process opens, as errors name it.
      order: what the process is told first.
      accept: from its answers to numbers for the state.
      policy: when to ask.
      max_jobs: how many jobs there may be.
      max_shots: how many shots.
      on_failure: what is done when the breaker opens.
    """

    def __init__(
        self,
        device: str,
        order: dict[str, Any],
        accept: Callable[[Any], np.ndarray],
        policy: Policy,
        *,
        max_jobs: int,
        max_shots: int,
        on_failure: Literal["hold", "raise"],
    ):
        if on_failure not in ("hold", "raise"):
            raise ValueError(f"on_failure={on_failure!r} must be 'hold' or 'raise'.")
        check_integer("max_jobs", max_jobs, 1, MOST)
        self._device, self._on_failure = device, on_failure
        self.accounting: ProbeAccounting = ProbeAccounting(0, max_jobs, 0, max_shots)
        self._asker = Asker(repr(self), order, accept, policy, self.accounting)
        self._latest: News | None = None  # the last accepted answer
        self._next_look = -math.inf
        self._is_closed = False

    def _open(self, kind: str) -> dict[str, Any]:
        """What the first process's device says of itself, on that process."""
        said, problem = self._asker.open() if jax.process_index() == 0 else ({}, None)
        if jax.process_count() > 1:  # else the others would wait for the first for ever
            failed = multihost_utils.broadcast_one_to_all(np.int32(problem is not None))
            problem = problem or ("could not be opened by the first process" if failed else None)
        if problem is not None:
            self.close()
            raise ValueError(f"{kind}={self._device!r} {problem}.")
        return said

    def _looked(self, opt_state: Any, turn: Callable[[Any], tuple[Any, int]]) -> Any:
        """The state after a turn, if it is time for one."""
        began = time.monotonic()
        if began < self._next_look and jax.process_count() == 1:
            return opt_state
        opt_state, problem = turn(opt_state)
        ended = time.monotonic()
        self._next_look = ended + min((ended - began) / _SHARE_OF_TIME, _LONGEST_BLINK)
        if problem == BREAKER_OPENED and self._on_failure == "raise":
            self._raise()
        return opt_state

    def _raise(self):
        raise ProbeError(f"device={self._device!r}: {self.accounting.last_problem}.")

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"{self} is closed.")

    def _agreed(self, news: News | None, shape: tuple[int, ...]) -> News:
        """The first process's news, on all of them; an answer has this shape."""
        if jax.process_count() > 1:
            news = news or News(0, 0)
            header = np.array([*news[:4], news.table is not None], np.uint32)
            *numbers, has_table = map(int, multihost_utils.broadcast_one_to_all(header))
            table = np.zeros(shape) if news.table is None else news.table
            if has_table:
                table = np.asarray(multihost_utils.broadcast_one_to_all(table))
            news = News(*numbers, table=table if has_table else None)
        news = cast(News, news)
        self.accounting.jobs, self.accounting.shots = news.jobs, news.shots
        if news.table is not None:
            self._latest = news
            self.accounting.accepted += 1
        return news

    def close(self) -> None:
        """End the device's process. A job under way is given up; its shots stay counted."""
        self._asker.end()
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._device!r})"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self} cannot be pickled: it holds an open device.")


def checked_policy(
    refresh_every: int | datetime.timedelta,
    shots_a_job: int,
    timeout: float,
    retries: int,
    backoff: float,
    cool_down: float,
) -> Policy:
    """When to ask.

    Args:
      refresh_every: in steps, or as a time.
      shots_a_job: of a job.
      timeout: of a job, in seconds.
      retries: before the breaker opens.
      backoff: seconds before the first retry.
      cool_down: seconds between attempts while the breaker is open.
    """
    check_integer("retries", retries, 0, 100)
    for name, value in (("timeout", timeout), ("backoff", backoff), ("cool_down", cool_down)):
        check_seconds(name, value)
    if isinstance(refresh_every, datetime.timedelta):
        check_seconds("refresh_every", refresh_every.total_seconds())
    else:
        check_integer("refresh_every", refresh_every, 1, 2**31 - 1)
    return Policy(refresh_every, shots_a_job, timeout, retries, backoff, cool_down)


def check_concrete(arrays: Any) -> None:
    """Refuse a state inside a compiled step.

    Args:
      arrays: of the state.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(arrays)):
        raise TypeError("opt_state is traced: a prober is called between steps, not in them.")
