"""The matched controls: as large as the superposition, where it is, and something else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd
from experiments.evidence.controls import Coverage, matched_control
from experiments.evidence.superposed import KINDS, PAIRS, RETIRED, everything

LAMBDA = 0.5
SURROGATE = qsgd.probe(qsgd.Circuit())


def tree(seed) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "kernel": jax.random.normal(keys[0], (3, 5)),
        "bias": jax.random.normal(keys[1], (3,)),
        "scale": jax.random.normal(keys[2], ()),
    }


def perturbation(kind, base, coverage: Coverage = "everywhere", *, step=0, key=0) -> dict[str, Any]:
    """What a control adds to the step of SGD with another scale than the gradient's."""
    params, gradients = tree(0), tree(1)
    inner = optax.scale(-3.0)
    control = matched_control(
        inner, kind, LAMBDA, SURROGATE, coverage, base=base, key=jax.random.key(key)
    )
    state = control.init(params)
    for _ in range(step):
        _, state = control.update(gradients, state, params)
    steps, _ = control.update(gradients, state, params)
    return jax.tree.map(lambda s, g: np.asarray(s + 3 * g, np.float64), steps, gradients)


def weighed(base, coverage="everywhere") -> dict[str, Any]:
    """The superposition's own perturbation, in NumPy."""
    params, gradients = tree(0), tree(1)

    def one(theta, gradient):
        flat = np.sin(np.pi * np.asarray(theta, np.float64)).ravel()
        if coverage == "leading":
            flat[4:] = 0
        factor = 1.0 if base == "gradient" else -3.0
        return LAMBDA * flat.reshape(np.shape(theta)) * factor * np.asarray(gradient, np.float64)

    return jax.tree.map(one, params, gradients)


@pytest.mark.parametrize("coverage", ["leading", "everywhere"])
@pytest.mark.parametrize("base", ["gradient", "update"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_control_has_the_norm_and_the_coordinates_of_what_it_is_matched_with(
    kind, base, coverage
):
    found, expected = perturbation(kind, base, coverage), weighed(base, coverage)
    for name, one in expected.items():
        size = 4 if coverage == "leading" else one.size
        assert np.linalg.norm(found[name]) == pytest.approx(np.linalg.norm(one), rel=1e-4)
        assert not found[name].ravel()[size:].any()
    assert not np.allclose(found["kernel"], expected["kernel"], atol=1e-3)


@pytest.mark.parametrize("kind", ["noise", "shuffled", "signs"])
def test_what_is_random_is_drawn_anew_by_step_and_by_key(kind):
    first = perturbation(kind, "gradient")["kernel"]
    assert (perturbation(kind, "gradient")["kernel"] == first).all()
    assert not np.allclose(perturbation(kind, "gradient", step=1)["kernel"], first)
    assert not np.allclose(perturbation(kind, "gradient", key=1)["kernel"], first)


def test_shuffled_weights_are_the_same_weights_and_signs_keep_every_size():
    gradient = np.asarray(tree(1)["kernel"])
    shuffled = perturbation("shuffled", "gradient")["kernel"] / gradient
    own = weighed("gradient")["kernel"] / gradient
    # Up to the common factor that makes the norms equal.
    ratio = np.sort(np.abs(shuffled.ravel())) / np.sort(np.abs(own.ravel()))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    signs = perturbation("signs", "gradient")["kernel"] / gradient
    np.testing.assert_allclose(np.abs(signs), np.abs(signs).mean(), rtol=1e-4)
    assert (signs > 0).any() and (signs < 0).any()


def test_rates_are_the_same_in_every_step_however_far_the_parameters_go():
    params, gradients = tree(0), tree(1)
    steps: Any
    control = matched_control(
        optax.identity(),
        "rates",
        LAMBDA,
        SURROGATE,
        "everywhere",
        base="update",
        key=jax.random.key(0),
    )
    state = control.init(params)
    found = []
    for shift in (0.0, 0.3):
        moved = jax.tree.map(lambda x, s=shift: x + s, params)
        steps, state = control.update(gradients, state, moved)
        rates = (steps["kernel"] / gradients["kernel"] - 1).ravel()
        found.append(rates / rates[0])
    np.testing.assert_allclose(*found, rtol=1e-3)


def test_what_has_no_norm_to_match_adds_nothing():
    control = matched_control(
        optax.identity(),
        "noise",
        LAMBDA,
        SURROGATE,
        "everywhere",
        base="gradient",
        key=jax.random.key(0),
    )
    steps: Any
    params = {"x": jnp.zeros(4)}  # sin 0 = 0
    steps, _ = control.update({"x": jnp.ones(4)}, control.init(params), params)
    assert (steps["x"] == 1).all()


@pytest.mark.parametrize(
    ("kind", "base", "named"), [("waves", "gradient", "kind"), ("noise", "step", "base")]
)
def test_unknown_controls_are_refused(kind, base, named):
    with pytest.raises(ValueError, match=f"{named}='.*' must be one of"):
        matched_control(
            optax.identity(), kind, 0.5, SURROGATE, "everywhere", base=base, key=jax.random.key(0)
        )


@pytest.mark.slow
def test_every_contender_of_the_study_takes_a_finite_step_of_its_own():
    params, moved, gradients = tree(0), tree(2), tree(1)
    updates: Any
    hyper = {
        "learning_rate": 0.1,
        "weight_decay": 0.1,
        "warmup": 0.0,
        "quantum_weight": 2.0,
        "seed": jnp.int32(3),
    }
    steps = {}
    for name, contender in everything().items():
        optimizer = contender.build(hyper, optax.constant_schedule(0.1))
        state = optimizer.init(params)
        updates, state = optimizer.update(gradients, state, params)
        updates, _ = optimizer.update(gradients, state, moved)
        steps[name] = np.asarray(updates["kernel"])
        assert np.isfinite(steps[name]).all(), name
    assert (steps["zero"] == steps["adamw"]).all()
    for name, other in PAIRS:
        if name in RETIRED:
            continue
        assert not np.allclose(steps[name], steps[other]), (name, other)
    changed = [name for name in steps if name not in ("adamw", "zero", "adamw-twice")]
    assert all(not np.array_equal(steps[name], steps["adamw"]) for name in changed)
