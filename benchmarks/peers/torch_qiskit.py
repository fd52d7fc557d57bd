"""The paper's setting in plain PyTorch and Qiskit, as a server of training steps.

`python torch_qiskit.py EPOCH.npz` builds `qsgd_jax.nn.QuantumTransformer(quantum=False)` from the
arrays in EPOCH.npz (batches of tokens and labels, initial weights by name), says hello with one
line of JSON, and then answers each line on standard input with another:

  adamw, superpositional   take one training step; its seconds
  check Q                  losses of 5 steps by both optimizers at quantum weight Q, without dropout

It is written as one would write PyTorch: eager, torch.optim.AdamW as it comes, and for each tensor
and step one Qiskit circuit whose state vector is simulated exactly. One thing differs from Flax:
PyTorch draws a dropout mask for each example and head, Flax drops the same attention weights in all
of a batch.
"""

# The peer's environment is not the one that checks types:
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import qiskit
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector
from torch import nn
from torch.nn import functional

N_QUBITS = 4
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}  # the paper's


def superposition_weights(theta: np.ndarray) -> np.ndarray:
    """⟨Z_j⟩ of H and RY(−π θ_j) on each qubit, by Qiskit: sin(π θ_j)."""
    n = len(theta)
    circuit = QuantumCircuit(n)
    for qubit, value in enumerate(theta):
        circuit.h(qubit)
        circuit.ry(-np.pi * value, qubit)
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # qubit 0 is the lowest bit
    return Statevector(circuit).probabilities() @ (1 - 2 * bits)


class SuperpositionalAdamW(torch.optim.AdamW):
    """AdamW plus λ w(θ) g on the first four coordinates of each tensor: Eq. 1."""

    def __init__(self, params: Any, *, quantum_weight: float = 0.5, **adamw: Any):
        """Take AdamW's arguments, and λ."""
        super().__init__(params, **adamw)
        self.quantum_weight = quantum_weight

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; the weights are those of the parameters before it."""
        perturbations = []
        for group in self.param_groups:
            for p in group["params"]:
                theta = p.view(-1)[:N_QUBITS].double().numpy()
                weights = torch.from_numpy(superposition_weights(theta)).to(p.dtype)
                q = weights * p.grad.view(-1)[:N_QUBITS]
                perturbations.append((p, -group["lr"] * self.quantum_weight * q))
        super().step()
        for p, perturbation in perturbations:
            p.view(-1)[:N_QUBITS] += perturbation


class Dense(nn.Module):
    """A linear layer whose kernel lies as Flax's does, so that Eq. 1 finds the same coordinates."""

    def __init__(self, inputs: int, outputs: int):
        """Leave the weights to be loaded."""
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        return functional.linear(x, self.kernel.T, self.bias)


class Attention(nn.Module):
    """Multi-head self-attention with dropout of the attention weights."""

    def __init__(self, features: int, heads: int, dropout_rate: float):
        """Leave the weights to be loaded."""
        super().__init__()
        self.heads, self.dropout_rate = heads, dropout_rate
        self.query, self.key, self.value, self.out = (Dense(features, features) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attend from every token to those that the mask admits."""
        q, k, v = (
            dense(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for dense in (self.query, self.key, self.value)
        )
        rate = self.dropout_rate if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, mask, rate)
        return self.out(y.transpose(1, 2).flatten(-2))


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each behind a layer norm and a residual."""

    def __init__(self, features: int, heads: int, hidden: int, dropout_rate: float):
        """Leave the weights to be loaded."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(features, eps=1e-6)
        self.attention = Attention(features, heads, dropout_rate)
        self.hidden_norm = nn.LayerNorm(features, eps=1e-6)
        self.expand, self.contract = Dense(features, hidden), Dense(hidden, features)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        return x + self.dropout(self.contract(functional.relu(self.expand(self.hidden_norm(x)))))


class TextClassifier(nn.Module):
    """A transformer encoder with learned positions, mean pooling and a linear head."""

    def __init__(self, weights: Mapping[str, np.ndarray], dropout_rate: float = 0.1, pad: int = 0):
        """Take the sizes and the initial weights from Flax's."""
        super().__init__()
        self.pad = pad
        features, heads, _ = weights["layers.0.attention.query.kernel"].shape
        hidden = weights["layers.0.expand.bias"].size
        layers = sum(name.endswith("expand.bias") for name in weights)
        self.embedding = nn.Embedding(*weights["embedding.embedding"].shape)
        self.positions = nn.Embedding(*weights["positions.embedding"].shape)
        self.layers = nn.ModuleList(
            EncoderLayer(features, heads, hidden, dropout_rate) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(features, eps=1e-6)
        self.head = Dense(*weights["head.kernel"].shape)
        self.dropout = nn.Dropout(dropout_rate)
        shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}
        own = {_torch_name(name): torch.tensor(array) for name, array in weights.items()}
        self.load_state_dict({name: tensor.view(shapes[name]) for name, tensor in own.items()})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        real = tokens != self.pad
        x = self.embedding(tokens) + self.positions.weight
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, real[:, None, None, :])
        kept = real[..., None].to(x.dtype)
        return self.head((self.norm(x) * kept).sum(1) / kept.sum(1).clamp(min=1))


def _torch_name(flax_name: str) -> str:
    module, _, leaf = flax_name.rpartition(".")
    return f"{module}.{'weight' if leaf in ('embedding', 'scale') else leaf}"


class Training:
    """A model, its optimizer, and the batches that they go through in turn."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: list):
        """Begin at the first batch."""
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.steps = 0

    def step(self) -> torch.Tensor:
        """Take one training step and return the loss before it."""
        tokens, labels = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(tokens), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def trainings(model: nn.Module, batches: list, quantum_weight: float) -> dict[str, Training]:
    """Both optimizers, each with a copy of the model."""
    plain, superposed = copy.deepcopy(model), copy.deepcopy(model)
    superpositional = SuperpositionalAdamW(
        superposed.parameters(), quantum_weight=quantum_weight, **ADAMW
    )
    return {
        "adamw": Training(plain, torch.optim.AdamW(plain.parameters(), **ADAMW), batches),
        "superpositional": Training(superposed, superpositional, batches),
    }


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("epoch", metavar="EPOCH.npz")
    parser.add_argument("--threads", type=int, default=1, metavar="X", help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    arrays = dict(np.load(args.epoch))
    tokens, labels = (torch.from_numpy(arrays.pop(name)).long() for name in ("tokens", "labels"))
    batches = list(zip(tokens, labels, strict=True))
    model = TextClassifier(arrays)
    running = trainings(model, batches, quantum_weight=0.5)

    theta = np.random.default_rng(0).normal(size=(100, N_QUBITS))
    error = max(np.abs(superposition_weights(row) - np.sin(np.pi * row)).max() for row in theta)
    hello = {
        "versions": {module.__name__: module.__version__ for module in (torch, qiskit, np)},
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
        "tensors": len(list(model.parameters())),
        "error_of_weights": float(error),
    }
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        command, *values = line.split()
        if command == "check":
            exact = trainings(model.eval(), batches, float(values[0]))
            answer: Any = {name: [t.step().item() for _ in range(5)] for name, t in exact.items()}
        else:
            began = time.perf_counter()
            running[command].step()
            answer = time.perf_counter() - began
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
