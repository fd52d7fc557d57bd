"""Run PennyLane devices through the same checks, plugins of hardware vendors included.

Run it as `python -m benchmarks.device_matrix`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import numpy as np
import pennylane as qml
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.devices import DEVICES, open_device

DESCRIPTION = """\
Probe one circuit on each device and compare what follows from the probe with the same device asked
directly. All run offline: plugins of IBM's, Amazon's and Google's stacks on local simulators, two
of them with the noise of a real device (Manila, of IBM, 5 qubits). Those that can are also
asked for exact answers. A name that ends in -manila has that noise, -noisy depolarizing channels.

  difference    of the weights by the Fourier form and by direct execution on the same device, the
                largest of 64. Where the device measures, over its standard error (with that of the
                Fourier form at its greatest), so that more than 4.5 is seen by chance in less than
                one run of 2,000.
  from exact    root mean square distance of the direct weights from the exact ones, and
  measuring     the part of it that measuring alone explains; the rest is noise of the device.
  s, circuits,  of one probe: seconds, circuits (in one batch) and measurements. Eight circuits
  shots         are those that the Fourier form is compared with.

The exit status is 1 if a difference is more than 4.5, or 1e-6 for exact answers.
`pip install '.[devices]'` brings the plugins; a device whose plugin is missing is an error.
"""


def check(device: Any, circuit: qsgd.Circuit, shots: int | None) -> dict[str, Any]:
    """Probe the circuit on a device and compare it with direct execution there.

    Args:
      device: an open PennyLane device.
      circuit: the circuit.
      shots: measurements of each setting, `None` for exact answers.

    Returns:
      The columns of the table, as `--help` says.
    """
    n = circuit.n_qubits
    params = np.random.default_rng(0).uniform(-1, 1, 64 // n * n).astype(np.float32)

    def weights(surrogate: qsgd.Surrogate | qsgd.Direct) -> np.ndarray:
        found = qsgd.superposition_weights(surrogate, params, "everywhere")
        return np.asarray(found, np.float64)

    with qml.Tracker(device) as tracker:
        began = time.perf_counter()
        surrogate = qsgd.probe(circuit, device=device, shots=shots)
        seconds = time.perf_counter() - began
    fourier, direct = weights(surrogate), weights(qsgd.Direct(circuit, device, shots))
    exact = weights(qsgd.probe(circuit))
    difference, error = np.abs(fourier - direct), 0.0
    if shots is not None:
        # Of two estimates; that of the Fourier form is 1 / shots at most.
        variance = (1 - np.minimum(np.abs(direct), 1 - 1 / shots) ** 2) / shots
        difference = difference / np.sqrt(variance + 1 / shots)
        error = float(np.sqrt(variance.mean()))
    return {
        "measurements": shots,
        "difference": float(difference.max()),
        "from_exact": float(np.sqrt(np.mean((direct - exact) ** 2))),
        "from_measuring": error,
        "seconds": seconds,
        "jobs": tracker.totals.get("batches", 0),
        "circuits": tracker.totals.get("executions", 0),
        "shots": tracker.totals.get("shots", 0),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Check each device, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device_matrix",
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
        "--qubits", type=int, default=2, metavar="X", help="of the circuit (default: %(default)s)"
    )
    parser.add_argument(
        "--depth", type=int, default=1, metavar="X", help="of the circuit (default: %(default)s)"
    )
    parser.add_argument(
        "--shots", type=int, default=1000, metavar="X", help="of each setting (default: 1000)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for device_matrix.json (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    circuit = qsgd.Circuit(args.qubits, args.depth)
    rows: list[dict[str, Any]] = []
    for name in tqdm(args.devices, desc="devices"):
        answers_exactly = DEVICES[name][1]
        for shots in (None, args.shots) if answers_exactly else (args.shots,):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the plugins' own, of other plugins
                opened = open_device(name, args.qubits)
                rows.append({"device": name, **check(opened, circuit, shots)})
    reporting.write_json(
        args.output / "device_matrix.json",
        {
            "benchmark": "device_matrix",
            "provenance": reporting.provenance(),
            "circuit": {"n_qubits": args.qubits, "depth": args.depth},
            "devices": rows,
        },
    )
    _print(rows)
    unlike = [
        row["device"]
        for row in rows
        if not row["difference"] <= (1e-6 if row["measurements"] is None else 4.5)
    ]
    if unlike:
        raise SystemExit(f"The two executions differ on {', '.join(unlike)}.")


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    reporting.print_table(
        "Each device by its probe and directly",
        ["device", "difference", "from exact", "measuring", "s", "circuits", "shots"],
        [
            [
                row["device"],
                f"{row['difference']:.{'1e' if row['measurements'] is None else '2f'}}",
                f"{row['from_exact']:.0e}",
                "exact" if row["measurements"] is None else f"{row['from_measuring']:.0e}",
                f"{row['seconds']:.3f}",
                str(row["circuits"]),
                str(row["shots"]),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
