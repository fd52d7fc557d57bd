"""Fourier coefficients that live in an optimizer's state, to be replaced between steps."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PyTree, UInt32

from qsgd_jax._src.circuit import Circuit
from qsgd_jax._src.superposition import Superposition


class RefreshableCoefficients(NamedTuple):
    """The Fourier coefficients of a circuit, and where they come from.

    Read one of them with `optax.tree.get(opt_state, "age")`.

    Attributes:
      table: coefficients about the circuit's origin, float32 (float64 in double precision).
      age: steps since they were asked for.
      steps_since_request: steps since a device was last asked for others.
      measured_at: when they were asked for, in Unix seconds; 0 for those that the state started
        with, which are of the superposition's own device.
      circuit: checksum of the circuit that they belong to.
      jobs: jobs that `RemoteProber`s have submitted since the state was made.
      shots: shots that those jobs asked for.
    """

    table: Float[Array, "outputs ..."]
    age: Int32[Array, ""]
    steps_since_request: Int32[Array, ""]
    measured_at: UInt32[Array, ""]
    circuit: UInt32[Array, ""]
    jobs: UInt32[Array, ""]
    shots: UInt32[Array, ""]


def initial_coefficients(superposition: Superposition) -> RefreshableCoefficients | None:
    """Those of the superposition's own device; `None` if they are not refreshable."""
    if not superposition.refreshable:
        return None
    return RefreshableCoefficients(
        jnp.asarray(superposition.coefficients),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.uint32),
        jnp.asarray(checksum(superposition.circuit), jnp.uint32),
        jnp.zeros((), jnp.uint32),
        jnp.zeros((), jnp.uint32),
    )


def checksum(circuit: Circuit) -> int:
    """A number that tells circuits apart: a table means nothing for another."""
    shape = np.array([circuit.n_qubits, circuit.depth, circuit.uploads])
    return zlib.crc32(shape.tobytes() + np.asarray(circuit.angles, np.float64).tobytes())


def find(
    opt_state: PyTree,
) -> tuple[list[RefreshableCoefficients], Callable[[list[RefreshableCoefficients]], PyTree], Any]:
    """All refreshable coefficients of a state, how to put others there, and its structure."""
    leaves, treedef = jax.tree.flatten(
        opt_state, is_leaf=lambda x: isinstance(x, RefreshableCoefficients)
    )
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, RefreshableCoefficients)]

    def put_back(changed: list[RefreshableCoefficients]) -> PyTree:
        new = list(leaves)
        for i, held in zip(places, changed, strict=True):
            # Flax wraps each array of a state in a variable, which is a tree of that array.
            arrays = jax.tree.leaves(tuple(held))
            new[i] = jax.tree.unflatten(jax.tree.structure(leaves[i]), arrays)
        return treedef.unflatten(new)

    held = [RefreshableCoefficients(*jax.tree.leaves(leaves[i])) for i in places]
    return held, put_back, treedef


def read(array: Any) -> np.ndarray:
    """A small array's value on this process; all replicas hold the same."""
    return np.asarray(array.addressable_data(0) if isinstance(array, jax.Array) else array)


def overwrite(old: Any, value: Any) -> Array:
    """An array of this value where the old one is: on its devices, over its leading axes."""
    new = np.broadcast_to(np.asarray(value, old.dtype), old.shape)
    if isinstance(old, jax.Array) and old.committed:
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])
    return jnp.asarray(new)  # which a step may still move to where its other arguments are
