"""The tables and the JSON of `benchmarks.character_model`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import qsgd_jax as qsgd
from benchmarks import cascade_figure, comparison, reporting
from benchmarks.characters import Run, Text


def step_reached(curve: Sequence[float], loss: float, every: int) -> float:
    """Return the step at which a curve first falls to a loss, infinity if it never does."""
    below = np.flatnonzero(np.array(curve) <= loss)
    if not below.size:
        return float("inf")
    after = int(below[0])
    if after == 0:
        return 0.0
    high, low = curve[after - 1], curve[after]
    return every * (after - (loss - low) / (high - low))


def report(
    by_arm: Mapping[str, list[Run]],
    cascade: qsgd.SpectralCascade,
    text: Text,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Return what `character_model.json` holds."""
    first = next(iter(by_arm.values()))
    figures = {
        name: [
            {
                "validation_loss": run.validation_loss[-1],
                "step_reached": step_reached(
                    run.validation_loss, other.validation_loss[-1], args.every
                ),
            }
            for run, other in zip(runs, first, strict=True)
        ]
        for name, runs in by_arm.items()
    }
    seconds = {
        name: float(np.median([run.seconds for run in runs])) / args.every
        for name, runs in by_arm.items()
    }
    return _head(args) | {
        "text": {
            "train": len(text.train),
            "validation": text.windows[:, 1:].size,
            "characters": text.characters,
        },
        "cascade": cascade_figure.content(cascade),
        "arms": {
            name: {
                "label": runs[0].arm.label,
                "settings": runs[0].arm.settings,
                "learning_rate": runs[0].learning_rate,
                "seconds_a_step": seconds[name],
                "time_a_step": seconds[name] / seconds[first[0].arm.name],
                "summary": comparison.summary(figures[name]),
                "minus_first_arm": comparison.differences(
                    figures[name], figures[first[0].arm.name]
                ),
                "runs": [_curves(run) for run in runs],
            }
            for name, runs in by_arm.items()
        },
    }


def sweep(runs: Sequence[Run], args: argparse.Namespace) -> dict[str, Any]:
    """Return what `character_model_rates.json` holds."""
    named = [{"arm": run.arm.name, "label": run.arm.label} | _curves(run) for run in runs]
    return _head(args) | {"runs": named}


def _head(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "character_model",
        "provenance": reporting.provenance(),
        "arguments": {key: value for key, value in vars(args).items() if key != "output"},
    }


def _curves(run: Run) -> dict[str, Any]:
    curves = {
        name: [reporting.finite(value) for value in getattr(run, name)]
        for name in ("train_loss", "validation_loss", "seconds")
    }
    return {"seed": run.seed, "learning_rate": run.learning_rate} | curves


def tables(content: Mapping[str, Any]) -> list[reporting.Table]:
    """Return how each arm ends, be it with its learning rate or with those of a sweep."""
    return [_sweep_table(content) if "runs" in content else _arms_table(content)]


def _arms_table(content: Mapping[str, Any]) -> reporting.Table:
    arms, steps = content["arms"], content["arguments"]["steps"]
    first = next(iter(arms.values()))["label"]
    rows = []
    for arm in arms.values():
        loss, reached = arm["summary"]["validation_loss"], arm["summary"]["step_reached"]
        minus = arm["minus_first_arm"]["validation_loss"]
        rows.append(
            [
                arm["label"],
                f"{arm['learning_rate']:g}",
                comparison.show(loss, digits=3),
                "" if arm["label"] == first else comparison.show(minus, digits=3, sign="+"),
                comparison.show(reached, digits=0),
                comparison.show(reached, 100 / steps, digits=0),
                f"{arm['time_a_step']:.2f}",
            ]
        )
    return reporting.Table(
        f"After {steps} steps, mean of {_seeds(content)} ± half of the 95 % interval",
        [
            "arm",
            "learning rate",
            "validation loss",
            f"minus {first}",
            f"{first}'s loss at step",
            "% of the steps",
            "time a step",
        ],
        rows,
        [
            f"At step: where an arm first has the loss at which {first} ends with the same seed; "
            "—: not with every seed.",
            "There the schedule has made all curves flat: a small difference is many steps.",
            f"Time a step: over that of {first}.",
            "Learning rates, b2 and Nesterov of AdamW were chosen on this text with seed 0: a "
            "demonstration, not a study.",
        ],
    )


def _seeds(content: Mapping[str, Any]) -> str:
    seeds = content["arguments"]["seeds"]
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def _sweep_table(content: Mapping[str, Any]) -> reporting.Table:
    ends: dict[str, dict[float, list[float | None]]] = {}
    for run in content["runs"]:
        of_arm = ends.setdefault(run["label"], {})
        of_arm.setdefault(run["learning_rate"], []).append(run["validation_loss"][-1])
    rows = []
    for label, of_arm in ends.items():
        means = [float(np.mean(np.array(losses, float))) for losses in of_arm.values()]
        best = min(filter(np.isfinite, means), default=None)  # a rate too high ends in NaN
        rows.append([label, *(f"{'*' if mean == best else ''}{mean:.3f}" for mean in means)])
    return reporting.Table(
        f"Validation loss after {content['arguments']['steps']} steps, by highest learning rate",
        ["arm", *(f"{rate:g}" for rate in next(iter(ends.values())))],
        rows,
        [f"Mean of {_seeds(content)}; *: an arm's best."],
    )
