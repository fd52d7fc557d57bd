"""Cascades with learned angles, against the hand-set one and Muon, on tasks that chose nothing.

`experiments/records/learned_cascades.md` has the protocol and what was found.

parts, each of which needs those before it:
  learn   The learning rates of the hand-set cascade, then every way of learning
  choose  What was learned, on tasks that were looked at
  final   The best of it, on held-out tasks

files: OUTPUT/results.jsonl, a line a run, appended as soon as it is done; what is in it is not run
  again. OUTPUT/learned.json has the numbers that were learned, and their scores. The report is
  written between its markers, the figures beside it.

Examples:
  python -m experiments.learned_cascades --data ../shared/data
  python -m experiments.learned_cascades --pack experiments/results/learned_cascades
  python -m experiments.learned_cascades --output experiments/results/learned_cascades \
      --report experiments/records/learned_cascades.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import reporting
from experiments.engine import command, report
from experiments.engine.results import (
    Job,
    Result,
    Results,
    note_provenance,
    read_results,
)
from experiments.engine.runner import Bench, run_jobs
from experiments.engine.workload import SplitName, Workload
from experiments.learned_cascades import figures, study, tables
from experiments.learned_cascades.cascades import FORMS
from experiments.workloads.real import HELD_OUT, LOOKED_AT
from experiments.workloads.synthetic import task
from experiments.workloads.unseen import UNSEEN

REAL = {**UNSEEN, **HELD_OUT, **LOOKED_AT}
PARTS = ("learn", "choose", "final")
LINES, LEARNED, PROVENANCE = "results.jsonl", "learned.json", "provenance.json"
SPECTRAL_STUDY = Path("experiments/results/spectral_study/results.jsonl.gz")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = command.parser("learned_cascades", __doc__)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="what is run (default: all)",
    )
    args = command.parse(parser, argv)
    if args.data is not None:
        _run(args)
    if args.pack is not None:
        command.pack(args.output, args.pack, [LINES], [LEARNED, PROVENANCE])
    if args.report is not None:
        _report(args.output, args.report)


def _run(args: argparse.Namespace) -> None:
    bench = Bench(partial(_open, args.data), FORMS)
    args.output.mkdir(parents=True, exist_ok=True)
    note_provenance(args.output / PROVENANCE)
    results, file = Results(args.output / LINES), args.output / LEARNED
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"learned": {}}

    def run(jobs: Iterable[Job], label: str) -> list[Result]:
        return run_jobs(jobs, bench, results, label=label)

    if "learn" in args.parts:
        rests = study.tuned(study.LEARN, run)
        for name, learn in study.ways(rests, run, bench).items():
            if name not in found["learned"]:
                found["learned"][name] = learn()
                reporting.write_json(file, found)
    if "choose" in args.parts:
        found["scores"] = study.scores(found["learned"], run)
        found["best"] = study.best_of(found["scores"])
        reporting.write_json(file, found)
    if "final" in args.parts:
        name = found["best"]
        numbers = found["learned"][name]
        lines = study.finals({name: numbers}, read_results(SPECTRAL_STUDY), run)
        found["singular_values"] = study.singular_values(name, numbers, lines, bench)
        reporting.write_json(file, found)


def _report(folder: Path, path: Path) -> None:
    found = json.loads((folder / LEARNED).read_text())
    file = command.packed(folder, LINES)
    lines = read_results(file) if file else []
    parts = tables.sections(found, lines, read_results(SPECTRAL_STUDY))
    pictures = [
        ("curves", figures.curves, "What was learned: f(σ) and w(σ)"),
        ("course", figures.courses, "Courses, from the first step to the last"),
    ]
    if "singular_values" in found:
        text = "The best, its probe, and the singular values of a model that it trained"
        pictures.append(("best", figures.best, text))
    for name, draw, text in pictures:
        picture = path.with_name(f"{path.stem}_{name}.png")
        draw(picture, found)
        parts.append(f"![{text}]({picture.name})")
    reporting.write_atomically(path, report.replaced(path.read_text(), "\n\n".join(parts)))


def _open(folder: Path, name: str, split: SplitName) -> Workload:
    return REAL[name](folder, split) if name in REAL else task(name)


if __name__ == "__main__":
    main()
