"""Flax modules with quantum circuits inside."""

from qsgd_jax.nn._attention import QuantumAttention
from qsgd_jax.nn._layer import QuantumLayer
from qsgd_jax.nn._transformer import QuantumTransformer

__all__ = ["QuantumAttention", "QuantumLayer", "QuantumTransformer"]
