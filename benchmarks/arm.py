"""An optimizer under test, as every script that compares some knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax

Build = Callable[[Mapping[str, Any], Any], optax.GradientTransformation]


@dataclass(frozen=True)
class Arm:
    """One optimizer under test.

    Attributes:
        name: What files and the command line call it.
        label: What tables and figures call it.
        build: From the hyperparameters and the learning rate, a number or an `optax.Schedule`, to
            the optimizer. Only the state that its `init` returns may depend on the `seed` among
            the hyperparameters.
        settings: What else its results depend on, for `--help` and to tell results apart.
    """

    name: str
    label: str
    build: Build
    settings: str = ""
