"""A device in a process of its own, asked when it is due and believed when it can be."""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from qsgd_jax._src.remote import schedule
from qsgd_jax._src.remote.answers import RejectedError
from qsgd_jax._src.remote.process import EndedError, WorkerProcess
from qsgd_jax._src.remote.schedule import Policy, ProbeAccounting, Status

_LOG = logging.getLogger("qsgd_jax")


class News(NamedTuple):
    """What the process that submits tells itself and the others."""

    jobs: int
    shots: int
    problem: int = 0
    asked_at: int = 0
    table: np.ndarray | None = None


NO_PROBLEM, BREAKER_OPENED, BUDGET_SPENT = range(3)


class Asker:
    """Asks a device, as a policy says, and collects the answers that can be believed.

    Args:
      name: of the prober, for the log.
      order: what the device's process is told first.
      accept: from its answers to numbers for the state; it raises `RejectedError`.
      policy: when to ask.
      accounting: what may be spent.
    """

    def __init__(
        self,
        name: str,
        order: dict[str, Any],
        accept: Callable[[Any], np.ndarray],
        policy: Policy,
        accounting: ProbeAccounting,
    ):
        self.name, self.accounting, self.status = name, accounting, Status()
        self._order, self._accept, self._policy = order, accept, policy
        self._asked_at = 0  # for the job under way, in Unix seconds
        self._process: WorkerProcess | None = None

    def turn(self, question: Callable[[], dict[str, Any]] = dict) -> News:
        """Do what is to be done now.

        Args:
          question: what a job is told beside its number.
        """
        clock = {"now": time.monotonic(), "unix_time": time.time()}
        problem, table = NO_PROBLEM, None
        match schedule.decide(self._policy, self.status, self.accounting, **clock):
            case "collect":
                problem, table = self._collect()
            case "ask":
                self._ask(question())
            case "budget spent":
                problem = self._spent()
        return News(self.accounting.jobs, self.accounting.shots, problem, self._asked_at, table)

    def open(self) -> tuple[dict[str, Any], str | None]:
        """Start the process and have it open the device: what it says, and what is wrong."""
        self._process = WorkerProcess(self._order)
        try:
            self._process.send({"job": 0})
            message: Any = self._process.wait(self._policy.timeout)
        except EndedError as error:
            message = {"failed": str(error)}
        except BaseException:
            self.end()
            raise
        if message is None:
            return {}, f"was not open within timeout={self._policy.timeout} s"
        if "failed" in message:
            return {}, (
                f"could not be opened, or cannot do what is asked: {message['failed']} (are its "
                "credentials where its client looks for them? Opened in your own process it says "
                "more)"
            )
        return message, message.get("problem")

    def _spent(self) -> int:
        done = self.accounting
        problem = (
            f"the budget is spent: {done.jobs} of max_jobs={done.max_jobs} jobs, {done.shots} "
            f"of max_shots={done.max_shots} shots"
        )
        if done.last_problem != problem:
            _LOG.warning("%s: %s; the state stays as it is", self.name, problem)
        done.last_problem = problem
        return BUDGET_SPENT

    def _ask(self, question: dict[str, Any]) -> None:
        done, shots = self.accounting, self._policy.shots_a_job
        done.jobs += 1
        done.shots += shots
        self.status = schedule.asked(self._policy, self.status, time.monotonic())
        self._asked_at = int(time.time())
        if self._process is None:
            self._process = WorkerProcess(self._order)
        self._process.send({"job": done.jobs, **question})
        _LOG.info(
            "%s: job %d of %d submitted, %d shots", self.name, done.jobs, done.max_jobs, shots
        )

    def _collect(self) -> tuple[int, np.ndarray | None]:
        """What the job under way has answered, if it has come and can be believed."""
        try:
            message = cast(WorkerProcess, self._process).receive()
            self.accounting.shots += (message or {}).get("shots", 0)
            if message is not None and "failed" in message:
                return self._without_answer("failed", message["failed"]), None
            if message is not None:
                table = self._accept(message["answers"])
            elif time.monotonic() < cast(float, self.status.deadline):
                return NO_PROBLEM, None
            else:
                self.end()
                reason = f"no answer within timeout={self._policy.timeout} s"
                return self._without_answer("timed_out", reason), None
        except EndedError as error:
            self.end()
            return self._without_answer("failed", str(error)), None
        except RejectedError as error:
            return self._without_answer("rejected", str(error)), None
        self.status = schedule.answered(self.status)
        _LOG.info("%s: job %d accepted", self.name, self.accounting.jobs)
        return NO_PROBLEM, table

    def _without_answer(self, how: Literal["failed", "rejected", "timed_out"], reason: str) -> int:
        done = self.accounting
        setattr(done, how, getattr(done, how) + 1)
        done.last_problem = f"job {done.jobs} {how.replace('_', ' ')}: {reason}"
        now, jitter = time.monotonic(), random.uniform(0.5, 1.5)
        self.status = schedule.failed(self._policy, self.status, now, jitter)
        opened = schedule.is_open(self._policy, self.status)
        _LOG.warning(
            "%s: %s; the state stays as it is, next attempt in %.3g s at the earliest%s",
            self.name,
            done.last_problem,
            self.status.not_before - now,
            " (the circuit breaker is open)" if opened else "",
        )
        return BREAKER_OPENED if opened else NO_PROBLEM

    def end(self) -> None:
        if self._process is not None:
            self._process.end()
        self._process, self.status = None, self.status._replace(deadline=None)
