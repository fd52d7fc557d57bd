"""Trainers that take an optax transformation: Optimistix's minimiser and tunix's PeftTrainer."""

# Trees are typed as unions of all that a tree may be, and neither peer is always installed:
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import qsgd_jax as qsgd

pytestmark = pytest.mark.peers  # their environment is that of `make test-peers`

WEIGHTS = {
    "exact": (qsgd.probe(qsgd.Circuit(n_qubits=2, depth=1)), "everywhere"),
    "sampled": (
        qsgd.sampled(qsgd.probe(qsgd.Circuit(n_qubits=2), readout="probabilities"), shots=3),
        "leading",
    ),
}


def _adamw(weights):
    surrogate, coverage = WEIGHTS[weights]
    return qsgd.superpositional_adamw(
        0.02,
        quantum_weight=optax.linear_schedule(0.5, 0.1, 20),
        weigh="update",
        surrogate=surrogate,
        coverage=coverage,
        diagnostics=True,
    )


def _train_plain(transformation, loss, params, steps):
    @jax.jit
    def step(params, state):
        updates, state = transformation.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize("weights", WEIGHTS)
def test_optimistix_minimises_as_plain_optax(weights):
    import optimistix

    def rosenbrock(x, args=None):
        return jnp.sum(100 * (x["x"][1:] - x["x"][:-1] ** 2) ** 2 + (1 - x["x"][:-1]) ** 2)

    start, transformation = {"x": jnp.array([-1.2, 1.0, -1.2, 1.0])}, _adamw(weights)
    minimiser = optimistix.OptaxMinimiser(transformation, rtol=0.0, atol=0.0)
    solution = optimistix.minimise(rosenbrock, minimiser, start, max_steps=200, throw=False)
    expected = _train_plain(transformation, rosenbrock, start, 200)
    np.testing.assert_allclose(solution.value["x"], expected["x"], rtol=1e-5)
    assert rosenbrock(expected) < rosenbrock(start) / 10


class Model(nnx.Module):
    """Two layers, the first with a low-rank adapter, which is all that PeftTrainer trains."""

    def __init__(self, rngs):
        self.hidden = nnx.LoRALinear(3, 6, lora_rank=2, rngs=rngs)
        self.head = nnx.Linear(6, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.hidden(x)))


X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))


def _mse(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tunix 0.1.7 on jax 0.10
def test_peft_trainer_trains_adapters_as_plain_optax_and_goes_on_from_its_checkpoint(tmp_path):
    peft_trainer = pytest.importorskip("tunix.sft.peft_trainer", reason="the extra `tunix`, 1.9 GB")
    transformation = _adamw("sampled")

    def train(folder, steps, restored=0):
        config = peft_trainer.TrainingConfig(
            eval_every_n_steps=100, max_steps=steps, checkpoint_root_directory=str(folder)
        )
        trainer = peft_trainer.PeftTrainer(Model(nnx.Rngs(0)), transformation, config)
        assert trainer.train_steps == restored
        trainer.with_loss_fn(_mse).with_gen_model_input_fn(lambda batch: batch)
        trainer.train([{"x": X, "y": Y}] * steps)
        assert trainer.train_steps == steps
        return trainer.model

    graph, adapters, rest = nnx.split(Model(nnx.Rngs(0)), nnx.LoRAParam, ...)
    expected = _train_plain(
        transformation,
        lambda params: _mse(nnx.merge(graph, nnx.State(params), rest), X, Y),
        nnx.to_pure_dict(adapters),
        10,
    )
    whole = train(tmp_path / "whole", 10)
    _, trained, left = nnx.split(whole, nnx.LoRAParam, ...)
    for one, other in zip(
        jax.tree.leaves(nnx.to_pure_dict(trained)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, left, rest)

    train(tmp_path / "halves", 5)
    halves = train(tmp_path / "halves", 10, restored=5)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(halves), nnx.state(whole))
