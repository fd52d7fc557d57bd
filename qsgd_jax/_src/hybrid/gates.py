"""The gates of a QNode whose angles its parameters move."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pennylane as qml
from jax.core import Tracer
from jax.extend.core import Literal
from jaxtyping import Array
from pennylane.devices.preprocess import decompose
from pennylane.pytrees import flatten
from pennylane.tape import QuantumScript

from qsgd_jax._src.devices import traced_by_jax
from qsgd_jax._src.host import alone, name_of
from qsgd_jax._src.hybrid.refusing import RefusedError
from qsgd_jax._src.hybrid.tracing import check_gates, places

Arguments = Mapping[str, Array]
Kind = Callable[[Any], bool]

PURE = "allowed are pure states: a device and gates without noise."
# What is no gate of angles, and is not taken apart into some: its derivative might be none.
_WHOLE = (
    qml.operation.StatePrepBase,
    qml.operation.Channel,
    qml.QubitUnitary,
    qml.ControlledQubitUnitary,
    qml.DiagonalQubitUnitary,
    qml.GlobalPhase,
)


def circuit(qnode: Any, arguments: Arguments, *, pure: bool = False) -> QuantumScript:
    """A QNode's gates.

    Args:
      qnode: the QNode.
      arguments: by name, traced by JAX.
      pure: whether noise is refused.

    Raises:
      RefusedError: if they are no circuit of gates.
    """
    name = name_of(qnode.func)
    tape = copy.copy(qnode).construct((), dict(arguments))
    # Whatever is measured, the state is one.
    tapes, _ = qnode.compile_pipeline((tape.copy(measurements=[qml.probs(wires=tape.wires)]),))
    if len(tapes) != 1:
        raise RefusedError(f"{name} has transforms that make {len(tapes)} circuits; allowed is 1.")
    check_gates(name, tapes[0])
    if tapes[0].batch_size is not None:
        raise RefusedError(f"{name} has gates with arrays of angles; allowed is one each.")
    if pure and any(isinstance(op, qml.operation.Channel) for op in tapes[0].operations):
        raise RefusedError(f"{name} has channels of noise; {PURE}")
    return tapes[0]


def is_pauli_rotation(gate: Any) -> bool:
    """Whether it is exp(iαP) of a multiple P of a Pauli word.

    Args:
      gate: any.
    """
    words = gate.generator().pauli_rep if _has_generator(gate) else None
    return words is not None and len(words) == 1


def has_measurable_generator(gate: Any) -> bool:
    """Whether it is exp(iαG) of a G whose basis gates can turn to.

    Args:
      gate: any.
    """
    if not _has_generator(gate) or not gate.wires:  # a phase of all
        return False
    found: Any = qml.generator(gate)
    return found[0].has_diagonalizing_gates


def _has_generator(gate: Any) -> bool:
    try:
        return gate.has_generator and gate.num_params == 1 and _is_real(gate.data[0])
    except jax.errors.ConcretizationTypeError:  # asks for the value of its angle
        return False


def _is_real(value: Any) -> bool:
    return not jnp.shape(value) and bool(jnp.issubdtype(jnp.result_type(value), jnp.floating))


def taken_apart(tape: QuantumScript, keep: Kind) -> QuantumScript:
    """The same of gates of which those that move are of one kind, where that can be.

    Args:
      tape: the circuit.
      keep: whether a gate is of the kind.
    """

    def stop(gate: Any) -> bool:
        constant = not any(isinstance(x, Tracer) for x in gate.data)
        return constant or isinstance(gate, _WHOLE) or keep(gate)

    batch: Any = decompose(tape, stopping_condition=stop, name="a metric")
    return batch[0][0]


def moving(
    name: str, tape_at: Callable[[Arguments], QuantumScript], keep: Kind, params: Arguments
) -> list[bool]:
    """Which of a circuit's angles are those of gates of a kind, and depend on its parameters.

    Args:
      name: of the QNode.
      tape_at: from parameters to the circuit.
      keep: whether a gate is of the kind.
      params: the parameters.

    Raises:
      RefusedError: if they move anything else, or nothing.
    """
    own: list[bool] = []
    others: list[str] = []

    def numbers(params: Arguments) -> list[Any]:
        tape = tape_at(params)
        values = tape.get_parameters(trainable_only=False)
        angles = places(tape)[0]
        gates: list[Any] = [tape.par_info[i] for i in angles]
        rest = [
            (gate.name, x)
            for gate in tape.operations
            for x in _tracers(gate)
            if not (isinstance(gate, qml.GlobalPhase) or (keep(gate) and x is gate.data[0]))
        ]
        own[:] = [keep(gate["op"]) for gate in gates]
        others[:] = [gate for gate, _ in rest]
        return [*(values[i] for i in angles), *(x for _, x in rest)]

    flags = dependent(traced(numbers), params)
    if moved := {gate for gate, flag in zip(others, flags[len(own) :], strict=True) if flag}:
        raise RefusedError(
            f"{name} has {', '.join(sorted(moved))} of numbers that the parameters move and that "
            "are no angle; allowed are gates of one angle, or default.qubit with approx=None."
        )
    found = [a and b for a, b in zip(own, flags, strict=False)]
    if not any(found):
        raise RefusedError(f"{name} has no gate that the parameters move.")
    return found


def _tracers(gate: Any) -> list[Any]:
    """All numbers of a gate, of those within it, and of its options, that JAX computes."""
    options = [getattr(gate, "z", None), *gate.hyperparameters.values()]
    leaves = [x for each in (gate, *options) for x in flatten(each)[0]]
    return [x for x in leaves if isinstance(x, Tracer)]


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, for JAX to trace what speaks to PennyLane.

    Args:
      function: the function.
    """

    @alone
    def inside(*args: Any) -> Any:
        with traced_by_jax():
            return function(*args)

    return inside


def dependent(function: Callable[[Arguments], Sequence[Any]], params: Arguments) -> list[bool]:
    """Which of the numbers that a function returns depend on its argument.

    Args:
      function: the function.
      params: the argument.
    """
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    found = set(jaxpr.invars)

    def moves(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in found

    for eqn in jaxpr.eqns:
        if any(map(moves, eqn.invars)):
            found.update(eqn.outvars)
    return [moves(atom) for atom in jaxpr.outvars]
