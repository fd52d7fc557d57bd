"""Curves of several arms over epochs, with their bands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from benchmarks.reporting import t_interval


def plot_curves(
    path: Path,
    curves: Mapping[str, Float[np.ndarray, "seeds times"]],
    *,
    title: str,
    ylabel: str,
    lines: Mapping[str, float] | None = None,
    times: Float[np.ndarray, " times"] | None = None,
    xlabel: str = "epoch",
    legend: str = "lower right",
) -> None:
    """Draw mean and 95 % band over seeds, and the differences to the first curve.

    The curves stand over `times`, by default epochs from 0 on.

    The differences are taken seed by seed: arms that share seeds may differ by far less than the
    seeds do.
    """
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(7, 6), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    first_label, first = next(iter(curves.items()))
    times = np.arange(first.shape[1]) if times is None else times
    for i, (label, values) in enumerate(curves.items()):
        _band(axes, times, values, f"C{i}", f"{label} ({len(values)} seeds)")
        _band(below, times, values - first, f"C{i}", label)
    for label, level in (lines or {}).items():
        axes.axhline(level, color="0.6", lw=0.8, ls="--")
        axes.annotate(label, (times[0], level), va="bottom", fontsize="small", color="0.4")
    axes.set(title=title, ylabel=ylabel)
    axes.legend(loc=legend)
    below.set(xlabel=xlabel, ylabel=f"minus {first_label}, by seed")
    for panel in (axes, below):
        panel.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _band(
    axes: Axes,
    times: Float[np.ndarray, " times"],
    values: Float[np.ndarray, "seeds times"],
    color: str,
    label: str,
) -> None:
    intervals = [t_interval(column) for column in values.T]
    mean = np.array([interval.mean for interval in intervals])
    half_width = np.array([interval.half_width for interval in intervals])
    axes.plot(times, mean, color=color, label=label)
    axes.fill_between(times, mean - half_width, mean + half_width, color=color, alpha=0.2, lw=0)
