"""Pretrained weights from disk: a Hugging Face folder, a GGUF file, a llama2.c folder.

Each reader returns the configuration and the tensors by their Hugging Face names, in the layout of
`torch.nn.Linear` (outputs first); `load_parameters` checks every name and shape.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike, PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import LlamaConfig as HuggingFaceConfig

from benchmarks.llm.llama import Llama, LlamaConfig, abstract_model


class CheckpointError(ValueError):
    """A checkpoint that cannot be read as what it claims to be."""


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Name the file, or the tensor, at which reading fails, whatever the libraries raise."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: truncated or corrupt ({error!r}).") from error


@dataclass(frozen=True)
class Checkpoint:
    """What a reader found.

    Attributes:
      config: sizes of the model.
      shapes: shape of each tensor, by its Hugging Face name.
      read: from such a name to the tensor.
      note: what a reader of results must know of the weights, or "".
      log: what a user may want to know of how it was read, in sentences.
    """

    config: LlamaConfig
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    note: str = ""
    log: tuple[str, ...] = ()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a Hugging Face folder, a GGUF file, or a folder of llama2.c.

    Raises:
      CheckpointError: if it is none of these, or is truncated, corrupt or of another architecture;
        the message names the file.
    """
    if path.is_file() and path.suffix == ".gguf":
        with reading(path):
            return _open_gguf(path)
    if (path / "config.json").is_file():
        with reading(path):
            return _open_huggingface(path)
    if weights := sorted(path.glob("*.bin")):
        llama2c = [file for file in weights if not file.name.startswith("tok")]
        if len(llama2c) == 1:
            with reading(llama2c[0]):
                return _open_llama2c(llama2c[0])
    if not path.exists():
        raise CheckpointError(
            f"{path} is not here. A model is a folder or a file on this machine; one of a hub must "
            "be downloaded first: nothing is fetched."
        )
    raise CheckpointError(
        f"{path}: expected a Hugging Face folder (config.json, *.safetensors), a .gguf file, or a "
        "folder of llama2.c (one model .bin beside tok*.bin)."
    )


Place = Callable[[np.ndarray, tuple[str | None, ...]], jax.Array]


def load_model(checkpoint: Checkpoint, *, dtype: DTypeLike = jnp.float32) -> Llama:
    """Build the model on the default device, with arithmetic of this dtype.

    Raises:
      CheckpointError: as `load_parameters`.
    """
    graph, _ = abstract_model(checkpoint.config, dtype)
    return nnx.merge(graph, load_parameters(checkpoint))


def load_parameters(checkpoint: Checkpoint, place: Place | None = None) -> PyTree:
    """Read the parameters, tensor by tensor, as float32.

    Args:
      checkpoint: where the tensors are read.
      place: puts an array where its parameter belongs, given the mesh axes that it is split over;
        by default onto the default device.

    Raises:
      CheckpointError: if tensors are missing, left over or of another shape, all listed; or if one
        is not finite.
    """
    leaves = check_tensors(checkpoint)

    def read(name: str, variable: nnx.Variable) -> nnx.Variable:
        with reading(name):
            array = checkpoint.read(name).astype(np.float32)
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} has entries that are not finite.")
        axes = variable.get_metadata().get("out_sharding") or (None,) * array.ndim
        if _is_kernel(name):
            array = np.ascontiguousarray(array.T)
        return variable.replace(place(array, axes) if place else jnp.asarray(array))

    return nnx.from_flat_state(
        {path: read(name, variable) for name, (path, variable) in leaves.items()}
    )


def save_model(folder: Path, model: Llama, source: Path) -> None:
    """Write `config.json` and `model.safetensors`, as transformers reads them, in float32.

    Beside them come the tokenizer and the other small files of the checkpoint that the model was
    loaded from, where that was a Hugging Face folder.

    Raises:
      ValueError: if the model comes from elsewhere and its rotary frequencies are stretched
        (`LlamaConfig.to_huggingface`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (source / "config.json").is_file():
        for file in [*source.glob("*.json"), *source.glob("*.jinja")]:
            if not file.name.endswith(".index.json") and file.name != "adapter_config.json":
                shutil.copyfile(file, folder / file.name)
    else:
        config = model.config.to_huggingface()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tensors(folder / "model.safetensors", model)


def write_tensors(file: Path, model: Llama) -> None:
    """Write the parameters as safetensors, by their Hugging Face names."""
    tensors = {}
    for name, (_, variable) in _parameters(nnx.state(model)).items():
        array = np.asarray(jax.device_get(variable[...]))
        tensors[name] = np.ascontiguousarray(array.T) if _is_kernel(name) else array
    save_file(tensors, file, metadata={"format": "pt"})


# Of a block, by the names that Llama gives them.
_BLOCK = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_OUTSIDE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def _parameters(state: PyTree) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Return path and variable of each parameter, by its Hugging Face name."""
    named = {}
    for path, variable in nnx.to_flat_state(state):
        if path[0] == "blocks":
            name = f"model.layers.{path[1]}.{_BLOCK[str(path[2])]}.weight"
        else:
            name = f"{_OUTSIDE[str(path[0])]}.weight"
        named[name] = (path, variable)
    return named


def _is_kernel(name: str) -> bool:
    """Flax's kernels have inputs first, torch's weights have outputs first."""
    return name.endswith("_proj.weight") or name == "lm_head.weight"


def check_tensors(checkpoint: Checkpoint) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Return path and abstract variable of each parameter, by its Hugging Face name.

    Raises:
      CheckpointError: if tensors are missing, left over or of another shape, all listed.
    """
    leaves = _parameters(abstract_model(checkpoint.config, jnp.float32)[1])

    def shape(name: str) -> tuple[int, ...]:
        of_flax = leaves[name][1].shape
        return of_flax[::-1] if _is_kernel(name) else of_flax

    found = dict(checkpoint.shapes)
    for name in list(found):
        if name.endswith("rotary_emb.inv_freq"):  # old files hold the frequencies; config rules
            del found[name]
    if checkpoint.config.tie_word_embeddings and "lm_head.weight" in found:
        head, embedding = map(checkpoint.read, ("lm_head.weight", "model.embed_tokens.weight"))
        if not np.array_equal(head, embedding):
            raise CheckpointError(
                "lm_head.weight differs from model.embed_tokens.weight, but "
                "tie_word_embeddings=True says they are one."
            )
        del found["lm_head.weight"]
    wrong = {
        "missing": [name for name in leaves if name not in found],
        "left over": [name for name in found if name not in leaves],
        "of another shape": [
            f"{name} {found[name]}, expected {shape(name)}"
            for name in leaves
            if name in found and found[name] != shape(name)
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise CheckpointError(f"The tensors do not fit the configuration: {listed}.")
    return leaves


def _open_huggingface(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")
    try:
        sizes, log = _with_defaults(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    # Beside one whole file others are left aside: consolidated ones, or an adapter's.
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    every = sorted(folder.glob("*.safetensors"))
    listed: dict[str, str] = {}
    files = every
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        listed = read_json(index).get("weight_map", {})
        files = [folder / name for name in dict.fromkeys(listed.values())]
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise CheckpointError(f"{index}: files that are not there: {', '.join(missing)}.")
    if not files:
        raise CheckpointError(f"{folder}: there are no *.safetensors files.")
    if len(files) > 1 and not listed:
        raise CheckpointError(f"{folder}: several *.safetensors files, but no {index.name}.")
    aside = [file.name for file in every if file not in files]
    if aside:
        log += (f"Left aside, adapters too: {', '.join(aside)}.",)
    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, Path] = {}
    for file in files:
        found = _safetensors_shapes(file)
        shapes |= found
        where |= dict.fromkeys(found, file)
    if listed and listed != {name: file.name for name, file in where.items()}:
        differing = [
            name for name in listed | where if folder / listed.get(name, "") != where.get(name)
        ]
        raise CheckpointError(f"{index}: does not say where to find {', '.join(differing)}.")

    def read(name: str) -> np.ndarray:
        with safe_open(where[name], framework="np") as tensors:
            return tensors.get_tensor(name)

    return Checkpoint(sizes, shapes, read, log=log)


def _with_defaults(config: dict[str, Any]) -> tuple[LlamaConfig, tuple[str, ...]]:
    """Sizes, and what `config.json` leaves to the defaults of transformers."""
    theirs = HuggingFaceConfig().to_dict()
    absent = {x: theirs[x] for x in _WITH_DEFAULTS if config.get(x) is None}
    sizes = LlamaConfig.from_huggingface(config | absent)
    rope = config.get("rope_parameters") or {}
    if config.get("rope_theta") is None and "rope_theta" not in rope:
        absent["rope_theta"] = sizes.rope_theta
    listed = ", ".join(f"{name}={value}" for name, value in absent.items())
    return sizes, (f"config.json leaves to defaults: {listed}.",) if absent else ()


_WITH_DEFAULTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
)
# What NumPy has, and with it float32 holds.
_DTYPES = ("F64", "F32", "F16", "BF16")


def _safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    try:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                tensor = tensors.get_slice(name)
                if tensor.get_dtype() not in _DTYPES:
                    raise CheckpointError(
                        f"{file}: {name} is {tensor.get_dtype()}; allowed is "
                        f"{', '.join(_DTYPES)}: weights, not a quantised form of them."
                    )
                found[name] = tuple(tensor.get_shape())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: truncated or corrupt ({error}).") from error
    return found


def read_json(file: Path) -> dict[str, Any]:
    """Read an object from a JSON file, or raise a `CheckpointError` that names it."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object.")
    return content


_GGUF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def read_gguf(file: Path) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    """Open a GGUF file; return its reader and its metadata.

    Raises:
      CheckpointError: if it is truncated or corrupt.
    """
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: truncated or corrupt ({error}).") from error
    return reader, fields


def gguf_files(file: Path) -> list[Path]:
    """Return all files of a model of which one is given; the first has the metadata.

    Raises:
      CheckpointError: if one of them is not there.
    """
    found = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", file.stem)
    if not found:
        return [file]
    stem, count = found[1], int(found[2])
    files = [file.with_name(f"{stem}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    missing = [x.name for x in files if not x.is_file()]
    if missing:
        raise CheckpointError(f"{file} is one of {count} files; not there: {', '.join(missing)}.")
    return files


def _open_gguf(file: Path) -> Checkpoint:
    files = gguf_files(file)
    reader, fields = read_gguf(files[0])
    count = fields.get("split.count", 1)
    if count not in (0, 1, len(files)):
        raise CheckpointError(
            f"{file} is one of {count} files, which must be named …-00001-of-{count:05}.gguf."
        )
    if fields.get("general.architecture") != "llama":
        raise CheckpointError(
            f"{file}: general.architecture={fields.get('general.architecture')!r}; "
            "allowed is 'llama'."
        )
    tensors = {}
    for opened in (reader, *(read_gguf(x)[0] for x in files[1:])):
        for tensor in opened.tensors:
            tensors[_name_in_huggingface(tensor.name)] = tensor
    divisors = tensors.pop("rope_freqs.weight", None)
    kind = fields.get("llama.rope.scaling.type", "none")
    if kind != "none":
        raise CheckpointError(f"{file}: llama.rope.scaling.type={kind!r}; allowed is 'none'.")
    try:
        heads = fields["llama.attention.head_count"]
        kv_heads = fields.get("llama.attention.head_count_kv", heads)
        width = fields["llama.embedding_length"]
        config = LlamaConfig(
            vocab_size=len(fields["tokenizer.ggml.tokens"]),
            hidden_size=width,
            intermediate_size=fields["llama.feed_forward_length"],
            num_hidden_layers=fields["llama.block_count"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=fields.get("llama.attention.key_length", width // heads),
            max_position_embeddings=fields["llama.context_length"],
            rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
            rope_theta=fields.get("llama.rope.freq_base", 10_000.0),
            rope_divisors=None if divisors is None else tuple(divisors.data.tolist()),
            tie_word_embeddings="lm_head.weight" not in tensors,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    if fields.get("llama.rope.dimension_count", config.head_dim) != config.head_dim:
        raise CheckpointError(
            f"{file}: llama.rope.dimension_count={fields['llama.rope.dimension_count']}; allowed "
            f"is the width of a head, {config.head_dim}."
        )

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return _rotary_layout(name, weights, config)

    types = gguf.GGMLQuantizationType
    full = {types.F32, types.F16, types.BF16}
    kinds = {tensor.tensor_type for tensor in tensors.values()} - full
    return Checkpoint(
        config,
        {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in tensors.items()},
        read,
        f"dequantised from {', '.join(sorted(kind.name for kind in kinds))}" if kinds else "",
    )


def _name_in_huggingface(name: str) -> str:
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _GGUF_BLOCK and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{_GGUF_BLOCK[parts[2]]}.weight"
    return _GGUF_OUTSIDE.get(name, name)


def _rotary_layout(name: str, weights: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Bring q and k from rotary pairs (2i, 2i+1) to Hugging Face's (i, i + d/2)."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weights
    pairs = weights.reshape(-1, config.head_dim // 2, 2, weights.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _open_llama2c(file: Path) -> Checkpoint:
    """Read the legacy format: seven integers, then float32 tensors, layer by layer of each kind."""
    raw = np.fromfile(file, np.uint8)
    header = raw[:28].view(np.int32) if len(raw) >= 28 else np.zeros(7, np.int32)
    width, hidden, layers, heads, kv_heads, vocabulary, length = map(int, header)
    if min(width, hidden, layers, heads, kv_heads, length) < 1 or width % max(heads, 1):
        raise CheckpointError(f"{file}: truncated or corrupt (header {header.tolist()}).")
    d = width // heads
    config = LlamaConfig(
        vocab_size=abs(vocabulary),
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=d,
        max_position_embeddings=length,
        tie_word_embeddings=vocabulary > 0,  # the sign says it
    )
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    kinds = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_heads * d, width),
        "self_attn.v_proj": (kv_heads * d, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "mlp.up_proj": (hidden, width),
    }
    for kind, shape in kinds.items():
        shapes |= {f"model.layers.{layer}.{kind}.weight": shape for layer in range(layers)}
    shapes["model.norm.weight"] = (width,)
    shapes["rotary table"] = (length * d,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    if len(raw) != 28 + 4 * sum(sizes):
        raise CheckpointError(
            f"{file}: truncated or corrupt ({len(raw)} bytes, expected {28 + 4 * sum(sizes)})."
        )
    pieces = np.split(raw[28:].view(np.float32), np.cumsum(sizes)[:-1])
    flat = dict(zip(shapes, pieces, strict=True))
    del shapes["rotary table"]
    return Checkpoint(
        config, shapes, lambda name: _rotary_layout(name, flat[name].reshape(shapes[name]), config)
    )
