"""Running a batch of circuits on any PennyLane device, from NumPy or from inside JAX.

- Concrete inputs run at once on the host, in float64, whatever the device.
- Traced inputs on `default.qubit` become part of the XLA program.
- Traced inputs on any device that samples become one host callback with an effect, so that
  each step measures anew; it has no derivative, unless a key tells the measurements apart.
- Traced inputs on any other device become one host callback for the whole batch,
  with the adjoint method as its derivative where the device has it (of expectations), else, and
  for higher derivatives, the parameter-shift rule.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.core import Tracer
from jaxtyping import Array, Float
from pennylane.devices import DefaultQubit, Device
from pennylane.exceptions import DeviceError

from qsgd_jax._src.callbacks import host_function, sampling_function
from qsgd_jax._src.circuit import Circuit, Readout, open_device
from qsgd_jax._src.host import Prepared, alone, name_of, run_on_host, stacked, wires

__all__ = [
    "check",
    "counted_shots",
    "measures_only",
    "n_shots",
    "open_device",
    "opened",
    "run",
    "run_settings",
    "shots_of",
    "traced_by_jax",
    "try_out",
]

_open_by_name = functools.lru_cache(maxsize=64)(open_device)


def opened(device: Any, n_qubits: int) -> Device:
    """An open device, the same one for a name: who keeps the name can be pickled and compared."""
    open_it = _open_by_name if isinstance(device, str) else open_device
    return open_it(device, n_qubits)


def run(
    circuit: Circuit,
    device: Device,
    theta: Any,
    readout: Readout = "expectation",
    shots: int | None = None,
    key: jax.Array | None = None,
) -> Any:
    """The circuit's answers at a batch of settings.

    Args:
      circuit: the circuit; its angles may be traced.
      device: an open PennyLane device.
      theta: settings in half turns, shape `(batch, n_qubits)`, NumPy or JAX.
      readout: `"expectation"`, `"probabilities"`, or `"amplitudes"`: their real parts.
      shots: number of times the device measures each setting; `None` for its exact answer.
      key: raw key data that differ from call to call. With them, measured answers are
        differentiable too: measured again at the settings of the parameter-shift rule.

    Returns:
      Answers of shape `(batch, outputs)`: a float64 NumPy array if nothing is
      traced, else a JAX array, differentiable in `theta` and in the angles if exact.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax import Circuit
      >>> from qsgd_jax._src import devices
      >>> device = devices.open_device("lightning.qubit", 2)
      >>> devices.run(Circuit(n_qubits=2), device, np.array([[0.5, -1 / 6]])).round(6)
      array([[ 1. , -0.5]])
    """
    if not isinstance(theta, Tracer) and not circuit.traced:
        encoding = circuit.encoding(np.asarray(theta, np.float64))
        return run_on_host(circuit, device, readout, encoding, circuit.angles, shots)
    given = (x for x in (theta, circuit.angles) if isinstance(x, jax.Array))
    dtype = jnp.promote_types(jnp.result_type(*given), jnp.float32)
    encoding = circuit.encoding(jnp.asarray(theta, dtype))
    angles = jnp.asarray(circuit.angles, dtype)
    if shots is not None and key is None:
        return sampling_function(circuit, device, readout, shots)(encoding, angles)
    if shots is None and isinstance(device, DefaultQubit):
        return _run_traced(circuit, device, readout, encoding, angles)
    key = jnp.zeros(2, jnp.uint32) if key is None else key
    return host_function(circuit, device, readout, shots)(encoding, angles, key)


def run_settings(
    circuit: Circuit, device: Device, encoding: np.ndarray, angles: np.ndarray, shots: int | None
) -> np.ndarray:
    """The expectation values of settings whose layers differ as well, in one batch.

    Args:
      circuit: the circuit; its own angles are not used.
      device: an open PennyLane device.
      encoding: angles of the encoding's gates in radians, shape `(batch, uploads, n_qubits)`.
      angles: those of the layers' gates, shape `(batch, depth, n_qubits, 2)`.
      shots: number of times the device measures each setting; `None` for its exact answer.

    Returns:
      A float64 array of shape `(batch, n_qubits)`.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax import Circuit
      >>> from qsgd_jax._src import devices
      >>> circuit, device = Circuit(n_qubits=2), devices.open_device("lightning.qubit", 2)
      >>> encoding, angles = np.full((1, 1, 2), -np.pi / 2), np.zeros((1, 0, 2, 2))
      >>> devices.run_settings(circuit, device, encoding, angles, None)
      array([[1., 1.]])
    """
    answers = run_on_host(circuit, device, "expectation", encoding[:, None], angles, shots)
    return answers[:, 0]


@alone
def check(
    circuit: Circuit, device: Device, shots: int | None, readout: Readout = "expectation"
) -> None:
    """Let the device refuse what it cannot run or measure, without running anything."""
    Prepared(circuit, device, readout, shots=shots)


def try_out(circuit: Circuit, device: Device, shots: int | None, readout: Readout) -> None:
    """Run one setting if that is exact, else check only: a run might be charged.

    Raises:
      ValueError: if the device cannot answer. Some turn out to have density matrices for states,
        or no qubits, only when they run.
    """
    try:
        if shots is None:
            run(circuit, device, np.zeros((1, circuit.n_qubits)), readout)
        else:
            check(circuit, device, shots, readout)
    except (ValueError, DeviceError) as error:
        raise ValueError(f"device={device.name!r} cannot answer its {readout}: {error}") from error


def n_shots(circuit: Circuit, device: Device, shots: int | None) -> int | None:
    """How often a device measures a circuit: as asked, or as it says itself; `None` if exactly.

    Raises:
      ValueError: if it is asked for what it cannot do.
    """
    if device.shots.has_partitioned_shots:
        raise ValueError(
            f"device={device.name!r} has a vector of shots; allowed is one number, by shots=."
        )
    shots = shots or device.shots.total_shots
    if shots is None and measures_only(device):
        raise ValueError(f"shots=None: {device.name!r} can only measure; say how often.")
    if shots is not None and circuit.traced:
        raise ValueError(
            f"{device.name!r} answers by {shots} measurements, which have no derivative; allowed "
            "are circuits of concrete angles."
        )
    return shots


def shots_of(qnode: Any) -> int | None:
    """How often a QNode's device measures; `None` if it answers exactly.

    Raises:
      ValueError: if it has a vector of shots, or the device can only measure and has no number, or
        measures the same in each call.
    """
    name, device = name_of(qnode.func), qnode.device
    if qnode.shots.has_partitioned_shots:
        raise ValueError(
            f"{name} has a vector of shots, {qnode.shots.shot_vector}; allowed is one number, by "
            "qml.set_shots."
        )
    if not qnode.shots and measures_only(device):
        raise ValueError(
            f"{name} has no shots, and {device.name!r} can only measure; say how often by "
            "qml.set_shots."
        )
    if qnode.shots and getattr(device, "_prng_key", None) is not None:
        raise ValueError(
            f"{name} has a device with a JAX key for a seed, by which each call would measure the "
            "same; allowed is an integer, or none."
        )
    return qnode.shots.total_shots


def measures_only(device: Device) -> bool:
    """Whether a device is known to have no exact answers.

    Qiskit's measure a default number of times where they are asked for one.
    """
    client = type(getattr(device, "target_device", device))
    return any(base.__module__.startswith("pennylane_qiskit") for base in client.__mro__)


@contextlib.contextmanager
def counted_shots(devices: Sequence[Device]) -> Iterator[Callable[[], int]]:
    """Count the shots that devices are asked for meanwhile, as far as they tell."""
    with contextlib.ExitStack() as stack:
        trackers = [stack.enter_context(qml.Tracker(device)) for device in devices]
        yield lambda: sum(tracker.totals.get("shots", 0) for tracker in trackers)


@contextlib.contextmanager
def traced_by_jax() -> Iterator[None]:
    """While JAX traces a simulation: in full precision, and with no word of what is meant so."""
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        # PennyLane asks for double precision always, and JAX for a deprecated name.
        warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
        warnings.filterwarnings("ignore", "jax.core.is_concrete", DeprecationWarning)
        yield


@alone
def _run_traced(
    circuit: Circuit,
    device: Device,
    readout: Readout,
    encoding: Float[Array, "batch uploads n"],
    angles: Float[Array, "depth n 2"],
) -> Float[Array, "batch outputs"]:
    """One broadcast circuit, simulated by JAX itself."""

    @qml.qnode(device, interface="jax", diff_method="backprop")
    def qnode(encoding: Array, angles: Array) -> Any:
        return circuit.run(encoding, angles, readout, wires(circuit, device))

    if encoding.shape[0] == 0:  # PennyLane cannot broadcast nothing
        return jnp.zeros((0, circuit.n_outputs(readout)), encoding.dtype)
    with traced_by_jax():
        answers = qnode(encoding, angles)
    return stacked(answers, readout, circuit.n_qubits).astype(encoding.dtype)
