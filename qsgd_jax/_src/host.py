"""Running a batch of circuits on the host, from NumPy to NumPy, in float64.

No JAX call is made here: inside a callback it would deadlock.
"""

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import pennylane as qml
from jaxtyping import Float
from pennylane.devices import DefaultQubit, Device, ExecutionConfig
from pennylane.tape import QuantumScript, make_qscript
from threadpoolctl import ThreadpoolController

from qsgd_jax._src.circuit import Circuit, Readout

Encoding = Float[np.ndarray, "*lead batch uploads n"]
Angles = Float[np.ndarray, "*lead depth n 2"]
_F = TypeVar("_F", bound=Callable[..., Any])

# Bounds the memory that the tapes or state vectors of one call to a device take.
MAX_BATCH = 4096
# A device holds one state vector, and PennyLane records gates in one place for all threads: two
# of them, of a training loop or of XLA, would share both.
ONE_AT_A_TIME = threading.RLock()
# Below, a simulator's threads do nothing but wait for each other: on busy cores for seconds.
_FEWEST_QUBITS_FOR_THREADS = 16
# Larger than any constant angle of a circuit.
_LABELS = 1e6


def alone(function: _F) -> _F:
    """Let threads take turns in a function that speaks to PennyLane."""

    @functools.wraps(function)
    def taking_turns(*args: Any) -> Any:
        with ONE_AT_A_TIME, _without_capture():
            return function(*args)

    return cast(_F, taking_turns)


@contextlib.contextmanager
def _without_capture() -> Iterator[None]:
    """With PennyLane's program capture, a switch of the whole process, tapes would stay empty."""
    if not qml.capture.enabled():  # `pause` would switch it on afterwards
        yield
        return
    with qml.capture.pause():
        yield


def name_of(function: Any) -> str:
    """What its author has called a function, or the one that a `functools.partial` calls."""
    function = getattr(function, "func", function)
    return getattr(function, "__name__", type(function).__name__)


def wires(circuit: Circuit, device: Device) -> Any:
    """The wires of the device that the circuit takes; `None` if it has no labels."""
    return None if device.wires is None else device.wires[: circuit.n_qubits]


def stacked(answers: Any, readout: Readout, n_qubits: int) -> Any:
    """What a broadcast tape answered, `(batch, outputs)`."""
    if readout == "expectation":
        answers = answers if isinstance(answers, tuple | list) else (answers,)  # of one qubit
        return qml.math.stack(answers, axis=-1)  # pyright: ignore[reportAttributeAccessIssue]
    return answers if readout == "probabilities" else _real_amplitudes(answers, n_qubits)


def _real_amplitudes(states: Any, n_qubits: int) -> Any:
    """The real parts of `(batch, amplitudes)`, those of the device's further wires at rest."""
    if states.ndim != 2:
        raise ValueError(
            f"Amplitudes are those of a pure state; the device answers shape {states.shape[1:]}."
        )
    return states.reshape(len(states), 2**n_qubits, -1)[:, :, 0].real


@alone
def run_on_host(
    circuit: Circuit,
    device: Device,
    readout: Readout,
    encoding: Encoding,
    angles: Angles,
    shots: int | None = None,
    prepare: Callable[..., "Prepared"] | None = None,
) -> Float[np.ndarray, "*lead batch outputs"]:
    """Gate angles to answers, `(*lead, batch, outputs)`; NumPy in and out.

    `encoding` is `(*lead, batch, uploads, n)` and `angles` `(*lead, depth, n, 2)`; `prepare`
    remembers what it made ready.
    """
    if isinstance(device, DefaultQubit):
        answers = _run_broadcast(circuit, device, readout, encoding, angles, shots)
    else:
        prepared = (prepare or Prepared)(circuit, device, readout, None, shots)
        answers = _in_chunks(
            prepared.answers, prepared.tapes(encoding, angles), device, circuit.n_qubits
        )
    return answers.reshape((*encoding.shape[:-2], circuit.n_outputs(readout)))


@alone
def slopes_on_host(
    circuit: Circuit,
    device: Device,
    encoding: Encoding,
    angles: Angles,
    prepare: Callable[..., "Prepared"],
) -> Float[np.ndarray, "*lead batch outputs gates"]:
    """The derivative of each ⟨Z_j⟩ by each gate's angle, `(*lead, batch, outputs, gates)`."""
    prepared = prepare(circuit, device, "expectation", "adjoint")
    slopes = _in_chunks(prepared.slopes, prepared.tapes(encoding, angles), device, circuit.n_qubits)
    return slopes.reshape((*encoding.shape[:-2], circuit.n_qubits, prepared.n_gates))


def few_threads(device: Device, n_qubits: int) -> Any:
    """Keep a small circuit to one of a simulator's threads."""
    limit = 1 if n_qubits < _FEWEST_QUBITS_FOR_THREADS else None
    pools = _thread_pools(type(getattr(device, "target_device", device)))
    return pools.limit(limits=limit, user_api="openmp")


@functools.cache
def _thread_pools(kind: type) -> ThreadpoolController:
    """Those loaded once a device of this kind is open.

    Looking for them in each call would at last meet another thread's import and wait for it
    forever: one holds the loader's lock and waits for Python's, the other the reverse.
    """
    return ThreadpoolController()


def _in_chunks(
    ask: Callable[[list[QuantumScript]], Any],
    tapes: Iterator[QuantumScript],
    device: Device,
    n_qubits: int,
) -> np.ndarray:
    with few_threads(device, n_qubits):
        chunks = iter(lambda: list(itertools.islice(tapes, MAX_BATCH)), [])
        answers = [np.asarray(ask(chunk)) for chunk in chunks]
    return np.concatenate(answers or [np.zeros(0)])


def _run_broadcast(
    circuit: Circuit,
    device: Device,
    readout: Readout,
    encoding: Encoding,
    angles: Angles,
    shots: int | None,
) -> Float[np.ndarray, "settings outputs"]:
    """default.qubit simulates a broadcast tape in one go."""
    shape = encoding.shape[:-2]
    angles = np.broadcast_to(angles[..., None, :, :, :], (*shape, *angles.shape[-3:]))
    encoding = encoding.reshape((math.prod(shape), *encoding.shape[-2:]))
    angles = angles.reshape((math.prod(shape), *angles.shape[-3:]))
    answers = [np.zeros((0, circuit.n_outputs(readout)))]
    for i in range(0, len(encoding), MAX_BATCH):
        chunk = slice(i, i + MAX_BATCH)
        tape = _tape(circuit, device, readout, encoding[chunk], angles[chunk], shots)
        (found,) = qml.execute([tape], device, diff_method=None)
        found = stacked(found, readout, circuit.n_qubits)
        answers.append(found.reshape(-1, circuit.n_outputs(readout)))
    return np.concatenate(answers)


def _tape(
    circuit: Circuit,
    device: Device,
    readout: Readout,
    encoding: Float[np.ndarray, "*batch uploads n"],
    angles: Float[np.ndarray, "*batch depth n 2"],
    shots: int | None = None,
) -> QuantumScript:
    prepare = make_qscript(circuit.run, shots=shots)
    return prepare(encoding, angles, readout, wires(circuit, device))


class Prepared:
    """A circuit made ready for a device once, for any number of settings.

    Binding parameters into a tape takes half the time of queueing its gates anew. And where the
    device's own preprocessing leaves the circuit as it is, no tape needs to go through it.
    """

    def __init__(
        self,
        circuit: Circuit,
        device: Device,
        readout: Readout,
        gradient_method: str | None = None,
        shots: int | None = None,
    ):
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

    def tapes(self, encoding: Any, angles: Any) -> Iterator[QuantumScript]:
        for lead in np.ndindex(angles.shape[:-3]):
            bound = self.tape.bind_new_parameters(angles[lead].ravel(), self._angle_places)
            for row in encoding[lead].reshape(-1, len(self._encoding_places)):
                yield bound.bind_new_parameters(row, self._encoding_places)

    def answers(self, tapes: list[QuantumScript]) -> np.ndarray:
        if self.is_native:
            answers = self._device.execute(tapes, self._config)
        else:
            answers = qml.execute(tapes, self._device, diff_method=None)
        if self._readout == "amplitudes":
            return _real_amplitudes(np.asarray(answers), self._n_qubits)
        return np.asarray(answers, np.float64)

    def slopes(self, tapes: list[QuantumScript]) -> Float[np.ndarray, "settings outputs gates"]:
        slopes = self._device.compute_derivatives(tapes, self._config)
        slopes = np.asarray(slopes, np.float64).reshape(len(tapes), -1, self.n_gates)
        return slopes[..., self._order_of_slopes]


def _same_gates(first: QuantumScript, second: QuantumScript) -> bool:
    return len(first.operations) == len(second.operations) and all(
        map(qml.equal, first.operations, second.operations)
    )


def _returns_unchanged(finish: Callable[[tuple[Any]], Any]) -> bool:
    """Whether a device's postprocessing leaves answers as they are: error mitigation does not."""
    answer = object()
    try:
        (found,) = finish((answer,))
    except Exception:  # whatever it wanted to do with them
        return False
    return found is answer


@alone
def has_adjoint(circuit: Circuit, device: Device) -> bool:
    """Whether the device differentiates the circuit's expectation values by itself."""
    config, tape = (
        ExecutionConfig(gradient_method="adjoint"),
        Prepared(circuit, device, "expectation").tape,
    )
    return (
        device.supports_derivatives(config, tape)
        and Prepared(circuit, device, "expectation", "adjoint").is_native
    )
