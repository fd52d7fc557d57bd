"""The probe as one program, compiled by PennyLane's Catalyst.

Catalyst 0.15 pins jax 0.7.1, needs double precision to compile, and switches it on for the whole
process when it is imported. So it is imported only when asked for, and works in threads of its
own: jax keeps an outer trace, a mesh and a temporary precision for each thread apart.
"""

import functools
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.experimental
import numpy as np
import pennylane as qml

from qsgd_jax._src.circuit import Circuit, Readout
from qsgd_jax._src.host import alone

__all__ = ["program"]

# On lightning.kokkos the threads of a compiled program wait for each other: 4 times slower.
_DEVICE = "lightning.qubit"
# The name of jax 0.7, and that of later ones.
_enable_x64: Any = getattr(jax.experimental, "enable_x64", getattr(jax, "enable_x64", None))


def program(
    circuit: Circuit, device: Any, readout: Readout = "expectation", shots: int | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The circuit's answers at a batch of settings, compiled in the first call of each batch size.

    Args:
      circuit: the circuit; its angles are constants of the program.
      device: `"lightning.qubit"`, by name: Catalyst opens one of its own, in which wires,
        precision and transforms of an instance would be lost.
      readout: `"expectation"` or `"probabilities"`.
      shots: number of times each setting is measured in each call; `None` for exact answers.

    Returns:
      A function from settings in half turns, `(batch, n_qubits)`, to a float64 NumPy array of
      answers, `(batch, outputs)`.

    Raises:
      ImportError: if Catalyst is not installed.
      ValueError: if the device is another, or the angles are traced.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax import Circuit
      >>> from qsgd_jax._src import compiled
      >>> run = compiled.program(Circuit(n_qubits=2), "lightning.qubit")  # doctest: +SKIP
      >>> run(np.array([[0.5, -1 / 6]])).round(6)  # doctest: +SKIP
      array([[ 1. , -0.5]])
    """
    if device != _DEVICE:
        raise ValueError(
            f"device={device!r} is not compiled by compiler='catalyst'; allowed is the name "
            f"{_DEVICE!r}."
        )
    if circuit.traced:
        raise ValueError(
            f"weights={circuit.weights} are traced by JAX; compiler='catalyst' compiles circuits "
            "of concrete weights."
        )
    qnode = qml.set_shots(circuit.qnode(device, readout), shots=shots)
    batch = qml.qjit(_catalyst().vmap(qnode))

    @alone
    @_apart
    def run(theta: np.ndarray) -> np.ndarray:
        with _enable_x64(True):
            answers = batch(np.asarray(theta, np.float64))
        return np.array(answers) if readout == "probabilities" else np.stack(answers, axis=-1)

    return run


def _apart(function):
    """Run a function in a thread of its own."""

    @functools.wraps(function)
    def apart(*args):
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(function, *args).result()

    return apart


@alone
@_apart
def _catalyst():
    """Import Catalyst and leave jax's precision as it was."""
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return importlib.import_module("catalyst")
    except ImportError as error:
        raise ImportError(
            "compiler='catalyst' needs PennyLane's Catalyst; `pip install 'qsgd_jax[catalyst]'` "
            "brings it, in an environment of its own because it pins jax. Else, allowed is "
            "compiler=None."
        ) from error
    finally:
        jax.config.update("jax_enable_x64", before)
