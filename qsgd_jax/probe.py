"""A probe of a device that is not trusted: its settings, and what is made of the answers."""

import math

import numpy as np

from qsgd_jax import fourier
from qsgd_jax.circuit import Circuit

# Settings off the grid, whose answers follow from those on it.
_FURTHER = 8
# Their mean square deviation by shots alone exceeds this many times its expectation once in a
# million probes, were all outputs of a setting to deviate alike: χ² of 8 degrees of freedom.
_SPREAD = 5.4
# What a device may deviate from the polynomial, or lose of a sure answer, as hardware does.
_TOLERANCE = 0.1
_CONTRAST = 0.5
_SIGMAS = 5


class RejectedError(Exception):
    """Answers that cannot be those of the circuit."""


class Probe:
    r"""The settings of one probe of a circuit, and the coefficients that follow from its answers.

    To the grid of the Fourier form two kinds of settings are added, to tell answers of the circuit
    from nonsense:

    * *Further* settings off the grid. On any device, however noisy, as long as its noise does not
      depend on θ, their answers follow from those on the grid,
      :math:`f(\theta) = \sum_g K_g(\theta) f(\theta_g)`: not so if settings were mixed up.
    * *Known* settings: no qubit, and each of them alone, is turned into |1⟩, and all angles of the
      layers are 0, so that the CNOTs copy bits. Each input and each output has a pattern of its
      own, which swapped wires break.

    Args:
      circuit: the circuit, of concrete angles.
      shots: how often the device measures each setting.

    Example:
      >>> from qsgd_jax import Circuit
      >>> from qsgd_jax.probe import Probe
      >>> Probe(Circuit(n_qubits=4), shots=1000).n_settings  # 81 + 8 + 5
      94
    """

    def __init__(self, circuit: Circuit, shots: int):
        self._circuit, self._shots = circuit, shots
        n, degree = circuit.n_qubits, circuit.uploads
        self._n_grid = fourier.n_settings(n, degree)
        further = np.random.default_rng(0).uniform(-1, 1, (_FURTHER, n))
        self._prediction = fourier.interpolation(further, degree)
        theta = circuit.origin + np.concatenate([fourier.probe_grid(n, degree), further])
        turned, self._known = _known_settings(circuit)
        #: Angles of the encoding's gates and of the layers', for each setting.
        self.encoding = np.concatenate([circuit.encoding(theta), turned])
        layers = np.broadcast_to(circuit.angles, (len(theta), *np.shape(circuit.angles)))
        still = np.zeros((len(turned), *np.shape(circuit.angles)))
        self.angles = np.concatenate([layers, still])

    @property
    def n_settings(self) -> int:
        """How many circuits one probe runs."""
        return len(self.encoding)

    def coefficients(self, answers) -> np.ndarray:
        """The Fourier coefficients about the circuit's origin, if the answers can be believed.

        Args:
          answers: the expectation values of each setting, shape `(n_settings, n_qubits)`.

        Returns:
          A float64 array of shape `(n_qubits, 2 uploads + 1, …)`.

        Raises:
          RejectedError: if they cannot.
        """
        found = _as_array(answers)
        expected = (self.n_settings, self._circuit.n_qubits)
        if found is None or found.shape != expected:
            shape = "no regular shape" if found is None else f"shape {found.shape}"
            raise RejectedError(f"answers of {shape} instead of {expected}")
        if not np.isfinite(found).all():
            raise RejectedError(f"{np.sum(~np.isfinite(found))} of {found.size} answers not finite")
        sigma = 1 / math.sqrt(self._shots)
        grid, further, known = np.split(found, [self._n_grid, self._n_grid + _FURTHER])
        predicted = self._prediction @ grid
        largest = max(np.abs(found).max(), np.abs(predicted).max())
        if largest > 1 + _SIGMAS * sigma:
            raise RejectedError(f"a weight of {largest:.3g}, where ±1 is the most")
        contrast = (known * self._known).min()
        if contrast < _CONTRAST - _SIGMAS * math.sqrt(1 - _CONTRAST**2) * sigma:
            raise RejectedError(
                f"a known answer of ±1 came out at {contrast:.2f} of it: are wires swapped?"
            )
        spread = np.mean((further - predicted) ** 2)
        if spread > _TOLERANCE**2 + _SPREAD * 2 * sigma**2:
            raise RejectedError(
                f"answers off the grid differ by {math.sqrt(spread):.2f} from what those on it "
                "imply: are settings mixed up?"
            )
        return fourier.coefficients(grid, self._circuit.n_qubits, self._circuit.uploads)


def _as_array(answers) -> np.ndarray | None:
    try:
        return np.asarray(answers, np.float64)
    except (TypeError, ValueError):
        return None


def _known_settings(circuit: Circuit) -> tuple[np.ndarray, np.ndarray]:
    """Encodings that prepare |0…0⟩ and each |0…1…0⟩, and ⟨Z⟩ after the CNOTs of all layers."""
    n = circuit.n_qubits
    bits = np.concatenate([np.zeros((1, n), int), np.eye(n, dtype=int)])
    encoding = np.zeros((n + 1, circuit.uploads, n))
    encoding[:, 0] = np.pi * (bits - 0.5)
    for _ in range(circuit.depth):
        bits = np.cumsum(bits, axis=1) % 2
    return encoding, 1 - 2 * bits
