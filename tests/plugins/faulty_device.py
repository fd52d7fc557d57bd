"""A device that fails as remote ones do; what it did is written to the file FAULTY_DEVICE_LOG."""

import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pennylane as qml
from pennylane_lightning.lightning_qubit import LightningQubit

FAULTS = (
    "raise",
    "NaN",
    "wrong shape",
    "wires in another order",
    "settings in another order",
    "disconnect",
    "hang",
)


class FaultyDevice(LightningQubit):
    """lightning.qubit, but for the faults that FAULTY_DEVICE names: all in turn, or one alone.

    "all" have p = 0.3 together; one alone happens in every job.
    """

    connected = True

    def execute(self, circuits, execution_config=None):
        if not self.connected:
            raise ConnectionError("open me anew")
        fault = self._next_fault()
        _tell(fault or "answer")
        secret = os.environ.get("FAULTY_DEVICE_TOKEN", "")
        print(secret)
        print(secret, file=sys.stderr)
        if fault == "raise":
            self.connected = False
            raise ConnectionError(f"token={secret} was not accepted")
        if fault == "disconnect":
            os._exit(3)
        if fault == "hang":
            time.sleep(3600)
        answers = super().execute(circuits, execution_config)
        if fault == "NaN":
            return tuple(tuple(np.nan * np.array(answer)) for answer in answers)
        if fault == "wrong shape":
            return tuple(answer[:-1] for answer in answers)
        if fault == "wires in another order":
            return tuple(answer[::-1] for answer in answers)
        if fault == "settings in another order":
            order = np.random.default_rng(0).permutation(len(answers))
            return tuple(answers[i] for i in order)
        return answers

    @staticmethod
    def _next_fault():
        chosen = os.environ["FAULTY_DEVICE"]
        if chosen != "all":
            return chosen if chosen in FAULTS else None
        with open(os.environ["FAULTY_DEVICE_LOG"]) as log:
            jobs = log.read().splitlines()
        failed = sum(job != "answer" for job in jobs)
        if np.random.default_rng(len(jobs)).random() < 0.3:
            return FAULTS[failed % len(FAULTS)]
        return None


class _ExactOnly(LightningQubit):
    def setup_execution_config(self, config=None, circuit=None):
        if circuit is not None and circuit.shots:
            raise qml.exceptions.DeviceError("finite shots are not supported")
        return super().setup_execution_config(config, circuit)


def _tell(event):
    with open(os.environ["FAULTY_DEVICE_LOG"], "a") as log:
        log.write(f"{event}\n")


def with_helpers():
    """Opened by a client that starts processes, prints and asks for a password."""
    pids = [subprocess.Popen(["sleep", "600"]).pid]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pids += pool.map(_helper, [0])
    _tell(" ".join(map(str, pids)))
    subprocess.run(["cat"], check=True)
    print("{}")
    return qml.device("lightning.qubit", wires=2)


def _helper(_):
    return os.getpid()


def no_credentials():
    raise PermissionError(f"{os.environ['FAULTY_DEVICE_TOKEN']} is not the token of an account")


def no_device():
    return "lightning.qubit"


def two_wires():
    return qml.device("lightning.qubit", wires=2)


def exact_only():
    """A device that measures nothing."""
    return _ExactOnly(wires=2)
