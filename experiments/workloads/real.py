"""Real tasks that no meta-training sees: CLINC150, tinyshakespeare, and fine-tuning a Llama.

One more, the text of GSM8K's word problems, is there to choose numbers on.

`split` chooses the examples that `validation_loss` reads: tuning looks at "validation", the final
figures come from "test". The training examples are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from benchmarks import datasets
from benchmarks.llm.checkpoints import load_model, open_checkpoint
from benchmarks.llm.gsm8k import read_problems
from benchmarks.llm.text import open_text
from experiments.engine.workload import KeyArray, Scalar, SplitName, Workload
from experiments.workloads import models
from experiments.workloads.classification import classifier

CONTEXT = 64
WINDOWS = 128  # that an evaluation of a language model reads
CHUNK = 32  # of them at a time


def clinc150(
    folder: Path, labels: str, *, width: int = 64, split: SplitName = "validation"
) -> Workload:
    """The paper's transformer, without quantum attention, on requests to an assistant.

    Args:
        folder: Holds `data_full.json` and `domains.json`.
        labels: `"domains"` (10) or `"intents"` (150).
        width: Of the embedding; the feed-forward layer is twice as wide.
        split: What the evaluation reads.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    for name in ("data_full.json", "domains.json"):
        check(folder / name, "CLINC150 (clinc/oos-eval)")
    dataset = datasets.clinc150(folder, labels)
    return classifier(_named(f"clinc-{labels}", width), dataset, width=width, split=split)


def characters(file: Path, *, width: int = 64, split: SplitName = "validation") -> Workload:
    """A small causal transformer that predicts the next character of Shakespeare.

    Args:
        file: The text; its last tenth is validation, then test.
        width: Of the residual stream.
        split: What the evaluation reads.

    Raises:
        FileNotFoundError: If the file is missing.
    """
    check(file, "tinyshakespeare (karpathy/char-rnn)")
    return character_model(_named("characters", width), file.read_text(), width=width, split=split)


def word_problems(file: Path, *, split: SplitName = "validation") -> Workload:
    """The transformer of `characters` on problems of GSM8K and their solutions.

    Args:
        file: A JSON object with `question` and `answer` a line; the last tenth of the text is
            validation, then test.
        split: What the evaluation reads.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If a line of it is no problem.
    """
    check(file, "gsm8k (openai/grade-school-math)")
    text = "\n\n".join(f"{x.question}\n{x.answer}" for x in read_problems(file)[0])
    return character_model("word-problems", text, split=split)


def character_model(
    name: str, text: str, *, width: int = 64, split: SplitName = "validation"
) -> Workload:
    """A small causal transformer that predicts the next character of a text.

    Args:
        name: The task's name.
        text: Its last tenth is validation, then test.
        width: Of the residual stream.
        split: What the evaluation reads.
    """
    known, ids = np.unique(list(text), return_inverse=True)

    def new_model(key: KeyArray) -> tuple[nnx.GraphDef, PyTree]:
        return nnx.split(CharacterModel(len(known), width=width, rngs=nnx.Rngs(params=key)))

    return _language_model(
        name,
        new_model(jax.random.key(0))[0],
        lambda key: new_model(key)[1],
        _passages(ids, split),
        batch_size=16,
    )


def stories(folder: Path, file: Path, *, split: SplitName = "validation") -> Workload:
    """Fine-tune a pretrained Llama of 260 K parameters, which has read children's stories.

    Args:
        folder: The checkpoint and its tokenizer.
        file: The text to tune it to, Shakespeare.
        split: What the evaluation reads.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    check(file, "tinyshakespeare (karpathy/char-rnn)")
    return fine_tuning("stories", folder, file.read_text(), split=split)


def fine_tuning(name: str, folder: Path, text: str, *, split: SplitName = "validation") -> Workload:
    """Tune that Llama to a text.

    Args:
        name: The task's name.
        folder: The checkpoint and its tokenizer.
        text: Its last tenth is validation, then test.
        split: What the evaluation reads.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    for file in ("stories260K.bin", "tok512.bin"):
        check(folder / file, "stories260k (karpathy/tinyllamas)")
    checkpoint = open_checkpoint(folder)
    graph, params = nnx.split(load_model(checkpoint))
    tokenizer = open_text(folder, checkpoint.config).tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    return _language_model(
        name, graph, lambda key: params, _passages(np.asarray(ids), split), batch_size=8
    )


class CharacterModel(nnx.Module):
    """A causal transformer, layer norms first, without dropout.

    Args:
        vocabulary_size: Number of characters.
        width: Of the residual stream; the feed-forward layers are four times as wide.
        layers: Number of blocks.
        heads: Of the attention.
        rngs: Source of the initial values.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        rngs: nnx.Rngs,
    ):
        self.embedding = nnx.Embed(vocabulary_size, width, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, width, rngs=rngs)
        self.blocks = nnx.List([_Block(width, heads, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary_size, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch length vocabulary"]:
        """Return the logits of each next character."""
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class _Block(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.hidden_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Array
    ) -> Float[Array, "batch length width"]:
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.contract(nnx.gelu(self.expand(self.hidden_norm(x))))


class Passages(NamedTuple):
    """The text to train on, and the fixed windows to evaluate on."""

    train: Int[Array, " tokens"]
    windows: Int[Array, "windows length"]


def _passages(ids: Int[np.ndarray, " tokens"], split: SplitName) -> Passages:
    """Nine tenths to train on; windows spread evenly over half of the rest."""
    bounds = np.array([0.9, 0.95, 1.0]) * len(ids)
    first = 0 if split == "validation" else 1
    start, stop = bounds[first : first + 2].astype(int)
    starts = np.linspace(start, stop - CONTEXT - 1, WINDOWS).astype(int)
    windows = ids[starts[:, None] + np.arange(CONTEXT + 1)]
    return Passages(jnp.asarray(ids[: int(bounds[0])], jnp.int32), jnp.asarray(windows, jnp.int32))


def _language_model(
    name: str,
    graph: nnx.GraphDef,
    init: Callable[[KeyArray], PyTree],
    passages: Passages,
    *,
    batch_size: int,
) -> Workload:
    def mean_loss(params: PyTree, windows: Int[Array, "batch length"]) -> Scalar:
        return models.cross_entropy(nnx.merge(graph, params)(windows[:, :-1]), windows[:, 1:])

    def loss(params: PyTree, data: Passages, key: KeyArray) -> Scalar:
        starts = jax.random.randint(key, (batch_size, 1), 0, len(data.train) - CONTEXT)
        return mean_loss(params, data.train[starts + jnp.arange(CONTEXT + 1)])

    def validation_loss(params: PyTree, data: Passages) -> Scalar:
        chunks = data.windows.reshape(-1, CHUNK, CONTEXT + 1)
        return jax.lax.map(partial(mean_loss, params), chunks).mean()

    return Workload(name, "transformer", init, lambda key: passages, loss, validation_loss)


def _named(name: str, width: int) -> str:
    return name if width == 64 else f"{name}-wide"


def check(file: Path, expected: str) -> None:
    """Raise if a file is missing.

    Args:
        file: Where it should be.
        expected: Whose it is.

    Raises:
        FileNotFoundError: With both.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; expected is {file.name} of {expected}.")


@dataclass(frozen=True)
class HeldOut:
    """A task of the comparison: called with the folder of all data and a split, it is built.

    Attributes:
        build: Makes the workload.
        horizon: Length of a run, in steps.
    """

    build: Callable[[Path, SplitName], Workload]
    horizon: int

    def __call__(self, folder: Path, split: SplitName = "validation") -> Workload:
        """Build the workload from what lies in the folder."""
        return self.build(folder, split)


def held_out(make: Callable[..., Workload], *paths: str, horizon: int, **options: Any) -> HeldOut:
    """A task of files below the folder of all data.

    Args:
        make: Builds it from the paths, the split and the options.
        paths: Below that folder.
        horizon: Length of a run, in steps.
        options: Of `make`.
    """

    def build(folder: Path, split: SplitName) -> Workload:
        return make(*(folder / path for path in paths), split=split, **options)

    return HeldOut(build, horizon)


_SHAKESPEARE = "tinyshakespeare/input.txt"
WIDE = 256  # four times the width of the largest models of meta-training

HELD_OUT: dict[str, HeldOut] = {
    "clinc-domains": held_out(clinc150, "clinc150", labels="domains", horizon=1400),
    "clinc-intents": held_out(clinc150, "clinc150", labels="intents", horizon=1400),
    "characters": held_out(characters, _SHAKESPEARE, horizon=1000),
    "stories": held_out(stories, "stories260k", _SHAKESPEARE, horizon=200),
    "clinc-domains-wide": held_out(
        clinc150, "clinc150", labels="domains", width=WIDE, horizon=1400
    ),
    "clinc-intents-wide": held_out(
        clinc150, "clinc150", labels="intents", width=WIDE, horizon=1400
    ),
    "characters-wide": held_out(characters, _SHAKESPEARE, width=WIDE, horizon=1000),
}
# Not held out: numbers were chosen on it, those of version 7, which does not ship.
LOOKED_AT = {"word-problems": held_out(word_problems, "gsm8k/train.jsonl", horizon=1000)}
