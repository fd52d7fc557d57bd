"""Look at a learned circuit: its gates as a picture, what matters in it, what noise leaves of it.

The picture shows the gated step κ (u (1 + λ₁ z₁) + λ₂ z₂ tanh ĝ) over Adam's step u and the
normalised gradient ĝ, for a parameter of −1, 0 and 1 times its tensor's root mean square, and along
lines of equal agreement u ĝ. With --ablations the circuit is scored with a signal muted or without
entanglement, all else as it is; with --noise as probed by shots and on --devices. Scores are
those of `benchmarks/learn_circuit.py` on its validation tasks: the log ratio of losses to those of
AdamW, each at the best of a few learning rates.

files: OUTPUT/learned_gate.png, OUTPUT/learned_gate.json
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.arguments import positive
from benchmarks.devices import open_device
from benchmarks.meta.ablations import ablations
from benchmarks.meta.gates import Gate
from benchmarks.meta.learning import validate
from benchmarks.meta.objective import Objective
from benchmarks.workloads import synthetic

AGREEMENTS = (-0.5, 0.0, 0.25, 1.0)


def gated(superposition: qsgd.SignalSuperposition, u: Any, g: Any, theta: Any) -> np.ndarray:
    """The gated step of coordinates with these signals."""
    u, g, theta = np.broadcast_arrays(*map(np.float32, (u, g, theta)))
    z1, z2 = map(np.asarray, superposition.readouts(u, g, theta))
    first, second = superposition.quantum_weights
    step = u * (1 + first * z1) + second * z2 * np.tanh(g)
    return superposition.learning_rate_factor * step


def plot(path: Path, superposition: qsgd.SignalSuperposition) -> None:
    """Draw the picture."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
    u, g = np.meshgrid(np.linspace(-1.5, 1.5, 121), np.linspace(-3, 3, 121))
    drawn: Any = None
    for panel, theta in zip(axes[0], (-1.0, 0.0, 1.0), strict=True):
        step = gated(superposition, u, g, theta)
        drawn = panel.contourf(u, g, step, np.linspace(-3, 3, 25), cmap="RdBu_r", extend="both")
        panel.contour(u, g, step, [0], colors="k", linewidths=1)
        panel.set(title=f"gated step, θ = {theta:g} rms", xlabel="Adam's step u", ylabel="ĝ")
    figure.colorbar(drawn, ax=axes[0], label="step (AdamW's: u)")
    line = np.linspace(-1.5, 1.5, 241)
    line = line[np.abs(line) > 0.02]
    for panel, theta in zip(axes[1], (-1.0, 0.0, 1.0), strict=True):
        panel.plot(line, line, color="0.6", ls="--", label="AdamW")
        for agreement in AGREEMENTS:
            step = gated(superposition, line, agreement / line, theta)
            panel.plot(line, step, label=f"u ĝ = {agreement:g}")
        panel.set(xlabel="Adam's step u", ylabel="gated step", ylim=(-3, 3))
        panel.grid(alpha=0.2)
        panel.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def sensitivities(superposition: qsgd.SignalSuperposition, draws: int = 20_000) -> dict[str, float]:
    """How far the gates' part of the step moves when one signal is drawn anew, in root mean square.

    Signals are drawn as they are met late in training: u from N(0, ½²), ĝ and θ from N(0, 1). The
    circuit reads the agreement as u ĝ of its own draw, so that each wire is moved alone.
    """
    rng = np.random.default_rng(0)
    values = {
        "update": rng.normal(0, 0.5, (2, draws)),
        "gradient": rng.normal(size=(2, draws)),
        "parameter": rng.normal(size=(2, draws)),
    }
    values["agreement"] = values["update"] * values["gradient"]
    first, second = superposition.quantum_weights
    u, slope = values["update"][0], np.tanh(values["gradient"][0])

    def gates(moved: str | None) -> np.ndarray:
        wires = [jnp.float32(values[name][int(name == moved)]) for name in superposition.signals]
        z1, z2 = map(np.asarray, superposition.answers(wires))
        return superposition.learning_rate_factor * (u * first * z1 + second * z2 * slope)

    return {
        name: float(np.sqrt(np.mean((gates(name) - gates(None)) ** 2)))
        for name in superposition.signals
    }


def scores(
    variants: dict[str, qsgd.SignalSuperposition], folder: Path, seeds: int
) -> dict[str, dict[str, float]]:
    """The score of each variant of a circuit on each validation task."""
    found = {}
    for label, variant in variants.items():
        gate = _as_gate(label, variant)
        asked = Objective(synthetic.VALIDATION, gate, folder / "adamw_learning_rates.json")
        found[label] = validate(asked, gate.start(0), seeds=seeds)
    return found


def _as_gate(label: str, variant: qsgd.SignalSuperposition) -> Gate:
    """The variant with nothing but λ₁, λ₂ and log κ as numbers."""
    coefficients = variant.coefficients  # outside any trace, and from one probe

    def build(numbers: Any) -> qsgd.SignalSuperposition:
        weights, factor = (numbers[0], numbers[1]), jnp.exp(numbers[2])
        changed = dataclasses.replace(variant, quantum_weights=weights, learning_rate_factor=factor)
        vars(changed)["coefficients"] = coefficients  # the cache of this property
        return changed

    own = [*map(float, variant.quantum_weights), np.log(float(variant.learning_rate_factor))]
    return Gate(label, 3, build, lambda seed: np.array(own, np.float32))


def probes(
    superposition: qsgd.SignalSuperposition, devices: Sequence[str], shots: Sequence[int]
) -> dict[str, qsgd.SignalSuperposition]:
    """The circuit as it is probed exactly, with shots, and on devices that measure."""
    ways: dict[str, dict[str, Any]] = {"lightning.qubit, exact": {"device": "lightning.qubit"}}
    for count in shots:
        options = {"device": "lightning.qubit", "probe_shots": count}
        ways[f"lightning.qubit, {count:,} shots"] = options
    for name in devices:
        opened = open_device(name, superposition.circuit.n_qubits)
        ways[f"{name}, {shots[0]:,} shots"] = {"device": opened, "probe_shots": shots[0]}
    return {way: dataclasses.replace(superposition, **options) for way, options in ways.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learned_gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--circuit", type=Path, metavar="FILE", help="a circuit.json (default: the shipped one)")
    add("--ablations", action="store_true", help="score it with parts taken away")
    add("--noise", action="store_true", help="score it as probed with shots and on --devices")
    add(
        "--shots",
        type=positive(int),
        nargs="+",
        default=[1000, 10_000, 100_000, 1_000_000],
        metavar="N",
    )
    add("--devices", nargs="+", default=[], metavar="NAME", help="devices that measure")
    add("--seeds", type=positive(int), default=8, metavar="N", help="episodes of each task")
    add("--output", type=Path, default=Path("results/learned_gate"), metavar="PATH")
    args = parser.parse_args(argv)
    try:
        superposition = qsgd.load_superposition("adamw" if args.circuit is None else args.circuit)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    plot(args.output / "learned_gate.png", superposition)
    report: dict[str, Any] = {
        "benchmark": "learned_gate",
        "provenance": reporting.provenance(),
        "circuit": "shipped" if args.circuit is None else args.circuit.name,
        "quantum_weights": [float(x) for x in superposition.quantum_weights],
        "learning_rate_factor": float(superposition.learning_rate_factor),
        "sensitivities": sensitivities(superposition),
    }
    reporting.print_table(
        "How far the gates move the step when one wire's signal is drawn anew",
        ["signal", "root mean square"],
        [[name, f"{value:.3f}"] for name, value in report["sensitivities"].items()],
    )
    studies: dict[str, dict[str, qsgd.SignalSuperposition]] = {}
    if args.ablations:
        studies["ablations"] = ablations(superposition)
    if args.noise:
        studies["noise"] = probes(superposition, args.devices, args.shots)
    for study, variants in studies.items():
        report[study] = scores(variants, args.output, args.seeds)
        reporting.print_table(
            "Log ratio of losses to AdamW's, at the best of a few learning rates (less is better)",
            [study, *(workload.name for workload in synthetic.VALIDATION), "mean"],
            [
                [label, *(f"{x:+.3f}" for x in (*row.values(), np.mean(list(row.values()))))]
                for label, row in report[study].items()
            ],
        )
    reporting.write_json(args.output / "learned_gate.json", report)


if __name__ == "__main__":
    main()
