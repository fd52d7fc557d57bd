"""optax's wrappers and habits: each result against the optimizer alone, `optax.adamw` or NumPy."""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd

EXACT = qsgd.probe(qsgd.Circuit()), "everywhere"  # weights sin πθ, one line of NumPy
SAMPLED = qsgd.sampled(qsgd.probe(qsgd.Circuit(1), readout="probabilities"), shots=2), "everywhere"
LEADING = qsgd.sampled(qsgd.probe(qsgd.Circuit(), readout="probabilities"), shots=2), "leading"
FORMS = ("gradient", "update", "moments")
each_form = pytest.mark.parametrize("weigh", FORMS)
each_form_and_sampled = pytest.mark.parametrize(
    ("weigh", "weights"),
    [("gradient", EXACT), ("update", EXACT), ("moments", EXACT), ("update", SAMPLED)],
    ids=["gradient", "update", "moments", "sampled"],
)
# The same arithmetic in two compiled programs: XLA fuses, and so rounds, each in its own way.
ROUNDING = {"rtol": 2e-5, "atol": 1e-6}


def _params():
    """Two leaves of equal values: nothing but their random streams tells them apart."""
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=6), jnp.float32)
    return {"one": leaf, "two": leaf}


@functools.cache
def _adamw(weigh="gradient", weights=EXACT, quantum_weight=0.5, rate=0.1, **options):
    surrogate, coverage = weights
    return qsgd.superpositional_adamw(
        rate,
        quantum_weight=quantum_weight,
        weigh=weigh,
        surrogate=surrogate,
        coverage=coverage,
        **options,
    )


def _loss(params):
    return sum(jnp.sum((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


@functools.cache  # the optimizers that many tests share are compiled once
def _compiled(optimizer):
    return jax.jit(optimizer.update)


def _step(update, params, state):
    updates, state = update(jax.grad(_loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def _train(optimizer, params, steps=3, state=None, compiled=True):
    state = optimizer.init(params) if state is None else state
    update = _compiled(optimizer) if compiled else optimizer.update
    for _ in range(steps):
        params, state = _step(update, params, state)
    return params, state


def _scanned(optimizer, params, state):
    def step(carry, _):
        return _step(optimizer.update, *carry), None

    return jax.lax.scan(step, (params, state), length=3)[0]


def _assert_equal(tree, expected, **tolerance):
    """Structure, shapes and dtypes; the values bit for bit, or within `rtol` and `atol`."""

    def compare(leaf, other):
        leaf, other = jnp.asarray(leaf), jnp.asarray(other)
        assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)
        if tolerance:
            np.testing.assert_allclose(leaf, other, **tolerance)
        else:
            np.testing.assert_array_equal(leaf, other)

    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(compare, tree, expected)


def _scaled_sgd():
    """`θ ← θ − 0.1 (1 + 0.5 sin πθ) g`, and what it adds to θ, by hand."""
    return optax.chain(qsgd.scale_by_superposition(0.5, *EXACT), optax.sgd(0.1))


def _scaled_sgd_by_hand(theta):
    return -0.1 * (1 + 0.5 * np.sin(np.pi * theta)) * 2 * (theta - 0.3)


# Wrappers


@each_form
def test_hyperparameters_set_in_mid_run_are_a_schedule(weigh):
    optimizer = optax.inject_hyperparams(qsgd.superpositional_adamw)(
        0.1, quantum_weight=0.5, weigh=weigh, surrogate=EXACT[0], coverage=EXACT[1]
    )
    params, state = _train(optimizer, _params(), 2)
    state.hyperparams["quantum_weight"] = jnp.float32(0.2)
    state.hyperparams["learning_rate"] = jnp.float32(0.05)
    params, _ = _train(optimizer, params, 2, state)
    assert _compiled(optimizer)._cache_size() == 1
    scheduled = _adamw(
        weigh,
        quantum_weight=lambda count: jnp.where(count < 2, 0.5, 0.2),
        rate=lambda count: jnp.where(count < 2, 0.1, 0.05),
    )
    _assert_equal(params, _train(scheduled, _params(), 4)[0], **ROUNDING)


def test_injected_schedules_are_evaluated_and_static_settings_left_alone():
    def decaying(count):
        return 0.5 / (1 + count)

    adamw = optax.inject_hyperparams(qsgd.superpositional_adamw)(
        0.1, quantum_weight=decaying, weigh="update", surrogate=EXACT[0], coverage=EXACT[1]
    )
    params, state = _train(adamw, _params())
    numbers = {"learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"}
    assert set(state.hyperparams) == numbers | {"quantum_weight", "key"}
    np.testing.assert_allclose(state.hyperparams["quantum_weight"], 0.5 / 3)
    expected, _ = _train(_adamw("update", quantum_weight=decaying), _params())
    _assert_equal(params, expected, **ROUNDING)
    around = optax.inject_hyperparams(qsgd.superpose)(optax.scale_by_lion(), 0.5, *EXACT)
    assert set(around.init(_params()).hyperparams) == {"quantum_weight", "key"}


@each_form
def test_hyperparameters_are_injected_beside_complex_parameters(weigh):
    """optax holds them in the dtype of the parameters, so a complex one, as adamw takes it."""
    params = {"one": jnp.full(6, 0.25 - 0.5j, jnp.complex64)}
    options = {"quantum_weight": 0.5, "weigh": weigh}
    optimizer = optax.inject_hyperparams(qsgd.superpositional_adamw)(0.1, **options)
    plain = qsgd.superpositional_adamw(0.1, **options)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    expected, _ = plain.update(params, plain.init(params), params)
    _assert_equal(updates, expected, **ROUNDING)


@each_form_and_sampled
def test_multi_steps_are_one_step_with_the_mean_gradient(weigh, weights):
    optimizer, params = _adamw(weigh, weights), _params()
    wrapped = optax.MultiSteps(optimizer, 3)
    update, update_alone = jax.jit(wrapped.update), _compiled(optimizer)
    state, alone = wrapped.init(params), optimizer.init(params)
    for cycle in range(2):
        gradients = jax.tree.map(lambda p, c=cycle: p + c, params)
        for size in (1, 4, 1):  # of mean 2; the parameters stay until the third
            updates, state = update(optax.tree.scale(size, gradients), state, params)
            if wrapped.has_updated(state):
                mean = optax.tree.scale(2, gradients)
                expected, alone = update_alone(mean, alone, params)
            else:
                expected = optax.tree.zeros_like(params)
            _assert_equal(updates, expected, **ROUNDING)
            _assert_equal(state.inner_opt_state, alone, **ROUNDING)
            params = optax.apply_updates(params, updates)


@each_form_and_sampled
def test_masked_leaves_pass_untouched_and_the_others_do_not_notice(weigh, weights):
    optimizer, params = _adamw(weigh, weights), _params()
    masked = optax.masked(optimizer, {"one": False, "two": True})
    updates, _ = jax.jit(masked.update)(params, masked.init(params), params)
    expected, _ = _compiled(optimizer)(params, optimizer.init(params), params)
    _assert_equal(updates["one"], params["one"])
    _assert_equal(updates["two"], expected["two"], **ROUNDING)


@each_form_and_sampled
def test_partitioned_leaves_walk_as_by_their_optimizer_alone(weigh, weights):
    params = {**_params(), "frozen": _params()["one"]}
    groups = {
        "strong": _adamw(weigh, weights, 0.9),
        "weak": _adamw(weigh, weights, 0.3),
        "still": optax.set_to_zero(),
    }
    labels = {"one": "strong", "two": "weak", "frozen": "still"}
    result, _ = _train(optax.partition(groups, labels), params)
    _assert_equal(result["frozen"], params["frozen"])
    for name in ("one", "two"):
        expected, _ = _train(groups[labels[name]], {name: params[name]})
        _assert_equal(result[name], expected[name], **ROUNDING)


def test_partitioned_leaves_of_equal_values_draw_samples_of_their_own():
    params = {name: jnp.full(60, 0.2) for name in ("a", "b", "c")}
    groups = {side: qsgd.scale_by_superposition(1.0, *SAMPLED, key=3) for side in ("left", "right")}
    optimizer = optax.partition(groups, {"a": "left", "b": "left", "c": "right"})
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert len({np.asarray(leaf).tobytes() for leaf in updates.values()}) == 3


@each_form_and_sampled
def test_steps_that_are_not_finite_are_skipped_as_if_never_taken(weigh, weights):
    optimizer, params = _adamw(weigh, weights), _params()
    guarded = optax.apply_if_finite(optimizer, 5)
    update, update_alone = jax.jit(guarded.update), _compiled(optimizer)
    state, alone = guarded.init(params), optimizer.init(params)
    broken = {**params, "two": params["two"].at[1].set(jnp.nan)}
    for gradients in (params, broken, broken, params):
        updates, state = update(gradients, state, params)
        if gradients is broken:
            _assert_equal(updates, optax.tree.zeros_like(params))
        else:
            expected, alone = update_alone(gradients, alone, params)
            _assert_equal(updates, expected, **ROUNDING)
        _assert_equal(state.inner_state, alone, **ROUNDING)


def test_a_named_chain_keeps_our_state_by_name_and_tree_get_and_set_reach_into_it():
    ours = qsgd.scale_by_superposition(0.5, *SAMPLED, key=5, diagnostics=True)
    links = {"clip": optax.clip(1.0), "ours": ours, "adam": optax.adam(0.1)}
    named, chained = optax.named_chain(*links.items()), optax.chain(*links.values())
    start = {"one": _params()["one"]}
    params, state = _train(named, start)
    _assert_equal(params, _train(chained, start)[0], **ROUNDING)
    assert isinstance(state["ours"], qsgd.ScaleBySuperpositionState)
    assert int(state["ours"].count) == 3
    assert 0 < optax.tree.get(state, "relative_norm") < 0.5 + 1e-6
    assert optax.tree.get(state, "diagnostics") is state["ours"].diagnostics
    counts = optax.tree.get_all_with_path(state, "count")
    assert [int(count) for _, count in counts] == [3, 3]  # ours and Adam's
    for seed in (5, 6):  # the key that is set in the state is the one that samples
        fresh = optax.tree.set(named.init(start), key=jax.random.key_data(jax.random.key(seed)))
        again, _ = _train(named, start, state=fresh)
        assert np.array_equal(again["one"], params["one"]) == (seed == 5)


def _train_lookahead(optimizer, params, steps, compiled=True):
    """The gradients are those of the fast parameters; both are walked."""
    wrapped = optax.lookahead(optimizer, sync_period=2, slow_step_size=0.5)
    update = jax.jit(wrapped.update) if compiled else wrapped.update
    both = optax.LookaheadParams.init_synced(params)
    state = wrapped.init(both)
    for _ in range(steps):
        updates, state = update(jax.grad(_loss)(both.fast), state, both)
        both = optax.apply_updates(both, updates)
    return both


def _train_schedule_free(optimizer, params, steps, compiled=True):
    wrapped = optax.contrib.schedule_free(optimizer, 0.1, b1=0.8)
    params, state = _train(wrapped, params, steps, compiled=compiled)
    return params, optax.contrib.schedule_free_eval_params(state, params)


@pytest.mark.bits
@pytest.mark.parametrize("train", [_train_lookahead, _train_schedule_free])
@each_form
def test_wrapped_at_quantum_weight_zero_is_wrapped_adamw_bit_for_bit(weigh, train):
    """One operation after the other: fused by XLA, what comes before Adam moves its rounding."""
    optimizers = _adamw(weigh, quantum_weight=0.0, b1=0.0), optax.adamw(0.1, b1=0.0)
    _assert_equal(*(train(optimizer, _params(), 3, compiled=False) for optimizer in optimizers))


def test_schedule_free_is_weighed_where_its_gradient_is_taken():
    params, evaluated = _train_schedule_free(_scaled_sgd(), _params(), 4)
    y = z = x = np.asarray(_params()["one"], np.float64)
    for t in range(1, 5):
        z = z + _scaled_sgd_by_hand(y)
        x = (1 - 1 / t) * x + z / t
        y = 0.8 * x + 0.2 * z
    np.testing.assert_allclose(params["one"], y, rtol=1e-4)
    np.testing.assert_allclose(evaluated["one"], x, rtol=1e-4)


def test_lookahead_is_weighed_by_its_fast_parameters():
    both = _train_lookahead(_scaled_sgd(), _params(), 5)
    slow = fast = np.asarray(_params()["one"], np.float64)
    for t in range(1, 6):
        fast = fast + _scaled_sgd_by_hand(fast)
        if t % 2 == 0:
            slow = fast = slow + 0.5 * (fast - slow)
    np.testing.assert_allclose(both.fast["one"], fast, rtol=1e-4)
    np.testing.assert_allclose(both.slow["one"], slow, rtol=1e-4)


def test_lookahead_that_resets_its_optimizer_restores_count_and_key():
    fast = qsgd.scale_by_superposition(0.5, *SAMPLED, key=7)
    wrapped = optax.lookahead(fast, 2, 0.5, reset_state=True)
    both = optax.LookaheadParams.init_synced(_params())
    state, counts = wrapped.init(both), []
    for _ in range(4):
        _, state = jax.jit(wrapped.update)(both.fast, state, both)
        counts.append(int(state.fast_state.count))
    assert counts == [1, 0, 1, 0]
    _assert_equal(state.fast_state, fast.init(_params()))


def test_reduce_on_plateau_scales_our_step_by_the_value():
    optimizer, params = _adamw(), _params()
    chain = optax.chain(optimizer, optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
    update, update_alone = jax.jit(chain.update), _compiled(optimizer)
    state, alone = chain.init(params), optimizer.init(params)
    for scale in (1, 1, 0.5, 0.5, 0.25):  # the value never improves
        updates, state = update(params, state, params, value=1.0)
        expected, alone = update_alone(params, alone, params)
        _assert_equal(updates, optax.tree.scale(scale, expected), **ROUNDING)


# Habits


@pytest.mark.parametrize(
    "optimizer",
    [_adamw("gradient"), _adamw("update"), qsgd.scale_by_superposition(-0.1, *EXACT)],
    ids=["gradient", "update", "alone"],
)
def test_extra_arguments_change_nothing_and_compile_nothing_anew(optimizer):
    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(_loss)(params)
        updates, state = optimizer.update(
            gradients, state, params, value=value, grad=gradients, value_fn=_loss
        )
        return optax.apply_updates(params, updates), state

    params = _params()
    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)
    _assert_equal(params, _train(optimizer, _params())[0], **ROUNDING)
    assert step._cache_size() == 1


def test_a_line_search_behind_ours_receives_what_it_needs():
    search = optax.scale_by_backtracking_linesearch(20, slope_rtol=0.1, decrease_factor=0.5)
    optimizer, params = optax.chain(_scaled_sgd(), optax.scale(64.0), search), _params()
    value, gradients = jax.value_and_grad(_loss)(params)
    updates, _ = optimizer.update(
        gradients, optimizer.init(params), params, value=value, grad=gradients, value_fn=_loss
    )
    direction = _scaled_sgd_by_hand(np.asarray(params["one"]))

    def sufficient(scale):  # Armijo's condition, of both leaves
        slope = 2 * scale * np.sum(direction * np.asarray(gradients["one"]))
        return _loss(2 * [params["one"] + scale * direction]) <= value + 0.1 * slope

    expected = next(64 / 2**k for k in range(20) if sufficient(64 / 2**k))
    assert 0 < expected < 64
    np.testing.assert_allclose(updates["one"], expected * direction, rtol=1e-5)


@each_form_and_sampled
def test_map_params_reaches_the_moments_and_nothing_else(weigh, weights):
    optimizer = _adamw(weigh, weights)
    _, state = _train(optimizer, _params())
    doubled = optax.tree.map_params(optimizer, lambda leaf: 2 * leaf, state)
    moments = {name: optax.tree.scale(2, optax.tree.get(state, name)) for name in ("mu", "nu")}
    _assert_equal(doubled, optax.tree.set(state, **moments))


@each_form
def test_mixed_dtypes_are_kept_and_weighed_as_the_equation_says(weigh):
    theta = np.array([0.25, -0.5, 1.5, -3.25])  # exact in all of the dtypes
    params = {
        "bfloat16": jnp.asarray(theta, jnp.bfloat16),
        "float16": jnp.asarray(theta, jnp.float16),
        "float32": jnp.asarray(theta, jnp.float32),
        "complex64": jnp.asarray(theta + 0.75j, jnp.complex64),
        "int32": jnp.arange(1, 5),
    }
    optimizer = _adamw(weigh, rate=1.0, weight_decay=0.0)
    plain = optax.adamw(1.0, weight_decay=0.0)
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    adam, adam_state = jax.jit(plain.update)(params, plain.init(params), params)
    for name, leaf in params.items():
        assert updates[name].dtype == adam[name].dtype
        for moment in ("mu", "nu"):
            ours, theirs = (optax.tree.get(s, moment)[name] for s in (state, adam_state))
            assert ours.dtype == theirs.dtype
        g = np.asarray(leaf, complex)
        w = np.sin(np.pi * g.real) + 1j * np.sin(np.pi * g.imag)
        direction = g / np.abs(g)  # Adam's first step
        if name == "int32":
            expected = direction
        elif weigh == "gradient":
            expected = direction + 0.5 * _by_parts(w, g)
        elif weigh == "update":
            expected = direction + 0.5 * _by_parts(w, direction)
        else:
            scaled = g + 0.5 * _by_parts(w, g)
            expected = scaled / np.abs(scaled)
        tolerance = {"bfloat16": 2e-2, "float16": 2e-3}.get(name, 1e-4)
        np.testing.assert_allclose(np.asarray(updates[name], complex), -expected, atol=tolerance)


def _by_parts(x, y):
    """The product of real and of imaginary parts: a complex leaf is two real ones."""
    return x.real * y.real + 1j * x.imag * y.imag


@pytest.mark.bits
@each_form
def test_low_precision_moments_are_those_of_adamw_at_quantum_weight_zero(weigh):
    options = {"mu_dtype": jnp.bfloat16, "weight_decay": 1e-4}
    ours = _adamw(weigh, quantum_weight=0.0, **options)
    params, state = _train(ours, _params(), compiled=False)
    expected, adam_state = _train(optax.adamw(0.1, **options), _params(), compiled=False)
    _assert_equal(params, expected)
    _assert_equal(optax.tree.get(state, "mu"), optax.tree.get(adam_state, "mu"))
    assert optax.tree.get(state, "mu")["one"].dtype == jnp.bfloat16


@pytest.mark.bits
@each_form_and_sampled
def test_donated_buffers_give_the_same_updates(weigh, weights):
    optimizer, gradients = _adamw(weigh, weights), _params()
    donating = jax.jit(optimizer.update, donate_argnums=(1, 2))
    start = optimizer.init(gradients), jax.tree.map(jnp.copy, gradients)
    expected = _compiled(optimizer)(gradients, *start)
    _assert_equal(donating(gradients, *start), expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start) if leaf.shape == (6,))


def test_rematerialised_losses_and_steps_have_the_same_hypergradient():
    def trained(quantum_weight, remat):
        optimizer = _adamw.__wrapped__("update", quantum_weight=quantum_weight)

        @remat
        def step(carry, _):
            gradients = jax.grad(remat(_loss))(carry[0])
            updates, state = optimizer.update(gradients, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        (params, _), _ = jax.lax.scan(step, (_params(), optimizer.init(_params())), length=3)
        return _loss(params)

    plain, rematerialised = (
        jax.jit(jax.value_and_grad(functools.partial(trained, remat=remat)))(0.5)
        for remat in (lambda function: function, jax.checkpoint)
    )
    _assert_equal(rematerialised, plain, **ROUNDING)
    assert abs(plain[1]) > 1e-4


@each_form_and_sampled
def test_a_scan_is_the_loop(weigh, weights):
    optimizer, params = _adamw(weigh, weights), _params()
    scanned = _scanned(optimizer, params, optimizer.init(params))
    _assert_equal(scanned, _train(optimizer, params), **ROUNDING)


def test_mapped_seeds_are_separate_runs():
    optimizer, params, seeds = _adamw("update", SAMPLED), _params(), (1, 2)

    def run(key):
        return _scanned(optimizer, params, optax.tree.set(optimizer.init(params), key=key))

    keys = jnp.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds])
    mapped = jax.jit(jax.vmap(run))(keys)
    for i, seed in enumerate(seeds):
        seeded = _adamw("update", SAMPLED, key=seed).init(params)
        expected = _train(optimizer, params, state=seeded)
        _assert_equal(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), expected, **ROUNDING)
    assert np.any(mapped[0]["one"][0] != mapped[0]["one"][1])


@each_form_and_sampled
def test_mapped_quantum_weights_are_separate_runs(weigh, weights):
    params = _params()

    def run(quantum_weight):
        optimizer = _adamw.__wrapped__(weigh, weights, quantum_weight)
        return _scanned(optimizer, params, optimizer.init(params))[0]

    mapped = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.5]))
    for i, optimizer in enumerate((optax.adamw(0.1), _adamw(weigh, weights))):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], mapped)
        _assert_equal(one, _train(optimizer, params)[0], **ROUNDING)


# Leaves that do not take part


@each_form
def test_leaves_without_a_gradient_get_no_update(weigh):
    """`None` for an array, as optax's stateless transformations take it."""
    ours = qsgd.scale_by_superposition(0.5, *EXACT, diagnostics=True)
    if weigh == "gradient":
        ours = qsgd.superpose(optax.identity(), 0.5, *EXACT, diagnostics=True)
    optimizer, params = optax.chain(ours, optax.sgd(0.1)), _params()
    gradients = {"one": jax.grad(_loss)(params)["one"], "two": None}
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    assert updates["two"] is None
    np.testing.assert_allclose(
        updates["one"], _scaled_sgd_by_hand(np.asarray(params["one"])), rtol=1e-5
    )


NOTHING = {
    "an empty dict": {},
    "an empty tuple": (),
    "none": {"a": None},
    "masked": {"a": optax.MaskedNode(), "b": [optax.MaskedNode()]},
    "no coordinates": {"a": jnp.zeros((0, 3)), "b": jnp.zeros((2, 0))},
}


@pytest.mark.parametrize("weights", [EXACT, SAMPLED, LEADING], ids=["exact", "sampled", "leading"])
@pytest.mark.parametrize("tree", NOTHING.values(), ids=NOTHING)
def test_empty_trees_are_stepped(tree, weights):
    for weigh in ("gradient", "update"):
        optimizer = _adamw(weigh, weights, diagnostics=True)
        updates, state = optimizer.update(tree, optimizer.init(tree), tree)
        _assert_equal(updates, tree)
        counts = optax.tree.get_all_with_path(state, "count")
        assert [int(count) for _, count in counts] == [1, 1]
        assert optax.tree.get(state, "relative_norm") == 0
        assert optax.tree.get(state, "flipped_share") == 0


@pytest.mark.parametrize("hidden", [False, {"one": False, "two": False}, lambda tree: False])
@each_form_and_sampled
def test_a_mask_that_hides_all_leaves_passes_all_updates(weigh, weights, hidden):
    optimizer, params = _adamw(weigh, weights, diagnostics=True), _params()
    masked = optax.masked(optimizer, hidden)
    updates, state = jax.jit(masked.update)(params, masked.init(params), params)
    _assert_equal(updates, params)
    assert optax.tree.get(state, "relative_norm") == 0


# Bad input


def _naming(*words):
    """A pattern for messages that hold all of them, in any order."""
    return "(?s)" + "".join(f"(?=.*{word})" for word in words)


MISFITS = {  # of gradients for two leaves of six
    "missing": ({"one": jnp.ones(6)}, "'two'"),
    "surplus": ({**_params(), "three": jnp.ones(6)}, "'three'"),
    "a list": ([jnp.ones(6), jnp.ones(6)], "'one'"),
    "a scalar": ({"one": jnp.ones(6), "two": jnp.ones(())}, "'two'"),
    "one of six": ({"one": jnp.ones(6), "two": jnp.ones(1)}, "'two'"),
    "a row too many": ({"one": jnp.ones(6), "two": jnp.ones((2, 6))}, "'two'"),
    "turned": ({"one": jnp.ones(6), "two": jnp.ones((6, 1))}, "'two'"),
}


# What Adam meets first in the form "update": it refuses three of them, and broadcasts two.
ADAMS_MISFITS = ("missing", "surplus", "a list", "a scalar", "one of six")


def _outcome(optimizer, gradients, state=None):
    """The updates of a step, or the type and the message of what it raises."""
    params = _params()
    state = optimizer.init(params) if state is None else state
    try:
        return optimizer.update(gradients, state, params)[0]
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def _assert_same_outcome(ours, theirs):
    if isinstance(theirs, tuple):
        assert ours == theirs
    else:
        _assert_equal(ours, theirs, **ROUNDING)


@pytest.mark.parametrize(
    ("weigh", "name"),
    [
        (weigh, name)
        for weigh in FORMS
        for name in MISFITS
        if weigh != "update" or name not in ADAMS_MISFITS
    ],
)
def test_gradients_that_do_not_fit_their_parameters_are_refused(weigh, name):
    """Adam's moments would broadcast them."""
    optimizer, params, (gradients, where) = _adamw(weigh), _params(), MISFITS[name]
    with pytest.raises(ValueError, match=_naming("(gradient|update)", where, "param")):
        jax.eval_shape(optimizer.update, gradients, optimizer.init(params), params)


@pytest.mark.parametrize("name", MISFITS)
def test_the_transform_itself_refuses_gradients_that_do_not_fit(name):
    optimizer, params = ALONE["scale_by_superposition"](), _params()
    gradients, where = MISFITS[name]
    with pytest.raises(ValueError, match=_naming("(gradient|update)", where, "param")):
        jax.eval_shape(optimizer.update, gradients, optimizer.init(params), params)


@pytest.mark.parametrize("name", ADAMS_MISFITS)
def test_gradients_that_adam_refuses_or_broadcasts_are_as_with_adamw(name):
    gradients, _ = MISFITS[name]
    ours = _outcome(_adamw("update", quantum_weight=0.0), gradients)
    _assert_same_outcome(ours, _outcome(optax.adamw(0.1), gradients))


def _set(**entries):
    """A restored state in which some entries are others'."""
    return lambda weigh, params: optax.tree.set(_adamw(weigh).init(params), **entries)


def _of_another_form(weigh, params):
    return _adamw("gradient" if weigh == "moments" else "moments").init(params)


OTHER_TREES = {
    "another tree": {"one": _params()["one"]},
    "a smaller leaf": {**_params(), "two": jnp.ones(1)},
    "a larger leaf": {**_params(), "two": jnp.ones((2, 6))},
}
CHAINED_OTHERWISE = {
    "optax.adamw": (lambda weigh, params: optax.adamw(0.1).init(params), "(count|key|mu)"),
    "another form": (_of_another_form, "(count|key|mu)"),
}
FOREIGN = {  # states, and what of them the error must name
    "diagnostics": (lambda weigh, params: _adamw(weigh, diagnostics=True).init(params), "diagn"),
    "key of four": (_set(key=jnp.zeros(4, jnp.uint32)), "key"),
    "two keys": (_set(key=jnp.zeros((2, 2), jnp.uint32)), "key"),
    "a signed key": (_set(key=jnp.zeros(2, jnp.int32)), "key"),
    "a typed key": (_set(key=jax.random.key(0)), "key"),
    "many counts": (_set(count=jnp.zeros(6, jnp.int32)), "count"),
}


@pytest.mark.parametrize(("foreign", "what"), FOREIGN.values(), ids=FOREIGN)
@each_form
def test_a_state_that_is_not_of_this_optimizer_is_refused(weigh, foreign, what):
    """A restored one whose shapes would broadcast, or be found out in another step."""
    optimizer, params = _adamw(weigh), _params()
    state = foreign(weigh, params)
    with pytest.raises((TypeError, ValueError), match=_naming("state", what)):
        jax.eval_shape(optimizer.update, params, state, params)


@pytest.mark.parametrize("other", OTHER_TREES.values(), ids=OTHER_TREES)
def test_eq_1_refuses_a_state_of_another_tree(other):
    optimizer, params = _adamw("gradient"), _params()
    with pytest.raises(ValueError, match=_naming("state", "'two'")):
        jax.eval_shape(optimizer.update, params, optimizer.init(other), params)


@pytest.mark.parametrize("other", OTHER_TREES)
@pytest.mark.parametrize("weigh", ["update", "moments"])
def test_moments_of_another_tree_are_refused_or_broadcast_as_with_adamw(weigh, other):
    """Their state is a link's of its own, in the chain that optax's AdamW is too."""
    optimizer, plain = _adamw(weigh, quantum_weight=0.0), optax.adamw(0.1)
    ours, theirs = (
        _outcome(tx, _params(), tx.init(OTHER_TREES[other])) for tx in (optimizer, plain)
    )
    if (weigh, other) == ("update", "a larger leaf"):  # what Adam makes of it is ours to see
        assert ours[0] is ValueError and "does not match its parameter" in str(ours[1])
    else:
        _assert_same_outcome(ours, theirs)


@pytest.mark.parametrize(("foreign", "what"), CHAINED_OTHERWISE.values(), ids=CHAINED_OTHERWISE)
@each_form
def test_a_state_of_another_chain_is_refused(weigh, foreign, what):
    optimizer, params = _adamw(weigh), _params()
    state = foreign(weigh, params)
    if weigh == "gradient":
        with pytest.raises(ValueError, match=_naming("state", what)):
            jax.eval_shape(optimizer.update, params, state, params)
    else:  # by the chain, or by its link of Adam
        with pytest.raises((AttributeError, ValueError), match=r"mu|same in chain"):
            jax.eval_shape(optimizer.update, params, state, params)


ALONE = {
    "superpose": lambda: qsgd.superpose(optax.scale_by_adam()),
    "scale_by_superposition": lambda: qsgd.scale_by_superposition(),
}
NOT_ITS_OWN = {
    "nothing": lambda tx, params: None,
    "empty": lambda tx, params: optax.EmptyState(),
    "a dictionary": lambda tx, params: tx.init(params)._asdict(),
    "diagnostics": lambda tx, params: qsgd.scale_by_superposition(diagnostics=True).init(params),
    "optax's": lambda tx, params: optax.scale_by_adam().init(params),
}


@pytest.mark.parametrize("foreign", NOT_ITS_OWN.values(), ids=NOT_ITS_OWN)
@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_each_transform_refuses_what_is_not_its_state(make, foreign):
    optimizer, params = make(), _params()
    with pytest.raises(ValueError, match="state has"):
        optimizer.update(params, foreign(optimizer, params), params)


def test_superpose_refuses_moments_that_would_broadcast():
    optimizer, params = ALONE["superpose"](), _params()
    state = optimizer.init(jax.tree.map(lambda leaf: leaf.ravel()[:1], params))
    with pytest.raises(ValueError, match=r"state has an array of shape \(1,\) at .*mu"):
        optimizer.update(params, state, params)
