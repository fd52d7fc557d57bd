"""PennyLane's TorchLayer, as a server of forward and backward passes.

`python torch_layer.py DEVICE N_QUBITS DEPTH BATCH` builds the layer of
`benchmarks/quantum_layer_time.py`, says hello with one line of JSON, and then answers each line on
standard input with the seconds of one pass.
"""

# The peer's environment is not the one that checks types:
# pyright: reportMissingImports=false, reportCallIssue=false

from __future__ import annotations

import json
import sys
import time

import pennylane as qml
import torch


def main() -> None:
    """Serve until standard input ends."""
    device, (n_qubits, depth, batch) = sys.argv[1], map(int, sys.argv[2:])
    torch.manual_seed(0)

    @qml.qnode(qml.device(device, wires=n_qubits), interface="torch")
    def circuit(inputs, weights):
        qml.AngleEmbedding(inputs, wires=range(n_qubits))
        qml.StronglyEntanglingLayers(weights, wires=range(n_qubits))
        return [qml.expval(qml.Z(wire)) for wire in range(n_qubits)]

    layer = qml.qnn.TorchLayer(circuit, {"weights": (depth, n_qubits, 3)})
    inputs = torch.randn(batch, n_qubits, requires_grad=True)
    print(json.dumps({"torch": torch.__version__, "pennylane": qml.__version__}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        layer.zero_grad()
        inputs.grad = None
        (layer(inputs) ** 2).sum().backward()
        print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
