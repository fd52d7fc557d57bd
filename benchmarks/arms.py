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


def spectral(hyper: Mapping[str, Any], learning_rate: Any) -> optax.GradientTransformation:
    """Build the spectral form, with the weight decay of AdamW's arm."""
    decay = hyper["weight_decay"]
    return qsgd.superpositional_muon(learning_rate, weight_decay=decay, adam_weight_decay=decay)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where an arm's superposition weights come from: a circuit, and how it is probed.

    Attributes:
        n_qubits: Of `qsgd_jax.Circuit`.
        depth: Of `qsgd_jax.Circuit`.
        uploads: Of `qsgd_jax.Circuit`.
        seed: Of `qsgd_jax.Circuit`.
        shots: Of `qsgd_jax.sampled`, drawn anew in each step; `None` for exact weights.
        device: Of `qsgd_jax.probe`.
        probe_shots: `shots` of `qsgd_jax.probe`.
        target_standard_error: Of `qsgd_jax.probe`.
    """

    n_qubits: int = 4
    depth: int = 0
    uploads: int = 1
    seed: int = 0
    shots: int | None = None
    device: str | None = None
    probe_shots: int | None = None
    target_standard_error: float | None = None

    def probed(self, device: str | None = None, probe_shots: int | None = None) -> Any:
        """Probe the circuit, on another device or with other shots where they are given."""
        return _probed(self, device, probe_shots)


@functools.cache
def _probed(weights: Weights, device: str | None, probe_shots: int | None) -> Any:
    """What answers these weights; all seeds share it."""
    circuit = qsgd.Circuit(weights.n_qubits, weights.depth, weights.uploads, seed=weights.seed)
    surrogate = qsgd.probe(
        circuit,
        readout="expectation" if weights.shots is None else "probabilities",
        device=weights.device if device is None else open_device(device, weights.n_qubits),
        shots=weights.probe_shots if probe_shots is None else probe_shots,
        target_standard_error=weights.target_standard_error,
    )
    return surrogate if weights.shots is None else qsgd.sampled(surrogate, weights.shots)


def superposed(weights: Weights | None = None, **options: Any) -> Build:
    """Return what builds superpositional AdamW with these options.

    Args:
        weights: By default those of `qsgd_jax.Circuit()`; `device` and `probe_shots` among the
            hyperparameters replace their own.
        options: Of `superpositional_adamw`.
    """
    chosen = weights or Weights()

    def build(hyper: Mapping[str, Any], learning_rate: Any) -> optax.GradientTransformation:
        return qsgd.superpositional_adamw(
            learning_rate,
            weight_decay=hyper["weight_decay"],
            surrogate=chosen.probed(hyper.get("device"), hyper.get("probe_shots")),
            key=hyper["seed"],
            **options,
        )

    return build


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

_OPTIMIZER_KEYS: Mapping[str, Callable[[str], Any]] = {
    "quantum_weight": float,
    "weigh": str,
    "coverage": str,
}
_WEIGHTS_KEYS: Mapping[str, Callable[[str], Any]] = {
    "device": str,
    "shots": int,
    "probe_shots": int,
    "target_standard_error": float,
    "n_qubits": int,
    "depth": int,
    "uploads": int,
    "seed": int,
}
KEYS = {**_OPTIMIZER_KEYS, **_WEIGHTS_KEYS}


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

    weights, options = Weights(**chosen(_WEIGHTS_KEYS)), chosen(_OPTIMIZER_KEYS)
    try:
        # Circuit and optimizer check their values, here rather than after the first arm has
        # trained.
        qsgd.superpositional_adamw(1e-3, surrogate=weights.probed(), **options)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{specification!r}: {error}") from None
    return Arm(name, name, superposed(weights, **options), listed)
