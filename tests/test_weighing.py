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

import qsgd_jax as qsgd
from qsgd_jax._src import weighing
from qsgd_jax._src.circuit import Readout
from qsgd_jax._src.sampling import step_key
from tests.combinations import pairwise

DEVICES = ("lightning.qubit", "default.qubit")
SOURCES: dict[str, Any] = {"surrogate": qsgd.probe, "direct": qsgd.Direct}
COVERAGES = {"leading": qsgd.Leading(), "everywhere": qsgd.Everywhere()}


def _weights(surrogate, params, coverage: Any = "leading", **options) -> Any:
    """In a compiled function, as an optimizer asks for them."""
    return jax.jit(lambda p: qsgd.superposition_weights(surrogate, p, coverage, **options))(params)


def _sampled(shots, circuit=None, source="surrogate"):
    circuit = qsgd.Circuit(**SHOTS_CIRCUIT) if circuit is None else circuit
    return qsgd.sampled(SOURCES[source](circuit, readout="probabilities"), shots)


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
    path=tuple(itertools.product(DEVICES, SOURCES, COVERAGES)),
    dtype=("float32", "float64"),
    jitted=(False, True),
    indirect=("dtype",),
)
def test_depth_zero_is_equation_two(dtype, path, jitted):
    device, source, coverage = path
    surrogate = SOURCES[source](qsgd.Circuit(), device=device)
    theta = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(dtype)
    weigh = _weights if jitted else qsgd.superposition_weights
    expected = np.sin(np.pi * theta.astype(np.float64))
    if coverage == "leading":
        expected[1:] = 0
    weights = weigh(surrogate, jnp.asarray(theta), coverage)
    assert weights.dtype == dtype
    tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype.name]
    np.testing.assert_allclose(weights, expected, atol=tolerance, rtol=0)


@pairwise(
    path=tuple(itertools.product(SOURCES, COVERAGES, (0, 1))),
    device=DEVICES,
    disturbed=(2, 1),
)
def test_no_path_answers_without_the_circuit(monkeypatch, path, device, disturbed):
    """Another gate changes every path's answer: no sine stands in for the circuit at depth 0."""
    source, coverage, depth = path
    theta = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 2)), jnp.float32)

    def answer():
        circuit = qsgd.Circuit(n_qubits=2, depth=depth, seed=2)
        return np.asarray(_weights(SOURCES[source](circuit, device=device), theta, coverage))

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
    path=tuple(itertools.product(SOURCES, COVERAGES)),
    dtype=("float32", "float64"),
    indirect=("dtype",),
)
def test_weights_are_the_simulated_circuit(simulate, dtype, shape, path):
    (n, depth, uploads), (source, coverage) = shape, path
    circuit = qsgd.Circuit(n, depth, uploads, seed=1)
    params = _tree(dtype)
    weights = _weights(SOURCES[source](circuit), params, coverage)
    tolerance = {"float32": 1e-5, "float64": 1e-11}[dtype.name]
    for name, leaf in params.items():
        assert weights[name].shape == leaf.shape and weights[name].dtype == dtype
        expected = _reference(simulate, circuit, coverage, leaf)
        np.testing.assert_allclose(weights[name], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("coverage", COVERAGES)
def test_more_terms_than_are_unrolled(simulate, float64, coverage):
    """A table that goes through the matrix product."""
    circuit = qsgd.Circuit(n_qubits=4, depth=3, uploads=2)
    leaf = np.random.default_rng(0).uniform(-3, 3, (9, 5))
    surrogate = qsgd.probe(circuit, device="default.qubit")
    assert not surrogate.sparse or surrogate.support is None
    expected = _reference(simulate, circuit, coverage, leaf)
    np.testing.assert_allclose(_weights(surrogate, leaf, coverage), expected, atol=1e-11)


def test_names_of_coverages_are_short_for_their_classes(simulate):
    surrogate, params = qsgd.probe(qsgd.Circuit(3, 1)), _tree()
    for name, coverage in COVERAGES.items():
        found = _weights(surrogate, params, coverage)
        jax.tree.map(np.testing.assert_array_equal, found, _weights(surrogate, params, name))
    jax.tree.map(
        np.testing.assert_array_equal,
        _weights(surrogate, params, "leading"),
        jax.jit(functools.partial(qsgd.superposition_weights, surrogate))(params),
    )


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
    weights = _weights(qsgd.probe(circuit), {"x": leaf}, coverage)["x"]
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
    weights = _weights(qsgd.probe(qsgd.Circuit()), [leaf, jnp.full(2, 0.5)], coverage)
    np.testing.assert_array_equal(weights[0], np.zeros((3, 2)))
    np.testing.assert_allclose(weights[1], [1, 1], atol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("coverage", COVERAGES)
def test_leaves_of_several_dtypes_do_not_mix(simulate, float64, coverage, source):
    """Neither alone nor in one batch."""
    circuit, params = qsgd.Circuit(3, 1), {}
    for i, name in enumerate(("float64", "float16", "int32", "float32", "float64", "complex64")):
        params[f"{i}"] = jnp.asarray(np.random.default_rng(i).normal(size=(2, 2)), name)
    surrogate = SOURCES[source](circuit)
    together = _weights(surrogate, params, coverage)
    for name, leaf in params.items():
        alone = _weights(surrogate, {name: leaf}, coverage)[name]
        assert together[name].dtype == alone.dtype
        np.testing.assert_allclose(together[name], alone, atol=1e-6)
    expected = _reference(simulate, circuit, coverage, params["4"])
    np.testing.assert_allclose(together["4"], expected, atol=1e-12)


@pytest.mark.parametrize("shots", [None, 3])
@pytest.mark.parametrize("coverage", COVERAGES)
def test_trees_keep_their_structure(coverage, shots):
    circuit = qsgd.Circuit()
    surrogate = qsgd.probe(circuit) if shots is None else _sampled(shots, circuit)
    leaf = jnp.full(3, 0.5)
    params = {"a": [leaf, (leaf, None)], "b": {"c": optax.MaskedNode(), "d": 0.5}}
    weights = _weights(surrogate, params, coverage)
    assert jax.tree.structure(weights) == jax.tree.structure(params)
    for weight in jax.tree.leaves(weights):  # sin(π/2), which every shot measures
        np.testing.assert_allclose(weight, np.ones_like(weight), atol=1e-6)
    for empty in ({}, [], None, optax.MaskedNode(), {"a": jnp.ones(2, int)}):
        result = _weights(surrogate, empty, coverage)
        assert jax.tree.structure(result) == jax.tree.structure(empty)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_finite_stays_in_its_block(source):
    """A parameter that is not a number stays visible, and within its block."""
    surrogate = SOURCES[source](qsgd.Circuit(2))
    weights = _weights(surrogate, jnp.array([np.nan, 0.0, 0.5, 1e-30, -0.0]), "everywhere")
    assert np.isnan(weights[0])
    np.testing.assert_allclose(weights[2:], [1, 0, 0], atol=1e-6)


@pairwise(device=(*DEVICES, "default.mixed"), source=tuple(SOURCES), wires=(["a", "b"], None))
def test_device_instances(simulate, float64, device, source, wires):
    circuit = qsgd.Circuit(2, 2)
    surrogate = SOURCES[source](circuit, device=qml.device(device, wires=wires))
    params = np.random.default_rng(0).normal(size=(4, 2))
    expected = _reference(simulate, circuit, "everywhere", params)
    np.testing.assert_allclose(_weights(surrogate, params, "everywhere"), expected, atol=1e-12)


# When a device is asked


def test_a_surrogate_is_compiled_into_a_step_as_constants():
    surrogates = qsgd.probe(qsgd.Circuit(2, 2, 2)), _sampled(2)
    for surrogate, coverage in itertools.product(surrogates, COVERAGES.values()):
        weigh = functools.partial(qsgd.superposition_weights, surrogate, coverage=coverage)
        text = jax.jit(weigh).lower(jnp.zeros((4, 1))).compile().as_text()
        assert text is not None and "callback" not in text
        for again in (jax.jit(weigh), jax.vmap(weigh)):
            assert "callback" not in str(jax.make_jaxpr(again)(jnp.zeros((2, 3))))


@pytest.mark.parametrize("coverage", COVERAGES)
def test_leaves_share_one_host_call_in_direct_execution(coverage):
    opened = qml.device("lightning.qubit", wires=2)
    direct = qsgd.Direct(qsgd.Circuit(2, 1), opened)
    params = [jnp.ones((4, 2)), jnp.ones(3), jnp.ones(())]

    def weigh(params):
        return qsgd.superposition_weights(direct, params, coverage)

    assert str(jax.make_jaxpr(weigh)(params)).count("pure_callback[") == 1
    with qml.Tracker(opened) as tracker:
        jax.block_until_ready(jax.jit(weigh)(params))
    blocks = {"leading": 3, "everywhere": 4 + 2 + 1}[coverage]
    assert tracker.totals["batches"] == 1 and tracker.totals["executions"] == blocks


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("device", DEVICES)
def test_weights_inside_scan_and_vmap(simulate, float64, device, source):
    circuit = qsgd.Circuit(2, 1)
    surrogate = SOURCES[source](circuit, device=device)
    start = np.random.default_rng(0).normal(size=(3, 2, 2))

    @jax.jit
    @jax.vmap
    def walk(params):
        def step(params, _):
            weights = qsgd.superposition_weights(surrogate, params, "everywhere")
            return params + 0.1 * weights, None

        return jax.lax.scan(step, params, length=3)[0]

    for params, result in zip(start, walk(start), strict=True):
        for _ in range(3):
            params = params + 0.1 * _reference(simulate, circuit, "everywhere", params)
        np.testing.assert_allclose(result, params, atol=1e-12)


def test_a_circuit_too_wide_for_a_grid_runs_directly():
    theta = np.random.default_rng(0).uniform(-1, 1, 12).astype(np.float32)
    weights = _weights(qsgd.Direct(qsgd.Circuit(n_qubits=11)), theta)
    np.testing.assert_allclose(weights[:11], np.sin(np.pi * theta[:11]), atol=1e-6)
    assert weights[11] == 0


# Derivatives


ANGLES = np.random.default_rng(3).normal(size=(1, 2, 2))


def _weighed_by(device, source="surrogate", coverage: Any = "everywhere"):
    """A function of angles and parameters; the encoding after the layer keeps each RZ alive."""

    def scalar(angles, params):
        surrogate = SOURCES[source](qsgd.Circuit(2, 1, 2, angles=angles), device=device)
        weights = qsgd.superposition_weights(surrogate, params, coverage)
        return jnp.sum(weights * jnp.cos(jnp.arange(1.0, params.size + 1)).reshape(params.shape))

    return scalar


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("device", DEVICES)
def test_hypergradients(simulate, central, float64, device, source, coverage):
    """With respect to the angles and the parameters, against differences of a NumPy circuit."""
    params = np.random.default_rng(0).normal(size=(4, 2))
    scalar = _weighed_by(device, source, coverage)
    factors = np.cos(np.arange(1.0, 9)).reshape(4, 2)

    def exact(angles, params):
        circuit = qsgd.Circuit(2, 1, 2, angles=angles)
        return np.sum(_reference(simulate, circuit, coverage, params) * factors)

    by_angles, by_params = jax.jit(jax.grad(scalar, (0, 1)))(ANGLES, params)
    np.testing.assert_allclose(by_angles, central(lambda a: exact(a, params), ANGLES), atol=1e-8)
    np.testing.assert_allclose(by_params, central(lambda p: exact(ANGLES, p), params), atol=1e-8)


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


# Sampled weights


SHOTS_CIRCUIT = {"n_qubits": 3, "depth": 2, "seed": 4}
THETA = np.array([0.3, -0.7, 1.2])


def _draws(shots, coverage: Any = "leading", draws=10_000):
    """One block under as many keys, `(draws, 3)`."""
    sampled = _sampled(shots)
    keys = jax.random.split(jax.random.key(0), draws)
    params = jnp.asarray(THETA, jnp.float32)
    draw = jax.vmap(lambda key: qsgd.superposition_weights(sampled, params, coverage, key=key))
    return np.asarray(jax.jit(draw)(keys), np.float64)


def _exact_moments(simulate, theta=THETA):
    circuit = qsgd.Circuit(**SHOTS_CIRCUIT)
    (mean,), (p,) = simulate(theta[None], circuit.angles)
    z = np.array(list(itertools.product([1, -1], repeat=circuit.n_qubits)))
    return mean, (z - mean).T @ (p[:, None] * (z - mean)), z, p


def _in_a_step(sampled, coverage, params, data, count):
    """As a transformation asks in the step of this number."""
    return weighing.weigh(sampled, COVERAGES[coverage], params, None, key=step_key(data, count))


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
    weights = _weights(_sampled(1), jnp.full(9999, 0.3), "everywhere")
    blocks = np.asarray(weights, np.float64).reshape(-1, 3)
    centred = blocks - mean
    assert np.all(np.abs(centred.mean(0)) <= 5 * np.sqrt(np.diag(covariance) / len(blocks)))
    for lag in (1, 2, 3):
        products = centred[lag:, :, None] * centred[:-lag, None, :]
        assert np.all(np.abs(products.mean(0)) <= 5 * products.std(0) / np.sqrt(len(products)))


@pytest.mark.parametrize("coverage", COVERAGES)
def test_layers_of_a_stack_are_sampled_independently(simulate, coverage):
    """Equal parameters in all: 3,000 layers agree in law, but not in value."""
    mean, covariance, _, _ = _exact_moments(simulate)
    layers = jnp.broadcast_to(jnp.asarray(THETA, jnp.float32), (60, 50, 3))
    stacks = type(COVERAGES[coverage])(stacked_axes=2)
    blocks = np.asarray(_weights(_sampled(1), layers, stacks), np.float64).reshape(-1, 3)
    centred = blocks - mean
    assert np.all(np.abs(centred.mean(0)) <= 5 * np.sqrt(np.diag(covariance) / len(blocks)))
    for lag in (1, 50, 51):
        products = centred[lag:, :, None] * centred[:-lag, None, :]
        assert np.all(np.abs(products.mean(0)) <= 5 * products.std(0) / np.sqrt(len(products)))


def test_steps_leaves_and_parts_have_streams_of_their_own():
    sampled = _sampled(1)
    params = {"a": jnp.full(300, 0.3), "b": jnp.full(300, 0.3), "c": jnp.full(300, 0.3 + 0.3j)}
    weigh = jax.jit(functools.partial(_in_a_step, sampled, "everywhere"))
    data = jnp.array([0, 7], jnp.uint32)
    first, again, second = (weigh(params, data, count) for count in (0, 0, 1))
    other = weigh(params, jnp.array([0, 8], jnp.uint32), 0)
    seen = []
    for weights in (first, second, other):
        seen += [weights["a"], weights["b"], np.real(weights["c"]), np.imag(weights["c"])]
    assert len({np.asarray(values).tobytes() for values in seen}) == 12
    jax.tree.map(np.testing.assert_array_equal, first, again)
    public = _weights(sampled, {"b": params["b"]}, "everywhere", key=7)
    np.testing.assert_array_equal(public["b"], first["b"])


@pytest.mark.parametrize("coverage", COVERAGES)
def test_a_sample_belongs_to_its_path(coverage):
    sampled, leaf = _sampled(5), jnp.full((6, 2), 0.3)
    every = {"a": leaf, "b": {"c": leaf, "d": leaf}}
    whole = _weights(sampled, every, coverage, key=3)
    part = _weights(sampled, {"a": optax.MaskedNode(), "b": {"d": leaf}}, coverage, key=3)
    np.testing.assert_array_equal(part["b"]["d"], whole["b"]["d"])
    assert np.any(whole["b"]["c"] != whole["b"]["d"])


@pytest.mark.bits
@pytest.mark.parametrize("coverage", COVERAGES)
def test_samples_are_fresh_inside_scan(coverage):
    params, data = jnp.full(30, 0.3), jnp.array([0, 7], jnp.uint32)
    weigh = functools.partial(_in_a_step, _sampled(101), coverage, params, data)
    inside = jax.jit(lambda: jax.lax.scan(lambda t, _: (t + 1, weigh(t)), 0, length=6)[1])()
    assert len(np.unique(inside, axis=0)) == 6
    for count, weights in enumerate(inside):
        np.testing.assert_array_equal(weights, jax.jit(weigh)(count))


@pytest.mark.bits
@pytest.mark.parametrize(
    ("device", "source"),
    [("lightning.qubit", "direct"), ("default.qubit", "surrogate"), ("default.qubit", "direct")],
)
def test_all_paths_draw_the_same_sample(device, source):
    """The exact probabilities differ by rounding alone, the random numbers by nothing."""
    params = jnp.asarray(THETA, jnp.float32)
    circuit = qsgd.Circuit(**SHOTS_CIRCUIT)
    probabilities = SOURCES[source](circuit, device=device, readout="probabilities")
    expected = _weights(_sampled(50), params, key=1)
    found = _weights(qsgd.sampled(probabilities, 50), params, key=1)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_many_shots_approach_the_expectation(simulate):
    mean, covariance, _, _ = _exact_moments(simulate)
    weights = _draws(100_000, draws=1)[0]
    assert np.all(np.abs(weights - mean) <= 5 * np.sqrt(np.diag(covariance) / 100_000))


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("source", SOURCES)
def test_sampled_weights_refuse_to_be_differentiated(source, coverage):

    def scalar(params, angles):
        sampled = _sampled(3, qsgd.Circuit(2, 1, angles=angles), source)
        return jnp.sum(qsgd.superposition_weights(sampled, params, coverage))

    for mode in (jax.jacrev, jax.jacfwd):
        for argument in (0, 1):
            with pytest.raises(TypeError, match="shots=3"):
                jax.eval_shape(mode(scalar, argument), jnp.ones(3), jnp.ones((1, 2, 2)))


@pytest.mark.parametrize("negative", [-1e-5, -1e-3])
def test_probabilities_below_zero(negative):
    """Rounding counts as zero; a device that answers worse is not covered up."""
    table = np.zeros((2, 3))
    table[:, 0] = negative, 1 - negative
    surrogate = qsgd.Surrogate(
        table, np.zeros(1), degree=(1,), period=(2.0,), readout="probabilities"
    )
    weights = qsgd.superposition_weights(qsgd.sampled(surrogate, 2), jnp.ones(1))
    np.testing.assert_array_equal(weights, [-1.0] if negative == -1e-5 else [np.nan])


# Measured weights


@pytest.mark.parametrize("device", DEVICES)
def test_a_probe_is_one_for_all_steps_and_direct_execution_measures_in_each(device):
    params = jnp.full((4, 3), 0.3)

    @functools.partial(jax.jit, static_argnums=0)
    def walk(surrogate):
        def step(carry, _):
            return carry, qsgd.superposition_weights(surrogate, params, "everywhere")

        return jax.lax.scan(step, None, length=4)[1]

    for source, different in (("surrogate", 1), ("direct", 4)):
        steps = np.asarray(walk(SOURCES[source](qsgd.Circuit(2, 1), device=device, shots=40)))
        assert len(np.unique(steps, axis=0)) == different
        assert np.all(np.abs(steps * 40 % 2) < 1e-4) == (source == "direct")


def test_measured_weights_refuse_to_be_differentiated():
    direct = qsgd.Direct(qsgd.Circuit(2, 1), shots=4)
    with pytest.raises(ValueError, match="callback"):
        jax.grad(lambda p: jnp.sum(qsgd.superposition_weights(direct, p)))(jnp.ones(2))
    with pytest.raises(ValueError, match="4 measurements, which have no derivative"):
        jax.eval_shape(
            lambda a: qsgd.Direct(qsgd.Circuit(2, 1, angles=a), shots=4).shots, jnp.ones((1, 2, 2))
        )


def test_a_direct_circuit_takes_the_shots_of_its_device():
    with pytest.warns(qml.exceptions.PennyLaneDeprecationWarning):
        device = qml.device("lightning.qubit", wires=2, shots=10)
    direct = qsgd.Direct(qsgd.Circuit(2, 1), device)
    assert direct.shots == 10 and qsgd.Direct(qsgd.Circuit(2, 1), device, shots=7).shots == 7
    weights = _weights(direct, jnp.array([0.2, -0.4]))
    np.testing.assert_allclose(weights * 10 % 2, 0, atol=1e-5)


# Keys and bad input


def test_all_forms_of_one_key_are_one_key():
    sampled, params = _sampled(9), jnp.full(3, 0.3)
    typed = jax.random.key(5, impl="threefry2x32")
    keys: tuple[Any, ...] = (5, np.int32(5), jnp.asarray(5), typed, jax.random.key_data(typed))
    draws = [qsgd.superposition_weights(sampled, params, key=key) for key in keys]
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
        qsgd.superposition_weights(_sampled(1), jnp.ones(2), key=key)
    assert "integer seed" in str(caught.value) and "threefry2x32" in str(caught.value)


@pytest.mark.parametrize("key", [2**32, -(2**31) - 1])
def test_a_seed_of_which_jax_would_drop_bits_is_refused(key):
    with pytest.raises(ValueError, match=f"key={key} .* 32 bits"):
        qsgd.superposition_weights(_sampled(1), jnp.ones(2), key=key)


CIRCUIT = qsgd.Circuit(2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"circuit": 4}, TypeError, ("circuit=4", "Circuit")),
        ({"circuit": qsgd.Circuit}, TypeError, ("circuit=", "Circuit")),
        ({"readout": "amplitudes"}, ValueError, ("readout='amplitudes'", "'probabilities'")),
        ({"shots": 0}, ValueError, ("shots=0", "[1, ")),
        ({"shots": 1.5}, TypeError, ("shots=1.5", "integer")),
        ({"shots": True}, TypeError, ("shots=True", "integer")),
        ({"device": "lightning"}, ValueError, ("device='lightning'", "lightning.qubit")),
        ({"device": "lightning", "shots": 5}, ValueError, ("device='lightning'",)),
        ({"device": 4}, TypeError, ("device=4", "PennyLane device")),
        ({"device": ["lightning.qubit"]}, TypeError, ("device=[", "PennyLane device")),
        (
            {"device": qml.device("default.qubit", wires=1)},
            ValueError,
            ("default.qubit", "1 wires", "n_qubits=2"),
        ),
    ],
)
def test_bad_input_of_direct_execution_is_refused(arguments, error, words):
    with pytest.raises(error) as caught:
        qsgd.Direct(**{"circuit": CIRCUIT, **arguments})
    for word in words:
        assert word in str(caught.value)


PROBABILITIES = {"circuit": CIRCUIT, "readout": "probabilities"}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("options", "shots", "error", "words"),
    [
        (PROBABILITIES, 0, ValueError, ("shots=0", "[1, ")),
        (PROBABILITIES, -3, ValueError, ("shots=-3", "[1, ")),
        (PROBABILITIES, 2.0, TypeError, ("shots=2.0", "integer")),
        (PROBABILITIES, True, TypeError, ("shots=True", "integer")),
        ({"circuit": CIRCUIT}, 2, ValueError, ("'expectation'", "'probabilities'")),
        (PROBABILITIES | {"shots": 5}, 2, ValueError, ("shots=2", "5 measurements")),
    ],
)
def test_what_cannot_be_sampled_is_refused(source, options, shots, error, words):
    with pytest.raises(error) as caught:
        qsgd.sampled(SOURCES[source](**options), shots)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: "probe", TypeError, ("surrogate='probe'", "qsgd_jax.probe")),
        (lambda: CIRCUIT, TypeError, ("surrogate=Circuit(", "qsgd_jax.probe")),
        (
            lambda: qsgd.Direct(**PROBABILITIES),
            ValueError,
            ("4 outputs", "'probabilities'", "qsgd_jax.sampled"),
        ),
        (
            lambda: qsgd.probe(**PROBABILITIES),
            ValueError,
            ("4 outputs", "'probabilities'", "qsgd_jax.sampled"),
        ),
        (
            lambda: qsgd.probe(lambda x: 3 * np.cos(x), n_inputs=1, degree=1),
            ValueError,
            ("output of 3", "±1"),
        ),
        (
            lambda: qsgd.probe(lambda x: [0 * x.sum()] * 2, n_inputs=1, degree=1),
            ValueError,
            ("2 outputs", "1 inputs"),
        ),
    ],
)
def test_what_answers_no_weights_is_refused(make, error, words):
    with pytest.raises(error) as caught:
        qsgd.superposition_weights(make(), jnp.ones(2))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("coverage", ["all", None, qsgd.Leading], ids=repr)
def test_an_unknown_coverage_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage=") as caught:
        qsgd.superposition_weights(qsgd.probe(CIRCUIT), jnp.ones(2), coverage)
    for word in (repr(coverage), "'leading'", "'everywhere'", "qsgd_jax.Leading(...)"):
        assert word in str(caught.value)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("shots", [None, 3])
@pytest.mark.parametrize("coverage", COVERAGES.values(), ids=COVERAGES)
def test_weights_on_a_mesh_of_explicit_axes(coverage, shots, source):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    circuit = qsgd.Circuit(2, 1)
    surrogate = SOURCES[source](circuit) if shots is None else _sampled(shots, circuit, source)
    weigh = functools.partial(weighing.weigh, surrogate, coverage, key=jax.random.key(0))
    plain = jnp.linspace(-1, 1, 12).reshape(6, 2)
    expected = weigh(plain, None)
    for spec in (("x", None), (None, None)):
        sharding = jax.NamedSharding(mesh, jax.P(*spec))
        params = jax.device_put(plain, sharding)
        weights = jax.jit(lambda p: weigh(p, None))(params)
        assert weights.sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        gradients = jax.device_put(2 * jnp.ones((6, 2)), sharding)
        np.testing.assert_allclose(jax.jit(weigh)(params, gradients), 2 * expected, atol=1e-6)
        scaled = jax.jit(weigh)(params, gradients, jnp.float32(0.5))
        np.testing.assert_allclose(scaled, 2 + expected, atol=1e-6)
