"""Small tasks to meta-train an optimizer on, and a few of other sizes and kinds to validate it.

`workload.data` draws the task itself (teacher, templates, Markov source) along with a finite
training set, on which overfitting shows, and validation examples of the same distribution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from experiments.engine.workload import KeyArray, Scalar, Workload
from experiments.workloads.examples import (
    digits,
    low_rank_vectors,
    markov_sequences,
    neighbours,
    ordered_topics,
    recalls,
    reversals,
    shifted_templates,
    teacher_classes,
    teacher_values,
    zipf_bags,
)
from experiments.workloads.models import (
    bag,
    bag_params,
    convolution,
    convolution_params,
    cross_entropy,
    dense,
    embed,
    global_mean,
    mean_pool,
    mlp,
    mlp_params,
    squared_error,
    transformer,
    transformer_params,
)

VALIDATION_SIZE = 256
DIGITS_TRAIN_SIZE = 1297  # of 1797; the other 500 are validation

# From a key and a number to that many examples: inputs and targets.
Examples = Callable[[KeyArray, int], tuple[Array, Array]]
Predict = Callable[[PyTree, Array], Array]


def supervised(
    name: str,
    family: str,
    init: Callable[[KeyArray], PyTree],
    predict: Predict,
    examples: Examples,
    *,
    train_size: int,
    batch_size: int,
    validation_size: int = VALIDATION_SIZE,
    distance: Callable[[Array, Array], Scalar] = cross_entropy,
) -> Workload:
    """Return the task of predicting the examples' targets from their inputs.

    Args:
        name: The task's name.
        family: The kind of model.
        init: From a key to parameters.
        predict: From parameters and inputs to outputs.
        examples: Draws a task and examples of it; the first are for training.
        train_size: Number of training examples.
        batch_size: Examples in a batch, drawn with replacement.
        validation_size: Number of validation examples.
        distance: The mean loss of outputs against targets.
    """

    def data(key):
        inputs, targets = examples(key, train_size + validation_size)
        return {
            "inputs": inputs[:train_size],
            "targets": targets[:train_size],
            "validation_inputs": inputs[train_size:],
            "validation_targets": targets[train_size:],
        }

    def loss(params, data, key):
        chosen = jax.random.randint(key, (batch_size,), 0, train_size)
        return distance(predict(params, data["inputs"][chosen]), data["targets"][chosen])

    def validation_loss(params, data):
        return distance(predict(params, data["validation_inputs"]), data["validation_targets"])

    return Workload(name, family, init, data, loss, validation_loss)


def _flat_images(params, images):
    return mlp(params, images.reshape(len(images), -1), jnp.tanh)


META_TRAINING: tuple[Workload, ...] = (
    supervised(
        "teacher-mlp",
        "mlp",
        functools.partial(mlp_params, sizes=(16, 32, 8)),
        functools.partial(mlp, activation=jnp.tanh),
        teacher_classes,
        train_size=1024,
        batch_size=32,
    ),
    supervised(
        "regression-mlp",
        "mlp",
        functools.partial(mlp_params, sizes=(16, 24, 24, 24, 1)),
        functools.partial(mlp, activation=jax.nn.relu),
        teacher_values,
        train_size=1024,
        batch_size=64,
        distance=squared_error,
    ),
    supervised(
        "shifted-convolution",
        "convolution",
        functools.partial(convolution_params, channels=(1, 8), features=3 * 3 * 8, classes=6),
        functools.partial(convolution, pool=mean_pool),
        functools.partial(shifted_templates, noise=0.5),
        train_size=1024,
        batch_size=32,
    ),
    supervised(
        "shifted-deep-convolution",
        "convolution",
        functools.partial(convolution_params, channels=(1, 6, 12), features=12, classes=6),
        functools.partial(convolution, pool=global_mean),
        functools.partial(shifted_templates, noise=0.5),
        train_size=512,
        batch_size=16,
    ),
    supervised(
        "markov-transformer",
        "transformer",
        functools.partial(
            transformer_params, vocabulary=16, length=12, width=16, layers=1, outputs=16
        ),
        functools.partial(transformer, heads=2, causal=True),
        markov_sequences,
        train_size=512,
        batch_size=8,
    ),
    supervised(
        "topics-transformer",
        "transformer",
        functools.partial(
            transformer_params, vocabulary=24, length=8, width=16, layers=2, outputs=4
        ),
        functools.partial(transformer, heads=2, pool=lambda x: x.mean(axis=1)),
        ordered_topics,
        train_size=1024,
        batch_size=8,
    ),
    supervised(
        "zipf-embedding",
        "embedding",
        functools.partial(bag_params, vocabulary=128, width=16, outputs=8),
        bag,
        functools.partial(zipf_bags, vocabulary=128, classes=8, length=8),
        train_size=1024,
        batch_size=32,
    ),
    supervised(
        "neighbour-embedding",
        "embedding",
        functools.partial(bag_params, vocabulary=64, width=16, outputs=64),
        lambda params, tokens: dense(params["output"], embed(params["tokens"], tokens)),
        neighbours,
        train_size=2048,
        batch_size=64,
    ),
    supervised(
        "wide-teacher-mlp",
        "mlp",
        functools.partial(mlp_params, sizes=(16, 128, 128, 8)),
        functools.partial(mlp, activation=jax.nn.relu),
        teacher_classes,
        train_size=4096,
        batch_size=64,
    ),
    supervised(
        "wide-markov-transformer",
        "transformer",
        functools.partial(
            transformer_params, vocabulary=24, length=12, width=32, layers=2, outputs=24
        ),
        functools.partial(transformer, heads=4, causal=True),
        functools.partial(markov_sequences, vocabulary=24, successors=6),
        train_size=1024,
        batch_size=8,
    ),
    # With labels that are right the loss can come near zero, and the end of a run tells how small
    # the last steps are.
    supervised(
        "clean-teacher-mlp",
        "mlp",
        functools.partial(mlp_params, sizes=(16, 64, 8)),
        functools.partial(mlp, activation=jnp.tanh),
        functools.partial(teacher_classes, largest_noise=0),
        train_size=2048,
        batch_size=32,
    ),
    supervised(
        "clean-convolution",
        "convolution",
        functools.partial(convolution_params, channels=(1, 8), features=3 * 3 * 8, classes=6),
        functools.partial(convolution, pool=mean_pool),
        functools.partial(shifted_templates, noise=0.1),
        train_size=1024,
        batch_size=32,
    ),
    supervised(
        "reversal-transformer",
        "transformer",
        functools.partial(
            transformer_params, vocabulary=12, length=8, width=16, layers=1, outputs=12
        ),
        functools.partial(transformer, heads=2),
        functools.partial(reversals, vocabulary=12, length=8),
        train_size=2048,
        batch_size=16,
    ),
)

VALIDATION: tuple[Workload, ...] = (
    supervised(
        "digits-mlp",
        "mlp",
        functools.partial(mlp_params, sizes=(64, 64, 10)),
        _flat_images,
        digits,
        train_size=DIGITS_TRAIN_SIZE,
        batch_size=64,
        validation_size=500,
    ),
    supervised(
        "digits-convolution",
        "convolution",
        functools.partial(convolution_params, channels=(1, 8, 16), features=64, classes=10),
        functools.partial(convolution, pool=mean_pool),
        digits,
        train_size=DIGITS_TRAIN_SIZE,
        batch_size=64,
        validation_size=500,
    ),
    supervised(
        "recall-transformer",
        "transformer",
        functools.partial(
            transformer_params, vocabulary=16, length=7, width=32, layers=2, outputs=8
        ),
        functools.partial(transformer, heads=4, pool=lambda x: x[:, -1]),
        recalls,
        train_size=2048,
        batch_size=32,
    ),
    supervised(
        "large-embedding",
        "embedding",
        functools.partial(bag_params, vocabulary=512, width=16, outputs=20),
        bag,
        functools.partial(zipf_bags, vocabulary=512, classes=20, length=16),
        train_size=2048,
        batch_size=32,
    ),
    supervised(
        "autoencoder-mlp",
        "mlp",
        functools.partial(mlp_params, sizes=(32, 24, 6, 24, 32)),
        functools.partial(mlp, activation=jnp.tanh),
        low_rank_vectors,
        train_size=1024,
        batch_size=32,
        distance=squared_error,
    ),
)


def task(name: str) -> Workload:
    """Return the task of this name.

    Raises:
        ValueError: If there is none; the message names them all.
    """
    tasks = {workload.name: workload for workload in META_TRAINING + VALIDATION}
    if name not in tasks:
        raise ValueError(f"task {name!r} is unknown; expected one of {', '.join(tasks)}.")
    return tasks[name]
