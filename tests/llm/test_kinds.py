"""Kinds of folders that load in transformers: the same tokens here, and the same prompts."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from benchmarks.llm.checkpoints import CheckpointError, open_checkpoint
from benchmarks.llm.text import open_text

QUESTION, ANSWER = (
    "Tom has 12 pens; The cat has 3. How many, naïve ☃?",
    "The sum is 12+3=15.\n#### 15",
)
SAMPLE = [QUESTION, ANSWER, "The cat has 12 pens", "How many cats are there? The sum is 9."] * 4
VOCABULARY = 300
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|bot|>", "<|end|>", "<pad>"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}"
    "{{ m.content + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
)
INST = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# What transformers adds to Jinja, and to the template's context.
CONTEXT = (
    "{% if tools is not none %}tools {% endif %}{% if documents is not none %}documents {% endif %}"
    "{{ strftime_now('%Y') }} {{ pad_token }} {{ unk_token }} {{ messages[0] | tojson }} "
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|><|bot|>"
    "{% else %}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)


def _byte_level(size=VOCABULARY):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def _sentencepiece():
    """As Llama 2's: a space in front of any text, spaces as letters, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    prepended = normalizers.Prepend("▁")
    tokenizer.normalizer = normalizers.Sequence([prepended, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(vocab_size=140, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def _metaspace():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=140, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def _words():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=140, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def _used_before():
    """Saved with what its last use switched on."""
    tokenizer = _byte_level()
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=200, pad_token="<pad>", pad_id=6)
    return tokenizer


def _with_a_newline():
    """A newline is an added token, and does not end a turn."""
    tokenizer = _byte_level(VOCABULARY - 1)
    tokenizer.add_tokens(["\n"])
    return tokenizer


def _with_one_more():
    """An added token beyond the model's vocabulary, which no text uses."""
    tokenizer = _byte_level()
    tokenizer.add_special_tokens([f"<|reserved {i}|>" for i in range(20)])
    return tokenizer


KINDS = {
    "byte level": (_byte_level, CHAT, {}),
    "used before": (_used_before, CHAT, {}),
    "one token beyond": (_with_one_more, CHAT, {}),
    "a newline before the end": (_with_a_newline, CHAT.replace("'<|end|>'", "'\n<|end|>'"), {}),
    "content is changed": (_byte_level, CHAT.replace("m.content", "m.content | upper"), {}),
    "sentencepiece": (_sentencepiece, INST, {}),
    "sentencepiece of Llama": (_sentencepiece, INST, {"tokenizer_class": "LlamaTokenizer"}),
    "metaspace": (_metaspace, INST, {}),
    "words": (_words, CHAT, {}),
    "context": (_byte_level, CONTEXT + CHAT, {}),
    "generation": (_byte_level, GENERATION, {}),
    "generation, sentencepiece": (_sentencepiece, GENERATION, {}),
    "templates by name": (
        _byte_level,
        [{"name": "default", "template": CHAT}, {"name": "tool_use", "template": INST}],
        {},
    ),
}


def _folder(tiny, tmp_path, tokenizer, template, settings=None):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    tokenizer.save(str(copy / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    content = {"tokenizer_class": "PreTrainedTokenizerFast"} | special | (settings or {})
    content |= {} if template is None else {"chat_template": template}
    (copy / "tokenizer_config.json").write_text(json.dumps(content))
    config = json.loads((copy / "config.json").read_text())
    config |= {"eos_token_id": 2, "vocab_size": VOCABULARY}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(("tokenizer", "template", "settings"), KINDS.values(), ids=KINDS)
def test_tokens_and_prompts_are_those_of_transformers(
    tiny, tmp_path, tokenizer, template, settings
):
    folder = _folder(tiny, tmp_path, tokenizer(), template, settings)
    text = open_text(folder, open_checkpoint(folder).config)
    theirs = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": QUESTION}]
    both = [*asked, {"role": "assistant", "content": ANSWER}]
    options: dict = {"tokenize": True, "return_dict": False}
    whole = theirs.apply_chat_template(both, **options)
    prompt, answer = text.example(QUESTION, ANSWER)
    assert [*prompt, *answer] == whole[: len(prompt) + len(answer)]
    assert prompt == theirs.apply_chat_template(asked, add_generation_prompt=True, **options)
    assert text.prompt(QUESTION) == prompt
    # What ends the turn ends the answer, and nothing but spaces follows.
    end = "</s>" if template is INST else "<|end|>"
    assert theirs.convert_ids_to_tokens(answer[-1]) == end
    assert not theirs.decode(whole[len(prompt) + len(answer) :]).strip()
    if tokenizer is not _words and "upper" not in template:  # the former forgets spaces
        assert text.decode(answer) == ANSWER
    if "{% generation" in str(template):
        options |= {"return_dict": True, "return_assistant_tokens_mask": True}
        marked = theirs.apply_chat_template(both, **options)["assistant_masks"]
        assert marked == [0] * len(prompt) + [1] * len(answer)


def test_a_sentencepiece_answer_has_no_stray_space(tiny, tmp_path):
    folder = _folder(tiny, tmp_path, _sentencepiece(), INST)
    text = open_text(folder, open_checkpoint(folder).config)
    tokens = text.tokenizer.convert_ids_to_tokens(text.example(QUESTION, ANSWER)[1])
    assert tokens[0].startswith("▁T")


def test_without_a_template_the_prompt_is_plain_and_said_so(tiny, tmp_path):
    folder = _folder(tiny, tmp_path, _byte_level(), None)
    text = open_text(folder, open_checkpoint(folder).config)
    assert text.plain
    prompt, answer = text.example("1+2?", "3\n#### 3")
    assert text.tokenizer.decode(prompt) == "Question: 1+2?\nAnswer:"
    assert text.tokenizer.decode(answer) == " 3\n#### 3</s>"
    lines = text.described("1+2?", "3\n#### 3")
    assert lines[1] == "chat template: none; prompts are 'Question: …' and 'Answer:'"
    assert lines[2].endswith(r"'Question: 1+2?\nAnswer:' | ' 3\n#### 3</s>'")


def test_a_token_beyond_the_vocabulary_is_refused_where_a_text_has_it(tiny, tmp_path):
    folder = _folder(tiny, tmp_path, _with_one_more(), CHAT)
    text = open_text(folder, open_checkpoint(folder).config)
    with pytest.raises(
        CheckpointError, match=r"<\|reserved 19\|>' is \d+, the model has vocab_size"
    ):
        text.example("<|reserved 19|>", "3")
