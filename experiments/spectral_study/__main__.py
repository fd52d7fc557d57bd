r"""Does the spectral form help? Against AdamW and Muon, tuned alike, on tasks that chose nothing.

`experiments/records/spectral_study.md` has the protocol and what was found.

files: OUTPUT/results.jsonl, a line a run, appended as soon as it is done. What is in it is not run
  again, so that an interrupted study goes on where it stopped.

Examples:
  python -m experiments.spectral_study --data ../shared/data --dry-run
  python -m experiments.spectral_study --data ../shared/data --tasks wikitext sources
  python -m experiments.spectral_study --pack experiments/results/spectral_study
  python -m experiments.spectral_study --output experiments/results/spectral_study \
      --report experiments/records/spectral_study.md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import reporting
from experiments.engine import compute
from experiments.engine.plan import Plan as EnginePlan
from experiments.engine.results import Job, Result, Results
from experiments.engine.runner import Bench, run_jobs
from experiments.engine.workload import SplitName, Workload
from experiments.spectral_study.arms import ARMS, FINE_TUNING_RATES, RATES, SPECTRAL
from experiments.spectral_study.controls import CONTROLS
from experiments.spectral_study.plan import Plan, Task, controls
from experiments.workloads.real import HELD_OUT, LOOKED_AT
from experiments.workloads.unseen import UNSEEN

WORKLOADS = {**UNSEEN, **HELD_OUT, **LOOKED_AT}
CLAIMS = ("wikitext", "sources", "hwu64", "stories-wikitext")
TASKS = {
    task.name: task
    for task in (
        Task("wikitext", 1000, RATES),
        Task("sources", 1000, RATES),
        Task("hwu64", 1000, RATES),
        Task("stories-wikitext", 200, FINE_TUNING_RATES),
        Task("clinc-domains", 1400, RATES, shares=()),
        Task("stories", 200, FINE_TUNING_RATES, shares=()),
        Task("wikitext-wide", 1000, RATES, seeds=5, like="wikitext"),
        Task("wikitext-long", 5000, RATES, seeds=5, like="wikitext"),
    )
}
PLAN = Plan(ARMS, SPECTRAL)
PARTS = ("final", "other-rates", "controls")
WITH_CONTROLS, CONTROL_SEEDS = ("wikitext", "hwu64"), 10
CONTENDERS = {x.name: x for variants in ARMS.values() for x in variants}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.spectral_study",
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
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="what is run (default: all)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what it would cost")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/spectral_study"),
        metavar="PATH",
        help="folder of the runs (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.data is None:
        parser.error("nothing to do: give --data")
    tasks = [TASKS[name] for name in args.tasks]
    bench = Bench(partial(_open, args.data), CONTENDERS)
    if args.dry_run:
        print_cost(PLAN, tasks, bench)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    _note_provenance(args.output)
    results = Results(args.output / "results.jsonl")

    of_controls = Results(args.output / "controls.jsonl")
    with_controls = Bench(partial(_open, args.data), CONTROLS)

    def run(jobs: Iterable[Job], label: str) -> list[Result]:
        return run_jobs(jobs, bench, results, label=label)

    def run_controls(jobs: Iterable[Job], label: str) -> list[Result]:
        return run_jobs(jobs, with_controls, of_controls, label=label)

    def like(task: Task) -> Task | None:
        return None if task.like is None else TASKS[task.like]

    for part in args.parts:
        for task in tasks:
            if part == "final":
                jobs = PLAN.finals(task, PLAN.chosen(task, run, like(task)))
            elif part == "other-rates" and task.like is None:
                jobs = PLAN.other_rates(task, PLAN.chosen(task, run))
            elif part == "controls" and task.name in WITH_CONTROLS:
                ours = dataclasses.replace(PLAN, arms={SPECTRAL: ARMS[SPECTRAL][:1]})
                line = ours.chosen(task, run)[SPECTRAL]
                fewer = dataclasses.replace(task, seeds=CONTROL_SEEDS)
                controls(fewer, CONTROLS, line, run_controls)
                continue
            else:
                continue
            run(jobs, f"{task.name}: {part}")


def _open(folder: Path, name: str, split: SplitName) -> Workload:
    # A longer run is another task of the same workload.
    return WORKLOADS[name](folder, split)


def _note_provenance(output: Path) -> None:
    """Say by which code and where it was run, each time."""
    file = output / "provenance.json"
    known = json.loads(file.read_text())["runs"] if file.exists() else []
    reporting.write_json(file, {"runs": [*known, reporting.provenance()]})


def print_cost(plan: Plan, tasks: Sequence[Task], bench: Bench) -> None:
    """Print the core hours of tasks and arms, from short runs.

    Args:
        plan: What is run on each task.
        tasks: The tasks.
        bench: What runs it.
    """
    rows, total = [], 0.0
    for task in tasks:
        runs = plan.runs(task)
        for name, variants in plan.arms.items():
            timed = EnginePlan({task.name: task.horizon}, {}, points=task.points, shares=())
            cost = compute.measure(timed, bench, task.name, variants[0])
            each = task.horizon * cost.step_seconds + (task.points + 1) * cost.look_seconds
            seconds = runs[name] * each + 2 * len(variants) * cost.compile_seconds
            total += seconds
            rows.append(
                [
                    task.name,
                    name,
                    f"{cost.compile_seconds:.1f}",
                    f"{1e3 * cost.step_seconds:.1f}",
                    f"{each:.1f}",
                    f"{runs[name]:.0f}",
                    f"{seconds / 3600:.2f}",
                ]
            )
    columns = ["task", "optimizer", "compile s", "step ms", "run s", "whole runs", "core hours"]
    notes = [f"{total / 3600:.1f} core hours, without searches of widened ranges"]
    reporting.Table("What the study needs", columns, rows, notes).print()


if __name__ == "__main__":
    main()
