r"""Compare the learned circuit with AdamW, rivals and controls on tasks it was not learned on.

Every optimizer has the same tuning budget on every task: the same points of the unit cube become
learning rate, weight decay and warm-up, then cosine decay (but for schedule-free AdamW). A range
whose best trial lies at its border is widened by half a decade and searched once more. Tuning reads
the validation split and seeds from 1000; the final runs the test split and seeds 0, 1, ..., over
the whole horizon and over three quarters of it. The task word-problems is not held out: it is there
to choose numbers on, with an --output of its own.

files: OUTPUT/results.jsonl, a line a run, appended as soon as it is done. What is in it is not run
  again, so that an interrupted comparison goes on where it stopped. OUTPUT/provenance.json.

Examples:
  python -m benchmarks.learned_circuit --data ../shared/data --dry-run
  python -m benchmarks.learned_circuit --data ../shared/data --workloads stories \
      --contenders adamw circuit --trials 4 --seeds 5
  python -m benchmarks.learned_circuit --data ../shared/data \
      --gate perceptron=results/learn_circuit/perceptron-2-0/numbers.json
  python -m benchmarks.learned_circuit --report docs/learned_circuit.md --results results.jsonl.gz
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import reporting
from benchmarks.arguments import not_negative, positive
from benchmarks.learn_circuit import read_numbers
from benchmarks.study import report
from benchmarks.study.compute import print_cost
from benchmarks.study.contenders import BASELINE, Contender, classical, learned, with_circuit
from benchmarks.study.plan import Plan, compare
from benchmarks.study.results import Results, read_results
from benchmarks.study.runner import Bench
from benchmarks.study.statistics import Comparison
from benchmarks.workloads.base import Workload
from benchmarks.workloads.classification import Split
from benchmarks.workloads.real import HELD_OUT, LOOKED_AT

WIDE = tuple(name for name in HELD_OUT if name.endswith("-wide"))
TASKS = HELD_OUT | LOOKED_AT
LONGER = " ×"  # between a task's name and its horizon's factor


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.report is not None:
            _report(args)
        else:
            _compare(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _report(args: argparse.Namespace) -> None:
    results = [line for file in args.results for line in read_results(file)]
    labels = {name: one.label for name, one in (classical() | with_circuit()).items()}
    report.write(args.report, Comparison(results), labels)
    print(f"Wrote {args.report} and its figures")


def _compare(args: argparse.Namespace) -> None:
    contenders = _contenders(args)
    plan = Plan(
        horizons={
            _name(task, args.horizon_factor): TASKS[task].horizon * args.horizon_factor
            for task in args.workloads
        },
        contenders=contenders,
        trials=args.trials,
        seeds=args.seeds,
        points=args.points,
        robustness=args.robustness,
    )

    def open_workload(name: str, split: Split) -> Workload:
        return TASKS[name.split(LONGER)[0]](args.data, split)

    bench = Bench(open_workload, contenders, batch=args.batch)
    for name in plan.horizons:  # to fail now, where data are missing, rather than late
        bench.workload(name, "validation")
    print_cost(plan, bench, plan.pairs())
    if args.dry_run:
        return
    args.output.mkdir(parents=True, exist_ok=True)
    reporting.write_json(args.output / "provenance.json", reporting.provenance())
    compare(plan, bench, Results(args.output / "results.jsonl"))
    print(f"Wrote {args.output / 'results.jsonl'}")


def _name(task: str, factor: int) -> str:
    """A longer horizon is a task of its own: its results never mix with the usual ones."""
    return task if factor == 1 else f"{task}{LONGER}{factor}"


def _contenders(args: argparse.Namespace) -> dict[str, Contender]:
    known = classical() | with_circuit()
    chosen = {name: known[name] for name in dict.fromkeys([BASELINE, *args.contenders])}
    for name, file in args.gate:
        if name in known or name in chosen:
            raise ValueError(f"--gate {name}: there are two contenders of this name.")
        gate, numbers, _ = read_numbers(file)
        chosen[name] = learned(name, gate.build(numbers))
    return chosen


def _gate(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not name or not equals or not file:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FILE")
    return name, Path(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learned_circuit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    known = [*classical(), *with_circuit()]
    narrow = [name for name in HELD_OUT if name not in WIDE]
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        metavar="PATH",
        help="folder with clinc150, tinyshakespeare, stories260k and, for word-problems, gsm8k "
        "(default: %(default)s)",
    )
    add(
        "--workloads",
        nargs="+",
        choices=TASKS,
        default=narrow,
        metavar="TASK",
        help=f"among {', '.join(TASKS)} (default: those held out, of width 64)",
    )
    add(
        "--contenders",
        nargs="+",
        choices=known,
        default=known,
        metavar="NAME",
        help=f"among {', '.join(known)}; AdamW always runs (default: all)",
    )
    add(
        "--gate",
        action="append",
        type=_gate,
        default=[],
        metavar="NAME=FILE",
        help="a further contender, from a numbers.json of learn_circuit; may be repeated",
    )
    for name, kind, default, text in (
        ("trials", positive(int), 8, "hyperparameters to try"),
        ("seeds", positive(int), 20, "final runs of each length"),
        ("points", positive(int), 10, "evaluations a run"),
        ("robustness", not_negative(int), 0, "runs at 0.1 to 3 times the best learning rate"),
        ("horizon-factor", positive(int), 1, "how many times longer than usual a run is"),
        ("batch", positive(int), 1, "runs in one program; the number of seeds is good on a GPU"),
    ):
        add(
            f"--{name}",
            type=kind,
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    add(
        "--output",
        type=Path,
        default=Path("results/learned_circuit"),
        metavar="PATH",
        help="folder for the files (default: %(default)s)",
    )
    add("--dry-run", action="store_true", help="print the compute that is needed, and stop")
    add("--report", type=Path, metavar="FILE", help="write this from --results, train nothing")
    add(
        "--results",
        type=Path,
        nargs="+",
        default=[Path("results/learned_circuit/results.jsonl")],
        metavar="FILE",
        help="results.jsonl, may be compressed (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
