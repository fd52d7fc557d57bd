"""Tell two moons apart with a circuit between two linear layers, in Flax nnx."""

import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
from flax import nnx

from qsgd_jax.nn import QuantumLayer

N_QUBITS, DEPTH = 4, 2


@qml.qnode(qml.device("lightning.qubit", wires=N_QUBITS))
def circuit(inputs, weights):
    """Encode one angle a qubit, entangle, and measure each qubit."""
    qml.AngleEmbedding(inputs, wires=range(N_QUBITS))
    qml.StronglyEntanglingLayers(weights, wires=range(N_QUBITS))
    return [qml.expval(qml.Z(wire)) for wire in range(N_QUBITS)]


def moons(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of two interleaved half circles, with noise, and which of the two each is of."""
    rng = np.random.default_rng(seed)
    moon, angle = rng.integers(0, 2, n), rng.uniform(0, np.pi, n)
    x = np.stack([np.cos(angle) + moon, (0.5 - moon) + (1 - 2 * moon) * np.sin(angle)], axis=1)
    return (x + rng.normal(0, 0.1, (n, 2))).astype(np.float32), moon


rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Linear(2, N_QUBITS, rngs=rngs),
    QuantumLayer(circuit, {"weights": (DEPTH, N_QUBITS, 3)}, rngs=rngs),
    nnx.Linear(N_QUBITS, 2, rngs=rngs),
)
optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, points, moon):
    """Take one step; return the loss before it."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(points), moon).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


(points, moon), test = moons(512, seed=0), moons(512, seed=1)
rng = np.random.default_rng(2)
for step in range(101):
    batch = rng.integers(0, len(points), 32)
    loss = train_step(model, optimizer, points[batch], moon[batch])
    if step % 20 == 0:
        print(f"step {step:3}  loss {loss:.4f}")
accuracy = jnp.mean(model(test[0]).argmax(1) == test[1])
print(f"test accuracy {accuracy:.1%}")
