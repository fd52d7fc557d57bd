"""Flax: `nnx.Optimizer`, linen's `TrainState`, serialization and orbax, against plain optax."""

# Trees are typed as unions of all that a tree may be, which no access satisfies:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportIndexIssue=false

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import qsgd_jax as qsgd

X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))
EXACT = qsgd.probe(qsgd.Circuit(n_qubits=2, depth=1))
SAMPLED = qsgd.sampled(qsgd.probe(qsgd.Circuit(n_qubits=2), readout="probabilities"), shots=3)


def _adamw(surrogate=SAMPLED, coverage="leading", **options):
    return qsgd.superpositional_adamw(
        0.02,
        weight_decay=0.1,
        surrogate=surrogate,
        coverage=coverage,
        **{"quantum_weight": optax.linear_schedule(0.5, 0.1, 10), "weigh": "update", **options},
    )


DIAGNOSED = _adamw(key=1, diagnostics=True)


class Model(nnx.Module):
    """Two layers, the first with a low-rank adapter."""

    def __init__(self, rngs):
        self.hidden = nnx.LoRALinear(3, 6, lora_rank=2, rngs=rngs)
        self.head = nnx.Linear(6, 1, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.hidden(x)))


def _nnx_loss(model):
    return jnp.mean((model(X) - Y) ** 2)


@nnx.jit
def _nnx_step(model, optimizer):
    gradients = nnx.grad(_nnx_loss, argnums=nnx.DiffState(0, optimizer.wrt))(model)
    optimizer.update(model, gradients)


def _train_nnx(transformation, wrt=nnx.Param, steps=10):
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation, wrt=wrt)
    for _ in range(steps):
        _nnx_step(model, optimizer)
    return model, optimizer


LINEN = nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(1)])


def _linen_loss(params):
    return jnp.mean((LINEN.apply({"params": params}, X) - Y) ** 2)


@jax.jit
def _linen_step(state):
    return state.apply_gradients(grads=jax.grad(_linen_loss)(state.params))


def _linen_state(transformation, seed=0):
    params = jax.jit(LINEN.init)(jax.random.key(seed), X)["params"]
    state = TrainState.create(apply_fn=LINEN.apply, params=params, tx=transformation)
    return state.replace(step=jnp.zeros((), jnp.int32))  # as it is restored: compiled once


def _train_linen(state, steps=10):
    for _ in range(steps):
        state = _linen_step(state)
    return state


def _train_plain(transformation, loss, params):
    """Ten steps of the loop in optax's own documentation."""

    @jax.jit
    def step(params, state):
        updates, state = transformation.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    for _ in range(10):
        params, state = step(params, state)
    return params


def _assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _assert_close(one, other):
    """Equal to rounding: XLA sees two programs."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, other)


@pytest.mark.parametrize(
    ("wrt", "transformation"),
    [
        (nnx.Param, DIAGNOSED),
        (nnx.All(nnx.Param, nnx.PathContains("head")), _adamw(EXACT, "everywhere")),
        (nnx.LoRAParam, DIAGNOSED),
    ],
    ids=["all", "head", "LoRA"],
)
def test_nnx_optimizer_trains_its_part_as_plain_optax_and_leaves_the_rest(wrt, transformation):
    graph, part, rest = nnx.split(Model(nnx.Rngs(0)), wrt, ...)
    part = nnx.to_pure_dict(part)

    def loss(params):
        return _nnx_loss(nnx.merge(graph, nnx.State(params), rest))

    expected = _train_plain(transformation, loss, part)
    model, _ = _train_nnx(transformation, wrt)
    _, trained, left = nnx.split(model, wrt, ...)
    _assert_close(nnx.to_pure_dict(trained), expected)
    _assert_same(left, rest)
    for before, after in zip(jax.tree.leaves(part), jax.tree.leaves(trained), strict=True):
        assert not np.array_equal(before, after)


def test_linen_train_state_trains_as_plain_optax():
    state = _linen_state(DIAGNOSED)
    expected = _train_plain(DIAGNOSED, _linen_loss, state.params)
    trained = _train_linen(state)
    _assert_close(trained.params, expected)
    assert trained.step == optax.tree.get(trained.opt_state[0][1], "count") == 10


@pytest.mark.bits
def test_quantum_weight_zero_is_adamw_bit_for_bit_in_both_apis():
    # Not inside one jitted step: there XLA for CPUs contracts a multiplication and an addition
    # to one FMA, and which two it takes depends on all that it compiles together.
    model_gradients, params_gradients = nnx.jit(nnx.grad(_nnx_loss)), jax.jit(jax.grad(_linen_loss))
    ends = []
    zero = _adamw(None, quantum_weight=0.0)
    for transformation in (optax.adamw(0.02, weight_decay=0.1), zero):
        model, optimizer = _train_nnx(transformation, steps=0)
        state = _linen_state(transformation)
        for _ in range(10):
            optimizer.update(model, model_gradients(model))
            state = state.apply_gradients(grads=params_gradients(state.params))
        ends.append((nnx.state(model), state.params))
    _assert_same(*ends)


def _by_bytes(folder, state, template):
    return serialization.from_bytes(template, serialization.to_bytes(state))


def _by_checkpointer(folder, state, template):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", template)


def _by_manager(folder, state, template):
    with ocp.CheckpointManager(folder) as manager:
        manager.save(5, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(template))


@pytest.mark.bits
@pytest.mark.parametrize("store", [_by_bytes, _by_checkpointer, _by_manager])
def test_linen_train_state_goes_on_bit_for_bit_from_where_it_was_stored(store, tmp_path):
    state = _train_linen(_linen_state(DIAGNOSED), 5)
    fresh = _linen_state(DIAGNOSED, seed=2)
    other_key = jax.random.key_data(jax.random.key(3))
    fresh = fresh.replace(opt_state=optax.tree.set(fresh.opt_state, key=other_key))
    restored = store(tmp_path, state, fresh)
    _assert_same(restored, state)
    expected = _train_linen(state, 5)
    _assert_same(_train_linen(restored, 5), expected)
    assert optax.tree.get(expected.opt_state, "relative_norm") > 0
    reseeded = state.replace(opt_state=optax.tree.set(state.opt_state, key=other_key))
    kernel = _train_linen(reseeded, 5).params["layers_0"]["kernel"]
    assert not np.array_equal(kernel, expected.params["layers_0"]["kernel"])  # the key matters


@pytest.mark.bits
@pytest.mark.parametrize("store", [_by_checkpointer, _by_manager])
def test_nnx_model_and_optimizer_go_on_bit_for_bit_from_orbax(store, tmp_path):
    model, optimizer = _train_nnx(DIAGNOSED, steps=5)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: _train_nnx(DIAGNOSED, steps=0)))
    restored = store(tmp_path, nnx.state((model, optimizer)), abstract)
    _assert_same(restored, nnx.state((model, optimizer)))
    again = nnx.merge(graph, restored)
    for _ in range(5):
        _nnx_step(model, optimizer)
        _nnx_step(*again)
    _assert_same(nnx.state(again), nnx.state((model, optimizer)))
    assert optax.tree.get(optimizer.opt_state, "relative_norm")[...] > 0
