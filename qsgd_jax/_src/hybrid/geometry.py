r"""The Fubini–Study metric of a QNode's state, at one input.

.. math:: g_{ij} = \mathrm{Re} \big( \langle \partial_i \psi | \partial_j \psi \rangle
  - \langle \partial_i \psi | \psi \rangle \langle \psi | \partial_j \psi \rangle \big)

In a device that JAX can trace it is the Jacobian of the state. Elsewhere a device answers for the
angles α of the gates, and JAX differentiates these by the parameters θ:

.. math:: g(\theta) = J^\top g(\alpha) \, J, \qquad J = \partial \alpha / \partial \theta
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.core import Tracer
from jax.extend.core import Literal as Constant
from jaxtyping import Array, Float, UInt32
from pennylane.devices.preprocess import decompose
from pennylane.tape import QuantumScript
from pennylane.wires import Wires

from qsgd_jax._src.devices import traced_by_jax
from qsgd_jax._src.host import alone, name_of
from qsgd_jax._src.hybrid.functions import ask, simulated_by_jax
from qsgd_jax._src.hybrid.gathering import gathered
from qsgd_jax._src.hybrid.refusing import RefusedError
from qsgd_jax._src.hybrid.tracing import check_gates, places

Approx = Literal["block-diag", "diag"] | None
Arguments = Mapping[str, Array]
Key = UInt32[Array, "2"]
_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def metric(
    qnode: Any, params: Arguments, inputs: Arguments, approx: Approx, key: Key, dtype: Any
) -> Float[Array, "m m"]:
    """The metric of a QNode's parameters.

    Args:
      qnode: of any measurements, which are not made.
      params: arguments by name; those of the metric are all numbers of them, in order.
      inputs: its other arguments.
      approx: which entries are measured between gates: all, those within a layer of gates that do
        not follow each other, or those of a gate with itself.
      key: raw key data that differ from call to call where the device measures.
      dtype: float32 or float64.
    """
    name = name_of(qnode.func)
    if approx is not None:
        of_angles, jacobian = _by_covariances(qnode, params, inputs, approx, key, dtype)
    elif simulated_by_jax(qnode):
        return _of_state(name, lambda x: _state(qnode, {**x, **inputs}), params)
    else:
        of_angles, jacobian = _by_shifted_states(qnode, params, inputs, key, dtype)
    return _dot(jacobian.T, _dot(of_angles, jacobian))


# By JAX


def _of_state(name: str, state: Callable[[Arguments], Array], params: Arguments) -> Array:
    def twice(x: Arguments) -> tuple[Array, Array]:
        psi = state(x)
        return psi, psi

    jacobian, psi = jax.jacfwd(twice, has_aux=True)(params)
    if psi.ndim != 1:
        raise RefusedError(f"{name} has a density matrix; {_PURE}")
    slopes = jnp.concatenate([x.reshape(psi.size, -1) for x in jax.tree.leaves(jacobian)], axis=1)
    return _of_slopes(psi, slopes.T)


def _of_slopes(psi: Array, slopes: Array) -> Array:
    """The metric of derivatives of the state, one in each row."""
    gram, overlaps = _dot(slopes.conj(), slopes.T), _dot(slopes.conj(), psi)
    return (gram - overlaps[:, None] * overlaps.conj()).real


@alone
def _state(qnode: Any, arguments: Arguments) -> Array:
    with traced_by_jax():
        gates = circuit(qnode, arguments, pure=True).operations
        return _simulated(qnode, gates, qml.state())


def _simulated(qnode: Any, gates: Sequence[Any], measurement: Any) -> Array:
    def run() -> Any:
        for gate in gates:
            qml.apply(gate)
        return qml.apply(measurement)

    return qml.QNode(run, qnode.device, interface="jax", diff_method="backprop")()


# By a device, of the states that a simulator has


def _by_shifted_states(
    qnode: Any, params: Arguments, inputs: Arguments, key: Key, dtype: Any
) -> tuple[Array, Array]:
    r"""Of rotations by Pauli words, of frequency f.

    .. math:: \partial_\alpha \psi(\alpha) = \tfrac f2 \, \psi(\alpha + \pi / f)
    """
    name = name_of(qnode.func)
    if qnode.shots:
        raise RefusedError(
            f"{name} has shots, and the whole metric needs states; allowed are "
            "approx='block-diag' and 'diag'."
        )

    def circuits(arguments: Arguments) -> Any:
        tape = circuit(qnode, arguments, pure=True)
        tape = _taken_apart(tape, _is_pauli_rotation)
        return (tape.copy(measurements=[qml.state()]),), lambda results: results[0]

    def asked(params: Arguments) -> Any:
        return ask(qnode, circuits, {**params, **inputs}, dtype)

    found = asked(params)
    (template,) = found.templates
    if template.shapes != ((math.prod(template.shapes[0]) // 2, 2),):
        raise RefusedError(f"{name} has a density matrix; {_PURE}")
    gates = [template.tape.par_info[place]["op"] for place in template.angles]
    if unknown := {gate.name for gate in gates if not _is_pauli_rotation(gate)}:
        raise RefusedError(
            f"{name} runs {', '.join(sorted(unknown))} on {qnode.device.name}, no rotation by a "
            "Pauli word; allowed are approx='block-diag' and 'diag'."
        )
    # A phase of all has none, and does not change the state.
    frequencies = np.array([sum(each) for each in template.frequencies])
    shifts = np.pi / np.where(frequencies > 0, frequencies, np.inf)
    moves = np.concatenate([np.zeros((1, len(gates))), np.diag(shifts)])
    states = jax.vmap(lambda move: found.numbers(found.angles + move, found.operands, key))(
        jnp.asarray(moves, dtype)
    )
    pairs = states.reshape(1 + len(gates), -1, 2)
    states = pairs[..., 0] + 1j * pairs[..., 1]
    slopes = jnp.asarray(frequencies / 2, dtype)[:, None] * states[1:]
    return _of_slopes(states[0], slopes), _joined(jax.jacfwd(lambda x: asked(x).angles)(params))


def _is_pauli_rotation(gate: Any) -> bool:
    if not gate.has_generator or gate.num_params != 1:
        return False
    words = gate.generator().pauli_rep
    return words is not None and len(words) == 1


# By a device, of what it measures


class _Layer(NamedTuple):
    """Gates that do not follow each other.

    Attributes:
      tape: what is before them, and measures in their generators' basis.
      eigenvalues: of their generators, in each outcome.
      angles: theirs.
    """

    tape: QuantumScript
    eigenvalues: Float[np.ndarray, "outcomes gates"]
    angles: list[Any]


def _by_covariances(
    qnode: Any, params: Arguments, inputs: Arguments, approx: Approx, key: Key, dtype: Any
) -> tuple[Array, Array]:
    r"""Of generators K, in the state before their layer.

    .. math:: g_{ij} = \langle K_i K_j \rangle - \langle K_i \rangle \langle K_j \rangle
    """

    def tape_at(params: Arguments) -> QuantumScript:
        return _taken_apart(circuit(qnode, {**params, **inputs}), _has_generator)

    def angles(params: Arguments) -> list[Any]:
        tape = tape_at(params)
        return [tape.get_parameters(trainable_only=False)[i] for i in places(tape)[0]]

    moving = _dependent(_traced(angles), params)
    if not any(moving):
        raise RefusedError(f"{name_of(qnode.func)} has no gate that the parameters move.")
    kept: list[list[_Layer]] = []

    def layers(params: Arguments) -> list[_Layer]:
        tape = tape_at(params)
        tape.trainable_params = [
            place for place, moves in zip(places(tape)[0], moving, strict=True) if moves
        ]
        kept[:] = [list(_layers(tape))]
        return kept[0]

    def circuits(arguments: Arguments) -> Any:
        return [x.tape for x in layers({name: arguments[name] for name in params})], tuple

    if simulated_by_jax(qnode):
        numbers = _traced(lambda x: _probabilities(qnode, layers(x)))(params)
    else:
        found = ask(qnode, circuits, {**params, **inputs}, dtype)
        numbers = found.finish(found.numbers(found.angles, found.operands, key))
    tables = [x.eigenvalues for x in kept[0]]
    ends = np.cumsum([len(table) for table in tables])[:-1]
    blocks = [
        _covariance(p, jnp.asarray(table, dtype), qnode.shots.total_shots)
        for p, table in zip(jnp.split(numbers.ravel(), ends), tables, strict=True)
    ]
    of_angles = jax.scipy.linalg.block_diag(*blocks)
    if approx == "diag":
        of_angles = jnp.diag(jnp.diag(of_angles))

    def in_order(params: Arguments) -> Array:
        traced = _traced(lambda x: ([a for layer in layers(x) for a in layer.angles], None))
        return gathered(traced, params, dtype=dtype)[0]

    return of_angles, _joined(jax.jacfwd(in_order)(params))


def _covariance(p: Float[Array, " outcomes"], values: Array, shots: int | None) -> Array:
    """Of values in each outcome; of counted ones, which estimate it, without bias."""
    means = _dot(p, values)
    found = _dot(values.T, p[:, None] * values) - means[:, None] * means
    return found if shots is None else found * (shots / (shots - 1))


def _layers(tape: QuantumScript) -> Iterator[_Layer]:
    for before, gates, _, _ in tape.graph.iterate_parametrized_layers():
        if not gates:
            continue
        wires = Wires.all_wires([gate.wires for gate in gates])
        basis, columns = [], []
        for gate in gates:
            found: Any = qml.generator(gate)
            observable, scale = found
            basis += observable.diagonalizing_gates()
            own = np.reshape(scale * observable.eigvals(), (2,) * len(observable.wires))
            at = wires.indices(observable.wires)
            outcomes = np.indices((2,) * len(wires)).reshape(len(wires), -1)
            columns.append(own[tuple(outcomes[at])])
        measured = [qml.probs(wires=wires)]
        before = QuantumScript([*before, *basis], measured, shots=tape.shots)
        yield _Layer(before, np.real(np.stack(columns, axis=1)), [gate.data[0] for gate in gates])


def _probabilities(qnode: Any, layers: Sequence[_Layer]) -> Array:
    """All that they measure, by JAX."""
    return jnp.concatenate([_simulated(qnode, x.tape.operations, x.tape[-1]) for x in layers])


def _has_generator(gate: Any) -> bool:
    return gate.has_generator and gate.num_params == 1


# Circuits

_PURE = "allowed are pure states: a device and gates without noise."


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
        raise RefusedError(f"{name} has channels of noise; {_PURE}")
    return tapes[0]


def _taken_apart(tape: QuantumScript, keep: Callable[[Any], bool]) -> QuantumScript:
    """The same of gates of which those that move are of one kind."""

    def stop(gate: Any) -> bool:
        constant = not any(isinstance(x, Tracer) for x in gate.data)
        return constant or isinstance(gate, qml.operation.StatePrepBase) or keep(gate)

    batch: Any = decompose(tape, stopping_condition=stop, name="a metric")
    return batch[0][0]


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, for JAX to trace what speaks to PennyLane."""

    @alone
    def inside(*args: Any) -> Any:
        with traced_by_jax():
            return function(*args)

    return inside


def _dependent(function: Callable[[Arguments], Sequence[Any]], params: Arguments) -> list[bool]:
    """Which of the numbers that a function returns depend on its argument."""
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    moving = set(jaxpr.invars)

    def moves(atom: Any) -> bool:
        return not isinstance(atom, Constant) and atom in moving

    for eqn in jaxpr.eqns:
        if any(map(moves, eqn.invars)):
            moving.update(eqn.outvars)
    return [moves(atom) for atom in jaxpr.outvars]


def _joined(jacobian: Mapping[str, Array]) -> Float[Array, "angles m"]:
    leaves = jax.tree.leaves(jacobian)
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)
