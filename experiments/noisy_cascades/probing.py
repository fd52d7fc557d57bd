r"""Probe the hand-set cascade on devices, and write what they answered as polynomials.

It needs the plugins of `pip install '.[devices]'`, which training does not.

Example:
  .devices/bin/python -m experiments.noisy_cascades.probing --output results/noisy_cascades
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pennylane as qml
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.devices import open_device
from experiments.learned_cascades.cascades import hand_set

FILE = "cascades.json"
PROBES = 10
SHOTS = (1_000, 10_000, 100_000, 1_000_000)
NOISY = ("qiskit.aer-manila", "qiskit.aer-manila-unmerged", "braket.local.qubit-noisy")
NOISY_SHOTS = 100_000
DRIFT = "drifting"  # a device that is probed ten times along a training
DRIFT_SHOTS, OVER_ROTATION, DEPOLARIZING = 10_000, 0.1, 0.02  # at its end: rad, and a gate's error
EXACT = "exact"
REFITTED, AS_PROBED = "refitted scale", "scale as it was"


def as_numbers(cascade: qsgd.SpectralCascade) -> np.ndarray:
    """Return a row for each stage: its coefficients of T₁, T₃, T₅, its input and output scale."""
    scales = cascade.input_scales, cascade.output_scales
    return np.column_stack([np.stack(cascade.polynomials), *scales])


def from_numbers(numbers: Any, like: qsgd.SpectralCascade) -> qsgd.SpectralCascade:
    """Return the cascade of such rows, which may be traced.

    Args:
        numbers: From `as_numbers`.
        like: A cascade of as many stages and the same degrees.
    """
    basis = np.zeros((3, like.stages[0].coefficients.shape[1]))
    basis[range(3), [2, 6, 10]] = 1, -1, 1  # sin kπθ = (−1)^((k−1)/2) T_k(sin πθ)
    stages = tuple(
        dataclasses.replace(stage, coefficients=(row[:3] @ basis)[None], standard_errors=None)
        for stage, row in zip(like.stages, numbers, strict=True)
    )
    return qsgd.SpectralCascade(stages, tuple(numbers[:, 3]), tuple(numbers[:, 4]))


def scale_as_it_was(cascade: qsgd.SpectralCascade) -> qsgd.SpectralCascade:
    """Return the cascade with the exact one's output scales, as far as the next stage takes them.

    Args:
        cascade: As probed, its scale fitted.
    """
    reaches = [
        np.abs(np.polynomial.Chebyshev(np.insert(odd, [0, 1, 2], 0.0))(np.linspace(0, 1, 100_001)))
        for odd in cascade.polynomials
    ]
    takes = [*cascade.input_scales[1:], np.inf]
    scales = [
        min(scale, float(most / reach.max()))
        for scale, most, reach in zip(hand_set().output_scales, takes, reaches, strict=True)
    ]
    return dataclasses.replace(cascade, output_scales=tuple(scales))


def drifting(share: float) -> Any:
    """Open a device as it is after a share of the training: each RY turns too far, and is noisy."""

    def turned(op: Any, **_: Any) -> None:
        qml.RY(share * OVER_ROTATION, op.wires)
        qml.DepolarizingChannel(share * DEPOLARIZING, op.wires)

    device = qml.device("default.mixed", wires=1)
    return qml.noise.add_noise(device, qml.NoiseModel({qml.noise.op_eq(qml.RY): turned}))


def kinds() -> Iterator[tuple[str, list[Callable[[], Any]], int]]:
    """Yield what is probed: its name, a way to open the device for each probe, and the shots."""
    for shots in SHOTS:
        name = f"lightning.qubit, {shots:,} shots"
        yield name, [lambda: open_device("lightning.qubit", 1)] * PROBES, shots
    for device in NOISY:
        name = f"{device}, {NOISY_SHOTS:,} shots"
        yield name, [lambda device=device: open_device(device, 1)] * PROBES, NOISY_SHOTS
    places = np.linspace(0, 1, PROBES)
    yield DRIFT, [lambda share=share: drifting(share) for share in places], DRIFT_SHOTS


def probed(
    ways: Sequence[Callable[[], Any]], shots: int, name: str
) -> tuple[list[qsgd.SpectralCascade], int]:
    """Return a cascade for each probe, and how many probes were refused.

    What is refused, for a part that is not odd, is probed again.

    Args:
        ways: To open the device.
        shots: Of each setting.
        name: Of the device.
    """
    found, refused = [], 0
    for way in tqdm(ways, desc=name):
        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the plugins' own, of other plugins
                try:
                    found.append(hand_set(device=way(), shots=shots))
                    break
                except ValueError as error:
                    if "not odd" not in str(error):
                        raise
                    refused += 1
    return found, refused


def main(argv: Sequence[str] | None = None) -> None:
    """Probe all kinds that are not there yet, and write each as soon as it is done."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.noisy_cascades.probing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/noisy_cascades"),
        metavar="PATH",
        help=f"folder for {FILE} (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    file = args.output / FILE
    content = json.loads(file.read_text()) if file.exists() else {"cascades": {}, "refused": {}}
    content["provenance"] = reporting.provenance()
    cascades = content["cascades"]
    cascades[EXACT] = {REFITTED: [as_numbers(hand_set()).tolist()]}
    for name, ways, shots in kinds():
        if name not in cascades:
            found, content["refused"][name] = probed(ways, shots, name)
            cascades[name] = {REFITTED: [as_numbers(x).tolist() for x in found]}
            if name != DRIFT:
                as_it_was = [as_numbers(scale_as_it_was(x)).tolist() for x in found]
                cascades[name][AS_PROBED] = as_it_was
            reporting.write_json(file, content)


if __name__ == "__main__":
    main()
