"""A QNode as a JAX function of one input: differentiable, and one device call for a whole batch."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Float, UInt32
from pennylane.devices import ExecutionConfig
from pennylane.pytrees import flatten

from qsgd_jax._src.devices import traced_by_jax
from qsgd_jax._src.host import alone, name_of
from qsgd_jax._src.hybrid.asking import Asked
from qsgd_jax._src.hybrid.gathering import gathered
from qsgd_jax._src.hybrid.tracing import Template, circuits, traced

Angles = Float[Array, " angles"]
Numbers = Float[Array, " numbers"]
Key = UInt32[Array, "2"]


def answer(qnode: Any, arguments: Mapping[str, Array], key: Key, dtype: Any) -> Array:
    """What a QNode answers at one input, to be batched by `jax.vmap`.

    Args:
      qnode: a QNode of expectation values, variances or probabilities.
      arguments: by name, traced by JAX.
      key: raw key data that differ from call to call where the device measures.
      dtype: float32 or float64.

    Returns:
      An array; several answers flat, one after the other.
    """
    if not simulated_by_jax(qnode):
        asked = ask(qnode, functools.partial(circuits, qnode), arguments, dtype)
        return asked.finish(asked.numbers(asked.angles, asked.operands, key))
    leaves = [jnp.asarray(x, dtype) for x in _simulated(qnode, arguments)]
    return jnp.concatenate([x.ravel() for x in leaves]) if len(leaves) > 1 else leaves[0]


def simulated_by_jax(qnode: Any) -> bool:
    """Whether the device can become a part of the JAX program."""
    config = ExecutionConfig(gradient_method="backprop")
    return not qnode.shots and bool(qnode.device.supports_derivatives(config))


class Ask(NamedTuple):
    """Circuits that a device is asked to run.

    Attributes:
      templates: the circuits.
      angles: those of their gates.
      operands: what else they are given.
      numbers: from angles, operands and a key to all their results, flat; differentiable.
      finish: from these to the answer.
    """

    templates: tuple[Template, ...]
    angles: Angles
    operands: tuple[Array, ...]
    numbers: Callable[[Angles, tuple[Array, ...], Key], Numbers]
    finish: Callable[[Numbers], Array]


def ask(
    qnode: Any, circuits_at: Callable[[Mapping[str, Array]], Any], arguments: Any, dtype: Any
) -> Ask:
    """Trace circuits, for a QNode's device.

    Args:
      qnode: has the device.
      circuits_at: from arguments to circuits, and how the answer is made of their results.
      arguments: by name, traced by JAX.
      dtype: of the numbers.
    """
    kept: list[Any] = []  # what of the trace is no array

    @alone
    def settings(arguments: Mapping[str, Array]) -> tuple[Sequence[Array], Any]:
        with traced_by_jax():
            program = traced(name_of(qnode.func), circuits_at(arguments), qnode.device)
        asked = Asked(program.templates, program.config, qnode.device)

        def leaves(numbers: Numbers) -> list[Any]:
            # In the QNode's own order: JAX would sort a dictionary's.
            return flatten(program.finish(_results(numbers, program.templates)))[0]

        finish = jax.make_jaxpr(leaves)(jax.ShapeDtypeStruct((asked.size,), dtype))
        kept[:] = asked, finish.jaxpr
        return program.angles, (program.operands, finish.consts)

    angles, (operands, consts) = gathered(settings, arguments, dtype=dtype)
    asked, jaxpr = kept
    leaves = jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))

    def finish(numbers: Numbers) -> Array:
        found, _ = gathered(lambda x: (leaves(x), None), numbers, dtype=dtype)
        return found if len(jaxpr.outvars) > 1 else found.reshape(jaxpr.outvars[0].aval.shape)

    return Ask(asked.templates, angles, operands, _asking(asked), finish)


@alone
def _simulated(qnode: Any, arguments: Mapping[str, Array]) -> list[Any]:
    with traced_by_jax():
        circuits(qnode, arguments)  # refuses what another device would
        found = qnode.update(interface="jax", diff_method="backprop")(**arguments)
    return flatten(found)[0]


def _results(numbers: Numbers, templates: Sequence[Template]) -> list[Any]:
    """As a device answers: of each circuit its measurements, or of one it alone."""
    sizes = [math.prod(shape) for one in templates for shape in one.shapes]
    ends = iter(itertools.accumulate(sizes))
    found = [
        tuple(numbers[(end := next(ends)) - math.prod(x) : end].reshape(x) for x in one.shapes)
        for one in templates
    ]
    return [each[0] if len(each) == 1 else each for each in found]


def _asking(asked: Asked) -> Any:
    """A JAX function `(angles, operands, key) -> numbers`, with the device's derivative."""

    def call(function: Any, shape: tuple[int, ...], angles: Any, operands: Any, key: Any) -> Array:
        def host(angles: Any, operands: Any, _: Any) -> tuple[np.ndarray, np.ndarray]:
            exact = np.asarray(angles, np.float64)
            found = function(exact, [np.asarray(x) for x in operands])
            return found.astype(angles.dtype), np.zeros(angles.shape[:-1], angles.dtype)

        # The second is nobody's: XLA:CPU of jax 0.7.1 aborts where a callback's one result is that
        # of the whole program.
        results = (jax.ShapeDtypeStruct(x, angles.dtype) for x in (shape, ()))
        # The key is an operand only: XLA takes calls of the same operands to have one result.
        return jax.pure_callback(
            host, tuple(results), angles, operands, key, vmap_method="broadcast_all"
        )[0]

    @jax.custom_jvp
    def numbers(angles: Angles, operands: tuple[Array, ...], key: Key) -> Numbers:
        return call(asked.answers, (asked.size,), angles, operands, key)

    if not asked.differentiates:
        numbers.defjvp(_shift_rule(numbers, asked.templates), symbolic_zeros=True)
        return numbers

    @jax.custom_jvp
    def slopes(
        angles: Angles, operands: tuple[Array, ...], key: Key
    ) -> Float[Array, "numbers 1+angles"]:
        return call(asked.slopes, (asked.size, 1 + angles.size), angles, operands, key)

    slopes.defjvp(_shift_rule(slopes, asked.templates), symbolic_zeros=True)

    def adjoint_rule(primals: Any, tangents: Any) -> Any:
        _check_constant(tangents[1])
        if isinstance(tangents[0], SymbolicZero):
            found = numbers(*primals)
            return found, jnp.zeros_like(found)
        found = slopes(*primals)
        return found[:, 0], _matmul(found[:, 1:], tangents[0])

    numbers.defjvp(adjoint_rule, symbolic_zeros=True)
    return numbers


# On a GPU, JAX's default is TF32.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_tensordot = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)


def _check_constant(tangents: Sequence[Any]) -> None:
    if not all(isinstance(x, SymbolicZero) for x in tangents):
        raise NotImplementedError(
            "a state or matrix has no derivative on this device; allowed is default.qubit without "
            "shots, or to prepare it by gates (qml.MottonenStatePreparation)."
        )


def _shift_rule(function: Any, templates: Sequence[Template]) -> Any:
    r"""The general parameter-shift rule, of all angles in one call.

    .. math:: \frac{\partial f}{\partial \alpha} = \sum_k c_k \, f(\alpha + s_k)

    with the shifts of the gate's frequencies. One setting moves an angle of every circuit at once,
    since no circuit's results know another's angles.
    """
    rules = [[_rule(x) for x in one.frequencies] for one in templates]
    terms = [[(angle, c, s) for angle, rule in enumerate(each) for c, s in rule] for each in rules]
    starts = np.cumsum([0, *(len(one.angles) for one in templates)])
    ends = np.cumsum([0, *(one.size for one in templates)])
    moves = np.zeros((1 + max(map(len, terms), default=0), starts[-1]))  # the first is none
    for start, each in zip(starts, terms, strict=False):
        for k, (angle, _, s) in enumerate(each):
            moves[1 + k, start + angle] = s

    def rule(primals: Any, tangents: Any) -> Any:
        angles, operands, key = primals
        _check_constant(tangents[1])
        if isinstance(tangents[0], SymbolicZero):
            found = function(*primals)
            return found, jnp.zeros_like(found)
        settings = angles + jnp.asarray(moves, angles.dtype)
        found = jax.vmap(lambda x: function(x, operands, key))(settings)
        parts = []
        for i, each in enumerate(terms):
            own = found[1 : 1 + len(each), ends[i] : ends[i + 1]]
            factors = jnp.asarray([c for _, c, _ in each], angles.dtype)
            moved = tangents[0][jnp.asarray([starts[i] + angle for angle, _, _ in each], int)]
            parts.append(_tensordot(factors * moved, own))
        return found[0], jnp.concatenate(parts)

    return rule


def _rule(frequencies: tuple[float, ...]) -> list[tuple[float, float]]:
    """Coefficients and shifts of a gate's frequencies; none where it moves nothing."""
    if not frequencies:
        return []
    fractions = [Fraction(x).limit_denominator(1000) for x in frequencies]
    common = math.lcm(*(x.denominator for x in fractions))
    unit = Fraction(math.gcd(*(int(x * common) for x in fractions)), common)
    # All multiples: PennyLane takes any two frequencies for neighbours.
    multiples = tuple(float(unit * i) for i in range(1, int(max(fractions) / unit) + 1))
    return [(float(c), float(s)) for c, s in qml.gradients.generate_shift_rule(multiples)]
