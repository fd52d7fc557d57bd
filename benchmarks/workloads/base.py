"""What a task is, and one training run on it as a pure function, to be batched by `jax.vmap`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

Scalar = Float[Array, ""]


@dataclass(frozen=True)
class Workload:
    """A task: a model, its data and its loss, as pure functions.

    Attributes:
        name: What tables and files call it.
        family: The kind of model: `"mlp"`, `"convolution"`, `"transformer"`, `"embedding"`.
        init: From a key to the initial parameters.
        data: From a key to all that is random about the task itself (teacher, noise, examples),
            as arrays; real data do not depend on it.
        loss: The mean training loss over one batch, which the key draws from the data (as it
            does dropout masks).
        validation_loss: The mean loss over the validation examples.
    """

    name: str
    family: str
    init: Callable[[Key[Array, ""]], PyTree]
    data: Callable[[Key[Array, ""]], PyTree]
    loss: Callable[[PyTree, PyTree, Key[Array, ""]], Scalar]
    validation_loss: Callable[[PyTree, PyTree], Scalar]


class Curves(NamedTuple):
    """What a training run shows, after equal parts of its steps.

    Attributes:
        train_loss: Mean training loss since the last point.
        validation_loss: Validation loss at the point; the first is the untrained model's.
    """

    train_loss: Float[Array, " points"]
    validation_loss: Float[Array, " points+1"]


def learning_rates(
    peak: Any, steps: Any, *, warmup: Any = 0.0, cosine: Any = False
) -> optax.Schedule:
    """Return linear warm-up to the peak, then the peak or a cosine decay to zero.

    Args:
        peak: The highest learning rate.
        steps: Length of the run.
        warmup: Share of the steps that warm up, less than 1.
        cosine: Whether to decay.

    All numbers may be traced.
    """

    def schedule(count: Any) -> Scalar:
        done = count / steps
        rise = (count + 1) / jnp.maximum(1.0, warmup * steps)
        decayed = 0.5 * (1 + jnp.cos(jnp.pi * (done - warmup) / (1 - warmup)))
        return peak * jnp.where(done < warmup, rise, jnp.where(cosine, decayed, 1.0))

    return schedule


def training_run(
    workload: Workload,
    optimizer: optax.GradientTransformation,
    data: PyTree,
    key: Key[Array, ""],
    *,
    steps: int | Int[Array, ""],
    points: int,
    evaluated: Callable[[PyTree, PyTree], PyTree] = lambda opt_state, params: params,
) -> Curves:
    """Train from fresh parameters and return the curves.

    Args:
        workload: The task.
        optimizer: The optimizer.
        data: What `workload.data` returned.
        key: Source of initial parameters, batches and dropout.
        steps: Number of steps, a multiple of `points`. Where it is traced, one compiled run
            serves any length, but has no gradient.
        points: How often to look.
        evaluated: From the optimizer's state and parameters to those to evaluate.
    """
    init_key, step_key = jax.random.split(key)
    params = workload.init(init_key)
    first = workload.validation_loss(params, data)
    each = steps // points

    def part(carry, number):
        def step(i, carry):
            params, opt_state, total = carry
            key = jax.random.fold_in(step_key, number * each + i)
            loss, gradients = jax.value_and_grad(workload.loss)(params, data, key)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, total + loss

        params, opt_state = carry
        params, opt_state, total = jax.lax.fori_loop(
            0, each, step, (params, opt_state, jnp.zeros(()))
        )
        looked_at = workload.validation_loss(evaluated(opt_state, params), data)
        return (params, opt_state), (total / each, looked_at)

    _, (train, validation) = jax.lax.scan(
        part, (params, optimizer.init(params)), jnp.arange(points)
    )
    return Curves(train, jnp.concatenate([first[None], validation]))
