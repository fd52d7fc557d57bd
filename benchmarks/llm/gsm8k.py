"""GSM8K: word problems whose answers end in `#### number`, as rows of token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np

from benchmarks.llm.text import Text

Rows = np.ndarray | jax.Array  # of shape (..., rows, length)

GSM8K = "train.jsonl and test.jsonl (github.com/openai/grade-school-math, grade_school_math/data)"
_MINUS = "-\u2212\u2013"  # also the Unicode minus, and a dash in its place
# With separators of thousands: commas anywhere, others between groups of three.
_DIGITS = r"(?:\d{1,3}(?:[ '\u2019\u00a0\u2009\u202f]\d{3}){1,9}(?![\d/])|\d[\d,]{0,29})"
_NUMBER = re.compile(
    rf"####[\s*$]*(?P<sign>[{_MINUS}+]?)[\s*$]*(?:(?P<whole>\d{{1,30}})\s+(?=\d+\s*/))?"
    rf"(?P<number>(?:{_DIGITS}(?:\.\d{{1,30}})?|\.\d{{1,30}})(?:[eE][{_MINUS}+]?\d{{1,2}})?)"
    rf"(?!\d|[eE][{_MINUS}+]?\d)"  # no part of a longer one
    r"(?:\s*/\s*(?P<below>\d{1,30}))?"
)


@dataclass(frozen=True)
class Problem:
    """A question and its worked answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Example:
    """A problem's token ids.

    Attributes:
      problem: in words.
      prompt: up to where the model answers.
      answer: with what ends it.
    """

    problem: Problem
    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Data:
    """What a model is trained and tested on.

    Attributes:
      train: examples to train on.
      test: examples to test on.
      too_long: how many of either do not fit the context and are left out.
      length: tokens of a row.
    """

    train: list[Example]
    test: list[Example]
    too_long: Mapping[str, int]
    length: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Rows of token ids.

    Attributes:
      tokens: what the model reads.
      targets: the token after each.
      weights: 1 where the target belongs to an answer, else 0.
      segments: 1, 2, ... for the examples of a row, 0 for padding.
    """

    tokens: Rows
    targets: Rows
    weights: Rows
    segments: Rows


def read_problems(file: Path, limit: int | None = None) -> tuple[list[Problem], int]:
    """Read JSON lines with `question` and `answer`, the first `limit` of them.

    Returns:
      The problems, and the number of blank lines among them, which are skipped.

    Raises:
      FileNotFoundError: naming the file, and where it comes from.
      ValueError: naming file and line, if a line is not such an object, or holds no final number.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; expected GSM8K's {GSM8K}.")
    problems, blank = [], 0
    with file.open("rb") as lines:
        if lines.peek(4).startswith(b"PAR1"):
            raise ValueError(f"{file}: not JSON lines: parquet.")
        for number, line in enumerate(lines, 1):
            if limit is not None and len(problems) == limit:
                break
            if not line.strip():
                blank += 1
                continue
            where = f"{file}, line {number}"
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:  # its own line is always the first
                raise ValueError(f"{where}: not JSON ({error.msg}).") from error
            except ValueError as error:  # no UTF-8
                raise ValueError(f"{where}: not JSON ({error}).") from error
            fields = content if isinstance(content, dict) else {}
            problem = Problem(fields.get("question", ""), fields.get("answer", ""))
            if not all(isinstance(text, str) and text for text in vars(problem).values()):
                raise ValueError(f'{where}: expected {{"question": text, "answer": text}}.')
            if final_number(problem.answer) is None:
                raise ValueError(f"{where}: the answer does not end in '#### number'.")
            problems.append(problem)
    if not problems:
        raise ValueError(f"{file}: there are no problems in it.")
    return problems, blank


def final_number(answer: str) -> Fraction | None:
    r"""Return the number after the last `####`, or None; `$` and `*` are looked past.

    It may have separators of thousands, a power of ten, be a fraction, or have one.

    Example:
      >>> print(final_number("6 * 200 = 1,200\n#### 1,200"), final_number("#### −1 1/2"))
      1200 -3/2
    """
    found = list(_NUMBER.finditer(answer))
    if not found:
        return None
    sign, whole, number, below = found[-1].group("sign", "whole", "number", "below")
    if below is not None and not int(below):
        return None
    plain = re.sub(rf"[{_MINUS}]", "-", number)
    size = Fraction(re.sub(r"[^\d.eE+-]", "", plain)) / int(below or 1) + int(whole or 0)
    return -size if sign and sign in _MINUS else size


def encode(text: Text, problems: Sequence[Problem]) -> list[Example]:
    """Turn problems into token ids."""
    return [
        Example(problem, *text.example(problem.question, problem.answer)) for problem in problems
    ]


def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Assign examples to rows: each to the first row that it still fits into.

    Example:
      >>> pack([5, 3, 4, 2], context=8)
      [[0, 1], [2, 3]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i, length in enumerate(lengths):
        row = next((r for r, left in enumerate(room) if length <= left), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(context)
        rows[row].append(i)
        room[row] -= length
    return rows


def epoch(
    examples: Sequence[Example],
    *,
    seed: int,
    number: int,
    packing: bool,
    length: int,
    rows_per_step: int,
) -> list[list[list[int]]]:
    """Draw the order of an epoch and return which examples each row of each step holds.

    The last step may have fewer rows.

    Args:
      examples: the training examples.
      seed: fixes the order, with `number`.
      number: of the epoch.
      packing: put several examples into a row where they fit.
      length: of a row, in tokens.
      rows_per_step: how many rows a step has.
    """
    order = np.random.default_rng([seed, number]).permutation(len(examples)).tolist()
    if packing:
        packed = pack([len(examples[i]) for i in order], length)
        rows = [[order[i] for i in row] for row in packed]
    else:
        rows = [[i] for i in order]
    return [rows[i : i + rows_per_step] for i in range(0, len(rows), rows_per_step)]


def fill(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], shape: tuple[int, int]
) -> Batch:
    """Lay examples into rows of tokens; what is left of the shape is padding of weight 0."""
    tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    for row, members in enumerate(rows):
        at = 0
        for segment, i in enumerate(members, 1):
            ids = np.array(examples[i].prompt + examples[i].answer)
            end = at + len(ids)
            tokens[row, at:end] = ids
            targets[row, at : end - 1] = ids[1:]
            weights[row, at + len(examples[i].prompt) - 1 : end - 1] = 1
            segments[row, at:end] = segment
            at = end
    return Batch(tokens, targets, weights, segments)


def batches(
    examples: Sequence[Example], rows_per_batch: int, length: int
) -> Iterator[tuple[list[int], Batch]]:
    """Yield examples in order, one a row, for evaluation, with their numbers."""
    for start in range(0, len(examples), rows_per_batch):
        members = list(range(start, min(start + rows_per_batch, len(examples))))
        yield members, fill(examples, [[i] for i in members], (rows_per_batch, length))
