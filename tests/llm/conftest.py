"""A tiny model and tiny problems on disk, and where the real ones lie."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.llm.checkpoints import save_model
from benchmarks.llm.llama import PRESETS, Llama

collect_ignore = ["transformers_logits.py"]  # for an environment of its own
STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260k"
SPECIAL = ("<|bos|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message.role + '|>' + message.content + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="session")
def stories():
    if not STORIES.is_dir():
        pytest.skip("shared/data/stories260k is not here")
    return STORIES


def _write_tokenizer(folder, special=SPECIAL, eos="<|end|>"):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: 256 - len(SPECIAL)]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|bos|>", "eos_token": eos, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = tokenizer.token_to_id("<|end|>")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A Hugging Face folder with random weights, large enough that logits differ clearly."""
    folder = tmp_path_factory.mktemp("tiny")
    model = Llama(PRESETS["tiny"], rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        noise = rng.normal(size=variable.shape, scale=0.2).astype(np.float32)
        variable[...] = variable[...] + noise
    save_model(folder, model, folder / "nowhere")
    _write_tokenizer(folder)
    return folder


@pytest.fixture
def write_tokenizer():
    return _write_tokenizer


@pytest.fixture(scope="session")
def problems(tmp_path_factory):
    """train.jsonl and test.jsonl with sums."""
    folder = tmp_path_factory.mktemp("gsm8k")
    rng = np.random.default_rng(1)
    for name, count in (("train", 12), ("test", 5)):
        lines = []
        for _ in range(count):
            a, b = rng.integers(1, 100, 2)
            lines.append(
                json.dumps({"question": f"{a} and {b}?", "answer": f"{a}+{b}\n#### {a + b}"})
            )
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
