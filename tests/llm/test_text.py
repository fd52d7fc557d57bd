"""Tokenizers and chat templates; problems and how they are laid into rows."""

import itertools
import json
import shutil

import gguf
import numpy as np
import pytest

from benchmarks.llm.checkpoints import CheckpointError, open_checkpoint
from benchmarks.llm.gsm8k import Example, Problem, epoch, fill, final_number, pack, read_problems
from benchmarks.llm.text import open_text


def opened(folder):
    return open_text(folder, open_checkpoint(folder).config)


def test_an_example_is_the_template_and_ends_where_the_model_should(tiny):
    text = opened(tiny)
    prompt, answer = text.example("2 and 3?", "5\n#### 5")
    by_token = text.tokenizer.id_to_token
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
        assert text.tokenizer.encode(sentence).ids == ids
        assert text.decode(ids) == sentence


def test_a_tokenizer_of_another_vocabulary_is_refused(tiny, tmp_path, write_tokenizer):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    write_tokenizer(copy, eos="<|user|>")
    with pytest.raises(CheckpointError, match=r"eos_token '<\|user\|>' is 253"):
        opened(copy)
    write_tokenizer(copy, eos="<|nobody|>")
    with pytest.raises(CheckpointError, match=r"no eos_token '<\|nobody\|>'"):
        opened(copy)
    extra = ("<|bos|>", "<|user|>", "<|assistant|>", "<|end|>", "<|one more|>")
    write_tokenizer(copy, special=extra)
    with pytest.raises(CheckpointError, match="ids go up to 256, the model has vocab_size=256"):
        opened(copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        opened(copy)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"eos_token_id": 1.5}, "eos_token_id=1.5 must be an integer"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id='x' must be"),
        ("tokenizer_config.json", {"bos_token": 7}, "7 is no special token"),
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


def test_gguf_brings_tokenizer_and_template(tiny, tmp_path):
    def write(pre):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        letters = [*"abc0123456789", "Ġ"]
        tokens = ["<|x|>", "<|im_end|>", *letters, "ab", "Ġc", "12"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
        writer.add_token_merges(["a b", "Ġ c", "1 2"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_chat_template("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
        for close in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            close()
        return open_text(tmp_path / "model.gguf", open_checkpoint(tiny).config), tokens

    for pre, expected in (
        ("smollm", ["ab", "Ġc", "1", "2", "<|im_end|>"]),
        ("llama-bpe", ["<|x|>", "ab", "Ġc", "12", "<|im_end|>"]),
    ):
        text, tokens = write(pre)
        assert [tokens[i] for i in text.prompt("ab c12")] == expected
        assert text.decode(text.prompt("ab c12")) == "ab c12"
        assert text.stop == {1}
    with pytest.raises(CheckpointError, match=r"pre='qwen2'; allowed is .*'smollm'"):
        write("qwen2")


# Problems


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected"),
        ('{"question": "a"}', "line 2: expected"),
        ('{"question": 3, "answer": "#### 3"}', "line 2: expected"),
        ('{"question": "a", "answer": "three"}', "line 2: the answer does not end"),
        ("", "line 2: not JSON"),
        ("\x80", "line 2: not JSON"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, words):
    file = tmp_path / "train.jsonl"
    good = json.dumps({"question": "1 and 1?", "answer": "#### 2"})
    file.write_bytes(f"{good}\n{line}\n{good}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=words):
        read_problems(file)
    assert read_problems(file, limit=1) == [Problem("1 and 1?", "#### 2")]


def test_a_missing_file_is_told_with_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train.jsonl is not there.*grade-school-math"):
        read_problems(tmp_path / "train.jsonl")


def test_final_numbers():
    for answer, number in (
        ("so\n#### -1,234.5", -1234.5),
        ("#### $18.00", 18),
        ("#### **18**", 18),
        ("#### 3\n#### 4", 4),
        ("5", None),
        ("####", None),
    ):
        assert final_number(answer) == number


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
