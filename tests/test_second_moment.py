"""Spectral superposition with a second moment: against the equation in NumPy, in every wrapper."""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd

RATE, STEPS = 0.05, 4
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
# A leaf's shape, and as which matrices it is read.
SHAPES = {
    "kernel": ((6, 4), (1, 6, 4)),
    "wide": ((3, 8), (1, 3, 8)),
    "query": ((6, 2, 4), (1, 6, 8)),
    "expert": ((3, 4, 5), (3, 4, 5)),
    "bias": ((4,), None),
}
OPTIMIZERS = {
    "alone": lambda **options: optax.chain(
        qsgd.scale_by_spectral_superposition(**options), optax.sgd(RATE)
    ),
    "muon": functools.partial(qsgd.superpositional_muon, RATE),
}
each_form = pytest.mark.parametrize("form", OPTIMIZERS)


def _make(form, **options):
    return OPTIMIZERS[form](second_moment="entry", **options)


def _gradients(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, (shape, _) in SHAPES.items()}


def _train(optimizer, steps=STEPS, params=None, state=None, first=0):
    params = _gradients(99) if params is None else params
    state = optimizer.init(params) if state is None else state
    update = jax.jit(optimizer.update)
    for seed in range(first, first + steps):
        gradients = _gradients(seed)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _equal(tree, expected, **tolerance):
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert (jnp.shape(x), jnp.result_type(x)) == (jnp.shape(y), jnp.result_type(y))
        np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 0}))


def _by_numpy(name, r=0.2):
    """The updates of each step: singular values, and a mean of squares corrected of its bias."""
    shape, of_matrices = SHAPES[name]
    momentum, second, steps = 0, 0, []
    for t, seed in enumerate(range(STEPS), 1):
        g = np.asarray(_gradients(seed)[name], np.float64).reshape(of_matrices)
        momentum = 0.9 * momentum + 0.1 * g
        ahead = 0.9 * momentum / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        norm = np.linalg.norm(ahead, axis=(1, 2), keepdims=True)
        u, sigma, v = np.linalg.svd(ahead / norm, full_matrices=False)
        turned = u * qsgd.spectral_cascade().evaluate(sigma)[:, None] @ v
        turned /= _rms(turned)
        second = 0.99 * second + 0.01 * np.abs(turned) ** 2
        quotient = turned / np.sqrt(second / (1 - 0.99**t))
        steps.append((r * quotient / _rms(quotient)).reshape(shape))
    return steps


def _rms(matrices):
    return np.sqrt(np.mean(np.abs(matrices) ** 2, axis=(1, 2), keepdims=True))


@each_form
@pytest.mark.usefixtures("float64")
def test_steps_equal_the_equation_in_numpy(form):
    optimizer = _make(form)
    params = _gradients(99, jnp.float64)
    state = optimizer.init(params)
    for t in range(STEPS):
        updates, state = optimizer.update(_gradients(t, jnp.float64), state, params)
        for name, (_, of_matrices) in SHAPES.items():
            if of_matrices is not None:
                expected = -RATE * _by_numpy(name)[t]
                np.testing.assert_allclose(updates[name], expected, atol=5e-8)


@pytest.mark.parametrize(
    ("dtype", "few"),
    [("float16", 3e-3), ("bfloat16", 3e-2), ("float32", 1e-4), ("complex64", 1e-4)],
)
def test_it_is_kept_in_real_numbers_of_float32(dtype, few):
    gradient = jnp.asarray(_gradients(0)["kernel"], dtype)
    optimizer = qsgd.scale_by_spectral_superposition(second_moment="entry", mu_dtype=dtype)
    _, state = optimizer.update(gradient, optimizer.init(gradient))
    updates, state = optimizer.update(gradient, state)
    assert (updates.dtype, state.mu.dtype, state.nu.dtype) == (dtype, dtype, jnp.float32)
    wide = np.asarray(gradient, np.complex128 if dtype == "complex64" else np.float64)
    # Equal gradients, equal directions: over the root of their mean square, signs alone are left.
    u, _, v = np.linalg.svd(wide, full_matrices=False)
    assert np.abs(np.abs(np.asarray(updates, wide.dtype)) - 0.2).max() < few
    assert np.vdot(updates, u @ v).real > 0


def test_phases_of_complex_entries_are_kept():
    rng = np.random.default_rng(0)
    gradient = jnp.asarray(rng.normal(size=(4, 6)) + 1j * rng.normal(size=(4, 6)), jnp.complex64)
    even, plain = (
        qsgd.scale_by_spectral_superposition(second_moment=form) for form in ("entry", None)
    )
    step, o = (np.asarray(x.update(gradient, x.init(gradient))[0]) for x in (even, plain))
    np.testing.assert_allclose(step, 0.2 * o / np.abs(o), **ROUNDING)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e30])
def test_the_size_of_the_update_is_what_was_asked_for(size):
    gradient = jnp.float32(size) * _gradients(0)["kernel"]
    for r in (0.2, 1.5):
        optimizer = qsgd.scale_by_spectral_superposition(second_moment="entry", update_rms=r)
        step, _ = optimizer.update(gradient, optimizer.init(gradient))
        # Noise far below the epsilon of the norm is not raised.
        expected = r if size > 1e-8 else 0.0
        found = np.sqrt(np.mean(np.square(step)))
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-15)


def test_zeros_stay_zeros_and_nothing_is_made_finite():
    optimizer = qsgd.scale_by_spectral_superposition(second_moment="entry")
    zeros = jnp.zeros((4, 6))
    step, state = optimizer.update(zeros, optimizer.init(zeros))
    np.testing.assert_array_equal(step, zeros)
    derivative = jax.grad(lambda g: optimizer.update(g, state)[0].sum())(zeros)
    assert np.isfinite(derivative).all()
    step, _ = optimizer.update(zeros.at[1, 2].set(jnp.nan), state)
    assert np.isnan(step).any()


@each_form
def test_without_it_nothing_is_kept(form):
    """And the steps are those of a call that does not name it."""
    named, unnamed = OPTIMIZERS[form](second_moment=None), OPTIMIZERS[form]()
    (params, state), expected = _train(named), _train(unnamed)
    _equal((params, state), expected)
    assert optax.tree.get_all_with_path(state, "mu")[-1][1].keys() == SHAPES.keys()
    (ours,) = (x for x in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(x))
    assert ours.nu is None


def _is_ours(x):
    return isinstance(x, qsgd.ScaleBySpectralSuperpositionState)


@each_form
def test_states_with_and_without_it_are_not_mixed(form):
    params, make = _gradients(0), OPTIMIZERS[form]
    for mine, other, has in (("entry", None, "no second moment"), (None, "entry", "a second mom")):
        optimizer = make(second_moment=mine)
        with pytest.raises(ValueError, match=f"second_moment={mine!r}, but state has {has}"):
            optimizer.update(params, make(second_moment=other).init(params), params)


@pytest.mark.parametrize("form", ["row", "", True, 0.95])
def test_other_forms_are_refused_by_name(form):
    for make in OPTIMIZERS.values():
        with pytest.raises(ValueError, match=f"second_moment={form!r} must be 'entry', or None"):
            make(second_moment=form)


@pytest.mark.parametrize("wrap", ["inject_hyperparams", "MultiSteps", "apply_if_finite", "scan"])
@each_form
def test_wrappers_change_nothing(form, wrap):
    optimizer = _make(form)
    expected, _ = _train(optimizer)
    if wrap == "scan":
        params = _gradients(99)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(_gradients, range(STEPS)))

        def step(carry, gradients):
            updates, state = optimizer.update(gradients, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        (found, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), stacked)
    else:
        wrapped = {
            "inject_hyperparams": lambda: optax.inject_hyperparams(
                qsgd.superpositional_muon if form == "muon" else _alone
            )(RATE, second_moment="entry"),
            "MultiSteps": lambda: optax.MultiSteps(optimizer, 1),
            "apply_if_finite": lambda: optax.apply_if_finite(optimizer, 3),
        }[wrap]()
        found, _ = _train(wrapped)
    _equal(found, expected, **ROUNDING)


def _alone(learning_rate, second_moment):
    ours = qsgd.scale_by_spectral_superposition(second_moment=second_moment)
    return optax.chain(ours, optax.scale_by_learning_rate(learning_rate))


@pytest.mark.parametrize("second_moment", [None, "entry"])
def test_derivatives_at_tiny_gradients_are_finite(second_moment):
    gradient = 1e-20 * jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    optimizer: Any = qsgd.scale_by_spectral_superposition(second_moment=second_moment)

    def first(gradient):
        return optimizer.update(gradient, optimizer.init(gradient))[0][0, 0]

    assert np.isfinite(jax.grad(first)(gradient)).all()


@pytest.mark.bits
@each_form
def test_a_state_that_is_saved_goes_on_bit_for_bit(form):
    """Pickled, and put together again from its leaves alone, as checkpoints do."""
    optimizer = _make(form)
    expected = _train(optimizer)
    params, state = _train(optimizer, 2)
    leaves = [np.asarray(x) for x in jax.tree.leaves(state)]
    assert all(x.dtype != object for x in leaves)
    structure = jax.tree.structure(jax.eval_shape(optimizer.init, params))
    for saved in (structure.unflatten(leaves), pickle.loads(pickle.dumps(state))):
        _equal(_train(optimizer, 2, params, saved, first=2), expected)


@each_form
def test_map_params_reaches_it_and_missing_gradients_leave_it(form):
    optimizer = _make(form)
    params, state = _train(optimizer, 1)
    doubled = optax.tree.map_params(optimizer, lambda leaf: 2 * leaf, state)
    _equal(doubled, jax.tree.map(lambda leaf: 2 * leaf if leaf.shape else leaf, state))
    gradients = _gradients(1)
    expected, _ = optimizer.update(gradients, state, params)
    updates, after = optimizer.update(gradients | {"wide": None}, state, params)
    assert updates.pop("wide") is None
    _equal(updates, {name: x for name, x in expected.items() if name != "wide"}, **ROUNDING)
    (before, after) = (
        next(x.nu for x in jax.tree.leaves(s, is_leaf=_is_ours) if _is_ours(x))
        for s in (state, after)
    )
    np.testing.assert_array_equal(before["wide"], after["wide"])
    assert np.any(before["kernel"] != after["kernel"])


def test_a_warm_start_begins_it_anew():
    """Whatever the steps of AdamW: with no bias to correct, its first step is as ever."""
    params, adamw = _gradients(99), optax.adamw(0.1, b2=0.99)
    _, adamw_state = _train(adamw)
    optimizer, plain = (qsgd.superpositional_muon(RATE, second_moment=x) for x in ("entry", None))
    state, plain_state = (
        qsgd.warm_start(x.init(params), adamw_state, b2=0.99) for x in (optimizer, plain)
    )
    updates, _ = optimizer.update(_gradients(STEPS), state, params)
    o, _ = plain.update(_gradients(STEPS), plain_state, params)
    np.testing.assert_array_equal(updates["bias"], o["bias"])
    np.testing.assert_allclose(updates["kernel"], RATE * 0.2 * np.sign(o["kernel"]), **ROUNDING)


@pytest.mark.parametrize("spec", [jax.P("x", None), jax.P(None, "x")])
def test_on_a_mesh_of_explicit_axes_matrices_keep_their_sharding(spec):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    optimizer, matrix = _make("muon"), _gradients(0)["kernel"]
    expected, after = optimizer.update(matrix, optimizer.init(matrix), matrix)
    expected, _ = optimizer.update(_gradients(1)["kernel"], after, matrix)
    with jax.set_mesh(mesh):
        params, gradients = (
            jax.device_put(x, jax.NamedSharding(mesh, spec))
            for x in (matrix, _gradients(1)["kernel"])
        )
        for update in (optimizer.update, jax.jit(optimizer.update)):
            _, state = update(params, optimizer.init(params), params)
            updates, _ = update(gradients, state, params)
            assert jax.typeof(updates).sharding.spec == spec
            np.testing.assert_allclose(updates, expected, **ROUNDING)
