"""Natural gradients, against PennyLane's own and the overlap of states."""

# As in test_quantum_layer.py; and bad arguments are of wrong types.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportIndexIssue=false

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest
from flax import nnx

import qsgd_jax as qsgd
from qsgd_jax._src.hybrid import asking
from qsgd_jax.nn import QuantumLayer

N = 3
WIRES = range(N)


def _entangling(weights):
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    return qml.expval(qml.Z(0))


def _shared(a, b):
    """An angle in two layers, and one in none."""
    for wire in WIRES:
        qml.Hadamard(wire)
    qml.RX(a[0], wires=0)
    qml.RY(2 * a[1], wires=1)
    qml.CNOT(wires=[0, 1])
    qml.RZ(a[0] * b[0], wires=0)
    qml.RY(a[2], wires=2)
    qml.CZ(wires=[1, 2])
    qml.RX(b[0], wires=2)
    return qml.expval(qml.X(1))


def _layered(a, b):
    """Likewise, but none of both arguments: PennyLane 0.45.0 loses a derivative there."""
    for wire in WIRES:
        qml.Hadamard(wire)
    qml.RX(a[0], wires=0)
    qml.RY(2 * a[1], wires=1)
    qml.CNOT(wires=[0, 1])
    qml.RZ(a[0], wires=0)
    qml.RY(a[2], wires=2)
    qml.CZ(wires=[1, 2])
    qml.RX(b[0], wires=2)
    return qml.expval(qml.X(1))


def _controlled(weights):
    for wire in WIRES:
        qml.RY(0.3 + wire, wires=wire)
    qml.CRX(weights[0], wires=[0, 1])
    qml.IsingXX(weights[1], wires=[1, 2])
    qml.PauliRot(weights[2], "XYZ", wires=WIRES)
    qml.SingleExcitation(weights[3], wires=[0, 2])
    qml.PhaseShift(weights[8], wires=2)
    qml.Rot(weights[4], weights[5], weights[6], wires=1)
    qml.ControlledPhaseShift(weights[7], wires=[2, 0])
    return qml.expval(qml.Z(0))


CIRCUITS = {
    _entangling: {"weights": (1, N, 3)},
    _shared: {"a": (3,), "b": (1,)},
    _layered: {"a": (3,), "b": (1,)},
    _controlled: {"weights": (9,)},
}
SIMULATORS = ["default.qubit", "lightning.qubit"]


def _params(circuit, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = CIRCUITS[circuit]
    return {name: jnp.asarray(rng.uniform(-3, 3, shape), dtype) for name, shape in shapes.items()}


def _qnode(circuit, device="default.qubit", shots=None):
    return qml.QNode(circuit, qml.device(device, wires=N), shots=shots)


def _by_overlaps(state, params, step=1e-3):
    """−½ ∂ᵢ∂ⱼ |⟨ψ(θ)|ψ(θ + x)⟩|² at x = 0; in NumPy, by differences of fourth order."""
    names = sorted(params)
    flat = np.concatenate([np.ravel(params[name]) for name in names]).astype(np.float64)

    def psi(x):
        found, parts = {}, iter(x)
        for name in names:
            shape = np.shape(params[name])
            found[name] = np.reshape([next(parts) for _ in range(np.size(params[name]))], shape)
        return np.asarray(state(**found))

    start = psi(flat)

    def fidelity(x):
        return abs(np.vdot(start, psi(flat + x))) ** 2

    unit, m = np.eye(len(flat)), len(flat)
    weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    found = np.zeros((m, m))
    for i in range(m):
        for j in range(i + 1):
            found[i, j] = found[j, i] = (
                -0.5
                * sum(
                    a * b * fidelity(step * (p * unit[i] + q * unit[j]))
                    for p, a in weights.items()
                    for q, b in weights.items()
                )
                / step**2
            )
    return found


def _state(circuit):
    """Its state, in NumPy."""

    @qml.qnode(qml.device("default.qubit", wires=N))
    def state(**params):
        for gate in qml.tape.make_qscript(circuit)(**params).operations:
            qml.apply(gate)
        return qml.state()

    return state


@pytest.mark.parametrize("device", SIMULATORS)
@pytest.mark.parametrize("circuit", CIRCUITS)
def test_the_whole_metric_is_that_of_overlaps(circuit, device, float64):
    params = _params(circuit, dtype=np.float64)
    (found,) = qsgd.FubiniStudy(_qnode(circuit, device)).measure(params)
    np.testing.assert_allclose(found, _by_overlaps(_state(circuit), params), atol=1e-6)


@pytest.mark.parametrize("device", SIMULATORS)
def test_of_gates_alike_in_the_whole_metric_and_its_approximations(device, float64):
    """Each parameter is that of one gate, so that an approximation leaves out, and that is all.

    PennyLane 0.45 is no reference here: of controlled gates it has other entries than overlaps.
    """
    params = _params(_controlled, dtype=np.float64)
    whole = _by_overlaps(_state(_controlled), params)
    for approx in ("block-diag", "diag"):
        (found,) = qsgd.FubiniStudy(_qnode(_controlled, device), approx).measure(params)
        kept = np.eye(len(whole), dtype=bool) | (np.abs(found) > 1e-9)
        np.testing.assert_allclose(found, np.where(kept, whole, 0), atol=1e-6)
        assert (kept.sum() > len(whole)) == (approx == "block-diag")


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
@pytest.mark.parametrize("circuit", [_entangling, _layered])
@pytest.mark.parametrize("device", SIMULATORS)
def test_it_is_pennylanes_metric_tensor(circuit, device, approx, float64):
    params = _params(circuit, dtype=np.float64)
    names = sorted(params)
    reference = qml.QNode(circuit, qml.device("default.qubit"), interface="autograd")
    tensors = [qml.numpy.array(params[name], requires_grad=True) for name in names]
    expected = qml.metric_tensor(reference, approx=approx)(*tensors)
    (found,) = qsgd.FubiniStudy(_qnode(circuit, device), approx).measure(params)
    if len(names) == 1:
        expected = np.reshape(expected, found.shape)
        np.testing.assert_allclose(found, expected, atol=1e-9)
        return
    start = 0  # PennyLane's has a block for each argument
    for name, block in zip(names, expected, strict=True):
        part = found[start : (start := start + params[name].size)][
            :, start - params[name].size : start
        ]
        np.testing.assert_allclose(part, np.reshape(block, part.shape), atol=1e-9)


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
@pytest.mark.parametrize("device", SIMULATORS)
def test_a_trajectory_is_pennylanes(device, approx, float64):
    start = _params(_entangling, dtype=np.float64)
    peer = qml.QNGOptimizer(0.1, approx=approx, lam=1e-3)
    energy = qml.QNode(_entangling, qml.device("default.qubit"), interface="autograd")
    weights = qml.numpy.array(start["weights"], requires_grad=True)
    optimizer = optax.chain(
        qsgd.scale_by_metric(qsgd.FubiniStudy(_qnode(_entangling, device), approx), 1e-3),
        optax.sgd(0.1),
    )
    own = _qnode(_entangling)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda x: own(**x))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, optimizer.init(start)
    for _ in range(5):
        weights = peer.step(energy, weights)
        params, state = step(params, state)
        np.testing.assert_allclose(params["weights"], weights, atol=1e-8)
    assert np.abs(np.asarray(weights) - start["weights"]).max() > 0.1


# Data, and where parameters stand


def _of_data(inputs, weights):
    qml.AngleEmbedding(0.5 * inputs, wires=WIRES)
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    qml.AngleEmbedding(inputs, wires=WIRES, rotation="Z")
    qml.BasicEntanglerLayers(weights[:, :, 0], wires=WIRES)
    return qml.expval(qml.Z(0))


@pytest.mark.parametrize("approx", [None, "block-diag"])
@pytest.mark.parametrize("device", SIMULATORS)
def test_of_data_it_is_the_mean_over_the_batch(device, approx, float64):
    params = {"weights": np.random.default_rng(0).normal(size=(1, N, 3))}
    batch = np.random.default_rng(1).normal(size=(2, N))
    metric = qsgd.FubiniStudy(_qnode(_of_data, device), approx)
    (found,) = metric.measure(params, batch)
    each = []
    for x in batch:
        if approx is None:
            each.append(
                _by_overlaps(
                    lambda weights, x=x: _state(_of_data)(inputs=x, weights=weights), params
                )
            )
            continue
        reference = qml.QNode(_of_data, qml.device("default.qubit"), interface="autograd")
        weights = qml.numpy.array(params["weights"], requires_grad=True)
        data = qml.numpy.array(x, requires_grad=False)
        each.append(
            np.reshape(qml.metric_tensor(reference, approx=approx)(data, weights), found.shape)
        )
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)
    (named,) = metric.measure(params, {"inputs": batch})
    np.testing.assert_array_equal(named, found)


class Hybrid(nnx.Module):
    """Two circuits among classical layers."""

    def __init__(self, rngs, device="default.qubit"):
        self.before = nnx.Linear(2, N, rngs=rngs)
        shapes = {"weights": (1, N, 3)}
        self.first = QuantumLayer(_qnode(_of_data, device), shapes, rngs=rngs)
        self.second = QuantumLayer(_qnode(_of_data, device), shapes, rngs=rngs)
        self.after = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x):
        h = self.before(x)
        return self.after(jnp.stack([self.first(h), self.second(2 * h)], axis=-1))


def _labels(params):
    def label(path, _):
        parent = jax.tree_util.keystr(path[:1], simple=True)
        return "quantum" if parent in ("first", "second") else "classical"

    return jax.tree_util.tree_map_with_path(label, params)


@pytest.mark.parametrize("device", SIMULATORS)
def test_layers_of_a_model_are_blocks_beside_classical_weights(device):
    model = Hybrid(nnx.Rngs(0), device)
    metric = qsgd.FubiniStudy({"first": model.first, "second": model.second})
    quantum = optax.chain(qsgd.scale_by_metric(metric, 1e-2), optax.sgd(0.1))
    optimizer = nnx.Optimizer(
        model,
        optax.partition({"quantum": quantum, "classical": optax.sgd(0.3)}, _labels),
        wrt=nnx.Param,
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model)
        h = model.before(x)
        optimizer.update(model, gradients, batch={"first": h, "second": 2 * h})
        return gradients

    before = nnx.state(model, nnx.Param)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(before))
    h = model.before(x)
    gradients = nnx.to_pure_dict(step(model, optimizer))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    np.testing.assert_allclose(
        after["before"]["kernel"],
        before["before"]["kernel"] - 0.3 * gradients["before"]["kernel"],
        atol=1e-6,
    )
    for name, data in (("first", h), ("second", 2 * h)):
        alone = qsgd.FubiniStudy(getattr(model, name))
        (g,) = alone.measure({"weights": jnp.asarray(before[name]["weights"])}, data)
        u = np.ravel(gradients[name]["weights"])
        expected = np.ravel(before[name]["weights"]) - 0.1 * np.linalg.solve(
            np.asarray(g, np.float64) + 1e-2 * np.eye(len(u)), u
        )
        np.testing.assert_allclose(np.ravel(after[name]["weights"]), expected, atol=1e-4)


def test_a_layer_is_found_wherever_it_stands():
    model = Hybrid(nnx.Rngs(0))
    metric = qsgd.FubiniStudy(model.first)
    masked = nnx.state(model, nnx.Param)
    for name in ("before", "second", "after"):
        del masked[name]
    (place,) = metric.find(masked)
    assert place.leaves == {"weights": 0}
    np.testing.assert_array_equal(
        metric.measure(masked, jnp.ones((2, N)))[0],
        metric.measure(nnx.state(model.first, nnx.Param), jnp.ones((2, N)))[0],
    )


# Gates of all kinds


def _of_peculiar_gates(a, b, c):
    qml.GlobalPhase(a)
    qml.RY(b, wires=0)
    qml.exp(qml.Z(0) @ qml.X(1), 0.5j * a)
    qml.evolve(qml.Y(1), c)
    qml.adjoint(qml.RX(b, wires=1))
    qml.ctrl(qml.RZ, control=0)(a, wires=2)
    qml.DoubleExcitation(c, wires=[0, 1, 2, 3])
    return qml.expval(qml.Z(0))


@pytest.mark.parametrize("device", SIMULATORS)
def test_peculiar_gates_are_those_of_overlaps(device, float64):
    rng = np.random.default_rng(3)
    params = {name: jnp.asarray(rng.uniform(-2, 2)) for name in "abc"}
    qnode = qml.QNode(_of_peculiar_gates, qml.device(device, wires=4))

    @qml.qnode(qml.device("default.qubit", wires=4))
    def state(**params):
        for gate in qml.tape.make_qscript(_of_peculiar_gates)(**params).operations:
            qml.apply(gate)
        return qml.state()

    (found,) = qsgd.FubiniStudy(qnode).measure(params)
    np.testing.assert_allclose(found, _by_overlaps(state, params), atol=1e-6)
    for approx in ("block-diag", "diag"):
        (part,) = qsgd.FubiniStudy(qnode, approx).measure(params)
        assert np.isfinite(part).all() and np.abs(part).max() > 1e-2


@pytest.mark.parametrize("approx", [None, "diag"])
@pytest.mark.parametrize("device", SIMULATORS)
def test_the_metric_has_derivatives(device, approx, float64):
    metric = qsgd.FubiniStudy(_qnode(_entangling, device), approx)
    weights = _params(_entangling, dtype=np.float64)["weights"]

    def total(x):
        return metric.measure({"weights": x})[0].sum()

    step = jnp.zeros_like(weights).at[0, 0, 1].set(1e-4)
    expected = (total(weights + step) - total(weights - step)) / 2e-4
    np.testing.assert_allclose(jax.grad(total)(weights)[0, 0, 1], expected, atol=1e-6)


def _prepared(w):
    qml.StatePrep(jnp.stack([jnp.cos(w[0]), jnp.sin(w[0])]), wires=0)
    qml.RY(w[1], wires=1)
    return qml.expval(qml.Z(0))


def _of_a_matrix(w):
    turn = jnp.array([[jnp.cos(w[0]), -jnp.sin(w[0])], [jnp.sin(w[0]), jnp.cos(w[0])]])
    qml.QubitUnitary(turn, wires=0)
    qml.RY(w[1], wires=1)
    return qml.expval(qml.Z(0))


def _of_a_power(w):
    qml.Hadamard(0)
    qml.pow(qml.Z(0), w[0])
    qml.RY(w[1], wires=1)
    return qml.expval(qml.Z(0))


def _of_a_coefficient(w):
    qml.Hadamard(0)
    qml.evolve(w[0] * qml.Z(0), 1.0)
    qml.RY(w[1], wires=1)
    return qml.expval(qml.Z(0))


def _of_moved_noise(w):
    qml.DepolarizingChannel(0.1 * w[0] ** 2, wires=0)
    qml.RY(w[1], wires=1)
    return qml.expval(qml.Z(0))


@pytest.mark.parametrize("device", SIMULATORS)
@pytest.mark.parametrize("circuit", [_prepared, _of_a_matrix, _of_a_power, _of_a_coefficient])
def test_what_moves_and_is_no_angle_is_refused(circuit, device):
    for approx in ("block-diag", None):
        if (device, approx) != ("default.qubit", None):
            with pytest.raises(ValueError, match="that the parameters move and that are no angle"):
                qsgd.FubiniStudy(_qnode(circuit, device), approx).measure({"w": jnp.ones(2)})


def test_moved_noise_is_refused():
    metric = qsgd.FubiniStudy(_qnode(_of_moved_noise, "default.mixed"), "diag")
    with pytest.raises(ValueError, match=r"Depolarizing.* that the parameters move"):
        metric.measure({"w": jnp.ones(2)})


def test_a_state_of_data_is_prepared(float64):
    def circuit(inputs, weights):
        qml.AmplitudeEmbedding(inputs, wires=WIRES, normalize=True)
        qml.StronglyEntanglingLayers(weights, wires=WIRES)
        return qml.expval(qml.Z(0))

    params = {"weights": np.random.default_rng(0).normal(size=(1, N, 3))}
    batch = np.random.default_rng(1).uniform(0.1, 1, size=(2, 2**N))
    found = [
        qsgd.FubiniStudy(_qnode(circuit, device)).measure(params, batch)[0] for device in SIMULATORS
    ]
    np.testing.assert_allclose(*found, atol=1e-9)


# How often it is measured


class _Counted:
    """A metric of its own: (1 + how many times it was measured) times one."""

    def __init__(self, every, decay):
        self.every, self.decay, self.times = every, decay, 0
        self._study = qsgd.FubiniStudy(_qnode(_shared))

    def find(self, params):
        return self._study.find(params)

    def measure(self, params, batch=None, *, key=None):
        def count():
            self.times += 1
            return np.float32(self.times)

        jax.debug.callback(lambda _: None, key)
        times = jax.pure_callback(lambda _: count(), jax.ShapeDtypeStruct((), jnp.float32), key)
        return [times * jnp.eye(4)]


@pytest.mark.parametrize(("every", "decay"), [(1, 0.0), (3, 0.0), (1, 0.5), (2, 0.9)])
def test_between_measurements_the_state_keeps_it(every, decay):
    metric = _Counted(every, decay)
    optimizer = qsgd.scale_by_metric(metric, 1.0)
    params = _params(_shared)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    expected, times = 0.0, 0
    for i in range(7):
        if i % every == 0:
            times += 1
            kept = decay if times > 1 else 0
            expected = kept * expected + (1 - kept) * times
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        np.testing.assert_allclose(updates["a"], 1 / (1 + expected), rtol=1e-6)
        np.testing.assert_allclose(state.metric[0], expected * np.eye(4), rtol=1e-6)
        assert state.count == i + 1
    assert metric.times == times


def test_a_measurement_is_one_call_to_the_device(monkeypatch):
    calls = []
    run = asking.Asked.answers
    monkeypatch.setattr(
        asking.Asked, "answers", lambda self, *args: calls.append(args[0].shape) or run(self, *args)
    )
    params, batch = {"weights": jnp.ones((1, N, 3))}, jnp.ones((4, N))
    for approx in (None, "block-diag", "diag"):
        qsgd.FubiniStudy(_qnode(_of_data, "lightning.qubit"), approx).measure(params, batch)
    assert [shape[0] for shape in calls] == [4, 4, 4]
    assert len(calls[0]) == 3  # each setting of each input


# What measures


@pytest.mark.parametrize("approx", ["block-diag", "diag"])
@pytest.mark.parametrize("device", SIMULATORS)
def test_measured_metrics_are_unbiased(device, approx):
    params, shots, repeats = _params(_controlled), 300, 100
    (exact,) = qsgd.FubiniStudy(_qnode(_controlled, device), approx).measure(params)
    metric = qsgd.FubiniStudy(_qnode(_controlled, device, shots), approx)

    @jax.jit
    def all_of_them(params):
        keys = jnp.arange(2 * repeats, dtype=jnp.uint32).reshape(-1, 2)
        return jax.lax.map(lambda key: metric.measure(params, key=key)[0], keys)

    found = np.asarray(all_of_them(params))
    assert len(np.unique(found.reshape(repeats, -1), axis=0)) > 0.9 * repeats
    error = found.std(0, ddof=1) / np.sqrt(repeats)
    assert error.max() > 1e-4
    assert (np.abs(found.mean(0) - exact) <= 5 * error + 1e-6).all()
    # Of so few shots that without the factor the mean would be half as large.
    few = qsgd.FubiniStudy(_qnode(_controlled, device, 2), approx)
    keys = jnp.arange(1200, dtype=jnp.uint32).reshape(-1, 2)
    trace = jax.jit(lambda x: jax.lax.map(lambda key: few.measure(x, key=key)[0].trace(), keys))
    found = np.asarray(trace(params))
    assert abs(found.mean() - exact.trace()) <= 5 * found.std(ddof=1) / np.sqrt(len(found))


def test_of_few_shots_a_resumed_state_goes_on():
    """Noise is the device's own: what is restored is exact, what follows measured anew."""
    metric = qsgd.FubiniStudy(
        _qnode(_shared, "lightning.qubit", 50), "block-diag", every=2, decay=0.5
    )
    optimizer = qsgd.scale_by_metric(metric, 0.1)
    params = _params(_shared)
    gradients, state = jax.tree.map(jnp.ones_like, params), optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(gradients, state, params)
    restored = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))
    ours, theirs = (optimizer.update(gradients, x, params) for x in (state, restored))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)  # its fourth step only keeps
    anew = [optimizer.update(gradients, x[1], params)[1].metric[0] for x in (ours, theirs)]
    assert np.abs(anew[0] - anew[1]).max() > 1e-3


WRAPPERS = {
    "inject_hyperparams": lambda metric: optax.inject_hyperparams(
        lambda damping: qsgd.scale_by_metric(metric, damping)
    )(damping=1e-2),
    "MultiSteps": lambda metric: optax.MultiSteps(qsgd.scale_by_metric(metric, 1e-2), 1),
    "apply_if_finite": lambda metric: optax.apply_if_finite(qsgd.scale_by_metric(metric, 1e-2), 3),
    "masked": lambda metric: optax.masked(
        qsgd.scale_by_metric(metric, 1e-2), {"a": True, "b": True}
    ),
    "chain": lambda metric: optax.chain(optax.identity(), qsgd.scale_by_metric(metric, 1e-2)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("device", SIMULATORS)
def test_wrappers_change_nothing(wrapper, device):
    metric = qsgd.FubiniStudy(_qnode(_shared, device), "block-diag", every=2)
    params = _params(_shared)
    gradients = jax.tree.map(lambda x: jnp.cos(x + 1), params)
    found, expected = (x for x in (wrapper(metric), qsgd.scale_by_metric(metric, 1e-2)))
    states = [x.init(params) for x in (found, expected)]
    for _ in range(3):
        (a, states[0]), (b, states[1]) = (
            jax.jit(x.update)(gradients, state, params)
            for x, state in zip((found, expected), states, strict=True)
        )
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)
        params = optax.apply_updates(params, jax.tree.map(lambda x: -0.05 * x, b))


def test_abstract_inputs_and_dtypes():
    optimizer = qsgd.scale_by_metric(qsgd.FubiniStudy(_qnode(_shared)))
    params = _params(_shared)
    abstract = jax.eval_shape(optimizer.init, params)
    assert [x.shape for x in abstract.metric] == [(4, 4)]
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    updates, state = optimizer.update(low, optimizer.init(low), low)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    assert state.metric[0].dtype == jnp.float32


@pytest.mark.parametrize("every", [1, 2])
def test_float32_parameters_stay_so_beside_float64(every, float64):
    optimizer = qsgd.scale_by_metric(qsgd.FubiniStudy(_qnode(_shared), every=every))
    params = _params(_shared)
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert state.metric[0].dtype == jnp.float32


@pytest.mark.parametrize("damping", [1e-8, 1e-5, None])
def test_small_damping_of_a_singular_metric_is_finite_and_bounded(damping):
    def circuit(weights):
        qml.StronglyEntanglingLayers(weights, wires=WIRES)
        return qml.expval(qml.Z(0))

    optimizer = qsgd.scale_by_metric(qsgd.FubiniStudy(_qnode(circuit)), damping)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        params = {"weights": jnp.asarray(rng.uniform(0, 6, (6, N, 3)), jnp.float32)}
        gradients = {"weights": jnp.asarray(rng.normal(size=(6, N, 3)), jnp.float32)}
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        length, before = (float(jnp.linalg.norm(x["weights"])) for x in (updates, gradients))
        assert 0 < length < np.inf
        assert damping is None or length <= 1.001 * before / damping


def test_the_pseudo_inverse_leaves_out_what_does_not_move():
    def circuit(a, b):
        qml.RX(a, wires=0)
        qml.RX(a + b, wires=0)  # only their sum matters
        return qml.expval(qml.Z(0))

    optimizer = qsgd.scale_by_metric(qsgd.FubiniStudy(_qnode(circuit)), damping=None)
    params = {"a": jnp.float32(0.3), "b": jnp.float32(0.4)}
    gradients = {"a": jnp.float32(2.0), "b": jnp.float32(1.0)}
    found, _ = optimizer.update(gradients, optimizer.init(params), params)
    g = np.outer([2, 1], [2, 1]) / 4
    expected = np.linalg.pinv(g) @ [2, 1]
    np.testing.assert_allclose([found["a"], found["b"]], expected, rtol=1e-5)


# Bad input


def _midway(weights):
    qml.RX(weights[0], wires=0)
    qml.measure(0)
    return qml.expval(qml.Z(0))


def _noisy(weights):
    qml.RX(weights[0], wires=0)
    qml.DepolarizingChannel(0.1, wires=0)
    return qml.expval(qml.Z(0))


def _still(weights):
    qml.Hadamard(0)
    return qml.expval(qml.Z(0))


ONE = {"weights": jnp.ones(1)}


@pytest.mark.parametrize(
    ("make", "params", "batch", "message"),
    [
        (lambda: qsgd.FubiniStudy(_qnode(_midway)), ONE, None, "_midway measures in the middle"),
        (lambda: qsgd.FubiniStudy(_qnode(_noisy, "default.mixed")), ONE, None, "channels of noise"),
        (
            lambda: qsgd.FubiniStudy(_qnode(_entangling, "default.mixed")),
            {"weights": jnp.ones((1, N, 3))},
            None,
            "density matrix",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_entangling, shots=10)),
            {"weights": jnp.ones((1, N, 3))},
            None,
            "has shots, and the whole metric needs states",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_still, "lightning.qubit"), "diag"),
            ONE,
            None,
            "_still has no gate that the parameters move",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_of_data)),
            {"weights": jnp.ones((1, N, 3))},
            None,
            r"takes \['inputs'\]: none is among the parameters",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_of_data)),
            {"weights": jnp.ones((1, N, 3))},
            {"x": 1},
            r"batch has \['x'\]; _of_data takes \['inputs'\]",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_of_data)),
            {"weights": jnp.ones((1, N, 3))},
            jnp.ones((0, N)),
            "must have one leading axis",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_of_data)),
            {"weights": jnp.ones((1, N, 3))},
            jnp.float32(1),
            "must have one leading axis",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_shared)),
            {"a": jnp.ones(3), "c": jnp.ones(3)},
            None,
            "leaf 'c'.*optax.partition",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_shared)),
            {"a": jnp.ones(3), "b": jnp.ones((1, 2))},
            None,
            "_shared has gates with arrays of angles",
        ),
        (lambda: qsgd.FubiniStudy(_qnode(_shared)), jnp.ones(3), None, "leaf ''.*optax.partition"),
        (lambda: qsgd.FubiniStudy(_qnode(_shared)), {}, None, r"params lack \['a', 'b'\]"),
        (
            lambda: qsgd.FubiniStudy(_qnode(_entangling)),
            {"x": {"weights": jnp.ones(3)}, "y": {"weights": jnp.ones(3)}},
            None,
            r"at \['x', 'y'\]; say which",
        ),
        (
            lambda: qsgd.FubiniStudy({"x": _qnode(_entangling)}),
            {"y": {"weights": jnp.ones(3)}},
            None,
            "leaf 'y.weights'.*optax.partition",
        ),
        (
            lambda: qsgd.FubiniStudy({"x": _qnode(_of_data)}),
            {"x": {"weights": jnp.ones((1, N, 3))}},
            jnp.ones((2, N)),
            "batch must be a mapping by circuit",
        ),
        (
            lambda: qsgd.FubiniStudy(_qnode(_entangling)),
            {"weights": jnp.ones((1, N, 3), int)},
            None,
            "must be an array of real numbers",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(make, params, batch, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make().measure(params, batch)


def test_an_error_does_not_print_a_whole_model():
    model = nnx.Sequential(*(nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for _ in range(20)))
    with pytest.raises(TypeError, match="of a model, its layer") as error:
        qsgd.FubiniStudy(model)
    assert "Sequential" in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("energy",), {}, TypeError, "circuit='energy'"),
        (({},), {}, ValueError, "must have a circuit"),
        ((_qnode(_entangling), "blocks"), {}, ValueError, "approx='blocks'"),
        ((_qnode(_entangling),), {"every": 0}, ValueError, "every=0"),
        ((_qnode(_entangling),), {"every": 1.5}, TypeError, "every=1.5"),
        ((_qnode(_entangling),), {"decay": 1.0}, ValueError, "decay=1.0"),
        ((_qnode(_entangling),), {"decay": "0"}, TypeError, "decay='0'"),
        ((_qnode(_entangling, shots=1), "diag"), {}, ValueError, "one shot"),
    ],
)
def test_bad_arguments_are_named_at_construction(arguments, options, error, message):
    with pytest.raises(error, match=message):
        qsgd.FubiniStudy(*arguments, **options)


@pytest.mark.parametrize("damping", [0, 0.0, -1e-3, float("nan"), float("inf"), jnp.ones(2)])
def test_damping_must_be_positive(damping):
    with pytest.raises(ValueError, match=r"damping=.* positive number, or None"):
        qsgd.scale_by_metric(qsgd.FubiniStudy(_qnode(_entangling)), damping)


def test_transformations_refuse_what_does_not_fit():
    study = qsgd.FubiniStudy(_qnode(_entangling))
    for bad in ("1", True):
        with pytest.raises(TypeError, match="damping="):
            qsgd.scale_by_metric(study, bad)
    with pytest.raises(TypeError, match="FubiniStudy"):
        qsgd.scale_by_metric(_qnode(_entangling))
    optimizer, params = qsgd.scale_by_metric(study), _params(_entangling)
    with pytest.raises(ValueError, match=r"'bias'.* by optax\.partition"):
        optimizer.init({**params, "bias": jnp.ones(3)})
    state = optimizer.init(params)
    with pytest.raises(TypeError, match=r"params\['weights'\]=0.3 must be an array"):
        optimizer.init({"weights": 0.3})
    with pytest.raises(ValueError, match="updates have None at"):
        optimizer.update({"weights": None}, state, params)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match="does not match"):
        optimizer.update({"weights": jnp.ones(3)}, state, params)
    other = qsgd.scale_by_metric(qsgd.FubiniStudy(_qnode(_shared))).init(_params(_shared))
    with pytest.raises(ValueError, match="state has an array"):
        optimizer.update(params, other, params)
