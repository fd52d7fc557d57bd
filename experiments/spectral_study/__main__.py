r"""Does the spectral form help? Against AdamW and Muon, tuned alike, on tasks that chose nothing.

`experiments/records/spectral_study.md` has the protocol and what was found.

parts:
  final        Tuning, and the final runs
  other-rates  Learning rates around the best
  controls     The same step with one part of it changed
  time         A step's time; run it on an otherwise idle machine
  spectra      Singular values of a matrix's change along a training

files: OUTPUT/results.jsonl and controls.jsonl, a line a run, appended as soon as it is done. What
  is in them is not run again, so that an interrupted study goes on where it stopped. And
  OUTPUT/time.json, spectra.json, provenance.json; and smollm2-*.json, which are summaries that
  `benchmarks.llm_finetune` wrote. The report is written between its markers, the figures beside it.

Examples:
  python -m experiments.spectral_study --data ../shared/data --dry-run
  python -m experiments.spectral_study --data ../shared/data --tasks wikitext sources
  python -m experiments.spectral_study --pack experiments/results/spectral_study
  python -m experiments.spectral_study --output experiments/results/spectral_study \
      --report experiments/records/spectral_study.md --findings docs/findings.md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import reporting
from experiments.engine import command, compute, report
from experiments.engine.plan import Plan as EnginePlan
from experiments.engine.results import (
    Job,
    Result,
    Results,
    note_provenance,
    read_results,
)
from experiments.engine.runner import Bench, run_jobs
from experiments.engine.workload import SplitName, Workload
from experiments.spectral_study import figures, larger_model, tables
from experiments.spectral_study.arms import ARMS, FINE_TUNING_RATES, RATES, SPECTRAL
from experiments.spectral_study.controls import CONTROLS
from experiments.spectral_study.effects import Study
from experiments.spectral_study.measure import spectra, step_seconds
from experiments.spectral_study.plan import Plan, Run, Task, controls
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
OTHERS = [task for task in TASKS if task not in CLAIMS]
PLAN = Plan(ARMS, SPECTRAL)
PARTS = ("final", "other-rates", "controls", "time", "spectra")
MATRIX, LOOKS = "['blocks'][0]['expand']['kernel']", (10, 50, 200, 500, 1000)
LINES = ("results.jsonl", "controls.jsonl")
MEASURED = ("time.json", "spectra.json", "provenance.json", *larger_model.TUNING)
WITH_CONTROLS, CONTROL_SEEDS = ("wikitext", "hwu64"), 10
CONTENDERS = {x.name: x for variants in ARMS.values() for x in variants}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = command.parser("spectral_study", __doc__)
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
    parser.add_argument("--findings", type=Path, metavar="FILE", help="write tables into this page")
    args = command.parse(parser, argv, "findings")
    if args.data is not None:
        _run(args)
    if args.pack is not None:
        command.pack(args.output, args.pack, LINES, MEASURED)
    if args.report is not None:
        _report(args.output, args.report)
    if args.findings is not None:
        found = tables.findings(read(args.output), CLAIMS, OTHERS)
        page = report.replaced(args.findings.read_text(), found, "the spectral study")
        reporting.write_atomically(args.findings, page)


def _run(args: argparse.Namespace) -> None:
    tasks = [TASKS[name] for name in args.tasks]
    bench = Bench(partial(_open, args.data), CONTENDERS)
    if args.dry_run:
        print_cost(PLAN, tasks, bench)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    note_provenance(args.output / "provenance.json")
    results = Results(args.output / "results.jsonl")

    def run(jobs: Iterable[Job], label: str) -> list[Result]:
        return run_jobs(jobs, bench, results, label=label)

    def chosen(task: Task) -> dict[str, Result]:
        return PLAN.chosen(task, run, None if task.like is None else TASKS[task.like])

    for task in tasks if "final" in args.parts else []:
        run(PLAN.finals(task, chosen(task)), f"{task.name}: final")
    for task in tasks if "other-rates" in args.parts else []:
        if task.like is None:
            run(PLAN.other_rates(task, chosen(task)), f"{task.name}: other rates")
    for task in tasks if "controls" in args.parts else []:
        if task.name in WITH_CONTROLS:
            _run_controls(args, task, run)
    if "time" in args.parts:
        claims = [task for task in tasks if task.name in CLAIMS]
        lines = {task.name: chosen(task) for task in claims}
        reporting.write_json(args.output / "time.json", step_seconds(claims, lines, bench))
    if "spectra" in args.parts:
        task = TASKS[WITH_CONTROLS[0]]
        sigma = {
            arm: spectra(
                bench.workload(task.name, "validation"),
                CONTENDERS[line["contender"]],
                line["hyper"],
                leaf=MATRIX,
                steps=task.horizon,
                looks=LOOKS,
            )
            for arm, line in chosen(task).items()
        }
        content = {"task": task.name, "steps": LOOKS, "sigma": sigma}
        reporting.write_json(args.output / "spectra.json", content)


def _run_controls(args: argparse.Namespace, task: Task, run: Run) -> None:
    """At the best settings of the spectral form without a second moment."""
    bench = Bench(partial(_open, args.data), CONTROLS)
    results = Results(args.output / "controls.jsonl")
    plain = dataclasses.replace(PLAN, arms={SPECTRAL: ARMS[SPECTRAL][:1]})
    fewer = dataclasses.replace(task, seeds=CONTROL_SEEDS)
    controls(
        fewer,
        CONTROLS,
        plain.chosen(task, run)[SPECTRAL],
        lambda jobs, label: run_jobs(jobs, bench, results, label=label),
    )


def read(folder: Path) -> Study:
    """Read what was run, or packed.

    Args:
        folder: Of the runs.
    """

    def lines(name: str) -> list[Result]:
        file = command.packed(folder, name)
        return read_results(file) if file else []

    timed = folder / "time.json"
    seconds = json.loads(timed.read_text()) if timed.exists() else None
    return Study(lines(LINES[0]), lines(LINES[1]), seconds)


def _report(folder: Path, path: Path) -> None:
    study = read(folder)
    tasks = [task for task in CLAIMS if task in study.tasks]
    with_controls = [
        task for task in WITH_CONTROLS if len(study.of_controls(task)) == len(CONTROLS)
    ]
    parts = [*tables.sections(study, CLAIMS, OTHERS), *larger_model.sections(folder)]

    def picture(name: str, draw: Callable[[Path], None], text: str) -> None:
        file = path.with_name(f"{path.stem}_{name}.png")
        draw(file)
        parts.append(f"![{text}]({file.name})")

    picture("forest", lambda x: figures.forest(x, study, tasks), "Differences, with intervals")
    picture("curves", lambda x: figures.curves(x, study, tasks), "Learning curves")
    if with_controls:
        draw = partial(figures.stages, study=study, tasks=with_controls)
        picture("stages", draw, "Loss against the number of stages")
    if (folder / "spectra.json").exists():
        found = json.loads((folder / "spectra.json").read_text())
        draw = partial(figures.spectra, found=found)
        picture("spectra", draw, "Singular values of a matrix's change along a training")
    old = path.read_text() if path.exists() else ""
    reporting.write_atomically(path, report.replaced(old, "\n\n".join(parts)))


def _open(folder: Path, name: str, split: SplitName) -> Workload:
    # A longer run is another task of the same workload.
    return WORKLOADS[name](folder, split)


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
