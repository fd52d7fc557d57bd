"""Read small noisy digits with Flax nnx, trained by superpositional AdamW."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import qsgd_jax as qsgd

# The 3 × 5 pixels of each digit, row by row, as the bits of a number.
FONT = [31599, 11415, 29671, 29647, 23497, 31183, 31215, 29257, 31727, 31695]
GLYPHS = (np.array(FONT)[:, None] >> np.arange(14, -1, -1) & 1).reshape(10, 5, 3)


def digits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of 8 × 8 pixels, each with a digit somewhere in it, and the digits."""
    rng = np.random.default_rng(seed)
    labels, images = rng.integers(0, 10, n), rng.normal(0, 0.2, (n, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        row, column = rng.integers(0, 4), rng.integers(0, 6)
        image[row : row + 5, column : column + 3, 0] += GLYPHS[label]
    return images, labels


rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Conv(1, 32, (5, 3), padding="VALID", rngs=rngs),
    nnx.relu,
    lambda x: jnp.max(x, (1, 2)),
    nnx.Linear(32, 10, rngs=rngs),
)
tx = qsgd.superpositional_adamw(0.01, quantum_weight=0.5, weigh="update")  # optax.adamw(0.01)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def train_step(model: nnx.Module, optimizer: nnx.Optimizer, images: np.ndarray, labels: np.ndarray):
    """Take one step; return the loss before it."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


train, test = digits(4000, seed=0), digits(1000, seed=1)
for step in range(301):
    batch = slice(start := 100 * step % 4000, start + 100)
    loss = train_step(model, optimizer, train[0][batch], train[1][batch])
    if step % 50 == 0:
        print(f"step {step:3}  loss {loss:.4f}")
print(f"test accuracy {np.mean(jnp.argmax(model(test[0]), 1) == test[1]):.1%}")
