"""When to ask a device, and when not: pure functions of what has happened and of the clock."""

import dataclasses
import datetime
import math
from typing import Literal, NamedTuple

Decision = Literal["rest", "collect", "ask", "budget spent"]


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


class Policy(NamedTuple):
    """What a prober was told; times in seconds."""

    refresh_every: int | datetime.timedelta
    shots_a_job: int
    timeout: float
    retries: int
    backoff: float
    cool_down: float


class Status(NamedTuple):
    """What has happened.

    Attributes:
      measured_at: when the coefficients in the state were asked for, in Unix seconds; 0 if never.
      age: steps since then, as far as is known.
      deadline: until when the job under way may answer; `None` if there is none.
      failures: attempts without an answer since the last answer.
      not_before: when the next attempt may be made.
    """

    measured_at: int = 0
    age: int = 0
    deadline: float | None = None
    failures: int = 0
    not_before: float = -math.inf


def decide(
    policy: Policy, status: Status, accounting: ProbeAccounting, now: float, unix_time: float
) -> Decision:
    """What is to be done now.

    Args:
      policy: what the prober was told.
      status: what has happened.
      accounting: what has been spent.
      now: a monotonic clock's time.
      unix_time: the calendar's.

    Example:
      >>> from qsgd_jax._src.remote.schedule import Policy, ProbeAccounting, Status, decide
      >>> policy, spent = Policy(10, 900, 60.0, 3, 1.0, 300.0), ProbeAccounting(0, 5, 0, 9000)
      >>> decide(policy, Status(), spent, now=0.0, unix_time=0.0)
      'ask'
      >>> decide(policy, Status(deadline=60.0), spent, now=1.0, unix_time=1.0)
      'collect'
      >>> decide(policy, Status(measured_at=1, age=9), spent, now=9.0, unix_time=9.0)
      'rest'
    """
    if status.deadline is not None:
        return "collect"
    if now < status.not_before or not _is_due(policy, status, unix_time):
        return "rest"
    jobs, shots = accounting.jobs + 1, accounting.shots + policy.shots_a_job
    return (
        "ask" if jobs <= accounting.max_jobs and shots <= accounting.max_shots else "budget spent"
    )


def _is_due(policy: Policy, status: Status, unix_time: float) -> bool:
    if not status.measured_at:
        return True
    if isinstance(policy.refresh_every, datetime.timedelta):
        return unix_time - status.measured_at >= policy.refresh_every.total_seconds()
    return status.age >= policy.refresh_every


def asked(policy: Policy, status: Status, now: float) -> Status:
    """The status once a job has been submitted."""
    return status._replace(deadline=now + policy.timeout)


def answered(status: Status) -> Status:
    """The status once an answer has been accepted."""
    return status._replace(deadline=None, failures=0)


def failed(policy: Policy, status: Status, now: float, jitter: float) -> Status:
    """The status once an attempt has ended without an answer.

    The next one waits `backoff`, twice as long after each further failure, at most `cool_down`,
    all times `jitter`; `cool_down` where the breaker is open.
    """
    status = status._replace(deadline=None, failures=status.failures + 1)
    pause = policy.backoff * 2.0 ** (status.failures - 1)
    if is_open(policy, status):
        pause = policy.cool_down
    return status._replace(not_before=now + min(pause, policy.cool_down) * jitter)


def is_open(policy: Policy, status: Status) -> bool:
    """Whether the circuit breaker is open: attempts have failed more often than are retried."""
    return status.failures > policy.retries
