"""The comparison as markdown tables and two figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import reporting
from experiments.engine.contender import BASELINE
from experiments.engine.statistics import Bars, Comparison, Estimate, Row, bars

BEGIN, END = "<!-- results: generated, do not edit -->", "<!-- end of results -->"
COLUMNS = (
    "optimizer",
    "test loss",
    "difference to AdamW",
    "p (Holm)",
    "at ¾ of the steps",
    "p (less)",
    "steps to target",
    "seeds",
    "trials",
    "diverged",
    "diverged at other rates",
)
BAR_COLUMNS = (
    "optimizer",
    "tasks with ≤ ¾ of the steps",
    "worst difference to AdamW",
    "diverged at 0.1 to 3 times the rate",
    "mean difference to Cautious AdamW",
)
LEGEND = (
    "Differences are paired by seed, in per cent of AdamW's final loss, with 95 % bootstrap "
    "intervals; p by flips of sign, two-sided after Holm over the optimizers of a task, and "
    "one-sided for runs of ¾ of the horizon against AdamW's whole ones. Steps to target: median "
    "share of the horizon until the loss along the curve is AdamW's final mean. Diverged: a loss "
    "that is not finite, which counts with the untrained model's, or a final one above it."
)


def write(path: Path, comparison: Comparison, labels: Mapping[str, str]) -> None:
    """Write the tables between the markers of a markdown file, and the figures beside it.

    Args:
        path: The file; it is made, or gets the markers at its end, where they are missing.
        comparison: The results.
        labels: What tables call the contenders, by name.
    """
    tables = {workload: comparison.rows(workload) for workload in comparison.workloads}
    names = {"forest": f"{path.stem}_forest.png", "curves": f"{path.stem}_curves.png"}
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_forest(path.with_name(names["forest"]), tables, labels)
    plot_curves(path.with_name(names["curves"]), comparison, labels)
    content = _markdown(tables, comparison, labels, names)
    old = path.read_text() if path.exists() else ""
    reporting.write_atomically(path, replaced(old, content))


def replaced(text: str, content: str, name: str = "") -> str:
    """Return the text with this between its markers, which are appended where missing.

    Args:
        text: Of the file.
        content: What goes between the markers.
        name: In the first marker, where a file has several.

    Raises:
        ValueError: If only one of the markers is there, or they stand in the wrong order.
    """
    begin = BEGIN.replace("results", f"results of {name}") if name else BEGIN
    if begin not in text and END not in text:
        text += f"{begin}\n{END}\n"
    before, found, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"expected the markers {begin!r} and then {END!r}.")
    return f"{before}{begin}\n\n{content}\n\n{END}{after}"


def _markdown(
    tables: Mapping[str, Sequence[Row]],
    comparison: Comparison,
    labels: Mapping[str, str],
    figures: Mapping[str, str],
) -> str:
    all_rows = [row for rows in tables.values() for row in rows]
    parts = [
        reporting.markdown_table(BAR_COLUMNS, [_bar_cells(one, labels) for one in bars(all_rows)])
    ]
    parts += [f"![Differences to AdamW]({figures['forest']})", LEGEND]
    for workload, rows in tables.items():
        parts.append(f"### {workload}, {comparison.horizon(workload):,} steps")
        parts.append(reporting.markdown_table(COLUMNS, [cells(row, labels) for row in rows]))
    return "\n\n".join([*parts, f"![Learning curves]({figures['curves']})"])


def cells(row: Row, labels: Mapping[str, str]) -> list[str]:
    """Return a row as `COLUMNS` has it.

    Args:
        row: The figures.
        labels: Of the contenders, by name.
    """
    baseline = row.contender == BASELINE
    tried, failed = row.robustness
    return [
        labels.get(row.contender, row.contender),
        f"{row.loss.mean:.4f} [{row.loss.low:.4f}, {row.loss.high:.4f}]",
        "" if baseline else _per_cent(row.difference),
        "" if baseline else p_value(row.adjusted_p),
        _per_cent(row.shorter_difference),
        p_value(row.shorter_p),
        "never" if math.isinf(row.steps_to_target) else f"{row.steps_to_target:.2f}",
        str(row.seeds),
        str(row.trials),
        str(row.diverged),
        f"{failed} of {tried}" if tried else "–",
    ]


def _bar_cells(one: Bars, labels: Mapping[str, str]) -> list[str]:
    return [
        labels.get(one.contender, one.contender),
        f"{len(one.faster)}" + (f" ({', '.join(one.faster)})" if one.faster else ""),
        f"{one.worst:+.2f} %",
        f"{one.diverged} of {one.runs}" if one.runs else "–",
        "–" if math.isnan(one.to_cautious) else f"{one.to_cautious:+.2f} %",
    ]


def _per_cent(estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "–"
    return f"{estimate.mean:+.2f} % [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def p_value(value: float) -> str:
    """Return a p-value as tables show it.

    Args:
        value: NaN where there is none.
    """
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def plot_forest(path: Path, tables: Mapping[str, Sequence[Row]], labels: Mapping[str, str]) -> None:
    """Draw the paired differences to AdamW with their intervals, a panel a task.

    Args:
        path: The PNG.
        tables: Rows by task.
        labels: Of the contenders, by name.
    """
    most = max(map(len, tables.values()))
    figure, axes = panels(len(tables), 0.8 + 0.22 * max(most, 6))
    for panel, (workload, rows) in zip(axes, tables.items(), strict=True):
        shown = [row for row in rows if row.contender != BASELINE]
        means = np.array([row.difference.mean for row in shown])
        bounds = np.array([[row.difference.low, row.difference.high] for row in shown])
        if shown:
            errors = np.nan_to_num(np.abs(bounds.T - means))
            panel.errorbar(means, np.arange(len(shown)), xerr=errors, fmt="o", ms=4, capsize=2)
        panel.axvline(0, color="0.6", lw=0.8)
        panel.axvline(1, color="C3", lw=0.8, ls="--")  # the bar: nowhere worse by more
        panel.set_yticks(range(len(shown)), [labels.get(r.contender, r.contender) for r in shown])
        panel.invert_yaxis()
        panel.set(title=workload, xlabel="test loss, % to AdamW (less is better)")
        if np.nanmax(np.abs(np.append(bounds, means)), initial=0) > 20:
            panel.set_xscale("symlog", linthresh=2)  # what fails hides nothing that differs little
    save(figure, path)


def plot_curves(path: Path, comparison: Comparison, labels: Mapping[str, str]) -> None:
    """Draw the mean loss along the full runs with 95 % bands, a panel a task.

    Args:
        path: The PNG.
        comparison: The results.
        labels: Of the contenders, by name.
    """
    figure, axes = panels(len(comparison.workloads), 3.2)
    names = dict.fromkeys(n for w in comparison.workloads for n in comparison.contenders(w))
    # Of ten colours each returns with another line.
    styles = {name: f"C{i % 10}{('-', '--', ':')[i // 10 % 3]}" for i, name in enumerate(names)}
    lines = {}
    for panel, workload in zip(axes, comparison.workloads, strict=True):
        steps = comparison.horizon(workload)
        for name in comparison.contenders(workload):
            curves = comparison.curves(workload, name)
            bands = [reporting.t_interval(column) for column in curves.T]
            mean = np.array([band.mean for band in bands])
            half = np.nan_to_num([band.half_width for band in bands])
            x = np.linspace(0, steps, len(mean))
            (lines[name],) = panel.plot(x, mean, styles[name], lw=1, label=labels.get(name, name))
            color = lines[name].get_color()
            panel.fill_between(x, mean - half, mean + half, color=color, alpha=0.2, lw=0)
        panel.set(title=workload, xlabel="step", ylabel="test loss", yscale="log")
        for set_formatter in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            set_formatter(ticker.ScalarFormatter())
    figure.legend(
        handles=list(lines.values()), loc="outside lower center", ncols=4, fontsize="small"
    )
    save(figure, path)


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of as many panels, two a row.

    Args:
        count: Of the panels.
        height: Of each, in inches.
    """
    rows = math.ceil(count / 2)
    columns = min(count, 2)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5 * columns, height * rows), layout="constrained", squeeze=False
    )
    for panel in axes.flat[count:]:
        panel.remove()
    return figure, list(axes.flat[:count])


def save(figure: Figure, path: Path) -> None:
    """Write a figure, with grids, and close it.

    Args:
        figure: What was drawn.
        path: The PNG.
    """
    for panel in figure.axes:
        panel.grid(alpha=0.2)
    figure.savefig(path, dpi=150)
    plt.close(figure)
