r"""The spectral form with cascades that noisy devices answered, against that of exact circuits.

`experiments/records/noisy_cascades.md` has the protocol and what was found.

files: OUTPUT/cascades.json, which `experiments.noisy_cascades.probing` writes where the devices'
  plugins are; OUTPUT/results.jsonl, a line a run, appended as soon as it is done; what is in it is
  not run again. The report is written between its markers, the figure beside it.

Examples:
  .devices/bin/python -m experiments.noisy_cascades.probing --output results/noisy_cascades
  python -m experiments.noisy_cascades --data ../shared/data
  python -m experiments.noisy_cascades --pack experiments/results/noisy_cascades
  python -m experiments.noisy_cascades --output experiments/results/noisy_cascades \
      --report experiments/records/noisy_cascades.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import reporting
from experiments.engine import command, report
from experiments.engine.results import Results, note_provenance, read_results
from experiments.engine.runner import Bench, run_jobs
from experiments.noisy_cascades import figures, study, tables
from experiments.noisy_cascades.probing import FILE
from experiments.spectral_study.__main__ import WORKLOADS, read

LINES, PROVENANCE = "results.jsonl", "provenance.json"
SPECTRAL_STUDY = Path("experiments/results/spectral_study")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = command.parser("noisy_cascades", __doc__)
    names = [task.name for task in study.TASKS]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="some of them")
    args = command.parse(parser, argv)
    if args.data is not None:
        rows, places = study.table(json.loads((args.output / FILE).read_text())["cascades"])
        form = study.contender(rows)
        bench = Bench(lambda name, split: WORKLOADS[name](args.data, split), {form.name: form})
        note_provenance(args.output / PROVENANCE)
        run = partial(run_jobs, bench=bench, results=Results(args.output / LINES))
        tuning = read(SPECTRAL_STUDY).lines
        for task in study.TASKS:
            if task.name in args.tasks:
                run(study.jobs(task, form, places, tuning), label=task.name)
    if args.pack is not None:
        command.pack(args.output, args.pack, [LINES], [FILE, PROVENANCE])
    if args.report is not None:
        _report(args.output, args.report)


def _report(folder: Path, path: Path) -> None:
    cascades = json.loads((folder / FILE).read_text())["cascades"]
    file = command.packed(folder, LINES)
    lines = read_results(file) if file else []
    parts = tables.sections(study.table(cascades)[1], lines, read(SPECTRAL_STUDY))
    picture = path.with_name(f"{path.stem}_functions.png")
    figures.functions(picture, cascades)
    parts.append(f"![f(σ) as each device answers it]({picture.name})")
    reporting.write_atomically(path, report.replaced(path.read_text(), "\n\n".join(parts)))


if __name__ == "__main__":
    main()
