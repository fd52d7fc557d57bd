"""Superpositional Gradient Descent for JAX: quantum circuits inside an optax optimizer."""

import importlib
from typing import TYPE_CHECKING, Any

from qsgd_jax._src.coverage import Everywhere, Leading
from qsgd_jax._src.diagnostics import PerturbationDiagnostics
from qsgd_jax._src.direct import Direct
from qsgd_jax._src.natural import ScaleByMetricState, scale_by_metric
from qsgd_jax._src.provenance import VERSION, Provenance
from qsgd_jax._src.refreshable import RefreshableCoefficients, refreshable
from qsgd_jax._src.sampling import sampled
from qsgd_jax._src.source import superposition_weights
from qsgd_jax._src.spectral.angles import spectral_angles
from qsgd_jax._src.spectral.cascade import SpectralCascade
from qsgd_jax._src.spectral.routing import SpectralRouting, spectral_routing
from qsgd_jax._src.spectral.state import ScaleBySpectralSuperpositionState
from qsgd_jax._src.spectral.transforms import (
    scale_by_spectral_superposition,
    superpositional_muon,
)
from qsgd_jax._src.spectral.warm_start import warm_start
from qsgd_jax._src.surrogate import Surrogate
from qsgd_jax._src.transforms import (
    ScaleBySuperpositionState,
    SuperposeState,
    scale_by_superposition,
    superpose,
    superpositional_adamw,
)

if TYPE_CHECKING:
    from qsgd_jax import nn
    from qsgd_jax._src.circuit import Circuit
    from qsgd_jax._src.hybrid.fubini_study import FubiniStudy
    from qsgd_jax._src.probing import probe
    from qsgd_jax._src.remote.beside import ProbeError
    from qsgd_jax._src.remote.metric_prober import MetricProber
    from qsgd_jax._src.remote.prober import RemoteProber
    from qsgd_jax._src.remote.schedule import ProbeAccounting
    from qsgd_jax._src.spectral.building import spectral_cascade
    from qsgd_jax._src.spectral.circuit import spectral_circuit

__version__ = VERSION

__all__ = [
    "Circuit",
    "Direct",
    "Everywhere",
    "FubiniStudy",
    "Leading",
    "MetricProber",
    "PerturbationDiagnostics",
    "ProbeAccounting",
    "ProbeError",
    "Provenance",
    "RefreshableCoefficients",
    "RemoteProber",
    "ScaleByMetricState",
    "ScaleBySpectralSuperpositionState",
    "ScaleBySuperpositionState",
    "SpectralCascade",
    "SpectralRouting",
    "SuperposeState",
    "Surrogate",
    "nn",
    "probe",
    "refreshable",
    "sampled",
    "scale_by_metric",
    "scale_by_spectral_superposition",
    "scale_by_superposition",
    "spectral_angles",
    "spectral_cascade",
    "spectral_circuit",
    "spectral_routing",
    "superpose",
    "superposition_weights",
    "superpositional_adamw",
    "superpositional_muon",
    "warm_start",
]

# Imported when first asked for: these import PennyLane, `nn` imports Flax.
_LATER = {
    "Circuit": "circuit",
    "FubiniStudy": "hybrid.fubini_study",
    "MetricProber": "remote.metric_prober",
    "ProbeAccounting": "remote.schedule",
    "ProbeError": "remote.beside",
    "RemoteProber": "remote.prober",
    "probe": "probing",
    "spectral_cascade": "spectral.building",
    "spectral_circuit": "spectral.circuit",
}


def __getattr__(name: str) -> Any:
    if name == "nn":
        return importlib.import_module("qsgd_jax.nn")
    if name in _LATER:
        return getattr(importlib.import_module(f"qsgd_jax._src.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
