"""Leaves that stack layers, as `nnx.scan` and `vmap` make them, train as the layers apart do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd

CIRCUIT = qsgd.Circuit(4, 2)
SURROGATE = qsgd.probe(CIRCUIT)
FORMS = {
    "default": None,
    "entangled": SURROGATE,
    "refreshable": qsgd.refreshable(SURROGATE),
    "direct": qsgd.Direct(CIRCUIT, "default.qubit"),
}
RNG = np.random.default_rng(0)


def _layer(dtype=np.float32):
    shapes = {"kernel": (8, 8), "bias": (8,), "odd": (5, 3)}
    return {name: jnp.asarray(RNG.normal(size=shape), dtype) for name, shape in shapes.items()}


LAYERS, TARGETS = [_layer() for _ in range(3)], [_layer() for _ in range(3)]


def _stack(layers):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def _trained(optimizer, params, targets):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(
            jax.tree.map(jnp.subtract, params, targets), state, params
        )
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(20):
        params, state = step(params, state)
    return params, state


def _distance(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(float(jnp.abs(x - y).max()) for x, y in pairs)


@pytest.mark.parametrize("weigh", ["update", "gradient", "moments"])
@pytest.mark.parametrize("coverage", [qsgd.Leading, qsgd.Everywhere])
@pytest.mark.parametrize("name", FORMS)
def test_declared_stacks_train_as_their_layers_apart(name, coverage, weigh):
    def optimizer(coverage):
        return qsgd.superpositional_adamw(
            1e-2, surrogate=FORMS[name], coverage=coverage, weigh=weigh, diagnostics=True
        )

    apart, state = _trained(optimizer(coverage()), LAYERS, TARGETS)
    stacked, other = _trained(optimizer(coverage(stacked_axes=1)), _stack(LAYERS), _stack(TARGETS))
    assert _distance(_stack(apart), stacked) <= 1e-6
    for field in ("relative_norm", "flipped_share"):
        first, second = (float(optax.tree.get(s, field)) for s in (state, other))
        assert second == pytest.approx(first, rel=1e-4, abs=1e-6)
    # What makes the difference: undeclared, the first layer alone, or blocks across layers.
    undeclared, _ = _trained(optimizer(coverage()), _stack(LAYERS), _stack(TARGETS))
    one_by_one = name == "default" and coverage is qsgd.Everywhere
    assert one_by_one or weigh == "moments" or _distance(_stack(apart), undeclared) > 1e-3


@pytest.mark.parametrize("coverage", [qsgd.Leading, qsgd.Everywhere])
def test_several_axes_and_complex_leaves_stack(coverage):
    apart = jnp.asarray(RNG.normal(size=(6, 8, 3)) + 1j * RNG.normal(size=(6, 8, 3)), jnp.complex64)
    stacked = apart.reshape(2, 3, 8, 3)
    expected = [qsgd.superposition_weights(SURROGATE, leaf, coverage()) for leaf in apart]
    found = qsgd.superposition_weights(SURROGATE, stacked, coverage(stacked_axes=2))
    np.testing.assert_allclose(found.reshape(6, 8, 3), jnp.stack(expected), atol=1e-6)


def _of_the_path(path, leaf):
    return int(path[0].key == "layers")


@pytest.mark.parametrize("stacked_axes", [_of_the_path, {"layers": 1, "head": 0}])
@pytest.mark.parametrize("coverage", [qsgd.Leading, qsgd.Everywhere])
def test_which_leaves_stack_is_told_by_a_function_or_a_prefix(coverage, stacked_axes):
    params = {"layers": _stack(LAYERS), "head": _layer()}
    weights = qsgd.superposition_weights(SURROGATE, params, coverage(stacked_axes=stacked_axes))
    whole, stacked = coverage(), coverage(stacked_axes=1)
    expected = {
        "layers": qsgd.superposition_weights(SURROGATE, params["layers"], stacked),
        "head": qsgd.superposition_weights(SURROGATE, params["head"], whole),
    }
    assert _distance(weights, expected) == 0


def test_sampled_layers_have_streams_of_their_own():
    sampled = qsgd.sampled(qsgd.probe(qsgd.Circuit(4, 2), readout="probabilities"), 1)
    layers = jnp.broadcast_to(LAYERS[0]["kernel"], (5, 8, 8))
    for coverage in (qsgd.Leading(1), qsgd.Everywhere(1)):
        weights = qsgd.superposition_weights(sampled, layers, coverage)
        assert len({layer.tobytes() for layer in np.asarray(weights)}) > 1
        assert set(np.unique(weights)) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("stacked_axes", [-1, 1.0, True, "1", {"w": -1}, {"w": "x"}])
def test_what_is_no_number_of_axes_is_refused(stacked_axes):
    for coverage in (qsgd.Leading, qsgd.Everywhere):
        with pytest.raises(ValueError, match="stacked_axes="):
            coverage(stacked_axes=stacked_axes)


@pytest.mark.parametrize("name", FORMS)
def test_more_axes_than_a_leaf_has_are_refused_by_its_path(name):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    optimizer = qsgd.superpositional_adamw(
        0.1, surrogate=FORMS[name], coverage=qsgd.Everywhere(stacked_axes=2)
    )
    with pytest.raises(ValueError, match=r"stacked_axes=2 at .*'b'.*the 1 axes"):
        optimizer.update(params, optimizer.init(params), params)
    with pytest.raises(ValueError, match="no prefix of params"):
        qsgd.superposition_weights(SURROGATE, params, qsgd.Leading({"another": 1}))
    with pytest.raises(ValueError, match="coverage='all'"):
        qsgd.superpositional_adamw(0.1, coverage="all")  # pyright: ignore[reportArgumentType]
