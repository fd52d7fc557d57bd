"""Superposition weights against NumPy, and sampled ones against their exact distribution."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest
import scipy.stats
from pennylane.devices import DefaultMixed

import qsgd_jax as qsgd
from qsgd_jax._src import fourier
from qsgd_jax._src.circuit import Readout
from qsgd_jax._src.coverage import Coverage
from qsgd_jax._src.sampling import step_key
from tests.combinations import pairwise

DEVICES = ("lightning.qubit", "default.qubit")
EXECUTIONS = ("fourier", "direct")
COVERAGES = ("leading", "everywhere")


def _weights(superposition, params, **options):
    """In a compiled function, as an optimizer asks for them."""
    return jax.jit(lambda p: qsgd.superposition_weights(superposition, p, **options))(params)


def _reference(simulate, circuit, coverage, leaf):
    """The weights of a real leaf: blocks by slicing in NumPy, each of them simulated."""
    leaf, n = np.asarray(leaf, np.float64), circuit.n_qubits

    def weigh(values):  # of a vector, n neighbours a block, padded with 0
        padded = np.append(values, np.zeros(-len(values) % n)).reshape(-1, n)
        return simulate(padded, circuit.angles, circuit.uploads)[0].ravel()[: len(values)]

    if coverage == "leading":
        weights = np.zeros(leaf.size)
        weights[:n] = weigh(leaf.ravel()[:n])
        return weights.reshape(leaf.shape)
    if leaf.ndim == 0:
        return weigh(leaf.reshape(1)).reshape(())
    if leaf.size == 0:
        return leaf
    return np.apply_along_axis(weigh, max(leaf.ndim - 2, 0), leaf)


def _tree(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 3), "bias": (7,), "scale": (), "deep": (2, 3, 2), "none": (0, 2)}
    return {name: rng.uniform(-3, 3, shape).astype(dtype) for name, shape in shapes.items()}


# Eq. 2


@pairwise(
    path=tuple(itertools.product(DEVICES, EXECUTIONS, COVERAGES)),
    dtype=("float32", "float64"),
    jitted=(False, True),
    indirect=("dtype",),
)
def test_depth_zero_is_equation_two(dtype, path, jitted):
    device, execution, coverage = path
    superposition = qsgd.Superposition(coverage=coverage, device=device, execution=execution)
    theta = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(dtype)
    weigh = _weights if jitted else qsgd.superposition_weights
    expected = np.sin(np.pi * theta.astype(np.float64))
    if coverage == "leading":
        expected[1:] = 0
    weights = weigh(superposition, jnp.asarray(theta))
    assert weights.dtype == dtype
    tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype.name]
    np.testing.assert_allclose(weights, expected, atol=tolerance, rtol=0)


@pairwise(
    path=tuple(itertools.product(EXECUTIONS, COVERAGES, (0, 1))),
    device=DEVICES,
    disturbed=(2, 1),
)
def test_no_path_answers_without_the_circuit(monkeypatch, path, device, disturbed):
    """Another gate changes every path's answer: no sine stands in for the circuit at depth 0."""
    execution, coverage, depth = path
    theta = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 2)), jnp.float32)

    def answer():
        circuit = qsgd.Circuit(n_qubits=2, depth=depth, seed=2)
        return np.asarray(_weights(qsgd.Superposition(circuit, coverage, device, execution), theta))

    before, original = answer(), qsgd.Circuit.run

    def run(self, encoding, angles, readout: Readout = "expectation", wires=None):
        # With the circuit's own Hadamard behind, T turns the state an eighth out of the
        # plane of RY: at depth 0, cos(π/4) sin(πθ).
        for wire in (range(self.n_qubits) if wires is None else wires)[:disturbed]:
            for gate in (qml.Hadamard, qml.T, qml.Hadamard):
                gate(wire)
        return original(self, encoding, angles, readout, wires)

    monkeypatch.setattr(qsgd.Circuit, "run", run)
    after = answer()
    assert np.max(np.abs(after - before)) > 0.01
    if depth == 0:
        expected = np.sin(np.pi * np.asarray(theta, np.float64))
        if coverage == "leading":
            expected[1:] = 0
        first = np.zeros((4, 2), bool)  # the first qubits: of blocks of two rows, or of one row
        first[np.s_[::2] if coverage == "everywhere" else np.s_[:, 0]] = True
        factor = np.where(first | (disturbed == 2), np.cos(np.pi / 4), 1)
        np.testing.assert_allclose(after, factor * expected, atol=2e-6)


# Values


@pairwise(
    shape=((1, 1, 1), (2, 1, 2), (3, 0, 1), (3, 2, 1), (4, 2, 1)),
    path=tuple(itertools.product(EXECUTIONS, COVERAGES)),
    dtype=("float32", "float64"),
    indirect=("dtype",),
)
def test_weights_are_the_simulated_circuit(simulate, dtype, shape, path):
    (n, depth, uploads), (execution, coverage) = shape, path
    circuit = qsgd.Circuit(n, depth, uploads, seed=1)
    superposition = qsgd.Superposition(circuit, coverage, execution=execution)
    params = _tree(dtype)
    weights = _weights(superposition, params)
    tolerance = {"float32": 1e-5, "float64": 1e-11}[dtype.name]
    for name, leaf in params.items():
        assert weights[name].shape == leaf.shape and weights[name].dtype == dtype
        expected = _reference(simulate, circuit, coverage, leaf)
        np.testing.assert_allclose(weights[name], expected, atol=tolerance, rtol=0)


def test_more_terms_than_are_unrolled(simulate, float64):
    """A table that goes through the matrix product, `everywhere`."""
    circuit = qsgd.Circuit(n_qubits=4, depth=3, uploads=2)
    leaf = np.random.default_rng(0).uniform(-3, 3, (9, 5))
    weights = _weights(qsgd.Superposition(circuit, "everywhere", "default.qubit"), leaf)
    expected = _reference(simulate, circuit, "everywhere", leaf)
    np.testing.assert_allclose(weights, expected, atol=1e-11)


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize(
    ("name", "computed"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("complex64", "complex64"),
        ("complex128", "complex128"),
    ],
)
def test_dtypes_of_leaves(simulate, float64, coverage, name, computed):
    circuit = qsgd.Circuit(2, 1, seed=1)
    values = np.random.default_rng(0).normal(size=(5, 3))
    complex_leaf = name.startswith("complex")
    leaf = jnp.asarray(values + 1j * values[::-1] if complex_leaf else values, name)
    weights = _weights(qsgd.Superposition(circuit, coverage), {"x": leaf})["x"]
    assert weights.dtype == computed and weights.shape == leaf.shape
    parts = ((np.real(leaf), np.real(weights)), (np.imag(leaf), np.imag(weights)))
    tolerance = 1e-12 if computed in ("float64", "complex128") else 2e-6
    for part, weight in parts[: 1 + complex_leaf]:
        expected = _reference(simulate, circuit, coverage, part)
        np.testing.assert_allclose(weight, expected, atol=tolerance)


@pytest.mark.parametrize("name", ["int32", "uint8", "bool"])
@pytest.mark.parametrize("coverage", COVERAGES)
def test_leaves_that_are_no_inexact_numbers_have_no_weight(coverage, name):
    leaf = jnp.ones((3, 2), name)
    weights = _weights(qsgd.Superposition(coverage=coverage), [leaf, jnp.full(2, 0.5)])
    np.testing.assert_array_equal(weights[0], np.zeros((3, 2)))
    np.testing.assert_allclose(weights[1], [1, 1], atol=1e-6)


def test_leaves_of_several_dtypes_do_not_mix(simulate, float64):
    circuit, params = qsgd.Circuit(3, 1), {}
    for i, name in enumerate(("float64", "float16", "int32", "float32", "float64", "complex64")):
        params[f"{i}"] = jnp.asarray(np.random.default_rng(i).normal(size=(2, 2)), name)
    together = _weights(qsgd.Superposition(circuit), params)
    for name, leaf in params.items():
        alone = _weights(qsgd.Superposition(circuit), {name: leaf})[name]
        assert together[name].dtype == alone.dtype
        np.testing.assert_allclose(together[name], alone, atol=1e-6)
    expected = _reference(simulate, circuit, "leading", params["4"])
    np.testing.assert_allclose(together["4"], expected, atol=1e-12)


@pytest.mark.parametrize("shots", [None, 3])
@pytest.mark.parametrize("coverage", COVERAGES)
def test_trees_keep_their_structure(coverage, shots):
    superposition = qsgd.Superposition(coverage=coverage, shots=shots)
    leaf = jnp.full(3, 0.5)
    params = {"a": [leaf, (leaf, None)], "b": {"c": optax.MaskedNode(), "d": 0.5}}
    weights = _weights(superposition, params)
    assert jax.tree.structure(weights) == jax.tree.structure(params)
    for weight in jax.tree.leaves(weights):  # sin(π/2), which every shot measures
        np.testing.assert_allclose(weight, np.ones_like(weight), atol=1e-6)
    for empty in ({}, [], None, optax.MaskedNode(), {"a": jnp.ones(2, int)}):
        result = _weights(superposition, empty)
        assert jax.tree.structure(result) == jax.tree.structure(empty)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_what_is_not_finite_stays_in_its_block(execution):
    """A parameter that is not a number stays visible, and within its block."""
    superposition = qsgd.Superposition(qsgd.Circuit(2), "everywhere", execution=execution)
    weights = _weights(superposition, jnp.array([np.nan, 0.0, 0.5, 1e-30, -0.0]))
    assert np.isnan(weights[0])
    np.testing.assert_allclose(weights[2:], [1, 0, 0], atol=1e-6)


@pairwise(device=(*DEVICES, "default.mixed"), execution=EXECUTIONS, wires=(["a", "b"], None))
def test_device_instances(simulate, float64, device, execution, wires):
    circuit = qsgd.Circuit(2, 2)
    opened = qml.device(device, wires=wires)
    params = np.random.default_rng(0).normal(size=(4, 2))
    superposition = qsgd.Superposition(circuit, "everywhere", opened, execution)
    expected = _reference(simulate, circuit, "everywhere", params)
    np.testing.assert_allclose(_weights(superposition, params), expected, atol=1e-12)


# When the circuit runs


@pairwise(device=DEVICES, coverage=COVERAGES, shots=(None, 2))
def test_a_concrete_circuit_is_probed_once_and_compiled_away(device, coverage, shots):
    circuit, opened = qsgd.Circuit(2, 2, 2), qml.device(device, wires=2)
    with qml.Tracker(opened) as tracker:
        superposition = qsgd.Superposition(circuit, coverage, opened, shots=shots)
        assert not tracker.totals  # not before it is needed
        weigh = functools.partial(qsgd.superposition_weights, superposition)
        text = jax.jit(weigh).lower(jnp.zeros((4, 1))).compile().as_text()
        assert text is not None and "callback" not in text
        for again in (jax.jit(weigh), jax.vmap(weigh)):
            assert "callback" not in str(jax.make_jaxpr(again)(jnp.zeros((2, 3))))
    assert tracker.totals["executions"] == 5**2 and tracker.totals["batches"] == 1


def test_a_probe_first_needed_inside_scan_leaks_no_tracer():
    superposition = qsgd.Superposition(qsgd.Circuit(2, 1))

    def step(p, _):
        return p + 0.1 * qsgd.superposition_weights(superposition, p), None

    jax.jit(lambda p: jax.lax.scan(step, p, length=2))(jnp.ones(3))
    assert isinstance(superposition.coefficients, np.ndarray)
    qsgd.superposition_weights(superposition, jnp.ones(3))


@pytest.mark.parametrize("coverage", COVERAGES)
def test_leaves_share_one_host_call_in_direct_execution(coverage):
    opened = qml.device("lightning.qubit", wires=2)
    superposition = qsgd.Superposition(qsgd.Circuit(2, 1), coverage, opened, "direct")
    params = [jnp.ones((4, 2)), jnp.ones(3), jnp.ones(())]

    def weigh(params):
        return qsgd.superposition_weights(superposition, params)

    assert str(jax.make_jaxpr(weigh)(params)).count("pure_callback[") == 1
    with qml.Tracker(opened) as tracker:
        jax.block_until_ready(jax.jit(weigh)(params))
    blocks = {"leading": 3, "everywhere": 4 + 2 + 1}[coverage]
    assert tracker.totals["batches"] == 1 and tracker.totals["executions"] == blocks


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_execution_inside_scan_and_vmap(simulate, float64, device, execution):
    circuit = qsgd.Circuit(2, 1)
    superposition = qsgd.Superposition(circuit, "everywhere", device, execution)
    start = np.random.default_rng(0).normal(size=(3, 2, 2))

    @jax.jit
    @jax.vmap
    def walk(params):
        def step(params, _):
            return params + 0.1 * qsgd.superposition_weights(superposition, params), None

        return jax.lax.scan(step, params, length=3)[0]

    for params, result in zip(start, walk(start), strict=True):
        for _ in range(3):
            params = params + 0.1 * _reference(simulate, circuit, "everywhere", params)
        np.testing.assert_allclose(result, params, atol=1e-12)


ANGLES = np.random.default_rng(3).normal(size=(1, 2, 2))


def _weighed_by(device, execution="fourier", coverage: Coverage = "everywhere"):
    """A function of angles and parameters; the encoding after the layer keeps each RZ alive."""

    def scalar(angles, params):
        circuit = qsgd.Circuit(2, 1, 2, weights=angles)
        superposition = qsgd.Superposition(circuit, coverage, device, execution)
        weights = qsgd.superposition_weights(superposition, params)
        return jnp.sum(weights * jnp.cos(jnp.arange(1.0, params.size + 1)).reshape(params.shape))

    return scalar


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_hypergradients(simulate, central, float64, device, execution, coverage):
    """With respect to the angles and the parameters, against differences of a NumPy circuit."""
    params = np.random.default_rng(0).normal(size=(4, 2))
    scalar = _weighed_by(device, execution, coverage)
    factors = np.cos(np.arange(1.0, 9)).reshape(4, 2)

    def exact(angles, params):
        circuit = qsgd.Circuit(2, 1, 2, weights=angles)
        return np.sum(_reference(simulate, circuit, coverage, params) * factors)

    by_angles, by_params = jax.jit(jax.grad(scalar, (0, 1)))(ANGLES, params)
    np.testing.assert_allclose(by_angles, central(lambda a: exact(a, params), ANGLES), atol=1e-8)
    np.testing.assert_allclose(by_params, central(lambda p: exact(ANGLES, p), params), atol=1e-8)


def test_traced_angles_take_one_probe_a_trace(float64):
    """Two callbacks for a gradient through five steps: the probe and its slopes."""
    opened = qml.device("lightning.qubit", wires=2)
    params = np.random.default_rng(0).normal(size=(4, 2))

    def trained(angles):
        circuit = qsgd.Circuit(2, 1, 2, weights=angles)
        superposition = qsgd.Superposition(circuit, "everywhere", opened)
        moved = jnp.asarray(params)
        for _ in range(5):
            moved += 0.1 * qsgd.superposition_weights(superposition, moved)
        return jnp.sum(moved**2)

    assert str(jax.make_jaxpr(trained)(ANGLES)).count("pure_callback[") == 1
    assert str(jax.make_jaxpr(jax.grad(trained))(ANGLES)).count("pure_callback[") == 2
    with qml.Tracker(opened) as tracker:
        jax.block_until_ready(jax.jit(jax.grad(trained))(ANGLES))
    assert tracker.totals["executions"] == 5**2
    assert tracker.totals["derivatives"] == 2 * 5**2  # lightning's own count is of both its calls


def test_second_derivatives_and_vmap_of_traced_angles(float64):
    params = np.random.default_rng(0).normal(size=(2, 2))
    many = np.stack([ANGLES, ANGLES + 0.2])
    results = []
    for device in DEVICES:
        scalar = _weighed_by(device)
        results.append(
            (
                jax.jit(jax.hessian(scalar))(ANGLES, params),
                jax.jit(jax.vmap(jax.grad(scalar), (0, None)))(many, params),
            )
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), *results)
    assert np.max(np.abs(results[0][0])) > 0.1


# Shots


SHOTS_CIRCUIT = {"n_qubits": 3, "depth": 2, "seed": 4}
THETA = np.array([0.3, -0.7, 1.2])


def _draws(shots, coverage: Coverage = "leading", draws=10_000):
    """One block under as many keys, `(draws, 3)`."""
    superposition = qsgd.Superposition(qsgd.Circuit(**SHOTS_CIRCUIT), coverage, shots=shots)
    keys = jax.random.split(jax.random.key(0), draws)
    params = jnp.asarray(THETA, jnp.float32)
    draw = jax.vmap(lambda key: qsgd.superposition_weights(superposition, params, key=key))
    return np.asarray(jax.jit(draw)(keys), np.float64)


def _exact_moments(simulate, theta=THETA):
    circuit = qsgd.Circuit(**SHOTS_CIRCUIT)
    (mean,), (p,) = simulate(theta[None], circuit.angles)
    z = np.array(list(itertools.product([1, -1], repeat=circuit.n_qubits)))
    return mean, (z - mean).T @ (p[:, None] * (z - mean)), z, p


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("shots", [1, 7])
def test_moments_of_sampled_weights(simulate, shots, coverage):
    mean, covariance, _, _ = _exact_moments(simulate)
    # Else this test would not tell joint samples from independent ones.
    assert np.max(np.abs(covariance - np.diag(np.diag(covariance)))) > 0.2
    draws = _draws(shots, coverage)
    centred = draws - mean
    products = centred[:, :, None] * centred[:, None, :]
    root = np.sqrt(len(draws))
    assert np.all(np.abs(centred.mean(0)) <= 5 * draws.std(0) / root)
    # With one shot z² = 1 makes the spread of a variance small, but not its rounding.
    spread = products.std(0) / root + 1e-6
    assert np.all(np.abs(products.mean(0) - covariance / shots) <= 5 * spread)


def test_frequencies_of_joint_bitstrings(simulate):
    _, _, z, p = _exact_moments(simulate)
    draws = _draws(1)
    assert np.all(np.abs(draws) == 1)
    counts = np.array([np.sum(np.all(draws == bits, axis=1)) for bits in z])
    assert counts.sum() == len(draws)
    expected = p * len(draws)
    small = expected < 5
    if small.any():
        counts = np.append(counts[~small], counts[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_blocks_are_sampled_independently(simulate):
    """Equal parameters everywhere: 3,333 blocks of one leaf agree in law, but not in value."""
    mean, covariance, _, _ = _exact_moments(simulate, np.full(3, 0.3))
    superposition = qsgd.Superposition(qsgd.Circuit(**SHOTS_CIRCUIT), "everywhere", shots=1)
    blocks = np.asarray(_weights(superposition, jnp.full(9999, 0.3)), np.float64).reshape(-1, 3)
    centred = blocks - mean
    assert np.all(np.abs(centred.mean(0)) <= 5 * np.sqrt(np.diag(covariance) / len(blocks)))
    for lag in (1, 2, 3):
        products = centred[lag:, :, None] * centred[:-lag, None, :]
        assert np.all(np.abs(products.mean(0)) <= 5 * products.std(0) / np.sqrt(len(products)))


def test_steps_leaves_and_parts_have_streams_of_their_own():
    superposition = qsgd.Superposition(qsgd.Circuit(**SHOTS_CIRCUIT), "everywhere", shots=1)
    params = {"a": jnp.full(300, 0.3), "b": jnp.full(300, 0.3), "c": jnp.full(300, 0.3 + 0.3j)}
    weigh = jax.jit(superposition.weights)
    data = jnp.array([0, 7], jnp.uint32)
    first, again, second = (weigh(params, step_key(data, count)) for count in (0, 0, 1))
    other = weigh(params, step_key(jnp.array([0, 8], jnp.uint32), 0))
    seen = []
    for weights in (first, second, other):
        seen += [weights["a"], weights["b"], np.real(weights["c"]), np.imag(weights["c"])]
    assert len({np.asarray(values).tobytes() for values in seen}) == 12
    jax.tree.map(np.testing.assert_array_equal, first, again)
    public = _weights(superposition, {"b": params["b"]}, key=7)
    np.testing.assert_array_equal(public["b"], first["b"])


@pytest.mark.parametrize("coverage", COVERAGES)
def test_a_sample_belongs_to_its_path(coverage):
    superposition = qsgd.Superposition(qsgd.Circuit(**SHOTS_CIRCUIT), coverage, shots=5)
    leaf = jnp.full((6, 2), 0.3)
    every = {"a": leaf, "b": {"c": leaf, "d": leaf}}
    whole = _weights(superposition, every, key=3)
    part = _weights(superposition, {"a": optax.MaskedNode(), "b": {"d": leaf}}, key=3)
    np.testing.assert_array_equal(part["b"]["d"], whole["b"]["d"])
    assert np.any(whole["b"]["c"] != whole["b"]["d"])


@pytest.mark.bits
@pytest.mark.parametrize("coverage", COVERAGES)
def test_samples_are_fresh_inside_scan(coverage):
    superposition = qsgd.Superposition(qsgd.Circuit(**SHOTS_CIRCUIT), coverage, shots=101)
    params, data = jnp.full(30, 0.3), jnp.array([0, 7], jnp.uint32)
    weigh = jax.jit(superposition.weights)

    def step(count, _):
        return count + 1, superposition.weights(params, step_key(data, count))

    inside = jax.jit(lambda: jax.lax.scan(step, 0, length=6)[1])()
    assert len(np.unique(inside, axis=0)) == 6
    for count, weights in enumerate(inside):
        outside = weigh(params, step_key(data, count))
        np.testing.assert_array_equal(weights, outside)


@pytest.mark.bits
@pytest.mark.parametrize(
    ("device", "execution"),
    [("lightning.qubit", "direct"), ("default.qubit", "fourier"), ("default.qubit", "direct")],
)
def test_all_paths_draw_the_same_sample(device, execution):
    """The exact probabilities differ by rounding alone, the random numbers by nothing."""
    circuit, params = qsgd.Circuit(**SHOTS_CIRCUIT), jnp.asarray(THETA, jnp.float32)
    how = qsgd.Superposition(circuit, "leading", device, execution, shots=50)
    expected = _weights(qsgd.Superposition(circuit, shots=50), params, key=1)
    np.testing.assert_allclose(_weights(how, params, key=1), expected, atol=0.05)


def test_many_shots_approach_the_expectation(simulate):
    mean, covariance, _, _ = _exact_moments(simulate)
    weights = _draws(100_000, draws=1)[0]
    assert np.all(np.abs(weights - mean) <= 5 * np.sqrt(np.diag(covariance) / 100_000))


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_sampled_weights_refuse_to_be_differentiated(execution, coverage):

    def scalar(params, angles):
        circuit = qsgd.Circuit(2, 1, weights=angles)
        sampled = qsgd.Superposition(circuit, coverage, execution=execution, shots=3)
        return jnp.sum(qsgd.superposition_weights(sampled, params))

    for mode in (jax.jacrev, jax.jacfwd):
        for argument in (0, 1):
            with pytest.raises(TypeError, match="shots=3"):
                jax.eval_shape(mode(scalar, argument), jnp.ones(3), jnp.ones((1, 2, 2)))


@pytest.mark.parametrize("negative", [-1e-5, -1e-3])
def test_probabilities_below_zero(negative):
    """Rounding counts as zero; a device that answers worse is not covered up."""
    superposition = qsgd.Superposition(qsgd.Circuit(1), shots=2)
    table = np.zeros((2, 3))
    table[:, 0] = negative, 1 - negative
    superposition.__dict__["coefficients"] = table  # as if the device had answered so
    weights = qsgd.superposition_weights(superposition, jnp.ones(1))
    np.testing.assert_array_equal(weights, [-1.0] if negative == -1e-5 else [np.nan])


# Devices that measure


def _kernels(theta, settings, degree):
    """K_g(θ) of each block and setting: how much an answer on the grid counts at θ."""
    difference = np.pi * (theta[:, None] - settings)
    harmonics = sum(2 * np.cos(r * difference) for r in range(1, degree + 1))
    return np.prod((1 + harmonics) / (2 * degree + 1), axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_estimated_weights_are_unbiased_with_the_variance_of_the_formula(simulate, device):
    circuit, shots, probes = qsgd.Circuit(2, 2, uploads=2, seed=3), 20, 400
    settings = fourier.probe_grid(2, 2) + circuit.origin
    theta = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    theta[0] = settings[7]  # where only its own answer counts
    exact = simulate(theta, circuit.angles, 2)[0]
    kernels = _kernels(theta, settings, 2)
    np.testing.assert_allclose((kernels**2).sum(1), 1, rtol=1e-9)
    answers = simulate(settings, circuit.angles, 2)[0]
    variance = kernels**2 @ (1 - answers**2) / shots
    draws = []
    for _ in range(probes):
        table = qsgd.Superposition(circuit, device=device, probe_shots=shots).coefficients
        columns = [jnp.asarray(column) for column in theta.T]
        with jax.disable_jit():
            draws.append(np.stack(fourier.evaluate(table, columns, circuit.origin), -1))
    draws = np.array(draws, np.float64)
    assert np.all(np.abs(draws.mean(0) - exact) <= 5 * np.sqrt(variance / probes) + 1e-6)
    squares = (draws - exact) ** 2
    # Of a normal distribution; the sample's own is too small just where its squares are.
    spread = np.sqrt(2 / probes) * variance
    assert np.all(np.abs(squares.mean(0) - variance) <= 5 * spread + 1e-6)


def test_a_target_standard_error_is_kept(simulate):
    circuit = qsgd.Circuit(2, 1)
    superposition = qsgd.Superposition(circuit, "everywhere", target_standard_error=0.03)
    assert superposition.measurements == 1112  # 1 / 0.03²
    theta = np.random.default_rng(0).uniform(-1, 1, 400).astype(np.float32)
    expected = simulate(theta.reshape(-1, 2), circuit.angles)[0].ravel()
    error = _weights(superposition, theta) - expected
    assert 0 < np.sqrt(np.mean(error**2)) < 1.5 * 0.03


def test_the_shots_a_device_brings_are_used(simulate):
    with pytest.warns(qml.exceptions.PennyLaneDeprecationWarning):
        device = qml.device("lightning.qubit", wires=2, shots=10)
    circuit = qsgd.Circuit(2, 1)
    superposition = qsgd.Superposition(circuit, device=device)
    assert superposition.measurements == 10
    with qml.Tracker(device) as tracker:
        weights = _weights(superposition, jnp.array([0.2, -0.4]))
    assert tracker.totals["shots"] == 9 * 10
    error = weights - simulate(np.array([[0.2, -0.4]]), circuit.angles)[0][0]
    assert 0 < np.abs(error).max() < 5 / np.sqrt(10)
    assert qsgd.Superposition(circuit, device=device, probe_shots=7).measurements == 7


def test_a_device_that_can_only_measure_is_told_how_often():
    client = type("RemoteDevice", (DefaultMixed,), {"__module__": "pennylane_qiskit.x"})
    with pytest.raises(ValueError, match=r"probe_shots=None: .* can only measure; probe_shots or"):
        qsgd.Superposition(qsgd.Circuit(2), device=client(wires=2))
    measured = qsgd.Superposition(qsgd.Circuit(2), device=client(wires=2), probe_shots=5)
    assert measured.measurements == 5


@pytest.mark.parametrize("device", DEVICES)
def test_a_probe_is_one_for_all_steps_and_direct_execution_measures_in_each(device):
    params = jnp.full((4, 3), 0.3)

    @functools.partial(jax.jit, static_argnums=0)
    def walk(superposition):
        def step(carry, _):
            return carry, qsgd.superposition_weights(superposition, params)

        return jax.lax.scan(step, None, length=4)[1]

    for execution, different in (("fourier", 1), ("direct", 4)):
        superposition = qsgd.Superposition(
            qsgd.Circuit(2, 1), "everywhere", device, execution, probe_shots=40
        )
        steps = np.asarray(walk(superposition))
        assert len(np.unique(steps, axis=0)) == different
        assert np.all(np.abs(steps * 40 % 2) < 1e-4) == (execution == "direct")


def test_measured_weights_refuse_to_be_differentiated():
    superposition = qsgd.Superposition(qsgd.Circuit(2, 1), execution="direct", probe_shots=4)
    with pytest.raises(ValueError, match="callback"):
        jax.grad(lambda p: jnp.sum(qsgd.superposition_weights(superposition, p)))(jnp.ones(2))
    with pytest.raises(ValueError, match="4 measurements, which have no derivative"):
        jax.eval_shape(
            lambda w: qsgd.Superposition(qsgd.Circuit(2, 1, weights=w), probe_shots=4).measurements,
            jnp.ones((1, 2, 2)),
        )


# Keys and bad input


def test_all_forms_of_one_key_are_one_key():
    superposition = qsgd.Superposition(qsgd.Circuit(**SHOTS_CIRCUIT), shots=9)
    params = jnp.full(3, 0.3)
    typed = jax.random.key(5, impl="threefry2x32")
    keys: tuple[Any, ...] = (5, np.int32(5), jnp.asarray(5), typed, jax.random.key_data(typed))
    draws = [qsgd.superposition_weights(superposition, params, key=key) for key in keys]
    for draw in draws[1:]:
        np.testing.assert_array_equal(draw, draws[0])


@pytest.mark.parametrize(
    "key",
    [
        1.5,
        True,
        "0",
        None,
        jnp.ones(2),
        jnp.ones(3, jnp.uint32),
        jnp.ones(2, jnp.int32),
        jax.random.split(jax.random.key(0), 2),
        jax.random.key(0, impl="rbg"),
    ],
    ids=repr,
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(TypeError, match="key=") as caught:
        qsgd.superposition_weights(qsgd.Superposition(shots=1), jnp.ones(2), key=key)
    assert "integer seed" in str(caught.value) and "threefry2x32" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"circuit": 4}, TypeError, ("circuit=4", "Circuit")),
        ({"circuit": qsgd.Circuit}, TypeError, ("circuit=", "Circuit")),
        ({"coverage": "all"}, ValueError, ("coverage='all'", "'leading'", "'everywhere'")),
        ({"coverage": None}, ValueError, ("coverage=None", "'leading'", "'everywhere'")),
        ({"execution": "quantum"}, ValueError, ("execution='quantum'", "'auto'", "'direct'")),
        ({"shots": 0}, ValueError, ("shots=0", "at least 1")),
        ({"shots": -3}, ValueError, ("shots=-3", "at least 1")),
        ({"shots": 2.0}, TypeError, ("shots=2.0", "integer")),
        ({"shots": True}, TypeError, ("shots=True", "integer")),
        ({"probe_shots": 0}, ValueError, ("probe_shots=0", "at least 1")),
        ({"probe_shots": 1.5}, TypeError, ("probe_shots=1.5", "integer")),
        ({"probe_shots": 5, "shots": 2}, ValueError, ("shots=2", "lightning.qubit", "5")),
        (
            {"probe_shots": 5, "target_standard_error": 0.1},
            ValueError,
            ("probe_shots=5", "target_standard_error=0.1", "None"),
        ),
        ({"target_standard_error": 0.0}, ValueError, ("target_standard_error=0.0", "[0.0001, 1]")),
        (
            {"target_standard_error": np.nan},
            ValueError,
            ("target_standard_error=nan", "[0.0001, 1]"),
        ),
        ({"target_standard_error": "1"}, TypeError, ("target_standard_error='1'", "number")),
        ({"device": "lightning"}, ValueError, ("device='lightning'", "lightning.qubit")),
        ({"device": "lightning", "probe_shots": 5}, ValueError, ("device='lightning'",)),
        ({"device": "x", "target_standard_error": 0.1}, ValueError, ("device='x'",)),
        ({"device": 4}, TypeError, ("device=4", "PennyLane device")),
        (
            {"device": qml.device("default.qubit", wires=3)},
            ValueError,
            ("default.qubit", "3 wires", "n_qubits=4"),
        ),
        (
            {"circuit": qsgd.Circuit(11), "execution": "fourier"},
            ValueError,
            ("execution='fourier'", "n_qubits=11", "177147", "65536", "execution='direct'"),
        ),
        (
            {"circuit": qsgd.Circuit(10), "shots": 1, "execution": "fourier"},
            ValueError,
            ("execution='fourier'", "59049", "1024 outputs", "execution='direct'"),
        ),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    with pytest.raises(error) as caught:
        qsgd.Superposition(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_a_circuit_too_wide_for_the_grid_runs_directly():
    superposition = qsgd.Superposition(qsgd.Circuit(n_qubits=11))
    theta = np.random.default_rng(0).uniform(-1, 1, 12).astype(np.float32)
    weights = _weights(superposition, theta)
    np.testing.assert_allclose(weights[:11], np.sin(np.pi * theta[:11]), atol=1e-6)
    assert weights[11] == 0


def test_a_device_that_answers_nonsense_is_named(monkeypatch):
    """Not a NaN that spreads through the training."""

    def answers(self, circuits, execution_config=None):
        return tuple((np.nan,) * 2 for _ in circuits)

    opened = qml.device("default.mixed", wires=2)
    monkeypatch.setattr(type(opened), "execute", answers)
    with pytest.raises(ValueError, match=r"default\.mixed"):
        _ = qsgd.Superposition(qsgd.Circuit(2), device=opened).coefficients


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("shots", [None, 3])
@pytest.mark.parametrize("coverage", COVERAGES)
def test_weights_on_a_mesh_of_explicit_axes(coverage, shots, execution):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    superposition = qsgd.Superposition(
        qsgd.Circuit(2, 1), coverage=coverage, shots=shots, execution=execution
    )
    plain, key = jnp.linspace(-1, 1, 12).reshape(6, 2), jax.random.key(0)
    expected = superposition.weights(plain, key)
    for spec in (("x", None), (None, None)):
        sharding = jax.NamedSharding(mesh, jax.P(*spec))
        weights = jax.jit(superposition.weights)(jax.device_put(plain, sharding), key)
        assert weights.sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        gradients = jax.device_put(2 * jnp.ones((6, 2)), sharding)
        perturb = jax.jit(lambda p, g: superposition.perturb(jnp.zeros_like(p), g, p, 1.0, key))
        perturbation = perturb(jax.device_put(plain, sharding), gradients)
        np.testing.assert_allclose(perturbation, 2 * expected, atol=1e-6)


@pytest.mark.parametrize(("n", "depth", "uploads"), [(2, 1, 1), (4, 2, 1), (3, 2, 2), (4, 3, 1)])
def test_what_is_left_out_of_traced_circuits_is_zero_at_any_angles(n, depth, uploads):
    angles = np.random.default_rng(7).uniform(-3, 3, (3, depth, n, 2))
    concrete = [qsgd.Circuit(n, depth, uploads, weights) for weights in angles]
    tables = np.abs([qsgd.Superposition(circuit).coefficients for circuit in concrete])

    def support(weights):
        traced = qsgd.Circuit(n, depth, uploads, weights)
        found.append(qsgd.Superposition(traced, device="default.qubit").support)
        return weights

    found = []
    jax.jit(support)(angles[0])
    assert tables[:, ~found[0]].max(initial=0) < 1e-12
    assert (tables.max(0)[found[0]] > 1e-6).all()
    noisy = qsgd.Superposition(qsgd.Circuit(n, depth), device="default.mixed")
    assert noisy.support is None
