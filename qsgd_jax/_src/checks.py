"""Checks of arguments that several classes take; they name argument, value and what is allowed."""

import math
from typing import Any

import numpy as np


def check_integer(name: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no integer in `[least, most]`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}={value!r} must be an integer in [{least}, {most}].")
    if not least <= value <= most:
        raise ValueError(f"{name}={value} must be an integer in [{least}, {most}].")


def check_seconds(name: str, value: Any) -> None:
    """Refuse what is no positive, finite number of seconds."""
    _check_number(name, value, "a number of seconds")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be more than 0 seconds, and finite.")


def shots_for(target_standard_error: Any, largest: float) -> int:
    """The shots after which no weight's standard error is greater, ⌈1/σ²⌉."""
    allowed = f"in [0.0001, {largest:g}]: 1/σ² shots are taken of each setting"
    _check_number("target_standard_error", target_standard_error, f"a number {allowed}")
    if not 1e-4 <= target_standard_error <= largest:
        raise ValueError(f"target_standard_error={target_standard_error} must lie {allowed}.")
    return math.ceil(1 / target_standard_error**2)


def _check_number(name: str, value: Any, allowed: str) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}={value!r} must be {allowed}.")
