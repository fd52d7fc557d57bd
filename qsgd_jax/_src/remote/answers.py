"""A probe of a device that is not trusted: its settings, and what is made of the answers."""

import functools
import math

import numpy as np

from qsgd_jax._src import devices, fourier
from qsgd_jax._src.circuit import Circuit

# Settings off the grid, whose answers follow from those on it.
_FURTHER = 8
# How far hardware may be off: an answer from the noiseless one, half of the largest there is; those
# off the grid, on average, from what the grid implies: so much where rotations are 5 % too large.
_DEVIATION = 0.5
_SPREAD = 0.1
# What shots alone exceed less than once in a million probes: so many standard errors, or so many
# times the expected mean square of eight deviations (χ², were the outputs of a setting all alike).
_SIGMAS = 5
_CHI_SQUARED = 5.4


class RejectedError(Exception):
    """Answers that cannot be those of the circuit."""


class Probe:
    r"""The settings of one probe of a circuit, and the coefficients that follow from its answers.

    To the grid of the Fourier form two kinds of settings are added, to tell answers of the circuit
    from nonsense:

    * *Further* settings off the grid. On any device, however noisy, as long as its noise does not
      depend on θ, their answers follow from those on the grid,
      :math:`f(\theta) = \sum_g K_g(\theta) f(\theta_g)`: not so if settings were mixed up.
    * *Sure* settings, whose answers are ±1: no qubit, and each of them alone, is turned into |1⟩,
      and all angles of the layers are 0, so that the CNOTs copy bits. Each input and each output
      has a pattern of its own, which swapped wires break.

    Args:
      circuit: the circuit, of concrete angles.
      shots: how often the device measures each setting.

    Example:
      >>> from qsgd_jax import Circuit
      >>> from qsgd_jax._src.remote.answers import Probe
      >>> Probe(Circuit(n_qubits=4), shots=1000).n_settings  # 81 + 8 + 5
      94
    """

    def __init__(self, circuit: Circuit, shots: int):
        self._circuit, self._shots = circuit, shots
        n, uploads = circuit.n_qubits, circuit.uploads
        degree = self._degree = (uploads,) * n
        self._n_grid = fourier.n_settings(degree)
        further = np.random.default_rng(0).uniform(-1, 1, (_FURTHER, n))
        self._prediction = fourier.interpolation(further, degree)
        theta = circuit.origin + np.concatenate([fourier.probe_grid(degree), further])
        sure = np.zeros((n + 1, uploads, n))
        sure[:, 0] = np.pi * (np.eye(n + 1, n, -1) - 0.5)
        #: Angles of the encoding's gates and of the layers', for each setting.
        self.encoding = np.concatenate([circuit.encoding(theta), sure])
        layers = np.broadcast_to(circuit.angles, (len(theta), *np.shape(circuit.angles)))
        still = np.zeros((len(sure), *np.shape(circuit.angles)))
        self.angles = np.concatenate([layers, still])

    @property
    def n_settings(self) -> int:
        """How many circuits one probe runs."""
        return len(self.encoding)

    @functools.cached_property
    def exact(self) -> np.ndarray:
        """The noiseless answers, of a simulator."""
        simulator = devices.open_device("lightning.qubit", self._circuit.n_qubits)
        return devices.run_settings(self._circuit, simulator, self.encoding, self.angles, None)

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
        if found is None or found.shape != self.exact.shape:
            shape = "no regular shape" if found is None else f"shape {found.shape}"
            raise RejectedError(f"answers of {shape} instead of {self.exact.shape}")
        if not np.isfinite(found).all():
            raise RejectedError(f"{np.sum(~np.isfinite(found))} of {found.size} answers not finite")
        sigma = 1 / math.sqrt(self._shots)
        largest = np.abs(found).max()
        if largest > 1 + _SPREAD + _SIGMAS * sigma:
            raise RejectedError(f"a weight of {largest:.3g}, where ±1 is the most")
        deviation = np.abs(found - self.exact).max(axis=1)
        wrong = deviation > _DEVIATION + _SIGMAS * math.sqrt(1 - _DEVIATION**2) * sigma
        if wrong.any():
            n_sure = self._circuit.n_qubits + 1
            raise RejectedError(
                f"{wrong.sum()} of {len(wrong)} settings ({wrong[-n_sure:].sum()} of the {n_sure} "
                f"sure ones) answer up to {deviation.max():.2f} off the noiseless circuit, where "
                f"{_DEVIATION} is the most: are wires or settings mixed up?"
            )
        grid, further = found[: self._n_grid], found[self._n_grid :][:_FURTHER]
        spread = np.mean((further - self._prediction @ grid) ** 2)
        if spread > _SPREAD**2 + _CHI_SQUARED * 2 * sigma**2:
            raise RejectedError(
                f"answers off the grid differ by {math.sqrt(spread):.2f} from what those on it "
                f"imply, where {_SPREAD} is the most: are settings mixed up?"
            )
        return fourier.coefficients(grid, self._degree)


def _as_array(answers) -> np.ndarray | None:
    try:
        return np.asarray(answers, np.float64)
    except (TypeError, ValueError):
        return None
