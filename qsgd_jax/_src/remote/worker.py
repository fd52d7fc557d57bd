"""The process that keeps a `RemoteProber`'s device: `python -m qsgd_jax._src.remote.worker IN OUT`.

From the file descriptor IN it reads one JSON object a line: what to open, then the number of each
job (0: open the device, and no more). To OUT it writes as many. What goes wrong is told by the kind
of exception and the place: its message may hold what a client should have kept to itself.

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
from typing import Any, TextIO

import numpy as np

from qsgd_jax._src import devices
from qsgd_jax._src.circuit import Circuit
from qsgd_jax._src.remote.answers import Probe


class _Worker:
    def __init__(self, device: str, circuit: dict[str, Any], angles: list, shots: int):
        shape = (circuit["depth"], circuit["n_qubits"], 2)
        self._circuit = Circuit(**circuit, angles=np.reshape(angles, shape))
        self._name, self._shots, self._device = device, shots, None
        self._probe = Probe(self._circuit, shots)

    def answer(self, job: int) -> dict[str, Any]:
        try:
            self._device = self._device or self._open()
            return self._run(self._device) if job else {"wires": _n_wires(self._device)}
        except BaseException as error:  # whatever a client raises
            self._device = None  # what has lost its connection is opened anew
            return {"failed": _described(error)}

    def _open(self) -> devices.Device:
        n = self._circuit.n_qubits
        module, colon, function = self._name.partition(":")
        if not colon:
            device = devices.open_device(self._name, n)
        else:
            device = getattr(importlib.import_module(module), function)()
            if not isinstance(device, devices.Device):
                raise TypeError
        wires = _n_wires(device)
        if wires is None or wires >= n:
            devices.check(self._circuit, device, self._shots)
        return device

    def _run(self, device: devices.Device) -> dict[str, Any]:
        answers = devices.run_settings(
            self._circuit, device, self._probe.encoding, self._probe.angles, self._shots
        )
        return {"answers": answers.tolist()}


def _n_wires(device: devices.Device) -> int | None:
    return None if device.wires is None else len(device.wires)


def _described(error: BaseException) -> str:
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"{name} in {frame.f_globals.get('__name__', '?')}, line {line}"


def _read_jobs(lines: TextIO, jobs: "queue.SimpleQueue[int]") -> None:
    for line in lines:
        jobs.put(json.loads(line)["job"])
    os.killpg(0, signal.SIGKILL)


def main(read: int, write: int) -> None:
    """Answer jobs until the input ends."""
    lines, answers = os.fdopen(read), os.fdopen(write, "w")
    worker = _Worker(**json.loads(lines.readline()))
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(lines, jobs), daemon=True).start()
    while True:
        print(json.dumps(worker.answer(jobs.get())), file=answers, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
