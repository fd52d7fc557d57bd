"""PennyLane's QNGOptimizerQJIT, as a server of steps.

`python natural_gradient.py DEVICE N_QUBITS DEPTH APPROX` takes steps on the circuit of
`benchmarks/natural/problems.py`, says hello with one line of JSON, and then answers each line on
standard input with the seconds of one step. APPROX is none, block-diag or diag. It needs a jax that
PennyLane's metric tensor runs on, as in the environment of `make test-catalyst`.
"""

# The peer's environment is not the one that checks types:
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import pennylane as qml


def main() -> None:
    """Serve until standard input ends."""
    device, approx = sys.argv[1], None if sys.argv[4] == "none" else sys.argv[4]
    n_qubits, depth = map(int, sys.argv[2:4])

    # The whole metric takes a wire more.
    @qml.qnode(qml.device(device, wires=n_qubits + (approx is None)), interface="jax")
    def energy(weights):
        for layer in range(depth):
            for wire in range(n_qubits):
                qml.RY(weights[layer, wire, 0], wires=wire)
                qml.RZ(weights[layer, wire, 1], wires=wire)
            for wire in range(n_qubits):
                qml.CNOT(wires=[wire, (wire + 1) % n_qubits])
        pairs = [qml.Z(i) @ qml.Z((i + 1) % n_qubits) for i in range(n_qubits)]
        return qml.expval(-sum(pairs[1:], pairs[0]) - sum(map(qml.X, range(1, n_qubits)), qml.X(0)))

    optimizer = qml.QNGOptimizerQJIT(0.01, approx=approx, lam=1e-3)
    step = jax.jit(functools.partial(optimizer.step, energy))
    weights = jnp.linspace(0.1, 3.0, 2 * n_qubits * depth).reshape(depth, n_qubits, 2)
    state = optimizer.init(weights)
    versions = {"jax": jax.__version__, "pennylane": qml.__version__}
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        weights, state = step(weights, state)
        jax.block_until_ready(weights)
        print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
