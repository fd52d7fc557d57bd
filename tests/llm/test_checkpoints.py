"""Checkpoints: written by other means than ours, read to the same parameters; refused if broken."""

import dataclasses
import json
import shutil
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from benchmarks.llm.checkpoints import (
    CheckpointError,
    load_model,
    load_parameters,
    open_checkpoint,
    save_model,
)
from benchmarks.llm.llama import PRESETS, Llama


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def assert_same(params, expected, **tolerance):
    compare = lambda a, b: np.testing.assert_allclose(a, b, **tolerance)  # noqa: E731
    jax.tree.map(compare, params, expected)


@pytest.fixture
def copy(tiny, tmp_path):
    """The tiny model's folder, to be broken."""
    return shutil.copytree(tiny, tmp_path / "copy")


def test_a_model_saved_and_loaded_is_the_same(tiny, tmp_path):
    model = load_model(open_checkpoint(tiny))
    save_model(tmp_path / "again", model, tiny)
    assert_same(nnx.state(load_model(open_checkpoint(tmp_path / "again"))), nnx.state(model))
    assert (tmp_path / "again" / "tokenizer.json").is_file()
    kernel = tensors_of(tiny)["model.layers.1.mlp.gate_proj.weight"]
    assert kernel.shape == (64, 32)  # outputs first, as torch has it
    np.testing.assert_array_equal(model.blocks[1].gate.kernel[...], kernel.T)


def test_shards_and_bfloat16_are_read(tiny, copy):
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors_of(tiny).items()}
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002.safetensors": names[9:]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, copy / file)
    where = {name: file for file, members in parts.items() for name in members}
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    params = load_parameters(open_checkpoint(copy))
    assert_same(params, load_parameters(open_checkpoint(tiny)), rtol=1 / 256)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))

    elsewhere = where | {names[3]: "model-00002.safetensors"}
    nowhere = {name: file for name, file in where.items() if name != names[3]}
    for wrong in (elsewhere, nowhere, where | {names[3] + "s": where[names[3]]}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(CheckpointError, match=rf"index\.json: .* find {names[3]}"):
            open_checkpoint(copy)
    for wrong in (["a"], {"a": 3}, {"a": ["b"]}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(CheckpointError, match="copy"):
            open_checkpoint(copy)
    index.write_text(json.dumps({"weight_map": where}))
    (copy / "model-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not there: model-00002\.safetensors"):
        open_checkpoint(copy)


def test_what_is_missing_left_over_or_of_another_shape_is_listed(copy):
    tensors = tensors_of(copy)
    norm = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.gate_proj.bias"] = norm
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((8, 32), np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = norm  # old files have it
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_parameters(open_checkpoint(copy))
    message = str(error.value)
    assert "missing: model.norm.weight;" in message
    assert "left over: model.layers.0.mlp.gate_proj.bias;" in message
    shapes = "model.layers.0.self_attn.q_proj.weight (8, 32), expected (32, 32)"
    assert f"of another shape: {shapes}." in message
    assert "inv_freq" not in message


def test_a_head_beside_a_tied_embedding_must_be_that_embedding(tmp_path):
    model = Llama(PRESETS["tiny-tied"], rngs=nnx.Rngs(1))
    save_model(tmp_path, model, tmp_path / "nowhere")
    tensors = tensors_of(tmp_path)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(load_parameters(open_checkpoint(tmp_path)), nnx.state(model))
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        load_parameters(open_checkpoint(tmp_path))


def test_a_weight_that_is_not_finite_is_refused(copy):
    tensors = tensors_of(copy)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight .* not finite"):
        load_parameters(open_checkpoint(copy))


@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_truncated_safetensors_are_refused(copy, keep):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or corrupt"):
        open_checkpoint(copy)


def test_what_a_config_leaves_out_is_as_in_transformers_and_said(copy):
    file = copy / "config.json"
    whole = json.loads(file.read_text())
    assert open_checkpoint(copy).log == ()
    for name in sorted(set(whole) - {"model_type", "architectures", "eos_token_id"}):
        left = {key: value for key, value in whole.items() if key != name}
        file.write_text(json.dumps(left))
        found = open_checkpoint(copy)
        theirs = transformers.LlamaConfig(**left)
        expected = theirs.to_dict()
        expected["rope_theta"] = expected["rope_parameters"]["rope_theta"]
        for field, value in dataclasses.asdict(found.config).items():
            if field != "rope_divisors":
                assert value == expected[field], (name, field)
        if name not in ("head_dim", "num_key_value_heads"):  # which follow from the others
            value = getattr(found.config, name)
            assert found.log == (f"config.json leaves to defaults: {name}={value}.",)


def test_beside_the_whole_model_other_files_are_left_aside_and_said(copy, tiny):
    for name in ("adapter_model.safetensors", "consolidated.safetensors"):
        save_file({"something else": np.zeros(3, np.float32)}, copy / name)
    found = open_checkpoint(copy)
    assert found.log == (
        "Left aside, adapters too: adapter_model.safetensors, consolidated.safetensors.",
    )
    assert_same(load_parameters(found), load_parameters(open_checkpoint(tiny)))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.int8, "I8"), (np.uint8, "U8"), (ml_dtypes.float8_e4m3fn, "F8_E4M3"), (np.int64, "I64")],
)
def test_tensors_that_are_no_weights_are_named_with_their_dtype(copy, dtype, name):
    tensors = tensors_of(copy)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(dtype)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"model\.norm\.weight is {name}; allowed is F64"):
        open_checkpoint(copy)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_weights_of_other_dtypes_are_read(copy, tiny, dtype):
    tensors = {name: x.astype(dtype) for name, x in tensors_of(copy).items()}
    save_file(tensors, copy / "model.safetensors")
    found = load_parameters(open_checkpoint(copy))
    assert_same(found, load_parameters(open_checkpoint(tiny)), rtol=1 / 256)


def test_a_hub_s_name_is_told_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"HuggingFaceTB/SmolLM2 is not here.*downloaded"):
        open_checkpoint(Path("HuggingFaceTB/SmolLM2"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'; allowed is 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_type='yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "misses low_freq_factor"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_type=None"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear'"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 0,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 64,
                }
            },
            "factor=0 must be positive",
        ),
        ({"num_attention_heads": 0, "head_dim": None}, "copy"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"vocab_size": "many"}, "vocab_size='many'"),
    ],
)
def test_another_architecture_is_refused(copy, change, words):
    file = copy / "config.json"
    config = json.loads(file.read_text()) | change
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(copy)
    assert words in str(error.value)
    assert str(copy) in str(error.value)


def test_what_is_no_checkpoint_is_refused(tmp_path, copy):
    with pytest.raises(CheckpointError, match="expected a Hugging Face folder"):
        open_checkpoint(tmp_path)
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        open_checkpoint(copy)


# GGUF


def interleaved(weights, heads):
    """As llama.cpp's converter permutes q and k: rows i and i + d/2 of a head become neighbours."""
    d = len(weights) // heads
    rows = [
        head * d + half * (d // 2) + i
        for head in range(heads)
        for i in range(d // 2)
        for half in (0, 1)
    ]
    return weights[rows]


def write_gguf(file, tiny, *, kind=gguf.GGMLQuantizationType.F32, divisors=None, **changes):
    config = open_checkpoint(tiny).config
    most = changes.get("split_max_tensors", 0)
    writer = gguf.GGUFWriter(file, changes.get("architecture", "llama"), split_max_tensors=most)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(changes.get("rope_dimension", config.head_dim))
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weights in tensors_of(tiny).items():
        short = name.removesuffix(".weight")
        for projection, count in heads.items():
            if short.endswith(projection):
                weights = interleaved(weights, count)
        if short.startswith("model.layers."):
            _, _, layer, rest = short.split(".", 3)
            short = f"blk.{layer}.{names[rest]}"
        else:
            short = names[short]
        quantise = weights.ndim == 2 and kind != gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(weights, kind) if quantise else weights
        writer.add_tensor(f"{short}.weight", data, raw_dtype=kind if quantise else None)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_gguf_holds_the_same_model(tiny, tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tiny))
    expected = open_checkpoint(tiny)
    assert checkpoint.note == ""
    config = dataclasses.replace(checkpoint.config, rms_norm_eps=1e-5)  # GGUF has it in float32
    assert config == expected.config
    assert checkpoint.config.rms_norm_eps == pytest.approx(1e-5)
    assert_same(load_parameters(checkpoint), load_parameters(expected))


def test_quantised_gguf_is_dequantised_and_says_so(tiny, tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tiny, kind=kind))
    assert checkpoint.note == "dequantised from Q8_0"
    expected = load_parameters(open_checkpoint(tiny))
    assert_same(load_parameters(checkpoint), expected, atol=0.01)
    with pytest.raises(AssertionError):
        assert_same(load_parameters(checkpoint), expected, atol=1e-6)


def test_gguf_in_several_files_is_one_model(tiny, tmp_path):
    write_gguf(tmp_path / "model.gguf", tiny, split_max_tensors=8)
    files = sorted(tmp_path.glob("*.gguf"))
    assert [x.name for x in files] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    expected = load_parameters(open_checkpoint(tiny))
    for file in files:
        assert_same(load_parameters(open_checkpoint(file)), expected)
    files[2].rename(tmp_path / "third.gguf")
    with pytest.raises(CheckpointError, match=r"one of 3 files; not there: model-00003-of-00003"):
        open_checkpoint(files[0])
    with pytest.raises(CheckpointError, match=r"third.gguf is one of 3 files, which must be named"):
        open_checkpoint(tmp_path / "third.gguf")


def test_gguf_brings_the_divisors_of_stretched_frequencies(tiny, tmp_path):
    file = write_gguf(tmp_path / "model.gguf", tiny, divisors=[1.0, 1.5, 4.0, 8.0])
    assert open_checkpoint(file).config.rope_divisors == (1.0, 1.5, 4.0, 8.0)


@pytest.mark.parametrize("keep", [0, 3, 40, 4000, -100])
def test_truncated_gguf_is_refused(tiny, tmp_path, keep):
    file = write_gguf(tmp_path / "model.gguf", tiny)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.gguf: truncated or corrupt"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "qwen2"}, "general.architecture='qwen2'"),
        ({"rope_dimension": 4}, "llama.rope.dimension_count=4"),
    ],
)
def test_gguf_of_another_architecture_is_refused(tiny, tmp_path, change, words):
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(write_gguf(tmp_path / "model.gguf", tiny, **change))
    assert words in str(error.value)


# llama2.c


@pytest.mark.parametrize("keep", [10, 5000, -4])
def test_truncated_llama2c_is_refused(stories, tmp_path, keep):
    for file in stories.glob("*.bin"):
        shutil.copy(file, tmp_path)
    file = tmp_path / "stories260K.bin"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"stories260K\.bin: truncated or corrupt"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("layers", "width", "mlp", "heads", "kv_heads", "shards"),
    [(1, 2048, 8192, 32, 8, 1), (16, 128, 256, 2, 1, 3)],
)
def test_llama_32_1b_is_read_by_the_names_and_shapes_of_its_files(
    tmp_path, layers, width, mlp, heads, kv_heads, shards
):
    """As published, but one layer of full width, or all 16 narrow ones; and 512 tokens."""
    d = 64
    shapes = {"model.embed_tokens.weight": (512, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.input_layernorm.weight": (width,),
            f"{block}.mlp.down_proj.weight": (width, mlp),
            f"{block}.mlp.gate_proj.weight": (mlp, width),
            f"{block}.mlp.up_proj.weight": (mlp, width),
            f"{block}.post_attention_layernorm.weight": (width,),
            f"{block}.self_attn.k_proj.weight": (kv_heads * d, width),
            f"{block}.self_attn.o_proj.weight": (width, heads * d),
            f"{block}.self_attn.q_proj.weight": (heads * d, width),
            f"{block}.self_attn.v_proj.weight": (kv_heads * d, width),
        }
    rng = np.random.default_rng(0)
    where = {}
    for part in range(shards):
        file = f"model-{part + 1:05}-of-{shards:05}.safetensors"
        names = list(shapes)[part::shards]
        where |= dict.fromkeys(names, file)
        tensors = {
            name: (rng.standard_normal(shapes[name], np.float32) * 0.02).astype(ml_dtypes.bfloat16)
            for name in names
        }
        save_file(tensors, tmp_path / file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    published = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": d,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == dataclasses.replace(
        PRESETS["llama-3.2-1b"],
        vocab_size=512,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    logits = jax.jit(load_model(checkpoint))(np.arange(6)[None])
    assert logits.shape == (1, 6, 512)
    assert np.isfinite(logits).all()
