"""What arms are compared by: the race to a target accuracy, final figures, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.reporting import Table, finite, t_interval
from benchmarks.training import Run


def epochs_to_target(accuracy: Float[np.ndarray, " epochs+1"], target: float) -> float:
    """Return when the smoothed curve first reaches the target, infinity if it never does.

    The curve starts before the first epoch. It is smoothed by a centred running mean over three
    entries (two at either end) and interpolated linearly.
    """
    smooth = smoothed(accuracy)
    above = np.flatnonzero(smooth >= target)
    if not above.size:
        return float("inf")
    after = int(above[0])
    if after == 0:
        return 0.0
    low, high = smooth[after - 1], smooth[after]
    return float(after - 1 + (target - low) / (high - low))


def smoothed(curve: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Centred running mean over three entries, two at either end."""
    window = np.ones(3)
    return np.convolve(curve, window, "same") / np.convolve(np.ones_like(curve), window, "same")


def seconds_at(epoch: float, seconds: Sequence[float]) -> float:
    """Return the training time until an epoch, which may lie between two."""
    if not np.isfinite(epoch):
        return float("inf")
    return float(np.interp(epoch, np.arange(len(seconds) + 1), np.cumsum([0.0, *seconds])))


def figures(run: Run, target: float) -> dict[str, float]:
    """Return the figures of one run; what it never reached is infinite."""
    epochs = epochs_to_target(np.array(run.validation_accuracy), target)
    return {
        "test_accuracy": run.test_accuracy,
        "test_loss": run.test_loss,
        "epochs_to_target": epochs,
        "seconds_to_target": seconds_at(epochs, run.seconds),
    }


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return mean, interval and median over seeds, and how many runs are infinite."""
    return {
        key: {
            **t_interval([run[key] for run in runs]).as_json(),
            "median": finite(float(np.median([run[key] for run in runs]))),
            "infinite": sum(not np.isfinite(run[key]) for run in runs),
        }
        for key in runs[0]
    }


def differences(
    runs: Sequence[Mapping[str, float]], first: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Return the interval of the difference to the first arm, seed by seed."""
    pairs = list(zip(runs, first, strict=True))
    return {key: t_interval([a[key] - b[key] for a, b in pairs]).as_json() for key in runs[0]}


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the final figures, the race, and the differences to the first arm."""
    arms = list(report["arms"].values())
    final = Table(
        "At the end: mean over seeds ± half of the 95 % interval",
        ["arm", "test accuracy %", "test loss", "compile s", "total s"],
        [
            [
                arm["label"],
                show(arm["summary"]["test_accuracy"], scale=100),
                show(arm["summary"]["test_loss"], digits=3),
                f"{arm['compile_seconds']:.1f}",
                f"{arm['wall_seconds']:.0f}",
            ]
            for arm in arms
        ],
    )
    race = Table(
        f"To {report['arguments']['target']:.0%} validation accuracy, smoothed over 3 epochs",
        ["arm", "epochs", "median", "seconds", "median", "never"],
        [[arm["label"], *_race(arm["summary"], len(arm["runs"]))] for arm in arms],
        [
            "A mean is shown if every run gets there; medians count the others as infinite.",
            "Arms train one after another: their seconds compare only on an idle machine.",
        ],
    )
    compared = {f"Minus {arms[0]['label']}": [(arm, "minus_first_arm") for arm in arms[1:]]}
    compared["Quantum attention minus classical, same optimizer"] = [
        (arm, "minus_classical") for arm in arms if arm.get("minus_classical")
    ]
    differences_found = [
        Table(
            f"{title}, seed by seed",
            ["arm", "test accuracy %", "test loss", "epochs", "seconds"],
            [[arm["label"], *_minus(arm[key])] for arm, key in rows],
        )
        for title, rows in compared.items()
        if rows
    ]
    return [final, race, *differences_found]


def _race(figures: Mapping[str, Any], n: int) -> list[str]:
    epochs, seconds = figures["epochs_to_target"], figures["seconds_to_target"]
    medians = [
        "∞" if figure["median"] is None else f"{figure['median']:.1f}"
        for figure in (epochs, seconds)
    ]
    never = f"{epochs['infinite']} of {n}"
    return [show(epochs), medians[0], show(seconds), medians[1], never]


def _minus(figures: Mapping[str, Any]) -> list[str]:
    return [
        show(figures["test_accuracy"], scale=100, digits=2, sign="+"),
        show(figures["test_loss"], digits=4, sign="+"),
        show(figures["epochs_to_target"], digits=2, sign="+"),
        show(figures["seconds_to_target"], sign="+"),
    ]


def show(interval: Mapping[str, Any], scale: float = 1, digits: int = 1, sign: str = "-") -> str:
    """Format `mean ± half width`; a mean of infinite values is a dash."""
    if interval["mean"] is None:
        return "—"
    mean = f"{scale * interval['mean']:{sign}.{digits}f}"
    if interval["low"] is None:
        return mean
    return f"{mean} ± {scale * (interval['mean'] - interval['low']):.{digits}f}"
