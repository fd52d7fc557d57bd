"""Parametrize a test by pairs of values where all combinations would prove nothing more."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def covering(factors: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Combinations in which each value of a factor meets each value of every other one.

    Example:
        >>> covering([[0, 1], [0, 1], [0, 1]])
        [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    """

    assert len(factors) > 1, "of one factor there are no pairs"

    def pairs(row):
        return set(itertools.combinations(enumerate(row), 2))

    numbers = list(itertools.product(*(range(len(factor)) for factor in factors)))
    missing = set().union(*map(pairs, numbers))
    rows = []
    while missing:  # of the combinations the first that brings most
        rows.append(max(numbers, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return [tuple(f[i] for f, i in zip(factors, row, strict=True)) for row in rows]


def pairwise(*, indirect: Sequence[str] = (), **factors: Sequence[Any]) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize` by a covering of these factors; `indirect` ones are fixtures."""
    return pytest.mark.parametrize(tuple(factors), covering([*factors.values()]), indirect=indirect)
