"""Probe spectral cascades on PennyLane devices, noisy ones included, and see how far a step moves.

Run it as `python -m benchmarks.spectral_devices`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax.numpy as jnp
import numpy as np
import pennylane as qml
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.arguments import positive
from benchmarks.devices import DEVICES, open_device, unlike

DESCRIPTION = """\
Probe the circuits of a cascade on each device, and compare what follows from the probe with the
same circuits run there at 50 other singular values, and the step with that of exact circuits.

  difference  of a stage's answer by its surrogate and by running the circuit, the largest of all,
              in standard errors where the device measures (with that of the surrogate at its
              greatest): more than 5 is seen by chance once in 10,000 rows
  not odd     the largest part of an answer that is not odd in σ, which is left out
  scale       the largest factor by which an output scale makes up for what noise takes away
  shape       how far an answer, so scaled, is from the polynomial, of its largest value
  step        Frobenius distance of the direction of a step from that of exact circuits, of a matrix
              of 64 × 128 whose singular values fall from 1 to 0.001

The exit status is 1 if a difference is more than 5, or 1e-6 for exact answers.
A name that ends in -manila has the noise of an IBM device; by default Qiskit merges a circuit of
one qubit into two gates before it runs it, with -unmerged it does not.
`pip install '.[devices]'` brings the plugins; a device whose plugin is missing is an error.
"""


SIGMA = np.random.default_rng(1).uniform(0, 1, 50)


def check(device: Any, name: str, shots: int | None) -> dict[str, Any]:
    """Probe a named cascade on a device and compare it.

    Args:
      device: an open PennyLane device.
      name: of the cascade.
      shots: measurements of each setting, `None` for exact answers.

    Returns:
      The columns of the table, as `--help` says.
    """
    cascade = qsgd.spectral_cascade(name, device=device, shots=shots)
    exact = qsgd.spectral_cascade(name)
    theta = np.arcsin(SIGMA) / math.pi
    differences = []
    for stage, angles in dict(zip(cascade.stages, angles_of(exact), strict=True)).items():
        circuit = qml.set_shots(qsgd.spectral_circuit(angles, device), shots=shots)
        direct = np.array([float(circuit([x])) for x in theta])
        found = np.asarray(stage.evaluate([theta])[0], np.float64)
        error = 1.0
        if shots is not None:
            error = np.sqrt((1 - np.minimum(np.abs(direct), 1 - 1 / shots) ** 2 + 1) / shots)
        differences.append(np.max(np.abs(found - direct) / error))
    scales = np.divide(cascade.output_scales, exact.output_scales)
    return {
        "measurements": shots,
        "difference": float(max(differences)),
        "not_odd": max(cascade.not_odd()),
        "scale": float(scales.max()),
        "shape": max(x or 0.0 for x in cascade.deviations),
        "step": float(np.linalg.norm(_direction(cascade) - _direction(exact))),
    }


def angles_of(cascade: qsgd.SpectralCascade) -> list[np.ndarray]:
    """Return the angles of each circuit, from the polynomial that it answers with.

    Args:
        cascade: An exact one.
    """
    found = []
    for odd in cascade.polynomials:
        coefficients = np.zeros(2 * len(odd))
        coefficients[1::2] = odd
        found.append(qsgd.spectral_angles(np.polynomial.Chebyshev(coefficients)))
    return found


def _direction(cascade: qsgd.SpectralCascade) -> np.ndarray:
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=(64, 128)), full_matrices=False)
    gradient = jnp.asarray(u * np.geomspace(1, 1e-3, 64) @ v, jnp.float32)
    optimizer: Any = qsgd.scale_by_spectral_superposition(cascade, beta=0.0, nesterov=False)
    step = np.asarray(optimizer.update(gradient, optimizer.init(gradient))[0])
    return step / np.linalg.norm(step)


def main(argv: Sequence[str] | None = None) -> None:
    """Check each device, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spectral_devices",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        choices=DEVICES,
        default=list(DEVICES),
        metavar="NAME",
        help=f"some of: {'; '.join(DEVICES)} (default: all)",
    )
    parser.add_argument(
        "--cascades",
        nargs="+",
        choices=("muon", "polar-express"),
        default=["muon", "polar-express"],
        metavar="NAME",
        help="muon or polar-express (default: both)",
    )
    parser.add_argument(
        "--shots",
        type=positive(int),
        default=10_000,
        metavar="X",
        help="of each setting (default: 10000)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for spectral_devices.json (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for device in tqdm(args.devices, desc="devices"):
        for shots in (None, args.shots) if DEVICES[device][1] else (args.shots,):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the plugins' own, of other plugins
                for cascade in args.cascades:
                    row = {"device": device, "cascade": cascade}
                    rows.append(row | check(open_device(device, 1), cascade, shots))
    report = {
        "benchmark": "spectral_devices",
        "provenance": reporting.provenance(),
        "devices": rows,
    }
    reporting.write_json(args.output / "spectral_devices.json", report)
    for table in tables(report):
        table.print()
    if differing := unlike(rows):
        raise SystemExit(f"Probe and circuit differ on {', '.join(differing)}.")


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the rows of all devices."""
    return [
        reporting.Table(
            "Spectral cascades on each device",
            ["device", "cascade", "answers", "difference", "not odd", "scale", "shape", "step"],
            [
                [
                    row["device"],
                    row["cascade"],
                    "exact" if row["measurements"] is None else f"{row['measurements']:,} shots",
                    f"{row['difference']:.{'1e' if row['measurements'] is None else '2f'}}",
                    f"{row['not_odd']:.1e}",
                    f"{row['scale']:.4f}",
                    f"{row['shape']:.1e}",
                    f"{row['step']:.1e}",
                ]
                for row in report["devices"]
            ],
        )
    ]


if __name__ == "__main__":
    main()
