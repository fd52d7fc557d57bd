r"""The Fubini–Study metric of a QNode's state, at one input.

.. math:: g_{ij} = \mathrm{Re} \big( \langle \partial_i \psi | \partial_j \psi \rangle
  - \langle \partial_i \psi | \psi \rangle \langle \psi | \partial_j \psi \rangle \big)

In a device that JAX can trace it is the Jacobian of the state. Elsewhere a device answers for the
angles α of the gates, and JAX differentiates these by the parameters θ:

.. math:: g(\theta) = J^\top g(\alpha) \, J, \qquad J = \partial \alpha / \partial \theta
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jaxtyping import Array, Float, UInt32
from pennylane.tape import QuantumScript
from pennylane.wires import Wires

from qsgd_jax._src.host import name_of
from qsgd_jax._src.hybrid.functions import ask, simulated_by_jax
from qsgd_jax._src.hybrid.gates import (
    PURE,
    Arguments,
    circuit,
    has_measurable_generator,
    is_pauli_rotation,
    moving,
    taken_apart,
    traced,
)
from qsgd_jax._src.hybrid.gathering import gathered
from qsgd_jax._src.hybrid.refusing import RefusedError
from qsgd_jax._src.hybrid.tracing import places

Approx = Literal["block-diag", "diag"] | None
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
        return _of_state(name, traced(lambda x: _state(qnode, {**x, **inputs})), params).astype(
            dtype
        )
    else:
        of_angles, jacobian = _by_shifted_states(qnode, params, inputs, key, dtype)
    return _dot(jacobian.T, _dot(of_angles, jacobian)).astype(dtype)


# By JAX


def _of_state(name: str, state: Callable[[Arguments], Array], params: Arguments) -> Array:
    def twice(x: Arguments) -> tuple[Array, Array]:
        psi = state(x)
        return psi, psi

    jacobian, psi = jax.jacfwd(twice, has_aux=True)(params)
    if psi.ndim != 1:
        raise RefusedError(f"{name} has a density matrix; {PURE}")
    slopes = jnp.concatenate([x.reshape(psi.size, -1) for x in jax.tree.leaves(jacobian)], axis=1)
    return _of_slopes(psi, slopes.T)


def _of_slopes(psi: Array, slopes: Array) -> Array:
    """The metric of derivatives of the state, one in each row."""
    gram, overlaps = _dot(slopes.conj(), slopes.T), _dot(slopes.conj(), psi)
    return (gram - overlaps[:, None] * overlaps.conj()).real


def _state(qnode: Any, arguments: Arguments) -> Array:
    return _simulated(qnode, circuit(qnode, arguments, pure=True).operations, qml.state())


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
    r"""Of rotations by Pauli words, whose amplitudes have one frequency f.

    .. math:: \partial_\alpha \psi(\alpha) = f \, \psi(\alpha + \pi / 2f)
    """
    name = name_of(qnode.func)
    if qnode.shots:
        raise RefusedError(
            f"{name} has shots, and the whole metric needs states; allowed are "
            "approx='block-diag' and 'diag'."
        )

    def tape_at(arguments: Arguments) -> QuantumScript:
        return taken_apart(circuit(qnode, arguments, pure=True), is_pauli_rotation)

    def circuits(arguments: Arguments) -> Any:
        return (tape_at(arguments).copy(measurements=[qml.state()]),), lambda results: results[0]

    moving(name, lambda x: tape_at({**x, **inputs}), is_pauli_rotation, params)  # and nothing else

    def asked(params: Arguments) -> Any:
        return ask(qnode, circuits, {**params, **inputs}, dtype)

    found = asked(params)
    (template,) = found.templates
    if template.shapes != ((math.prod(template.shapes[0]) // 2, 2),):
        raise RefusedError(f"{name} has a density matrix; {PURE}")
    gates = [template.tape.par_info[place]["op"] for place in template.angles]
    known = (is_pauli_rotation(gate) or isinstance(gate, qml.GlobalPhase) for gate in gates)
    if not all(known):
        raise RefusedError(
            f"{name} runs other gates on {qnode.device.name} than rotations by Pauli words; "
            "allowed are approx='block-diag' and 'diag'."
        )
    frequencies = np.array([f for (f,) in template.frequencies])
    moves = np.concatenate([np.zeros((1, len(gates))), np.diag(np.pi / 2 / frequencies)])
    states = jax.vmap(lambda move: found.numbers(found.angles + move, found.operands, key))(
        jnp.asarray(moves, dtype)
    )
    pairs = states.reshape(1 + len(gates), -1, 2)
    states = pairs[..., 0] + 1j * pairs[..., 1]
    slopes = jnp.asarray(frequencies, dtype)[:, None] * states[1:]
    return _of_slopes(states[0], slopes), _joined(jax.jacfwd(lambda x: asked(x).angles)(params))


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
        return taken_apart(circuit(qnode, {**params, **inputs}), has_measurable_generator)

    flags = moving(name_of(qnode.func), tape_at, has_measurable_generator, params)
    kept: list[list[_Layer]] = []

    def layers(params: Arguments) -> list[_Layer]:
        tape = tape_at(params)
        tape.trainable_params = [
            place for place, moves in zip(places(tape)[0], flags, strict=True) if moves
        ]
        kept[:] = [list(_layers(tape))]
        return kept[0]

    def circuits(arguments: Arguments) -> Any:
        return [x.tape for x in layers({name: arguments[name] for name in params})], tuple

    if simulated_by_jax(qnode):
        numbers = traced(lambda x: _probabilities(qnode, layers(x)))(params).astype(dtype)
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
        angles = traced(lambda x: ([a for layer in layers(x) for a in layer.angles], None))
        return gathered(angles, params, dtype=dtype)[0]

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


def _joined(jacobian: Mapping[str, Array]) -> Float[Array, "angles m"]:
    leaves = jax.tree.leaves(jacobian)
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)
