"""What tests on meshes share: XLA's collectives, and two processes beside one."""

import collections
import contextlib
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# LLVM's optimizations take two thirds of the time; what XLA computes and sends is settled before.
QUICK: dict[str, bool | str] = {"xla_backend_optimization_level": "0"}

COLLECTIVES = (
    "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|"
    "ragged-all-to-all|reduce-scatter"
)


def collectives(optimizer, params):
    """How often the compiled update has each `(collective, number of elements)`."""
    program = jax.jit(optimizer.update).lower(params, optimizer.init(params), params)
    text = program.compile(compiler_options=QUICK).as_text() or ""
    found = collections.Counter()
    for shapes, kind in re.findall(rf"= (.*) ({COLLECTIVES})(?:-start)?\(", text):
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", shapes):
            found[kind, math.prod(map(int, filter(None, dimensions.split(","))))] += 1
    return found


def seen_by_two_processes(script: str, folder: Path) -> dict[str, np.ndarray]:
    """What a script has written whose arguments are those of `one_of_two_processes`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
    }
    logs = [(folder / f"{index}.log").open("w+") for index in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, str(folder / "seen.npz"), str(index)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for index, log in enumerate(logs)
    ]
    try:
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(timeout=240) == 0, log.seek(0) or log.read()
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    return dict(np.load(folder / "seen.npz"))


@contextlib.contextmanager
def one_of_two_processes(address: str, path: str, index: str) -> Iterator[Callable[[Any], None]]:
    """Be it, with four of eight devices; what is given writes a tree of arrays to the path."""
    jax.distributed.initialize(address, num_processes=2, process_id=int(index))
    assert (jax.local_device_count(), jax.device_count()) == (4, 8)

    def write(tree: Any) -> None:
        seen = multihost_utils.process_allgather(tree, tiled=True)
        if index == "0":
            np.savez(path, **flat(seen))

    yield write


def flat(tree: Any) -> dict[str, Any]:
    """Leaves by their paths."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
