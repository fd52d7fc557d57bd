"""Small tasks to meta-train an optimizer on, and a few of other sizes and kinds to validate it.

Thousands of short runs on them are batched by `jax.vmap`, each with parameters of its own. So all
models are plain matrix products on dicts of arrays: convolutions multiply patches and embeddings
multiply one-hot rows, because XLA's batched convolutions and scatters are slow on CPUs.

`workload.data` draws the task itself (teacher, templates, Markov source) along with a finite
training set, on which overfitting shows, and validation examples of the same distribution.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from benchmarks.workloads.base import Scalar, Workload

VALIDATION_SIZE = 256
DIGITS_TRAIN_SIZE = 1297  # of 1797; the other 500 are validation

KeyArray = Key[Array, ""]
# From a key and a number to that many examples: inputs and targets.
Examples = Callable[[KeyArray, int], tuple[Array, Array]]
Predict = Callable[[PyTree, Array], Array]
Activation = Callable[[Array], Array]

# --- Layers ---------------------------------------------------------------------------------------


def dense_params(key: KeyArray, inputs: int, outputs: int) -> dict[str, Array]:
    """Return a LeCun-normal kernel and a zero bias."""
    kernel = jax.nn.initializers.lecun_normal()(key, (inputs, outputs))
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def dense(params: dict[str, Array], x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch o"]:
    """Apply an affine map."""
    # Flattened, as XLA:CPU multiplies matrices faster than stacks of them.
    flat = x.reshape(-1, x.shape[-1]) @ params["kernel"] + params["bias"]
    return flat.reshape(*x.shape[:-1], -1)


def embedding_params(key: KeyArray, vocabulary: int, width: int) -> Float[Array, "vocabulary w"]:
    """Return normal vectors of expected squared length 1."""
    return jax.random.normal(key, (vocabulary, width)) / width**0.5


def embed(
    table: Float[Array, "vocabulary width"], tokens: Int[Array, "*batch"]
) -> Float[Array, "*batch width"]:
    """Look the tokens up, by a product: a gather's gradient is a scatter, slower for few tokens."""
    return jax.nn.one_hot(tokens, len(table), dtype=table.dtype) @ table


def layer_norm_params(width: int) -> dict[str, Array]:
    """Return unit scales and zero biases."""
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def layer_norm(
    params: dict[str, Array], x: Float[Array, "*batch width"]
) -> Float[Array, "*batch width"]:
    """Normalise mean and variance over the last axis, with Flax's epsilon."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-6) * params["scale"] + params["bias"]


def patches(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height-2 width-2 9*channels"]:
    """Return all 3 × 3 patches, in the order of a kernel of shape (3, 3, channels, outputs)."""
    height, width = images.shape[1] - 2, images.shape[2] - 2
    shifts = [images[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1)


def mean_pool(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height/2 width/2 channels"]:
    """Average over 2 × 2 squares."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def attention_params(key: KeyArray, width: int) -> dict[str, dict[str, Array]]:
    """Return the joint projection to queries, keys and values, and the output's."""
    mixed, output = jax.random.split(key)
    return {
        "queries_keys_values": dense_params(mixed, width, 3 * width),
        "output": dense_params(output, width, width),
    }


def attention(
    params: dict[str, dict[str, Array]],
    x: Float[Array, "batch length width"],
    *,
    heads: int,
    causal: bool,
) -> Float[Array, "batch length width"]:
    """Apply multi-head self-attention."""
    batch, length, width = x.shape
    mixed = dense(params["queries_keys_values"], x)
    query, key, value = jnp.moveaxis(mixed.reshape(batch, length, 3, heads, -1), 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (width // heads) ** -0.5
    if causal:
        scores = jnp.where(np.tri(length, dtype=bool), scores, -jnp.inf)
    attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
    return dense(params["output"], attended.reshape(x.shape))


# --- Models ---------------------------------------------------------------------------------------


def mlp_params(key: KeyArray, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """Return the layers between the sizes."""
    pairs = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(pairs))
    return [dense_params(k, *pair) for k, pair in zip(keys, pairs, strict=True)]


def mlp(
    params: Sequence[dict[str, Array]], x: Float[Array, "*batch inputs"], activation: Activation
) -> Float[Array, "*batch outputs"]:
    """Apply the layers, with the activation between them."""
    for layer in params[:-1]:
        x = activation(dense(layer, x))
    return dense(params[-1], x)


def convolution_params(
    key: KeyArray, channels: Sequence[int], features: int, classes: int
) -> dict[str, Any]:
    """Return 3 × 3 convolutions between the channels, and a dense layer from features to classes.

    A convolution's kernel is that of a dense layer on `patches`.
    """
    convolutions, last = jax.random.split(key)
    sizes = list(itertools.pairwise(channels))
    keys = jax.random.split(convolutions, len(sizes))
    return {
        "convolutions": [dense_params(k, 9 * i, o) for k, (i, o) in zip(keys, sizes, strict=True)],
        "dense": dense_params(last, features, classes),
    }


def convolution(
    params: dict[str, Any],
    images: Float[Array, "batch height width"],
    pool: Callable[[Float[Array, "batch height width channels"]], Array],
) -> Float[Array, "batch classes"]:
    """Apply the convolutions (unpadded) with relu, the pooling and the dense layer."""
    x = images[..., None]
    for layer in params["convolutions"]:
        x = jax.nn.relu(dense(layer, patches(x)))
    return dense(params["dense"], pool(x).reshape(len(x), -1))


def global_mean(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch channels"]:
    """Average over all positions."""
    return images.mean(axis=(1, 2))


def transformer_params(
    key: KeyArray, *, vocabulary: int, length: int, width: int, layers: int, outputs: int
) -> dict[str, Any]:
    """Return embeddings, pre-norm layers whose MLP is twice as wide, and the output's layer."""
    tokens, positions, inner, last = jax.random.split(key, 4)
    blocks = []
    for layer_key in jax.random.split(inner, layers):
        attention_key, mlp_key = jax.random.split(layer_key)
        blocks.append(
            {
                "attention_norm": layer_norm_params(width),
                "attention": attention_params(attention_key, width),
                "mlp_norm": layer_norm_params(width),
                "mlp": mlp_params(mlp_key, (width, 2 * width, width)),
            }
        )
    return {
        "tokens": embedding_params(tokens, vocabulary, width),
        "positions": embedding_params(positions, length, width),
        "blocks": blocks,
        "norm": layer_norm_params(width),
        "output": dense_params(last, width, outputs),
    }


def transformer(
    params: dict[str, Any],
    tokens: Int[Array, "batch length"],
    *,
    heads: int,
    causal: bool = False,
    pool: Callable[[Float[Array, "batch length width"]], Array] = lambda x: x,
) -> Float[Array, "batch *positions outputs"]:
    """Return the outputs at each position, or at what the pool makes of the positions."""
    x = embed(params["tokens"], tokens) + params["positions"]
    for block in params["blocks"]:
        normed = layer_norm(block["attention_norm"], x)
        x = x + attention(block["attention"], normed, heads=heads, causal=causal)
        x = x + mlp(block["mlp"], layer_norm(block["mlp_norm"], x), jax.nn.gelu)
    return dense(params["output"], layer_norm(params["norm"], pool(x)))


def bag_params(key: KeyArray, vocabulary: int, width: int, outputs: int) -> dict[str, Any]:
    """Return an embedding and a dense layer on it."""
    table, last = jax.random.split(key)
    return {
        "tokens": embedding_params(table, vocabulary, width),
        "output": dense_params(last, width, outputs),
    }


def bag(
    params: dict[str, Any], frequencies: Float[Array, "batch vocabulary"]
) -> Float[Array, "batch outputs"]:
    """Return the outputs of the mean embedding, given each token's share of the sequence."""
    return dense(params["output"], frequencies @ params["tokens"])


# --- Losses ---------------------------------------------------------------------------------------


def cross_entropy(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Scalar:
    """Return the mean cross-entropy in nats."""
    chosen = jnp.sum(logits * jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), -1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def squared_error(outputs: Float[Array, "*batch"], targets: Float[Array, "*batch"]) -> Scalar:
    """Return the mean squared error."""
    return jnp.mean((outputs - targets) ** 2)


# --- Examples -------------------------------------------------------------------------------------


def standardised(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Shift and scale all entries together to mean 0 and variance 1."""
    return (x - x.mean()) / x.std()


def sample(
    key: KeyArray,
    tables: Float[Array, "tables outcomes"],
    rows: Int[Array, "*batch"],
    shape: tuple[int, ...],
) -> Int[Array, "*shape"]:
    """Draw outcomes by the tables' rows of probabilities; the rows' indices broadcast to the shape.

    By the inverse of the cumulative sum, found in all rows by one search: adding its index to each
    row makes of them one increasing sequence.
    """
    count, outcomes = tables.shape
    increasing = (jnp.cumsum(tables, axis=-1) + jnp.arange(count)[:, None]).reshape(-1)
    uniform = jax.random.uniform(key, shape) + rows
    found = jnp.searchsorted(increasing, uniform, side="right") - rows * outcomes
    # Rounding may lead over the row's ends.
    return jnp.clip(found, 0, outcomes - 1)


def noisy_labels(
    key: KeyArray, labels: Int[Array, " count"], classes: int, largest_rate: float
) -> Int[Array, " count"]:
    """Replace a share of the labels, drawn up to the largest rate, by uniform ones."""
    rate_key, where_key, label_key = jax.random.split(key, 3)
    rate = jax.random.uniform(rate_key, maxval=largest_rate)
    replaced = jax.random.bernoulli(where_key, rate, labels.shape)
    return jnp.where(replaced, jax.random.randint(label_key, labels.shape, 0, classes), labels)


def random_teacher(
    key: KeyArray, inputs: Float[Array, "count inputs"], hidden: int, outputs: int
) -> Float[Array, "count outputs"]:
    """Return the outputs of a random two-layer tanh network of strongly bent units."""
    first, second = jax.random.split(key)
    size = inputs.shape[1]
    bent = jnp.tanh(inputs @ jax.random.normal(first, (size, hidden)) * (1.5 / size**0.5))
    return bent @ jax.random.normal(second, (hidden, outputs)) / hidden**0.5


def teacher_classes(key: KeyArray, count: int) -> tuple[Array, Array]:
    """Return 16 normal inputs and which of a teacher's 8 outputs is largest, with label noise."""
    inputs_key, teacher_key, noise_key = jax.random.split(key, 3)
    inputs = jax.random.normal(inputs_key, (count, 16))
    labels = random_teacher(teacher_key, inputs, 32, 8).argmax(axis=-1)
    return inputs, noisy_labels(noise_key, labels, 8, 0.2)


def teacher_values(key: KeyArray, count: int) -> tuple[Array, Array]:
    """Return badly scaled inputs and a teacher's noisy output."""
    inputs_key, scale_key, teacher_key, noise_key = jax.random.split(key, 4)
    inputs = jax.random.normal(inputs_key, (count, 16))
    scales = 10 ** jax.random.uniform(scale_key, (16,), minval=-1.0, maxval=0.5)
    values = standardised(random_teacher(teacher_key, inputs, 16, 1))
    noise = 0.3 * jax.random.normal(noise_key, values.shape)
    return inputs * scales, standardised(values + noise)


def shifted_templates(
    key: KeyArray, count: int, *, classes: int = 6, noise: float
) -> tuple[Array, Array]:
    """Return 8 × 8 images, each its class's smooth template, rolled at random, plus noise."""
    template_key, label_key, shift_key, noise_key = jax.random.split(key, 4)
    # Few Fourier components make a template smooth and periodic, so that a roll has no seam.
    phases = 2 * np.pi / 8 * np.arange(8) * np.arange(3)[:, None]
    waves = np.concatenate([np.cos(phases), np.sin(phases[1:])])
    amplitudes = jax.random.normal(template_key, (classes, len(waves), len(waves)))
    templates = jnp.einsum("cij,ix,jy->cxy", amplitudes, waves, waves)
    templates -= templates.mean(axis=(1, 2), keepdims=True)
    templates /= templates.std(axis=(1, 2), keepdims=True)
    labels = jax.random.randint(label_key, (count,), 0, classes)
    # (i - shift) mod 8 as a product on each axis.
    shifts = jax.nn.one_hot(jax.random.randint(shift_key, (2, count), 0, 8), 8)
    rolls = jnp.stack([jnp.roll(jnp.eye(8), s, axis=0) for s in range(8)])
    down, right = jnp.einsum("ans,sij->anij", shifts, rolls)
    images = down @ templates[labels] @ jnp.swapaxes(right, 1, 2)
    return images + noise * jax.random.normal(noise_key, images.shape), labels


def markov_sequences(
    key: KeyArray, count: int, *, vocabulary: int = 16, length: int = 12, successors: int = 4
) -> tuple[Array, Array]:
    """Return sequences of a Markov source, and the same one token later.

    A token follows the last one, or with a probability drawn up to one half the last but one, each
    by a table that allows few successors.
    """
    table_key, order_key, first_key, scan_key = jax.random.split(key, 4)
    logits = jax.random.normal(table_key, (2, vocabulary, vocabulary))
    allowed = logits >= jnp.sort(logits, axis=-1)[..., -successors, None]
    tables = jax.nn.softmax(jnp.where(allowed, logits * 2, -jnp.inf))
    older = jax.random.uniform(order_key, maxval=0.5)

    def step(previous, keys):
        table = jax.random.bernoulli(keys[0], older, (count,)).astype(int)
        # The rows of both tables, one below the other.
        rows = table * vocabulary + previous[table, jnp.arange(count)]
        token = sample(keys[1], tables.reshape(-1, vocabulary), rows, (count,))
        return jnp.stack([token, previous[0]]), token

    first = jax.random.randint(first_key, (2, count), 0, vocabulary)
    _, tokens = jax.lax.scan(step, first, jax.random.split(scan_key, (length + 1, 2)))
    return tokens[:-1].T, tokens[1:].T


def ordered_topics(
    key: KeyArray, count: int, *, topics: int = 4, vocabulary: int = 24, length: int = 8
) -> tuple[Array, Array]:
    """Return sequences through overlapping topics, whose cyclic order alone gives the class."""
    topic_key, label_key, token_key = jax.random.split(key, 3)
    emission = jax.nn.softmax(1.5 * jax.random.normal(topic_key, (topics, vocabulary)))
    labels = jax.random.randint(label_key, (count,), 0, topics)
    segments = jnp.arange(length) * topics // length
    schedule = (segments + labels[:, None]) % topics
    return sample(token_key, emission, schedule, (count, length)), labels


def zipf_bags(
    key: KeyArray, count: int, *, vocabulary: int, classes: int, length: int
) -> tuple[Array, Array]:
    """Return each token's share of sequences whose class tilts Zipf's law, and the classes."""
    tilt_key, label_key, token_key = jax.random.split(key, 3)
    tilts = jax.random.normal(tilt_key, (classes, vocabulary))
    distributions = jax.nn.softmax(tilts - np.log(np.arange(1, vocabulary + 1)))
    labels = jax.random.randint(label_key, (count,), 0, classes)
    tokens = sample(token_key, distributions, labels[:, None], (count, length))
    rows = jnp.arange(count)[:, None]
    return jnp.zeros((count, vocabulary)).at[rows, tokens].add(1 / length), labels


def neighbours(
    key: KeyArray, count: int, *, vocabulary: int = 64, rank: int = 4
) -> tuple[Array, Array]:
    """Return tokens of Zipf's law and neighbours, whose affinities have a low rank."""
    left_key, right_key, token_key, neighbour_key = jax.random.split(key, 4)
    left = jax.random.normal(left_key, (vocabulary, rank))
    right = jax.random.normal(right_key, (vocabulary, rank))
    zipf = 1 / np.arange(1, vocabulary + 1)
    share = jnp.asarray(zipf / zipf.sum(), float)
    tokens = sample(token_key, share[None], jnp.zeros(count, int), (count,))
    transitions = jax.nn.softmax(left @ right.T + np.log(zipf) / 2)
    return tokens, sample(neighbour_key, transitions, tokens, (count,))


def recalls(key: KeyArray, count: int, *, pairs: int = 3, symbols: int = 8) -> tuple[Array, Array]:
    """Return pairs of a key and a value, then one of the keys, and that key's value.

    Keys are `0 .. symbols-1`, different within a sequence; values are `symbols .. 2 symbols - 1`.
    """
    key_key, value_key, query_key = jax.random.split(key, 3)
    keys = jax.random.uniform(key_key, (count, symbols)).argsort(axis=-1)[:, :pairs]
    values = jax.random.randint(value_key, (count, pairs), 0, symbols)
    query = jax.random.randint(query_key, (count, 1), 0, pairs)
    shown = jnp.stack([keys, symbols + values], axis=-1).reshape(count, 2 * pairs)
    asked = jnp.take_along_axis(keys, query, axis=1)
    answer = jnp.take_along_axis(values, query, axis=1)
    return jnp.concatenate([shown, asked], axis=1), answer[:, 0]


def low_rank_vectors(
    key: KeyArray, count: int, *, size: int = 32, rank: int = 6
) -> tuple[Array, Array]:
    """Return noisy points on a random bent surface of few dimensions, twice."""
    point_key, surface_key, noise_key = jax.random.split(key, 3)
    points = random_teacher(surface_key, jax.random.normal(point_key, (count, rank)), 16, size)
    points = standardised(points)
    points = standardised(points + 0.2 * jax.random.normal(noise_key, points.shape))
    return points, points


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the 8 × 8 images of scikit-learn's digits, in [0, 1], and labels, shuffled."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return (digits.images / 16)[order], digits.target[order]


def digits(key: KeyArray, count: int) -> tuple[Array, Array]:
    """Return the digits, the same for every key."""
    images, labels = _digits()
    return jnp.asarray(images[:count], float), jnp.asarray(labels[:count], int)


# --- The tasks ------------------------------------------------------------------------------------


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
