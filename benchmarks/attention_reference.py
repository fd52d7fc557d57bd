"""Quantum attention as the paper writes it, one circuit for each score: plain, slow, the oracle.

It computes with the library that its arguments come from, JAX's or autograd's NumPy.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pennylane as qml

qml_math: Any = qml.math  # it dispatches by what it is given


def amplitudes(x: Any, angles: Any) -> Any:
    """Simulate the circuit of every x, all at once: the state, on a new last axis."""
    depth, n_qubits, _ = angles.shape

    @qml.qnode(qml.device("default.qubit", wires=n_qubits), diff_method="backprop")
    def state(x, angles):
        for wire in range(n_qubits):
            qml.Hadamard(wire)
        for layer in range(depth):
            for wire in range(n_qubits):
                qml.RY(x + angles[layer, wire, 0], wire)
                qml.RZ(angles[layer, wire, 1], wire)
            for wire in range(n_qubits - 1):
                qml.CNOT([wire, wire + 1])
        return qml.state()

    with warnings.catch_warnings():  # PennyLane asks for complex128 at any precision
        warnings.filterwarnings("ignore", "Explicitly requested dtype .*complex128", UserWarning)
        states = state(qml_math.reshape(x, (-1,)), angles)
    return qml_math.reshape(states, (*x.shape, 2**n_qubits))


def phi(x: Any, angles: Any, readout: str) -> Any:
    """Return Φ(x), the sum over the first `n_qubits` basis states of Re ψ_k or |ψ_k|²."""
    first = amplitudes(x, angles)[..., : angles.shape[1]]
    parts = qml_math.real(first) if readout == "amplitude" else qml_math.abs(first) ** 2
    return qml_math.sum(parts, axis=-1)


def attention(
    query: Any, key: Any, value: Any, angles: Any, readout: str, mask: Any = True
) -> tuple[Any, Any]:
    """Compute Eq. 3 and 4, Φ only where the mask allows attention.

    Args:
        query: Shape `(batch, queries, heads, features)`.
        key: Shape `(batch, keys, heads, features)`.
        value: Shape `(batch, keys, heads, channels)`.
        angles: Shape `(depth, n_qubits, 2)`.
        readout: `"amplitude"` or `"probability"`.
        mask: True where attention is allowed; broadcasts to `(batch, heads, queries, keys)`.

    Returns:
        The output, shape `(batch, queries, heads, channels)`, and Φ of all scores.
    """
    scores = qml_math.einsum("bqhd,bkhd->bhqk", query, key)
    exponentials = qml_math.exp(scores / np.sqrt(query.shape[-1])) * mask
    softmax = exponentials / qml_math.sum(exponentials, axis=-1, keepdims=True)
    all_phi = phi(scores, angles, readout)
    weights = softmax + all_phi * mask
    return qml_math.einsum("bhqk,bkhd->bqhd", weights, value), all_phi
