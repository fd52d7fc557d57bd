"""The curves that were learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import qsgd_jax as qsgd
from benchmarks import cascade_figure
from experiments.engine import report
from experiments.learned_cascades.cascades import COURSE, cascade, hand_set
from experiments.learned_cascades.study import form_of

SIGMA = np.geomspace(1e-4, 1, 400)
SHARES = (0.0, 0.5, 1.0)


def curves(path: Path, found: Mapping[str, Any]) -> None:
    """Draw f and w of the hand-set cascade and of all that do not change.

    Args:
        path: The PNG.
        found: What was learned.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    _draw(panels, hand_set(), "hand-set", color="black", linewidth=2)
    for name, numbers in found["learned"].items():
        if form_of(numbers) != COURSE:
            _draw(panels, cascade(numbers), name, linewidth=1)
    panels[0].legend(fontsize="small")
    report.save(figure, path)


def courses(path: Path, found: Mapping[str, Any]) -> None:
    """Draw f and w of each course at the first step, in the middle and at the last.

    Args:
        path: The PNG.
        found: What was learned.
    """
    learned = {name: x for name, x in found["learned"].items() if form_of(x) == COURSE}
    figure, axes = plt.subplots(
        len(learned), 2, figsize=(9, 3 * len(learned)), layout="constrained", squeeze=False
    )
    for panels, (name, numbers) in zip(axes, learned.items(), strict=True):
        _draw(panels, hand_set(), "hand-set", color="black", linewidth=1)
        for share in SHARES:
            color = plt.get_cmap("viridis")(0.9 * share)
            _draw(panels, cascade(numbers, share), f"after {share:.0%}", color=color)
        panels[0].set_title(name)
        panels[0].legend(fontsize="small")
    report.save(figure, path)


def best(path: Path, found: Mapping[str, Any]) -> None:
    """Draw the chosen cascade, a course's of the last step, as a device answers it.

    Under it are the singular values of a model that it has trained.

    Args:
        path: The PNG.
        found: What was learned, the best of it, and the singular values.
    """
    numbers = found["learned"][found["best"]]
    share = 1.0 if form_of(numbers) == COURSE else None
    values, name = np.array(found["singular_values"]), found["best"].capitalize()
    cascade_figure.plot(path, cascade(numbers, share), values, name=name)


def _draw(panels: Any, one: qsgd.SpectralCascade, label: str, **style: Any) -> None:
    """Over the largest value, as the update's size is fixed."""
    f = one.evaluate(SIGMA)
    f = f / np.abs(f).max()
    panels[0].plot(SIGMA, f, label=label, **style)
    panels[1].plot(SIGMA, f / SIGMA, label=label, **style)
    panels[0].set(xlabel="σ", ylabel="f(σ) over its maximum", xscale="log")
    panels[1].set(xlabel="σ", ylabel="w(σ) = f(σ)/σ", xscale="log", yscale="log")
