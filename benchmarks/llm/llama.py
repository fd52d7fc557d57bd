"""Llama-architecture language models in Flax: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree

# Keys and values of every layer, by slot; the slot of a token is its position.
Cache = list[tuple[Float[Array, "batch slots kv_heads d"], Float[Array, "batch slots kv_heads d"]]]


@dataclass(frozen=True)
class LlamaConfig:
    r"""The sizes of a model, named as in Hugging Face's `config.json`.

    Attributes:
      vocab_size: number of token ids.
      hidden_size: width of the residual stream.
      intermediate_size: width of the SwiGLU.
      num_hidden_layers: number of blocks.
      num_attention_heads: heads of the queries.
      num_key_value_heads: heads of keys and values; they divide the former.
      head_dim: width of a head, even.
      max_position_embeddings: greatest context the model was made for, in tokens.
      rms_norm_eps: added to the mean square under the root.
      rope_theta: base of the rotary frequencies.
      rope_divisors: what each of the `head_dim // 2` frequencies is divided by, for models whose
        context was stretched (`llama3_rope_divisors`); `None` for none.
      tie_word_embeddings: whether the embedding is the output head, too.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_divisors: tuple[float, ...] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self)[:8]:
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name}={value!r} must be a positive integer.")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} must be a positive number.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} must divide "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even, for rotary embeddings.")
        if self.rope_divisors is not None and len(self.rope_divisors) != self.head_dim // 2:
            raise ValueError(
                f"rope_divisors has {len(self.rope_divisors)} entries; allowed are "
                f"head_dim // 2 = {self.head_dim // 2}."
            )

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read what `config.json` holds, in the form of transformers 4 or 5.

        Raises:
          ValueError: if something is missing, or names what this model is not.
        """
        missing = [name for name in _REQUIRED if config.get(name) is None]
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}")
        for name, allowed in _ONLY.items():
            if config.get(name, allowed[0]) not in allowed:
                options = " or ".join(map(repr, allowed))
                raise ValueError(f"{name}={config[name]!r}; allowed is {options}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"rope_scaling={rope!r} must be an object")
        theta = rope.get("rope_theta") or config.get("rope_theta", 10_000.0)
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        kind = rope.get("rope_type", rope.get("type", None if "factor" in rope else "default"))
        divisors = None
        if kind == "llama3":
            names = [field for field in _LLAMA3 if field not in rope]
            if names:
                raise ValueError(f"rope scaling misses {', '.join(names)}")
            stretch = {name: rope[name] for name in _LLAMA3}
            divisors = llama3_rope_divisors(head_dim, theta, **stretch)
        elif kind != "default":
            raise ValueError(f"rope_type={kind!r}; allowed is 'default' or 'llama3'")
        return cls(
            **{name: config[name] for name in _REQUIRED},
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            rope_theta=theta,
            rope_divisors=divisors,
            **{name: config[name] for name in _OPTIONAL if name in config},
        )

    def to_huggingface(self) -> dict[str, Any]:
        """Return the content of a `config.json`, which has no exact form for stretched frequencies.

        Raises:
          ValueError: if the model has `rope_divisors`.
        """
        if self.rope_divisors is not None:
            raise ValueError("rope_divisors cannot be written to a config.json.")
        fields = dataclasses.asdict(self)
        del fields["rope_divisors"]
        return fields | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_OPTIONAL = ("rms_norm_eps", "tie_word_embeddings")
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0.0, 0, None),
    "quantization_config": (None,),
}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def llama3_rope_divisors(
    head_dim: int,
    theta: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> tuple[float, ...]:
    r"""Return how Llama 3.x slows down its rotary frequencies for longer contexts.

    .. math::
      d_i = \frac{1}{(1 - s_i)/\text{factor} + s_i}, \quad
      s_i = \operatorname{clip}\left(
        \frac{n \, \omega_i / 2\pi - \text{low}}{\text{high} - \text{low}}, 0, 1\right)

    with :math:`\omega_i = \theta^{-2i/d}` and n the original context: wavelengths that fit it often
    are kept, those that hardly fit it are stretched by the factor, those between are blended.

    Args:
      head_dim: d, the width of a head.
      theta: the base.
      factor: how much the slowest frequencies are slowed.
      low_freq_factor: wavelengths longer than the original context over this are stretched.
      high_freq_factor: wavelengths shorter than the original context over this are kept.
      original_max_position_embeddings: the original context, in tokens.

    Returns:
      The `head_dim // 2` divisors.

    Raises:
      ValueError: if a factor is out of range.

    Example:
      >>> divisors = llama3_rope_divisors(
      ...     64, 5e5, factor=32, low_freq_factor=1, high_freq_factor=4,
      ...     original_max_position_embeddings=8192)
      >>> divisors[0], divisors[-1]
      (1.0, 32.0)

    References:
      Grattafiori et al., The Llama 3 Herd of Models, arXiv:2407.21783; the formula is that of
      Meta's reference code.
    """
    if not (factor > 0 and high_freq_factor > low_freq_factor > 0):
        raise ValueError(
            f"factor={factor!r} must be positive, and high_freq_factor={high_freq_factor!r} "
            f"greater than low_freq_factor={low_freq_factor!r}, which must be positive, too."
        )
    frequencies = float(theta) ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = original_max_position_embeddings * frequencies / (2 * np.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return tuple((1 / ((1 - kept) / factor + kept)).tolist())


_LLAMA_1B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131_072,
    rope_theta=500_000.0,
    rope_divisors=llama3_rope_divisors(
        64,
        500_000.0,
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    tie_word_embeddings=True,
)
_SMOLLM2_135M = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rope_theta=100_000.0,
    tie_word_embeddings=True,
)
PRESETS: Mapping[str, LlamaConfig] = {
    "llama-3.2-1b": _LLAMA_1B,
    "llama-3.2-1b-instruct": _LLAMA_1B,
    "smollm2-135m": _SMOLLM2_135M,
    "smollm2-135m-instruct": _SMOLLM2_135M,
    "tiny": LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
    ),
    "tiny-tied": LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    ),
}


class Llama(nnx.Module):
    r"""A Llama-architecture language model.

    .. math::
      h_0 = E[t], \quad
      h' = h + \text{Attention}(\text{RMSNorm}(h)), \quad
      h_{l+1} = h' + W_d (\operatorname{SiLU}(W_g n) \odot W_u n), \;
      n = \text{RMSNorm}(h'), \quad
      \text{logits} = W \, \text{RMSNorm}(h_L)

    Args:
      config: its sizes.
      dtype: of the arithmetic; norms, attention's softmax and logits are float32 in any case.
      rngs: source of the initial parameters, which are float32: normal, standard deviation 0.02.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from benchmarks.llm.llama import PRESETS, Llama
      >>> model = Llama(PRESETS["tiny"], rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((1, 5), jnp.int32)).shape
      (1, 5, 256)

    References:
      Touvron et al., arXiv:2302.13971; Ainslie et al., arXiv:2305.13245 (grouped queries).
    """

    def __init__(self, config: LlamaConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=dtype,
            embedding_init=_sharded("model", None),
            rngs=rngs,
        )
        self.blocks = nnx.List(
            [_Block(config, dtype, rngs) for _ in range(config.num_hidden_layers)]
        )
        self.norm = _norm(config, dtype, rngs)
        self.head = (
            None
            if config.tie_word_embeddings
            else _linear(config.hidden_size, config.vocab_size, (None, "model"), dtype, rngs)
        )

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        segments: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length vocabulary"]:
        """Return the logits of each next token, in float32.

        Blocks are computed again in the backward pass, so that one holds its input alone.

        Args:
          tokens: token ids.
          segments: several texts in one row are told apart by these numbers, and do not see each
            other; `None`: each row is one text.
        """
        batch, length = tokens.shape
        index = jnp.arange(length)
        causal = index[:, None] >= index
        mask = causal[None]
        if segments is not None:
            mask = causal & (segments[:, :, None] == segments[:, None, :])
        # Rotary attention sees differences of positions alone: texts need not count from 0.
        rotation = self._rotation(jnp.broadcast_to(index, (batch, length)))

        @jax.checkpoint
        def run(block: _Block, x: Float[Array, "batch length hidden"]):
            return block(x, rotation, mask)[0]

        x = self.embedding(tokens)
        for block in self.blocks:
            x = run(block, x)
        return self._logits(x)

    def new_cache(self, batch: int, slots: int) -> Cache:
        """Return an empty cache for this many texts of at most `slots` tokens."""
        config = self.config
        shape = (batch, slots, config.num_key_value_heads, config.head_dim)
        empty = jnp.zeros(shape, self.embedding.dtype)
        return [(empty, empty) for _ in range(config.num_hidden_layers)]

    def decode(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        cache: Cache,
    ) -> tuple[Float[Array, "batch length vocabulary"], Cache]:
        """Read tokens at these positions, with what the cache holds at earlier ones.

        A token is written to the slot of its position and sees the slots up to it. What stands in
        later slots, padding say, is never seen: it is overwritten first.
        """
        slots = cache[0][0].shape[1]
        mask = jnp.arange(slots) <= positions[:, :, None]
        rotation = self._rotation(positions)
        x, filled = self.embedding(tokens), []
        for block, kept in zip(self.blocks, cache, strict=True):
            x, kept = block(x, rotation, mask, (positions, kept))
            filled.append(kept)
        return self._logits(x), filled

    def _rotation(
        self, positions: Int[Array, "batch length"]
    ) -> Float[Array, "2 batch length 1 half"]:
        """Cosine and sine of the rotary angles, in float32."""
        config = self.config
        exponents = np.arange(0, config.head_dim, 2) / config.head_dim
        frequencies = config.rope_theta**-exponents / np.array(config.rope_divisors or 1.0)
        angles = positions[..., None, None] * jnp.asarray(frequencies, jnp.float32)
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)])

    def _logits(self, x: Float[Array, "batch length hidden"]) -> Float[Array, "batch length vocab"]:
        x = self.norm(x)
        logits = self.embedding.attend(x) if self.head is None else self.head(x)
        return logits.astype(jnp.float32)


class _Block(nnx.Module):
    """Attention and a SwiGLU, each behind an RMSNorm and a residual."""

    def __init__(self, config: LlamaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width, d = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * d, config.num_key_value_heads * d
        linear = partial(_linear, dtype=dtype, rngs=rngs)
        self.d = d
        self.attention_norm = _norm(config, dtype, rngs)
        self.query = linear(width, queries, (None, "model"))
        self.key = linear(width, keys, (None, "model"))
        self.value = linear(width, keys, (None, "model"))
        self.out = linear(queries, width, ("model", None))
        self.mlp_norm = _norm(config, dtype, rngs)
        self.gate = linear(width, config.intermediate_size, (None, "model"))
        self.up = linear(width, config.intermediate_size, (None, "model"))
        self.down = linear(config.intermediate_size, width, ("model", None))

    def __call__(
        self,
        x: Float[Array, "batch length hidden"],
        rotation: Float[Array, "2 batch length 1 half"],
        mask: Bool[Array, "#batch length slots"],
        written: tuple[Int[Array, "batch length"], tuple[Array, Array]] | None = None,
    ) -> tuple[Float[Array, "batch length hidden"], tuple[Array, Array]]:
        n = self.attention_norm(x)
        q, k, v = (
            projection(n).reshape(*n.shape[:-1], -1, self.d)
            for projection in (self.query, self.key, self.value)
        )
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        if written is not None:
            positions, (keys, values) = written
            rows = jnp.arange(len(x))[:, None]
            k, v = keys.at[rows, positions].set(k), values.at[rows, positions].set(v)
        kept = k, v
        if q.dtype == jnp.float16:  # its scores overflow, and XLA on CPU cannot sum them in float32
            q, k, v = (array.astype(jnp.float32) for array in (q, k, v))
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        x = x + self.out(attended.reshape(*n.shape[:-1], -1))
        n = self.mlp_norm(x)
        return x + self.down(nnx.silu(self.gate(n)) * self.up(n)), kept


def _rotate(
    x: Float[Array, "batch length heads d"], rotation: Float[Array, "2 batch length 1 half"]
) -> Float[Array, "batch length heads d"]:
    """Rotate the pairs of coordinates i and i + d/2, as Hugging Face's weights are laid out."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _sharded(*axes: str | None) -> nnx.Initializer:
    """Draw parameters that say over which mesh axes they are split."""
    return nnx.with_partitioning(nnx.initializers.normal(0.02), axes, eager_sharding=False)


def _linear(
    inputs: int, outputs: int, axes: tuple[str | None, ...], dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Linear:
    return nnx.Linear(
        inputs, outputs, use_bias=False, dtype=dtype, kernel_init=_sharded(*axes), rngs=rngs
    )


def _norm(config: LlamaConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, dtype=dtype, rngs=rngs)


def abstract_model(config: LlamaConfig, dtype: DTypeLike) -> tuple[nnx.GraphDef, PyTree]:
    """Return structure and parameters of a model, the latter as shapes only."""
    return nnx.split(nnx.eval_shape(lambda: Llama(config, dtype=dtype, rngs=nnx.Rngs(0))))
