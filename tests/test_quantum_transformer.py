"""The text classifier with quantum attention, and the same without."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import qsgd_jax as qsgd
from qsgd_jax.nn import QuantumTransformer

SMALL: dict[str, Any] = {"features": 8, "num_heads": 2, "hidden": 8, "n_qubits": 2, "depth": 1}
TOKENS = np.random.default_rng(0).integers(1, 9, (6, 5))


def make(**options) -> Any:
    return qsgd.nn.QuantumTransformer(9, 5, 3, rngs=nnx.Rngs(0), **(SMALL | options))


def named(model):
    paths = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in paths}


def test_the_defaults_are_the_papers():
    model: Any = QuantumTransformer(9, 5, 3, rngs=nnx.Rngs(0))
    shapes = {name: value.shape for name, value in named(model).items()}
    assert shapes["['embedding']['embedding']"] == (9, 64)
    assert shapes["['layers'][1]['attention']['query']['kernel']"] == (64, 4, 16)
    assert shapes["['layers'][1]['expand']['kernel']"] == (64, 128)
    assert shapes["['layers'][1]['attention']['attention_fn']['angles']"] == (2, 4, 2)
    assert len(model.layers) == 2 and model.dropout.rate == 0.1
    assert make(circuit_per_head=True).layers[0].attention.attention_fn.angles.shape == (2, 1, 2, 2)


@pytest.mark.slow
def test_without_circuits_it_is_the_same_model_from_the_same_values():
    """The paired comparison: all but the angles is equal, and so is the output where Φ is zero."""
    quantum, classical = make(), make(quantum=False)
    angles = {name: value for name, value in named(quantum).items() if "angles" in name}
    assert len(angles) == 2 and len({value.tobytes() for value in angles.values()}) == 2
    assert named(quantum).keys() - angles.keys() == named(classical).keys()
    for name, value in named(classical).items():
        np.testing.assert_array_equal(value, named(quantum)[name])
    for draws in ({"deterministic": True}, {"deterministic": False}):
        one, other = (
            model(TOKENS, rngs=nnx.Rngs(dropout=1), **draws) for model in (quantum, classical)
        )
        np.testing.assert_allclose(one, other, atol=1e-5)  # with Φ = 0, where amplitudes begin
    random = make(angle_init=nnx.initializers.uniform(2 * np.pi))
    difference = random(TOKENS, deterministic=True) - classical(TOKENS, deterministic=True)
    assert np.abs(difference).max() > 1e-2


def test_dropout_follows_train_and_eval():
    model = make(dropout_rate=0.5)
    assert np.abs(model(TOKENS) - model(TOKENS)).max() > 1e-3  # begins in training
    model.eval()
    np.testing.assert_array_equal(model(TOKENS), model(TOKENS))
    np.testing.assert_array_equal(model(TOKENS), model(TOKENS, deterministic=True))
    model.train()
    assert np.abs(model(TOKENS) - model(TOKENS)).max() > 1e-3
    bare = make(dropout_rate=0.5, keep_rngs=False)
    assert set(map(type, jax.tree.leaves(nnx.state(bare), is_leaf=_is_variable))) == {nnx.Param}
    one, other = (bare(TOKENS, rngs=nnx.Rngs(dropout=3)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def _is_variable(leaf):
    return isinstance(leaf, nnx.Variable)


def test_padding_says_nothing():
    model = make(dropout_rate=0.0)
    padded = np.pad(TOKENS[:, :3], ((0, 0), (0, 2)))
    np.testing.assert_allclose(model(padded), model(TOKENS[:, :3]), atol=1e-6)
    assert np.isfinite(model(np.zeros((1, 5), int))).all()


@pytest.mark.slow
def test_it_learns_and_so_do_its_angles():
    model = make(readout="probability", dropout_rate=0.0)
    before = named(model)
    optimizer = nnx.Optimizer(
        model, qsgd.superpositional_adamw(3e-2, quantum_weight=0.5), wrt=nnx.Param
    )
    labels = TOKENS[:, 0] % 3

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            logits = model(TOKENS)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.2 < losses[0]
    for name, value in named(model).items():
        if "angles" in name:
            assert np.abs(value - before[name]).max() > 1e-2


def test_too_long_sequences_are_refused():
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 6\).*length=5"):
        make()(np.ones((1, 6), int))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="divisible"):
        make(num_heads=3)
