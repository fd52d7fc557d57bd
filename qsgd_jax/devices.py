"""Running a batch of circuits on any PennyLane device, from NumPy or from inside JAX.

- Concrete inputs run at once on the host, in float64, whatever the device.
- Traced inputs on `default.qubit` become part of the XLA program.
- Traced inputs on any device that samples become one host callback with an effect, so that
  each step measures anew; it has no derivative, unless a key tells the measurements apart.
- Traced inputs on any other device become one host callback for the whole batch,
  with the adjoint method as its derivative where the device has it (of expectations), else, and
  for higher derivatives, the parameter-shift rule.
"""

import functools
import itertools
import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from pennylane.devices import DefaultQubit, Device, ExecutionConfig
from pennylane.exceptions import DeviceError
from pennylane.tape import QuantumScript, make_qscript
from threadpoolctl import threadpool_limits

from qsgd_jax.circuit import Circuit, Readout, open_device

__all__ = ["alone", "check", "measures_only", "open_device", "run", "run_settings", "try_out"]

# Bounds the memory that the tapes or state vectors of one call to a device take.
_MAX_BATCH = 4096
# A device holds one state vector, and PennyLane records gates in one place for all threads: two
# of them, of a training loop or of XLA, would share both.
_ONE_AT_A_TIME = threading.RLock()
# Below, a simulator's threads do nothing but wait for each other: on busy cores for seconds.
_FEWEST_QUBITS_FOR_THREADS = 16
# On a GPU, JAX's default is TF32.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
# Larger than any constant angle of a circuit.
_LABELS = 1e6


def alone(function):
    """Let threads take turns in a function that speaks to PennyLane."""

    @functools.wraps(function)
    def taking_turns(*args):
        with _ONE_AT_A_TIME:
            return function(*args)

    return taking_turns


def run(
    circuit: Circuit,
    device: Device,
    theta,
    readout: Readout = "expectation",
    shots: int | None = None,
    key: jax.Array | None = None,
):
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
      >>> from qsgd_jax import Circuit, devices
      >>> device = devices.open_device("lightning.qubit", 2)
      >>> devices.run(Circuit(n_qubits=2), device, np.array([[0.5, -1 / 6]])).round(6)
      array([[ 1. , -0.5]])
    """
    if not isinstance(theta, Tracer) and not circuit.traced:
        encoding = circuit.encoding(np.asarray(theta, np.float64))
        return _run_on_host(circuit, device, readout, encoding, circuit.angles, shots)
    given = (x for x in (theta, circuit.weights) if isinstance(x, jax.Array))
    dtype = jnp.promote_types(jnp.result_type(*given), jnp.float32)
    encoding = circuit.encoding(jnp.asarray(theta, dtype))
    angles = jnp.asarray(circuit.angles, dtype)
    if shots is not None and key is None:
        return _sampling_function(circuit, device, readout, shots)(encoding, angles)
    if shots is None and isinstance(device, DefaultQubit):
        return _run_traced(circuit, device, readout, encoding, angles)
    key = jnp.zeros(2, jnp.uint32) if key is None else key
    return _host_function(circuit, device, readout, shots)(encoding, angles, key)


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
      >>> from qsgd_jax import Circuit, devices
      >>> circuit, device = Circuit(n_qubits=2), devices.open_device("lightning.qubit", 2)
      >>> encoding, angles = np.full((1, 1, 2), -np.pi / 2), np.zeros((1, 0, 2, 2))
      >>> devices.run_settings(circuit, device, encoding, angles, None)
      array([[1., 1.]])
    """
    answers = _run_on_host(circuit, device, "expectation", encoding[:, None], angles, shots)
    return answers[:, 0]


@alone
def check(
    circuit: Circuit, device: Device, shots: int | None, readout: Readout = "expectation"
) -> None:
    """Let the device refuse what it cannot run or measure, without running anything."""
    _Prepared(circuit, device, readout, shots=shots)


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


def measures_only(device: Device) -> bool:
    """Whether a device is known to have no exact answers.

    Qiskit's measure a default number of times where they are asked for one.
    """
    client = type(getattr(device, "target_device", device))
    return any(base.__module__.startswith("pennylane_qiskit") for base in client.__mro__)


def _wires(circuit, device):
    return None if device.wires is None else device.wires[: circuit.n_qubits]


@alone
def _run_traced(circuit, device, readout, encoding, angles):
    """One broadcast circuit, simulated by JAX itself."""

    @qml.qnode(device, interface="jax", diff_method="backprop")
    def qnode(encoding, angles):
        return circuit.run(encoding, angles, readout, _wires(circuit, device))

    if encoding.shape[0] == 0:  # PennyLane cannot broadcast nothing
        return jnp.zeros((0, circuit.n_outputs(readout)), encoding.dtype)
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        # PennyLane asks for complex128 at any precision, and JAX for a deprecated name.
        warnings.filterwarnings("ignore", "Explicitly requested dtype .*complex128", UserWarning)
        warnings.filterwarnings("ignore", "jax.core.is_concrete", DeprecationWarning)
        answers = qnode(encoding, angles)
    return _stacked(answers, readout, circuit.n_qubits).astype(encoding.dtype)


def _stacked(answers, readout, n_qubits) -> Any:
    """What a broadcast tape answered, `(batch, outputs)`."""
    if readout == "expectation":
        answers = answers if isinstance(answers, tuple | list) else (answers,)  # of one qubit
        return (np if isinstance(answers[0], np.ndarray) else jnp).stack(answers, axis=-1)
    return answers if readout == "probabilities" else _real_amplitudes(answers, n_qubits)


def _real_amplitudes(states, n_qubits):
    """The real parts of `(batch, amplitudes)`, those of the device's further wires at rest."""
    if states.ndim != 2:
        raise ValueError(
            f"Amplitudes are those of a pure state; the device answers shape {states.shape[1:]}."
        )
    return states.reshape(len(states), 2**n_qubits, -1)[:, :, 0].real


@alone
def _run_on_host(
    circuit, device, readout, encoding, angles, shots=None, prepare=None
) -> np.ndarray:
    """Gate angles to answers, `(*lead, batch, outputs)`; NumPy in and out.

    `encoding` is `(*lead, batch, uploads, n)` and `angles` `(*lead, depth, n, 2)`; `prepare`
    remembers what it made ready. No JAX call is made here: inside a callback it would deadlock.
    """
    if isinstance(device, DefaultQubit):
        answers = _run_broadcast(circuit, device, readout, encoding, angles, shots)
    else:
        prepared = (prepare or _Prepared)(circuit, device, readout, None, shots)
        answers = _in_chunks(prepared.answers, prepared.tapes(encoding, angles), circuit.n_qubits)
    return answers.reshape((*encoding.shape[:-2], circuit.n_outputs(readout)))


@alone
def _slopes_on_host(circuit, device, encoding, angles, prepare) -> np.ndarray:
    """The derivative of each ⟨Z_j⟩ by each gate's angle, `(*lead, batch, outputs, gates)`."""
    prepared = prepare(circuit, device, "expectation", "adjoint")
    slopes = _in_chunks(prepared.slopes, prepared.tapes(encoding, angles), circuit.n_qubits)
    return slopes.reshape((*encoding.shape[:-2], circuit.n_qubits, prepared.n_gates))


def _in_chunks(ask, tapes, n_qubits) -> np.ndarray:
    limit = 1 if n_qubits < _FEWEST_QUBITS_FOR_THREADS else None
    with threadpool_limits(limit, user_api="openmp"):
        chunks = iter(lambda: list(itertools.islice(tapes, _MAX_BATCH)), [])
        answers = [np.asarray(ask(chunk)) for chunk in chunks]
    return np.concatenate(answers or [np.zeros(0)])


def _run_broadcast(circuit, device, readout, encoding, angles, shots) -> np.ndarray:
    """default.qubit simulates a broadcast tape in one go."""
    shape = encoding.shape[:-2]
    angles = np.broadcast_to(angles[..., None, :, :, :], (*shape, *angles.shape[-3:]))
    encoding = encoding.reshape((math.prod(shape), *encoding.shape[-2:]))
    angles = angles.reshape((math.prod(shape), *angles.shape[-3:]))
    answers = [np.zeros((0, circuit.n_outputs(readout)))]
    for i in range(0, len(encoding), _MAX_BATCH):
        chunk = slice(i, i + _MAX_BATCH)
        tape = _tape(circuit, device, readout, encoding[chunk], angles[chunk], shots)
        (found,) = qml.execute([tape], device, diff_method=None)
        found = _stacked(found, readout, circuit.n_qubits)
        answers.append(found.reshape(-1, circuit.n_outputs(readout)))
    return np.concatenate(answers)


def _tape(circuit, device, readout, encoding, angles, shots=None) -> QuantumScript:
    prepare = make_qscript(circuit.run, shots=shots)
    return prepare(encoding, angles, readout, _wires(circuit, device))


class _Prepared:
    """A circuit made ready for a device once, for any number of settings.

    Binding parameters into a tape takes half the time of queueing its gates anew. And where the
    device's own preprocessing leaves the circuit as it is, no tape needs to go through it.
    """

    def __init__(self, circuit, device, readout, gradient_method=None, shots=None):
        self._device, self._readout, self._n_qubits = device, readout, circuit.n_qubits
        shapes = (circuit.uploads, circuit.n_qubits), (circuit.depth, circuit.n_qubits, 2)
        split, self.n_gates = math.prod(shapes[0]), sum(map(math.prod, shapes))
        # A tape of labels shows where each parameter stands in the circuit.
        labels = _LABELS + np.arange(self.n_gates)
        encoding, angles = labels[:split].reshape(shapes[0]), labels[split:].reshape(shapes[1])
        self.tape = _tape(circuit, device, readout, encoding, angles, shots)
        found = np.array(self.tape.get_parameters(trainable_only=False))
        places = np.flatnonzero(found >= _LABELS)
        places = places[np.argsort(found[places])]
        self.tape.trainable_params = places.tolist()
        self._encoding_places, self._angle_places = places[:split].tolist(), places[split:].tolist()
        self._order_of_slopes = np.argsort(np.argsort(places))  # from that on the tape
        self._config = device.setup_execution_config(
            ExecutionConfig(gradient_method=gradient_method), self.tape
        )
        ready, finish = device.preprocess_transforms(self._config)([self.tape])
        self.is_native = (
            len(ready) == 1
            and ready[0].shots == self.tape.shots
            and _same_gates(ready[0], self.tape)
            and _returns_unchanged(finish)
        )
        if self.is_native:  # it may name the wires of a measurement of all
            self.tape = ready[0]
            self.tape.trainable_params = places.tolist()

    def tapes(self, encoding, angles) -> Iterator[QuantumScript]:
        for lead in np.ndindex(angles.shape[:-3]):
            bound = self.tape.bind_new_parameters(angles[lead].ravel(), self._angle_places)
            for row in encoding[lead].reshape(-1, len(self._encoding_places)):
                yield bound.bind_new_parameters(row, self._encoding_places)

    def answers(self, tapes):
        if self.is_native:
            answers = self._device.execute(tapes, self._config)
        else:
            answers = qml.execute(tapes, self._device, diff_method=None)
        if self._readout == "amplitudes":
            return _real_amplitudes(np.asarray(answers), self._n_qubits)
        return np.asarray(answers, np.float64)

    def slopes(self, tapes):
        slopes = self._device.compute_derivatives(tapes, self._config)
        slopes = np.asarray(slopes, np.float64).reshape(len(tapes), -1, self.n_gates)
        return slopes[..., self._order_of_slopes]


def _same_gates(first, second) -> bool:
    return len(first.operations) == len(second.operations) and all(
        map(qml.equal, first.operations, second.operations)
    )


def _returns_unchanged(finish) -> bool:
    """Whether a device's postprocessing leaves answers as they are: error mitigation does not."""
    answer = object()
    try:
        (found,) = finish((answer,))
    except Exception:  # whatever it wanted to do with them
        return False
    return found is answer


@alone
def _has_adjoint(circuit, device) -> bool:
    """Whether the device differentiates the circuit's expectation values by itself."""
    config, tape = (
        ExecutionConfig(gradient_method="adjoint"),
        _Prepared(circuit, device, "expectation").tape,
    )
    return (
        device.supports_derivatives(config, tape)
        and _Prepared(circuit, device, "expectation", "adjoint").is_native
    )


def _sampling_function(circuit, device, readout, shots):
    """A JAX function `(encoding, angles) -> answers` that measures anew in each call."""

    def host(encoding, angles):
        encoding, angles = np.asarray(encoding), np.asarray(angles)
        answers = _run_on_host(circuit, device, readout, encoding, angles, shots)
        return answers.astype(encoding.dtype)

    def call(encoding, angles):
        shape = (encoding.shape[0], circuit.n_outputs(readout))
        result = jax.ShapeDtypeStruct(shape, encoding.dtype)
        # XLA would take a pure callback out of a loop in which its operands stay the same.
        return jax.experimental.io_callback(host, result, encoding, angles)

    return call


def _host_function(circuit, device, readout, shots=None):
    """A JAX function `(encoding, angles, key) -> answers` that asks the device by one callback.

    The key is an operand only: XLA takes calls of the same operands to have the same result.
    """
    outputs, prepare = circuit.n_outputs(readout), functools.cache(_Prepared)

    def ask(function, shape, encoding, angles, *rest):
        def host(encoding, angles, *_):
            found = function(np.asarray(encoding), np.asarray(angles))
            return found.astype(encoding.dtype)

        result = jax.ShapeDtypeStruct((encoding.shape[0], *shape), encoding.dtype)
        return jax.pure_callback(host, result, encoding, angles, *rest, vmap_method="broadcast_all")

    @jax.custom_jvp
    def answers(encoding, angles, key):
        def run(encoding, angles):
            return _run_on_host(circuit, device, readout, encoding, angles, shots, prepare)

        return ask(run, (outputs,), encoding, angles, key)

    if readout != "expectation" or shots is not None or not _has_adjoint(circuit, device):
        answers.defjvp(_shift_rule(answers, readout), symbolic_zeros=True)
        return answers

    @jax.custom_jvp
    def slopes(encoding, angles, key):
        gates = math.prod(encoding.shape[1:]) + math.prod(angles.shape)

        def differentiate(encoding, angles):
            return _slopes_on_host(circuit, device, encoding, angles, prepare)

        return ask(differentiate, (outputs, gates), encoding, angles, key)

    slopes.defjvp(_shift_rule(slopes, readout), symbolic_zeros=True)

    @answers.defjvp
    def adjoint_rule(primals, tangents):
        encoding, angles, _ = primals
        d_encoding = tangents[0].reshape(len(encoding), math.prod(encoding.shape[1:]))
        d_angles = jnp.broadcast_to(tangents[1].ravel(), (len(encoding), angles.size))
        d_gates = jnp.concatenate([d_encoding, d_angles], axis=1)
        return answers(*primals), _einsum("bog,bg->bo", slopes(*primals), d_gates)

    return answers


def _shift_rule(function, readout):
    """∂f/∂α = [f(α + π/2) − f(α − π/2)] / 2 for each gate; itself made of `function`s.

    Amplitudes, which are linear in the gates, have ∂f/∂α = f(α + π) / 2.
    """
    steps, factors = (np.pi / 2, -np.pi / 2), (0.5, -0.5)
    if readout == "amplitudes":
        steps, factors = (np.pi,), (0.5,)

    def rule(primals, tangents):
        encoding, angles, key = primals
        d_encoding, d_angles, _ = tangents
        value = function(*primals)
        tangent, weights = jnp.zeros_like(value), jnp.asarray(factors, value.dtype)
        if not isinstance(d_encoding, SymbolicZero):
            moved = encoding + _shifts(steps, encoding.shape[1:], encoding.dtype)[:, :, None]
            found = jax.vmap(jax.vmap(lambda x: function(x, angles, key)))(moved)
            flat = d_encoding.reshape(len(encoding), math.prod(encoding.shape[1:]))
            tangent += _einsum("s,sgb...,bg->b...", weights, found, flat)
        if not isinstance(d_angles, SymbolicZero):
            moved = angles + _shifts(steps, angles.shape, angles.dtype)
            found = jax.vmap(jax.vmap(lambda x: function(encoding, x, key)))(moved)
            tangent += _einsum("s,sgb...,g->b...", weights, found, d_angles.ravel())
        return value, tangent

    return rule


def _shifts(steps, shape, dtype):
    """Each step on one gate at a time, shape `(steps, gates, *shape)`."""
    gates = math.prod(shape)
    one_at_a_time = np.eye(gates).reshape((gates, *shape))
    return jnp.asarray(np.stack([step * one_at_a_time for step in steps]), dtype)
