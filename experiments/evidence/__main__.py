r"""Does superposition help? The paper's claims, matched controls, and where it could help at all.

`experiments/records/evidence.md` has the protocol and what was found. The tasks, optimizers and
numbers of runs stand in one table, `experiments/evidence/table.py`.

parts:
{parts}
  stability    Where Eq. 1 stalls or diverges on a parabola, over the gradient's scale and λ
  norms        Norm of the perturbation against norm of the step over training
  cost         An epoch's time against AdamW's; run it on an otherwise idle machine

files: OUTPUT/results.jsonl, a line a run, appended as soon as it is done. What is in it is not run
  again, so that an interrupted study goes on where it stopped. OUTPUT/stability.json, norms.json,
  cost.json, provenance.json. The report is written between its markers, the figures beside it.

Examples:
  python -m experiments.evidence --quick
  python -m experiments.evidence --full --data ../shared/data --dry-run
  python -m experiments.evidence --full --data ../shared/data --parts paper tuned
  python -m experiments.evidence --results experiments/results/evidence \
      --report experiments/records/evidence.md --findings docs/findings.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.arguments import positive
from experiments.engine.compute import print_cost
from experiments.engine.plan import compare
from experiments.engine.results import Results, read_results, write_compressed
from experiments.engine.runner import Bench
from experiments.evidence import figures, report, stability, study
from experiments.evidence.cost import epoch_seconds
from experiments.evidence.norms import forms, relative_norms
from experiments.evidence.superposed import everything
from experiments.evidence.table import (
    PARTS,
    PUBLISHED_HYPER,
    TOPICS,
    Part,
    needs_data,
    open_workload,
)

SMOKE = "**Smoke run** of a few steps, to see that everything works: its figures mean nothing."


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.output is None:
        args.output = Path("results/evidence-quick" if args.quick else "results/evidence")
    if not (args.quick or args.full or args.report or args.pack):
        parser.error("nothing to do: give --quick, --full, --report or --pack")
    try:
        if args.quick or args.full:
            _run(args)
        if args.report is not None:
            _report(args)
        if args.pack is not None:
            _pack(args.output, args.pack)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _run(args: argparse.Namespace) -> None:
    parts = {name: PARTS[name] for name in args.parts if name in PARTS}
    if args.quick:
        parts = {name: part.smoke() for name, part in parts.items()}
    if args.data is None:
        parts = {name: _without_data(part) for name, part in parts.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    if args.tasks is not None:
        parts = {name: part.restricted(args.tasks) for name, part in parts.items()}
    for name, part in parts.items():
        if part.horizons:
            _run_part(name, part, args)
    if not args.dry_run:
        for name, measured in _measured(args).items():
            if name in args.parts and not (args.output / f"{name}.json").exists():
                _note_provenance(name, args.output)
                reporting.write_json(args.output / f"{name}.json", measured())


def _note_provenance(part: str, output: Path) -> None:
    """Say by which code and where a part was run, each time."""
    file = output / "provenance.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    reporting.write_json(file, known | {part: [*known.get(part, []), reporting.provenance()]})


def _without_data(part: Part) -> Part:
    for name in filter(needs_data, part.horizons):
        print(f"{name} is left out: it needs --data.")
    return part.restricted(name for name in part.horizons if not needs_data(name))


def _run_part(name: str, part: Part, args: argparse.Namespace) -> None:
    plan = part.plan(everything())
    bench = Bench(partial(open_workload, args.data), plan.contenders, batch=part.batch)
    print(f"\n{name}: {part.question}")
    if not args.quick:
        _print_cost(part, plan, bench)
    if not args.dry_run:
        _note_provenance(name, args.output)
        compare(plan, bench, Results(args.output / "results.jsonl"))


def _print_cost(part: Part, plan: Any, bench: Bench) -> None:
    """As if every optimizer cost what AdamW does, and every landscape what the first does."""
    tasks = list(part.horizons)
    alike = study.is_landscape(tasks[0])
    shown, repeats = (tasks[:1], len(tasks)) if alike else (tasks, 1)
    adamw = next(iter(plan.contenders.values()))
    print_cost(
        plan,
        bench,
        [(task, adamw) for task in shown],
        title="What it needs, with AdamW's cost for every optimizer",
        repeats=repeats * len(plan.contenders),
    )


def _measured(args: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """The parts that are no comparison of training runs."""
    topics = partial(open_workload, args.data, TOPICS)
    shorter: dict[str, Any] = {"starts": 4, "steps": 50} if args.quick else {}
    norms: dict[str, Any] = {
        "learning_rate": PUBLISHED_HYPER["learning_rate"],
        "steps": 20 if args.quick else 1875,
        "points": 5 if args.quick else 15,
        "seeds": range(2 if args.quick else 5),
    }
    return {
        "stability": lambda: {
            weigh: stability.stability_map(weigh, **shorter) for weigh in stability.WEIGHS
        },
        "norms": lambda: {
            label: relative_norms(topics("validation"), **norms, **form)
            for label, form in forms().items()
        },
        "cost": lambda: epoch_seconds(
            partial(open_workload, args.data),
            everything(),
            rounds=2 if args.quick else args.rounds,
            **({"steps": 4, "arms": ("adamw", "paper")} if args.quick else {}),
        ),
    }


def _report(args: argparse.Namespace) -> None:
    found = study.read_study(args.results or args.output)
    drawn = figures.draw(args.report.parent, args.report.stem, found)
    report.write(args.report, found, drawn, SMOKE if args.quick else "")
    print(f"Wrote {args.report} and its figures")
    if args.findings is not None:
        report.quote(args.findings, found)
        print(f"Wrote the claims to {args.findings}")


def _pack(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    write_compressed(target / "results.jsonl.gz", read_results(source / "results.jsonl"))
    for name in study.MEASURED:
        if (source / f"{name}.json").exists():
            shutil.copy(source / f"{name}.json", target)
    print(f"Wrote what the report is made of to {target}")


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:12} {part.question}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evidence",
        description=(__doc__ or "").replace("{parts}", listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = list(itertools.chain(PARTS, ("stability", "norms", "cost")))
    add = parser.add_argument
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--quick", action="store_true", help="a smoke run of minutes, whose figures mean nothing"
    )
    length.add_argument("--full", action="store_true", help="the study, of hours on two cores")
    add(
        "--parts",
        nargs="+",
        choices=names,
        default=names,
        metavar="PART",
        help="see above (default: all)",
    )
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder with clinc150 and tinyshakespeare, without which their tasks are left out; "
        "what is missing there is named with its source",
    )
    tasks = [task for part in PARTS.values() for task in part.horizons]
    add(
        "--tasks",
        nargs="+",
        choices=tasks,
        metavar="TASK",
        help="of the parts' tasks, those that run (default: all)",
    )
    add(
        "--rounds",
        type=positive(int),
        default=20,
        metavar="N",
        help="of cost (default: %(default)s)",
    )
    add(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder for the runs (default: results/evidence, or -quick beside it)",
    )
    add("--dry-run", action="store_true", help="print the compute that is needed, and stop")
    add("--report", type=Path, metavar="FILE", help="write this, and its figures, from the runs")
    add("--findings", type=Path, metavar="FILE", help="quote the report's claims in this file")
    add(
        "--results",
        type=Path,
        metavar="PATH",
        help="folder to report from (default: that of --output)",
    )
    add("--pack", type=Path, metavar="PATH", help="copy the runs there, compressed")
    return parser


if __name__ == "__main__":
    main()
