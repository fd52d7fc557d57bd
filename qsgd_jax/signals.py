"""Circuits that read the optimizer's signals about each coordinate, and gate its step by them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from qsgd_jax import fourier
from qsgd_jax.circuit import Circuit
from qsgd_jax.superposition import Superposition

Signal = Literal["update", "gradient", "parameter", "agreement"]
"""What a qubit reads: Adam's step u, the normalised gradient ĝ, θ over its tensor's RMS, u ĝ."""


@dataclasses.dataclass(frozen=True, eq=False)
class SignalSuperposition:
    r"""How the optimizer's signals about a coordinate become two gates of its step.

    .. math::
      z_1, z_2 = \tfrac12 \big( \langle Z_n \rangle_s + \langle Z_n \rangle_{\bar s} \big),
      \tfrac12 \big( \langle Z_{n-1} \rangle_s + \langle Z_{n-1} \rangle_{\bar s} \big), \qquad
      s_j = \tfrac1\pi \arctan c_j x_j \in (-\tfrac12, \tfrac12)

    Each coordinate has a circuit of its own, whose qubits carry signals x about it, scaled by c, as
    parameters are carried elsewhere: `H`, then `RY(−π s)`. The last two qubits are read out; what
    entangles the qubits lets the signals interact. The step that they gate is that of
    `superpose_signals`.

    Where u, ĝ and θ all change sign, :math:`\bar s`, so does the step, as Adam's own does: the
    readouts are averaged over both (twirled), which on the Fourier form about zero is to leave out
    half of the terms.

    Args:
      circuit: the circuit, of as many qubits as there are signals, two at least.
      quantum_weights: λ₁ of the update and λ₂ of the gradient, two finite numbers; they may be
        traced.
      learning_rate_factor: κ, by which the gated step is multiplied, so that the learning rate of
        AdamW serves as it is; it may be traced.
      signals: what the qubits read, in their order: `"update"`, Adam's step u; `"gradient"`, the
        gradient over the same root, ĝ; `"parameter"`, θ over the root mean square of its tensor
        (0 where that is 0); `"agreement"`, u ĝ.
      signal_scales: c, by which each signal is multiplied before it is squashed, finite numbers in
        the order of `signals`, which may be traced; None for 1 each. Late in training |u ĝ| is
        small, and a gate that reads its sign needs c ≫ 1.
      device: a PennyLane device name or instance.
      probe_shots: as in `Superposition`.
      target_standard_error: as in `Superposition`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if signals are unknown or named twice, the circuit has another number of qubits,
        a number is not finite, or `Superposition` refuses circuit or device.

    Example:
      >>> import numpy as np, qsgd_jax as qsgd
      >>> circuit = qsgd.Circuit(n_qubits=2, depth=1, weights=np.zeros((1, 2, 2)))
      >>> gates = qsgd.SignalSuperposition(circuit, (0.5, 0.0), signals=("update", "gradient"))
      >>> z1, z2 = gates.readouts(update=1.0, gradient=-1.0, parameter=0.0)
      >>> print(z1.round(6), z2.round(6))  # a CNOT lets z1 see both: sin ¼π · sin(−¼π)
      -0.5 0.0

    References:
      The circuit is that of Pamuk, Özdemir, Kocabay, arXiv:2511.01918; that it reads signals is
      this package's own idea. Twirling: Meyer et al., "Exploiting symmetry in variational quantum
      machine learning", arXiv:2205.06217.
    """

    circuit: Circuit
    quantum_weights: Any = (0.5, 0.5)
    learning_rate_factor: Any = 1.0
    signals: tuple[str, ...] = get_args(Signal)
    signal_scales: Any = None
    device: Any = "lightning.qubit"
    probe_shots: int | None = None
    target_standard_error: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "signals", tuple(self.signals))
        allowed = ", ".join(map(repr, get_args(Signal)))
        if not set(self.signals) <= set(get_args(Signal)) or len(set(self.signals)) != len(
            self.signals
        ):
            raise ValueError(f"signals={self.signals!r} must be different ones among {allowed}.")
        if len(self.signals) < 2:
            raise ValueError(f"signals={self.signals!r} must be at least two of {allowed}.")
        if isinstance(self.circuit, Circuit) and self.circuit.n_qubits != len(self.signals):
            raise ValueError(
                f"circuit has n_qubits={self.circuit.n_qubits}, where signals={self.signals!r} "
                f"need {len(self.signals)}."
            )
        if self.signal_scales is not None:
            count = len(self.signals)
            allowed = f"{count} finite numbers, one for each signal"
            _check_numbers("signal_scales", self.signal_scales, (count,), allowed)
        _check_numbers("quantum_weights", self.quantum_weights, (2,), "two finite numbers, λ₁, λ₂")
        _check_numbers("learning_rate_factor", self.learning_rate_factor, (), "a finite number")
        _ = self._probed  # checks circuit and device
        if self.circuit.traced:
            _ = self.coefficients  # in the trace that owns the angles, not in one within it

    @functools.cached_property
    def _probed(self) -> Superposition:
        return Superposition(
            self.circuit,
            device=self.device,
            execution="fourier",
            probe_shots=self.probe_shots,
            target_standard_error=self.target_standard_error,
        )

    @functools.cached_property
    def coefficients(self):
        """The Fourier coefficients of z₁ and z₂, `(2, 2R + 1, …)`."""
        probed = self._probed.coefficients[:-3:-1]
        return fourier.about_zero(probed, self.circuit.origin) * self._support

    @functools.cached_property
    def _support(self) -> Bool[np.ndarray, "2 ..."]:
        """The terms of z₁ and z₂ that the average over mirrored signals keeps."""
        shape = (2 * self.circuit.uploads + 1,) * self.circuit.n_qubits
        even = fourier.mirrored_evenly(shape, [name != "agreement" for name in self.signals])
        known = self._probed.support
        if known is None:
            return np.stack([even] * 2)
        anywhere = np.full(self.circuit.n_qubits, 0.1)  # an origin of no special value
        return even & (np.abs(fourier.about_zero(known[:-3:-1] * 1.0, anywhere)) > 1e-9)

    def readouts(self, update: Any, gradient: Any, parameter: Any) -> tuple[Array, Array]:
        r"""The gates z₁ and z₂ of coordinates with these signals.

        .. math::
          z_1, z_2 = \tfrac12 \big( \langle Z_n \rangle_s + \langle Z_n \rangle_{\bar s} \big),
          \tfrac12 \big( \langle Z_{n-1} \rangle_s + \langle Z_{n-1} \rangle_{\bar s} \big)

        Args:
          update: u, any shape.
          gradient: ĝ, of that shape.
          parameter: θ over the root mean square of its tensor, of that shape.

        Returns:
          Two arrays of that shape in [−1, 1], float32 (float64 for double precision).

        Example:
          >>> import qsgd_jax as qsgd
          >>> gates = qsgd.SignalSuperposition(qsgd.Circuit(n_qubits=4))  # sin πs of the last two
          >>> z1, z2 = gates.readouts(update=1.0, gradient=0.75, parameter=0.75)
          >>> print(z1, z2)  # the second is odd: what is left of it is nothing
          0.6 0.0
        """
        update, gradient, parameter = map(jnp.asarray, (update, gradient, parameter))
        dtype = jnp.promote_types(jnp.result_type(update, gradient, parameter), jnp.float32)
        values = {"update": update, "gradient": gradient, "parameter": parameter}
        signals = {name: value.astype(dtype) for name, value in values.items()}
        signals["agreement"] = signals["update"] * signals["gradient"]
        read = [signals[name] for name in self.signals]
        if self.signal_scales is not None:
            scales = (jnp.asarray(scale, dtype) for scale in self.signal_scales)
            read = [scale * x for scale, x in zip(scales, read, strict=True)]
        return self.answers(read)

    def answers(self, signals: Sequence[Float[Array, "..."]]) -> tuple[Array, Array]:
        """z₁ and z₂ of the scaled signals c x, an array for each qubit, all of one shape and dtype.

        What this returns is all that the step asks of a circuit: a subclass may answer by
        something else, as a control.

        Example:
          >>> import jax.numpy as jnp, qsgd_jax as qsgd
          >>> gates = qsgd.SignalSuperposition(qsgd.Circuit(n_qubits=4))
          >>> z1, z2 = gates.answers([jnp.float32(x) for x in (0, 0, 1, 0.75)])
          >>> print(z1, z2)
          0.6 0.0
        """
        points = [_on_circle(x) for x in signals]
        z1, z2 = fourier.evaluate_on_circle(self.coefficients, points, self._support)
        return z1, z2

    @functools.cached_property
    def gated(self):
        """κ (u (1 + λ₁ z₁) + λ₂ z₂ tanh ĝ) for one real leaf.

        Traced once for each shape, unless something in it is traced itself.
        """

        def gated(update: Array, gradient: Array, theta: Array) -> Array:
            dtype = jnp.promote_types(theta.dtype, jnp.float32)
            u, g, theta = (x.astype(dtype) for x in (update, gradient, theta))
            z1, z2 = self.readouts(u, g, theta * _over_rms(theta))
            first, second = (jnp.asarray(x, dtype) for x in self.quantum_weights)
            step = u * (1 + first * z1) + second * z2 * jnp.tanh(g)
            return (jnp.asarray(self.learning_rate_factor, dtype) * step).astype(update.dtype)

        numbers = jax.tree.leaves(
            (self.quantum_weights, self.learning_rate_factor, self.signal_scales)
        )
        traced = self.circuit.traced or any(isinstance(x, Tracer) for x in numbers)
        # A function that closes over what is traced must not outlive that trace.
        return gated if traced else jax.jit(gated)


def _on_circle(x: Float[Array, "..."]) -> tuple[Array, Array]:
    """(cos πs, sin πs) of s = arctan(x)/π, by algebra alone."""
    x = jnp.clip(x, -1e18, 1e18)  # beyond, where s = ±½ to rounding, the square leaves float32
    cosine = jax.lax.rsqrt(1 + x * x)
    return cosine, x * cosine


def _over_rms(theta: Float[Array, "..."]) -> Float[Array, ""]:
    """One over the root mean square, 0 where that is 0."""
    mean = jnp.sum(theta * theta) / max(theta.size, 1)
    # The inner choice keeps the root's derivative finite.
    return jnp.where(mean > 0, jax.lax.rsqrt(jnp.where(mean > 0, mean, 1)), 0)


def _check_numbers(name: str, value: Any, shape: tuple[int, ...], allowed: str) -> None:
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(value)):
        found = jnp.shape(value) if isinstance(value, Tracer) else (len(value),)
        if found != shape:
            raise ValueError(f"{name} of shape {found} must be {allowed}.")
        return
    try:
        array = np.asarray(value)
        fits = array.dtype.kind in "fiu" and array.shape == shape and np.isfinite(array).all()
    except ValueError:  # lists of unequal lengths
        fits = False
    if not fits:
        raise ValueError(f"{name}={value!r} must be {allowed}.")
