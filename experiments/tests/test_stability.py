"""The map of stalls and divergence: against Adam, a loop in NumPy, and what theory says."""

import json

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd
from experiments.evidence import stability
from experiments.evidence.stability import WEIGHS, plot, stability_map

each = pytest.mark.parametrize("weigh", WEIGHS)
# Grids and steps of the same size share a compiled program.
SCALES = (0.01, 10.0)
GRID = {"starts": 8, "steps": 1000}


def reference(scale, quantum_weight, seed, steps, learning_rate=1e-2):
    """Eq. 1 in double precision: the shares that diverge and stall, of all starts at once."""
    drawn = jax.random.uniform(jax.random.key(seed), (2, 8, 4), minval=-2, maxval=2)
    x, optimum = np.asarray(drawn, np.float64)
    first, m, v = np.linalg.norm(x - optimum, axis=1), 0.0, 0.0
    with np.errstate(all="ignore"):
        for t in range(1, steps + 1):
            g = scale * (x - optimum)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            adam = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            x = x - learning_rate * (adam + quantum_weight * np.sin(np.pi * x) * g)
    ratio = np.linalg.norm(x - optimum, axis=1) / first
    return np.mean(~(ratio <= 10)), np.mean((ratio > 0.05) & (ratio <= 10))


def test_the_map_is_that_of_a_plain_loop():
    weights = (0.3, 50.0)  # and so from Adam, through stalls of some and of all, to divergence
    found = stability_map("gradient", SCALES, weights, **GRID, seed=3)
    for i, scale in enumerate(SCALES):
        for j, weight in enumerate(weights):
            expected = reference(scale, weight, 3, GRID["steps"])
            assert (found["diverged"][i][j], found["stalled"][i][j]) == expected
    assert 0 < found["stalled"][0][1] < 1
    assert found["stalled"][1][0] == 1
    assert found["diverged"][1][1] == 1


def test_what_is_not_finite_has_diverged():
    found = stability_map("gradient", (0.01, 1e30), (0.3, 50.0), **GRID)
    assert found["diverged"][1] == [1, 1]
    assert found["stalled"][1] == [0, 0]


@each
def test_without_weight_it_is_adam(weigh):
    # After as few steps some starts are on the way: there is something to compare.
    found = stability_map(weigh, SCALES, (0.0, 0.5), starts=8, steps=150)
    assert [row[0] for row in found["stalled"]] == found["adam_stalled"]
    assert [row[0] for row in found["diverged"]] == found["adam_diverged"] == [0, 0]
    expected = [reference(scale, 0.0, seed=0, steps=150)[1] for scale in SCALES]
    assert found["adam_stalled"] == expected
    assert 0 < expected[0] < 1


def test_adam_solves_every_scale_of_the_default_map():
    found = stability_map("update", stability.SCALES, (0.5,), starts=8)
    assert found["adam_diverged"] == found["adam_stalled"] == [0] * len(stability.SCALES)


@pytest.mark.parametrize("weigh", ["update", "moments"])
def test_the_other_forms_know_no_scale_and_hold_only_from_one_on(weigh):
    found = stability_map(weigh, SCALES, (0.7, 5.0), **GRID)
    assert [row[0] for row in found["stalled"]] == [0, 0]
    assert [row[0] for row in found["diverged"]] == [0, 0]
    assert min(row[1] for row in found["stalled"]) > 0.9


def test_a_spurious_fixed_point_is_where_theory_has_it():
    """Just below 2, where w turns negative, λ |w| s (x − x*) = 1 holds what comes from above."""
    optimum, scale, weight = 0.5, 10.0, 1.0
    optimizer = qsgd.superpositional_adamw(
        1e-2, weight_decay=0.0, quantum_weight=weight, weigh="gradient"
    )

    @jax.jit
    def step(_, carry):
        x, state = carry
        updates, state = optimizer.update(scale * (x - optimum), state, x)
        return optax.apply_updates(x, updates), state

    start = jnp.full(4, 2.3)
    x, _ = jax.lax.fori_loop(0, 3000, step, (start, optimizer.init(start)))
    assert np.all((x > 1.9) & (x < 2))
    np.testing.assert_allclose(weight * np.sin(np.pi * x) * scale * (x - optimum), -1, atol=0.02)


def test_a_seed_fixes_the_map_and_it_is_json():
    maps = [stability_map("gradient", SCALES, (0.3, 50.0), **GRID, seed=seed) for seed in (3, 3, 4)]
    assert maps[0] == maps[1] != maps[2]
    assert json.loads(json.dumps(maps[0], allow_nan=False)) == maps[0]
    assert (maps[0]["scales"], maps[0]["quantum_weights"]) == ([0.01, 10.0], [0.3, 50.0])


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="weigh='everything' must be"):
        stability_map("everything", SCALES, (0.1, 1.0))


def test_the_plot_shows_the_solved_share_and_hatches_what_diverges(tmp_path, monkeypatch):
    found = {
        "scales": [1.0, 10.0],
        "quantum_weights": [0.1, 1.0],
        "diverged": [[0.0, 0.25], [0.0, 0.75]],
        "stalled": [[0.0, 0.5], [1.0, 0.25]],
        "adam_diverged": [0.0, 0.0],
        "adam_stalled": [0.0, 0.0],
    }
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    plot(tmp_path / "new" / "map.png", {"gradient": found, "update": found})
    monkeypatch.undo()
    [figure] = figures
    _, panel, *_ = figure.axes
    hatched, colours = panel.collections
    np.testing.assert_array_equal(colours.get_array(), [[1, 0.25], [0, 0]])
    np.testing.assert_array_equal(hatched.get_array().filled(0), [[0, 0], [0, 0.75]])
    assert panel.get_xscale() == panel.get_yscale() == "log"
    plt.close(figure)
    assert plt.imread(tmp_path / "new" / "map.png").std() > 0.1
