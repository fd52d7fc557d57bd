"""Superpositional Gradient Descent for JAX: quantum circuits inside an optax optimizer."""

import importlib
from typing import TYPE_CHECKING, Any

from qsgd_jax._src.circuit import Circuit
from qsgd_jax._src.refreshable import RefreshableCoefficients
from qsgd_jax._src.remote.prober import ProbeAccounting, ProbeError, RemoteProber
from qsgd_jax._src.superposition import Superposition, superposition_weights
from qsgd_jax._src.transforms import (
    PerturbationDiagnostics,
    ScaleBySuperpositionState,
    SuperposeState,
    scale_by_superposition,
    superpose,
    superpositional_adamw,
)

if TYPE_CHECKING:
    from qsgd_jax import nn

__version__ = "0.1.0"

__all__ = [
    "Circuit",
    "PerturbationDiagnostics",
    "ProbeAccounting",
    "ProbeError",
    "RefreshableCoefficients",
    "RemoteProber",
    "ScaleBySuperpositionState",
    "SuperposeState",
    "Superposition",
    "nn",
    "scale_by_superposition",
    "superpose",
    "superposition_weights",
    "superpositional_adamw",
]


def __getattr__(name: str) -> Any:
    if name == "nn":  # imports Flax, for those who use it
        return importlib.import_module("qsgd_jax.nn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
