"""Run PennyLane devices through the same checks, plugins of hardware vendors included.

Run it as `python -m benchmarks.device_matrix`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import numpy as np
import pennylane as qml
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.devices import DEVICES, open_device, unlike

DESCRIPTION = """\
Probe circuits on each device and compare what follows from the probe with the same device asked
directly: the package's own, and two QNodes of a user's, of three inputs. In `rotations` each input
enters by two RY, with fixed CRZ and IsingXX between; in `controlled` by one CRZ, which has half
frequencies: period 4π, and twice the degree.

All run offline: plugins of IBM's, Amazon's and Google's stacks on local simulators, two of them
with the noise of a real device (Manila, of IBM, 5 qubits). Those that can are also asked for exact
answers. A name that ends in -manila has that noise, -noisy depolarizing channels.

  difference    of the outputs by the Fourier form and by direct execution on the same device, the
                largest of 64, of a QNode of 300. Where the device measures, over its standard error
                (with that of the Fourier form at its greatest), so that more than 5 is seen by
                chance once in 5,000 rows.
  from exact    root mean square distance of the direct outputs from the exact ones, and
  measuring     the part of it that measuring alone explains; the rest is noise of the device.
  s, circuits,  of one probe: seconds, circuits (in one batch) and measurements. Eight circuits
  shots         are those that the Fourier form is compared with.

The exit status is 1 if a difference is more than 5, or 1e-6 for exact answers.
`pip install '.[devices]'` brings the plugins; a device whose plugin is missing is an error.
"""


def rotations(x: np.ndarray) -> list[Any]:
    """Each input enters by two rotations."""
    for _ in range(2):
        for wire in range(3):
            qml.RY(x[wire], wire)
        qml.CRZ(0.7, (0, 1))
        qml.IsingXX(0.4, (1, 2))
    return [qml.expval(qml.Z(wire)) for wire in range(3)]


def controlled(x: np.ndarray) -> list[Any]:
    """Each input enters by one controlled rotation."""
    for wire in range(3):
        qml.Hadamard(wire)
        qml.RX(0.3 + wire, wire)
    for wire in range(3):
        qml.CRZ(x[wire], (wire, (wire + 1) % 3))
    for wire in range(3):
        qml.RX(0.9, wire)
    return [qml.expval(qml.Z(wire)) for wire in range(3)]


OWN = {"rotations": (rotations, 2 * math.pi), "controlled": (controlled, 4 * math.pi)}


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

    return _compared(
        device,
        shots,
        lambda: qsgd.probe(circuit, device=device, shots=shots),
        weights,
        lambda: weights(qsgd.Direct(circuit, device, shots)),
        weights(qsgd.probe(circuit)),
    )


def check_own(device: Any, name: str, shots: int | None) -> dict[str, Any]:
    """The same of one of the QNodes above, at 100 settings."""
    function, period = OWN[name]
    settings = np.random.default_rng(0).uniform(-10, 10, (100, 3)).astype(np.float32)

    def outputs(surrogate: qsgd.Surrogate) -> np.ndarray:
        return np.stack(surrogate.evaluate(list(settings.T)), axis=-1).astype(np.float64)

    def runs(device: Any, shots: int | None) -> np.ndarray:
        qnode = qml.set_shots(qml.QNode(function, device), shots=shots)
        return np.array([qnode(setting.astype(np.float64)) for setting in settings])

    return _compared(
        device,
        shots,
        lambda: qsgd.probe(
            qml.QNode(function, device), n_inputs=3, degree=2, period=period, shots=shots
        ),
        outputs,
        lambda: runs(device, shots),
        runs(qml.device("default.qubit", wires=3), None),
    )


def _compared(
    device: Any,
    shots: int | None,
    probe: Callable[[], qsgd.Surrogate],
    outputs: Callable[[qsgd.Surrogate], np.ndarray],
    run: Callable[[], np.ndarray],
    exact: np.ndarray,
) -> dict[str, Any]:
    with qml.Tracker(device) as tracker:
        began = time.perf_counter()
        surrogate = probe()
        seconds = time.perf_counter() - began
    fourier, direct = outputs(surrogate), run()
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
                row = {"device": name, "circuit": "of the package"}
                rows.append(row | check(opened, circuit, shots))
                for own in OWN:
                    row = {"device": name, "circuit": own}
                    rows.append(row | check_own(open_device(name, 3), own, shots))
    report = {
        "benchmark": "device_matrix",
        "provenance": reporting.provenance(),
        "circuit": {"n_qubits": args.qubits, "depth": args.depth},
        "devices": rows,
    }
    reporting.write_json(args.output / "device_matrix.json", report)
    for table in tables(report):
        table.print()
    if differing := unlike(rows):
        raise SystemExit(f"The two executions differ on {', '.join(differing)}.")


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the rows of all devices."""
    return [
        reporting.Table(
            "Each device by its probe and directly",
            [
                "device",
                "circuit",
                "difference",
                "from exact",
                "measuring",
                "s",
                "circuits",
                "shots",
            ],
            [
                [
                    row["device"],
                    row["circuit"],
                    f"{row['difference']:.{'1e' if row['measurements'] is None else '2f'}}",
                    f"{row['from_exact']:.0e}",
                    "exact" if row["measurements"] is None else f"{row['from_measuring']:.0e}",
                    f"{row['seconds']:.3f}",
                    str(row["circuits"]),
                    str(row["shots"]),
                ]
                for row in report["devices"]
            ],
        )
    ]


if __name__ == "__main__":
    main()
