"""Measure how fast devices answer, and what JAX needs to compile around them.

Run it as `python -m benchmarks.circuit_throughput`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting

DESCRIPTION = """\
Time one circuit (4 qubits and 2 entangling layers by default) on PennyLane devices.

  probe       the settings that determine the Fourier form, (2 uploads + 1)^n_qubits of them, and
              eight more, which it is compared at
  blocks      direct execution at 1,000 blocks of parameters
  jit         the first call of a jitted probe of traced angles: tracing, compiling, running
  jacobian    the first call of the Jacobian of its coefficients in reverse mode, likewise
  gradient    that Jacobian again, once it is compiled

Times are medians, warm but for the two first calls. `--broadcasting` also times, once each, what a
user would write without this package: PennyLane's QNode, broadcast over as many settings, by itself
("probe") and under jax.jit, with the Jacobian of all its answers, which are as many. On lightning
that compiles for half a minute.
"""


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median time of a warm call."""
    jax.block_until_ready(function())
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def first_call(function: Callable[..., Any], *args: Any) -> float:
    """Time of the first call of a function that is compiled by it."""
    began = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - began


def measure(device: str, circuit: qsgd.Circuit, repeats: int) -> dict[str, float]:
    """Seconds of each of the columns for one device."""
    n, depth = circuit.n_qubits, circuit.depth
    angles = jnp.asarray(circuit.angles)
    blocks = np.random.default_rng(1).uniform(-1, 1, (1000, n)).astype(np.float32).ravel()

    def probe() -> Any:
        return qsgd.probe(circuit, device=device).coefficients

    def coefficients(angles: Any) -> Any:
        return qsgd.probe(qsgd.Circuit(n, depth, angles=angles), device=device).coefficients

    direct = qsgd.Direct(circuit, device)
    jacobian = jax.jit(jax.jacrev(coefficients))
    return {
        "probe": seconds(probe, repeats),
        "blocks": seconds(
            lambda: qsgd.superposition_weights(direct, blocks, "everywhere"), repeats
        ),
        "jit": first_call(jax.jit(coefficients), angles),
        "jacobian": first_call(jacobian, angles),
        "gradient": seconds(lambda: jacobian(angles), repeats),
    }


def measure_broadcasting(device: str, circuit: qsgd.Circuit) -> dict[str, float]:
    """The same for PennyLane's QNode, broadcast over as many settings as a probe has."""
    settings = np.random.default_rng(0).uniform(-1, 1, (3**circuit.n_qubits, circuit.n_qubits))
    qnode = circuit.qnode(qml.device(device, wires=circuit.n_qubits))

    def answers(angles: Any) -> Any:
        return jnp.stack(qnode(settings, angles))

    angles, jacobian = jnp.asarray(circuit.angles), jax.jit(jax.jacrev(answers))
    return {
        "probe": seconds(lambda: np.stack(qnode(settings)), 1),
        "jit": first_call(jax.jit(answers), angles),
        "jacobian": first_call(jacobian, angles),
        "gradient": seconds(lambda: jacobian(angles), 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each device, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.circuit_throughput",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        default=["default.qubit", "lightning.qubit"],
        metavar="NAME",
        help="names of installed PennyLane devices (default: default.qubit lightning.qubit)",
    )
    parser.add_argument(
        "--qubits", type=int, default=4, metavar="X", help="of the circuit (default: %(default)s)"
    )
    parser.add_argument(
        "--depth", type=int, default=2, metavar="X", help="of the circuit (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=9, metavar="X", help="default: %(default)s")
    parser.add_argument(
        "--broadcasting", action="store_true", help="also time PennyLane's own broadcasting"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for circuit_throughput.json (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    circuit = qsgd.Circuit(args.qubits, args.depth)
    found: dict[str, dict[str, float]] = {}
    for device in tqdm(args.devices, desc="devices"):
        found[device] = measure(device, circuit, args.repeats)
        if args.broadcasting:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PennyLane's own, of jax
                found[f"{device}, broadcast QNode"] = measure_broadcasting(device, circuit)
    report = {
        "benchmark": "circuit_throughput",
        "provenance": reporting.provenance(),
        "circuit": {"n_qubits": args.qubits, "depth": args.depth},
        "seconds": found,
    }
    reporting.write_json(args.output / "circuit_throughput.json", report)
    for table in tables(report):
        table.print()


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the seconds of each device."""
    columns = ("probe", "blocks", "jit", "jacobian", "gradient")
    settings = 3 ** report["circuit"]["n_qubits"]
    return [
        reporting.Table(
            "Seconds of each device",
            ["device", f"probe of {settings}", "1,000 blocks", *columns[2:]],
            [
                [name, *(f"{row[c]:.4f}" if c in row else "" for c in columns)]
                for name, row in report["seconds"].items()
            ],
        )
    ]


if __name__ == "__main__":
    main()
