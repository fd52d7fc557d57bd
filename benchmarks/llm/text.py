"""Text to token ids and back: tokenizers and chat templates of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from benchmarks.llm.checkpoints import CheckpointError, read_gguf, read_json, reading
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
    """A tokenizer and a chat template.

    Attributes:
      tokenizer: of the `tokenizers` library.
      template: of the chat, in Jinja.
      special: text of the special tokens by name, `bos_token` and `eos_token`.
      begin: token ids that a text begins with where the template does not write them.
      stop: token ids that end an answer.
    """

    tokenizer: Tokenizer
    template: str
    special: Mapping[str, str]
    begin: tuple[int, ...]
    stop: frozenset[int]

    def example(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt, and of the answer with what ends it."""
        asked = [{"role": "user", "content": question}]
        prompt = self._render(asked, add_generation_prompt=True)
        whole = self._render([*asked, {"role": "assistant", "content": answer}])
        if not whole.startswith(prompt):
            raise CheckpointError("The chat template does not begin an answer as it asks for one.")
        # What follows the end of the turn, a newline say, is never generated.
        said = self.ended(self._ids(whole[len(prompt) :]))
        if not said or said[-1] not in self.stop:
            raise CheckpointError("The chat template does not end an answer by a token that stops.")
        return self._encode(prompt), said

    def prompt(self, question: str) -> list[int]:
        """Return the token ids up to where the model answers."""
        return self._encode(
            self._render([{"role": "user", "content": question}], add_generation_prompt=True)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def ended(self, ids: Sequence[int]) -> list[int]:
        """Cut after the first token that ends an answer; unchanged where there is none."""
        for i, token in enumerate(ids):
            if token in self.stop:
                return list(ids[: i + 1])
        return list(ids)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": self.template}
        for name, content in (
            ("tokenizer_config.json", settings | dict(self.special)),
            ("generation_config.json", {"eos_token_id": sorted(self.stop)}),
        ):
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _encode(self, text: str) -> list[int]:
        ids = self._ids(text)
        return ids if tuple(ids[: len(self.begin)]) == self.begin else [*self.begin, *ids]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(self.template).render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self.special
            )
        except Exception as error:  # a template is a program
            raise CheckpointError(f"The chat template fails: {error!r}") from error


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def open_text(path: Path, config: LlamaConfig) -> Text:
    """Open the tokenizer that lies with a checkpoint.

    Raises:
      CheckpointError: if it is missing, corrupt, or of another vocabulary than the model.
    """
    with reading(path):
        if path.suffix == ".gguf":
            text = _from_gguf(path)
        elif (path / "config.json").is_file():
            text = _from_huggingface(path)
        else:
            text = _from_llama2c(path, config)
    if not text.stop:
        raise CheckpointError(f"{path}: nothing says which token ends a text (eos_token_id).")
    ids = text.tokenizer.get_vocab(with_added_tokens=True).values()
    if max(ids) >= config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer is of another vocabulary: its ids go up to {max(ids)}, the "
            f"model has vocab_size={config.vocab_size}."
        )
    return text


def _from_huggingface(folder: Path) -> Text:
    file = folder / "tokenizer.json"
    with reading(file):
        tokenizer = Tokenizer.from_file(str(file))
    settings = read_json(folder / "tokenizer_config.json")
    config = read_json(folder / "config.json")
    stop = _listed(config.get("eos_token_id"))
    if (folder / "generation_config.json").is_file():
        stop |= _listed(read_json(folder / "generation_config.json").get("eos_token_id"))
    special = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token")}
    for name, token in special.items():
        if token and tokenizer.token_to_id(token) is None:
            raise CheckpointError(
                f"{folder}: the tokenizer is of another vocabulary: it has no {name} {token!r}."
            )
    declared = _listed(config.get("eos_token_id"))
    ends = _ids_of(tokenizer, special["eos_token"])
    if declared and not declared | stop >= set(ends):
        raise CheckpointError(
            f"{folder}: the tokenizer is of another vocabulary: its eos_token "
            f"{special['eos_token']!r} is {ends[0]}, config.json has "
            f"eos_token_id={config['eos_token_id']!r}."
        )
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text() if jinja.is_file() else settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((one["template"] for one in template if one["name"] == "default"), None)
    begins = tuple(tokenizer.encode("").ids)  # what its post-processor puts in front
    begin = begins[:1] if begins and begins[0] in _ids_of(tokenizer, special["bos_token"]) else ()
    return Text(tokenizer, template or PLAIN_TEMPLATE, special, begin, frozenset(stop | set(ends)))


def _content(token: Any) -> str:
    """A special token is a string, or a description of one."""
    content = token["content"] if isinstance(token, dict) else token or ""
    if not isinstance(content, str):
        raise CheckpointError(f"tokenizer_config.json: {token!r} is no special token.")
    return content


def _listed(ids: Any) -> set[int]:
    listed = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(i) is int for i in listed):
        raise CheckpointError(f"eos_token_id={ids!r} must be an integer, or a list of them.")
    return set(listed)


def _ids_of(tokenizer: Tokenizer, token: str) -> tuple[int, ...]:
    number = tokenizer.token_to_id(token) if token else None
    return () if number is None else (number,)


# By `tokenizer.ggml.pre`: how text is split before the merges.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": lambda: [
        pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def _from_gguf(file: Path) -> Text:
    _, fields = read_gguf(file)
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLITS:
        raise CheckpointError(
            f"{file}: tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={split!r}; allowed is "
            f"'gpt2' with {' or '.join(map(repr, _SPLITS))}."
        )
    with reading(file):
        tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
        bos, eos = (fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos"))
        vocabulary = {token: i for i, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama-bpe"))
        special = {"bos_token": tokens[bos], "eos_token": tokens[eos]}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[split]())
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, k in zip(tokens, kinds, strict=True) if k == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    begin = (bos,) if fields.get("tokenizer.ggml.add_bos_token", split == "llama-bpe") else ()
    stop = {eos} | {vocabulary[token] for token in _ENDS if token in vocabulary}
    template = fields.get("tokenizer.chat_template") or PLAIN_TEMPLATE
    return Text(tokenizer, template, special, begin, frozenset(stop))


_CONTROL = 3  # gguf's token type of special tokens
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>")


def _from_llama2c(folder: Path, config: LlamaConfig) -> Text:
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
            scores.append(score)
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
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    splits = [
        (-scores[i], piece[:cut], piece[cut:])
        for i, piece in enumerate(pieces)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    merges = [(left, right) for _, left, right in sorted(splits, key=lambda split: split[0])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    ends = frozenset({1, 2})  # <s> separates stories
    return Text(tokenizer, PLAIN_TEMPLATE, special, (1,), ends)
