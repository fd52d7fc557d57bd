"""Running a batch of circuits on any PennyLane device, from NumPy or from inside JAX.

- Concrete inputs run at once on the host, in float64, whatever the device.
- Traced inputs on `default.qubit` become part of the XLA program.
- Traced inputs on any other device become one host callback for the whole batch,
  with the parameter-shift rule as its derivative.
"""

import math
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from pennylane.devices import DefaultQubit, Device
from pennylane.tape import make_qscript

from qsgd_jax.circuit import Circuit, Readout, open_device

__all__ = ["open_device", "run"]

# Bounds the memory that the tapes or state vectors of one call to a device take.
_MAX_BATCH = 4096
# A device holds one state vector: two threads, of a training loop or of XLA, would share it.
_ONE_AT_A_TIME = threading.Lock()
# Larger than any constant angle of a circuit.
_LABELS = 1e6


def run(circuit: Circuit, device: Device, theta, readout: Readout = "expectation"):
    """The circuit's answers at a batch of settings.

    Args:
      circuit: the circuit; its angles may be traced.
      device: an open PennyLane device.
      theta: settings in half turns, shape `(batch, n_qubits)`, NumPy or JAX.
      readout: `"expectation"` or `"probabilities"`.

    Returns:
      Answers of shape `(batch, outputs)`: a float64 NumPy array if nothing is
      traced, else a JAX array, differentiable in `theta` and in the angles.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax import Circuit, devices
      >>> device = devices.open_device("lightning.qubit", 2)
      >>> devices.run(Circuit(n_qubits=2), device, np.array([[0.5, -1 / 6]])).round(6)
      array([[ 1. , -0.5]])
    """
    if not isinstance(theta, Tracer) and not circuit.traced:
        encoding = circuit.encoding(np.asarray(theta, np.float64))
        return _run_on_host(circuit, device, readout, encoding, circuit.angles)
    given = (x for x in (theta, circuit.weights) if isinstance(x, jax.Array))
    dtype = jnp.promote_types(jnp.result_type(*given), jnp.float32)
    encoding = circuit.encoding(jnp.asarray(theta, dtype))
    angles = jnp.asarray(circuit.angles, dtype)
    if isinstance(device, DefaultQubit):
        return _run_traced(circuit, device, readout, encoding, angles)
    return _host_callback(circuit, device, readout)(encoding, angles)


def _wires(circuit, device):
    return None if device.wires is None else device.wires[: circuit.n_qubits]


def _run_traced(circuit, device, readout, encoding, angles):
    """One broadcast circuit, simulated by JAX itself."""

    @qml.qnode(device, interface="jax", diff_method="backprop")
    def qnode(encoding, angles):
        return circuit.run(encoding, angles, readout, _wires(circuit, device))

    if encoding.shape[0] == 0:  # PennyLane cannot broadcast nothing
        return jnp.zeros((0, circuit.n_outputs(readout)), encoding.dtype)
    with warnings.catch_warnings():
        # PennyLane asks for complex128 at any precision, and JAX for a deprecated name.
        warnings.filterwarnings("ignore", "Explicitly requested dtype complex128", UserWarning)
        warnings.filterwarnings("ignore", "jax.core.is_concrete", DeprecationWarning)
        answers = qnode(encoding, angles)
    stacked = answers if readout == "probabilities" else jnp.stack(answers, axis=-1)
    return stacked.astype(encoding.dtype)


def _run_on_host(circuit, device, readout, encoding, angles) -> np.ndarray:
    """Gate angles to answers, `(*lead, batch, outputs)`; NumPy in and out.

    `encoding` is `(*lead, batch, uploads, n)` and `angles` `(*lead, depth, n, 2)`. No JAX
    call is made here: inside a callback it would deadlock.
    """
    lead, batch = encoding.shape[:-3], encoding.shape[-3]
    runs = math.prod(lead)
    encoding = encoding.reshape((runs * batch, *encoding.shape[-2:]))
    angles = np.repeat(angles.reshape((runs, *angles.shape[-3:])), batch, axis=0)
    chunks = [slice(i, i + _MAX_BATCH) for i in range(0, len(encoding), _MAX_BATCH)]
    with _ONE_AT_A_TIME:
        answers = [_run_chunk(circuit, device, readout, encoding[c], angles[c]) for c in chunks]
    outputs = circuit.n_outputs(readout)
    return np.concatenate(answers or [np.zeros((0, outputs))]).reshape((*lead, batch, outputs))


def _run_chunk(circuit, device, readout, encoding, angles) -> np.ndarray:
    def tape(encoding, angles):
        return make_qscript(circuit.run)(encoding, angles, readout, _wires(circuit, device))

    if isinstance(device, DefaultQubit):  # it simulates a broadcast tape in one go
        (answers,) = qml.execute([tape(encoding, angles)], device, diff_method=None)
        answers = answers if readout == "probabilities" else np.stack(answers, axis=-1)
    else:  # binding parameters into one tape takes half the time of queueing its gates anew
        batch = len(encoding)
        parameters = np.concatenate([encoding.reshape(batch, -1), angles.reshape(batch, -1)], 1)
        # A tape of labels shows where each of them stands in the circuit.
        labels = _LABELS + np.arange(parameters.shape[1])
        split = encoding[0].size
        template = tape(
            labels[:split].reshape(encoding.shape[1:]), labels[split:].reshape(angles.shape[1:])
        )
        found = np.array(template.get_parameters(trainable_only=False))
        places = np.flatnonzero(found >= _LABELS)
        columns = (found[places] - _LABELS).astype(int)
        tapes = [template.bind_new_parameters(row, places) for row in parameters[:, columns]]
        answers = qml.execute(tapes, device, diff_method=None)
    return np.asarray(answers, np.float64).reshape(len(encoding), -1)


def _host_callback(circuit, device, readout):
    """A JAX function `(encoding, angles) -> answers` that asks the device by one callback."""
    outputs = circuit.n_outputs(readout)

    def host(encoding, angles):
        answers = _run_on_host(circuit, device, readout, np.asarray(encoding), np.asarray(angles))
        return answers.astype(encoding.dtype)

    @jax.custom_jvp
    def call(encoding, angles):
        result = jax.ShapeDtypeStruct((encoding.shape[0], outputs), encoding.dtype)
        return jax.pure_callback(host, result, encoding, angles, vmap_method="broadcast_all")

    def shift_rule(primals, tangents):
        """∂f/∂α = [f(α + π/2) − f(α − π/2)] / 2 for each gate; itself made of `call`s."""
        encoding, angles = primals
        d_encoding, d_angles = tangents
        answers = call(encoding, angles)
        tangent = jnp.zeros_like(answers)
        if not isinstance(d_encoding, SymbolicZero):
            shifts = _shifts(encoding.shape[1:], encoding.dtype)[:, :, None]
            plus, minus = jax.vmap(jax.vmap(call, (0, None)), (0, None))(encoding + shifts, angles)
            flat = d_encoding.reshape(len(encoding), -1)
            tangent += jnp.einsum("gbo,bg->bo", (plus - minus) / 2, flat)
        if not isinstance(d_angles, SymbolicZero):
            shifts = _shifts(angles.shape, angles.dtype)
            plus, minus = jax.vmap(jax.vmap(call, (None, 0)), (None, 0))(encoding, angles + shifts)
            tangent += jnp.einsum("gbo,g->bo", (plus - minus) / 2, d_angles.ravel())
        return answers, tangent

    call.defjvp(shift_rule, symbolic_zeros=True)
    return call


def _shifts(shape, dtype):
    """±π/2 on one gate at a time, shape `(2, gates, *shape)`."""
    gates = math.prod(shape)
    plus = np.pi / 2 * np.eye(gates).reshape((gates, *shape))
    return jnp.asarray(np.stack([plus, -plus]), dtype)
