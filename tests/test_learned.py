"""The gated step against its equation in NumPy with direct runs of the circuit, and AdamW."""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import qsgd_jax as qsgd

CIRCUIT = qsgd.Circuit(n_qubits=4, depth=2, seed=3)
GATES = qsgd.SignalSuperposition(CIRCUIT, (0.4, 0.3), 1.2, signal_scales=(0.7, 1.5, 1.0, 4.0))
SHAPES = {"kernel": (6, 5), "bias": (5,), "scale": (), "zeros": (3,)}


def _params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    leaves = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    leaves["zeros"] = np.zeros(3)  # whose root mean square is 0
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), leaves)


def _loss(params):
    terms = [jnp.sum((leaf - 0.3) ** 2 + jnp.sin(2 * leaf)) for leaf in jax.tree.leaves(params)]
    return sum(terms) + terms[0] * terms[1] / 50


def _train(optimizer, params, steps, state=None):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params) if state is None else state
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def _readouts(gates, u, g, theta):
    """z₁, z₂ by two circuit runs for each coordinate: at its signals, and at the mirrored ones."""
    rms = np.sqrt(np.mean(theta**2))
    signals = {
        "update": u,
        "gradient": g,
        "parameter": theta / rms if rms else np.zeros_like(theta),
        "agreement": u * g,
    }
    scales = gates.signal_scales or [1.0] * len(gates.signals)
    read = [c * signals[name].ravel() for c, name in zip(scales, gates.signals, strict=True)]
    half_turns = np.arctan(np.stack(read, -1)) / np.pi
    signs = np.array([1 if name == "agreement" else -1 for name in gates.signals])
    run = gates.circuit.qnode("default.qubit")
    answers = (np.array(run(half_turns)) + np.array(run(signs * half_turns))) / 2
    return answers[-1].reshape(u.shape), answers[-2].reshape(u.shape)


def test_thirty_steps_equal_the_equation_in_numpy(float64):
    rate, decay = 0.03, 0.01
    optimizer = qsgd.learned_superpositional_adamw(
        optax.linear_schedule(rate, 0.0, 60), b1=0.8, b2=0.95, weight_decay=decay,
        superposition=GATES,
    )  # fmt: skip
    params = _params(jnp.float64)
    found, _ = _train(optimizer, params, 30)

    theta = {name: np.array(leaf) for name, leaf in params.items()}
    m = {name: np.zeros_like(leaf) for name, leaf in theta.items()}
    v = {name: np.zeros_like(leaf) for name, leaf in theta.items()}
    (first, second), factor = GATES.quantum_weights, GATES.learning_rate_factor
    for t in range(1, 31):
        gradients = jax.tree.map(np.array, jax.grad(_loss)(theta))
        for name, gradient in gradients.items():
            m[name] = 0.8 * m[name] + 0.2 * gradient
            v[name] = 0.95 * v[name] + 0.05 * gradient**2
            root = np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8
            u, g = m[name] / (1 - 0.8**t) / root, gradient / root
            z1, z2 = _readouts(GATES, u, g, theta[name])
            step = factor * (u * (1 + first * z1) + second * z2 * np.tanh(g))
            alpha = rate * (1 - (t - 1) / 60)
            theta[name] = theta[name] - alpha * (step + decay * theta[name])
    for name, leaf in theta.items():
        # optax takes the bias correction in float32.
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("names", [("agreement", "update"), ("gradient", "parameter", "update")])
def test_readouts_are_those_of_the_circuit_on_the_signals_named(names):
    circuit = qsgd.Circuit(n_qubits=len(names), depth=3, uploads=2, seed=1)
    gates = qsgd.SignalSuperposition(circuit, signals=names)
    rng = np.random.default_rng(1)
    u, g, theta = rng.normal(size=(3, 40)) * 10 ** rng.uniform(-3, 3, (3, 40))
    rms = np.sqrt(np.mean(theta**2))
    expected = _readouts(gates, u, g, theta)
    for z, wanted in zip(gates.readouts(u, g, theta / rms), expected, strict=True):
        np.testing.assert_allclose(z, wanted, rtol=0, atol=2e-6)


def test_the_step_turns_round_with_its_signals():
    u, g, theta = np.random.default_rng(2).normal(size=(3, 50)).astype(np.float32)
    step = GATES.gated(*map(jnp.asarray, (u, g, theta)))
    np.testing.assert_allclose(GATES.gated(*map(jnp.asarray, (-u, -g, -theta))), -step, rtol=1e-5)
    assert np.abs(step + GATES.gated(*map(jnp.asarray, (-u, -g, theta)))).max() > 1e-2


def test_signals_of_any_size_have_readouts():
    huge = np.array([0.0, 1e-45, 1e30, -3e38, np.inf])
    z1, z2 = GATES.readouts(huge, -huge, huge)
    assert np.isfinite(z1[:-1]).all() and np.isfinite(z2[:-1]).all()
    limit, _ = GATES.readouts(np.float32(1e12), np.float32(-1e12), np.float32(1e12))
    np.testing.assert_allclose(z1[3], GATES.readouts(-1e12, 1e12, -1e12)[0], atol=1e-6)
    np.testing.assert_allclose(z1[2], limit, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["static", "traced"])
def test_without_weights_it_is_adamw_bit_for_bit(dtype, kind):
    params = {"wide": jax.random.normal(jax.random.key(0), (64, 96)).astype(dtype)}
    params |= _params(dtype)
    settings = {"weight_decay": 0.02, "b1": 0.85, "eps": 1e-6}
    # A gradient that is itself elementwise may be fused into the moments' loops, with multiply-adds
    # that depend on who else reads it; here it comes from elsewhere.
    gradient = jax.jit(jax.grad(_loss))

    def gated(weights):
        gates = qsgd.SignalSuperposition(CIRCUIT, weights, device="default.qubit")
        return qsgd.learned_superpositional_adamw(0.02, superposition=gates, **settings)

    def train(make):
        @jax.jit
        def step(weights, gradients, params, state):
            updates, state = make(weights).update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        trained, state = params, make((0.0, 0.0)).init(params)
        for _ in range(15):
            trained, state = step(jnp.zeros(2), gradient(trained), trained, state)
        return trained

    found = train(gated if kind == "traced" else lambda _: gated((0.0, 0.0)))
    expected = train(lambda _: optax.adamw(0.02, **settings))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_run_goes_on_from_the_state_of_adamw():
    params, state = _train(optax.adamw(0.02), _params(), 5)
    optimizer = qsgd.learned_superpositional_adamw(0.02, superposition=GATES)
    assert jax.tree.structure(optimizer.init(params)) == jax.tree.structure(state)
    found, _ = _train(optimizer, params, 5, state)
    assert _loss(found) < _loss(params)


@pytest.mark.parametrize("inner", [optax.scale_by_radam, optax.scale_by_yogi, optax.scale_by_adam])
def test_transformations_with_adams_moments_are_gated(inner):
    optimizer = optax.chain(
        qsgd.superpose_signals(inner(), GATES), optax.scale_by_learning_rate(0.02)
    )
    params = _params()
    found, _ = _train(optimizer, params, 30)
    assert _loss(found) < _loss(params)


@pytest.mark.parametrize("inner", [optax.trace(0.9), optax.scale_by_lion(), optax.identity()])
def test_transformations_without_second_moments_are_refused(inner):
    transformation = qsgd.superpose_signals(inner, GATES)
    with pytest.raises(ValueError, match=r"allowed are optax.scale_by_adam, scale_by_radam and"):
        transformation.init(_params())


def test_masked_and_complex_leaves():
    optimizer = qsgd.superpose_signals(optax.scale_by_adam(), GATES)
    params = {
        "complex": jnp.array([1 + 2j, 0.5j]),
        "real": jnp.array([1.0, 2.0]),
        "masked": optax.MaskedNode(),
    }
    gradients = {
        "complex": jnp.array([1j, 2 + 1j]),
        "real": jnp.ones(2),
        "masked": optax.MaskedNode(),
    }
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert updates["masked"] == optax.MaskedNode()
    # One root serves both parts of a complex coordinate.
    g = np.asarray(gradients["complex"]) / np.abs(gradients["complex"])
    (first, second), factor = GATES.quantum_weights, GATES.learning_rate_factor
    parts = []
    for part, theta in ((g.real, params["complex"].real), (g.imag, params["complex"].imag)):
        z1, z2 = _readouts(GATES, part, part, np.asarray(theta))
        parts.append(factor * (part * (1 + first * z1) + second * z2 * np.tanh(part)))
    expected = parts[0] + 1j * parts[1]
    np.testing.assert_allclose(updates["complex"], expected, rtol=2e-5, atol=1e-6)


def test_hypergradients_equal_central_differences(float64):
    params = {"bias": jnp.array([0.3, -1.2, 0.7]), "scale": jnp.array(0.4)}

    @jax.jit
    def final(numbers):
        gates = qsgd.SignalSuperposition(
            qsgd.Circuit(2, 2, weights=numbers[:8].reshape(2, 2, 2)),
            (numbers[8], numbers[9]),
            numbers[10],
            signals=("parameter", "agreement"),
            signal_scales=(numbers[11], numbers[12]),
            device="default.qubit",
        )
        optimizer = qsgd.learned_superpositional_adamw(0.05, eps_root=1e-12, superposition=gates)
        trained, state = params, optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(jax.grad(_loss)(trained), state, trained)
            trained = optax.apply_updates(trained, updates)
        return _loss(trained)

    numbers = np.concatenate([np.random.default_rng(2).normal(size=8), [0.4, 0.3, 1.1, 0.8, 3.0]])
    found = jax.jit(jax.grad(final))(jnp.asarray(numbers))
    steps = 1e-5 * np.eye(len(numbers))
    expected = [(final(numbers + h) - final(numbers - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-8)
    assert (np.abs(found) > 1e-6).sum() == 11  # all but the last layer's RZ, which are idle


def test_trained_on_a_mesh_it_is_that_of_one_device():
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(16, 24)), "out": rng.normal(size=(24, 8))}
    params = jax.tree.map(np.float32, params)
    optimizer = qsgd.learned_superpositional_adamw(0.02, superposition=GATES)
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    specs = {"in": PartitionSpec("data", "model"), "out": PartitionSpec("model", None)}
    placed = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, specs)
    found, _ = _train(optimizer, placed, 10)
    expected, _ = _train(optimizer, jax.tree.map(jnp.asarray, params), 10)
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-6)
        assert found[name].sharding.is_equivalent_to(placed[name].sharding, found[name].ndim)


def test_an_nnx_optimizer_trains_with_it():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, qsgd.learned_superpositional_adamw(0.05), wrt=nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)), jnp.float32)
    y = x @ jnp.array([[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]])

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [step(model, optimizer) for _ in range(80)]
    assert losses[-1] < 0.2 * losses[0]


def test_hyperparameters_are_injected_and_seeds_mapped():
    params = _params()
    optimizer = optax.inject_hyperparams(qsgd.learned_superpositional_adamw)(
        learning_rate=0.02, superposition=GATES
    )
    plain = qsgd.learned_superpositional_adamw(0.02, superposition=GATES)
    found, _ = _train(optimizer, params, 5)
    expected, _ = _train(plain, params, 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-6), found, expected)
    two = jax.tree.map(lambda x: jnp.stack([x, x + 0.1]), params)
    both = jax.vmap(lambda p: _train(plain, p, 5)[0])(two)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-7), both, expected
    )


def test_a_probe_by_shots_comes_near_the_exact_one():
    measured = dataclasses.replace(GATES, device="default.qubit", probe_shots=4000)
    deviation = np.abs(measured.coefficients - GATES.coefficients)
    assert 0 < deviation.max() < 0.1
    signals = np.random.default_rng(0).normal(size=(3, 500))
    errors = np.array(measured.readouts(*signals)) - np.array(GATES.readouts(*signals))
    assert np.sqrt(np.mean(errors**2)) < 1.5 / np.sqrt(4000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"circuit": qsgd.Circuit(3)}, "n_qubits=3, where signals="),
        ({"signals": ("update", "update", "gradient", "agreement")}, "must be different ones"),
        ({"signals": ("update", "momentum", "gradient", "agreement")}, "must be different ones"),
        ({"signals": ("update",)}, "must be at least two"),
        ({"quantum_weights": (0.5,)}, r"quantum_weights=\(0.5,\) must be two finite numbers"),
        ({"quantum_weights": (0.5, np.nan)}, "must be two finite numbers"),
        ({"quantum_weights": "ab"}, "must be two finite numbers"),
        ({"learning_rate_factor": np.inf}, "learning_rate_factor=inf must be a finite number"),
        ({"signal_scales": (1.0, 2.0)}, r"signal_scales=\(1.0, 2.0\) must be 4 finite numbers"),
        (
            {"signal_scales": (1.0, 2.0, 3.0, np.nan)},
            "must be 4 finite numbers, one for each signal",
        ),
        ({"device": "no.such"}, "device='no.such' is not installed"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        qsgd.SignalSuperposition(**{"circuit": CIRCUIT} | arguments)


def test_what_is_no_superposition_of_signals_is_refused():
    for wrong in (qsgd.Superposition(), "adamw"):
        with pytest.raises(TypeError, match=r"must be a qsgd_jax\.SignalSuperposition"):
            qsgd.learned_superpositional_adamw(1e-3, superposition=wrong)
    with pytest.raises(TypeError, match=r"inner=3 must be an optax\.GradientTransformation"):
        qsgd.superpose_signals(3)


def test_gradients_and_states_that_do_not_fit_are_refused():
    params = _params()
    optimizer = qsgd.learned_superpositional_adamw(0.1, superposition=GATES)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="gradients have nothing at"):
        optimizer.update({"bias": params["bias"]}, state, params)
    with pytest.raises(ValueError, match="was it made by another"):
        optimizer.update(params, optax.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match="not passing `params`"):
        optimizer.update(params, state)


def test_one_optimizer_serves_nested_traces():
    @jax.jit
    def both(numbers):
        circuit = qsgd.Circuit(4, 1, weights=numbers)
        gates = qsgd.SignalSuperposition(circuit, (0.4, 0.3), device="default.qubit")
        optimizer = qsgd.superpose_signals(optax.scale_by_adam(), gates)
        params = jnp.arange(3.0)
        state = optimizer.init(params)
        scanned = jax.lax.scan(
            lambda c, _: (optimizer.update(params, c, params)[1], 0), state, length=2
        )
        return optimizer.update(params, scanned[0], params)[0]

    numbers = np.random.default_rng(0).normal(size=(1, 4, 2)).astype(np.float32)
    assert np.isfinite(both(numbers)).all()


def test_subclasses_are_not_written(tmp_path):
    class Other(qsgd.Circuit):
        pass

    for wrong in (
        dataclasses.replace(GATES, circuit=Other(4, 2, seed=3)),
        type("Gates", (qsgd.SignalSuperposition,), {})(CIRCUIT),
    ):
        with pytest.raises(TypeError, match="itself, not of a subclass"):
            qsgd.save_superposition(tmp_path / "x.json", wrong, "x", 1, {})


def test_the_shipped_circuit_says_where_it_comes_from():
    gates = qsgd.load_superposition()
    assert gates is qsgd.load_superposition("adamw")  # one probe serves all optimizers
    folder = pathlib.Path(qsgd.__file__).parent / "circuits"
    for file in folder.iterdir():
        content = json.loads(file.read_text())
        assert file.stem == f"{content['name']}-{content['version']}"
        provenance = content["provenance"]
        assert {"argv", "settings", "score", "validation_score", "versions"} <= set(provenance)
        assert not provenance["git"]["dirty"]


def test_a_circuit_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "mine-2.json"
    qsgd.save_superposition(path, GATES, "mine", 2, {"command": "none"})
    read = qsgd.load_superposition(path, device="default.qubit")
    np.testing.assert_allclose(read.coefficients, GATES.coefficients, atol=1e-12)
    assert read.quantum_weights == GATES.quantum_weights and read.learning_rate_factor == 1.2
    assert read.signal_scales == GATES.signal_scales


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, r"weights has shape \(2, 4, 2\)"),
        ({"n_qubits": 3}, r"weights has shape \(2, 4, 2\)"),
        ({"signals": ["update", "gradient"]}, "n_qubits=4, where signals"),
        ({"format": 2, "signal_scales": None}, "format=2; this release reads 3"),
        ({"angles": None}, "angles=None must be of list"),
        ({"quantum_weights": [1.0, "x"]}, "must be two finite numbers"),
        ({"signal_scales": [1.0]}, "must be 4 finite numbers"),
    ],
)
def test_angles_of_another_circuit_or_version_are_refused(tmp_path, changes, message):
    path = tmp_path / "mine-1.json"
    qsgd.save_superposition(path, GATES, "mine", 1, {})
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"mine-1\.json: .*{message}"):
        qsgd.load_superposition(path)


def test_unknown_names_and_broken_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="source='lion' must be one of 'adamw'"):
        qsgd.load_superposition("lion")
    with pytest.raises(ValueError, match="version=99 of 'adamw' must be one of"):
        qsgd.load_superposition("adamw", version=99)
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json, line 1: .* expected JSON"):
        qsgd.load_superposition(path)
    with pytest.raises(FileNotFoundError):
        qsgd.load_superposition(tmp_path / "none.json")
