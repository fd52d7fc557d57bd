"""Compare natural gradients with Adam, and their cost with PennyLane's and a Jacobian by hand.

Run it as `python -m benchmarks.natural_gradient`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import numpy as np
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.arguments import positive
from benchmarks.natural.ground_states import (
    Runs,
    errors,
    executions,
    measured_errors,
    reached,
    tuned,
)
from benchmarks.natural.problems import PROBLEMS
from benchmarks.natural.steps import step_times, timed
from benchmarks.natural.tables import tables

DESCRIPTION = """\
Three questions to qsgd_jax.scale_by_metric.

What does a step cost? One step (gradient, metric, update) of layers of RY, RZ and a ring of CNOT, a
transverse-field Ising energy:

  by hand        on default.qubit, the Jacobian of the state as jax.jacfwd gives it
  whole, block-diag    qsgd_jax.FubiniStudy
  QNGOptimizerQJIT     PennyLane's, block-diagonal, with --python PATH, in an environment whose jax
                 its metric tensor runs on: make test-catalyst makes .catalyst
  adam           without a metric

Does it take fewer steps? The ground state of two problems, exact, learning rates tuned for each
optimizer on seeds of their own, then --seeds more: steps until the relative error of the energy is
0.01 and 0.001, the median, and how many seeds come that far.

  ising    a ring in a transverse field; couplings and field act in turns, n/2 + 1 times
  maxcut   of a ring whose opposite vertices are joined; each edge and vertex has an angle of its
           own, twice

And with --shots measurements, on the smallest of each: there circuits count. Seconds are steps
times the median time of a step of that problem.
"""

PARTS = ("steps", "exact", "measured")


def exact_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what exact runs came to, problem by problem.

    Args:
        args: Of the command line.
    """
    problems = [problem(n) for n in args.qubits for problem in PROBLEMS.values()]
    times = [step_times(x, args.devices, args.rounds) for x in problems]  # while nothing else runs
    for problem, step_ms in zip(tqdm(problems, desc="exact"), times, strict=True):
        whole = qsgd.FubiniStudy(problem.qnode("default.qubit"))
        arms = {}
        for arm, metric in (("adam", None), ("natural, whole", whole)):
            runs = errors(problem, metric, steps=args.steps)
            arms[arm] = _tuned_and_run(runs, args) | {"step_ms": step_ms[arm]}
        yield {"problem": problem.name, "n_qubits": problem.n_qubits, "arms": arms}


def measured_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what runs in shots came to, problem by problem, of the smallest size.

    Args:
        args: Of the command line.
    """
    for name in tqdm(PROBLEMS, desc="measured"):
        problem = PROBLEMS[name](min(args.qubits))
        qnode = problem.qnode("lightning.qubit", args.shots)
        block = qsgd.FubiniStudy(qnode, "block-diag", decay=0.9)
        arms = {}
        for arm, metric in (("adam", None), ("natural, block-diag", block)):
            seconds: list[float] = []
            runs = measured_errors(
                problem, metric, steps=args.steps, shots=args.shots, seconds=seconds
            )
            arms[arm] = _tuned_and_run(runs, args) | {
                "executions": executions(problem, metric, args.shots),
                "step_ms": {"lightning.qubit": 1000 * float(np.median(seconds))},
            }
        yield {"problem": name, "n_qubits": min(args.qubits), "arms": arms}


def _tuned_and_run(runs: Runs, args: argparse.Namespace) -> dict[str, Any]:
    rate = tuned(runs, args.tuning_seeds)
    return {"rate": rate, "reached": reached(runs([rate] * args.seeds, range(args.seeds)))}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.natural_gradient",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is run (default: all)")
    add("--devices", nargs="+", default=("default.qubit", "lightning.qubit"), metavar="NAME")
    add("--timed-qubits", nargs="+", type=positive(int), default=(4, 8), metavar="N")
    add("--qubits", nargs="+", type=positive(int), default=(4, 8, 12), metavar="N")
    add("--depth", type=positive(int), default=4, metavar="X", help="of what is timed")
    add("--seeds", type=positive(int), default=20, metavar="X", help="(default: %(default)s)")
    add("--tuning-seeds", type=positive(int), default=5, metavar="X")
    add("--steps", type=positive(int), default=200, metavar="X", help="(default: %(default)s)")
    add("--shots", type=positive(int), default=1000, metavar="X", help="(default: %(default)s)")
    add("--rounds", type=positive(int), default=21, metavar="X", help="(default: %(default)s)")
    add("--python", metavar="PATH", help="of the environment with PennyLane's optimizer")
    add("--output", type=Path, default=Path("results/natural_gradient"), metavar="PATH")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "benchmark": "natural_gradient",
        "provenance": reporting.provenance(),
        "seeds": args.seeds,
        "steps": [],
        "exact": [],
        "measured": [],
    }

    def store(key: str, row: dict[str, Any]) -> None:
        report[key].append(row)
        reporting.write_json(args.output / "natural_gradient.json", report)

    if "steps" in args.parts:
        for device, n_qubits in itertools.product(args.devices, args.timed_qubits):
            arms = timed(device, n_qubits, args.depth, args.python, args.rounds)
            parameters = 2 * n_qubits * args.depth
            row = {"device": device, "n_qubits": n_qubits, "parameters": parameters, "arms": arms}
            store("steps", row)
    if "exact" in args.parts:
        for row in exact_rows(args):
            store("exact", row)
    if "measured" in args.parts:
        for row in measured_rows(args):
            store("measured", row)
    for table in tables(report):
        table.print()


if __name__ == "__main__":
    main()
