"""Where a transformation's weights come from: its arguments, and its part of the state."""

import functools
import reprlib
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32

from qsgd_jax._src.coverage import Coverage, coverage_of
from qsgd_jax._src.diagnostics import no_perturbation, report
from qsgd_jax._src.direct import Direct
from qsgd_jax._src.refreshable import Refreshable, RefreshableCoefficients
from qsgd_jax._src.sampling import Sampled, key_data, step_key
from qsgd_jax._src.surrogate import Surrogate
from qsgd_jax._src.typing import PyTree
from qsgd_jax._src.weighing import Weigher, weigh

AnySurrogate = Surrogate | Sampled | Refreshable | Direct
AnyCoverage = Coverage | Literal["leading", "everywhere"]


def superposition_weights(
    surrogate: AnySurrogate,
    params: PyTree,
    coverage: AnyCoverage = "leading",
    *,
    key: Array | int = 0,
) -> PyTree:
    r"""What the circuit says about parameters: the weight of every coordinate.

    .. math:: w_j(\theta) = \langle Z_j \rangle_{\theta_1 \dots \theta_n}

    Args:
      surrogate: what answers the weights, as for `scale_by_superposition`.
      params: arrays of any shape and dtype.
      coverage: which coordinates are weighed, as for `scale_by_superposition`.
      key: a seed or a random key; used for `sampled` weights only. The transforms draw the same
        sample in their first step from the same key.

    Returns:
      For each leaf an array of its shape with values in [−1, 1], zero where no weight
      acts; float32, or float64 for double precision. A complex leaf is weighed as two
      real ones and gets a complex array.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if the surrogate has not one output for each input, within ±1.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> params = {"bias": jnp.array([0.5, -0.5, 0.0, 1.0, 0.5])}
      >>> print(qsgd.superposition_weights(qsgd.probe(qsgd.Circuit()), params)["bias"])
      [ 1. -1.  0.  0.  0.]

    References:
      Eq. 2 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918.
    """
    weigher = chosen(surrogate)
    weigher = weigher.surrogate if isinstance(weigher, Refreshable) else weigher
    step = step_key(key_data(key), 0) if isinstance(weigher, Sampled) else None
    weights = weigh(weigher, coverage_of(coverage), params, None, key=step)
    return jax.tree.map(
        lambda leaf, w: jnp.zeros(jnp.shape(leaf)) if w is None else w, params, weights
    )


class Source:
    """Where a transformation's weights come from, and the part of its state that they need."""

    def __init__(
        self, quantum_weight: Any, surrogate: Any, coverage: Any, key: Any, diagnostics: bool
    ):
        _check_quantum_weight(quantum_weight)
        self._quantum_weight, self._surrogate = quantum_weight, chosen(surrogate)
        self.coverage = coverage_of(coverage)
        self._seed, self._diagnostics = key_data(key), diagnostics

    def init(self) -> tuple[Any, Any, Any, Any]:
        """Count, key, diagnostics and coefficients of a new state."""
        held = self._surrogate.initial() if isinstance(self._surrogate, Refreshable) else None
        diagnostics = no_perturbation() if self._diagnostics else None
        return jnp.zeros((), jnp.int32), jnp.copy(self._seed), diagnostics, held

    def now(self, state: Any) -> tuple[Weigher, Float[Array, ""], Array | None]:
        """What answers the weights in this step, λ, and the random key."""
        for name, shape, dtype in (("count", (), jnp.int32), ("key", (2,), jnp.uint32)):
            found = jax.typeof(getattr(state, name))
            if (found.shape, found.dtype) != (shape, dtype):
                raise ValueError(
                    f"{name} of {found} in the state must be {jax.ShapeDtypeStruct(shape, dtype)}."
                )
        strength: Any = self._quantum_weight
        strength = strength(state.count) if callable(strength) else strength
        if jnp.shape(strength) != ():
            raise ValueError(f"quantum_weight of shape {jnp.shape(strength)} must be a scalar.")
        weigher, key = self._surrogate, None
        if isinstance(weigher, Refreshable):
            weigher = weigher.current(state.coefficients)
        if isinstance(weigher, Sampled):
            key = step_key(state.key, state.count)
        return weigher, jnp.real(jnp.asarray(strength)), key

    def next(
        self, state: Any, before: PyTree, after: PyTree, gradients: PyTree, params: PyTree
    ) -> tuple[Any, Any, Any, Any]:
        """The same of the state after this step."""
        diagnostics = None
        if self._diagnostics:
            n = self._surrogate.n_inputs
            diagnostics = report(self.coverage, n, before, after, gradients, params)
        held: RefreshableCoefficients | None = state.coefficients
        if held is not None:
            age, since = _next(held.age), _next(held.steps_since_request)
            held = held._replace(age=age, steps_since_request=since)
        return _next(state.count), state.key, diagnostics, held


@functools.cache
def _default_surrogate() -> Surrogate:
    """Shared, so that `inject_hyperparams`, which rebuilds its optimizer, probes once."""
    from qsgd_jax._src.circuit import Circuit  # imports PennyLane, for those who need it
    from qsgd_jax._src.probing import probe

    return probe(Circuit())


def chosen(surrogate: Any) -> AnySurrogate:
    """What answers the weights: the argument, once it is known to do so, or the default."""
    if surrogate is None:
        return _default_surrogate()
    if not isinstance(surrogate, AnySurrogate):
        raise TypeError(
            f"surrogate={reprlib.repr(surrogate)} must be what qsgd_jax.probe, sampled, "
            "refreshable or Direct makes; of a circuit, qsgd_jax.probe(circuit)."
        )
    if not isinstance(surrogate, Sampled):
        _check_weights(surrogate.surrogate if isinstance(surrogate, Refreshable) else surrogate)
    return surrogate


def _check_weights(surrogate: Surrogate | Direct) -> None:
    if surrogate.readout != "expectation" or surrogate.n_outputs != surrogate.n_inputs:
        raise ValueError(
            f"surrogate={surrogate!r} has {surrogate.n_outputs} outputs of readout="
            f"{surrogate.readout!r}; allowed are expectations, one for each of its "
            f"{surrogate.n_inputs} inputs (of joint probabilities qsgd_jax.sampled makes weights)."
        )
    if isinstance(surrogate, Surrogate) and not surrogate.traced:
        largest, shots = surrogate.largest, surrogate.shots
        if largest > 1 + (1e-6 if shots is None else 5 / shots**0.5):
            raise ValueError(
                f"surrogate={surrogate!r} has an output of {largest:.3g}; weights lie within ±1."
            )


def _check_quantum_weight(quantum_weight: Any) -> None:
    if callable(quantum_weight) or isinstance(quantum_weight, Tracer):
        return
    allowed = "a finite real number, a scalar array or a schedule"
    # `inject_hyperparams` holds numbers in the dtype of the parameters, which may be complex.
    number = isinstance(quantum_weight, (int, float, complex, np.number, np.ndarray, jax.Array))
    if not number or isinstance(quantum_weight, bool) or np.any(np.imag(quantum_weight)):
        raise TypeError(f"quantum_weight={quantum_weight!r} must be {allowed}.")
    value = np.asarray(np.real(quantum_weight))
    if value.dtype.kind in "bOSU":
        raise TypeError(f"quantum_weight={quantum_weight!r} must be {allowed}.")
    if value.shape != () or not np.isfinite(value.astype(np.float64)):
        raise ValueError(f"quantum_weight={quantum_weight!r} must be {allowed}.")


def _next(count: Int32[Array, ""]) -> Int32[Array, ""]:
    return cast(Array, optax.safe_increment(count))
