"""Layers, models and losses of the synthetic tasks, as functions on dicts of arrays.

Thousands of short runs on them are batched by `jax.vmap`, each with parameters of its own. So all
are plain matrix products: convolutions multiply patches and embeddings multiply one-hot rows,
because XLA's batched convolutions and scatters are slow on CPUs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.engine.workload import KeyArray, Scalar

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
