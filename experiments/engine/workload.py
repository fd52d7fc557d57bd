"""What a task is, and one training run on it as a pure function, to be batched by `jax.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

Scalar = Float[Array, ""]
KeyArray = Key[Array, ""]
SplitName = Literal["validation", "test"]


@dataclass(frozen=True)
class Workload:
    """A task: a model, its data and its loss, as pure functions.

    Attributes:
        name: What tables and files call it.
        family: The kind of model: `"mlp"`, `"convolution"`, `"transformer"`, `"embedding"`,
            `"landscape"`.
        init: From a key to the initial parameters.
        data: From a key to all that is random about the task itself (teacher, noise, examples),
            as arrays; real data do not depend on it.
        loss: The mean training loss over one batch, which the key draws from the data (as it
            does dropout masks).
        validation_loss: The mean loss over the validation examples.
        evaluation: The same loss and the share of examples that are classified rightly, in one
            pass, where the task is to classify.
    """

    name: str
    family: str
    init: Callable[[KeyArray], PyTree]
    data: Callable[[KeyArray], PyTree]
    loss: Callable[[PyTree, PyTree, KeyArray], Scalar]
    validation_loss: Callable[[PyTree, PyTree], Scalar]
    evaluation: Callable[[PyTree, PyTree], tuple[Scalar, Scalar]] | None = None


class Curves(NamedTuple):
    """What a training run shows, after equal parts of its steps.

    Attributes:
        train_loss: Mean training loss since the last point.
        validation_loss: Validation loss at the point; the first is the untrained model's.
        accuracy: Likewise, `None` for what is no classification.
    """

    train_loss: Float[Array, "*runs points"]
    validation_loss: Float[Array, "*runs points+1"]
    accuracy: Float[Array, "*runs points+1"] | None = None


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
    optimizer: Callable[[Any], optax.GradientTransformation],
    data: PyTree,
    key: Key[Array, "*runs"],
    hyper: Any = None,
    *,
    steps: int | Int[Array, ""],
    points: int,
    evaluated: Callable[[PyTree, PyTree], PyTree] = lambda opt_state, params: params,
    over: Sequence[tuple[Any, Any, Any]] = (),
) -> Curves:
    """Train from fresh parameters and return the curves.

    Args:
        workload: The task.
        optimizer: From the hyperparameters to the optimizer.
        data: What `workload.data` returned.
        key: Source of initial parameters, batches and dropout.
        hyper: The hyperparameters, any tree.
        steps: Number of steps, a multiple of `points`. Where it is traced, one compiled run
            serves any length, but has no gradient.
        points: How often to look.
        evaluated: From the optimizer's state and parameters to those to evaluate.
        over: For many runs at once the axes of data, key and hyperparameters that are mapped over,
            as `jax.vmap` has them; of more than one mapping, the innermost first. The result is
            that of `jax.vmap`, which would map the loops, and trace their steps a dozen times.
    """

    def mapped(function: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
        for circumstances in over:
            function = jax.vmap(function, (circumstances, *axes))
        return function

    run = (data, key, hyper)
    each = steps // points

    def seen(params, data):
        if workload.evaluation is None:
            return workload.validation_loss(params, data), None
        return workload.evaluation(params, data)

    def start(run):
        data, key, hyper = run
        params = workload.init(jax.random.split(key)[0])
        return seen(params, data), (params, optimizer(hyper).init(params))

    def step(run, carry, i):
        (data, key, hyper), (params, opt_state) = run, carry
        drawn = jax.random.fold_in(jax.random.split(key)[1], i)
        loss, gradients = jax.value_and_grad(workload.loss)(params, data, drawn)
        updates, opt_state = optimizer(hyper).update(gradients, opt_state, params)
        return loss, (optax.apply_updates(params, updates), opt_state)

    def look(run, carry):
        (data, _, _), (params, opt_state) = run, carry
        return seen(evaluated(opt_state, params), data)

    first, carry = mapped(start)(run)

    def part(carry, number):
        def body(i, carry):
            carry, total = carry
            loss, carry = mapped(step, 0, None)(run, carry, number * each + i)
            return carry, total + loss

        carry, total = jax.lax.fori_loop(0, each, body, (carry, jnp.zeros(first[0].shape)))
        return carry, (total / each, mapped(look, 0)(run, carry))

    _, (train, later) = jax.lax.scan(part, carry, jnp.arange(points))
    curves = jax.tree.map(lambda x, rest: jnp.concatenate([x[None], rest]), first, later)
    return Curves(*jax.tree.map(lambda curve: jnp.moveaxis(curve, 0, -1), (train, *curves)))
