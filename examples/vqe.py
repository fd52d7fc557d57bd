"""Find the ground state of a transverse-field Ising ring: the natural gradient beside Adam."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pennylane as qml

import qsgd_jax as qsgd

N_QUBITS, DEPTH, STEPS = 6, 4, 60
WIRES = range(N_QUBITS)
PAIRS = [(wire, (wire + 1) % N_QUBITS) for wire in WIRES]
HAMILTONIAN = qml.Hamiltonian(
    [-1.0] * (2 * N_QUBITS), [qml.Z(i) @ qml.Z(j) for i, j in PAIRS] + [qml.X(i) for i in WIRES]
)
GROUND = np.linalg.eigvalsh(np.asarray(qml.matrix(HAMILTONIAN, wire_order=WIRES)))[0]


@qml.qnode(qml.device("default.qubit", wires=N_QUBITS))
def energy(weights):
    """Let the couplings and the field act in turns, each for an angle of the layer."""
    for wire in WIRES:
        qml.Hadamard(wire)
    for layer in range(DEPTH):
        for pair in PAIRS:
            qml.IsingZZ(weights[layer, 0], wires=pair)
        for wire in WIRES:
            qml.RX(weights[layer, 1], wires=wire)
    return qml.expval(HAMILTONIAN)


def descend(optimizer: optax.GradientTransformation) -> np.ndarray:
    """Relative errors of the energy along a run."""
    params = {"weights": jnp.full((DEPTH, 2), 0.1)}

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(lambda params: energy(**params))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, errors = optimizer.init(params), []
    for _ in range(STEPS):
        params, state, value = step(params, state)
        errors.append(float(value) / GROUND)
    return 1 - np.array(errors)


natural = optax.chain(qsgd.scale_by_metric(qsgd.FubiniStudy(energy), damping=1e-3), optax.sgd(0.05))
for name, optimizer in {"natural gradient": natural, "Adam": optax.adam(0.05)}.items():
    errors = descend(optimizer)
    print(f"{name}: relative error {errors[-1]:.6f}")
    plt.semilogy(errors, label=name)
plt.xlabel("step")
plt.ylabel("relative error of the energy")
plt.legend()
plt.savefig("vqe.png", dpi=150)
