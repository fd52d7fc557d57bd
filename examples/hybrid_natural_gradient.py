"""Tell two moons apart: natural gradients for the circuit, Adam for the layers around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
from flax import nnx

import qsgd_jax as qsgd
from qsgd_jax.nn import QuantumLayer

N_QUBITS, DEPTH = 4, 2


@qml.qnode(qml.device("lightning.qubit", wires=N_QUBITS))
def circuit(inputs, weights):
    """Encode one angle a qubit, entangle, and measure each qubit."""
    qml.AngleEmbedding(inputs, wires=range(N_QUBITS))
    qml.StronglyEntanglingLayers(weights, wires=range(N_QUBITS))
    return [qml.expval(qml.Z(wire)) for wire in range(N_QUBITS)]


class Model(nnx.Module):
    """A circuit between two linear layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.before = nnx.Linear(2, N_QUBITS, rngs=rngs)
        self.circuit = QuantumLayer(circuit, {"weights": (DEPTH, N_QUBITS, 3)}, rngs=rngs)
        self.after = nnx.Linear(N_QUBITS, 2, rngs=rngs)

    def __call__(self, points):
        """Scores of the two moons."""
        return self.after(self.circuit(self.before(points)))


def labels(params):
    """Which leaf takes which transformation."""
    names = {"before": "classical", "circuit": "quantum", "after": "classical"}
    return jax.tree_util.tree_map_with_path(lambda path, _: names[path[0].key], params)


def moons(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of two interleaved half circles, with noise, and which of the two each is of."""
    rng = np.random.default_rng(seed)
    moon, angle = rng.integers(0, 2, n), rng.uniform(0, np.pi, n)
    x = np.stack([np.cos(angle) + moon, (0.5 - moon) + (1 - 2 * moon) * np.sin(angle)], axis=1)
    return (x + rng.normal(0, 0.1, (n, 2))).astype(np.float32), moon


model = Model(nnx.Rngs(0))
metric = qsgd.FubiniStudy(model.circuit, "block-diag", every=5)
natural = optax.chain(qsgd.scale_by_metric(metric, damping=0.01), optax.sgd(0.1))
optimizer = nnx.Optimizer(
    model,
    optax.partition({"classical": optax.adam(0.03), "quantum": natural}, labels),
    wrt=nnx.Param,
)


@nnx.jit
def train_step(model, optimizer, points, moon):
    """Take one step; return the loss before it."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(points), moon).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients, batch=model.before(points))  # what the circuit takes
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
