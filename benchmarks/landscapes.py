"""Where Eq. 1 descends and where it does not: a parabola and Rosenbrock's valley.

Run it as `python -m benchmarks.landscapes`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib import pyplot as plt

import qsgd_jax as qsgd
from benchmarks import reporting

DESCRIPTION = """\
Minimise two functions of four parameters with Adam and with each form of superpositional Adam, at
learning rate 1e-2, and plot the value over the steps.

  parabola     sum (x + 1)^2 from x = 10: gradients of order 20, next to Adam's step of order 1.
  Rosenbrock   sum 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2 from (-1.2, 1, -1.2, 1).

Nothing is random. A run whose parameters stop being finite ends as "not finite".
"""


def parabola(x: Float[Array, " n"]) -> Float[Array, ""]:
    """Zero at −1."""
    return jnp.sum((x + 1) ** 2)


def rosenbrock(x: Float[Array, " n"]) -> Float[Array, ""]:
    """Zero at 1."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


LANDSCAPES: dict[str, tuple[Callable[[Array], Array], list[float]]] = {
    "parabola": (parabola, [10.0] * 4),
    "Rosenbrock": (rosenbrock, [-1.2, 1.0, -1.2, 1.0]),
}
LEARNING_RATE = 1e-2


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Adam, and superpositional Adam in each form."""

    def superposed(quantum_weight: float, weigh: Any) -> optax.GradientTransformation:
        return qsgd.superpositional_adamw(
            LEARNING_RATE, weight_decay=0.0, quantum_weight=quantum_weight, weigh=weigh
        )

    return {
        "Adam": optax.adam(LEARNING_RATE),
        "gradient, λ = 0.05": superposed(0.05, "gradient"),
        "gradient, λ = 0.5": superposed(0.5, "gradient"),
        "moments, λ = 0.5": superposed(0.5, "moments"),
        "update, λ = 0.5": superposed(0.5, "update"),
    }


def descend(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Array], Array],
    start: Sequence[float],
    steps: int,
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " n"]]:
    """The loss before each step, and where the run ends."""
    x = jnp.array(start)

    def step(carry, _):
        x, state = carry
        value, gradient = jax.value_and_grad(loss)(x)
        updates, state = optimizer.update(gradient, state, x)
        return (optax.apply_updates(x, updates), state), value

    (x, _), values = jax.lax.scan(step, (x, optimizer.init(x)), length=steps)
    return np.asarray(values), np.asarray(x)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every arm on every landscape; print the table, write JSON and PNG."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.landscapes",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for landscapes.json and landscapes.png (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    arms = optimizers()
    curves: dict[str, dict[str, np.ndarray]] = {}
    ends: dict[str, dict[str, Any]] = {}
    for name, (loss, start) in LANDSCAPES.items():
        curves[name], ends[name] = {}, {}
        for arm, optimizer in arms.items():
            values, x = descend(optimizer, loss, start, args.steps)
            curves[name][arm] = values
            finite = bool(np.isfinite(x).all())
            ends[name][arm] = {
                "x": x.tolist() if finite else None,
                "loss": float(loss(jnp.asarray(x))) if finite else None,
            }
    report = {
        "benchmark": "landscapes",
        "provenance": reporting.provenance(),
        "ends": ends,
        "steps": args.steps,
    }
    reporting.write_json(args.output / "landscapes.json", report)
    _plot(args.output / "landscapes.png", curves)
    for table in tables(report):
        table.print()


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return where each optimizer ends on each landscape."""
    ends = report["ends"]
    return [
        reporting.Table(
            f"Loss after {report['steps']} steps",
            ["optimizer", *ends],
            [
                [arm, *(_show(arms[arm]["loss"]) for arms in ends.values())]
                for arm in next(iter(ends.values()))
            ],
        )
    ]


def _show(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"


def _plot(path: Path, curves: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    figure, panels = plt.subplots(1, len(curves), figsize=(9, 3.6), layout="constrained")
    styles = ("-", "-", "-", "-", "--")  # two arms may lie on each other
    for axes, (name, arms) in zip(panels, curves.items(), strict=True):
        for (arm, values), style in zip(arms.items(), styles, strict=True):
            (line,) = axes.plot(1 + np.arange(len(values)), values, style, label=arm)
            last = np.flatnonzero(np.isfinite(values))[-1]
            if last < len(values) - 1:
                axes.plot(1 + last, min(values[last], 9e5), "x", color=line.get_color())
        axes.set(title=name, xlabel="step", xscale="log", yscale="log", ylim=(1e-10, 1e6))
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("loss (×: not finite from here)")
    panels[-1].legend(fontsize="small", loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
