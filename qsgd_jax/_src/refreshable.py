"""Fourier coefficients that live in an optimizer's state, to be replaced between steps."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt32

from qsgd_jax._src.surrogate import Surrogate
from qsgd_jax._src.typing import PyTree


class RefreshableCoefficients(NamedTuple):
    """The Fourier coefficients of a circuit, and where they come from.

    Read one of them with `optax.tree.get(opt_state, "age")`.

    Attributes:
      table: coefficients about the circuit's origin, float32 (float64 in double precision).
      age: steps since they were asked for.
      steps_since_request: steps since a device was last asked for others.
      measured_at: when they were asked for, in Unix seconds; 0 for those that the state started
        with, which are the surrogate's own.
      circuit: checksum of the circuit that they belong to.
      jobs: jobs that each `RemoteProber` has submitted since the state was made.
      shots: shots that those jobs asked for.
    """

    table: Float[Array, "outputs ..."]
    age: Int32[Array, ""]
    steps_since_request: Int32[Array, ""]
    measured_at: UInt32[Array, ""]
    circuit: UInt32[Array, ""]
    jobs: UInt32[Array, ""]
    shots: UInt32[Array, ""]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["surrogate"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Refreshable:
    """A surrogate whose coefficients live in the optimizer's state: see `refreshable`."""

    surrogate: Surrogate

    @property
    def n_inputs(self) -> int:
        """How many inputs it has."""
        return self.surrogate.n_inputs

    def initial(self) -> RefreshableCoefficients:
        """What an optimizer's state begins with."""
        return RefreshableCoefficients(
            table=jnp.array(self.surrogate.coefficients),
            # Of each its own array: a step that is given the state to overwrite cannot be given
            # one twice.
            age=jnp.zeros((), jnp.int32),
            steps_since_request=jnp.zeros((), jnp.int32),
            measured_at=jnp.zeros((), jnp.uint32),
            circuit=jnp.array(self.surrogate.provenance.checksum or 0, jnp.uint32),
            jobs=jnp.zeros((), jnp.uint32),
            shots=jnp.zeros((), jnp.uint32),
        )

    def current(self, held: RefreshableCoefficients) -> Surrogate:
        """The surrogate of the coefficients that a state holds."""
        return self.surrogate.with_coefficients(held.table)


def refreshable(surrogate: Surrogate) -> Refreshable:
    """A surrogate whose coefficients live in the optimizer's state, to be replaced between steps.

    `RemoteProber` replaces them there by what a device has measured meanwhile. All of them may be
    nonzero then, so that a step costs what a circuit with all interactions does.

    Args:
      surrogate: whose coefficients the state begins with.

    Returns:
      What a transformation takes in the surrogate's place.

    Raises:
      TypeError: if `surrogate` is none.
      ValueError: if JAX is tracing it: its coefficients belong to their trace.

    Example:
      >>> import jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> surrogate = qsgd.refreshable(qsgd.probe(qsgd.Circuit(n_qubits=2)))
      >>> state = qsgd.superpositional_adamw(1e-3, surrogate=surrogate).init(jnp.zeros(3))
      >>> optax.tree.get(state, "table").shape
      (2, 3, 3)
    """
    if not isinstance(surrogate, Surrogate):
        raise TypeError(f"surrogate={surrogate!r} must be a qsgd_jax.Surrogate.")
    if surrogate.traced:
        raise ValueError(f"surrogate={surrogate!r} must be concrete, as its trace will end.")
    return Refreshable(surrogate)


def find(
    opt_state: PyTree, kind: type
) -> tuple[list[list[Array]], Callable[[Sequence[PyTree]], PyTree], Any]:
    """The arrays of all nodes of a kind in a state, how to put others there, and its structure."""
    leaves, treedef = jax.tree.flatten(opt_state, is_leaf=lambda x: isinstance(x, kind))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, kind)]

    def put_back(changed: Sequence[PyTree]) -> PyTree:
        new = list(leaves)
        for i, held in zip(places, changed, strict=True):
            # Flax wraps each array of a state in a variable, which is a tree of that array.
            arrays = jax.tree.leaves(held)
            new[i] = jax.tree.unflatten(jax.tree.structure(leaves[i]), arrays)
        return treedef.unflatten(new)

    return [jax.tree.leaves(leaves[i]) for i in places], put_back, treedef


def read(array: Any) -> np.ndarray:
    """A small array's value on this process; all replicas hold the same."""
    return np.asarray(array.addressable_data(0) if isinstance(array, jax.Array) else array)


def overwrite(old: Any, value: Any) -> Array:
    """An array of this value where the old one is: on its devices, over its leading axes."""
    new = np.broadcast_to(np.asarray(value, old.dtype), old.shape)
    if isinstance(old, jax.Array) and old.committed:
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])
    return jnp.asarray(new)  # which a step may still move to where its other arguments are
