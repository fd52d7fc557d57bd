"""The Flax Llama against the equations in NumPy, in float64, and by what must not matter."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.llm.checkpoints import load_model, open_checkpoint
from benchmarks.llm.llama import PRESETS, Llama, LlamaConfig, llama3_rope_divisors
from benchmarks.llm.text import open_text
from benchmarks.llm.training import greedy


def rms_norm(x, scale, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def rotate(x, position, config):
    """The rotation of each pair (i, i + d/2), written with complex numbers."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-np.arange(half) / half)
    if config.rope_divisors is not None:
        frequencies = frequencies / np.array(config.rope_divisors)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequencies)
    return np.concatenate([turned.real, turned.imag])


def reference(checkpoint, tokens):
    """Logits of one text, token by token and head by head."""
    config = checkpoint.config

    def weight(name):
        return checkpoint.read(f"{name}.weight").astype(np.float64)

    d, eps = config.head_dim, config.rms_norm_eps
    group = config.num_attention_heads // config.num_key_value_heads
    x = weight("model.embed_tokens")[tokens]
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}"
        n = rms_norm(x, weight(f"{block}.input_layernorm"), eps)
        q, k, v = (n @ weight(f"{block}.self_attn.{name}_proj").T for name in "qkv")
        heads = []
        for head in range(config.num_attention_heads):
            mine, shared = slice(head * d, (head + 1) * d), head // group
            theirs = slice(shared * d, (shared + 1) * d)
            queries = [rotate(q[t, mine], t, config) for t in range(len(tokens))]
            keys = [rotate(k[t, theirs], t, config) for t in range(len(tokens))]
            rows = []
            for t in range(len(tokens)):
                scores = np.array([queries[t] @ keys[u] for u in range(t + 1)]) / np.sqrt(d)
                weights = np.exp(scores - scores.max())
                rows.append(weights / weights.sum() @ v[: t + 1, theirs])
            heads.append(np.array(rows))
        x = x + np.concatenate(heads, axis=1) @ weight(f"{block}.self_attn.o_proj").T
        n = rms_norm(x, weight(f"{block}.post_attention_layernorm"), eps)
        gate, up = (n @ weight(f"{block}.mlp.{name}_proj").T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weight(f"{block}.mlp.down_proj").T
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    return rms_norm(x, weight("model.norm"), eps) @ weight(head).T


@pytest.mark.parametrize("stretched", [False, True])
def test_logits_are_those_of_the_equations(tiny, stretched):
    checkpoint = open_checkpoint(tiny)
    if stretched:
        divisors = llama3_rope_divisors(
            8,
            1e4,
            factor=8,
            low_freq_factor=1,
            high_freq_factor=4,
            original_max_position_embeddings=64,
        )
        assert 1 < divisors[1] < 8  # one of the blended ones
        config = dataclasses.replace(checkpoint.config, rope_divisors=divisors)
        checkpoint = dataclasses.replace(checkpoint, config=config)
    tokens = np.random.default_rng(0).integers(256, size=24)
    logits = jax.jit(load_model(checkpoint))(jnp.asarray(tokens)[None])[0]
    expected = reference(checkpoint, tokens)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_a_pretrained_model_has_the_logits_of_the_equations_and_tells_a_story(stories):
    checkpoint = open_checkpoint(stories)
    model, text = load_model(checkpoint), open_text(stories, checkpoint.config)
    begin = [
        text.tokenizer.bos_token_id,
        *text.tokenizer.encode("Once upon a time", add_special_tokens=False),
    ]
    tokens = np.array(begin)
    expected = reference(checkpoint, tokens)
    logits = jax.jit(model)(jnp.asarray(tokens)[None])[0]
    np.testing.assert_allclose(logits, expected, atol=1e-4)

    graph, params = nnx.split(model)
    prompt, length = jnp.array([begin]), jnp.array([len(begin)])
    said = greedy(graph, params, prompt, length, new_tokens=24, stop=[])
    # As transformers continues it: `make test-transformers`.
    assert text.decode(said[0].tolist()).startswith(", there was a little girl named Lily.")


def test_llama3_frequencies_are_those_of_metas_code():
    theta, d, n, factor, low, high = 5e5, 64, 8192, 32.0, 1.0, 4.0
    expected = []
    for i in range(d // 2):
        frequency = theta ** (-2 * i / d)
        wavelength = 2 * np.pi / frequency
        if wavelength < n / high:
            expected.append(frequency)
        elif wavelength > n / low:
            expected.append(frequency / factor)
        else:
            smooth = (n / wavelength - low) / (high - low)
            expected.append((1 - smooth) * frequency / factor + smooth * frequency)
    divisors = np.array(PRESETS["llama-3.2-1b"].rope_divisors)
    np.testing.assert_allclose(theta ** (-np.arange(32) / 32) / divisors, expected, rtol=1e-12)
    assert len(set(divisors)) > 3


def test_packed_texts_do_not_see_each_other(tiny):
    model = load_model(open_checkpoint(tiny))
    rng = np.random.default_rng(2)
    first, second = (jnp.asarray(rng.integers(256, size=(1, n))) for n in (5, 7))
    packed = jax.jit(model)(
        jnp.concatenate([first, second, jnp.zeros((1, 4), int)], axis=1),
        jnp.array([[1] * 5 + [2] * 7 + [0] * 4]),
    )
    np.testing.assert_allclose(packed[:, :5], jax.jit(model)(first), atol=1e-5)
    np.testing.assert_allclose(packed[:, 5:12], jax.jit(model)(second), atol=1e-5)


def test_decoding_with_a_cache_is_reading_the_whole_text(tiny):
    model = load_model(open_checkpoint(tiny))
    decode = jax.jit(model.decode)
    tokens = jnp.asarray(np.random.default_rng(3).integers(256, size=(2, 9)))
    lengths = np.array([4, 6])  # what is padding at first is overwritten
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    logits, cache = decode(tokens[:, :6], positions, model.new_cache(2, 9))
    whole = jax.jit(model)(tokens)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], whole[row, :length], atol=1e-5)
    for step in range(3):
        at = jnp.asarray(lengths + step)[:, None]
        logits, cache = decode(jnp.take_along_axis(tokens, at, axis=1), at, cache)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(logits[row, 0], whole[row, length + step], atol=1e-5)


def test_greedy_decoding_takes_the_likeliest_and_stops(tiny):
    graph, params = nnx.split(load_model(open_checkpoint(tiny)))
    model = nnx.merge(graph, params)
    prompts = np.array([[5, 6, 7, 0], [9, 8, 7, 6]])
    lengths = np.array([3, 4])

    @jax.jit
    def following(ids):
        return model(ids)[0].argmax(axis=-1)

    def plain(ids, stop):
        said = []
        while len(said) < 6:
            text = ids + said
            padded = jnp.array([text + [0] * (10 - len(text))])
            said.append(int(following(padded)[len(text) - 1]))
            if said[-1] in stop:
                break
        return said + [0] * (6 - len(said))

    free = plain([5, 6, 7], [])
    for stop in ([], [free[2]]):
        expected = [plain([5, 6, 7], stop), plain([9, 8, 7, 6], stop)]
        arrays = jnp.asarray(prompts), jnp.asarray(lengths)
        said = jax.jit(partial(greedy, graph, new_tokens=6, stop=stop))(params, *arrays)
        np.testing.assert_array_equal(said, expected)


def test_narrow_arithmetic_keeps_parameters_and_logits_in_float32(tiny):
    checkpoint = open_checkpoint(tiny)
    tokens = jnp.arange(12)[None]
    exact = jax.jit(load_model(checkpoint))(tokens)
    for dtype in (jnp.bfloat16, jnp.float16):
        model = load_model(checkpoint, dtype=dtype)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model)))
        logits = jax.jit(model)(tokens)
        assert logits.dtype == jnp.float32
        assert 1e-4 < np.abs(logits - exact).max() < 0.1 * np.ptp(exact)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"vocab_size": 2.5}, "vocab_size=2.5"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0"),
        ({"rope_divisors": (1.0,)}, "rope_divisors has 1"),
    ],
)
def test_impossible_sizes_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(PRESETS["tiny"], **change)


def test_presets_are_the_published_models():
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    }
    assert LlamaConfig.from_huggingface(config) == PRESETS["llama-3.2-1b-instruct"]
    newer = dict(config)
    newer["rope_parameters"] = {**newer.pop("rope_scaling"), "rope_theta": newer.pop("rope_theta")}
    assert LlamaConfig.from_huggingface(newer) == PRESETS["llama-3.2-1b-instruct"]
    sizes = {"llama-3.2-1b": 1_235_814_400, "smollm2-135m": 134_515_008}
    for name, size in sizes.items():
        model = nnx.eval_shape(lambda name=name: Llama(PRESETS[name], rngs=nnx.Rngs(0)))
        assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model))) == size
