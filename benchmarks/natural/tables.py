"""The tables of a stored run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import reporting
from benchmarks.natural.ground_states import TARGETS


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the tables of a stored run."""
    found = []
    for row in report["steps"]:
        rows = [
            [
                name,
                f"{x['first']:.2f}",
                f"{x['milliseconds']:.2f}",
                f"{x['ratio']:.2f}",
                f"{x['low']:.2f} … {x['high']:.2f}",
            ]
            for name, x in row["arms"].items()
        ]
        columns = ["step", "first, s", "ms", "ratio to the first row", "95 % interval"]
        title = (
            f"A step on {row['device']}, {row['n_qubits']} qubits, {row['parameters']} parameters"
        )
        found.append(reporting.Table(title, columns, rows))
    for key, title in (("exact", "Steps, exact"), ("measured", "Steps, measured")):
        rows = [
            [f"{row['problem']}, {row['n_qubits']} qubits", name, f"{x['rate']:g}"]
            + ([f"{x['executions']:,}"] if key == "measured" else [])
            + [text for y in x["reached"].values() for text in _how_soon(y, x, report["seeds"])]
            for row in report[key]
            for name, x in row["arms"].items()
        ]
        if not rows:
            continue
        columns = ["problem", "optimizer", "learning rate"]
        columns += ["circuits a step"] if key == "measured" else []
        for target in TARGETS:
            columns += [f"steps to {target:g}", "seeds"]
            timed_on = report[key][0]["arms"]["adam"]["step_ms"]
            columns += [f"seconds, {device}" for device in timed_on]
        found.append(reporting.Table(title, columns, rows))
    return found


def _how_soon(found: Mapping[str, Any], arm: Mapping[str, Any], seeds: int) -> list[str]:
    steps, times = found["steps"], arm["step_ms"].values()
    shown = "–" if steps is None else f"{steps:.0f}"
    seconds = ["–" if steps is None else f"{steps * x / 1000:.3g}" for x in times]
    return [shown, f"{found['seeds']} of {seeds}", *seconds]
