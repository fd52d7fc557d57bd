"""Tell two spirals apart with Flax linen, trained by superpositional AdamW."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

import qsgd_jax as qsgd


def spirals(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of two noisy spirals, and which of the two each belongs to."""
    rng = np.random.default_rng(seed)
    arm, radius = rng.integers(0, 2, n), np.sqrt(rng.uniform(0.02, 1, n))
    angle = 3 * np.pi * radius + np.pi * arm
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points + rng.normal(0, 0.02, (n, 2)), arm


model = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(32), nn.tanh, nn.Dense(2)])
params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
tx = qsgd.superpositional_adamw(0.01, quantum_weight=0.5, weigh="update")  # optax.adamw(0.01)
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def train_step(state: TrainState, points: np.ndarray, arms: np.ndarray):
    """Take one step; return the new state and the loss before it."""

    def loss(params):
        logits = state.apply_fn({"params": params}, points)
        return optax.softmax_cross_entropy_with_integer_labels(logits, arms).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients), value


train, test = spirals(1000, seed=0), spirals(1000, seed=1)
for step in range(501):
    state, loss = train_step(state, *train)
    if step % 100 == 0:
        print(f"step {step:3}  loss {loss:.4f}")
logits = state.apply_fn({"params": state.params}, test[0])
print(f"test accuracy {np.mean(logits.argmax(1) == test[1]):.1%}")
