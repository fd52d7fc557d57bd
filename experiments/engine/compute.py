"""What a plan will cost, measured before it starts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tqdm import tqdm

from benchmarks import reporting
from experiments.engine.contender import Contender
from experiments.engine.plan import Plan
from experiments.engine.runner import Bench


@dataclass(frozen=True)
class Cost:
    """What a contender costs on a task, on one core beside another.

    Attributes:
        compile_seconds: To compile its training run for one split.
        step_seconds: A step, in a full batch of runs.
        look_seconds: An evaluation, likewise.
    """

    compile_seconds: float
    step_seconds: float
    look_seconds: float


def measure(plan: Plan, bench: Bench, workload: str, contender: Contender) -> Cost:
    """Time short runs of a contender on a task.

    Args:
        plan: Whose evaluations are counted.
        bench: What runs it.
        workload: Name of the task.
        contender: The optimizer.
    """
    hyper = contender.trials(1)[0]
    bench.workload(workload, "validation")  # its loading is not to be timed

    def seconds(steps: int) -> float:
        job = plan.job("tuning", workload, contender, "timing", hyper, 0, steps)
        return bench.run([job] * bench.batch)[0]["seconds"]

    began = time.perf_counter()
    seconds(plan.points)
    compiled = time.perf_counter() - began
    short, long = seconds(plan.points), seconds(4 * plan.points)
    step = max(0.0, (long - short) / (3 * plan.points))
    looks = max(0.0, short - step * plan.points) / (plan.points + 1)
    return Cost(compiled - bench.batch * short, step, looks)


def total_seconds(
    plan: Plan, workload: str, contender: Contender, cost: Cost, batch: int = 1
) -> float:
    """Return the core seconds of one contender on one task, tuning to robustness.

    Args:
        plan: What is to be compared.
        workload: Name of the task.
        contender: The optimizer.
        cost: What was measured.
        batch: Of the bench.
    """
    looks = plan.runs(contender, batch) * (plan.points + 1) * cost.look_seconds
    steps = plan.steps(workload, contender, batch) * cost.step_seconds
    return 2 * cost.compile_seconds + steps + looks


def print_cost(
    plan: Plan,
    bench: Bench,
    pairs: Iterable[tuple[str, Contender]],
    *,
    title: str = "What the full table needs",
    repeats: int = 1,
) -> None:
    """Print the core hours of tasks and contenders.

    Args:
        plan: What is to be compared.
        bench: What runs it.
        pairs: Tasks and contenders that are timed.
        title: Of the table.
        repeats: How many others cost as much as each of them.
    """
    rows, total = [], 0.0
    for workload, contender in tqdm(list(pairs), desc="timing      "):
        cost = measure(plan, bench, workload, contender)
        seconds = repeats * total_seconds(plan, workload, contender, cost, bench.batch)
        total += seconds
        rows.append(
            [
                workload,
                contender.label,
                f"{cost.compile_seconds:.1f}",
                f"{1e3 * cost.step_seconds:.1f}",
                f"{1e3 * cost.look_seconds:.0f}",
                str(repeats * plan.runs(contender)),
                f"{seconds / 3600:.2f}",
            ]
        )
    columns = ["task", "optimizer", "compile s", "step ms", "evaluation ms", "runs", "core hours"]
    cores = os.cpu_count() or 1
    notes = [
        f"{total / 3600:.1f} core hours, {total / 3600 / cores:.1f} hours on {cores} cores, "
        "without searches of widened ranges"
    ]
    reporting.Table(title, columns, rows, notes).print()
