"""The three optimizers of the study, and how each is tuned.

Each is tuned over the same points of the unit cube: learning rate, weight decay, warm-up, one decay
rate of three, and one choice of two, which is a variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

import qsgd_jax as qsgd
from benchmarks.arm import Build
from benchmarks.spectral_time import optax_muon
from experiments.engine.contender import BASELINE, Contender

# Of training from scratch, and of fine-tuning: around what was best on tasks that were looked at.
RATES = (1e-3, 1e-1)
FINE_TUNING_RATES = (1e-4, 1e-2)

SPECTRAL, MUON = "spectral", "muon"
SECOND_MOMENT = "spectral-second-moment"


def _adamw(nesterov: bool) -> Build:
    def build(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
        decay = hyper["weight_decay"]
        return optax.adamw(schedule, b2=hyper["b2"], weight_decay=decay, nesterov=nesterov)

    return build


def muon(**options: Any) -> Build:
    """Return what builds `optax.contrib.muon` on the leaves that the spectral form takes.

    Args:
        options: Of `optax.contrib.muon`; its updates are scaled as the spectral form's, and its
            Adam has that one's β₂.
    """

    def build(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
        decay = hyper["weight_decay"]
        rest = {"beta": hyper["beta"], "weight_decay": decay, "adam_weight_decay": decay}
        rest |= {"consistent_rms": 0.2, "adam_b2": 0.99}
        return optax_muon(schedule, **(rest | options))

    return build


def spectral(cascade: Any = "polar-express", **options: Any) -> Build:
    """Return what builds the spectral form.

    Args:
        cascade: Of `superpositional_muon`.
        options: Likewise.
    """

    def build(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
        decay = hyper["weight_decay"]
        rest = {"beta": hyper["beta"], "weight_decay": decay, "adam_weight_decay": decay}
        return qsgd.superpositional_muon(schedule, cascade, **(rest | options))

    return build


_B2 = (("b2", (0.95, 0.99, 0.999)),)
_BETA = (("beta", (0.85, 0.9, 0.95)),)

ARMS: dict[str, tuple[Contender, ...]] = {
    BASELINE: (
        Contender(BASELINE, "AdamW", _adamw(nesterov=False), choices=_B2),
        Contender("adamw-nesterov", "AdamW, Nesterov", _adamw(nesterov=True), choices=_B2),
    ),
    MUON: (
        Contender(MUON, "Muon", muon(), choices=_BETA),
        Contender("muon-plain", "Muon, without Nesterov", muon(nesterov=False), choices=_BETA),
    ),
    SPECTRAL: (
        Contender(SPECTRAL, "spectral", spectral(), choices=_BETA),
        Contender(
            SECOND_MOMENT,
            "spectral, second moment",
            spectral(second_moment="entry"),
            choices=_BETA,
        ),
    ),
}
LABELS = {BASELINE: "AdamW", MUON: "Muon", SPECTRAL: "the spectral form"}
