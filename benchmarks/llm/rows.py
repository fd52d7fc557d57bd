"""Problems as rows of token ids, several to a row where they fit.

Needs neither tokenizer nor checkpoint, so that what only times a training step needs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

Rows = np.ndarray | jax.Array  # of shape (..., rows, length)


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
