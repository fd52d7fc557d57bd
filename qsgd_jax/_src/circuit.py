"""The ansatz whose answer is the superposition weight, as a PennyLane circuit."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jax.core import Tracer
from jaxtyping import Array, Float
from pennylane.devices import Device

from qsgd_jax._src.compatibility import mend_pennylane

mend_pennylane()

# Of PennyLane's plugins, by the beginning of their devices' names.
_PACKAGES = {
    "braket.": "amazon-braket-pennylane-plugin",
    "cirq.": "pennylane-cirq",
    "ionq.": "pennylane-ionq",
    "lightning.gpu": "pennylane-lightning-gpu",
    "lightning.kokkos": "pennylane-lightning-kokkos",
    "lightning.tensor": "pennylane-lightning-tensor",
    "qiskit.": "pennylane-qiskit",
}

Readout = Literal["expectation", "probabilities", "amplitudes"]
"""What a circuit answers: ⟨Z_j⟩ of each qubit, or each bitstring's probability or amplitude."""


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
    r"""A circuit that turns a block of parameters into superposition weights.

    .. math::
      |\psi(\theta)\rangle = \prod_{l=0}^{L}
        \Big[ C \prod_j R_Z(\phi_{lj}) R_Y(\omega_{lj}) \Big]_{l<L}
        \Big[ \prod_j R_Y(-\pi \theta_j) \Big]_{l<R} \; H^{\otimes n} |0\rangle,
      \qquad w_j = \langle Z_j \rangle \in [-1, 1]

    with `L = depth` layers, `R = uploads` and `C` a chain of CNOTs between
    neighbours. At depth 0, `w_j = sin(πθ_j)`. The RZ of the last layer commute
    with the readout and cannot move it, unless an encoding follows
    (`uploads = depth + 1`); they are kept as the paper draws them.

    Args:
      n_qubits: how many coordinates share one circuit.
      depth: number of layers of RY, RZ and the CNOT chain.
      uploads: number of times the parameters are encoded: before each of the
        first `uploads` layers, the last one possibly before the readout.
      angles: ω, φ of the layers in radians, shape `(depth, n_qubits, 2)` (RY, RZ); `None`
        draws them from `seed`. They become float64, unless JAX is tracing them, as it does
        any array made inside a jitted function: the probe then is part of that function.
      seed: of the angles that are drawn, uniform in [-π, π), where none are given; by default 0.

    Raises:
      TypeError: if an integer argument is not an integer.
      ValueError: if an argument is out of range, or `angles` has another shape
        or holds a value that is not finite.

    Example:
      >>> import qsgd_jax as qsgd, pennylane as qml
      >>> circuit = qsgd.Circuit(n_qubits=2, depth=1, seed=0)
      >>> print(qml.draw(circuit.qnode("default.qubit"), decimals=1)([0.1, 0.2]))
      0: ──H──RY(-0.3)──RY(0.9)───RZ(-1.4)─╭●─┤  <Z>
      1: ──H──RY(-0.6)──RY(-2.9)──RZ(-3.0)─╰X─┤  <Z>

    References:
      Eq. 2 and 5 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918.
    """

    n_qubits: int = 4
    depth: int = 0
    uploads: int = 1
    angles: Any = None
    seed: dataclasses.InitVar[int | None] = None

    def __post_init__(self, seed: int | None) -> None:
        sizes = {name: getattr(self, name) for name in ("n_qubits", "depth", "uploads")}
        for name, value in {**sizes, "seed": 0 if seed is None else seed}.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name}={value!r} must be an integer.")
        if self.n_qubits < 1:
            raise ValueError(f"n_qubits={self.n_qubits} must be at least 1.")
        if self.depth < 0:
            raise ValueError(f"depth={self.depth} must be 0 or more.")
        if not 1 <= self.uploads <= self.depth + 1:
            raise ValueError(
                f"uploads={self.uploads} must lie in 1…depth + 1 = 1…{self.depth + 1}."
            )
        if seed is not None and (seed < 0 or self.angles is not None):
            raise ValueError(f"seed={seed} must be 0 or more, or None where angles are given.")
        if self.angles is None:
            shape = (self.depth, self.n_qubits, 2)
            drawn = np.random.default_rng(seed or 0).uniform(-np.pi, np.pi, shape)
            object.__setattr__(self, "angles", drawn)
        self._check_angles()

    def _check_angles(self) -> None:
        expected = (self.depth, self.n_qubits, 2)
        allowed = f"finite real angles of shape (depth, n_qubits, 2) = {expected}"
        try:
            angles = self.angles if self.traced else np.asarray(self.angles)
        except ValueError:  # lists of unequal lengths
            raise ValueError(f"angles={self.angles!r} must be {allowed}.") from None
        if angles.shape != expected:
            raise ValueError(f"angles has shape {angles.shape}; allowed are {allowed}.")
        if not (
            np.issubdtype(angles.dtype, np.integer) or jnp.issubdtype(angles.dtype, jnp.floating)
        ):
            raise TypeError(f"angles={self.angles!r} must be {allowed}.")
        if not self.traced and not np.isfinite(angles.astype(np.float64)).all():
            raise ValueError(f"angles={self.angles!r} must be {allowed}.")
        if not self.traced:  # a copy: the caller's array may change before the probe
            object.__setattr__(self, "angles", np.array(angles, np.float64))

    @property
    def traced(self) -> bool:
        """Whether JAX is tracing the angles, so that their values are not known yet."""
        return isinstance(self.angles, Tracer)

    @property
    def origin(self) -> Float[Array, " n_qubits"] | np.ndarray:
        """The parameters that undo the first layer's RY, in half turns; traced as the angles are.

        About this point the circuit has the fewest Fourier coefficients: at 4 qubits and
        depth 2 its outputs have 2, 4, 8 and 16; about zero they have 6, 18, 52 and 62.
        """
        if not self.depth:
            return np.zeros(self.n_qubits)
        return self.angles[0, :, 0] / np.pi

    def n_outputs(self, readout: Readout) -> int:
        """Number of values the circuit answers for a `readout`."""
        return self.n_qubits if readout == "expectation" else 2**self.n_qubits

    def encoding(self, theta: Any) -> Any:
        """The encoding's angles `−πθ` in radians, `(..., n_qubits) -> (..., uploads, n_qubits)`."""
        return -np.pi * theta[..., None, :].repeat(self.uploads, axis=-2)

    def run(
        self, encoding: Any, angles: Any, readout: Readout = "expectation", wires: Any = None
    ) -> Any:
        """Queue the gates and return the measurements; a PennyLane quantum function.

        Args:
          encoding: angle of each encoding gate in radians, `(..., uploads, n_qubits)`.
          angles: angle of each layer's gate in radians, `(..., depth, n_qubits, 2)`.
          readout: `"expectation"`, `"probabilities"` or `"amplitudes"`.
          wires: labels of the `n_qubits` wires; 0, 1, … where `None`.

        Returns:
          `n_qubits` expectation values of Z, the probabilities of the bitstrings, or the state.
        """
        wires = list(range(self.n_qubits)) if wires is None else list(wires)
        for wire in wires:
            qml.Hadamard(wire)
        for layer in range(max(self.depth, self.uploads)):
            if layer < self.uploads:
                for j, wire in enumerate(wires):
                    qml.RY(encoding[..., layer, j], wire)
            if layer < self.depth:
                for j, wire in enumerate(wires):
                    qml.RY(angles[..., layer, j, 0], wire)
                    qml.RZ(angles[..., layer, j, 1], wire)
                self.entangle(layer, wires)
        if readout == "probabilities":
            return qml.probs(wires=wires)
        if readout == "amplitudes":
            return qml.state()
        return tuple(qml.expval(qml.Z(wire)) for wire in wires)

    def entangle(self, layer: int, wires: Sequence[Any]) -> None:
        """Queue what ends a layer, CNOTs between neighbouring wires: where a subclass may differ.

        Args:
          layer: number of the layer, from 0.
          wires: labels of the wires.
        """
        for pair in itertools.pairwise(wires):
            qml.CNOT(pair)

    def qnode(self, device: Any = "lightning.qubit", readout: Readout = "expectation") -> qml.QNode:
        """The circuit as an ordinary QNode `f(theta, angles=None)`, to draw, run or transform.

        Args:
          device: a PennyLane device name or instance.
          readout: `"expectation"`, `"probabilities"` or `"amplitudes"`.

        Returns:
          A QNode of `theta`, shape `(..., n_qubits)` with at most one batch
          dimension, and of `angles`, by default the circuit's own.

        Raises:
          TypeError: if `device` is neither a name nor a device.
          ValueError: if the device is not installed or too small; when called, if `theta`
            or `angles` has the wrong shape.

        Example:
          >>> import numpy as np, qsgd_jax as qsgd
          >>> qnode = qsgd.Circuit(n_qubits=2).qnode("lightning.qubit")
          >>> np.round(qnode(np.array([0.5, -1 / 6])), 6)
          array([ 1. , -0.5])
        """
        opened = open_device(device, self.n_qubits)
        wires = None if opened.wires is None else opened.wires[: self.n_qubits]

        def superposition(theta, angles=None):
            theta = theta if hasattr(theta, "shape") else np.asarray(theta)
            angles = self.angles if angles is None else angles
            if theta.shape[-1:] != (self.n_qubits,):
                raise ValueError(
                    f"theta has shape {theta.shape}; allowed is (..., {self.n_qubits})."
                )
            expected = (self.depth, self.n_qubits, 2)
            if np.shape(angles)[-3:] != expected:
                raise ValueError(f"angles has shape {np.shape(angles)}; allowed is {expected}.")
            return self.run(self.encoding(theta), angles, readout, wires)

        return qml.QNode(superposition, opened)


def open_device(device: Any, n_qubits: int, wires: Any = None) -> Device:
    """A PennyLane device from its name or an instance, checked against the circuit's width.

    Args:
      device: a name such as `"lightning.qubit"`, or an open device.
      n_qubits: number of wires the circuit needs.
      wires: their labels; 0, 1, … where `None`.

    Returns:
      The open device.

    Raises:
      TypeError: if `device` is neither a name nor a device.
      ValueError: if the name is not installed, or the device has too few wires.

    Example:
      >>> from qsgd_jax._src import devices
      >>> devices.open_device("lightning.qubit", n_qubits=4).name
      'lightning.qubit'
    """
    if isinstance(device, str):
        check_installed(device)
        return qml.device(device, wires=n_qubits if wires is None else wires)
    if not isinstance(device, Device):
        raise TypeError(f"device={device!r} must be the name of a PennyLane device or a device.")
    if device.wires is not None and len(device.wires) < n_qubits:
        raise ValueError(
            f"device={device.name!r} has {len(device.wires)} wires; "
            f"allowed are devices of at least n_qubits={n_qubits}."
        )
    return device


def check_installed(name: str) -> None:
    """Refuse the name of a device that PennyLane does not know, and say what brings it."""
    installed = sorted(qml.plugin_devices)
    if name not in installed:
        package = next((p for start, p in _PACKAGES.items() if name.startswith(start)), None)
        raise ValueError(
            f"device={name!r} is not installed; allowed: {', '.join(installed)}."
            + (f" `pip install {package}` brings it." if package else "")
        )
