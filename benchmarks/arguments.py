"""Numbers of the command line that argparse does not check itself."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any


def positive(kind: type) -> Any:
    """Return a parser of positive numbers."""
    return _parser_of(kind, lambda value: 0 < value < math.inf, "must be greater than 0")


def not_negative(kind: type) -> Any:
    """Return a parser of numbers from 0 on."""
    return _parser_of(kind, lambda value: 0 <= value < math.inf, "must not be less than 0")


def _parser_of(kind: type, allowed: Callable[[Any], bool], words: str) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} {words}")
        return value

    parse.__name__ = kind.__name__  # argparse names it when `kind` refuses the text.
    return parse
