"""The evidence study as markdown: the paper's claims, controls, tasks, sweeps, landscapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks import reporting
from experiments.engine.contender import BASELINE
from experiments.engine.report import replaced
from experiments.evidence import tables
from experiments.evidence.study import Study, is_landscape
from experiments.evidence.table import SWEPT

LEGEND = (
    "Accuracy and success in per cent and their differences in points; losses, and their "
    "differences in per cent of the other's. Means with 95 % bootstrap intervals (percentiles; of "
    "10 values they cover some 90 %); differences are paired by seed; p by flips of sign, "
    "two-sided: uncorrected in the table above, else after Holm over a table's rows. They hold "
    "for the trial that tuning chose. At equal settings: over the trials that AdamW has too, the "
    "median difference in validation loss, and in how many it is lower. IQM: interquartile mean. "
    "To target: median share of the run until the curve reaches AdamW's mean at the end (90 % at "
    "the paper's settings); missed: runs that never do. Trial: which was chosen, and its learning "
    "rate. Diverged: a loss that is not finite, or ends above the untrained model's."
)


def markdown(study: Study, figures: Mapping[str, str], note: str = "") -> str:
    """Return the generated part of the report.

    Args:
        study: The results.
        figures: File names by figure; those that are missing are left out.
        note: What to say first.
    """

    def figure(name: str, text: str) -> list[str]:
        return [f"![{text}]({figures[name]})"] if name in figures else []

    parts = [note, "### The paper's claims", tables.claims(study), LEGEND, tables.code(study)]
    parts += figure("forest", "Differences to AdamW, and to matched controls")
    for title, columns, effects in (
        (
            "Against matched controls and other counterparts",
            tables.PAIR_COLUMNS,
            tables.pair_effects(study),
        ),
        (
            "Quantum attention minus classical attention",
            tables.ATTENTION_COLUMNS,
            tables.attention_effects(study),
        ),
    ):
        parts += [f"### {title}", tables.corrected(columns, effects)] if effects else []
    for task in study.tasks:
        if SWEPT not in task.workload:
            title = f"### {task.workload}: {task.measure.name}, {task.horizon:,} steps"
            parts += [title, tables.task_table(study, task)]
    parts += [tables.without_finals(study), *figure("curves", "Learning curves")]
    if sweeps := tables.sweep_effects(study):
        parts += ["### More and more of it", tables.corrected(tables.SWEEP_COLUMNS, sweeps)]
        parts += figure("sweep", "Differences to AdamW over λ and over shots")
    if any(map(is_landscape, study.workloads)):
        seeds = {len(study.task(w).runs(BASELINE)) for w in filter(is_landscape, study.workloads)}
        rates, excesses = tables.landscape_tables(study)
        parts += [
            "### Landscapes: runs that succeed, in per cent",
            f"{', '.join(map(str, sorted(seeds)))} starts a cell; * p < 0.05 against AdamW, by "
            "flips of sign, after Holm over the row.",
            rates,
            "### Landscapes: median excess over the minimum at the end",
            "* p < 0.05 against AdamW, by Wilcoxon's signed ranks, after Holm over the row.",
            excesses,
            *figure("landscapes", "Success over the dimension"),
        ]
    if study.stability:
        parts += ["### Where Eq. 1 stalls or diverges", *figure("stability", "Stability")]
    if study.norms:
        parts += [
            "### Norm of the perturbation over the norm of Adam's step",
            tables.norm_table(study),
            *figure("norms", "Norms along training"),
        ]
    if study.cost:
        parts += ["### Cost", tables.cost_table(study)]
    return "\n\n".join(filter(None, parts))


def write(path: Path, study: Study, figures: Mapping[str, str], note: str = "") -> None:
    """Write the generated part between the markers of a markdown file.

    Args:
        path: The file, made where missing.
        study: The results.
        figures: As in `markdown`.
        note: As in `markdown`.
    """
    old = path.read_text() if path.exists() else ""
    reporting.write_atomically(path, replaced(old, markdown(study, figures, note)))


def quote(path: Path, study: Study) -> None:
    """Write the claims' table between the markers of the page of findings.

    Args:
        path: The page.
        study: The results.
    """
    reporting.write_atomically(path, replaced(path.read_text(), tables.claims(study)))
