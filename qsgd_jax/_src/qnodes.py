"""A user's own QNode, or function, at many settings: in one batch, from NumPy to NumPy."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.core import Tracer
from jaxtyping import Float

from qsgd_jax._src.circuit import open_device
from qsgd_jax._src.devices import traced_by_jax
from qsgd_jax._src.host import ONE_AT_A_TIME, alone, few_threads, name_of

Settings = Float[np.ndarray, "settings inputs"]


class Call(NamedTuple):
    """A QNode or a function, and the arguments that a `functools.partial` has bound."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def is_qnode(self) -> bool:
        """Whether it is a QNode, rather than a function or a compiled QNode."""
        return isinstance(self.function, qml.QNode)

    @property
    def is_traced(self) -> bool:
        """Whether JAX is tracing a bound argument."""
        return any(isinstance(x, Tracer) for x in jax.tree.leaves(self[1:]))

    @property
    def name(self) -> str:
        """What its author has called it."""
        return name_of(self.function.func if self.is_qnode else self.function)

    def __call__(self, inputs: Any) -> Any:
        return self.function(*self.arguments, inputs, **self.keywords)


class Plan(NamedTuple):
    """How a setting is answered."""

    circuits: int
    shots: int | None


def call_of(circuit: Any) -> Call:
    """What a QNode, a function, or a `functools.partial` of one calls."""
    if isinstance(circuit, functools.partial):
        return Call(circuit.func, circuit.args, circuit.keywords)
    return Call(circuit, (), {})


def on_device(call: Call, device: Any, shots: int | None, n_inputs: int) -> Call:
    """The same QNode on another device, with other shots, where they are given."""
    qnode, chosen = call.function, shots
    if device is not None:
        wires = qnode.device.wires
        opened = open_device(device, n_inputs if wires is None else len(wires), wires)
        qnode = qnode.update(device=opened)
        chosen = shots or tuple(opened.shots) or None  # those that the device was opened with
    if chosen is not None:
        qnode = qml.set_shots(qnode, shots=chosen)
    return call._replace(function=qnode)


def plan(call: Call, setting: Float[np.ndarray, "..."]) -> Plan:
    """What the QNode would run at a setting; nothing is run."""
    tapes, _ = _tapes(call, [setting])
    shots = tapes[0].shots
    if shots.has_partitioned_shots:
        raise ValueError(
            f"{call.name} has a vector of shots, {shots.shot_vector}; allowed is one number, by "
            "shots=."
        )
    return Plan(len(tapes), shots.total_shots)


def values(call: Call, settings: Settings, batched: bool) -> np.ndarray | jax.Array:
    """The outputs at each setting, `(settings, outputs)`; `batched` gives it all at once.

    Raises:
      ValueError: if the answer is no such array of real numbers.
    """
    if call.is_traced:
        return _checked(_columns(_traced(call, jnp.asarray(settings), batched)), settings)
    given = [settings] if batched else list(settings)
    if call.is_qnode:
        found = _run(call, given)
    else:
        with ONE_AT_A_TIME:  # two programs that Catalyst compiles at once wait for each other
            found = [call(setting) for setting in given]
    try:
        if batched:
            return _checked(_columns(found[0]), settings)
        rows = [_joined([_ravel(x) for x in _leaves(answer)]) for answer in found]
        traced = any(isinstance(row, Tracer) for row in rows)
        return _checked(jnp.stack(rows) if traced else np.stack(rows), settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"circuit answers {found[0]!r}: {error}") from error


@alone
def _tapes(call: Call, settings: list[np.ndarray]) -> tuple[list[Any], list[tuple[int, Any]]]:
    """The circuits of all settings, and of how many, and how, each answer is made."""
    build = qml.workflow.construct_batch(call.function, level="user")
    tapes, recipes = [], []
    for setting in settings:
        try:
            batch, recipe = build(*call.arguments, setting, **call.keywords)
        except (IndexError, TypeError) as error:
            raise ValueError(
                f"{call.name} fails with its inputs in one array of shape {np.shape(setting)}, as "
                f"n_inputs= has it: {error}"
            ) from error
        tapes += batch
        recipes.append((len(batch), recipe))
    return tapes, recipes


@alone
def _run(call: Call, settings: list[np.ndarray]) -> list[Any]:
    """What the QNode answers; all of its circuits go to the device at once."""
    tapes, recipes = _tapes(call, settings)
    device, options = call.function.device, call.function.execute_kwargs
    names = ("mcm_method", "postselect_mode")
    with few_threads(device, len(device.wires or tapes[0].wires)):
        found = qml.execute(tapes, device, diff_method=None, **{k: options[k] for k in names})
    answers, start = [], 0
    for size, recipe in recipes:
        answers.append(recipe(found[start : start + size]))
        start += size
    return answers


@alone
def _traced(call: Call, settings: jax.Array, batched: bool) -> Any:
    with traced_by_jax():
        if batched:
            return _leaves(call(settings))
        return jax.vmap(lambda setting: _leaves(call(setting)))(settings)


def _leaves(answer: Any) -> list[Any]:
    """The parts of an answer, in its own order: JAX would sort those of a dictionary."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, (list, tuple)):
        return [leaf for part in answer for leaf in _leaves(part)]
    return [answer]


def _ravel(answer: Any) -> Any:
    return answer.ravel() if isinstance(answer, Tracer) else np.ravel(answer)


def _joined(parts: list[Any], axis: int = 0) -> Any:
    traced = any(isinstance(part, Tracer) for part in parts)
    return jnp.concatenate(parts, axis) if traced else np.concatenate(parts, axis)


def _columns(answer: Any) -> Any:
    """A batch's answer, one or several arrays of which each has a row for each setting."""
    leaves = [x if isinstance(x, Tracer) else np.asarray(x) for x in _leaves(answer)]
    return _joined([x.reshape((*x.shape[:1], -1)) for x in leaves], axis=-1)


def _checked(array: Any, settings: Settings) -> Any:
    kinds = (jnp.floating, jnp.integer)
    real = any(jnp.issubdtype(array.dtype, kind) for kind in kinds)
    if array.ndim != 2 or len(array) != len(settings) or not array.shape[1] or not real:
        raise ValueError(
            f"an array of shape {array.shape} and dtype {array.dtype}; allowed are real numbers of "
            f"shape ({len(settings)}, outputs), a row for each setting."
        )
    return array if isinstance(array, Tracer) else np.asarray(array, np.float64)
