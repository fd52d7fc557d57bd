"""From a checkpoint of AdamW on to spectral superposition."""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd

STEPS = 7
SHAPES = {"kernel": (6, 4), "bias": (4,), "embedding": (5, 6)}


def _gradients(seed, shapes=SHAPES, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def _checkpoint(optimizer=None, shapes=SHAPES):
    optimizer = optax.adamw(0.1) if optimizer is None else optimizer
    params = _gradients(0, shapes)
    state = optimizer.init(params)
    for seed in range(1, STEPS + 1):
        _, state = optimizer.update(_gradients(seed, shapes), state, params)
    return state


@pytest.mark.parametrize("rates", [{}, {"beta": 0.8, "adam_b1": 0.7, "adam_b2": 0.999}])
def test_the_first_step_goes_on_from_the_corrected_moments_of_adamw(rates):
    """Both moments in NumPy, from the gradients; the new decay rates from there on."""
    beta, b1, b2 = rates.get("beta", 0.9), rates.get("adam_b1", 0.9), rates.get("adam_b2", 0.99)
    optimizer, params = qsgd.superpositional_muon(1.0, **rates), _gradients(0)
    state = qsgd.warm_start(optimizer.init(params), _checkpoint(), **rates)
    updates, _ = jax.jit(optimizer.update)(_gradients(STEPS + 1), state, params)
    hats, t = {}, STEPS + 1
    for name in SHAPES:
        m = v = 0.0
        for seed in range(1, STEPS + 1):
            g = np.asarray(_gradients(seed)[name], np.float64)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        hats[name] = m / (1 - 0.9**STEPS), v / (1 - 0.999**STEPS)

    def following(hat, decay, new):
        """The next moment, of which the last one, corrected of its bias, is known."""
        return decay * hat * (1 - decay**STEPS) + (1 - decay) * new

    for name, (m, v) in hats.items():
        g = np.asarray(_gradients(t)[name], np.float64)
        decay = beta if name == "kernel" else b1
        ahead = decay * following(m, decay, g) / (1 - decay ** (t + 1))
        ahead += (1 - decay) * g / (1 - decay**t)
        if name == "kernel":
            u, sigma, w = np.linalg.svd(ahead / np.linalg.norm(ahead), full_matrices=False)
            turned = u * qsgd.spectral_cascade().evaluate(sigma) @ w
            expected = -0.2 * turned / np.sqrt(np.mean(turned**2))
        else:
            second = following(v, b2, g**2) / (1 - b2**t)
            expected = -ahead / (np.sqrt(second) + 1e-8)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-4, atol=1e-4)


def test_moments_of_the_same_decay_rates_are_taken_over_bit_for_bit():
    adamw_state, params = _checkpoint(optax.adamw(0.1, b2=0.99)), _gradients(0)
    state = qsgd.warm_start(qsgd.superpositional_muon(0.1).init(params), adamw_state, b2=0.99)
    assert {int(n) for _, n in optax.tree.get_all_with_path(state, "count")} == {STEPS}
    adam, matrices = (state.inner_states[name].inner_state[0] for name in ("adamw", "spectral"))
    for name in SHAPES:
        mu = (matrices if name == "kernel" else adam).mu[name]
        np.testing.assert_array_equal(mu, adamw_state[0].mu[name])
        if name != "kernel":
            np.testing.assert_array_equal(adam.nu[name], adamw_state[0].nu[name])


def test_wrapped_states_fit_and_schedules_begin_anew():
    params, schedule = _gradients(0), optax.linear_schedule(0.1, 0.0, 100)
    adamw_state = _checkpoint(optax.inject_hyperparams(optax.adamw)(schedule))
    chain = optax.chain(optax.clip(1.0), qsgd.superpositional_muon(schedule))
    wrapped = optax.MultiSteps(chain, 2)
    state = qsgd.warm_start(wrapped.init(params), adamw_state)
    plain = qsgd.warm_start(qsgd.superpositional_muon(schedule).init(params), _checkpoint())
    for x, y in zip(*map(jax.tree.leaves, (state.inner_opt_state[1], plain)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4)  # injected rates are float32
    assert int(state.inner_opt_state[1].inner_states["spectral"].inner_state[2].count) == 0
    assert (int(state.gradient_step), int(state.mini_step)) == (0, 0)


@pytest.mark.parametrize("jitted", [False, True])
def test_its_state_may_be_donated_and_the_checkpoint_kept(jitted):
    params, adamw_state = _gradients(0), _checkpoint(optax.adamw(0.1, b2=0.99))
    optimizer = qsgd.superpositional_muon(0.1)

    def start(state, adamw_state):
        return qsgd.warm_start(state, adamw_state, b2=0.99)

    state = (jax.jit(start) if jitted else start)(optimizer.init(params), adamw_state)
    jax.jit(optimizer.update, donate_argnums=1)(params, state, params)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(adamw_state))


def test_dtypes_are_those_of_the_new_state():
    params = _gradients(0, dtype=jnp.bfloat16)
    optimizer = qsgd.superpositional_muon(0.1, mu_dtype=jnp.float16)
    fresh = optimizer.init(params)
    state = qsgd.warm_start(fresh, _checkpoint())
    for leaf, other in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True):
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape)
    optimizer.update(params, state, params)


def test_a_checkpoint_of_no_steps_is_a_fresh_state():
    params, optimizer = _gradients(0), qsgd.superpositional_muon(0.1)
    state = qsgd.warm_start(optimizer.init(params), optax.adamw(0.1).init(params))
    jax.tree.map(np.testing.assert_array_equal, state, optimizer.init(params))


def test_leaves_that_do_not_fit_are_kept_and_warned_of():
    params = _gradients(0, SHAPES | {"kernel": (6, 5), "new": (3,)})
    fresh = qsgd.superpositional_muon(0.1).init(params)
    with pytest.warns(UserWarning, match=r"that fit \['kernel'\], \['new'\]: they are as in state"):
        state = qsgd.warm_start(fresh, _checkpoint())
    adam = state.inner_states["adamw"].inner_state[0]
    assert np.any(adam.mu["bias"]) and not np.any(adam.mu["new"])
    assert not np.any(state.inner_states["spectral"].inner_state[0].mu["kernel"])


MUON = qsgd.superpositional_muon(0.1)
GROUPS = {"a": optax.adamw(0.1), "b": optax.adam(0.1)}
TWO = optax.partition(GROUPS, lambda params: dict.fromkeys(params, "a"))


@pytest.mark.parametrize(
    ("state", "adamw_state", "message"),
    [
        (MUON.init(_gradients(0)), optax.sgd(0.1).init(_gradients(0)), "has 0 of"),
        (MUON.init(_gradients(0)), TWO.init(_gradients(0)), "has 2 of"),
        (optax.adamw(0.1).init(_gradients(0)), _checkpoint(), "no spectral superposition"),
        (MUON.init({"w": jnp.ones((2, 3))}), _checkpoint(), r"\['w'\].* one of .*\['kernel'\]"),
        (MUON.init({"bias": jnp.ones(4, complex)}), _checkpoint(), r"moments that fit"),
    ],
)
def test_what_does_not_fit_at_all_is_refused(state, adamw_state, message):
    with pytest.raises(ValueError, match=message):
        qsgd.warm_start(state, adamw_state)
