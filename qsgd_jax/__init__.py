"""Superpositional Gradient Descent for JAX: quantum circuits inside an optax optimizer."""

from qsgd_jax import nn
from qsgd_jax.circuit import Circuit
from qsgd_jax.refreshable import RefreshableCoefficients
from qsgd_jax.remote import ProbeAccounting, ProbeError, RemoteProber
from qsgd_jax.superposition import Superposition, superposition_weights
from qsgd_jax.transforms import (
    PerturbationDiagnostics,
    ScaleBySuperpositionState,
    SuperposeState,
    scale_by_superposition,
    superpose,
    superpositional_adamw,
)

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
