"""Text to token ids and back, by the tokenizers and chat templates of `transformers`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    convert_gguf_tokenizer,
)

from benchmarks.llm.checkpoints import CheckpointError, gguf_files, read_gguf, read_json, reading
from benchmarks.llm.llama import LlamaConfig

# Where a checkpoint has no chat template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'Question: ' + message.content + '\nAnswer:' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Text:
    """A tokenizer with a chat template, and what ends an answer.

    Attributes:
      tokenizer: of transformers.
      stop: token ids that end an answer.
      vocab_size: of the model.
      plain: whether the checkpoint had no chat template, so that `PLAIN_TEMPLATE` is in its place.
    """

    tokenizer: PreTrainedTokenizerBase
    stop: frozenset[int]
    vocab_size: int
    plain: bool = False

    def example(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt, and of the answer with what ends it.

        They are those of the whole text; a token that holds the end of the prompt and the beginning
        of the answer belongs to the answer.
        """
        asked = [{"role": "user", "content": question}]
        prompt = self._render(asked, add_generation_prompt=True)
        whole = self._render([*asked, {"role": "assistant", "content": answer}])
        if not whole.startswith(prompt):
            raise CheckpointError("The chat template does not begin an answer as it asks for one.")
        ids, ends = self._encode(whole)
        begins = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
        # What follows the end of the turn, a newline say, is never generated.
        said = self.ended(ids[begins:])
        if not said or said[-1] not in self.stop:
            raise CheckpointError("The chat template does not end an answer by a token that stops.")
        return ids[:begins], said

    def prompt(self, question: str) -> list[int]:
        """Return the token ids up to where the model answers."""
        asked = self._render([{"role": "user", "content": question}], add_generation_prompt=True)
        return self._encode(asked)[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def ended(self, ids: Sequence[int]) -> list[int]:
        """Cut after the first token that ends an answer; unchanged where there is none."""
        for i, token in enumerate(ids):
            if token in self.stop:
                return list(ids[: i + 1])
        return list(ids)

    def described(self, question: str, answer: str) -> list[str]:
        """Say in lines what was read, and show an example."""
        tokenizer: Any = self.tokenizer
        names = tokenizer.convert_ids_to_tokens(sorted(self.stop))
        kind = f"{type(tokenizer).__name__} ({type(tokenizer.backend_tokenizer.model).__name__})"
        prompt, said = self.example(question, answer)
        special = {name: str(x) for name, x in tokenizer.special_tokens_map.items()}
        template = "none; prompts are 'Question: …' and 'Answer:'" if self.plain else "its own"
        return [
            f"tokenizer: {kind}, {len(tokenizer):,} tokens; special {special}; an answer ends with "
            f"{' or '.join(map(repr, names))}",
            f"chat template: {template}",
            "first example, | where the answer begins: "
            f"{tokenizer.decode(prompt)!r} | {tokenizer.decode(said)!r}",
        ]

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, and `generation_config.json`."""
        self.tokenizer.save_pretrained(str(folder))
        content = {"eos_token_id": sorted(self.stop)}
        (folder / "generation_config.json").write_text(json.dumps(content, indent=2) + "\n")

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Return token ids, and where in the text each ends."""
        found: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = found["input_ids"]
        beyond = [i for i in ids if i >= self.vocab_size]
        if beyond:
            raise CheckpointError(
                f"The tokenizer is of another vocabulary: its token "
                f"{self.tokenizer.convert_ids_to_tokens(beyond[0])!r} is {beyond[0]}, the model "
                f"has vocab_size={self.vocab_size}."
            )
        return ids, [end for _, end in found["offset_mapping"]]

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except Exception as error:  # a template is a program
            raise CheckpointError(f"The chat template fails: {error!r}") from error


def open_text(path: Path, config: LlamaConfig) -> Text:
    """Open the tokenizer that lies with a checkpoint.

    Raises:
      CheckpointError: if it is missing or corrupt, or nothing says which token ends a text.
    """
    tokenizer: Any
    with reading(path):
        if path.suffix == ".gguf":
            tokenizer, stop, adds_bos = _from_gguf(path)
        elif (path / "config.json").is_file():
            tokenizer, stop, adds_bos = _from_huggingface(path)
        else:
            tokenizer, stop, adds_bos = _from_llama2c(path, config)
    if tokenizer.eos_token_id is not None:
        stop.add(tokenizer.eos_token_id)
    stop = {i for i in stop if 0 <= i < config.vocab_size}
    plain = (tokenizer.chat_template or PLAIN_TEMPLATE).endswith(PLAIN_TEMPLATE)
    if plain and stop:
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
        if tokenizer.eos_token is None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(min(stop))
    stop |= _end_of_turn(tokenizer, config.vocab_size)
    if not stop:
        raise CheckpointError(f"{path}: nothing says which token ends a text (eos_token_id).")
    return Text(tokenizer, frozenset(stop), config.vocab_size, plain)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> set[int]:
    """The first added token after an answer, which may be another than a text's end."""
    question = {"role": "user", "content": "A question?"}
    said = ({"role": "assistant", "content": x} for x in ("One answer.", "Another!"))
    try:
        ends = [
            str(tokenizer.apply_chat_template([question, answer], tokenize=False))[::-1]
            for answer in said
        ]
    except Exception:  # said when the first example is made
        return set()
    # Whatever the template makes of an answer.
    after = os.path.commonprefix(ends)[::-1]  # noqa: RUF071 - they are no paths
    ids: Any = tokenizer(after, add_special_tokens=False)["input_ids"]
    added: Any = tokenizer.added_tokens_decoder
    found = [i for i in ids if i < vocab_size and i in added and added[i].content.strip()]
    return set(found[:1])


def _from_huggingface(folder: Path) -> tuple[PreTrainedTokenizerBase, set[int], bool]:
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder}: there is no tokenizer.json; transformers writes one, by save_pretrained."
        )
    stop: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            stop |= _listed(read_json(folder / name).get("eos_token_id"))
    with reading(folder / "tokenizer.json"):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if isinstance(tokenizer.chat_template, dict):  # several, by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    begins = tokenizer("")["input_ids"]
    return tokenizer, stop, bool(begins) and begins[0] == tokenizer.bos_token_id


def _listed(ids: Any) -> set[int]:
    listed = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(i) is int for i in listed):
        raise CheckpointError(f"eos_token_id={ids!r} must be an integer, or a list of them.")
    return set(listed)


_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # GGUF's types of tokens
# Ways of splitting text, by `tokenizer.ggml.pre`, with which llama.cpp begins a text with its first
# token, and takes words that are tokens whole.
_LIKE_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2")


def _from_gguf(path: Path) -> tuple[PreTrainedTokenizerBase, set[int], bool]:
    file = gguf_files(path)[0]
    _, fields = read_gguf(file)
    prefix = "tokenizer.ggml."
    found = {x.removeprefix(prefix): y for x, y in fields.items() if x.startswith(prefix)}
    kind, split = found.get("model"), found.get("pre")
    splits = ("smollm", "gpt-2", *GGUF_PRE_TOKENIZER_SPLITS)
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and split not in splits):
        raise CheckpointError(
            f"{file}: tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={split!r}; allowed is "
            f"'llama', or 'gpt2' with {' or '.join(map(repr, splits))}."
        )
    backend = _byte_level(found, split) if kind == "gpt2" else _sentencepiece(found)
    tokens = found["tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {x: found[f"{y}_token_id"] for x, y in names.items() if f"{y}_token_id" in found}
    stop = {found[x] for x in ("eos_token_id", "eot_token_id") if x in found}
    stop |= {i for i, token in enumerate(tokens) if token in _ENDS}
    special = {f"{x}_token": tokens[i] for x, i in ids.items()}
    tokenizer = _wrapped(backend, special, fields.get("tokenizer.chat_template"))
    adds_bos = found.get("add_bos_token", kind == "llama" or split in _LIKE_LLAMA3)
    return tokenizer, stop, bool(adds_bos) and "bos" in ids


def _byte_level(found: dict[str, Any], split: Any) -> Tokenizer:
    """As the file spells its tokens, which transformers leaves out where they are no bytes."""
    tokens = found["tokens"]
    merges = [tuple(merge.split(" ")) for merge in found["merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(vocabulary, merges, ignore_merges=split in _LIKE_LLAMA3)
    tokenizer = Tokenizer(model)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    steps: list[Any] = [by_bytes]
    if split == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), by_bytes]
    elif split in GGUF_PRE_TOKENIZER_SPLITS:
        pattern = Regex(GGUF_PRE_TOKENIZER_SPLITS[split])
        alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        steps = [pre_tokenizers.Split(pattern, "isolated"), alone]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, found["token_type"], strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


def _sentencepiece(found: dict[str, Any], architecture: str = "llama") -> Tokenizer:
    backend, _ = convert_gguf_tokenizer(architecture, found | {"tokenizer_type": "llama"})
    if not found.get("add_space_prefix", True):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return backend


def _wrapped(
    backend: Tokenizer, special: dict[str, str], template: str | None
) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)


def _from_llama2c(
    folder: Path, config: LlamaConfig
) -> tuple[PreTrainedTokenizerBase, set[int], bool]:
    """Read SentencePiece's pieces and scores; the merge of the highest score comes first."""
    files = sorted(folder.glob("tok*.bin"))
    if len(files) != 1:
        raise CheckpointError(f"{folder}: expected one tok*.bin, found {len(files)}.")
    raw = files[0].read_bytes()
    pieces, scores, at = [], [], 4
    try:
        for _ in range(config.vocab_size):
            score, size = np.frombuffer(raw, np.dtype("f4,i4"), 1, at)[0]
            at += 8
            piece = raw[at : at + size]
            if len(piece) != size or size < 1:
                raise ValueError(f"a piece of {size} bytes at byte {at}")
            pieces.append(piece.decode().replace(" ", "▁"))
            scores.append(float(score))
            at += size
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{files[0]}: truncated, or of another vocabulary than {config.vocab_size} ({error})."
        ) from error
    if at != len(raw):
        raise CheckpointError(
            f"{files[0]}: of another vocabulary: {len(raw) - at} bytes are left after "
            f"{config.vocab_size} pieces."
        )
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * (len(pieces) - 259)]
    found = {"tokens": pieces, "scores": scores, "token_type": types}
    backend = _sentencepiece(found, "phi3")  # which writes a space before any text, too
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return _wrapped(backend, special, None), {1}, True  # <s> separates stories
