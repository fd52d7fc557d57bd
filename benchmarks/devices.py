"""PennyLane devices that benchmarks open by name: simulators, and plugins of hardware vendors.

`pip install '.[devices]'` brings the plugins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pennylane as qml

import qsgd_jax as qsgd


def _qiskit_aer(wires: int, **options: Any) -> Any:
    from qiskit_aer.noise import NoiseModel  # pyright: ignore[reportMissingImports]
    from qiskit_ibm_runtime.fake_provider import (  # pyright: ignore[reportMissingImports]
        FakeManilaV2,
    )

    noise = NoiseModel.from_backend(FakeManilaV2())
    return qml.device("qiskit.aer", wires=wires, noise_model=noise, **options)


def _qiskit_aer_unmerged(wires: int) -> Any:
    """Qiskit would merge a circuit of one qubit into two gates before it runs it."""
    return _qiskit_aer(wires, optimization_level=0)


def _qiskit_remote(wires: int) -> Any:
    from qiskit_ibm_runtime.fake_provider import (  # pyright: ignore[reportMissingImports]
        FakeManilaV2,
    )

    return qml.device("qiskit.remote", wires=wires, backend=FakeManilaV2())


def _braket_with_noise(wires: int) -> Any:
    device = qml.device("braket.local.qubit", backend="braket_dm", wires=wires)

    def depolarize(op: Any, **_: Any) -> None:
        for wire in op.wires:
            qml.DepolarizingChannel(0.01, wires=wire)

    return qml.noise.add_noise(
        device, qml.NoiseModel({qml.noise.op_in([qml.RY, qml.CNOT]): depolarize})
    )


def slow_lightning() -> Any:
    """lightning.qubit behind a queue: each job takes `SECONDS_PER_JOB` (environment; 30)."""
    from pennylane_lightning.lightning_qubit import LightningQubit

    class SlowLightning(LightningQubit):
        def execute(self, circuits: Any, execution_config: Any = None) -> Any:
            time.sleep(float(os.environ.get("SECONDS_PER_JOB", "30")))
            return super().execute(circuits, execution_config)

    return SlowLightning(wires=4)


def qiskit_aer_manila() -> Any:
    """Qiskit's simulator with the noise of an IBM device, four qubits."""
    return _qiskit_aer(4)


def ising_metric() -> qsgd.FubiniStudy:
    """The metric of an Ising pair's energy, in 1,000 shots; what `MetricProber` asks."""

    @qml.set_shots(1000)
    @qml.qnode(qml.device("lightning.qubit", wires=2, seed=0))
    def energy(weights: Any) -> Any:
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return qml.expval(qml.Z(0) @ qml.Z(1) + qml.X(0) + qml.X(1))

    return qsgd.FubiniStudy(energy, approx="block-diag", every=None)


def _named(name: str) -> Callable[[int], Any]:
    return lambda wires: qml.device(name, wires=wires)


# By name: how to open the device, and whether it can answer exactly. All run offline.
DEVICES: dict[str, tuple[Callable[[int], Any], bool]] = {
    "default.qubit": (_named("default.qubit"), True),
    "default.mixed": (_named("default.mixed"), True),
    "lightning.qubit": (_named("lightning.qubit"), True),
    "lightning.kokkos": (_named("lightning.kokkos"), True),
    "qiskit.aer-manila": (_qiskit_aer, False),
    "qiskit.aer-manila-unmerged": (_qiskit_aer_unmerged, False),
    "qiskit.remote-manila": (_qiskit_remote, False),
    "braket.local.qubit": (_named("braket.local.qubit"), True),
    "braket.local.qubit-noisy": (_braket_with_noise, True),
    "cirq.mixedsimulator": (_named("cirq.mixedsimulator"), True),
}


def unlike(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The devices of a table whose probe and direct run differ.

    Args:
        rows: Each with its `device`, its `measurements` (`None` for exact answers), and the
            `difference`, in standard errors where it measures.
    """
    return [
        row["device"]
        for row in rows
        if not row["difference"] <= (1e-6 if row["measurements"] is None else 5)
    ]


def open_device(name: str, wires: int) -> Any:
    """Open one of the devices above, or any other that PennyLane knows by this name.

    Raises:
        ValueError: If its plugin is not installed.
    """
    try:
        return DEVICES[name][0](wires) if name in DEVICES else qml.device(name, wires=wires)
    except (ImportError, qml.exceptions.DeviceError) as error:
        raise ValueError(
            f"device {name!r}: {error} `pip install '.[devices]'` brings the plugins of "
            f"{', '.join(DEVICES)}."
        ) from error
