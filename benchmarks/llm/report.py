"""What fine-tuned arms are compared by: figures over seeds, differences to AdamW, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from benchmarks.arm import Arm
from benchmarks.reporting import Table, finite, t_interval

FIGURES = ("train_loss", "test_nll", "exact_match")


def summaries(
    arms: Mapping[str, Arm], runs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return each arm's figures over its seeds, and their differences to the first arm's."""
    first = next(iter(runs.values()))
    return {
        name: {
            "label": arm.label,
            "settings": arm.settings,
            "summary": {
                key: t_interval([_value(run[key]) for run in runs[name]]).as_json()
                for key in FIGURES
                if key in first[0]
            },
            "minus_first_arm": {
                key: t_interval(
                    [
                        _value(run[key]) - _value(twin[key])
                        for run, twin in zip(runs[name], first, strict=True)
                    ]
                ).as_json()
                for key in FIGURES
                if key in first[0]
            },
            "distance_of_losses": finite(
                float(
                    np.mean(
                        [
                            np.mean(np.abs(_curve(run) - _curve(twin)))
                            for run, twin in zip(runs[name], first, strict=True)
                        ]
                    )
                )
            ),
            "seconds_per_step": float(
                np.median(np.concatenate([run["seconds"] for run in runs[name]]))
            ),
            "peak_gib": runs[name][0]["memory"]["peak_gib"],
            "runs": list(runs[name]),
        }
        for name, arm in arms.items()
    }


def _value(figure: float | None) -> float:
    """Return a figure from JSON, where null stands for what was not finite."""
    return float("nan") if figure is None else figure


def _curve(run: Mapping[str, Any]) -> Float[np.ndarray, " steps"]:
    return np.array([_value(loss) for loss in run["loss"]])


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Return the figures of every arm and their differences to AdamW."""
    arms = content["arms"]
    keys = [key for key in FIGURES if key in next(iter(arms.values()))["summary"]]
    headings = {
        "train_loss": "training loss",
        "test_nll": "test NLL",
        "exact_match": "exact match %",
    }
    before = content["untrained"]
    figures = Table(
        "Mean over seeds ± half of the 95 % interval",
        ["arm", *(headings[key] for key in keys), "s a step", "peak GiB"],
        [
            [
                "untrained",
                *(_show({"mean": before.get(key), "low": None}, key) for key in keys),
                "",
                "",
            ],
            *(
                [
                    arm["label"],
                    *(_show(arm["summary"][key], key) for key in keys),
                    f"{arm['seconds_per_step']:.3f}",
                    f"{arm['peak_gib']:.3f}",
                ]
                for arm in arms.values()
            ),
        ],
    )
    first, *others = arms.values()
    if not others:
        return [figures]
    differences = Table(
        f"Minus {first['label']}, seed by seed",
        ["arm", *(headings[key] for key in keys), "mean |difference| of a step's loss"],
        [
            [
                arm["label"],
                *(_show(arm["minus_first_arm"][key], key, "+") for key in keys),
                "—" if arm["distance_of_losses"] is None else f"{arm['distance_of_losses']:.1e}",
            ]
            for arm in others
        ],
    )
    return [figures, differences]


def _show(interval: Mapping[str, Any], key: str, sign: str = "-") -> str:
    scale, digits = (100, ".1f") if key == "exact_match" else (1, ".1e" if sign == "+" else ".4f")
    if interval["mean"] is None:
        return "—"
    mean = f"{scale * interval['mean']:{sign}{digits}}"
    if interval["low"] is None:
        return mean
    return f"{mean} ± {scale * (interval['mean'] - interval['low']):{digits}}"


def plot(file: Path, content: Mapping[str, Any]) -> None:
    """Draw the loss of every arm over the steps, and how far it is from the first arm's."""
    arms = list(content["arms"].values())
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 3), layout="constrained"
    )
    steps = min(len(run["loss"]) for run in arms[0]["runs"])
    first = np.array([_curve(run)[:steps] for run in arms[0]["runs"]])
    x = np.arange(1, steps + 1)
    for i, arm in enumerate(arms):
        losses = np.array([_curve(run)[:steps] for run in arm["runs"]])
        above.plot(x, losses.mean(axis=0), color=f"C{i}", label=arm["label"], lw=1)
        if i:
            distance = np.abs(losses - first).mean(axis=0)
            below.semilogy(x, np.where(distance > 0, distance, np.nan), color=f"C{i}", lw=1)
    seeds = f"mean over {len(first)} order{'s' if len(first) > 1 else ''} of the data"
    above.set(
        title=f"{content['model']['name']} on GSM8K, {seeds}", ylabel="loss of the step, nats"
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    below.set(xlabel="step", ylabel=f"|difference| to {arms[0]['label']}'s loss")
    for panel in (above, below):
        panel.grid(alpha=0.2)
    figure.savefig(file, dpi=150)
    plt.close(figure)
