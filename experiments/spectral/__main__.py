"""Screen the spectral form against AdamW on two tasks, each tuned over the same eight trials.

Question: does `superpositional_muon` reach, at three quarters of the steps, a lower test loss than
the better of two AdamWs has at all of them?

Protocol, fixed before the runs:

- Tasks: the character models of Shakespeare and of GSM8K's word problems, of the paper's size,
  1,000 steps, batches of 16. Neither is held out: numbers of the package were chosen on both.
- Contenders: AdamW (β₂ = 0.999); AdamW with Nesterov's momentum and β₂ = 0.99; the spectral form
  with Muon's cascade of five stages, and with Polar Express's of three.
- Each is tuned on the validation loss over the same eight points of the unit cube (learning rate,
  weight decay, warm-up), one seed each; a range with its best rate at the border is widened once
  and searched again. Cosine decay.
- Five other seeds then run 750 and 1,000 steps at the best setting; the loss is that of the test
  windows.
- Bar: at 750 steps the mean is below the lower of AdamW's two means at 1,000, on both tasks.

`python -m experiments.spectral --data PATH` runs it and goes on from what is there; `--report FILE`
writes the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optax

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.arms import adamw
from experiments.engine import report
from experiments.engine.contender import Contender
from experiments.engine.plan import Plan, compare
from experiments.engine.results import Results, read_results
from experiments.engine.runner import Bench
from experiments.engine.statistics import Comparison
from experiments.engine.workload import SplitName, Workload
from experiments.workloads.real import HELD_OUT, LOOKED_AT

TASKS = {"characters": HELD_OUT["characters"], "word-problems": LOOKED_AT["word-problems"]}


def _nesterov(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
    return optax.adamw(schedule, b2=0.99, weight_decay=hyper["weight_decay"], nesterov=True)


def _spectral(cascade: str) -> Callable[..., optax.GradientTransformation]:
    def build(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
        decay = hyper["weight_decay"]
        return qsgd.superpositional_muon(
            schedule, cascade, weight_decay=decay, adam_weight_decay=decay
        )

    return build


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("adamw", "AdamW", adamw),
        Contender("nesterov-99", "AdamW, Nesterov, β₂ = 0.99", _nesterov),
        Contender("spectral-muon", "spectral, Muon's cascade", _spectral("muon")),
        Contender("spectral-polar", "spectral, Polar Express", _spectral("polar-express")),
    )
}


def open_workload(folder: Path, name: str, split: SplitName) -> Workload:
    """A task from the folder of all data."""
    return TASKS[name](folder, split)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the screening, or write its report."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.spectral",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="folder of all data")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=list(TASKS),
        metavar="NAME",
        help="some of them",
    )
    parser.add_argument("--steps", type=int, metavar="X", help="of a run, for a smoke run")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/spectral"),
        metavar="PATH",
        help="folder of the runs (default: %(default)s)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the tables there")
    args = parser.parse_args(argv)
    if args.data is None and args.report is None:
        parser.error("nothing to do: give --data or --report")
    results = args.output / "results.jsonl"
    if args.data is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        horizons = {name: args.steps or TASKS[name].horizon for name in args.tasks}
        plan = Plan(horizons, CONTENDERS, trials=8, seeds=5)
        reporting.write_json(args.output / "provenance.json", reporting.provenance())
        compare(plan, Bench(partial(open_workload, args.data), CONTENDERS), Results(results))
    if args.report is not None:
        labels = {name: contender.label for name, contender in CONTENDERS.items()}
        report.write(args.report, Comparison(read_results(results)), labels)


if __name__ == "__main__":
    main()
