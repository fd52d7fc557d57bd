"""What an epoch costs with each optimizer, as a ratio to AdamW's of the same round."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from tqdm import trange

from experiments.engine.contender import BASELINE, Contender
from experiments.engine.runner import Bench
from experiments.engine.workload import SplitName, Workload
from experiments.evidence.table import PUBLISHED_HYPER, TOPICS, TOPICS_ATTENTION, Part

EPOCH = 125  # steps
TIMED = (
    BASELINE,
    "adamw-twice",  # AdamW again: what the measurement does not resolve
    "paper-moments",
    "paper",
    "noise",
    "everywhere",
    "entangled",
)


def epoch_seconds(
    open_workload: Callable[[str, SplitName], Workload],
    known: Mapping[str, Contender],
    rounds: int,
    *,
    arms: Sequence[str] = TIMED,
    steps: int = EPOCH,
) -> dict[str, list[float]]:
    """Return the seconds of an epoch of the paper's transformer, without evaluation.

    In each round all arms run once, in random order.

    Args:
        open_workload: From a task's name and a split to the task.
        known: Contenders by name.
        rounds: Number of rounds.
        arms: Names of contenders; AdamW with quantum attention is added.
        steps: Of an epoch.
    """
    cases = [(TOPICS, name) for name in arms] + [(TOPICS_ATTENTION, BASELINE)]
    part = Part("", dict.fromkeys((TOPICS, TOPICS_ATTENTION), steps), tuple(arms), points=1)

    def without_evaluation(name: str, split: SplitName) -> Workload:
        return dataclasses.replace(
            open_workload(name, split),
            validation_loss=lambda params, data: jnp.zeros(()),
            evaluation=None,
        )

    bench, plan = Bench(without_evaluation, known), part.plan(known)
    jobs = {
        case: plan.job("tuning", case[0], known[case[1]], "cost", PUBLISHED_HYPER, 0)
        for case in cases
    }
    for job in jobs.values():
        bench.compiled(job)
    seconds: dict[Any, list[float]] = {case: [] for case in cases}
    rng = random.Random(0)
    for _ in trange(rounds, desc="cost        "):
        for case in rng.sample(cases, len(cases)):
            seconds[case] += [bench.run([jobs[case]])[0]["seconds"]]
    return {name if task == TOPICS else task: found for (task, name), found in seconds.items()}
