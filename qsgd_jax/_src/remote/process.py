"""The process of `qsgd_jax._src.remote.worker` as a `RemoteProber` sees it."""

import contextlib
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from typing import Any

from qsgd_jax._src.circuit import check_installed


class EndedError(Exception):
    """The job, or the process, came to an end without an answer."""


class WorkerProcess:
    """A process of `qsgd_jax._src.remote.worker`, which is never waited for but when asked to."""

    def __init__(self, specification: dict[str, Any]):
        environment = {
            **os.environ,
            # It asks nothing of an accelerator, and must not reserve its memory.
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
        }
        jobs, self._input = os.pipe()
        self._output, answers = os.pipe()
        for pipe in (self._input, answers):  # wide enough that the loop does not wait to write
            with contextlib.suppress(AttributeError, OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 2**20)
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "qsgd_jax._src.remote.worker", str(jobs), str(answers)],
            env=environment,
            pass_fds=(jobs, answers),
            # What a client prints may hold what it should have kept to itself; nobody is asked.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the training loop; and all that a client starts ends with it.
            start_new_session=True,
        )
        self.end = weakref.finalize(self, _end, self._popen, (self._input, self._output))
        os.close(jobs)
        os.close(answers)
        os.set_blocking(self._output, False)
        self._received = b""
        self.send(specification)

    def send(self, message: dict[str, Any]) -> None:
        """Hand it a line. A longer one than the pipe holds waits for the process to read."""
        with contextlib.suppress(OSError):  # that it has ended is found out by `receive`
            unsent = json.dumps(message).encode() + b"\n"
            while unsent:
                unsent = unsent[os.write(self._input, unsent) :]

    def receive(self) -> dict[str, Any] | None:
        """The next message, if it is there."""
        while b"\n" not in self._received:
            try:
                chunk = os.read(self._output, 2**20)
            except BlockingIOError:
                return None
            if not chunk:
                self.end()
                raise EndedError(f"its process ended with exit code {self._popen.returncode}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            raise EndedError("what its process wrote cannot be read") from None

    def wait(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or `None` if there was none in time."""
        until = time.monotonic() + seconds
        while (message := self.receive()) is None and time.monotonic() < until:
            time.sleep(0.01)
        return message


def _end(popen: subprocess.Popen, descriptors: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    for descriptor in descriptors:
        os.close(descriptor)
    popen.wait()


def device_name(kind: str, device: Any) -> str:
    """What the process is told to open: a device's name, or `module:function`."""
    if isinstance(device, str) and kind == "device":
        check_installed(device)
        return device
    module, name = getattr(device, "__module__", ""), getattr(device, "__qualname__", "")
    found = None
    if callable(device) and name and module != "__main__":
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)
    if found is not device:
        named = "the name of a PennyLane device, or " if kind == "device" else ""
        raise TypeError(
            f"{kind}={device!r} must be {named}a function without arguments that makes one and "
            "that another process can import: defined at the top of a module, other than the "
            "program itself."
        )
    return f"{module}:{name}"
