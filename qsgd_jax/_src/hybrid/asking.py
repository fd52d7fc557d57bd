"""Running a QNode's circuits at many settings on the host, in one batch, from NumPy to NumPy.

No JAX call is made here: inside a callback it would deadlock.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pennylane.devices import Device, ExecutionConfig
from pennylane.ops.functions import bind_new_parameters
from pennylane.tape import QuantumScript

from qsgd_jax._src.host import MAX_BATCH, alone, few_threads
from qsgd_jax._src.hybrid.tracing import Template

Settings = Float[np.ndarray, "*lead angles"]
Operands = Sequence[np.ndarray]


class Asked:
    """A device, and the circuits that it runs at each setting.

    Args:
      templates: the circuits.
      config: how the device runs them.
      device: the device.
    """

    def __init__(self, templates: Sequence[Template], config: ExecutionConfig, device: Device):
        self.templates, self._config, self._device = templates, config, device
        self.size = sum(one.size for one in templates)
        self._moving = [_moving(one) for one in templates]
        self.differentiates = config.gradient_method == "adjoint"

    def answers(self, angles: Settings, operands: Operands) -> Float[np.ndarray, "*lead numbers"]:
        """All results of all circuits at each setting.

        Args:
          angles: of the gates in radians, one template after the other.
          operands: what else they are given, after the same leading axes.
        """

        def ask(tapes: list[QuantumScript]) -> list[Any]:
            return [_flat(one) for one in self._device.execute(tapes, self._config)]

        found = [np.zeros(0), *self._run(ask, angles, operands)]
        return np.concatenate(found).reshape(*angles.shape[:-1], self.size)

    def slopes(
        self, angles: Settings, operands: Operands
    ) -> Float[np.ndarray, "*lead numbers 1+angles"]:
        """The same, and after each result its derivative by each angle; by the adjoint method.

        Args:
          angles: as for `answers`.
          operands: likewise.
        """

        def ask(tapes: list[QuantumScript]) -> list[Any]:
            found = self._device.execute_and_compute_derivatives(tapes, self._config)
            return list(zip(*found, strict=True))

        found = iter(self._run(ask, angles, operands))
        rows = np.zeros((math.prod(angles.shape[:-1]), self.size, 1 + angles.shape[-1]))
        for row in rows:
            number, angle = 0, 1
            for one in self.templates:
                numbers = slice(number, number := number + one.size)
                own = slice(angle, angle := angle + len(one.angles))
                value, slopes = next(found)
                row[numbers, 0] = _flat(value)
                row[numbers, own] = np.reshape(slopes, (one.size, len(one.angles)))
        return rows.reshape((*angles.shape[:-1], *rows.shape[1:]))

    @alone
    def _run(
        self, ask: Callable[[list[QuantumScript]], list[Any]], angles: Settings, operands: Operands
    ) -> list[Any]:
        lead = angles.shape[:-1]
        tapes = (
            tape
            for place in np.ndindex(lead)
            for tape in self._bound(angles[place], [x[place] for x in operands])
        )
        n_qubits = max((len(one.tape.wires) for one in self.templates), default=0)
        with few_threads(self._device, n_qubits):
            chunks = iter(lambda: list(itertools.islice(tapes, MAX_BATCH)), [])
            return [answer for chunk in chunks for answer in ask(chunk)]

    def _bound(self, angles: np.ndarray, operands: Operands) -> Iterator[QuantumScript]:
        angle, operand = iter(angles.tolist()), iter(operands)
        for one, gates in zip(self.templates, self._moving, strict=True):
            operations = list(one.tape.operations)
            for gate, places in gates.items():
                data = list(operations[gate].data)
                for place, at in places:
                    data[at] = next(operand if place in one.operands else angle)
                operations[gate] = _with_data(operations[gate], data)
            yield QuantumScript(
                operations,
                one.tape.measurements,
                shots=one.tape.shots,
                trainable_params=one.tape.trainable_params,
            )


def _moving(one: Template) -> dict[int, list[tuple[int, int]]]:
    """Of each gate that moves, places among the circuit's parameters and among its own."""
    found: dict[int, list[tuple[int, int]]] = {}
    for place in sorted(one.angles + one.operands):
        info: Any = one.tape.par_info[place]
        found.setdefault(info["op_idx"], []).append((place, info["p_idx"]))
    return found


def _with_data(gate: Any, data: list[Any]) -> Any:
    """The same gate with other angles."""
    if "data" not in vars(gate):  # one made of others
        return bind_new_parameters(gate, data)
    gate = copy.copy(gate)  # a third of the time of making it anew
    gate.data = tuple(data)
    return gate


def _flat(results: Any) -> np.ndarray:
    """Of one circuit, which has one measurement or several; complex numbers are pairs."""
    several = results if isinstance(results, tuple | list) else (results,)
    arrays = [np.asarray(x).ravel() for x in several]
    real = [
        np.stack([np.real(x), np.imag(x)], 1).ravel() if np.iscomplexobj(x) else x for x in arrays
    ]
    return np.concatenate(real).astype(np.float64)
