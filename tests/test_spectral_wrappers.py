"""Spectral superposition in optax's wrappers, on leaves of every kind, where jax is strict."""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd
from tests.test_leaves import OTHERS, STRICT, Module

RATE = 0.05
# The same arithmetic in two compiled programs; the products of a cascade round the more.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def _alone(rate=RATE, **options):
    return optax.chain(qsgd.scale_by_spectral_superposition(**options), optax.sgd(rate))


MAKE = {"muon": functools.partial(qsgd.superpositional_muon, RATE), "alone": _alone}
each_form = pytest.mark.parametrize("form", MAKE)


@functools.cache
def _optimizer(form):
    return MAKE[form]()


@functools.cache
def _compiled(optimizer):
    return jax.jit(optimizer.update)


def _params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (6, 4), "bias": (4,), "embedding": (5, 6)}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def _gradients(params):
    return jax.tree.map(lambda p: 2 * (p - 0.3), params)


def _train(optimizer, steps=3, params=None, state=None):
    params = _params() if params is None else params
    state = optimizer.init(params) if state is None else state
    for _ in range(steps):
        updates, state = _compiled(optimizer)(_gradients(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _assert_equal(tree, expected, **tolerance):
    def compare(leaf, other):
        leaf, other = jnp.asarray(leaf), jnp.asarray(other)
        assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(leaf, other, **(tolerance or {"rtol": 0}))

    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(compare, tree, expected)


# Wrappers


@pytest.mark.parametrize("cascade", ["muon", qsgd.spectral_cascade("muon", stages=2)])
def test_hyperparameters_set_in_mid_run_are_a_schedule(cascade):
    make = optax.inject_hyperparams(qsgd.superpositional_muon)
    optimizer = make(0.1, cascade, weight_decay=0.1)
    params, state = _train(optimizer, 2)
    adamw = {"adam_b1", "adam_b2", "adam_eps", "adam_eps_root", "adam_weight_decay"}
    ours = {"learning_rate", "beta", "weight_decay", "update_rms"}
    assert set(state.hyperparams) == adamw | ours
    state.hyperparams["learning_rate"] = jnp.float32(0.03)
    params, state = _train(optimizer, 2, params, state)
    assert _compiled(optimizer)._cache_size() == 1

    def rate(count):
        return jnp.where(count < 2, 0.1, 0.03)

    scheduled = qsgd.superpositional_muon(rate, cascade, weight_decay=0.1)
    _assert_equal(params, _train(scheduled, 4)[0], **ROUNDING)
    injected = make(rate, cascade, weight_decay=0.1)
    _assert_equal(params, _train(injected, 4)[0], **ROUNDING)
    # The decay rate and the size, too, are those of the state.
    state.hyperparams.update(beta=jnp.float32(0.5), update_rms=jnp.float32(1.0))
    other = make(0.03, cascade, 0.5, weight_decay=0.1, update_rms=1.0)
    inner = other.init(params)._replace(inner_state=state.inner_state)
    _assert_equal(
        _train(optimizer, 1, params, state)[0], _train(other, 1, params, inner)[0], **ROUNDING
    )


def test_hyperparameters_are_injected_beside_complex_parameters():
    """optax holds them in the dtype of the parameters, so as complex numbers."""
    params = _params(jnp.complex64)
    optimizer = optax.inject_hyperparams(qsgd.superpositional_muon)(RATE)
    _assert_equal(
        _train(optimizer, 2, params)[0], _train(_optimizer("muon"), 2, params)[0], **ROUNDING
    )


@each_form
def test_multi_steps_are_one_step_with_the_mean_gradient(form):
    optimizer, params = _optimizer(form), _params()
    wrapped = optax.MultiSteps(optimizer, 3)
    state, alone = wrapped.init(params), optimizer.init(params)
    for _ in range(2):
        for size in (1, 4, 1):  # of mean 2
            gradients = optax.tree.scale(size, params)
            updates, state = _compiled(wrapped)(gradients, state, params)
        expected, alone = _compiled(optimizer)(optax.tree.scale(2, params), alone, params)
        _assert_equal(updates, expected, **ROUNDING)
        _assert_equal(state.inner_opt_state, alone, **ROUNDING)


@pytest.mark.parametrize("hidden", ["kernel", "bias", "embedding"])
@each_form
def test_masked_leaves_pass_untouched_and_the_others_do_not_notice(form, hidden):
    optimizer, params = _optimizer(form), _params()
    masked = optax.masked(optimizer, {name: name != hidden for name in params})
    updates, state = _compiled(masked)(params, masked.init(params), params)
    expected, _ = _compiled(optimizer)(params, optimizer.init(params), params)
    _assert_equal(updates, expected | {hidden: params[hidden]}, **ROUNDING)
    _compiled(masked)(params, state, params)


@each_form
def test_a_mask_that_hides_all_leaves_passes_all_updates(form):
    params = _params()
    masked = optax.masked(_optimizer(form), False)
    _assert_equal(masked.update(params, masked.init(params), params)[0], params)


def test_partitioned_leaves_walk_as_by_their_optimizer_alone():
    groups = {"ours": _optimizer("muon"), "adam": optax.adam(0.1), "still": optax.set_to_zero()}
    labels = {"kernel": "ours", "bias": "adam", "embedding": "still"}
    found, _ = _train(optax.partition(groups, labels))
    for name, label in labels.items():
        expected, _ = _train(groups[label], params={name: _params()[name]})
        _assert_equal(found[name], expected[name], **ROUNDING)


@each_form
def test_steps_that_are_not_finite_are_skipped_as_if_never_taken(form):
    optimizer, params = _optimizer(form), _params()
    guarded = optax.apply_if_finite(optimizer, 5)
    state, alone = guarded.init(params), optimizer.init(params)
    broken = params | {"kernel": params["kernel"].at[1, 2].set(jnp.nan)}
    for gradients in (params, broken, params):
        updates, state = _compiled(guarded)(gradients, state, params)
        if gradients is broken:
            _assert_equal(updates, optax.tree.zeros_like(params))
        else:
            expected, alone = _compiled(optimizer)(gradients, alone, params)
            _assert_equal(updates, expected, **ROUNDING)
        _assert_equal(state.inner_state, alone, **ROUNDING)


def test_a_named_chain_keeps_our_state_by_name_and_tree_set_reaches_into_it():
    optimizer = optax.named_chain(
        ("clip", optax.clip(1.0)),
        ("ours", qsgd.scale_by_spectral_superposition()),
        ("sgd", optax.sgd(RATE)),
    )
    _, state = _train(optimizer)
    assert isinstance(state["ours"], qsgd.ScaleBySpectralSuperpositionState)
    assert int(optax.tree.get(state, "count")) == 3
    assert optax.tree.get(state, "mu") is state["ours"].mu
    assert int(optax.tree.set(state, count=7)["ours"].count) == 7


def test_lookahead_resets_its_fast_parameters_to_the_slow_ones():
    optimizer, params = _optimizer("muon"), _params()
    wrapped = optax.lookahead(optimizer, sync_period=2, slow_step_size=0.5)
    both = optax.LookaheadParams.init_synced(params)
    slow, fast, state, fast_state = params, params, wrapped.init(both), optimizer.init(params)
    for step in range(1, 5):
        updates, state = jax.jit(wrapped.update)(_gradients(both.fast), state, both)
        both = optax.apply_updates(both, updates)
        fast, fast_state = _train(optimizer, 1, fast, fast_state)
        if step % 2 == 0:
            slow = fast = jax.tree.map(lambda s, f: (s + f) / 2, slow, fast)
        _assert_equal((both.fast, both.slow), (fast, slow), **ROUNDING)


@each_form
def test_extra_arguments_change_nothing(form):
    optimizer, params = _optimizer(form), _params()
    updates, _ = optimizer.update(params, optimizer.init(params), params, value=1.0, grad=params)
    expected, _ = optimizer.update(params, optimizer.init(params), params)
    _assert_equal(updates, expected)


LABELS = {"kernel": optax.contrib.MuonDimensionNumbers(0, 1), "bias": None, "embedding": "adamw"}
ROUTINGS = {
    "none": None,
    "labels": qsgd.SpectralRouting(labels=LABELS),
    "stacked": qsgd.SpectralRouting(stacked_axes={"kernel": 0, "bias": 0, "embedding": 0}),
}


@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@each_form
def test_map_params_reaches_the_moments_and_nothing_else(form, routing):
    optimizer = MAKE[form](routing=routing)
    _, state = optimizer.update(_params(), optimizer.init(_params()), _params())
    doubled = optax.tree.map_params(optimizer, lambda leaf: 2 * leaf, state)
    expected = jax.tree.map(lambda leaf: 2 * leaf if leaf.shape else leaf, state)
    _assert_equal(doubled, expected)


# Habits


@each_form
def test_the_state_of_abstract_parameters_is_that_of_arrays(form):
    optimizer = optax.inject_hyperparams(qsgd.superpositional_muon)(0.1)
    for tx in (optimizer, _optimizer(form)):
        abstract = jax.eval_shape(tx.init, jax.eval_shape(_params))
        found = jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
        assert found == jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(_params()))


@each_form
def test_donated_buffers_give_the_same_updates(form):
    optimizer, gradients = _optimizer(form), _params()
    donating = jax.jit(optimizer.update, donate_argnums=1)
    for _ in range(2):
        state = optimizer.init(gradients)
        expected = _compiled(optimizer)(gradients, state, gradients)
        _assert_equal(donating(gradients, state, gradients), expected, **ROUNDING)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state) if leaf.shape)


@each_form
def test_a_scan_is_the_loop(form):
    optimizer, params = _optimizer(form), _params()

    def step(carry, _):
        updates, state = optimizer.update(_gradients(carry[0]), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    scanned, _ = jax.lax.scan(step, (params, optimizer.init(params)), length=3)
    _assert_equal(scanned, _train(optimizer), **ROUNDING)


def test_mapped_decay_rates_are_separate_runs():
    def run(beta, rate):
        optimizer = qsgd.superpositional_muon(rate, beta=beta, update_rms=2 * rate)
        _, state = optimizer.update(_params(), optimizer.init(_params()), _params())
        return optimizer.update(_gradients(_params()), state, _params())[0]

    mapped = jax.jit(jax.vmap(run))(jnp.array([0.5, 0.9]), jnp.array([0.1, 0.2]))
    for i, arguments in enumerate(((0.5, 0.1), (0.9, 0.2))):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], mapped)
        _assert_equal(one, run(*arguments), **ROUNDING)
    # Twice the rate and twice the size: all else is the decay's.
    assert np.abs(4 * mapped["kernel"][0] - mapped["kernel"][1]).max() > 1e-3


@pytest.mark.bits
@each_form
def test_a_pickled_state_goes_on_bit_for_bit(form):
    optimizer = _optimizer(form)
    expected = _train(optimizer, 6)
    saved = pickle.dumps(jax.tree.map(np.asarray, _train(optimizer, 3)))
    found = _train(optimizer, 3, *jax.tree.map(jnp.asarray, pickle.loads(saved)))
    _assert_equal(found, expected)
    _, kept = _train(optimizer, 3)
    assert np.any(_train(optimizer, 3, _params(), kept)[0]["kernel"] != expected[0]["kernel"])


def test_on_a_mesh_of_explicit_axes_matrices_keep_their_sharding():
    """optax's Muon refuses them: its products would have to name the shardings of their results."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    deep = qsgd.spectral_cascade([np.full(6, 0.1)])  # of degree 11: by another recurrence
    for cascade in (qsgd.spectral_cascade("muon"), deep):
        optimizer = qsgd.superpositional_muon(RATE, cascade)
        expected, _ = optimizer.update(matrix, optimizer.init(matrix), matrix)
        with jax.set_mesh(mesh):
            for spec in (jax.P("x", None), jax.P(None, "x")):
                params = jax.device_put(matrix, jax.NamedSharding(mesh, spec))
                for update in (optimizer.update, jax.jit(optimizer.update)):
                    updates, _ = update(params, optimizer.init(params), params)
                    assert jax.typeof(updates).sharding.spec == spec
                    np.testing.assert_allclose(updates, expected, **ROUNDING)


# Leaves


def _dtypes(*names):
    return pytest.mark.parametrize("dtype", [jnp.dtype(name) for name in names], ids=names)


@_dtypes("float16", "bfloat16", "float32", "complex64")
@each_form
def test_updates_have_the_dtype_of_gradients_and_the_values_of_singular_values(form, dtype):
    """Of two steps, against NumPy; what is kept in few bits alone is rounded."""
    params, cascade = _params(dtype), qsgd.spectral_cascade()
    optimizer = _optimizer(form)
    state = optimizer.init(params)
    _, state = _compiled(optimizer)(params, state, params)
    updates, state = _compiled(optimizer)(_gradients(params), state, params)
    jax.tree.map(lambda x, y: _same_dtype(x, y), updates, params)
    wide = np.complex128 if dtype == jnp.complex64 else np.float64
    first, second = (np.asarray(g["kernel"], wide) for g in (params, _gradients(params)))
    momentum = 0.09 * first + 0.1 * second
    ahead = 0.9 * momentum / (1 - 0.9**3) + 0.1 * second / (1 - 0.9**2)
    u, sigma, v = np.linalg.svd(ahead / np.linalg.norm(ahead), full_matrices=False)
    turned = u * cascade.evaluate(sigma) @ v
    expected = -RATE * 0.2 * turned / np.sqrt(np.mean(np.abs(turned) ** 2))
    few = {"bfloat16": 2e-2, "float16": 3e-3}.get(dtype.name, 1e-4)
    found = np.asarray(updates["kernel"], wide)
    assert np.abs(found - expected).max() <= few * np.abs(expected).max()


def _same_dtype(x, y):
    assert x.dtype == y.dtype


@_dtypes("float16", "bfloat16", "float32")
@pytest.mark.parametrize("mu_dtype", ["float16", "bfloat16", "float32"])
def test_the_momentum_has_the_dtype_that_is_asked_for(dtype, mu_dtype):
    optimizer = _alone(mu_dtype=mu_dtype)
    assert optimizer.init(_params(dtype))[0].mu["kernel"].dtype == mu_dtype
    found, state = _train(optimizer, 3, _params(dtype))
    assert (found["kernel"].dtype, state[0].mu["kernel"].dtype) == (dtype, mu_dtype)
    expected, _ = _train(_alone(), 3)
    np.testing.assert_allclose(
        np.asarray(found["kernel"], float), expected["kernel"], rtol=2e-2, atol=1e-2
    )


def test_a_momentum_of_few_bits_is_rounded_once():
    """In float32 until then: two roundings in bfloat16 would differ."""
    gradient, momentum = (
        jnp.asarray(np.random.default_rng(i).normal(size=(16, 8)), jnp.bfloat16) for i in range(2)
    )
    optimizer = qsgd.scale_by_spectral_superposition()
    state = optimizer.init(gradient)._replace(mu=momentum)
    _, state = optimizer.update(gradient, state)
    exact = 0.9 * np.asarray(momentum, float) + 0.1 * np.asarray(gradient, float)
    np.testing.assert_array_equal(state.mu, jnp.asarray(exact, jnp.bfloat16))


def test_a_real_dtype_of_the_momentum_drops_nothing_imaginary():
    params = {"kernel": _params(jnp.complex64)["kernel"] * (1 + 1j)}
    for mu_dtype in (jnp.bfloat16, jnp.float32):
        found, state = _train(_alone(mu_dtype=mu_dtype), 2, params)
        assert state[0].mu["kernel"].dtype == jnp.complex64
        _assert_equal(found, _train(_alone(), 2, params)[0], **ROUNDING)


@pytest.mark.usefixtures("float64")
def test_double_precision_is_kept():
    params = _params(jnp.float64)
    for form in MAKE:
        updates, state = MAKE[form]().update(params, MAKE[form]().init(params), params)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float64")}
        assert optax.tree.get_all_with_path(state, "mu")[-1][1]["kernel"].dtype == jnp.float64
        u, sigma, v = np.linalg.svd(params["kernel"] / np.linalg.norm(params["kernel"]), False)
        turned = u * qsgd.spectral_cascade().evaluate(sigma) @ v
        expected = -RATE * 0.2 * turned / np.sqrt(np.mean(turned**2))
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-7)


def test_what_is_no_matrix_of_numbers_is_as_with_adamw():
    params = {
        "integers": jnp.arange(1, 7).reshape(2, 3),
        "empty": jnp.zeros((0, 3)),
        "number": 0.5,
        "scalar": jnp.float32(0.3),
        "row": jnp.ones((1, 4)),
        "bias": jnp.ones((2, 3)),
    }
    ours, adamw = (
        qsgd.superpositional_muon(0.03),
        optax.adamw(0.03, b2=0.99, weight_decay=0.0, nesterov=True),
    )
    state, expected_state = ours.init(params), adamw.init(params)
    for _ in range(2):
        updates, state = ours.update(params, state, params)
        expected, expected_state = adamw.update(params, expected_state, params)
        _assert_equal(updates, expected)


NOTHING = {
    "an empty dict": {},
    "an empty tuple": (),
    "none": {"a": None},
    "masked": {"a": optax.MaskedNode(), "b": [optax.MaskedNode()]},
    "no coordinates": {"a": jnp.zeros((0, 3)), "b": jnp.zeros((2, 0))},
}


@pytest.mark.parametrize("tree", NOTHING.values(), ids=NOTHING)
@each_form
def test_empty_trees_are_stepped(form, tree):
    optimizer = _optimizer(form)
    updates, state = optimizer.update(tree, optimizer.init(tree), tree)
    _assert_equal(updates, tree)
    assert {int(n) for _, n in optax.tree.get_all_with_path(state, "count")} == {1}


@pytest.mark.parametrize("steps", [1, 3])
@each_form
def test_leaves_of_a_module_that_are_no_arrays_are_skipped(form, steps):
    optimizer = _optimizer(form)
    array, vector, none = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.ones(3), [None] * len(OTHERS)
    alone, whole = Module(array, vector, *none), Module(array, vector, *OTHERS)
    gradients = Module(jnp.ones((4, 3)), 2 * vector, *none)
    state, expected_state = optimizer.init(alone), optimizer.init(alone)
    for _ in range(steps):
        updates, state = optimizer.update(gradients, state, whole)
        expected, expected_state = optimizer.update(gradients, expected_state, alone)
        assert updates.leaves[2:] == tuple(none)
        _assert_equal((updates, state), (expected, expected_state))
        assert np.abs(updates.leaves[0]).min() > 0


@each_form
def test_a_missing_gradient_sends_no_other_leaf_elsewhere(form):
    """With one output as wide as the vocabulary the table would take it for the head."""
    wide = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    params = {"embedding": jnp.ones((5, 6)), "one": wide, "two": wide + 1}
    optimizer = MAKE[form](routing=qsgd.SpectralRouting(labels={**dict.fromkeys(params, None)}))
    whole, state = optimizer.init(params), optimizer.init(params)
    for _ in range(2):
        expected, whole = optimizer.update(params, whole, params)
        updates, state = optimizer.update(params | {"two": None}, state, params)
        assert updates["two"] is None
        np.testing.assert_array_equal(updates["one"], expected["one"])


def test_an_output_alone_among_the_momenta_stays_a_matrix():
    """Beside its embedding: what `init` has seen of a vocabulary decides, once."""
    labels = {"embedding": "spectral", "one": None, "two": "adamw"}
    wide = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    params = {"embedding": wide.T, "one": wide, "two": wide}
    for make in MAKE.values():
        optimizer = make(routing=qsgd.SpectralRouting(labels=labels))
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        np.testing.assert_allclose(updates["one"], updates["embedding"].T, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("flag", STRICT)
@each_form
def test_steps_pass_where_jax_is_strict(form, flag, dtype):
    if (form, flag) == ("muon", "dtype"):
        pytest.skip("optax.adamw, for the rest, promotes dtypes")
    params, optimizer = _params(dtype), _optimizer(form)

    def second(update):
        _, state = update(params, optimizer.init(params), params)
        return update(params, state, params)[0]

    expected = second(optimizer.update)
    with STRICT[flag]():
        for update in (optimizer.update, jax.jit(optimizer.update)):
            updates = second(update)
            for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
                x, y = (np.asarray(leaf, np.float32) for leaf in (x, y))
                np.testing.assert_allclose(x, y, rtol=3e-2, atol=1e-3)


# Bad input


def _of(**leaves):
    return _params() | leaves


MISFITS = {
    "a vector": (_of(kernel=jnp.ones(4)), r"shape \(4,\) at .*'kernel'.* of shape \(6, 4\)"),
    "turned": (_of(kernel=jnp.ones((4, 6))), r"shape \(4, 6\) at .*'kernel'"),
    "complex": (_of(kernel=jnp.ones((6, 4), jnp.complex64)), "at .*'kernel'.* is complex"),
    "surplus": (_of(other=jnp.ones((2, 2))), "(?s)other"),
    "missing": ({"kernel": jnp.ones((6, 4))}, "(?s)embedding"),
}


@pytest.mark.parametrize(("gradients", "message"), MISFITS.values(), ids=MISFITS)
@each_form
def test_gradients_that_do_not_fit_their_momentum_are_refused(form, gradients, message):
    optimizer, params = _optimizer(form), _params()
    with pytest.raises(ValueError, match=message):
        optimizer.update(gradients, optimizer.init(params), params)


def test_a_gradient_that_init_has_not_seen_is_refused():
    optimizer = qsgd.scale_by_spectral_superposition()
    with pytest.raises(ValueError, match="at \"\\['a'\\]\" has no momentum"):
        optimizer.update({"a": jnp.ones((2, 3))}, optimizer.init({"a": None}))


def test_states_of_other_optimizers_are_refused():
    optimizer, params = _optimizer("muon"), _params()
    for other in (optax.adamw(0.1), optax.contrib.muon(0.1)):
        with pytest.raises(ValueError, match="has 0 of ScaleBySpectralSuperpositionState"):
            optimizer.update(params, other.init(params), params)
    rerouted = {"routing": qsgd.SpectralRouting(labels="adamw")}
    for form, make in MAKE.items():
        with pytest.raises(ValueError, match=r"momentum at .*'kernel'.* is routed to 'adamw'"):
            make(**rerouted).update(params, _optimizer(form).init(params), params)
    with pytest.raises(ValueError):  # by jax, of trees that differ
        optimizer.update(params, MAKE["muon"](**rerouted).init(params), params)


def test_update_without_params_gives_optax_own_message():
    optimizer, params = _optimizer("muon"), _params()
    with pytest.raises(ValueError) as own:
        optax.add_decayed_weights(0.1).update(params, optax.EmptyState(), None)
    with pytest.raises(ValueError) as ours:
        optimizer.update(params, optimizer.init(params))
    assert str(ours.value) == str(own.value)
