"""The landscapes agree with other formulas, and success on them means the global basin."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from experiments.engine.results import Job
from experiments.engine.runner import Bench
from experiments.optimizers import classical
from experiments.workloads import nonconvex
from experiments.workloads.nonconvex import NAMES, landscape

BOXES = dict(zip(NAMES, (5.12, 5, 5, 2, 1), strict=True))
CLASSICS = NAMES[:-1]
KEY = jax.random.key(0)
# Most of the time would be LLVM's.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
each = pytest.mark.parametrize("name", NAMES)
each_classic = pytest.mark.parametrize("name", CLASSICS)
each_dimension = pytest.mark.parametrize("dimension", [2, 30])


def rastrigin(z):
    return 10 * len(z) + sum(c * c - 10 * np.cos(2 * np.pi * c) for c in z)


def ackley(z):
    near = np.exp(-0.2 * np.linalg.norm(z) / np.sqrt(len(z)))
    return 20 - 20 * near + np.e - np.exp(np.cos(2 * np.pi * z).sum() / len(z))


def styblinski_tang(z):
    return np.polyval([1, 0, -16, 5, 0], z).sum() / 2 + 39.16616570377142 * len(z)


REFERENCES = dict(zip(CLASSICS, (rastrigin, ackley, styblinski_tang, optimize.rosen), strict=True))


def energy(x, couplings):
    """Each pair of spins once."""
    s = np.sin(np.pi * np.asarray(x, float))
    pairs = itertools.combinations(range(len(s)), 2)
    return -sum(couplings[i, j] * s[i] * s[j] for i, j in pairs)


def excess(task, points):
    """Values and gradients at points; validation sees the same values."""
    data = task.workload.data(KEY)

    def at(x):
        value, gradient = jax.value_and_grad(task.workload.loss)({"x": x}, data, KEY)
        return value, gradient["x"], task.workload.validation_loss({"x": x}, data)

    values, gradients, seen = jit(jax.vmap(at))(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(values, seen, rtol=1e-5, atol=1e-5)
    return values, gradients


def shift(task):
    return np.asarray(task.workload.data(KEY)["shift"], float)


def optimum(name, dimension):
    return np.full(dimension, {"styblinski-tang": -2.903534, "rosenbrock": 1}.get(name, 0.0))


def points(task, count=8):
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jit(jax.vmap(task.workload.init))(keys)["x"])


@each_classic
@each_dimension
def test_classics_agree_with_other_formulas(name, dimension):
    task = landscape(name, dimension)
    assert (task.workload.name, task.workload.family) == (f"{name}-{dimension}", "landscape")
    x = points(task)
    expected = [REFERENCES[name](start - shift(task)) for start in x.astype(float)]
    np.testing.assert_allclose(excess(task, x)[0], expected, rtol=2e-5)


@each_classic
@each_dimension
def test_the_shifted_optimum_has_no_excess_and_no_slope(name, dimension):
    task = landscape(name, dimension)
    assert np.all(np.abs(shift(task)) < 0.5)
    assert np.any(np.abs(shift(task)) > 0.1)
    [value], gradient = excess(task, [optimum(name, dimension) + shift(task)])
    np.testing.assert_allclose(value, 0, atol=1e-5)
    # A cone has none: next to its tip, where rounding puts it, the slope is 4 in all.
    limit = 4 if name == "ackley" else 1e-2
    assert np.linalg.norm(gradient) <= limit


def test_the_gradient_of_ackley_is_finite_at_the_tip_of_its_cone():
    value, gradient = jax.value_and_grad(nonconvex.ackley)(jnp.zeros(3))
    assert value == 0
    assert not gradient.any()


@each
@each_dimension
def test_gradients_are_finite_and_that_of_another_formula(name, dimension, central, float64):
    task = landscape(name, dimension)
    data = jax.tree.map(lambda leaf: leaf.astype(float64), task.workload.data(KEY))
    x = points(task, 1)[0].astype(float)
    gradient = jit(jax.grad(task.workload.loss))({"x": jnp.asarray(x)}, data, KEY)["x"]

    def reference(x):
        if name == "spin-glass":
            return energy(x, np.asarray(data["couplings"]))
        return REFERENCES[name](x - np.asarray(data["shift"]))

    np.testing.assert_allclose(gradient, central(reference, x), rtol=1e-5, atol=1e-5)


@each
def test_starts_fill_the_box_and_differ_by_key(name):
    x = points(landscape(name, 5), 400)
    assert x.shape == (400, 5)
    assert np.abs(x).max() <= BOXES[name]
    np.testing.assert_allclose([x.min(), x.max()], [-BOXES[name], BOXES[name]], rtol=0.01)
    assert len(np.unique(x)) > 0.99 * x.size


@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        *[(name, n) for name in ("rastrigin", "styblinski-tang") for n in (2, 10)],
        *[("ackley", n) for n in (2, 10, 60)],  # its lowest minima are elsewhere in each
        *[("rosenbrock", n) for n in (4, 10)],  # in less dimensions it has no other
    ],
)
def test_no_other_basin_counts_as_success(name, dimension):
    task = landscape(name, dimension)
    function, best = REFERENCES[name], optimum(name, dimension)
    minima = []
    for displaced in range(1, 6):
        start = best.copy()
        start[:displaced] = {"styblinski-tang": 2.7468, "rosenbrock": -1.0}.get(name, 0.9)
        reach = 0.9 if name == "rosenbrock" else 0.3
        cell = np.stack([start - reach, start + reach], 1)
        end = optimize.minimize(function, start, method="L-BFGS-B", bounds=cell).x
        if np.all(np.abs(end - start) < 0.99 * reach):  # else the cell has no minimum
            minima.append((function(end), end))
    lowest, end = min(minima, key=lambda found: found[0])
    assert task.tolerance < 0.6 * lowest
    np.testing.assert_allclose(excess(task, [end + shift(task)])[0], lowest, rtol=1e-3)


@pytest.mark.parametrize("dimension", [2, 3, 8])
def test_the_minimum_of_a_spin_glass_is_that_of_all_vertices(dimension):
    couplings = nonconvex.spin_glass_couplings(dimension)
    vertices = list(itertools.product([-0.5, 0.5], repeat=dimension))
    energies = [energy(x, couplings) for x in vertices]
    best = vertices[int(np.argmin(energies))]
    minimum = nonconvex.spin_glass_minimum(dimension)
    np.testing.assert_allclose(minimum, min(energies), rtol=1e-12)
    task = landscape("spin-glass", dimension)
    np.testing.assert_allclose(excess(task, [best])[0], 0, atol=1e-5)
    assert task.tolerance == pytest.approx(1e-2 * abs(minimum))


@pytest.mark.parametrize("dimension", [7, 20])
def test_no_spins_have_less_energy_than_the_minimum(dimension):
    task = landscape("spin-glass", dimension)
    anywhere = points(task, 2000)
    x = np.concatenate([anywhere, np.sign(anywhere) / 2])  # vertices too
    found, gradients = excess(task, x)
    assert np.isfinite(gradients).all()
    assert found.min() > -1e-4
    couplings = nonconvex.spin_glass_couplings(dimension)
    for i in (0, -1):
        expected = energy(x[i], couplings) - nonconvex.spin_glass_minimum(dimension)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)


@pytest.mark.parametrize("dimension", [5, 14])
def test_descents_find_the_minimum_of_few_spins(dimension, monkeypatch):
    exact = nonconvex.spin_glass_minimum(dimension)
    monkeypatch.setattr(nonconvex, "EXACT", 0)
    found = nonconvex.spin_glass_minimum.__wrapped__(dimension)
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_couplings_are_reproducible_symmetric_and_of_variance_one_over_n():
    n = 100
    couplings = nonconvex.spin_glass_couplings(n)
    np.testing.assert_array_equal(couplings, nonconvex.spin_glass_couplings(n))
    np.testing.assert_array_equal(couplings, couplings.T)
    assert not couplings.diagonal().any()
    pairs = couplings[np.triu_indices(n, 1)] * np.sqrt(n)
    assert abs(pairs.mean()) < 0.05
    assert abs(pairs.std() - 1) < 0.05
    # Stored results hold for these couplings and shifts only.
    np.testing.assert_allclose(nonconvex.spin_glass_couplings(2)[0, 1], -0.369638967826)
    np.testing.assert_allclose(shift(landscape("ackley", 2)), [-0.23838787, -0.20150886], rtol=1e-5)


def test_the_runner_trains_on_a_landscape():
    adamw = classical()["adamw"]
    bench = Bench(lambda name, split: landscape("rastrigin", 3).workload, {"adamw": adamw})
    hyper = {"learning_rate": 0.03, "weight_decay": 0.0, "warmup": 0.0}
    job = Job("tuning", "rastrigin-3", "adamw", adamw.settings, "0", hyper, 1, 200, 2)
    [result] = bench.run([job])
    first, *_, last = result["validation"]
    assert last < first


@pytest.mark.parametrize(
    ("name", "dimension", "message"),
    [
        ("sphere", 3, "name='sphere' must be one of rastrigin, ackley"),
        ("ackley", 1, "dimension=1 must be an integer of at least 2"),
        ("ackley", 2.0, r"dimension=2\.0 must be an integer"),
    ],
)
def test_what_is_no_landscape_is_refused(name, dimension, message):
    with pytest.raises(ValueError, match=message):
        landscape(name, dimension)
