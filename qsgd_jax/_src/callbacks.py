"""JAX functions that ask a device by one host callback for a whole batch, and their derivatives."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, UInt32

from qsgd_jax._src.circuit import Circuit, Device, Readout
from qsgd_jax._src.host import Prepared, has_adjoint, run_on_host, slopes_on_host

Encoding = Float[Array, "batch uploads n"]
Angles = Float[Array, "depth n 2"]
Answers = Float[Array, "batch outputs"]
Key = UInt32[Array, "2"]

# On a GPU, JAX's default is TF32.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def sampling_function(
    circuit: Circuit, device: Device, readout: Readout, shots: int
) -> Callable[[Encoding, Angles], Answers]:
    """A JAX function `(encoding, angles) -> answers` that measures anew in each call."""

    def host(encoding: Any, angles: Any) -> np.ndarray:
        encoding, angles = np.asarray(encoding), np.asarray(angles)
        answers = run_on_host(circuit, device, readout, encoding, angles, shots)
        return answers.astype(encoding.dtype)

    def call(encoding: Encoding, angles: Angles) -> Answers:
        shape = (encoding.shape[0], circuit.n_outputs(readout))
        result = jax.ShapeDtypeStruct(shape, encoding.dtype)
        # XLA would take a pure callback out of a loop in which its operands stay the same.
        return jax.experimental.io_callback(host, result, encoding, angles)

    return call


def host_function(
    circuit: Circuit, device: Device, readout: Readout, shots: int | None = None
) -> Callable[[Encoding, Angles, Key], Answers]:
    """A JAX function `(encoding, angles, key) -> answers` that asks the device by one callback.

    The key is an operand only: XLA takes calls of the same operands to have the same result.
    """
    outputs, prepare = circuit.n_outputs(readout), functools.cache(Prepared)

    def ask(
        function: Callable[..., np.ndarray],
        shape: tuple[int, ...],
        encoding: Encoding,
        angles: Angles,
        *rest: Key,
    ) -> Array:
        def host(encoding: Any, angles: Any, *_: Any) -> np.ndarray:
            found = function(np.asarray(encoding), np.asarray(angles))
            return found.astype(encoding.dtype)

        result = jax.ShapeDtypeStruct((encoding.shape[0], *shape), encoding.dtype)
        return jax.pure_callback(host, result, encoding, angles, *rest, vmap_method="broadcast_all")

    @jax.custom_jvp
    def answers(encoding: Encoding, angles: Angles, key: Key) -> Answers:
        def run(encoding: np.ndarray, angles: np.ndarray) -> np.ndarray:
            return run_on_host(circuit, device, readout, encoding, angles, shots, prepare)

        return ask(run, (outputs,), encoding, angles, key)

    if readout != "expectation" or shots is not None or not has_adjoint(circuit, device):
        answers.defjvp(_shift_rule(answers, readout), symbolic_zeros=True)
        return answers

    @jax.custom_jvp
    def slopes(encoding: Encoding, angles: Angles, key: Key) -> Float[Array, "batch outputs gates"]:
        gates = math.prod(encoding.shape[1:]) + math.prod(angles.shape)

        def differentiate(encoding: np.ndarray, angles: np.ndarray) -> np.ndarray:
            return slopes_on_host(circuit, device, encoding, angles, prepare)

        return ask(differentiate, (outputs, gates), encoding, angles, key)

    slopes.defjvp(_shift_rule(slopes, readout), symbolic_zeros=True)

    @answers.defjvp
    def adjoint_rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> Any:
        encoding, angles, _ = primals
        d_encoding = tangents[0].reshape(len(encoding), math.prod(encoding.shape[1:]))
        d_angles = jnp.broadcast_to(tangents[1].ravel(), (len(encoding), angles.size))
        d_gates = jnp.concatenate([d_encoding, d_angles], axis=1)
        return answers(*primals), _einsum("bog,bg->bo", slopes(*primals), d_gates)

    return answers


def _shift_rule(function: Callable[..., Array], readout: Readout) -> Callable[..., Any]:
    """∂f/∂α = [f(α + π/2) − f(α − π/2)] / 2 for each gate; itself made of `function`s.

    Amplitudes, which are linear in the gates, have ∂f/∂α = f(α + π) / 2.
    """
    steps, factors = (np.pi / 2, -np.pi / 2), (0.5, -0.5)
    if readout == "amplitudes":
        steps, factors = (np.pi,), (0.5,)

    def rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> Any:
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


def _shifts(
    steps: tuple[float, ...], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "steps gates ..."]:
    """Each step on one gate at a time, shape `(steps, gates, *shape)`."""
    gates = math.prod(shape)
    one_at_a_time = np.eye(gates).reshape((gates, *shape))
    return jnp.asarray(np.stack([step * one_at_a_time for step in steps]), dtype)
