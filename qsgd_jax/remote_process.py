"""The process of `qsgd_jax.remote_worker` as a `RemoteProber` sees it."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
import weakref
from typing import Any, cast

from qsgd_jax.circuit import check_installed


class EndedError(Exception):
    """The job, or the process, came to an end without an answer."""


class WorkerProcess:
    """A process of `qsgd_jax.remote_worker`, which is never waited for but when asked to."""

    def __init__(self, specification: dict[str, Any]):
        environment = {
            **os.environ,
            # It asks nothing of an accelerator, and must not reserve its memory.
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
        }
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "qsgd_jax.remote_worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What a client prints may hold what it should have kept to itself.
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the training loop.
            start_new_session=True,
        )
        self._input, self._output = cast(Any, self._popen.stdin), cast(Any, self._popen.stdout)
        os.set_blocking(self._output.fileno(), False)
        self._received = b""
        self.end = weakref.finalize(self, _end, self._popen)
        self.send(specification)

    def send(self, message: dict[str, Any]) -> None:
        """Hand it a line, which it always reads."""
        with contextlib.suppress(OSError):  # that it has ended is found out by `receive`
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()

    def receive(self) -> dict[str, Any] | None:
        """The next message, if it is there."""
        while b"\n" not in self._received:
            try:
                chunk = os.read(self._output.fileno(), 2**20)
            except BlockingIOError:
                return None
            if not chunk:
                raise EndedError(f"its process ended with exit code {self._popen.wait()}")
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


def _end(popen: subprocess.Popen) -> None:
    popen.kill()
    for stream in (popen.stdin, popen.stdout):
        with contextlib.suppress(OSError):  # what was not sent to a process that had ended
            cast(Any, stream).close()
    popen.wait()


def device_name(device: Any) -> str:
    """What the process is told to open: a device's name, or `module:function`."""
    if isinstance(device, str):
        check_installed(device)
        return device
    module, name = getattr(device, "__module__", ""), getattr(device, "__qualname__", "")
    found = None
    if callable(device) and name and module != "__main__":
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)
    if found is not device:
        raise TypeError(
            f"device={device!r} must be the name of a PennyLane device, or a function without "
            "arguments that opens one and that another process can import: defined at the top of "
            "a module, other than the program itself."
        )
    return f"{module}:{name}"
