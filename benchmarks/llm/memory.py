"""How much memory a training step needs, told before it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
from flax import nnx
from jaxtyping import PyTree

from benchmarks.llm.llama import LlamaConfig, abstract_model
from benchmarks.llm.rows import Batch, fill
from benchmarks.llm.training import Layout, Precision, TrainState, new_state, train_step

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on each device while a step is taken.

    Attributes:
      parameters: of the parameters.
      state: parameters and optimizer state.
      temporary: gradients, activations and all else that XLA holds at once.
    """

    parameters: int
    state: int
    temporary: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.state + self.temporary

    def as_json(self) -> dict[str, float]:
        """Return the figures in GiB."""
        figures = {"parameters": self.parameters, "state": self.state}
        figures |= {"temporary": self.temporary, "peak": self.peak}
        return {f"{name}_gib": size / GIB for name, size in figures.items()}


class DoesNotFitError(ValueError):
    """A step that needs more memory than there is."""


def compiled_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> Any:
    """Compile `train_step` for a state, which it consumes, and a batch of these shapes.

    On CPU, XLA's default schedule computes the blocks again long before the backward pass needs
    them; the other one holds one block at a time.
    """
    options: dict[str, bool | str] = {}
    if jax.default_backend() == "cpu":
        options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    step = jax.jit(partial(train_step, graph, optimizer), donate_argnums=0)
    return step.lower(state, batch).compile(compiler_options=options)


def compiled_memory(compiled: Any, params: PyTree) -> Memory:
    """Return what XLA plans for a `compiled_step`."""
    analysis = compiled.memory_analysis()
    parameters = sum(_bytes_per_device(leaf) for leaf in jax.tree.leaves(params))
    return Memory(parameters, analysis.argument_size_in_bytes, analysis.temp_size_in_bytes)


def _bytes_per_device(leaf: Any) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return int(np.prod(shape)) * leaf.dtype.itemsize


def available() -> int:
    """Return the bytes that a device can still be given."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available // jax.local_device_count()


def check(memory: Memory, free: int, *, context: int, rows: int) -> None:
    """Refuse a step that does not fit.

    Args:
      memory: what the step needs.
      free: bytes that a device can be given, those of the training's state among them.
      context: tokens of a row.
      rows: rows at once.

    Raises:
      DoesNotFitError: saying what is needed, what there is, and what would fit.
    """
    if memory.peak <= free:
        return
    fixed = memory.state + memory.parameters  # gradients are as large as the parameters
    activations = max(memory.temporary - memory.parameters, 1)
    message = (
        f"A step needs {memory.peak / GIB:.2f} GiB a device and {free / GIB:.2f} are free: "
        f"{fixed / GIB:.2f} for parameters, optimizer state and gradients, "
        f"{activations / GIB:.2f} for {rows} x {context} tokens."
    )
    fits = int(context * rows * max(free - fixed, 0) / activations)
    if fits >= rows * 64:
        would = f"about --context {fits // rows // 64 * 64}"
    elif fits >= 64:
        would = f"about --batch-size 1 --accumulate {rows} --context {fits // 64 * 64}"
    else:
        devices = 2 ** max(int(np.ceil(np.log2(fixed * 1.1 / max(free, 1)))), 1)
        would = f"about {devices} such devices, --mesh 1 {devices}"
    raise DoesNotFitError(f"{message} What would fit, estimated from these: {would}.")


def abstract_training(
    config: LlamaConfig,
    optimizer: optax.GradientTransformation,
    precision: Precision,
    layout: Layout,
    shape: tuple[int, int, int],
) -> tuple[nnx.GraphDef, TrainState, Batch]:
    """Return model, state and batch without a byte of data, laid out as for a real training."""
    graph, params = abstract_model(config, jnp.dtype(precision))

    def placed(leaf: Any, axes: tuple[str | None, ...] = ()) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(axes))

    params = jax.tree.map(
        lambda variable: variable.replace(
            placed(variable, variable.get_metadata().get("out_sharding") or ())
        ),
        params,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    state = jax.eval_shape(lambda params: new_state(params, optimizer, precision), params)

    def like(leaf: Any, parameter: Any) -> Any:
        if isinstance(leaf, optax.MaskedNode):  # another transformation has the parameter's
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parameter.sharding)

    opt_state = optax.tree.map_params(
        optimizer,
        like,
        state.opt_state,
        params,
        transform_non_params=placed,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    scale = jax.tree.map(placed, state.loss_scale)
    sharding = layout.sharding((None, "data", None))
    batch = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(shape, array.dtype, sharding=sharding),
        fill([], [], (1, 1)),
    )
    return graph, TrainState(params, opt_state, scale), batch
