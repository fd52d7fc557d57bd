"""The training that test_resume kills: `python tests/trainer.py FOLDER SEED STEPS`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Float, PyTree

import qsgd_jax as qsgd

Form = Literal["gradient", "update", "moments"]
FORMS: tuple[Form, ...] = ("gradient", "update", "moments")
SPECTRAL = len(FORMS)  # comes after them
SAVE_EVERY = 5


class Model(nnx.Module):
    """A perceptron with dropout, so that the model has random state to restore as well."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(16, 1, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "batch 8"]) -> Float[Array, "batch 1"]:
        return self.out(self.dropout(jnp.tanh(self.hidden(x))))


def train(folder: Path, seed: int, steps: int) -> Iterator[tuple[int, str]]:
    """Train, from the folder's last checkpoint where there is one.

    Batches, λ and dropout change with the step, and the weights are fresh samples in each.

    Args:
        folder: of the checkpoints; empty for a new training.
        seed: of the initial parameters, dropout, batches and sampled weights.
        steps: of the whole training.

    Yields:
        The number of steps taken so far and a SHA-256 of model and optimizer: as created or
        restored, and after each step.
    """
    transformation = _transformation(seed, steps)

    def create() -> tuple[Model, nnx.Optimizer]:
        model = Model(nnx.Rngs(seed))
        return model, nnx.Optimizer(model, transformation, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer, index: int) -> None:
        x = jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), (32, 8))
        target = jnp.sin(x.sum(axis=1, keepdims=True))
        gradients = nnx.grad(lambda model: jnp.mean((model(x) - target) ** 2))(model)
        optimizer.update(model, gradients)

    options = ocp.CheckpointManagerOptions(save_interval_steps=SAVE_EVERY, max_to_keep=2)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        taken = manager.latest_step() or 0
        if taken:
            graph, abstract = nnx.split(nnx.eval_shape(create))
            restored = manager.restore(taken, args=ocp.args.StandardRestore(abstract))
            model, optimizer = nnx.merge(graph, restored)
        else:
            model, optimizer = nnx.jit(create)()
        yield taken, digest(nnx.state((model, optimizer)))
        while taken < steps:
            step(model, optimizer, taken)
            taken += 1
            state = nnx.state((model, optimizer))
            yield taken, digest(state)
            manager.save(taken, args=ocp.args.StandardSave(state))


def _transformation(seed: int, steps: int) -> optax.GradientTransformation:
    form = seed % (len(FORMS) + 1)
    if form == SPECTRAL:
        return qsgd.superpositional_muon(optax.linear_schedule(0.02, 0.002, steps))
    surrogate = qsgd.probe(qsgd.Circuit(n_qubits=2, depth=1), readout="probabilities")
    return qsgd.superpositional_adamw(
        0.01,
        quantum_weight=optax.linear_schedule(0.5, 0.1, steps),
        weigh=FORMS[form],
        surrogate=qsgd.sampled(surrogate, shots=4),
        coverage="everywhere",
        key=seed,
        diagnostics=True,
    )


def digest(tree: PyTree[Array]) -> str:
    """SHA-256 of the bytes of all leaves, random keys included."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        sha.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    for taken, sha in train(Path(sys.argv[1]), *map(int, sys.argv[2:])):
        print(taken, sha, flush=True)
