"""A QNode traced by JAX: circuits with places for angles, and the angles as JAX computes them."""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.core import Tracer
from jaxtyping import Array
from pennylane.devices import Device, ExecutionConfig
from pennylane.devices.preprocess import decompose
from pennylane.exceptions import DeviceError, ParameterFrequenciesUndefinedError
from pennylane.measurements import ExpectationMP, ProbabilityMP, StateMP, VarianceMP
from pennylane.ops.mid_measure import MidMeasure
from pennylane.ops.op_math import Conditional
from pennylane.tape import QuantumScript
from pennylane.transforms import broadcast_expand, convert_to_numpy_parameters

from qsgd_jax._src.host import name_of
from qsgd_jax._src.hybrid.refusing import RefusedError


class Template(NamedTuple):
    """A circuit as a device runs it.

    Attributes:
      tape: with stand-ins where JAX computes.
      angles: places of the gates' angles among its parameters, in order.
      operands: places of what else JAX computes, states and matrices.
      shapes: of its results.
      frequencies: of the results in each angle; of a state, if it moves by Pauli words.
    """

    tape: QuantumScript
    angles: tuple[int, ...]
    operands: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    frequencies: tuple[tuple[float, ...], ...]

    @property
    def size(self) -> int:
        """How many numbers it answers."""
        return sum(map(math.prod, self.shapes))


@dataclasses.dataclass(frozen=True)
class Traced:
    """What a QNode runs at one input.

    Attributes:
      templates: its circuits.
      angles: those of their gates in radians, each a scalar, one template after the other.
      operands: what else they are given, likewise.
      finish: from their results to the QNode's answer.
      config: how the device runs them.
    """

    templates: tuple[Template, ...]
    angles: tuple[Array, ...]
    operands: tuple[Array, ...]
    finish: Callable[[Sequence[Any]], Any]
    config: ExecutionConfig


def traced(name: str, circuits: tuple[Any, Callable[[Any], Any]], device: Device) -> Traced:
    """Trace circuits whose angles JAX traces; nothing is run.

    Args:
      name: what their author has called them.
      circuits: what is asked for, and how the answer is made of the results.
      device: exact, or the circuits have a number of shots.

    Raises:
      RefusedError: if the device samples, or they measure what has no derivative.
    """
    tapes, recipe = circuits
    expanded: Any = broadcast_expand(tapes)
    tapes, unbroadcast = expanded
    ready, finishes, config = _for_device(name, tapes, device)
    counts = list(map(len, ready))

    def finish(results: Sequence[Any]) -> Any:
        ends = np.cumsum(counts)
        batches = [results[end - count : end] for end, count in zip(ends, counts, strict=True)]
        answers = (post(tuple(batch))[0] for post, batch in zip(finishes, batches, strict=True))
        return recipe(unbroadcast(tuple(answers)))

    templates, angles, operands = [], [], []
    for tape in (tape for batch in ready for tape in batch):
        template, own_angles, own_operands = _template(tape)
        templates.append(template)
        angles += own_angles
        operands += own_operands
    return Traced(tuple(templates), tuple(angles), tuple(operands), finish, config)


def circuits(qnode: Any, arguments: Mapping[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    """What a QNode asks for, and how its answer is made of the results.

    Args:
      qnode: the QNode.
      arguments: by name.

    Raises:
      RefusedError: if they are no circuits of gates and then measurements that have derivatives.
    """
    # A copy, which keeps the circuit: else traced values would outlive their trace.
    tape = copy.copy(qnode).construct((), dict(arguments))
    tapes, recipe = qnode.compile_pipeline((tape,))
    name = name_of(qnode.func)
    for tape in tapes:
        check_gates(name, tape)
        _check_measurements(name, tape)
    return tapes, recipe


def check_gates(name: str, tape: QuantumScript) -> None:
    """Refuse what is measured in the middle.

    Args:
      name: of the QNode.
      tape: its circuit.
    """
    if any(isinstance(op, (MidMeasure, Conditional)) for op in tape.operations):
        raise RefusedError(f"{name} measures in the middle; allowed are gates, then measurements.")


def _check_measurements(name: str, tape: QuantumScript, *more: type) -> None:
    for found in tape.measurements:
        if not isinstance(found, (ExpectationMP, VarianceMP, ProbabilityMP, *more)):
            raise RefusedError(
                f"{name} answers {found}; allowed are qml.expval, qml.var, qml.probs."
            )
        observable: Any = found.obs
        if observable is not None and any(isinstance(x, Tracer) for x in observable.data):
            raise RefusedError(
                f"{name} measures a {type(observable).__name__} of numbers that JAX computes; "
                "allowed are constants: multiply what it answers."
            )


def _for_device(
    name: str, tapes: Sequence[QuantumScript], device: Device
) -> tuple[list[Any], list[Any], ExecutionConfig]:
    """What the device runs: gates of its own, made for its adjoint method where it has one."""
    exact = not any(tape.shots for tape in tapes)
    for method in ("adjoint", None) if exact else (None,):
        try:
            found = _preprocessed(tapes, device, method)
            break
        # Of some operators PennyLane asks for values before it takes them apart.
        except (DeviceError, jax.errors.ConcretizationTypeError):
            if method is None:
                raise
    else:
        raise AssertionError("Without a method of its own the device has refused or answered.")
    for tape in (tape for batch in found[0] for tape in batch):
        _check_measurements(name, tape, StateMP)  # a device may have samples instead
    return found


def _preprocessed(
    tapes: Sequence[QuantumScript], device: Device, method: str | None
) -> tuple[list[Any], list[Any], ExecutionConfig]:
    ready, finishes, config = [], [], ExecutionConfig()
    for tape in tapes:
        prepared, tape = _split(tape) if method == "adjoint" else ([], tape)
        # Constants, too: then the device takes gates of several angles apart.
        tape.trainable_params = list(range(len(tape.get_parameters(operations_only=True))))
        # Else each pass would leave its states in the device, for a later one that never comes.
        wanted = ExecutionConfig(gradient_method=method, use_device_jacobian_product=False)
        config = device.setup_execution_config(wanted, tape)
        if method is not None and not device.supports_derivatives(config, tape):
            raise DeviceError(f"{device.name} has no {method} method.")
        batch, finish = device.preprocess_transforms(config)([tape])
        batch = [_after(prepared, _with_frequencies(one)) for one in batch]
        if method is not None and not all(_differentiable(one, device) for one in batch):
            raise DeviceError(f"{device.name} counts the angles of a gate in its own way.")
        ready.append(batch)
        finishes.append(finish)
    return ready, finishes, config


def _differentiable(tape: QuantumScript, device: Device) -> bool:
    """Whether each gate has one angle, and the device's adjoint method knows it.

    Lightning applies others as matrices, and then takes later angles for those of other gates.
    """
    known = device.capabilities.gate_set(differentiable=True) if device.capabilities else set()
    return all(
        not op.data
        or isinstance(op, (qml.operation.StatePrepBase, qml.BasisState))
        or (len(op.data) == 1 and op.name in known)
        for op in tape.operations
    )


def places(tape: QuantumScript) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Places among a circuit's parameters of what JAX computes: single real numbers, and arrays.

    Args:
      tape: the circuit.
    """
    computed = [i for i, x in enumerate(_parameters(tape)) if isinstance(x, Tracer)]
    angles = tuple(i for i in computed if _is_angle(_parameters(tape)[i]))
    return angles, tuple(i for i in computed if i not in angles)


def _parameters(tape: QuantumScript) -> list[Any]:
    return tape.get_parameters(trainable_only=False)


def _is_angle(value: Any) -> bool:
    """Whether it is one real number that JAX computes."""
    known = not isinstance(value, Tracer)
    return not known and not value.shape and bool(jnp.issubdtype(value.dtype, jnp.floating))


def _split(tape: QuantumScript) -> tuple[list[Any], QuantumScript]:
    """A state that JAX computes, and the rest.

    Devices would make it by gates for their adjoint method, one for each amplitude, and with angles
    that have no derivative where an amplitude is zero.
    """
    first = tape.operations[:1]
    computed = any(isinstance(x, Tracer) for op in first for x in op.data)
    if not computed or not isinstance(first[0], qml.operation.StatePrepBase):
        return [], tape
    return first, tape.copy(operations=tape.operations[1:])


def _gate(tape: QuantumScript, place: int) -> tuple[Any, int]:
    """Whose parameter it is, and which of its."""
    info: Any = tape.par_info[place]
    return info["op"], info["p_idx"]


def _after(prepared: list[Any], tape: QuantumScript) -> QuantumScript:
    return tape.copy(operations=prepared + tape.operations) if prepared else tape


def _with_frequencies(tape: QuantumScript) -> QuantumScript:
    """The same of gates whose answers are known to be sines of their angles."""

    def known(op: Any) -> bool:
        return not any(map(_is_angle, op.data)) or _frequencies(op, 0) is not None

    batch: Any = decompose(tape, stopping_condition=known, name="a QuantumLayer")
    return batch[0][0]


def _frequencies(op: Any, place: int) -> tuple[float, ...] | None:
    """Of expectation values in an angle; none of a phase of all."""
    if isinstance(op, qml.GlobalPhase):
        return ()
    try:
        return tuple(map(float, op.parameter_frequencies[place]))
    except (ParameterFrequenciesUndefinedError, AttributeError):  # operators that are no gates
        return None


def _template(tape: QuantumScript) -> tuple[Template, list[Any], list[Any]]:
    """A tape without what JAX computes, and that."""
    angles, operands = places(tape)
    values = _parameters(tape)
    squared = any(isinstance(x, VarianceMP) for x in tape.measurements)
    frequencies = []
    for place in angles:
        found = _frequencies(*_gate(tape, place))
        assert found is not None, "Gates of unknown frequencies have been taken apart."
        frequencies.append(_of_squares(found) if squared else found)
    if any(isinstance(x, StateMP) for x in tape.measurements):
        frequencies = [tuple(x / 2 for x in found) or (1.0,) for found in frequencies]
    stand_ins = [_stand_in(values[place].shape) for place in sorted(angles + operands)]
    for op in tape.operations:  # what JAX has normalized in float32 would be refused
        if "validate_norm" in op.hyperparameters:
            op.hyperparameters["validate_norm"] = False
    bound = tape.bind_new_parameters(stand_ins, sorted(angles + operands))
    # What is constant may be JAX's, and JAX may not be called on the host.
    in_numpy: Any = convert_to_numpy_parameters(bound)
    bound = in_numpy[0][0]
    bound.trainable_params = list(angles)
    shapes = tuple(_shape(x, tape) for x in tape.measurements)
    template = Template(bound, angles, operands, shapes, tuple(frequencies))
    return template, [values[place] for place in angles], [values[place] for place in operands]


def _shape(measurement: Any, tape: QuantumScript) -> tuple[int, ...]:
    """Of the real numbers that it answers."""
    shape = measurement.shape(tape.shots.total_shots, len(tape.wires))
    return (*shape, 2) if isinstance(measurement, StateMP) else shape


def _of_squares(frequencies: tuple[float, ...]) -> tuple[float, ...]:
    """Of products of two such functions."""
    sums = {abs(a + sign * b) for a in frequencies for b in frequencies for sign in (1, -1)}
    return tuple(sorted({round(x, 9) for x in sums | set(frequencies)} - {0.0}))


def _stand_in(shape: tuple[int, ...]) -> Any:
    """An angle, a state, or a unitary."""
    if not shape:
        return 0.0
    return np.eye(*shape) if len(shape) == 2 else np.eye(1, math.prod(shape)).reshape(shape)
