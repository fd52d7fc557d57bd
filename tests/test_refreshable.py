"""Coefficients in the optimizer's state: what a step does with those that are there."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import qsgd_jax as qsgd

CIRCUITS = {
    "depth 0": qsgd.Circuit(4),
    "depth 2": qsgd.Circuit(4, 2),
    "uploads": qsgd.Circuit(2, 1, 2),
}
PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (9, 5)), jnp.float32),
    "bias": jnp.linspace(-1, 1, 7),
    "spectrum": jnp.asarray([1 + 2j, 0.5 - 0.2j, 0.1j], jnp.complex64),
}


def _gradient(leaf):
    return jnp.sin(3 * leaf.real) + 0.1 * leaf


def _train(optimizer, steps=20, change=None, params=PARAMS):
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        gradients = jax.tree.map(_gradient, params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(steps):
        if change is not None and i == 5:
            state = change(state)
        params, state = step(params, state)
    assert len(traces) == 1
    return params, state


def _optimizer(circuit, coverage, weigh, refreshable=False):
    surrogate = qsgd.probe(circuit)
    return qsgd.superpositional_adamw(
        0.05,
        weigh=weigh,
        surrogate=qsgd.refreshable(surrogate) if refreshable else surrogate,
        coverage=coverage,
    )


def _assert_close(found, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), found, expected
    )


@pytest.mark.parametrize(
    ("circuit", "coverage", "weigh"),
    [
        ("depth 0", "leading", "gradient"),
        ("depth 0", "everywhere", "update"),
        ("depth 2", "everywhere", "gradient"),
        ("depth 2", "leading", "update"),
        ("uploads", "everywhere", "moments"),
    ],
)
def test_training_is_that_with_constant_coefficients(circuit, coverage, weigh):
    expected, _ = _train(_optimizer(CIRCUITS[circuit], coverage, weigh))
    found, state = _train(_optimizer(CIRCUITS[circuit], coverage, weigh, refreshable=True))
    _assert_close(found, expected, 2e-5)
    assert optax.tree.get(state, "age") == 20 and optax.tree.get(state, "measured_at") == 0


@pytest.mark.parametrize("coverage", ["leading", "everywhere"])
def test_other_coefficients_act_at_once_without_compiling_again(coverage):
    """Those of another seed make the other seed's training, from the step they come in."""
    one, two = (qsgd.Circuit(2, 2, seed=seed) for seed in (0, 1))
    # About the same origin, or the tables would mean different things.
    angles = np.array(two.angles)
    angles[0, :, 0] = one.angles[0, :, 0]
    two = qsgd.Circuit(2, 2, angles=angles)
    table = qsgd.probe(two).coefficients

    def change(state):
        return optax.tree.set(state, table=jnp.asarray(table, jnp.float32))

    optimizer = _optimizer(one, coverage, "update", refreshable=True)
    found, _ = _train(optimizer, change=change)
    first = _train(_optimizer(one, coverage, "update"), steps=5)
    params, state = first
    other = _optimizer(two, coverage, "update")
    for _ in range(15):
        gradients = jax.tree.map(_gradient, params)
        updates, state = jax.jit(other.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    _assert_close(found, params, 2e-5)
    unchanged, _ = _train(_optimizer(one, coverage, "update"))
    assert np.abs(found["bias"] - unchanged["bias"]).max() > 1e-3


def test_in_a_scan_under_vmap_and_in_double_precision(float64):
    circuit, params = CIRCUITS["depth 2"], jnp.linspace(-1, 1, 12).reshape(6, 2)
    ends = []
    for refreshable in (False, True):
        optimizer = _optimizer(circuit, "everywhere", "gradient", refreshable=refreshable)

        def train(params, optimizer=optimizer):
            def step(carry, _):
                params, state = carry
                updates, state = optimizer.update(jnp.sin(params), state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, optimizer.init(params)), length=7)[0]

        end, state = jax.jit(jax.vmap(train))(jnp.stack([params, params + 0.1]))
        assert end.dtype == float64
        ends.append(end)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-13)
    assert optax.tree.get(state, "table").dtype == float64
    np.testing.assert_array_equal(optax.tree.get(state, "age"), [7, 7])


@pytest.mark.parametrize("how", ["flax", "orbax"])
def test_a_checkpoint_holds_the_coefficients(tmp_path, how):
    optimizer = _optimizer(CIRCUITS["depth 2"], "leading", "update", refreshable=True)
    state = optax.tree.set(
        _train(optimizer)[1],
        table=jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 3, 3)), jnp.float32),
        measured_at=jnp.asarray(1_795_361_132, jnp.uint32),
        jobs=jnp.asarray(7, jnp.uint32),
    )
    fresh = optimizer.init(PARAMS)
    if how == "flax":
        data = flax.serialization.to_bytes(state)
        restored = flax.serialization.from_bytes(fresh, data)
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "state", fresh)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_what_a_device_says_can_be_looked_at():
    surrogate = qsgd.probe(CIRCUITS["depth 0"])
    weights = qsgd.superposition_weights(
        surrogate.with_coefficients(jnp.asarray(0.5 * surrogate.coefficients)),
        PARAMS["bias"],
        "everywhere",
    )
    np.testing.assert_allclose(weights, 0.5 * np.sin(np.pi * PARAMS["bias"]), atol=1e-6)


def test_its_weights_without_a_state_are_the_surrogate_s_own():
    surrogate = qsgd.probe(CIRCUITS["depth 2"])
    found = qsgd.superposition_weights(qsgd.refreshable(surrogate), PARAMS, "everywhere")
    expected = qsgd.superposition_weights(surrogate, PARAMS, "everywhere")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_state_of_coefficients_that_do_not_fit_is_refused():
    states = {
        name: _optimizer(circuit, "leading", "update", refreshable=True).init(PARAMS)
        for name, circuit in CIRCUITS.items()
    }
    optimizer = _optimizer(CIRCUITS["depth 0"], "leading", "update", refreshable=True)
    constant = _optimizer(CIRCUITS["depth 0"], "leading", "update")
    with pytest.raises(ValueError, match=r"\(2, 5, 5\) at .*table.*\(4, 3, 3, 3, 3\)"):
        optimizer.update(PARAMS, states["uploads"], PARAMS)
    with pytest.raises(ValueError, match="made by another"):
        optimizer.update(PARAMS, constant.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="made by another"):
        constant.update(PARAMS, states["depth 0"], PARAMS)


@pytest.mark.parametrize("shape", [(2, 5, 5), (2, 3), (3, 3)], ids=str)
def test_given_coefficients_must_fit(shape):
    with pytest.raises(ValueError, match="coefficients of shape") as caught:
        qsgd.probe(qsgd.Circuit(2)).with_coefficients(jnp.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: qsgd.Circuit(2),
        lambda: qsgd.Direct(qsgd.Circuit(2)),
        lambda: qsgd.sampled(qsgd.probe(qsgd.Circuit(2), readout="probabilities"), 5),
        lambda: qsgd.refreshable(qsgd.probe(qsgd.Circuit(2))),
    ],
    ids=["circuit", "direct", "sampled", "refreshable"],
)
def test_what_has_no_coefficients_of_its_own_cannot_be_refreshed(make):
    with pytest.raises(TypeError, match=r"surrogate=.* must be a qsgd_jax\.Surrogate"):
        qsgd.refreshable(make())


def test_a_circuit_of_too_many_coefficients_is_refused_before_it_is_probed():
    with pytest.raises(ValueError, match=r"531441 settings.*qsgd_jax\.Direct"):
        qsgd.refreshable(qsgd.probe(qsgd.Circuit(12)))


def test_probabilities_are_no_coefficients_of_weights():
    surrogate = qsgd.refreshable(qsgd.probe(qsgd.Circuit(2), readout="probabilities"))
    with pytest.raises(ValueError, match="4 outputs of readout='probabilities'"):
        qsgd.scale_by_superposition(0.5, surrogate)


def test_traced_angles_cannot_be_refreshed():
    with pytest.raises(ValueError, match="its trace will end"):
        jax.jit(lambda w: qsgd.refreshable(qsgd.probe(qsgd.Circuit(2, 1, angles=w))))(
            jnp.zeros((1, 2, 2))
        )
