"""Tokenizers and chat templates; problems and how they are laid into rows."""

import itertools
import json
import shutil
from fractions import Fraction
from typing import Any

import gguf
import numpy as np
import pytest

from benchmarks.llm.checkpoints import CheckpointError, open_checkpoint
from benchmarks.llm.gsm8k import final_number, read_problems
from benchmarks.llm.rows import Example, Problem, epoch, fill, pack
from benchmarks.llm.text import open_text


def opened(folder):
    return open_text(folder, open_checkpoint(folder).config)


def test_an_example_is_the_template_and_ends_where_the_model_should(tiny):
    text = opened(tiny)
    prompt, answer = text.example("2 and 3?", "5\n#### 5")
    by_token = text.tokenizer.convert_ids_to_tokens
    assert [by_token(i) for i in prompt[:2]] == ["<|bos|>", "<|user|>"]
    assert by_token(prompt[-1]) == "<|assistant|>"
    assert by_token(answer[-1]) == "<|end|>"
    assert text.stop == {answer[-1]}
    assert text.decode(answer) == "5\n#### 5"
    assert text.prompt("2 and 3?") == prompt
    assert text.ended([7, answer[-1], 8]) == [7, answer[-1]]


def test_sentencepiece_scores_become_merges(stories):
    text = open_text(stories, open_checkpoint(stories).config)
    # What llama2.c's own encoder gives, merge by merge, for its first sentence.
    scores, pieces = [], []
    raw = next(stories.glob("tok*.bin")).read_bytes()
    at = 4
    while at < len(raw):
        score, size = np.frombuffer(raw, "f4,i4", 1, at)[0]
        pieces.append(raw[at + 8 : at + 8 + size])
        scores.append(score)
        at += 8 + size
    for sentence in ("Once upon a time, there was a red ball.", "It cost $3; naïve ☃!"):
        ids = [pieces.index(b" ")]
        for letter in sentence:
            encoded = letter.encode()
            if encoded in pieces:
                ids.append(pieces.index(encoded))
            else:
                ids += [byte + 3 for byte in encoded]
        while True:
            merges = [
                (-scores[pieces.index(pieces[a] + pieces[b])], i)
                for i, (a, b) in enumerate(itertools.pairwise(ids))
                if pieces[a] + pieces[b] in pieces and min(a, b) >= 259
            ]
            if not merges:
                break
            _, i = min(merges)
            ids[i : i + 2] = [pieces.index(pieces[ids[i]] + pieces[ids[i + 1]])]
        assert text.tokenizer.encode(sentence, add_special_tokens=False) == ids
        assert text.decode(ids) == sentence


def test_a_tokenizer_of_another_vocabulary_is_refused(tiny, tmp_path, write_tokenizer):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    write_tokenizer(copy, eos="<|nobody|>")
    with pytest.raises(CheckpointError, match=r"'<\|nobody\|>' is 256, .* vocab_size=256"):
        opened(copy).example("2?", "2")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: truncated or corrupt"):
        opened(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"copy: there is no tokenizer\.json;"):
        opened(copy)


def test_the_end_of_a_turn_may_be_another_token_than_a_text_s(tiny, tmp_path, write_tokenizer):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    write_tokenizer(copy, eos="<|bos|>")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | {"eos_token_id": 252}))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    template = settings["chat_template"].replace("eos_token", "'<|end|>'")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    text = opened(copy)
    answer = text.example("2?", "2")[1]
    assert text.tokenizer.convert_ids_to_tokens(answer) == ["2", "<|end|>"]
    assert set(text.tokenizer.convert_ids_to_tokens(list(text.stop))) == {"<|bos|>", "<|end|>"}


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"eos_token_id": 1.5}, "eos_token_id=1.5 must be an integer"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id='x' must be"),
        ("tokenizer_config.json", {"bos_token": 7}, "Special token bos_token"),
        ("tokenizer_config.json", {"bos_token": {}}, "copy"),
        ("tokenizer_config.json", {"chat_template": [1]}, "copy"),
    ],
)
def test_settings_of_another_kind_are_refused(tiny, tmp_path, file, change, words):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    content = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
    (copy / file).write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=words):
        opened(copy)


def test_something_must_end_a_text(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    for file, name in (("config.json", "eos_token_id"), ("tokenizer_config.json", "eos_token")):
        content = json.loads((copy / file).read_text())
        del content[name]
        (copy / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="nothing says which token ends a text"):
        opened(copy)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system') }}", "no system"),
        ("{% if %}", "fails"),
        ("{{ 1 / 0 }}", "fails"),
        (
            "{{ messages[0].content }}X{% if not add_generation_prompt %}Y{% endif %}",
            "does not end",
        ),
        ("{% if add_generation_prompt %}X{% else %}Y{% endif %}", "does not begin an answer"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tiny, tmp_path, template, words):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=words):
        opened(copy).example("2 and 3?", "5")


LETTERS = [*"abc0123456789", "Ġ", *"<th>/"]
TOKENS = ["<|x|>", "<|im_end|>", *LETTERS, "ab", "Ġc", "12", "<th>"]
ODD = "<｜begin▁of▁sentence｜>"  # no byte is written so
CHAT = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"


def _written(
    file,
    *,
    pre: Any = "smollm",
    skip=(),
    types=None,
    template: str | None = CHAT,
    model="gpt2",
    scores=None,
    vocabulary=None,
):
    """A GGUF file that has nothing but a tokenizer."""
    tokens = (vocabulary or TOKENS) if scores is None else list(scores)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types or [3, 3] + [1] * (len(tokens) - 3) + [4])
    if scores is None:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(["a b", "Ġ c", "1 2"])
    else:
        writer.add_token_scores(list(scores.values()))
    for name, value in {"bos": 0, "eos": 1}.items():
        if name not in skip:
            getattr(writer, f"add_{name}_token_id")(value)
    if template is not None:
        writer.add_chat_template(template)
    for close in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        close()
    return file


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["ab", "Ġc", "1", "2", "<|im_end|>"]),
        ("llama-bpe", ["ab", "Ġc", "12", "<|im_end|>"]),
        ("gpt-2", ["ab", "Ġc", "12", "<|im_end|>"]),
    ],
)
def test_gguf_brings_tokenizer_and_template(tiny, tmp_path, pre, expected):
    config = open_checkpoint(tiny).config
    text = open_text(_written(tmp_path / "model.gguf", pre=pre), config)
    assert [TOKENS[i] for i in text.prompt("ab c12")] == expected
    assert text.decode(text.prompt("ab c12")) == "ab c12"
    assert text.stop == {1}


def test_tokens_that_users_defined_are_matched_whole(tiny, tmp_path):
    config = open_checkpoint(tiny).config
    text = open_text(_written(tmp_path / "model.gguf"), config)
    assert [TOKENS[i] for i in text.prompt("ab<th>1")] == ["ab", "<th>", "1", "<|im_end|>"]
    normal = [3, 3] + [1] * (len(TOKENS) - 2)
    text = open_text(_written(tmp_path / "model.gguf", types=normal), config)
    assert [TOKENS[i] for i in text.prompt("<th>")] == [*"<th>", "<|im_end|>"]


@pytest.mark.parametrize("skip", [("bos",), ("eos",), ("bos", "eos")])
def test_gguf_need_not_name_its_first_and_last_token(tiny, tmp_path, skip):
    text = open_text(_written(tmp_path / "model.gguf", skip=skip), open_checkpoint(tiny).config)
    assert [TOKENS[i] for i in text.example("ab", "c")[1]] == ["c", "<|im_end|>"]


def test_gguf_of_sentencepiece(tiny, tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *"▁abct", "▁a", "at", "▁at", "▁b"]
    scores = {x: -float(i) for i, x in enumerate(pieces)}
    types = [2, 3, 3] + [1] * (len(pieces) - 3)
    file = tmp_path / "model.gguf"
    _written(file, scores=scores, types=types, model="llama", template=None)
    text = open_text(file, open_checkpoint(tiny).config)
    tokens = [pieces[i] for i in text.tokenizer.encode("at b", add_special_tokens=False)]
    assert tokens == ["▁at", "▁b"]
    assert text.plain and text.prompt("at")[0] == 0


def test_gguf_s_special_tokens_are_those_of_the_file_however_they_are_spelled(tiny, tmp_path):
    odd = [ODD, *TOKENS[1:-1], "<two words>"]
    template = "{{ bos_token }}" + CHAT
    file = _written(tmp_path / "model.gguf", vocabulary=odd, template=template)
    text = open_text(file, open_checkpoint(tiny).config)
    assert len(text.tokenizer) == len(odd)
    prompt = text.prompt("ab<two words>1")
    assert [odd[i] for i in prompt] == [ODD, "ab", "<two words>", "1", "<|im_end|>"]


def test_gguf_without_a_template_or_an_end_has_one_in_its_prompts(tiny, tmp_path):
    file = _written(tmp_path / "model.gguf", skip=("eos",), template=None)
    text = open_text(file, open_checkpoint(tiny).config)
    assert text.plain and TOKENS[text.example("a", "b")[1][-1]] == "<|im_end|>"


def test_gguf_of_another_tokenizer_is_refused(tiny, tmp_path):
    config = open_checkpoint(tiny).config
    with pytest.raises(CheckpointError, match=r"pre='brand-new'; allowed is .*'smollm'"):
        open_text(_written(tmp_path / "model.gguf", pre="brand-new"), config)
    with pytest.raises(CheckpointError, match=r"model='bert'.*; allowed is 'llama'"):
        open_text(_written(tmp_path / "model.gguf", model="bert"), config)


# Problems


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected"),
        ('{"question": "a"}', "line 2: expected"),
        ('{"question": 3, "answer": "#### 3"}', "line 2: expected"),
        ('{"question": "a", "answer": "three"}', "line 2: the answer does not end"),
        ("\x80", "line 2: not JSON"),
        ('{"question": "a",', r"line 2: not JSON \(Expecting property name[^()]*\)\.$"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, words):
    file = tmp_path / "train.jsonl"
    good = json.dumps({"question": "1 and 1?", "answer": "#### 2"})
    file.write_bytes(f"{good}\n{line}\n{good}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=words):
        read_problems(file)
    assert read_problems(file, limit=1) == ([Problem("1 and 1?", "#### 2")], 0)


def test_a_missing_file_is_told_with_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train.jsonl is not there.*grade-school-math"):
        read_problems(tmp_path / "train.jsonl")


def test_blank_lines_are_skipped_and_counted_and_parquet_told(tmp_path):
    file = tmp_path / "train.jsonl"
    good = json.dumps({"question": "1 and 1?", "answer": "#### 2"})
    file.write_text(f"\n{good}\n \t\n{good}\n\n")
    problems, blank = read_problems(file)
    assert (len(problems), blank) == (2, 3)
    file.write_bytes(b"PAR1\x00\x01PAR1")
    with pytest.raises(ValueError, match=r"train\.jsonl: not JSON lines: parquet\.$"):
        read_problems(file)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("so\n#### -1,234.5", "-1234.5"),
        ("#### $18.00", "18"),
        ("#### **18**", "18"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### 3\n#### 4", "4"),
        ("#### 18 dollars.", "18"),
        ("#### .5", "1/2"),
        ("#### 3/4", "3/4"),
        ("#### 10 / 4", "5/2"),
        ("#### 1 1/2", "3/2"),
        ("#### 1e3", "1000"),
        ("#### 1.5E-2", "3/200"),
        ("#### 2e−2", "1/50"),
        ("#### −5", "-5"),
        ("#### 1,000,000", "1000000"),
        ("#### 1\u202f234.5", "1234.5"),
        ("#### 1 234", "1234"),
        ("#### 1'234", "1234"),
        ("#### 20 1500", "20"),
        ("#### 2/0", None),
        ("#### 1e3000000", None),
        ("#### " + "9" * 5000, None),
        ("5", None),
        ("####", None),
    ],
)
def test_final_numbers(answer, number):
    assert final_number(answer) == (None if number is None else Fraction(number))


def example(prompt, answer):
    return Example(Problem("q", "a"), prompt, answer)


def test_rows_hold_what_their_examples_say():
    examples = [example([1, 2], [3, 4]), example([5], [6, 7, 8])]
    batch = fill(examples, [[0, 1], [1]], (3, 10))
    np.testing.assert_array_equal(batch.tokens[0], [1, 2, 3, 4, 5, 6, 7, 8, 0, 0])
    np.testing.assert_array_equal(batch.targets[0], [2, 3, 4, 0, 6, 7, 8, 0, 0, 0])
    np.testing.assert_array_equal(batch.weights[0], [0, 1, 1, 0, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(batch.segments[0], [1, 1, 1, 1, 2, 2, 2, 2, 0, 0])
    np.testing.assert_array_equal(batch.tokens[1], [5, 6, 7, 8, 0, 0, 0, 0, 0, 0])
    assert not batch.weights[2].any()


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_holds_every_example_once_in_another_order_each(packing):
    examples = [example([1] * (3 + i % 5), [2, 3]) for i in range(23)]

    def drawn(seed, number):
        return epoch(
            examples, seed=seed, number=number, packing=packing, length=16, rows_per_step=2
        )

    steps = drawn(0, 0)
    flat = [i for step in steps for row in step for i in row]
    assert sorted(flat) == list(range(23))
    assert all(sum(len(examples[i]) for i in row) <= 16 for step in steps for row in step)
    assert len(steps) == (-(-23 // 2) if not packing else len(steps))
    assert len(steps) <= (12 if not packing else 7)
    assert all(len(step) == 2 for step in steps[:-1])
    assert drawn(0, 0) == steps
    assert drawn(0, 1) != steps
    assert drawn(1, 0) != steps


def test_packing_loses_nothing_and_never_overfills():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 200).tolist()
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 64
    assert len(rows) < 1.1 * sum(lengths) / 64 + 1
