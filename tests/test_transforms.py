"""The transforms against Eq. 1 in NumPy, `optax.adamw` and central differences."""

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
from tests.combinations import pairwise

FORMS = ("gradient", "update", "moments")
PLAIN = qsgd.probe(qsgd.Circuit())
ENTANGLED = qsgd.Circuit(n_qubits=2, depth=2, seed=3)


def _params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (6, 5), "bias": (5,), "scale": (), "narrow": (3, 2)}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def _loss(params):
    """A smooth function whose gradients are of order one and mix the leaves."""
    terms = [jnp.sum((leaf - 0.3) ** 2 + jnp.sin(2 * leaf)) for leaf in jax.tree.leaves(params)]
    return sum(terms) + terms[0] * terms[1] / 50


_gradients = jax.jit(jax.grad(_loss))


def _train(optimizer, params, steps, state=None):
    return _train_with(lambda _: optimizer, 0.0, params, steps, state)


def _train_with(make, strength, params, steps, state=None):
    """Train by the optimizer `make(strength)`, built where `strength` is traced."""

    @jax.jit
    def step(strength, params, state):
        optimizer = make(strength)
        updates, state = optimizer.update(jax.grad(_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = make(strength).init(params) if state is None else state
    for _ in range(steps):
        params, state = step(strength, params, state)
    return params, state


def _sine(theta):
    return np.sin(np.pi * theta)


def _sine_of_the_first_four(theta):
    weights = _sine(theta).ravel()
    weights[4:] = 0
    return weights.reshape(theta.shape)


def _entangled_pairs_of_rows(theta):
    """Every block of two adjacent rows by a direct run of the circuit, all in one broadcast."""
    rows = theta.reshape(len(theta) if theta.ndim else 1, -1)
    padded = np.append(rows, np.zeros((len(rows) % 2, rows.shape[1])), axis=0)
    blocks = padded.reshape(-1, 2, rows.shape[1]).swapaxes(1, 2)
    weights = np.stack(ENTANGLED.qnode("default.qubit")(blocks.reshape(-1, 2)), axis=-1)
    return (
        weights.reshape(blocks.shape)
        .swapaxes(1, 2)
        .reshape(padded.shape)[: len(rows)]
        .reshape(theta.shape)
    )


# By name: surrogate and coverage, and the weights that they stand for.
WEIGHTS = {
    "leading": ((None, "leading"), _sine_of_the_first_four),
    "everywhere": ((PLAIN, "everywhere"), _sine),
    "entangled": ((qsgd.probe(ENTANGLED), "everywhere"), _entangled_pairs_of_rows),
}


def _adamw(learning_rate, weights, **options):
    (surrogate, coverage), _ = WEIGHTS[weights]
    return qsgd.superpositional_adamw(
        learning_rate, surrogate=surrogate, coverage=coverage, **options
    )


def _reference(params, weigh, weight, learning_rate, strength, decay, steps):
    """Eq. 1 and the two other forms, written out in NumPy float64."""
    theta = {name: np.asarray(x, np.float64) for name, x in params.items()}
    m = {name: np.zeros_like(x) for name, x in theta.items()}
    v = {name: np.zeros_like(x) for name, x in theta.items()}
    for t in range(steps):
        gradients = _gradients({name: jnp.asarray(x) for name, x in theta.items()})
        for name in theta:
            g, q = np.asarray(gradients[name]), strength(t) * weight(theta[name])
            moments_of = g * (1 + q) if weigh == "moments" else g
            m[name] = 0.9 * m[name] + 0.1 * moments_of
            v[name] = 0.999 * v[name] + 0.001 * moments_of**2
            m_hat, v_hat = m[name] / (1 - 0.9 ** (t + 1)), v[name] / (1 - 0.999 ** (t + 1))
            u = m_hat / (np.sqrt(v_hat) + 1e-8)
            u = u + q * g if weigh == "gradient" else u * (1 + q) if weigh == "update" else u
            theta[name] = theta[name] - learning_rate(t) * (u + decay * theta[name])
    return theta


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("weigh", FORMS)
def test_fifty_steps_equal_the_equation_in_numpy(float64, weigh, weights):
    def learning_rate(t):
        return 0.02 - 0.019 * jnp.float64(jnp.minimum(t, 40)) / 40

    def strength(t):
        return 0.5 - 0.4 * jnp.float64(jnp.minimum(t, 30)) / 30

    optimizer = _adamw(
        learning_rate, weights, weight_decay=0.01, quantum_weight=strength, weigh=weigh
    )
    params = _params(jnp.float64)
    result, _ = _train(optimizer, params, 50)
    weight = WEIGHTS[weights][1]
    expected = _reference(params, weigh, weight, learning_rate, strength, 0.01, 50)
    for name in params:
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-6)


@functools.cache
def _by_adamw():
    """Parameters, settings, and what ten steps of AdamW make of them."""
    params = {"wide": jax.random.normal(jax.random.key(0), (64, 96)), **_params()}
    settings = {"weight_decay": 0.02, "b1": 0.85, "eps": 1e-6}
    return params, settings, _train(optax.adamw(3e-3, **settings), params, 10)[0]


@pytest.mark.bits
@pairwise(weigh=FORMS, weights=tuple(WEIGHTS), kind=("static", "array", "traced", "scheduled"))
def test_quantum_weight_zero_is_adamw_bit_for_bit(weigh, weights, kind):
    params, settings, expected = _by_adamw()

    def superpositional(strength):
        return _adamw(3e-3, weights, quantum_weight=strength, weigh=weigh, **settings)

    if kind == "traced":
        result, _ = _train_with(superpositional, jnp.zeros(()), params, 10)
    else:
        zero = {"static": 0.0, "array": jnp.zeros(()), "scheduled": lambda count: 0.0 * count}
        result, _ = _train(superpositional(zero[kind]), params, 10)
    for name in params:
        # Of a weighed gradient and its moment XLA may make a multiply-add, which adamw has not.
        tolerance = 1e-5 if weigh == "moments" else 0
        np.testing.assert_allclose(result[name], expected[name], rtol=tolerance, atol=0)


def test_any_transformation_can_be_superposed():
    params = _params()
    gradients = jax.grad(_loss)(params)
    optimizer = qsgd.superpose(optax.scale_by_lion(), 0.7, PLAIN, "everywhere")
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for name, g in gradients.items():
        expected = np.sign(g) + 0.7 * _sine(np.asarray(params[name])) * g
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5, atol=1e-6)


def test_inner_transformation_receives_the_extra_arguments():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer = qsgd.superpose(inner)
    params = _params()
    optimizer.update(params, optimizer.init(params), params, value=3.0)
    assert seen == {"value": 3.0}


def test_schedule_is_asked_for_the_count_before_the_increment():
    params = {"a": jnp.full((4,), 0.5)}
    optimizer = qsgd.scale_by_superposition(lambda count: jnp.where(count == 0, 0.25, 0.0))
    state = optimizer.init(params)
    first, state = optimizer.update(params, state, params)
    second, state = optimizer.update(params, state, params)
    np.testing.assert_allclose(first["a"], 0.5 * 1.25)
    np.testing.assert_array_equal(second["a"], params["a"])
    assert int(optax.tree.get(state, "count")) == 2


@pytest.mark.parametrize("weigh", ["gradient", "update"])
def test_leading_touches_four_coordinates_of_each_tensor_and_everywhere_all(weigh):
    params, plain = _params(), optax.adamw(1e-2)
    expected, _ = _train(plain, params, 1)
    for coverage, most in (("leading", 4), ("everywhere", 10**9)):
        optimizer = qsgd.superpositional_adamw(
            1e-2, quantum_weight=0.5, weigh=weigh, coverage=coverage
        )
        result, _ = _train(optimizer, params, 1)
        for name, leaf in params.items():
            moved = np.flatnonzero(np.asarray(result[name] != expected[name]))
            np.testing.assert_array_equal(moved, np.arange(min(most, leaf.size)))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
@pytest.mark.parametrize("weigh", FORMS)
def test_hypergradients_equal_central_differences(float64, weigh, device):
    params = {name: _params(jnp.float64)[name] for name in ("kernel", "bias")}
    angles = jnp.asarray(np.random.default_rng(1).uniform(-3, 3, (2, 3, 2)))

    def meta_loss(strength, learning_rate, angles):
        circuit = qsgd.Circuit(n_qubits=3, depth=2, angles=angles)
        optimizer = qsgd.superpositional_adamw(
            learning_rate,
            quantum_weight=strength,
            weigh=weigh,
            surrogate=qsgd.probe(circuit, device=device),
            coverage="everywhere",
        )
        theta, state = params, optimizer.init(params)
        for _ in range(5):
            updates, state = optimizer.update(jax.grad(_loss)(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
        return _loss(theta)

    point = (jnp.float64(0.5), jnp.float64(0.05), angles)
    gradient = jax.jit(jax.grad(meta_loss, argnums=(0, 1, 2)))(*point)
    value = jax.jit(meta_loss)
    flat, unravel = jax.flatten_util.ravel_pytree(point)
    step = 1e-5
    numeric = [
        (value(*unravel(flat + step * e)) - value(*unravel(flat - step * e))) / (2 * step)
        for e in np.eye(len(flat))
    ]
    analytic, _ = jax.flatten_util.ravel_pytree(gradient)
    np.testing.assert_allclose(analytic, numeric, rtol=1e-5, atol=1e-8)
    assert np.abs(analytic[2:]).max() > 1e-3  # the angles do matter
    probes = str(jax.make_jaxpr(meta_loss)(*point)).count("pure_callback[")
    assert probes == (1 if device == "lightning.qubit" else 0)


@pytest.mark.parametrize("weigh", ["gradient", "update"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_compiled_step_holds_no_callback(weights, weigh):
    optimizer = _adamw(1e-3, weights, weigh=weigh)
    params = _params()
    state = optimizer.init(params)
    assert "callback" not in jax.jit(optimizer.update).lower(params, state, params).as_text()
    direct = qsgd.scale_by_superposition(0.5, qsgd.Direct(qsgd.Circuit()))
    text = jax.jit(direct.update).lower(params, direct.init(params), params).as_text()
    assert "callback" in text


SAMPLED = qsgd.sampled(
    qsgd.probe(qsgd.Circuit(n_qubits=3, depth=2, seed=1), readout="probabilities"), shots=2
)


@pytest.mark.bits
def test_sampled_steps_are_fresh_repeat_by_key_and_survive_scan_and_vmap():
    params = {"a": jnp.full((6, 2), 0.2), "b": jnp.full((6, 2), 0.2)}
    ones = jax.tree.map(jnp.ones_like, params)
    optimizer = qsgd.scale_by_superposition(1.0, SAMPLED, "everywhere", key=7)

    def step(state, _):
        updates, state = optimizer.update(ones, state, params)
        return state, updates

    def run(key):
        state = optimizer.init(params)._replace(key=key)
        return jax.lax.scan(step, state, length=20)[1]

    keys = jnp.stack([jax.random.key_data(jax.random.key(k)) for k in (7, 8)])
    draws = jax.jit(jax.vmap(run))(keys)
    a, b = np.asarray(draws["a"]), np.asarray(draws["b"])
    assert len(np.unique(a[0].reshape(20, -1), axis=0)) > 15  # steps differ
    assert not np.array_equal(a[0], a[1])  # keys differ
    assert not np.array_equal(a[0], b[0])  # leaves differ
    np.testing.assert_array_equal(a[0], run(keys[0])["a"])  # a key repeats exactly
    state, alone = optimizer.init(params), []
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(ones, state, params)
        alone.append(updates["a"])
    np.testing.assert_array_equal(a[0, :3], np.stack(alone))
    first = qsgd.superposition_weights(SAMPLED, params, "everywhere", key=7)["a"]
    np.testing.assert_array_equal(1 + first, alone[0])


def test_sampled_weights_refuse_to_be_differentiated_but_their_step_does_not():
    params = {"a": jnp.full((6, 2), 0.2)}

    def after(steps, strength):
        optimizer = optax.chain(
            qsgd.scale_by_superposition(strength, SAMPLED, "everywhere"),
            optax.scale_by_learning_rate(0.1),
        )
        theta, state = params, optimizer.init(params)
        for _ in range(steps):
            updates, state = optimizer.update(theta, state, theta)
            theta = optax.apply_updates(theta, updates)
        return jnp.sum(theta["a"])

    assert np.isfinite(jax.grad(after, argnums=1)(1, 0.5))
    with pytest.raises(TypeError, match="shots=2 cannot be differentiated"):
        jax.grad(after, argnums=1)(2, 0.5)


def test_diagnostics_tell_norm_and_flips_from_a_jitted_step():
    params = {"a": jnp.array([-0.5, 0.5, -0.5, 0.5, 0.5]), "b": jnp.array(-0.5)}
    gradients = {"a": jnp.array([10.0, 10.0, -10.0, 0.1, 1.0]), "b": jnp.array(0.1)}
    optimizer = optax.chain(qsgd.superpose(optax.scale_by_sign(), 0.5, diagnostics=True))
    state = optimizer.init(params)
    assert float(optax.tree.get(state, "relative_norm")) == 0
    updates, state = jax.jit(optimizer.update)(gradients, state, params)
    # perturbations λ w g: −5, 5, 5, 0.05, none beyond four; −0.05 on the scalar
    np.testing.assert_allclose(updates["a"], [-4, 6, 4, 1.05, 1], rtol=1e-6)
    expected = np.sqrt(3 * 25 + 2 * 0.05**2) / np.sqrt(6)
    np.testing.assert_allclose(optax.tree.get(state, "relative_norm"), expected, rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "flipped_share"), 2 / 5, rtol=1e-6)


@pytest.mark.parametrize("form", ["superpose", "scale_by_superposition"])
def test_the_flipped_share_is_of_weighed_coordinates_alone(form):
    params = {"a": jnp.full(4, 0.5), "i": jnp.arange(100), "n": jnp.full(8, 0.5)}
    gradients = {"a": -jnp.ones(4), "i": jnp.ones(100), "n": jnp.full(8, 2.0)}
    if form == "superpose":
        optimizer = qsgd.superpose(optax.identity(), -2.0, diagnostics=True)
    else:
        optimizer = qsgd.scale_by_superposition(-2.0, diagnostics=True)
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "flipped_share"), 1.0)  # 4 and 4 of 8


@pytest.mark.parametrize("seed", [2**32, 2**40, -(2**31) - 1])
def test_a_seed_that_would_lose_bits_is_refused(seed):
    with pytest.raises(ValueError, match=f"key={seed} must be a seed of 32 bits"):
        qsgd.superpositional_adamw(0.1, key=seed)


@pytest.mark.parametrize("weigh", FORMS)
def test_low_precision_complex_integer_masked_and_missing_leaves(weigh):
    params = {
        "half": jnp.full((4,), 0.5, jnp.bfloat16),
        "complex": jnp.full((4,), 0.5 - 0.5j, jnp.complex64),
        "integer": jnp.arange(4),
        "masked": optax.MaskedNode(),
        "missing": None,
    }
    one = {**params, "half": jnp.ones((4,), jnp.bfloat16), "complex": jnp.ones(4) + 1j}
    optimizer = qsgd.superpose(optax.identity(), 0.5)
    if weigh != "gradient":
        optimizer = qsgd.scale_by_superposition(0.5)
    updates, _ = optimizer.update(one, optimizer.init(params), params)
    assert updates["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["half"], 1.5)
    np.testing.assert_allclose(updates["complex"], 1.5 + 0.5j, rtol=1e-6)
    np.testing.assert_array_equal(updates["integer"], params["integer"])
    assert updates["masked"] == optax.MaskedNode()
    assert updates["missing"] is None


def test_state_initialises_on_abstract_parameters_and_inject_hyperparams_traces_lambda():
    params = _params()
    make = optax.inject_hyperparams(qsgd.superpositional_adamw)
    optimizer = make(1e-2, quantum_weight=0.5)
    abstract = jax.eval_shape(optimizer.init, params)
    state = optimizer.init(params)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    assert {"learning_rate", "quantum_weight"} <= set(state.hyperparams)
    state.hyperparams["quantum_weight"] = jnp.float32(0.0)
    result, _ = _train(optimizer, params, 3, state)
    expected, _ = _train(optax.inject_hyperparams(optax.adamw)(1e-2), params, 3)
    for name in params:
        np.testing.assert_array_equal(result[name], expected[name])


@pytest.mark.parametrize("make", [qsgd.scale_by_superposition, qsgd.superpositional_adamw])
def test_update_without_params_gives_optax_own_message(make):
    optimizer, params = make(0.1), _params()
    with pytest.raises(ValueError) as own:
        optax.add_decayed_weights(0.1).update(params, optax.EmptyState(), None)
    with pytest.raises(ValueError) as ours:
        optimizer.update(params, optimizer.init(params))
    assert str(ours.value) == str(own.value)


@pytest.mark.parametrize("weigh", FORMS)
def test_updates_of_another_shape_are_refused(weigh):
    optimizer = qsgd.scale_by_superposition()
    if weigh == "gradient":
        optimizer = qsgd.superpose(optax.identity())
    params = {"a": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"3.*does not match its parameter of .*2, ?3"):
        optimizer.update({"a": jnp.ones(3)}, optimizer.init(params), params)


def test_donated_state_does_not_take_the_next_run_with_it():
    optimizer, params = qsgd.superpositional_adamw(0.1), _params()
    step = jax.jit(optimizer.update, donate_argnums=1)
    step(params, optimizer.init(params), params)
    _, state = step(params, optimizer.init(params), params)
    assert int(optax.tree.get_all_with_path(state, "count")[0][1]) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantum_weight": float("nan")}, ValueError, "quantum_weight=nan.*finite"),
        ({"quantum_weight": jnp.inf}, ValueError, "quantum_weight=inf.*finite"),
        ({"quantum_weight": jnp.ones(3)}, ValueError, "quantum_weight=.*scalar"),
        ({"quantum_weight": "0.5"}, TypeError, "quantum_weight='0.5'.*finite real number"),
        ({"quantum_weight": 1j}, TypeError, "quantum_weight=1j.*real"),
        ({"quantum_weight": None}, TypeError, "quantum_weight=None.*real"),
        ({"weigh": "grad"}, ValueError, "weigh='grad'.*'update', 'gradient' or 'moments'"),
        ({"surrogate": qsgd.Circuit()}, TypeError, "surrogate=.*probe, sampled, refreshable"),
        ({"coverage": "all"}, ValueError, "coverage='all'.*'leading', 'everywhere'"),
        ({"key": 0.5}, TypeError, "key=0.5.*seed"),
        ({"key": jax.random.key(0, impl="rbg")}, TypeError, "key=.*threefry2x32"),
    ],
)
def test_bad_arguments_are_refused_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        qsgd.superpositional_adamw(1e-3, **options)


@pytest.mark.parametrize("complex_one", ["parameter", "gradient"])
@pytest.mark.parametrize("make", [qsgd.superpose, None])
def test_a_gradient_of_another_kind_than_its_parameter_is_refused(make, complex_one):
    optimizer = make(optax.identity()) if make else qsgd.scale_by_superposition()
    trees = {"a": jnp.ones(3), "b": jnp.ones(3)}, {"a": jnp.ones(3), "b": jnp.ones(3) + 1j}
    gradients, params = trees if complex_one == "parameter" else reversed(trees)
    with pytest.raises(ValueError, match="one is complex"):
        optimizer.update(gradients, optimizer.init(params), params)


def test_diagnostics_keep_their_dtype_in_a_scan(float64):
    optimizer = qsgd.scale_by_superposition(diagnostics=True)
    params = jnp.ones((4,), jnp.float64)

    def step(state, _):
        return optimizer.update(params, state, params)[1], None

    state, _ = jax.lax.scan(step, optimizer.init(params), length=3)
    assert optax.tree.get(state, "relative_norm").dtype == jnp.float32


def test_a_schedule_that_is_not_scalar_is_refused():
    optimizer, params = qsgd.scale_by_superposition(lambda count: jnp.ones(3)), jnp.ones(())
    with pytest.raises(ValueError, match=r"quantum_weight of shape \(3,\) must be a scalar"):
        optimizer.update(params, optimizer.init(params), params)


def test_inner_must_be_a_transformation():
    with pytest.raises(TypeError, match=r"inner=0.5 must be an optax\.GradientTransformation"):
        qsgd.superpose(0.5)
