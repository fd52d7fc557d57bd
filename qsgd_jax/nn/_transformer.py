"""The paper's text classifier, with and without quantum attention.

The paper gives the sizes (embedding 64, 4 heads, feed-forward 128, 2 layers, dropout 0.1). It does
not say where the layer norms sit, which activation is used, or how tokens are pooled; here the
norms come first (pre-norm), the activation is ReLU (PyTorch's default), and the mean over tokens
that are not padding is read by one linear layer.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qsgd_jax.nn._attention import AttentionReadout, QuantumAttention


class QuantumTransformer(nnx.Module):
    r"""A transformer encoder whose attention runs a circuit on every score, to classify text.

    .. math::
      h_0 = E[t] + P, \quad
      h' = h + \text{Attention}(\text{LN}(h)), \quad
      h_{l+1} = h' + W_2 \operatorname{ReLU}(W_1 \text{LN}(h')), \quad
      \text{logits} = W \overline{\text{LN}(h_L)}

    with the attention of `QuantumAttention` and the mean over the tokens that are not padding.
    The defaults are the paper's. As in any Flax module, `train()` and `eval()` turn dropout on
    and off (it begins on).

    Args:
      vocabulary_size: number of token ids.
      length: greatest number of tokens in a sequence.
      n_classes: number of labels.
      features: width of the embedding.
      num_heads: attention heads; they divide `features`.
      hidden: width of the feed-forward layer.
      layers: number of encoder layers, each with angles of its own.
      dropout_rate: of attention weights, embedding and both residual branches.
      pad: token id that is neither attended to nor pooled.
      quantum: with `False` the same model with Flax's own attention; all it shares with the other
        has the same initial values, so that the two can be compared in pairs.
      n_qubits: width of the circuits; as all below, of no meaning unless `quantum`.
      depth: their number of layers.
      readout: `"amplitude"` or `"probability"`.
      circuit_per_head: angles of their own for each head.
      device: PennyLane device that runs the circuits, a name or an instance.
      shots: how often it measures each circuit; `None` for exact answers.
      angle_init: initializer of the angles; by default that of `QuantumAttention`, with which
        the model begins as the classical one if it reads amplitudes.
      keep_rngs: keep streams for dropout in the module. Otherwise each call that drops
        anything must be given `rngs`.
      rngs: source of the initial values and, if they are kept, of the streams.

    Raises:
      ValueError: if an argument is out of range, or the device cannot answer the readout.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from qsgd_jax.nn import QuantumTransformer
      >>> model = QuantumTransformer(
      ...     vocabulary_size=17, length=16, n_classes=4, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> model(jnp.ones((2, 16), jnp.int32)).shape
      (2, 4)

    References:
      Eq. 3-5 and Table II of Pamuk, Özdemir, Kocabay, arXiv:2511.01918.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        n_classes: int,
        *,
        features: int = 64,
        num_heads: int = 4,
        hidden: int = 128,
        layers: int = 2,
        dropout_rate: float = 0.1,
        pad: int = 0,
        quantum: bool = True,
        n_qubits: int = 4,
        depth: int = 2,
        readout: AttentionReadout = "amplitude",
        circuit_per_head: bool = False,
        device: Any = "default.qubit",
        shots: int | None = None,
        angle_init: nnx.Initializer | None = None,
        keep_rngs: bool = True,
        rngs: nnx.Rngs,
    ):
        self.length: int = length
        self.pad: int = pad
        self.embedding: nnx.Embed = nnx.Embed(vocabulary_size, features, rngs=rngs)
        self.positions: nnx.Embed = nnx.Embed(length, features, rngs=rngs)
        self.layers: nnx.List[Any] = nnx.List(
            [
                _EncoderLayer(features, num_heads, hidden, dropout_rate, keep_rngs, rngs)
                for _ in range(layers)
            ]
        )
        self.norm: nnx.LayerNorm = nnx.LayerNorm(features, rngs=rngs)
        self.head: nnx.Linear = nnx.Linear(features, n_classes, rngs=rngs)
        self.dropout: nnx.Dropout = nnx.Dropout(dropout_rate, rngs=rngs if keep_rngs else None)
        if not quantum:
            return
        for layer in self.layers:  # last, so that the angles take nothing from the other draws
            attention = QuantumAttention(
                n_qubits,
                depth,
                readout=readout,
                num_heads=num_heads if circuit_per_head else None,
                device=device,
                shots=shots,
                angle_init=angle_init,
                rngs=rngs,
            )
            layer.attention.attention_fn = nnx.data(attention)

    def __call__(
        self,
        tokens: Int[Array, "*batch length"],
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        sow_weights: bool = False,
    ) -> Float[Array, "*batch classes"]:
        """Return the logits.

        Args:
          tokens: token ids, padded by `pad`.
          deterministic: drop nothing; by default as `train()` and `eval()` have set it.
          rngs: its `dropout` stream, where none is kept in the module.
          sow_weights: let each layer's attention sow its weights as `nnx.Intermediate`.

        Raises:
          ValueError: if the sequences are longer than `length`.
        """
        if tokens.shape[-1] > self.length:
            raise ValueError(
                f"tokens has shape {tokens.shape}; allowed are at most length={self.length} tokens."
            )
        dropping = {"deterministic": deterministic, "rngs": rngs}
        real = tokens != self.pad
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        x = self.dropout(x, **dropping)
        for layer in self.layers:
            x = layer(x, real[..., None, None, :], dropping, sow_weights)
        weights = real[..., None].astype(x.dtype)
        count = jnp.maximum(weights.sum(axis=-2), 1)
        return self.head((self.norm(x) * weights).sum(axis=-2) / count)


class _EncoderLayer(nnx.Module):
    """Self-attention and a two-layer perceptron, each behind a layer norm and a residual."""

    def __init__(self, features, num_heads, hidden, dropout_rate, keep_rngs, rngs):
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads,
            features,
            dropout_rate=dropout_rate,
            deterministic=False,
            decode=False,
            keep_rngs=keep_rngs,
            rngs=rngs,
        )
        self.hidden_norm = nnx.LayerNorm(features, rngs=rngs)
        self.expand = nnx.Linear(features, hidden, rngs=rngs)
        self.contract = nnx.Linear(hidden, features, rngs=rngs)
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs if keep_rngs else None)

    def __call__(
        self,
        x: Float[Array, "*batch length features"],
        mask: Bool[Array, "*batch 1 1 length"],
        dropping: dict[str, Any],
        sow_weights: bool,
    ) -> Float[Array, "*batch length features"]:
        y = self.attention(self.attention_norm(x), mask=mask, sow_weights=sow_weights, **dropping)
        x = x + self.dropout(y, **dropping)
        y = self.contract(nnx.relu(self.expand(self.hidden_norm(x))))
        return x + self.dropout(y, **dropping)
