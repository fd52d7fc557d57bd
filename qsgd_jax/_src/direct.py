"""Running a circuit at every block in every step: what a surrogate stands for, without one."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from qsgd_jax._src.checks import check_integer
from qsgd_jax._src.half_turns import within_period
from qsgd_jax._src.surrogate import Readout

if TYPE_CHECKING:
    from qsgd_jax._src.circuit import Circuit


@dataclasses.dataclass(frozen=True, eq=False)
class Direct:
    r"""A circuit that is run at every block in every step, in a surrogate's place.

    .. math:: w_j(\theta) = \langle Z_j \rangle_{\theta_1 \dots \theta_n}

    For circuits of more settings than `probe` can hold, and to compare surrogates with: a batch of
    all blocks goes to the device in each step, so that it costs what the device costs. On
    `default.qubit` it is a part of the compiled step.

    Args:
      circuit: the circuit.
      device: a PennyLane device, by name or open. With a name it can be pickled.
      shots: how often each block is measured, anew in each step, and then without a derivative;
        `None` for exact answers, or as often as the device says.
      readout: `"expectation"`, or `"probabilities"` for `sampled`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if the device is not installed, too small, or can only measure.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> direct = qsgd.Direct(qsgd.Circuit(n_qubits=2), "default.qubit")
      >>> print(qsgd.superposition_weights(direct, jnp.array([0.5, -0.5, 0.5])))
      [ 1. -1.  0.]

    References:
      Eq. 2 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918.
    """

    circuit: "Circuit"
    device: Any = "lightning.qubit"
    shots: int | None = None
    readout: Readout = "expectation"

    def __post_init__(self) -> None:
        circuits, devices = _pennylane("circuit"), _pennylane("devices")
        if not isinstance(self.circuit, circuits.Circuit):
            raise TypeError(f"circuit={self.circuit!r} must be a qsgd_jax.Circuit.")
        if self.readout not in ("expectation", "probabilities"):
            raise ValueError(f"readout={self.readout!r} must be 'expectation' or 'probabilities'.")
        if self.shots is not None:
            check_integer("shots", self.shots, 1, 2**31 - 1)
        device = devices.opened(self.device, self.n_inputs)
        shots = devices.n_shots(self.circuit, device, self.shots)
        object.__setattr__(self, "shots", shots)

    @property
    def n_inputs(self) -> int:
        """How many inputs the circuit has."""
        return self.circuit.n_qubits

    @property
    def n_outputs(self) -> int:
        """How many values it answers."""
        return self.circuit.n_outputs(self.readout)

    def evaluate(self, inputs: Sequence[Float[Array, "*shape"]]) -> list[Float[Array, "*shape"]]:
        """The outputs at many points, by one batch of circuits; as `Surrogate.evaluate`."""
        devices = _pennylane("devices")
        shape = jnp.shape(inputs[0])
        # Else −πθ, which the device is given, would be rounded before the period is taken off.
        batch = within_period(jnp.stack([jnp.ravel(x) for x in inputs], axis=-1))
        device = devices.opened(self.device, self.n_inputs)
        found = devices.run(self.circuit, device, batch, self.readout, self.shots)
        found = jnp.asarray(found, batch.dtype)
        return [found[:, j].reshape(shape) for j in range(self.n_outputs)]


def _pennylane(module: str) -> Any:
    """A module that imports PennyLane, for those who run circuits."""
    return importlib.import_module(f"qsgd_jax._src.{module}")
