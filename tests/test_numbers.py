"""Numbers at the edge and trees at random: what is not finite, huge, tiny, empty or mixed."""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

import functools
import math
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import qsgd_jax as qsgd

FORMS = ("gradient", "update", "moments")


@functools.cache
def _surrogate(n_qubits, depth, shots=None, direct=False):
    """Cached, as optimizers compile their steps for each one anew."""
    circuit = qsgd.Circuit(n_qubits, depth, seed=1)
    readout = "expectation" if shots is None else "probabilities"
    make: Any = qsgd.Direct if direct else qsgd.probe
    surrogate = make(circuit, readout=readout)
    return surrogate if shots is None else qsgd.sampled(surrogate, shots)


def _weigh(surrogate, coverage):
    return jax.jit(lambda params: qsgd.superposition_weights(surrogate, params, coverage))


def _blocks(shape, n, coverage):
    """The coordinates of each block of a leaf, by their row-major index."""
    index = np.arange(math.prod(shape)).reshape(shape)
    if coverage == "leading":
        return [index.ravel()[:n]]
    rows = np.moveaxis(np.atleast_1d(index), max(index.ndim - 2, 0), 0)
    groups = (rows[start : start + n] for start in range(0, len(rows), n))
    return [block for group in groups for block in group.reshape(len(group), -1).T]


def _reached(shape, n, coverage, wrong):
    """Which coordinates share a block with one that is wrong."""
    mask = np.zeros(shape, bool)
    for block in _blocks(shape, n, coverage):
        mask.flat[block] = wrong.flat[block].any()
    return mask


# What is not finite

SHAPE = (3, 2)  # in pairs of rows a block of two and one of one in each column
WEIGHINGS = {  # what `_surrogate` takes, and the coverage
    "leading": ((2, 0), "leading"),
    "everywhere": ((2, 0), "everywhere"),
    "leading, entangled": ((2, 1), "leading"),
    "everywhere, entangled": ((2, 1), "everywhere"),
    "leading, sampled": ((2, 0, 2), "leading"),
    "everywhere, sampled": ((2, 0, 2), "everywhere"),
    "leading, direct": ((2, 0, None, True), "leading"),
    "everywhere, direct": ((2, 0, None, True), "everywhere"),
}
SEPARABLE = ("leading", "everywhere")
NOT_FINITE = [np.nan, np.inf, -np.inf]


def _leaf(value=0.3, at=()):
    leaf = np.linspace(-0.4, 0.7, 6, dtype=np.float32).reshape(SHAPE)
    for place in at:
        leaf[place] = value
    return leaf


@pytest.mark.parametrize("name", WEIGHINGS)
def test_a_parameter_that_is_not_finite_has_no_weight_and_spoils_its_block_alone(name):
    shape, coverage = WEIGHINGS[name]
    weigh = _weigh(_surrogate(*shape), coverage)
    clean = np.asarray(weigh(_leaf()))
    for place in np.ndindex(SHAPE):
        for value in NOT_FINITE:
            leaf = _leaf(value, [place])
            weights, wrong = np.asarray(weigh(leaf)), ~np.isfinite(leaf)
            reached = _reached(SHAPE, 2, coverage, wrong)
            lost = np.isnan(weights)
            np.testing.assert_array_equal(lost & wrong, reached & wrong)
            assert np.all(lost <= (reached & wrong if name in SEPARABLE else reached))
            np.testing.assert_array_equal(weights[~reached], clean[~reached])


@functools.cache
def _steps(weigh, name, quantum_weight=0.5):
    """`(params, gradients) -> (params after that step, updates of a second, finite one)`."""
    if weigh == "adamw":
        optimizer = optax.adamw(0.1)
    else:
        shape, coverage = WEIGHINGS[name]
        optimizer = qsgd.superpositional_adamw(
            0.1,
            quantum_weight=quantum_weight,
            weigh=weigh,
            surrogate=_surrogate(*shape),
            coverage=coverage,
        )

    @jax.jit
    def steps(params, gradients):
        updates, state = optimizer.update(gradients, optimizer.init(params), params)
        second, _ = optimizer.update(jnp.ones(SHAPE), state, _leaf())
        return optax.apply_updates(params, updates), second

    return steps


PLACES = [(0, 0), (2, 1)]  # in a block of two that leads, and in a block of one


@pytest.mark.parametrize("name", ["leading", "everywhere, entangled"])
@pytest.mark.parametrize("weigh", FORMS)
@pytest.mark.parametrize("value", NOT_FINITE)
def test_gradients_that_are_not_finite_break_what_they_break_in_adamw(weigh, name, value):
    gradients = _leaf(value, PLACES)
    ours = _steps(weigh, name)(_leaf(), gradients)
    adamw = _steps("adamw", None)(_leaf(), gradients)
    for result, expected in zip(ours, adamw, strict=True):
        np.testing.assert_array_equal(np.isfinite(result), np.isfinite(expected))
        np.testing.assert_array_equal(np.isfinite(expected), np.isfinite(gradients))


@pytest.mark.parametrize("name", ["leading", "everywhere, entangled"])
@pytest.mark.parametrize("weigh", FORMS)
@pytest.mark.parametrize("quantum_weight", [0.5, 0.0])
def test_parameters_that_are_not_finite_break_no_more_than_their_blocks(
    weigh, name, quantum_weight
):
    """Through λ w, which no λ = 0 makes finite; only as `"moments"` do they stay in the state."""
    _, coverage = WEIGHINGS[name]
    for value in NOT_FINITE:
        params = _leaf(value, PLACES)
        reached = _reached(SHAPE, 2, coverage, ~np.isfinite(params))
        after, second = _steps(weigh, name, quantum_weight)(params, np.ones(SHAPE, np.float32))
        adamw_after, adamw_second = _steps("adamw", None)(params, np.ones(SHAPE, np.float32))
        np.testing.assert_array_equal(np.isfinite(adamw_after), np.isfinite(params))
        assert np.all(np.isfinite(adamw_second))
        assert np.all(~np.isfinite(after) >= ~np.isfinite(params))
        assert np.all(~np.isfinite(after) <= reached | ~np.isfinite(params))
        assert np.all(~np.isfinite(second) <= reached) and (
            weigh == "moments" or np.all(np.isfinite(second))
        )


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("weigh", FORMS)
def test_diagnostics_of_a_step_that_is_not_finite_are_not_finite(weigh, value):
    optimizer = qsgd.superpositional_adamw(0.1, weigh=weigh, diagnostics=True)
    gradients = _leaf(value, PLACES)
    _, state = optimizer.update(gradients, optimizer.init(_leaf()), _leaf())
    assert not np.isfinite(optax.tree.get(state, "relative_norm"))


# What is huge or tiny


LARGE = {
    "float16": [65504, -65504, 1023.5, -1000.5],
    "bfloat16": [3.3e38, -1e30, 127.5, -100.5],
    "float32": [3.4e38, -1e30, 2**22 + 0.5, -100000.25],
    "float64": [1.7e308, -1e30, 2**51 + 0.5, -1e12 + 0.25],
}


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("name", LARGE)
def test_parameters_are_weighed_modulo_their_period_however_large(
    request, simulate, name, depth, direct
):
    """Beyond 1/ε all of them are even integers, of weight sin 0."""
    if name == "float64":
        request.getfixturevalue("float64")
    theta = jnp.asarray(LARGE[name], name)
    weights = _weigh(_surrogate(2, depth, direct=direct), "everywhere")(theta)
    within = np.fmod(np.asarray(theta, np.float64), 2).reshape(2, 2)
    expected, _ = simulate(within, qsgd.Circuit(2, depth, seed=1).angles)
    np.testing.assert_allclose(weights, expected.ravel(), atol=1e-6)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("weigh", FORMS)
def test_gradients_are_finite_up_to_what_one_and_a_half_of_them_can_be(weigh, name):
    """As in adamw, whose second moment overflows long before; λ = 0.5."""
    optimizer = qsgd.superpositional_adamw(0.1, weigh=weigh)
    params = jnp.asarray([0.5, -0.5, 0.25, 0.0], name)
    gradients = jnp.full(4, 0.66 * float(jnp.finfo(name).max), name)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert np.all(np.isfinite(updates.astype(jnp.float32)))


TINY = np.array([1e-45, -1e-40, 5e-39, -1e-38, 0.0, -0.0, 2e-38, -1e-36], np.float32)
NORMAL = float(np.finfo(np.float32).tiny)  # XLA flushes what is smaller to zero, on CPU


@pytest.mark.parametrize("depth", [0, 1])
def test_denormal_parameters_are_weighed_as_themselves_or_as_zero(depth):
    surrogate = _surrogate(2, depth)
    weights = qsgd.superposition_weights(surrogate, TINY, "everywhere")
    zero = qsgd.superposition_weights(surrogate, np.zeros_like(TINY), "everywhere")
    np.testing.assert_allclose(weights, zero, atol=1e-6)
    if depth == 0:
        np.testing.assert_allclose(weights, np.pi * TINY, rtol=1e-6, atol=4 * NORMAL)


@pytest.mark.parametrize("quantum_weight", [0.0, 0.5])
@pytest.mark.parametrize("weigh", FORMS)
def test_denormal_gradients_step_as_in_adamw(weigh, quantum_weight):
    """XLA flushes them, and the moments they make, to zero in both."""
    options, params = {"weight_decay": 0.0}, np.linspace(-1, 1, 8, dtype=np.float32)
    updates = []
    for optimizer in (
        qsgd.superpositional_adamw(0.1, quantum_weight=quantum_weight, weigh=weigh, **options),
        optax.adamw(0.1, **options),
    ):
        updates.append(np.asarray(optimizer.update(TINY, optimizer.init(params), params)[0]))
    ours, expected = updates
    assert expected[-1] > 1e-31
    assert np.all(np.abs(ours - expected) <= quantum_weight * (np.abs(expected) + np.abs(TINY)))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_diagnostics_do_not_depend_on_the_scale_of_the_gradients(scale):
    optimizer, params = qsgd.scale_by_superposition(0.5, diagnostics=True), jnp.full(4, 0.5)
    _, state = optimizer.update(jnp.full(4, scale), optimizer.init(params), params)
    np.testing.assert_allclose(state.diagnostics.relative_norm, 0.5, rtol=1e-6)


@pytest.mark.bits
@pytest.mark.parametrize("weigh", FORMS)
def test_quantum_weight_zero_is_adamw_in_a_compiled_step(weigh):
    """Bit for bit, but for the multiply-adds that XLA makes of weighed gradients and moments."""
    rng = np.random.default_rng(0)
    start, gradients = (jnp.asarray(rng.normal(size=300), jnp.float32) for _ in range(2))
    results = []
    for optimizer in (
        qsgd.superpositional_adamw(0.1, quantum_weight=0.0, weigh=weigh),
        optax.adamw(0.1),
    ):
        params, state = start, optimizer.init(start)
        for _ in range(3):
            updates, state = jax.jit(optimizer.update)(gradients, state, params)
            params = optax.apply_updates(params, updates)
        results.append(params)
    np.testing.assert_allclose(*results, rtol=1e-4 if weigh == "moments" else 0, atol=0)


# Trees at random

SINGLE = ("float32", "bfloat16", "complex64", "float16", "int32")
DOUBLE = (*SINGLE, "float64", "complex128")


def _trees(dtypes):
    """Two to four leaves of any shape and dtype, in lists, tuples and dicts."""
    sides = st.sampled_from([3, 5, 2, 1, 0])
    shapes = st.one_of(*(st.tuples(*[sides] * rank) for rank in (2, 3, 1, 4, 0)))
    leaf = st.tuples(shapes, st.sampled_from(dtypes), st.integers(0, 99)).map(_specified)
    rest = st.one_of(leaf, st.none(), st.just({}), st.lists(leaf, min_size=1, max_size=2))
    return st.one_of(
        st.tuples(leaf, leaf, rest),
        st.fixed_dictionaries({"b": leaf, "a": st.tuples(leaf, rest)}),
        st.lists(st.fixed_dictionaries({"a": leaf, "c": rest}), min_size=2, max_size=2),
    )


def _specified(specification):
    shape, dtype, seed = specification
    values = np.random.default_rng(seed).uniform(-3, 3, (2, *shape))
    complex_leaf = dtype.startswith("complex")
    return jnp.asarray(values[0] + 1j * values[1] if complex_leaf else values[0], dtype)


def _at_random(examples):
    """Few, and the same in each run: every one is compiled, which takes a second."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def _expected(simulate, circuit, coverage, leaf):
    """The weights of a real leaf: each block padded with 0 and simulated in NumPy."""
    theta, n = np.asarray(leaf, np.float64), circuit.n_qubits
    weights = np.zeros(theta.shape)
    for block in filter(len, _blocks(theta.shape, n, coverage)):
        padded = np.append(theta.flat[block], np.zeros(n - len(block)))
        values, _ = simulate(padded[None], circuit.angles)
        weights.flat[block] = values[0, : len(block)]
    return weights


@pytest.mark.parametrize("coverage", ["leading", "everywhere"])
@pytest.mark.parametrize(("n_qubits", "depth"), [(1, 2), (2, 0), (3, 2), (4, 1)])
@_at_random(3)
@given(tree=_trees(DOUBLE))
def test_weights_of_any_tree_are_the_simulated_blocks_of_its_leaves(
    simulate, float64, n_qubits, depth, coverage, tree
):
    circuit = qsgd.Circuit(n_qubits, depth, seed=1)
    weights = _weigh(_surrogate(n_qubits, depth), coverage)(tree)
    assert jax.tree.structure(weights) == jax.tree.structure(tree)
    for leaf, weight in zip(jax.tree.leaves(tree), jax.tree.leaves(weights), strict=True):
        assert weight.shape == leaf.shape
        if leaf.dtype == jnp.int32:
            assert not np.any(weight)
            continue
        assert weight.dtype == jnp.promote_types(leaf.dtype, jnp.float32)
        parts = (np.real, np.imag)[: 1 + jnp.iscomplexobj(leaf)]
        for part in parts:
            assert np.all(np.abs(part(weight)) <= 1 + 1e-5)
            expected = _expected(simulate, circuit, coverage, part(np.asarray(leaf)))
            np.testing.assert_allclose(part(weight), expected, atol=1e-5)


@_at_random(2)
@given(tree=_trees(SINGLE))
def test_samples_of_the_last_leaf_do_not_depend_on_the_others(tree):
    weigh = _weigh(_surrogate(1, 0, 2), "everywhere")
    leaves, structure = jax.tree.flatten(tree)
    hidden = [optax.MaskedNode()] * (len(leaves) - 1)
    weights, alone = weigh(tree), weigh(structure.unflatten([*hidden, leaves[-1]]))
    assert jax.tree.structure(weights) == structure
    np.testing.assert_array_equal(jax.tree.leaves(weights)[-1], jax.tree.leaves(alone)[0])
    for leaf, weight in zip(leaves, jax.tree.leaves(weights), strict=True):
        assert weight.shape == leaf.shape
        assert set(np.unique([np.real(weight), np.imag(weight)])) <= {-1.0, 0.0, 1.0}


@pytest.mark.bits
@pytest.mark.parametrize("weigh", FORMS)
@_at_random(2)
@given(tree=_trees(SINGLE))
def test_quantum_weight_zero_is_adamw_bit_for_bit_on_any_tree(weigh, tree):
    """One operation after the other: a compiled step rounds as it is fused."""
    surrogate, results = _surrogate(2, 0), []
    for optimizer in (
        qsgd.superpositional_adamw(
            0.1, quantum_weight=0.0, weigh=weigh, surrogate=surrogate, coverage="everywhere"
        ),
        optax.adamw(0.1),
    ):
        first, state = optimizer.update(tree, optimizer.init(tree), tree)
        params = optax.apply_updates(tree, first)
        second, _ = optimizer.update(params, state, params)
        results.append((first, params, second))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for leaf, expected in zip(*map(jax.tree.leaves, results), strict=True):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(leaf, expected)
