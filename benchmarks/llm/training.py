"""The training step of a language model, its evaluation, and greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from benchmarks.llm.llama import LlamaConfig
from benchmarks.llm.rows import Batch

Precision = Literal["float32", "bfloat16", "float16"]
Scalar = Float[Array, ""]


class LossScale(struct.PyTreeNode):
    """What the loss is multiplied by, so that float16 gradients do not vanish.

    Doubled after 2,000 finite steps in a row, halved after one that is not finite.

    Attributes:
      scale: the factor.
      finite_steps: steps since it last changed.
    """

    scale: Float[Array, ""]
    finite_steps: Int[Array, ""]

    def adjusted(self, finite: Array) -> LossScale:
        """Return the scale for the next step."""
        steps = jnp.where(finite, self.finite_steps + 1, 0)
        double = steps == 2000
        grown = jnp.where(double, jnp.minimum(self.scale * 2, 2.0**24), self.scale)
        scale = jnp.where(finite, grown, jnp.maximum(self.scale / 2, 1.0))
        return LossScale(scale, jnp.where(double, 0, steps))


class TrainState(struct.PyTreeNode):
    """All that a training is, beside its data.

    Attributes:
      params: parameters, float32.
      opt_state: of the optimizer.
      loss_scale: for float16, else None.
    """

    params: PyTree
    opt_state: PyTree
    loss_scale: LossScale | None


def new_state(
    params: PyTree, optimizer: optax.GradientTransformation, precision: Precision
) -> TrainState:
    """Return the state at the beginning; the optimizer's lies where the parameters do."""
    scale = None
    if precision == "float16":
        scale = LossScale(jnp.float32(2.0**15), jnp.int32(0))
    return TrainState(params, optimizer.init(params), scale)


def summed_loss(graph: nnx.GraphDef, params: PyTree, batch: Batch) -> Scalar:
    """Return the sum of negative log likelihoods over the targets of weight 1, in nats."""
    logits = nnx.merge(graph, params)(batch.tokens, batch.segments)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return jnp.sum(losses * batch.weights)


def train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, dict[str, Scalar]]:
    """Take one step and return what to write down of it.

    Args:
      graph: structure of the model.
      optimizer: the whole chain.
      state: before the step; donate it.
      batch: arrays of shape (accumulated, rows, length); the gradients of the first axis are added
        up one after another, and the loss is the mean over all targets of weight 1.

    Returns:
      The state after it; mean `loss`, `gradient_norm` before clipping, and whether the step was
      `skipped` because float16 gradients were not finite.
    """
    count = jnp.maximum(batch.weights.sum(), 1)
    scale = jnp.float32(1) if state.loss_scale is None else state.loss_scale.scale

    @jax.value_and_grad
    def scaled_loss(params: PyTree, rows: Batch) -> Scalar:
        return summed_loss(graph, params, rows) / count * scale

    if len(batch.tokens) == 1:
        first = jax.tree.map(lambda x: x[0], batch)
        loss, gradients = scaled_loss(state.params, first)
    else:

        def add(total: PyTree, rows: Batch) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, scaled_loss(state.params, rows)), None

        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        (loss, gradients), _ = jax.lax.scan(add, zeros, batch)

    if state.loss_scale is not None:
        gradients = jax.tree.map(lambda g: g / scale, gradients)
    norm = optax.tree.norm(gradients)

    def update(state: TrainState) -> TrainState:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)

    figures = {"loss": loss / scale, "gradient_norm": norm}
    if state.loss_scale is None:
        return update(state), figures | {"skipped": jnp.bool_(False)}
    finite = jnp.isfinite(norm)
    after = jax.lax.cond(finite, update, lambda state: state, state)
    after = after.replace(loss_scale=state.loss_scale.adjusted(finite))
    return after, figures | {"skipped": ~finite}


def losses_per_row(
    graph: nnx.GraphDef, params: PyTree, batch: Batch
) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """Return the summed negative log likelihood of each row's answers, and their tokens."""
    logits = nnx.merge(graph, params)(batch.tokens, batch.segments)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return (losses * batch.weights).sum(axis=1), batch.weights.sum(axis=1)


def greedy(
    graph: nnx.GraphDef,
    params: PyTree,
    prompts: Int[Array, "rows length"],
    lengths: Int[Array, " rows"],
    *,
    new_tokens: int,
    stop: Sequence[int],
) -> Int[Array, "rows new"]:
    """Continue prompts by the likeliest token each time.

    Args:
      graph: structure of the model.
      params: parameters.
      prompts: token ids, padded on the right.
      lengths: of the prompts.
      new_tokens: at most so many.
      stop: token ids that end a text.

    Returns:
      The new tokens; after the one that ends a text, zeros.
    """
    model = nnx.merge(graph, params)
    rows, width = prompts.shape
    ends = jnp.array(sorted(stop))
    cache = model.new_cache(rows, width + new_tokens)
    positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
    logits, cache = model.decode(prompts, positions, cache)
    last = jnp.take_along_axis(logits, lengths[:, None, None] - 1, axis=1)[:, 0]

    def unfinished(carry: Any) -> Array:
        number, *_, done = carry
        return (number < new_tokens) & ~done.all()

    def go_on(carry: Any) -> Any:
        number, token, cache, written, done = carry
        written = written.at[:, number].set(jnp.where(done, 0, token))
        done = done | jnp.isin(token, ends)
        position = lengths + number
        logits, cache = model.decode(token[:, None], position[:, None], cache)
        return number + 1, logits[:, 0].argmax(axis=-1), cache, written, done

    written = jnp.zeros((rows, new_tokens), jnp.int32)
    start = (0, last.argmax(axis=-1), cache, written, jnp.zeros(rows, bool))
    return jax.lax.while_loop(unfinished, go_on, start)[3]


@dataclass(frozen=True)
class Layout:
    """Where parameters and rows lie: on one device, or split over a mesh.

    Attributes:
      mesh: with axes `data` and `model`, or None for the default device.
    """

    mesh: jax.sharding.Mesh | None = None

    @classmethod
    def over(cls, sizes: Sequence[int], config: LlamaConfig, rows: int) -> Layout:
        """Split rows over the first of two numbers of devices, parameters over the second.

        Raises:
          ValueError: if there are not as many devices, or something does not divide.
        """
        data, model = sizes
        if data * model == 1:
            return cls()
        devices = jax.devices()
        if data * model > len(devices):
            raise ValueError(
                f"--mesh {data} {model} needs {data * model} devices; there are {len(devices)}."
            )
        if rows % data:
            raise ValueError(
                f"--batch-size {rows} must be a multiple of the mesh's data axis, {data}."
            )
        for name in ("num_key_value_heads", "intermediate_size", "vocab_size"):
            if getattr(config, name) % model:
                raise ValueError(
                    f"The mesh's model axis, {model}, must divide {name}={getattr(config, name)}."
                )
        return cls(
            jax.make_mesh(
                (data, model),
                ("data", "model"),
                axis_types=(jax.sharding.AxisType.Auto,) * 2,
                devices=devices[: data * model],
            )
        )

    def sharding(self, axes: tuple[str | None, ...]) -> NamedSharding | None:
        """Return where an array lies that is split over these mesh axes."""
        return None if self.mesh is None else NamedSharding(self.mesh, P(*axes))

    def parameter(self, array: np.ndarray, axes: tuple[str | None, ...]) -> jax.Array:
        """Place a parameter that is split over these mesh axes."""
        return jax.device_put(array, self.sharding(axes))

    def batch(self, batch: Batch) -> Batch:
        """Place a batch, its rows (the last axis but one) split over `data`."""
        axes = (None,) * (batch.tokens.ndim - 2) + ("data", None)
        return jax.device_put(batch, self.sharding(axes))
