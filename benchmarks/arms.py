"""The optimizers that a benchmark compares: the paper's, and any named on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

import qsgd_jax as qsgd
from benchmarks.arm import Arm, Build
from benchmarks.devices import open_device


def adamw(hyper: Mapping[str, Any], learning_rate: Any) -> optax.GradientTransformation:
    """Build AdamW, with optax's β and ε, which are the paper's."""
    return optax.adamw(learning_rate, weight_decay=hyper["weight_decay"])


def superposed(superposition: qsgd.Superposition | None = None, **options: Any) -> Build:
    """Return what builds superpositional AdamW with these options.

    Args:
        superposition: Circuit, coverage and shots; `device` and `probe_shots` among the
            hyperparameters replace its own.
        options: Of `superpositional_adamw`.
    """

    def build(hyper: Mapping[str, Any], learning_rate: Any) -> optax.GradientTransformation:
        return qsgd.superpositional_adamw(
            learning_rate,
            weight_decay=hyper["weight_decay"],
            superposition=_on_device(superposition, hyper.get("device"), hyper.get("probe_shots")),
            key=hyper["seed"],
            **options,
        )

    return build


@functools.cache
def _on_device(
    superposition: qsgd.Superposition | None, name: str | None, probe_shots: int | None
) -> qsgd.Superposition:
    """The same on another device, if one is named; all seeds share its probe."""
    chosen = superposition or qsgd.Superposition()
    changes: dict[str, Any] = {}
    if name is not None:
        changes["device"] = open_device(name, chosen.circuit.n_qubits)
    if probe_shots is not None:
        changes["probe_shots"] = probe_shots
    return dataclasses.replace(chosen, **changes)


# The paper's four arms.
_PAPER = (
    Arm("adam", "Adam", adamw, "optax.adamw"),
    Arm(
        "moments",
        "moment updates",
        superposed(quantum_weight=0.5, weigh="moments"),
        "weighed gradient into Adam, λ = 0.5",
    ),
    Arm(
        "lambda-0.1", "λ = 0.1", superposed(quantum_weight=0.1, weigh="gradient"), "Eq. 1, λ = 0.1"
    ),
    Arm(
        "lambda-0.5", "λ = 0.5", superposed(quantum_weight=0.5, weigh="gradient"), "Eq. 1, λ = 0.5"
    ),
)
ARMS = {arm.name: arm for arm in _PAPER}

_OPTIMIZER_KEYS: Mapping[str, Callable[[str], Any]] = {"quantum_weight": float, "weigh": str}
_SUPERPOSITION_KEYS: Mapping[str, Callable[[str], Any]] = {
    "coverage": str,
    "device": str,
    "execution": str,
    "shots": int,
    "probe_shots": int,
    "target_standard_error": float,
}
_CIRCUIT_KEYS: Mapping[str, Callable[[str], Any]] = {
    "n_qubits": int,
    "depth": int,
    "uploads": int,
    "seed": int,
}
KEYS = {**_OPTIMIZER_KEYS, **_SUPERPOSITION_KEYS, **_CIRCUIT_KEYS}


def parse_arm(specification: str) -> Arm:
    """Read `NAME:key=value,key=value` into an arm of superpositional AdamW.

    Example:
        >>> parse_arm("wide:quantum_weight=0.5,weigh=update,coverage=everywhere").name
        'wide'

    Raises:
        argparse.ArgumentTypeError: If a key or value is not allowed; the message says which are.
    """
    name, colon, listed = specification.partition(":")
    if not colon or not name or not listed:
        raise argparse.ArgumentTypeError(
            f"{specification!r}: expected NAME:KEY=VALUE[,KEY=VALUE...] "
            f"with keys among {', '.join(KEYS)}"
        )
    values: dict[str, Any] = {}
    for item in listed.split(","):
        key, _, text = (part.strip() for part in item.partition("="))
        if key not in KEYS:
            raise argparse.ArgumentTypeError(
                f"{specification!r}: unknown key {key!r}; the keys are {', '.join(KEYS)}"
            )
        try:
            values[key] = KEYS[key](text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{specification!r}: {key}={text!r} must be of type {KEYS[key].__name__}"
            ) from None

    def chosen(keys: Mapping[str, Any]) -> dict[str, Any]:
        return {key: values[key] for key in keys if key in values}

    try:
        superposition = qsgd.Superposition(
            qsgd.Circuit(**chosen(_CIRCUIT_KEYS)), **chosen(_SUPERPOSITION_KEYS)
        )
        # The optimizer checks its own values, here rather than after the first arm has trained.
        qsgd.superpositional_adamw(1e-3, superposition=superposition, **chosen(_OPTIMIZER_KEYS))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{specification!r}: {error}") from None
    return Arm(name, name, superposed(superposition, **chosen(_OPTIMIZER_KEYS)), listed)
