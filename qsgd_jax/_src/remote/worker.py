"""The process that keeps a prober's device: `python -m qsgd_jax._src.remote.worker IN OUT`.

From the file descriptor IN it reads one JSON object a line: what to open, then each job's number
(0: open the device, and no more), and what is asked. To OUT it writes as many. What goes wrong is
told by the kind of exception and the place: its message may hold what a client should have kept to
itself.

The process ends with IN, and with it all that a client has started, also while a job is under way.
"""

import importlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from qsgd_jax._src import devices
from qsgd_jax._src.circuit import Circuit
from qsgd_jax._src.hybrid.fubini_study import FubiniStudy
from qsgd_jax._src.remote.answers import Probe
from qsgd_jax._src.remote.messages import decoded

Message = dict[str, Any]


class _Coefficients:
    """Answers for the settings of a circuit's probe."""

    shots = 0  # beyond those that the prober knows

    def __init__(self, device: str, circuit: dict[str, Any], angles: list, shots: int):
        shape = (circuit["depth"], circuit["n_qubits"], 2)
        self._circuit = Circuit(**circuit, angles=np.reshape(angles, shape))
        self._name, self._shots = device, shots
        self._probe = Probe(self._circuit, shots)

    def open(self) -> devices.Device:
        n = self._circuit.n_qubits
        if ":" in self._name:
            device = _opened(self._name)
            if not isinstance(device, devices.Device):
                raise TypeError
        else:
            device = devices.open_device(self._name, n)
        if not self._is_too_small(device):
            devices.check(self._circuit, device, self._shots)
        return device

    def describe(self, device: devices.Device) -> Message:
        if not self._is_too_small(device):
            return {}
        allowed = f"allowed are devices of at least n_qubits={self._circuit.n_qubits}"
        return {"problem": f"has {len(device.wires)} wires; {allowed}"}

    def _is_too_small(self, device: devices.Device) -> bool:
        return device.wires is not None and len(device.wires) < self._circuit.n_qubits

    def run(self, device: devices.Device, message: Message) -> Message:
        answers = devices.run_settings(
            self._circuit, device, self._probe.encoding, self._probe.angles, self._shots
        )
        return {"answers": answers.tolist()}


class _Metrics:
    """The metric of circuits at the parameters that a job is told."""

    def __init__(self, metric: str, x64: bool):
        self._name, self.shots = metric, 0
        jax.config.update("jax_enable_x64", x64)

    def open(self) -> FubiniStudy:
        metric = _opened(self._name)
        if not isinstance(metric, FubiniStudy):
            raise TypeError
        return metric

    def describe(self, metric: FubiniStudy) -> Message:
        return {"parameters": metric.parameters, "decay": float(metric.decay)}

    def run(self, metric: FubiniStudy, message: Message) -> Message:
        params, batch = decoded(message["params"]), decoded(message["batch"])
        with devices.counted_shots(metric.devices) as shots:
            try:
                key = jnp.array([message["job"], 0], jnp.uint32)
                found = [np.asarray(g, float) for g in metric.measure(params, batch, key=key)]
            finally:
                self.shots = shots()
        return {"answers": [g.tolist() for g in found]}


_KINDS: dict[str, Callable[..., Any]] = {"coefficients": _Coefficients, "metric": _Metrics}


class _Worker:
    def __init__(self, kind: str, **order: Any):
        self._work, self._opened = _KINDS[kind](**order), None

    def answer(self, message: Message) -> Message:
        try:
            self._opened = self._opened or self._work.open()
            do = self._work.run if message["job"] else lambda x, _: self._work.describe(x)
            answer = do(self._opened, message)
        except BaseException as error:  # whatever a client raises
            self._opened = None  # what has lost its connection is opened anew
            answer = {"failed": _described(error)}
        return answer | {"shots": self._work.shots}


def _opened(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)()


def _described(error: BaseException) -> str:
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"{name} in {frame.f_globals.get('__name__', '?')}, line {line}"


def _read_jobs(lines: TextIO, jobs: "queue.SimpleQueue[Message]") -> None:
    for line in lines:
        jobs.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


def main(read: int, write: int) -> None:
    """Answer jobs until the input ends."""
    lines, answers = os.fdopen(read), os.fdopen(write, "w")
    worker = _Worker(**json.loads(lines.readline()))
    jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(lines, jobs), daemon=True).start()
    while True:
        print(json.dumps(worker.answer(jobs.get())), file=answers, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
