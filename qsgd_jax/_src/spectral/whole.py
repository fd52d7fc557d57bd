"""Functions of matrices that must not be cut: on a mesh each device has them whole."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

Stack = Float[Array, "matrices m n"]

# Of jax 0.7.1, not public there.
PARTITIONS_EXPLICIT_AXES = hasattr(jax.sharding, "use_abstract_mesh")


def on_whole_matrices(function: Callable[[Stack], Stack]) -> Callable[[Stack], Stack]:
    """The same function of a stack of matrices, partitioned over its first axis alone.

    Left to itself, XLA cuts each product of a matrix that is sharded, and has the devices talk in
    each. Here they gather the matrix once, and each computes the whole of it; what a device needs
    of the result is a slice. A stack that is sharded over its first axis stays so.

    Args:
      function: of each matrix by itself.

    Returns:
      A function that differentiates and batches as the given one does. (Derivatives are those of
      the given one, whose products XLA cuts.)
    """

    def own(shape: Any) -> NamedSharding:
        spec = shape.sharding.spec
        return NamedSharding(shape.sharding.mesh, PartitionSpec(spec[0] if spec else None))

    def partition(mesh: Any, arguments: Any, result: Any) -> Any:
        del mesh, result
        sharding = own(arguments[0])
        return sharding.mesh, on_one_device, sharding, (sharding,)

    def on_one_device(stack: Stack) -> Stack:
        """Without the mesh of explicit axes that is set where JAX traces it."""
        if not PARTITIONS_EXPLICIT_AXES:
            return function(stack)
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return function(stack)

    partitioned = custom_partitioning(function)
    partitioned.def_partition(
        partition,
        infer_sharding_from_operands=lambda mesh, arguments, result: own(arguments[0]),
        sharding_rule="b i j -> b m n",  # only how the first axis is cut is told to neighbours
    )
    batched = jax.custom_batching.custom_vmap(partitioned)

    @batched.def_vmap
    def _(size: int, in_batched: Any, stacks: Array) -> tuple[Array, bool]:
        del size, in_batched
        return batched(stacks.reshape(-1, *stacks.shape[2:])).reshape(stacks.shape), True

    @jax.custom_jvp
    def differentiable(stack: Stack) -> Stack:
        return batched(stack)

    @differentiable.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(function, primals, tangents)

    return differentiable
