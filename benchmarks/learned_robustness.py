"""Count the runs that diverge at learning rates from a tenth to three times the best.

On each validation task of `benchmarks/learn_circuit.py`, for runs of 96, 200 and 400 steps with a
constant and a cosine schedule, every optimizer's best learning rate is found on a grid of half
decades (mean score of two seeds), and runs of other seeds are made at rates around it, from a tenth
to three times. A run has diverged if a loss is not finite, or the last one is above the untrained
model's.

files: OUTPUT/learned_robustness.json

example: python -m benchmarks.learned_robustness --runs 34
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from benchmarks import reporting
from benchmarks.arguments import positive
from benchmarks.meta.objective import GRID, POINTS, WARMUP, WEIGHT_DECAY, score
from benchmarks.study.contenders import Contender, classical, with_circuit
from benchmarks.study.plan import ROBUSTNESS_FACTORS
from benchmarks.workloads import synthetic
from benchmarks.workloads.base import Curves, Workload, learning_rates, training_run

HORIZONS = (96, 200, 400)
CONTENDERS = ("adamw", "cautious", "circuit")


def diverging(workload: Workload, contender: Contender, runs: int) -> dict[str, Any]:
    """Return how many runs of one optimizer on a task have diverged, and at which rates.

    Args:
        workload: The task.
        contender: The optimizer.
        runs: Of each length and schedule.
    """

    @jax.jit
    def run(seeds: Any, rates: Any, steps: Any, cosine: Any) -> Curves:
        def optimizer(rate: Any) -> optax.GradientTransformation:
            schedule = learning_rates(rate, steps, warmup=WARMUP, cosine=cosine)
            return contender.build({"weight_decay": WEIGHT_DECAY}, schedule)

        keys = jax.vmap(jax.random.key)(seeds)
        data_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        data = jax.vmap(workload.data)(data_keys)
        return training_run(
            workload, optimizer, data, run_keys, rates, steps=steps, points=POINTS, over=[(0, 0, 0)]
        )

    tuning_seeds, rates = np.meshgrid([0, 1], GRID)
    factors = np.geomspace(*ROBUSTNESS_FACTORS, runs)
    diverged: list[float] = []
    for steps in HORIZONS:
        for cosine in (False, True):
            found = score(run(tuning_seeds.ravel(), rates.ravel(), steps, cosine))
            scores = np.reshape(found, rates.shape)
            best = GRID[np.argmin(np.where(np.isfinite(scores), scores, np.inf).mean(1))]
            curves = run(2 + np.arange(runs), best * factors, steps, cosine)
            losses = np.asarray(curves.validation_loss)
            bad = ~np.isfinite(losses).all(1) | ~np.isfinite(curves.train_loss).all(1)
            bad |= losses[:, -1] > losses[:, 0]
            diverged += factors[bad].tolist()
    return {"runs": runs * 2 * len(HORIZONS), "diverged": len(diverged), "at factors": diverged}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learned_robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = classical() | with_circuit()
    add = parser.add_argument
    add("--contenders", nargs="+", choices=known, default=CONTENDERS, metavar="NAME")
    add("--runs", type=positive(int), default=34, metavar="N", help="of each length and schedule")
    add("--output", type=Path, default=Path("results"), metavar="PATH", help="folder for the JSON")
    args = parser.parse_args(argv)
    if args.runs < 2:
        parser.error(f"argument --runs: {args.runs} must be at least 2")
    found = {
        name: {
            workload.name: diverging(workload, known[name], args.runs)
            for workload in tqdm(synthetic.VALIDATION, desc=known[name].label)
        }
        for name in args.contenders
    }
    low, high = ROBUSTNESS_FACTORS
    report = {
        "benchmark": "learned_robustness",
        "provenance": reporting.provenance(),
        "contenders": found,
    }
    reporting.write_json(args.output / "learned_robustness.json", report)
    rows = []
    for name, tasks in found.items():
        counts = [f"{task['diverged']}" for task in tasks.values()]
        bad, total = (sum(task[key] for task in tasks.values()) for key in ("diverged", "runs"))
        rows.append([known[name].label, *counts, f"{bad} of {total}"])
    reporting.print_table(
        f"Runs that diverged at {low:g} to {high:g} times the best learning rate",
        ["optimizer", *(workload.name for workload in synthetic.VALIDATION), "all"],
        rows,
    )


if __name__ == "__main__":
    main()
