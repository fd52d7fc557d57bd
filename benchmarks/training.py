"""Train one classifier per seed with one optimizer, all seeds with the same compiled step.

Seed s has the same initial weights, order of examples and dropout masks whatever the optimizer, so
that arms can be compared in pairs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from benchmarks.datasets import Dataset, Split
from qsgd_jax.nn import QuantumTransformer

Model = tuple[nnx.GraphDef, PyTree]
Tokens = Int[Array, "examples length"]
Labels = Int[Array, " examples"]
Scalar = Float[Array, ""]


@dataclass
class Run:
    """One seed: where its training stands, and what was measured.

    The validation curves have one entry more than the others: the first is the untrained model's.

    Attributes:
        seed: Fixes initial weights, order of examples and dropout.
        key: Source of the order of examples and of dropout.
        params: Parameters of the model.
        opt_state: State of the optimizer.
        train_loss: Mean loss over the steps of each epoch, with dropout.
        validation_loss: Loss on the validation split after 0, 1, ... epochs.
        validation_accuracy: Accuracy on the validation split after 0, 1, ... epochs.
        diagnostics: What `diagnose` found after 0, 1, ... epochs.
        seconds: Training time of each epoch, without evaluation and compilation.
        test_loss: Loss on the test split at the end.
        test_accuracy: Accuracy on the test split at the end.
    """

    seed: int
    key: Key[Array, ""]
    params: PyTree
    opt_state: PyTree
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    diagnostics: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    test_loss: float = float("nan")
    test_accuracy: float = float("nan")


@dataclass(frozen=True)
class TrainedRuns:
    """The runs of one arm, the structure of their models, and the time they took together."""

    graph: nnx.GraphDef
    runs: list[Run]
    compile_seconds: float
    wall_seconds: float


def train(
    make_optimizer: Callable[[int], optax.GradientTransformation],
    dataset: Dataset,
    *,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    on_epoch: Callable[[Sequence[Run]], None],
    model: Mapping[str, Any] = MappingProxyType({}),
    diagnose: Callable[[QuantumTransformer, Tokens], Any] | None = None,
) -> TrainedRuns:
    """Train every seed and test it.

    The seeds take turns on one thread per core, an epoch at a time. XLA keeps one core busy with
    products as small as these, under `jax.vmap` or `jax.lax.map` over seeds too; threads were the
    fastest of the three on two cores.

    Args:
        make_optimizer: From a seed to the optimizer. The seed may only change the state that
            `init` returns: one compiled step serves all seeds.
        dataset: The task.
        seeds: One run each.
        epochs: Passes over the training split.
        batch_size: Examples a step; what is left over at the end of an epoch is dropped.
        on_epoch: Called with all runs whenever one has finished an epoch.
        model: Arguments of `new_model`.
        diagnose: Compiled, and called after each epoch with the model and 250 examples of the
            validation split; what it returns is kept.

    Returns:
        The runs, with their curves and test figures.
    """
    started = time.perf_counter()
    graph, _ = new_model(dataset, jax.random.key(0), **model)
    evaluate = compiled_evaluation(graph)
    train_split, validation, test = (
        on_device(s) for s in (dataset.train, dataset.validation, dataset.test)
    )
    runs = []
    for seed in seeds:
        weights_key, key = jax.random.split(jax.random.key(seed))
        _, params = new_model(dataset, weights_key, **model)
        runs.append(Run(seed, key, params, make_optimizer(seed).init(params)))

    began = time.perf_counter()
    epoch = partial(run_epoch, graph, make_optimizer(seeds[0]), batch_size)
    train_epoch = (
        jax.jit(epoch, donate_argnums=(0, 1))
        .lower(runs[0].params, runs[0].opt_state, runs[0].key, *train_split)
        .compile()
    )
    compile_seconds = time.perf_counter() - began

    @jax.jit
    def look(params: PyTree, tokens: Tokens) -> Any:
        return diagnose and diagnose(nnx.merge(graph, params), tokens)

    def validate(run: Run) -> None:
        if diagnose is not None:
            run.diagnostics.append(jax.device_get(look(run.params, validation[0][:250])))
        loss, accuracy = evaluate(run.params, *validation)
        run.validation_loss.append(float(loss))
        run.validation_accuracy.append(float(accuracy))

    def advance(run: Run) -> Run:
        key = jax.random.fold_in(run.key, len(run.seconds))
        began = time.perf_counter()
        run.params, run.opt_state, loss = jax.block_until_ready(
            train_epoch(run.params, run.opt_state, key, *train_split)
        )
        run.seconds.append(time.perf_counter() - began)
        run.train_loss.append(float(loss))
        validate(run)
        return run

    for run in runs:
        validate(run)
    with ThreadPoolExecutor(min(len(runs), os.cpu_count() or 1)) as pool:
        pending = {pool.submit(advance, run) for run in runs}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for run in (future.result() for future in done):
                on_epoch(runs)
                if len(run.seconds) < epochs:
                    pending.add(pool.submit(advance, run))

    for run in runs:
        loss, accuracy = evaluate(run.params, *test)
        run.test_loss, run.test_accuracy = float(loss), float(accuracy)
    return TrainedRuns(graph, runs, compile_seconds, time.perf_counter() - started)


def new_model(
    dataset: Dataset, key: Key[Array, ""], *, quantum: bool = False, **options: Any
) -> Model:
    """Draw the initial weights of a classifier that fits the task."""
    model = QuantumTransformer(
        dataset.vocabulary_size,
        dataset.train.tokens.shape[1],
        dataset.n_classes,
        quantum=quantum,
        keep_rngs=False,
        rngs=nnx.Rngs(params=key),
        **options,
    )
    return nnx.split(model)


def on_device(split: Split) -> tuple[Tokens, Labels]:
    """Move a split to the default device."""
    return jnp.asarray(split.tokens, jnp.int32), jnp.asarray(split.labels, jnp.int32)


def run_epoch(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    params: PyTree,
    opt_state: optax.OptState,
    key: Key[Array, ""],
    tokens: Tokens,
    labels: Labels,
) -> tuple[PyTree, optax.OptState, Scalar]:
    """Take one pass over the examples in a fresh order and return the mean loss."""
    order_key, dropout_key = jax.random.split(key)
    steps = len(labels) // batch_size
    order = jax.random.permutation(order_key, len(labels))
    batches = order[: steps * batch_size].reshape(steps, batch_size)

    def step(carry, inputs):
        params, opt_state = carry
        batch, key = inputs

        def mean_loss(params: PyTree) -> Scalar:
            model = nnx.merge(graph, params)
            logits = model(tokens[batch], deterministic=False, rngs=nnx.Rngs(dropout=key))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    keys = jax.random.split(dropout_key, steps)
    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), (batches, keys))
    return params, opt_state, losses.mean()


def compiled_evaluation(
    graph: nnx.GraphDef, chunk: int = 250
) -> Callable[[PyTree, Tokens, Labels], tuple[Scalar, Scalar]]:
    """Return a function from parameters and a split to mean loss and accuracy."""

    @jax.jit
    def evaluate(params: PyTree, tokens: Tokens, labels: Labels) -> tuple[Scalar, Scalar]:
        model = nnx.merge(graph, params)
        # In chunks, else the activations of 10,000 examples leave the cache.
        classify = partial(model, deterministic=True)
        logits = jax.lax.map(classify, tokens, batch_size=chunk)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), jnp.mean(logits.argmax(axis=-1) == labels)

    return evaluate
