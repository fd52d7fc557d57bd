"""Flax modules with quantum circuits inside."""

from qsgd_jax.nn.attention import QuantumAttention
from qsgd_jax.nn.transformer import QuantumTransformer

__all__ = ["QuantumAttention", "QuantumTransformer"]
