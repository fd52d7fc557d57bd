"""The paper's text classifier in Flax nnx.

The paper gives the sizes (embedding 64, 4 heads, feed-forward 128, 2 layers, dropout 0.1). It does
not say where the layer norms sit, which activation is used, or how tokens are pooled; here the
norms come first (pre-norm), the activation is ReLU (PyTorch's default), and the mean over tokens
that are not padding is read by one linear layer.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


class EncoderLayer(nnx.Module):
    """Self-attention and a two-layer perceptron, each behind a layer norm and a residual."""

    def __init__(
        self, features: int, heads: int, hidden: int, dropout_rate: float, *, rngs: nnx.Rngs
    ):
        """Draw the initial weights."""
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, features, dropout_rate=dropout_rate, decode=False, keep_rngs=False, rngs=rngs
        )
        self.hidden_norm = nnx.LayerNorm(features, rngs=rngs)
        self.expand = nnx.Linear(features, hidden, rngs=rngs)
        self.contract = nnx.Linear(hidden, features, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(
        self,
        x: Float[Array, "*batch length features"],
        mask: Bool[Array, "*batch 1 1 length"],
        *,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "*batch length features"]:
        """Apply the layer; without `rngs` nothing is dropped."""
        exact = rngs is None
        y = self.attention(self.attention_norm(x), mask=mask, deterministic=exact, rngs=rngs)
        x = x + self.dropout(y, deterministic=exact, rngs=rngs)
        y = self.contract(nnx.relu(self.expand(self.hidden_norm(x))))
        return x + self.dropout(y, deterministic=exact, rngs=rngs)


class TextClassifier(nnx.Module):
    """A transformer encoder with learned positions, mean pooling and a linear head.

    Example:
        >>> model = TextClassifier(vocabulary_size=17, length=16, n_classes=4, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 16), jnp.int32)).shape
        (2, 4)
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        n_classes: int,
        *,
        features: int = 64,
        heads: int = 4,
        hidden: int = 128,
        layers: int = 2,
        dropout_rate: float = 0.1,
        pad: int = 0,
        rngs: nnx.Rngs,
    ):
        """Draw the initial weights.

        Args:
            vocabulary_size: Number of token ids.
            length: Length that sequences are padded to.
            n_classes: Number of labels.
            features: Width of the embedding.
            heads: Attention heads.
            hidden: Width of the feed-forward layer.
            layers: Number of encoder layers.
            dropout_rate: Of attention weights, embedding and both residual branches.
            pad: Token id that is neither attended to nor pooled.
            rngs: Source of the initial weights.
        """
        self.pad = pad
        self.embedding = nnx.Embed(vocabulary_size, features, rngs=rngs)
        self.positions = nnx.Embed(length, features, rngs=rngs)
        self.layers = nnx.List(
            [EncoderLayer(features, heads, hidden, dropout_rate, rngs=rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = nnx.Linear(features, n_classes, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(
        self, tokens: Int[Array, "*batch length"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "*batch classes"]:
        """Return the logits; without `rngs` nothing is dropped."""
        real = tokens != self.pad
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        for layer in self.layers:
            x = layer(x, real[..., None, None, :], rngs=rngs)
        weights = real[..., None].astype(x.dtype)
        count = jnp.maximum(weights.sum(axis=-2), 1)
        return self.head((self.norm(x) * weights).sum(axis=-2) / count)
