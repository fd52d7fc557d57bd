"""GSM8K: word problems whose answers end in `#### number`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from benchmarks.llm.rows import Example, Problem
from benchmarks.llm.text import Text

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
