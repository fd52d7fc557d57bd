"""The optimizers that a benchmark compares: the paper's, and any named on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax

import qsgd_jax as qsgd
from benchmarks.devices import open_device


@dataclass(frozen=True)
class Arm:
    """One optimizer under test.

    Attributes:
        label: What tables and figures call it.
        settings: What it is, for `--help` and the results.
        optimizer: From the command line's arguments and a seed to the optimizer. Only the state
            that `init` returns may depend on the seed.
    """

    label: str
    settings: str
    optimizer: Callable[[argparse.Namespace, int], optax.GradientTransformation]


def _adam(args: argparse.Namespace, seed: int) -> optax.GradientTransformation:
    del seed  # AdamW is deterministic.
    return optax.adamw(**_adamw_arguments(args))


def superposed(
    label: str, settings: str, superposition: qsgd.Superposition | None = None, **options: Any
) -> Arm:
    """Return the arm of superpositional AdamW with these options."""

    def optimizer(args: argparse.Namespace, seed: int) -> optax.GradientTransformation:
        chosen = _on_device(superposition, args.device, args.probe_shots)
        return qsgd.superpositional_adamw(
            **_adamw_arguments(args), superposition=chosen, key=seed, **options
        )

    return Arm(label, settings, optimizer)


@functools.cache
def _on_device(
    superposition: qsgd.Superposition | None, name: str | None, probe_shots: int | None
) -> qsgd.Superposition:
    """The same on the command line's device, if it names one; all seeds share its probe."""
    chosen = superposition or qsgd.Superposition()
    changes: dict[str, Any] = {}
    if name is not None:
        changes["device"] = open_device(name, chosen.circuit.n_qubits)
    if probe_shots is not None:
        changes["probe_shots"] = probe_shots
    return dataclasses.replace(chosen, **changes)


def _adamw_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The paper's β and ε; its learning rate and weight decay are the command line's defaults."""
    return {
        "learning_rate": args.learning_rate,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": args.weight_decay,
    }


# The paper's four arms.
ARMS: dict[str, Arm] = {
    "adam": Arm("Adam", "optax.adamw", _adam),
    "moments": superposed(
        "moment updates", "weighed gradient into Adam, λ = 0.5", quantum_weight=0.5, weigh="moments"
    ),
    "lambda-0.1": superposed("λ = 0.1", "Eq. 1, λ = 0.1", quantum_weight=0.1, weigh="gradient"),
    "lambda-0.5": superposed("λ = 0.5", "Eq. 1, λ = 0.5", quantum_weight=0.5, weigh="gradient"),
}

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


def parse_arm(specification: str) -> tuple[str, Arm]:
    """Read `NAME:key=value,key=value` into a name and an arm of superpositional AdamW.

    Example:
        >>> name, arm = parse_arm("wide:quantum_weight=0.5,weigh=update,coverage=everywhere")
        >>> name
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
    return name, superposed(name, listed, superposition, **chosen(_OPTIMIZER_KEYS))
