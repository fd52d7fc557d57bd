"""Examples of the synthetic tasks: from a key and a number to that many inputs and targets.

The key draws the task itself (teacher, templates, Markov source) along with the examples.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.engine.workload import KeyArray


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


def teacher_classes(
    key: KeyArray, count: int, *, largest_noise: float = 0.2
) -> tuple[Array, Array]:
    """Return 16 normal inputs and which of a teacher's 8 outputs is largest, with label noise."""
    inputs_key, teacher_key, noise_key = jax.random.split(key, 3)
    inputs = jax.random.normal(inputs_key, (count, 16))
    labels = random_teacher(teacher_key, inputs, 32, 8).argmax(axis=-1)
    return inputs, noisy_labels(noise_key, labels, 8, largest_noise)


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


def reversals(key: KeyArray, count: int, *, vocabulary: int, length: int) -> tuple[Array, Array]:
    """Return random sequences, and the same backwards."""
    tokens = jax.random.randint(key, (count, length), 0, vocabulary)
    return tokens, tokens[:, ::-1]


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
