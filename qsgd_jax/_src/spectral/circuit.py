"""The circuit of one qubit whose ⟨Z⟩ is an odd polynomial of a singular value, and its probe."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.core import Tracer
from jaxtyping import Array, Float

from qsgd_jax._src.circuit import open_device
from qsgd_jax._src.probing import probe
from qsgd_jax._src.surrogate import Surrogate

Angles = Float[np.ndarray, " angles"] | Float[Array, " angles"] | Sequence[float]


def spectral_circuit(angles: Angles, device: Any = "lightning.qubit") -> qml.QNode:
    r"""The circuit of one qubit whose answer is an odd polynomial of σ = sin πθ.

    .. math:: |0\rangle \to R_Y(\alpha_1) \to U \to U \to R_Y(\alpha_2) \to U \to U \to \dots \to
      R_Y(\alpha_d) \to U \to R_Y(-\pi/2) \to \langle Z \rangle, \qquad
      U = R_Z(\pi\theta - \pi/2) = R_Z(-\arccos \sigma)

    Its 2d − 1 uploads make a polynomial of that degree, odd in σ whatever the angles are. One
    upload answers σ sin α₁: at α₁ = π/2 the same as the paper's circuit, `H` and `RY(−πθ)`.

    Args:
      angles: α in radians, d of them, as `spectral_angles` makes them.
      device: a PennyLane device, by name or open.

    Returns:
      A QNode of a vector of one input, θ in half turns.

    Raises:
      TypeError: if the angles are no vector of real numbers.
      ValueError: if there is none, or one is not finite.

    Example:
      >>> import pennylane as qml, qsgd_jax as qsgd
      >>> circuit = qsgd.spectral_circuit(qsgd.spectral_angles([0.5]))
      >>> print(qml.draw(circuit)([0.5]))
      0: ──RY(2.62)──RZ(0.00)──RY(-1.57)─┤  <Z>

    References:
      Quantum signal processing: Low, Chuang, arXiv:1606.02685.
    """
    angles, opened = checked_angles(angles), open_device(device, 1)

    def spectral(theta: Any) -> Any:
        return _answer(angles, _wire(opened), theta)

    return qml.QNode(spectral, opened)


def probed(angles: Angles, device: Any, shots: int | None) -> Surrogate:
    """What the circuit answers on a device; traced where its angles are."""
    angles = checked_angles(angles)
    if device is None:
        device = "default.qubit" if isinstance(angles, Tracer) else "lightning.qubit"
    opened = open_device(device, 1)
    asked = functools.partial(qml.QNode(_answer, opened), angles, _wire(opened))
    return probe(asked, n_inputs=1, degree=2 * len(angles) - 1, period=2, shots=shots)


def checked_angles(angles: Any) -> Angles:
    """Angles of a circuit, as a vector."""
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(angles)):
        return jnp.asarray(angles)
    found = np.asarray(angles)
    if found.ndim != 1 or found.dtype.kind not in "fiu":
        raise TypeError(f"angles={angles!r} must be a vector of real numbers.")
    if not found.size or not np.isfinite(found).all():
        raise ValueError(f"angles={angles!r} must be finite, at least one.")
    return np.asarray(found, np.float64)


def _wire(device: Any) -> Any:
    return 0 if device.wires is None else device.wires[0]


def _answer(angles: Any, wire: Any, theta: Any) -> Any:
    upload = np.pi * theta[0] - np.pi / 2
    for j in range(len(angles)):
        qml.RY(angles[j], wire)
        for _ in range(1 if j == len(angles) - 1 else 2):
            qml.RZ(upload, wire)
    qml.RY(-np.pi / 2, wire)
    return qml.expval(qml.Z(wire))
