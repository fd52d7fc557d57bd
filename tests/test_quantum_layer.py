"""Any QNode as a layer, against the QNode itself under `vmap` on default.qubit."""

# Trees are typed as unions of all that a tree may be, which no access satisfies:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportIndexIssue=false

import copy
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pennylane as qml
import pytest
from flax import nnx

from qsgd_jax._src import host
from qsgd_jax._src.hybrid import asking, functions, gathering
from qsgd_jax.nn import QuantumLayer

N = 3
WIRES = range(N)
BOUNDS = {"float32": 1e-5, "float64": 1e-10}


def _signs():
    return [qml.expval(qml.Z(i)) for i in WIRES]


def _angle_embedding(inputs, weights):
    qml.AngleEmbedding(2 * jnp.arccos(jnp.tanh(inputs)), wires=WIRES, rotation="Y")
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    return _signs()


def _amplitude_embedding(inputs, weights):
    qml.AmplitudeEmbedding(inputs, wires=WIRES, pad_with=0.0, normalize=True)
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    return _signs()


def _prepared_by_gates(inputs, weights):
    state = jnp.append(inputs, 0.5)
    qml.MottonenStatePreparation(state / jnp.linalg.norm(state), wires=[0, 1])
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    return qml.expval(qml.Z(0) @ qml.Z(2))


def _iqp_embedding(inputs, weights):
    qml.IQPEmbedding(inputs, wires=WIRES, n_repeats=2)
    qml.BasicEntanglerLayers(weights, wires=WIRES)
    return _signs()


def _two_design(inputs, initial, weights):
    qml.AngleEmbedding(inputs, wires=WIRES)
    qml.SimplifiedTwoDesign(initial, weights, wires=WIRES)
    return qml.expval(qml.Z(0)), qml.expval(qml.X(1) @ qml.Y(2))


def _qaoa_embedding(inputs, weights):
    qml.QAOAEmbedding(inputs, weights, wires=WIRES)
    return _signs()


def _controlled_rotations(inputs, weights):
    for wire in WIRES:
        qml.Hadamard(wire)
    qml.CRX(inputs[0], wires=[0, 1])
    qml.ControlledPhaseShift(inputs[1], wires=[1, 2])
    qml.CRot(weights[0], weights[1], weights[2], wires=[2, 0])
    qml.ctrl(qml.RY, control=0)(inputs[2] * weights[3], wires=1)
    qml.IsingXX(weights[4], wires=[0, 2])
    qml.PauliRot(weights[5], "XYZ", wires=WIRES)
    qml.SingleExcitation(weights[6], wires=[1, 2])
    qml.U3(weights[7], inputs[0], weights[0], wires=1)
    return _signs()


HAMILTONIAN = 0.3 * qml.Z(0) @ qml.X(1) + 0.2 * qml.Y(2) - 0.5 * qml.Z(1)


def _hamiltonian(inputs, weights):
    qml.AngleEmbedding(inputs, wires=WIRES)
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    return qml.expval(HAMILTONIAN)


def _probabilities(inputs, weights):
    qml.AngleEmbedding(inputs, wires=WIRES)
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    return qml.probs(wires=[2, 0])


def _several(inputs, weights):
    qml.AngleEmbedding(inputs, wires=WIRES)
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    return qml.expval(HAMILTONIAN), qml.probs(wires=[0, 1]), qml.var(qml.Z(2)), qml.var(qml.X(0))


DEEP = {"weights": (2, N, 3)}
CIRCUITS = {
    _angle_embedding: DEEP,
    _amplitude_embedding: DEEP,
    _prepared_by_gates: DEEP,
    _iqp_embedding: {"weights": (2, N)},
    _two_design: {"initial": N, "weights": (2, N - 1, 2)},
    _qaoa_embedding: {"weights": (2, 2 * N)},
    _controlled_rotations: {"weights": 8},
    _hamiltonian: DEEP,
    _probabilities: DEEP,
    _several: DEEP,
}
NO_DERIVATIVE = {_amplitude_embedding}


def _qnode(circuit, device="lightning.qubit", shots=None, wires=N, **options):
    qnode = qml.QNode(circuit, qml.device(device, wires=wires), **options)
    return qnode if shots is None else qml.set_shots(qnode, shots)


def _layer(circuit=_angle_embedding, device="lightning.qubit", shots=None, seed=0, **options):
    shapes = CIRCUITS.get(circuit, DEEP)
    rngs = nnx.Rngs(seed, shots=seed + 1)
    return QuantumLayer(_qnode(circuit, device, shots), shapes, rngs=rngs, **options)


def _inputs(*lead, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*lead, N)), dtype)


def _weights(layer):
    return {name: getattr(layer, name)[...] for name in layer.weight_names}


def _reference(circuit, inputs, weights):
    """PennyLane alone: the QNode on default.qubit, of one input after the other."""
    qnode = _qnode(circuit, "default.qubit", interface="jax", diff_method="backprop")

    def one(x):
        found = qnode(x, **weights)
        leaves = found if isinstance(found, (tuple, list)) else [found]
        return jnp.concatenate([jnp.ravel(x) for x in leaves])

    with warnings.catch_warnings():  # PennyLane asks for complex128 at any precision
        warnings.simplefilter("ignore")
        return jax.jit(jax.vmap(one))(inputs)


@pytest.fixture
def calls(monkeypatch):
    """The circuits of each call to a device."""
    counted = []
    for name in ("execute", "execute_and_compute_derivatives"):
        of_device = getattr(qml.device("lightning.qubit").__class__, name)

        def counting(self, circuits, *args, of_device=of_device, **options):
            counted.append(len(circuits))
            return of_device(self, circuits, *args, **options)

        monkeypatch.setattr(type(qml.device("lightning.qubit")), name, counting)
    return counted


@pytest.fixture
def passes(monkeypatch):
    """One entry for each time that a device is asked."""
    counted, run = [], asking.Asked._run

    def counting(self, *args):
        counted.append(1)
        return run(self, *args)

    monkeypatch.setattr(asking.Asked, "_run", counting)
    return counted


@pytest.mark.parametrize(
    ("circuit", "device"),
    [
        *((circuit, "lightning.qubit") for circuit in CIRCUITS),
        (_amplitude_embedding, "default.qubit"),
        (_several, "default.qubit"),
    ],
)
def test_answers_and_derivatives_are_those_of_the_qnode_under_vmap(circuit, device, dtype):
    layer = _layer(circuit, device, param_dtype=dtype)
    inputs, bound = _inputs(4, dtype=dtype), BOUNDS[dtype.name]
    graph, state = nnx.split(layer)
    expected = _reference(circuit, inputs, _weights(layer))
    found = layer(inputs)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=bound, rtol=0)

    def size(answers):
        answers = answers.reshape(expected.shape)
        return jnp.sum(jnp.sin(answers * jnp.arange(1, 1 + answers.size).reshape(answers.shape)))

    def of_layer(state, x):
        return size(nnx.merge(graph, state)(x))

    def of_qnode(weights, x):
        return size(_reference(circuit, x, weights))

    both = (0,) if circuit in NO_DERIVATIVE and device != "default.qubit" else (0, 1)
    ours = jax.jit(jax.grad(of_layer, both))(state, inputs)
    theirs = jax.grad(of_qnode, both)(_weights(layer), inputs)
    for name in layer.weight_names:
        np.testing.assert_allclose(ours[0][name][...], theirs[0][name], atol=20 * bound, rtol=0)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=20 * bound, rtol=0)


@pytest.mark.parametrize("device", ["lightning.qubit", "lightning.kokkos"])
def test_second_derivatives_are_those_of_the_qnode(device, float64):
    if device == "lightning.kokkos":
        pytest.importorskip("pennylane_lightning.lightning_kokkos_ops")
    layer = _layer(_controlled_rotations, device, param_dtype=float64)
    x, weights = _inputs(dtype=float64), _weights(layer)
    found = jax.jit(jax.hessian(lambda x: layer(x).sum()))(x)
    expected = jax.hessian(lambda x: _reference(_controlled_rotations, x[None], weights).sum())(x)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("circuit", [_angle_embedding, _several])
def test_a_pass_is_one_call_to_the_device(circuit, passes):
    layer, inputs = _layer(circuit), _inputs(2, 5)
    graph, state = nnx.split(layer)

    def of_layer(state, x):
        return nnx.merge(graph, state)(x).sum()

    for function in (
        layer,
        jax.jit(layer),
        jax.vmap(layer),
        jax.jit(jax.vmap(jax.vmap(layer))),
        functools.partial(jax.jit(jax.value_and_grad(of_layer)), state),
        functools.partial(jax.jit(jax.value_and_grad(of_layer, (0, 1))), state),
        functools.partial(jax.jit(jax.grad(jax.checkpoint(of_layer))), state),
    ):
        passes.clear()
        jax.block_until_ready(function(inputs))
        assert len(passes) == 1


def test_a_pass_has_a_circuit_for_each_input(calls):
    layer, inputs = _layer(), _inputs(2, 5)
    jax.block_until_ready(layer(inputs))
    assert calls[-1] == 10


def test_large_batches_go_in_parts_of_bounded_size(calls, monkeypatch):
    monkeypatch.setattr(asking, "MAX_BATCH", 4)
    assert host.MAX_BATCH > 4
    layer, inputs = _layer(), _inputs(10)
    np.testing.assert_allclose(
        layer(inputs), _reference(_angle_embedding, inputs, _weights(layer)), atol=1e-5
    )
    assert max(calls) == 4


def test_scanned_layers_ask_once_each(passes):
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return QuantumLayer(qnode, DEEP, rngs=nnx.Rngs(key))

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def forward(layer, x):
        return layer(x)

    qnode, inputs = _qnode(_angle_embedding), _inputs(5)
    layers = make(jax.random.split(jax.random.key(0), 3))
    found = nnx.jit(forward)(layers, inputs)
    assert len(passes) == 3
    expected = inputs
    for weights in layers.weights[...]:
        expected = _reference(_angle_embedding, expected, {"weights": weights})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_stacked_layers_under_vmap_ask_once(passes):
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return QuantumLayer(qnode, DEEP, rngs=nnx.Rngs(key))

    qnode, inputs = _qnode(_angle_embedding), _inputs(5)
    layers = make(jax.random.split(jax.random.key(0), 3))
    found = nnx.jit(nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None)))(layers, inputs)
    assert len(passes) == 1
    for answers, weights in zip(found, layers.weights[...], strict=True):
        expected = _reference(_angle_embedding, inputs, {"weights": weights})
        np.testing.assert_allclose(answers, expected, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (0,), (2, 3, 1)])
@pytest.mark.parametrize("device", ["lightning.qubit", "default.qubit"])
def test_leading_axes_of_any_number(lead, device):
    layer, inputs = _layer(device=device), _inputs(*lead)
    found = layer(inputs)
    assert found.shape == (*lead, N)
    expected = _reference(_angle_embedding, inputs.reshape(-1, N), _weights(layer))
    np.testing.assert_allclose(found.reshape(-1, N), expected, atol=1e-5)


def test_one_answer_has_no_axis_of_its_own():
    assert _layer(_hamiltonian)(_inputs(4)).shape == (4,)
    assert _layer(_probabilities)(_inputs(4)).shape == (4, 4)
    assert _layer(_several)(_inputs(4)).shape == (4, 1 + 4 + 1 + 1)


def test_bfloat16_around_it_and_float32_within():
    layer, inputs = _layer(), _inputs(4).astype(jnp.bfloat16)
    found = layer(inputs)
    assert found.dtype == jnp.bfloat16
    exact = layer(inputs.astype(jnp.float32))
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_inputs_may_be_integers_and_have_another_name():
    def circuit(features, weights):
        qml.BasisEmbedding(features, wires=WIRES)
        qml.StronglyEntanglingLayers(weights, wires=WIRES)
        return _signs()

    bits = jnp.array([[0, 1, 1], [1, 0, 1]])
    layers = [
        QuantumLayer(_qnode(circuit, device), DEEP, input_name="features", rngs=nnx.Rngs(0))
        for device in ("lightning.qubit", "default.qubit")
    ]
    np.testing.assert_allclose(layers[0](bits), layers[1](bits), atol=1e-5)
    assert jnp.abs(layers[0](bits)[0] - layers[0](bits)[1]).max() > 1e-3


def test_arguments_with_a_default_keep_it():
    def circuit(inputs, weights, turns=2.0):
        qml.AngleEmbedding(turns * inputs, wires=WIRES)
        qml.StronglyEntanglingLayers(weights, wires=WIRES)
        return _signs()

    layer, inputs = _layer(circuit), _inputs(4)
    expected = _reference(circuit, inputs, _weights(layer))
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-5)


MOVES = {
    "slices": lambda x: [x[1:, ::2], x[0, -1], x[..., 1]],
    "reshaped": lambda x: [x.T[2], jax.lax.reshape(x, (2, 6), (1, 0))[1], x.reshape(3, 2, 2)[2, 1]],
    "computed": lambda x: [jnp.sin(x)[1, 1], (2 * x[0])[2], x.sum(), jnp.float32(3)],
    "whole": lambda x: [x],
    "none": lambda x: [],
}


@pytest.mark.parametrize("moves", MOVES.values(), ids=MOVES)
def test_gathered_numbers_are_those_of_the_function(moves):
    x = jnp.arange(12.0).reshape(3, 4)

    def found(x):
        return gathering.gathered(lambda x: (moves(x), {"rest": x[1]}), x, dtype=jnp.float32)

    def expected(x):
        leaves = [jnp.ravel(y) for y in moves(x)]
        return jnp.concatenate([jnp.zeros(0), *leaves]), {"rest": x[1]}

    for function in (lambda f: f, jax.jit, jax.jacobian):
        jax.tree.map(np.testing.assert_allclose, function(found)(x), function(expected)(x))


def test_a_program_does_not_grow_with_the_number_of_weights():
    """So that its time to compile does not."""

    def length(depth):
        layer = QuantumLayer(_qnode(_angle_embedding), {"weights": (depth, N, 3)}, rngs=nnx.Rngs(0))
        loss = nnx.jit(nnx.grad(lambda layer, x: layer(x).sum()))
        return len(str(loss.lower(layer, _inputs(4)).compile().as_text()).splitlines())

    assert length(1) == length(5)


# What measures


@pytest.mark.parametrize(
    ("circuit", "device"), [(_hamiltonian, "lightning.qubit"), (_probabilities, "default.qubit")]
)
def test_measured_answers_and_derivatives_are_unbiased(circuit, device):
    repeats, shots = 40, 50
    measured, exact = _layer(circuit, device, shots), _layer(circuit, "default.qubit")
    inputs = _inputs(repeats).at[:].set(_inputs())

    def slope(layer, x):
        answers = layer(x)
        return jnp.sum(answers * jnp.arange(1.0, 1 + answers.size))

    for function in (
        lambda layer, x: layer(x),
        nnx.vmap(nnx.grad(slope, argnums=1), in_axes=(None, 0)),
    ):
        found = np.asarray(function(measured, inputs)).reshape(repeats, -1)
        expected = np.asarray(function(exact, inputs[:1])).reshape(-1)
        error = found.std(0, ddof=1) / np.sqrt(repeats)
        assert found.std(0).max() > 0.01
        assert (np.abs(found.mean(0) - expected) <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("device", ["lightning.qubit", "default.qubit"])
def test_noise_never_freezes(device):
    """In a compiled loop at one point, and after a checkpoint."""
    layer, x = _layer(_hamiltonian, device, shots=10_000), _inputs(8)

    @nnx.jit
    def six(layer):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def body(layer, _):
            return layer, layer(x)

        return body(layer, jnp.arange(6))[1]

    # Rows of eight values: of counted shots a single one repeats by chance.
    assert len(np.unique(six(layer), axis=0)) == 6
    graph, state = nnx.split(layer)
    restored = nnx.merge(graph, jax.tree.map(lambda x: x, state))
    assert len(np.unique(np.concatenate([six(restored), six(restored)]), axis=0)) == 12


# Flax


class Hybrid(nnx.Module):
    """Classical layers around a circuit."""

    def __init__(self, rngs, **options):
        self.before = nnx.Linear(2, N, rngs=rngs)
        self.circuit = QuantumLayer(_qnode(_angle_embedding, **options), DEEP, rngs=rngs)
        self.after = nnx.Linear(N, 1, rngs=rngs)

    def __call__(self, x):
        return self.after(self.circuit(jnp.tanh(self.before(x))))


X = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))


def _train(model, steps=5):
    optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    return [float(step(model, optimizer)) for _ in range(steps)]


def test_a_hybrid_model_trains_as_on_default_qubit(passes):
    model = Hybrid(nnx.Rngs(0))
    losses = _train(model)
    assert len(passes) == 5
    np.testing.assert_allclose(
        losses, _train(Hybrid(nnx.Rngs(0), device="default.qubit")), rtol=1e-3
    )
    assert losses[-1] < losses[0]


def test_it_is_saved_by_orbax_and_copied(tmp_path):
    model = Hybrid(nnx.Rngs(0))
    _train(model, 2)
    graph, state = nnx.split(model)
    saver = ocp.StandardCheckpointer()
    saver.save(tmp_path / "state", state)
    saver.wait_until_finished()
    restored = nnx.merge(graph, saver.restore(tmp_path / "state", jax.eval_shape(lambda: state)))
    for other in (restored, copy.deepcopy(model), nnx.clone(model)):
        np.testing.assert_array_equal(other(X), model(X))
    other = copy.deepcopy(model)
    other.circuit.weights[...] = jnp.zeros((2, N, 3))
    assert jnp.abs(model.circuit.weights[...]).max() > 0


def test_in_linen_by_the_bridge():
    module = nnx.bridge.ToLinen(QuantumLayer, args=(_qnode(_angle_embedding), DEEP))
    inputs = _inputs(4)
    found, variables = module.init_with_output(jax.random.key(0), inputs)
    weights = jax.tree.leaves(variables["params"])[0]
    expected = _reference(_angle_embedding, inputs, {"weights": weights})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_initial_weights():
    layer = _layer(_two_design)
    assert layer.initial.shape == (N,)
    assert 0 <= layer.weights[...].min() < layer.weights[...].max() < 2 * np.pi
    chosen = {"initial": nnx.initializers.ones, "weights": np.full((2, N - 1, 2), 0.5)}
    layer = _layer(_two_design, weight_init=chosen)
    np.testing.assert_array_equal(layer.initial[...], np.ones(N))
    np.testing.assert_array_equal(layer.weights[...], chosen["weights"])
    assert (_layer(_two_design, weight_init=nnx.initializers.zeros).weights[...] == 0).all()


def test_as_torch_layer_one_stands_for_a_scalar():
    def circuit(inputs, angle, row, rest):
        qml.RX(angle, wires=0)
        qml.AngleEmbedding(row + inputs, wires=[0])
        qml.AngleEmbedding(rest, wires=[1, 2])
        return qml.expval(qml.Z(0))

    layer = QuantumLayer(_qnode(circuit), {"angle": 1, "row": (1,), "rest": 2}, rngs=nnx.Rngs(0))
    assert [getattr(layer, name).shape for name in layer.weight_names] == [(), (1,), (2,)]


# What devices do in their own ways


def _constant_matrix(inputs, weights):
    """Which lightning's adjoint method does not count."""
    qml.RY(weights[0, 0, 0], wires=0)
    qml.DiagonalQubitUnitary(np.array([1, 1j]), wires=0)
    qml.CRot(0.1, 0.2, 0.3, wires=[0, 1])
    qml.Rot(0.1, 0.2, 0.3, wires=0)
    qml.RX(inputs[0], wires=0)
    return _signs()


def _orbital_rotation(inputs, weights):
    qml.BasisState(np.array([1, 1, 0, 0]), wires=range(4))
    qml.OrbitalRotation(inputs[0], wires=range(4))
    qml.RX(weights[0, 0, 0], wires=0)
    return qml.expval(qml.Z(0)), qml.expval(qml.Z(2))


def _evolution(inputs, weights):
    qml.Hadamard(0)
    qml.evolve(qml.X(0) @ qml.Y(1), inputs[0])
    qml.RX(weights[0, 0, 0], wires=2)
    return _signs()


def _product(inputs, weights):
    qml.prod(qml.RX(inputs[0], 0), qml.RY(inputs[1], 1))
    qml.ctrl(qml.RX(weights[0, 0, 0], 2), control=[0, 1])
    return _signs()


def _broadcast(inputs, weights):
    qml.RX(inputs, wires=0)
    qml.RY(weights[0, 0, 0], wires=0)
    return qml.expval(qml.Z(0))


ANGLE, MATRIX = jnp.float32(0.3), jnp.array([[0, 1], [1, 0]], complex)


def _constants_of_jax(inputs, weights):
    qml.RX(ANGLE, wires=0)
    qml.QubitUnitary(MATRIX, wires=0)
    qml.RY(inputs[0] + weights[0, 0, 0], wires=0)
    return qml.expval(qml.Z(0))


PECULIAR = [
    _constant_matrix,
    _orbital_rotation,
    _evolution,
    _product,
    _broadcast,
    _constants_of_jax,
]


@pytest.mark.parametrize("circuit", PECULIAR)
def test_peculiar_gates_are_those_of_default_qubit(circuit):
    layers = [
        QuantumLayer(_qnode(circuit, device, wires=4), DEEP, rngs=nnx.Rngs(0))
        for device in ("lightning.qubit", "default.qubit")
    ]
    inputs = _inputs(4)
    found, expected = (layer(inputs) for layer in layers)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    weights = jnp.arange(1.0, 1 + found.size).reshape(found.shape)

    def slopes(layer):
        return nnx.grad(lambda m, x: jnp.sum(weights * m(x)), argnums=(0, 1))(layer, inputs)

    for a, b in zip(*map(jax.tree.leaves, map(slopes, layers)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("circuit", [_product, _broadcast, _constants_of_jax, _several])
def test_peculiar_gates_are_measured(circuit):
    measured, exact = (
        QuantumLayer(qnode, DEEP, rngs=nnx.Rngs(0))
        for qnode in (_qnode(circuit, "default.qubit", 20_000), _qnode(circuit, "default.qubit"))
    )
    inputs = _inputs(4)
    np.testing.assert_allclose(measured(inputs), exact(inputs), atol=0.06)
    slopes = [nnx.grad(lambda m, x: m(x).sum(), argnums=1)(m, inputs) for m in (measured, exact)]
    np.testing.assert_allclose(*slopes, atol=0.2)


def test_a_device_keeps_no_states_of_passes_that_are_over():
    layer, inputs = _layer(), _inputs(4)
    layer(inputs)
    for step in range(3):
        jax.block_until_ready(jax.grad(lambda x: layer(x).sum())(inputs + step))
    assert not layer.qnode.device._intermediate_states


@pytest.mark.parametrize("device", ["lightning.qubit", "default.qubit"])
def test_answers_come_in_the_order_of_the_qnode(device):
    def named(inputs):
        qml.RX(inputs[0], 0)
        return {"b": qml.expval(qml.Z(0)), "a": qml.expval(qml.Z(1))}

    def swapped(inputs):
        first = qml.expval(qml.Z(0))
        return qml.expval(qml.Z(1)), first

    x = jnp.ones(1)
    found = QuantumLayer(_qnode(named, device), {}, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(found, [np.cos(1), 1], atol=1e-6)
    with pytest.raises(ValueError, match="in the order they are measured"):
        QuantumLayer(_qnode(swapped, device), {}, rngs=nnx.Rngs(0))(x)


@pytest.mark.parametrize("frequencies", [(1.0,), (0.5, 1.0), (1.0, 3.0), (0.5, 1.0, 1.5, 2.0)])
def test_shifts_differentiate_sines_of_their_frequencies(frequencies):
    rng = np.random.default_rng(0)
    amplitudes, phases = rng.normal(size=(2, len(frequencies)))

    def value(x):
        return np.sum(amplitudes * np.sin(np.array(frequencies) * x + phases))

    slope = np.sum(
        amplitudes * np.array(frequencies) * np.cos(np.array(frequencies) * 0.4 + phases)
    )
    found = sum(c * value(0.4 + s) for c, s in functions._rule(frequencies))
    assert found == pytest.approx(slope, abs=1e-9)


# Bad input


def _no_inputs(weights):
    qml.StronglyEntanglingLayers(weights, wires=WIRES)
    return _signs()


def _any_number(inputs, *weights):
    return _signs()


def _loop(inputs, weights):
    for _ in range(int(inputs[0])):
        qml.Hadamard(0)
    return _signs()


def _branch(inputs, weights):
    if weights[0, 0, 0] > 1:
        qml.Hadamard(0)
    return _signs()


def _midway(inputs, weights):
    qml.AngleEmbedding(inputs, wires=WIRES)
    qml.cond(qml.measure(0), qml.X)(1)
    return _signs()


def _state(inputs, weights):
    return qml.state()


def _samples(inputs, weights):
    return qml.sample(wires=0)


def _traced_observable(inputs, weights):
    return qml.expval(inputs[0] * qml.Z(0))


def _of_numpy(inputs, weights):
    qml.RX(np.sin(inputs[0]), wires=0)
    return _signs()


def _index(inputs, weights):
    [qml.RX, qml.RY][jnp.int32(inputs[0])](0.1, 0)
    return _signs()


def _nothing(inputs, weights):
    qml.RX(0.1, 0)


def _for_batches(inputs, weights):
    qml.RX(inputs[:, 0], wires=0)
    return _signs()


@pytest.mark.parametrize(
    ("circuit", "shapes", "options", "error", "message"),
    [
        (_angle_embedding, [("weights", 3)], {}, TypeError, "weight_shapes=.* must be a mapping"),
        (_angle_embedding, {"weights": (2, -1)}, {}, ValueError, r"weight_shapes\['weights'\]=-1"),
        (_angle_embedding, {"weights": 2.5}, {}, TypeError, r"weight_shapes\['weights'\]=2\.5"),
        (_angle_embedding, {}, {}, ValueError, "weight_shapes has no weights, which"),
        (_angle_embedding, {**DEEP, "phi": 2}, {}, ValueError, "weight_shapes has phi; "),
        (_angle_embedding, {**DEEP, "inputs": 2}, {}, ValueError, "'inputs', which is the input"),
        (_no_inputs, DEEP, {}, ValueError, "no_inputs has no argument 'inputs'"),
        (_angle_embedding, DEEP, {"input_name": "x"}, ValueError, "no argument 'x'"),
        (_any_number, {}, {}, TypeError, r"takes \*args"),
        (
            _angle_embedding,
            DEEP,
            {"weight_init": np.ones(2)},
            ValueError,
            r"\(2,\), not \(2, 3, 3\)",
        ),
        (_angle_embedding, DEEP, {"weight_init": {"w": 0.0}}, ValueError, "weight_init has w; "),
        (_angle_embedding, DEEP, {"param_dtype": int}, TypeError, "must be a floating type"),
        (_angle_embedding, DEEP, {"rngs": 0}, TypeError, "rngs=0 must be flax.nnx.Rngs"),
    ],
)
def test_bad_arguments_are_named_at_construction(circuit, shapes, options, error, message):
    with pytest.raises(error, match=message):
        QuantumLayer(_qnode(circuit), shapes, **{"rngs": nnx.Rngs(0), **options})


def test_what_is_no_qnode_is_refused():
    with pytest.raises(TypeError, match=r"must be a pennylane\.QNode"):
        QuantumLayer(_angle_embedding, DEEP, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["qnode", "rngs", "shots", "train", "_held"])
def test_a_weight_may_not_hide_what_a_layer_has(name):
    def circuit(inputs, **weights):
        return _signs()

    with pytest.raises(ValueError, match=f"a weight '{name}' would hide"):
        QuantumLayer(_qnode(circuit), {name: 2}, rngs=nnx.Rngs(0))


def test_a_partial_of_a_function_is_a_circuit():
    def circuit(inputs, weights, turns):
        qml.RX(turns * weights + inputs[0], 0)
        return qml.expval(qml.Z(0))

    qnode = _qnode(functools.partial(circuit, turns=2.0))
    layer = QuantumLayer(qnode, {"weights": 1}, rngs=nnx.Rngs(0))
    expected = np.cos(2 * layer.weights[...] + 0.5)
    np.testing.assert_allclose(layer(jnp.array([0.5])), expected, atol=1e-6)


def test_a_device_that_measures_the_same_each_time_is_refused():
    device = qml.device("default.qubit", wires=N, seed=jax.random.key(0))
    qnode = qml.set_shots(qml.QNode(_angle_embedding, device), 10)
    with pytest.raises(ValueError, match="a JAX key for a seed"):
        QuantumLayer(qnode, DEEP, rngs=nnx.Rngs(0))


def test_a_device_that_has_samples_instead_is_refused():
    layer = QuantumLayer(_qnode(_several, "reference.qubit", 100), DEEP, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"_several answers sample"):
        layer(_inputs())


def test_shots_must_be_one_number():
    with pytest.raises(ValueError, match="angle_embedding has a vector of shots"):
        QuantumLayer(_qnode(_angle_embedding, shots=[10, 20]), DEEP, rngs=nnx.Rngs(0))


def test_a_device_that_can_only_measure_needs_shots():
    pytest.importorskip("pennylane_qiskit")
    with pytest.raises(ValueError, match=r"has no shots, and .* can only measure"):
        QuantumLayer(_qnode(_angle_embedding, "qiskit.aer"), DEEP, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("device", ["lightning.qubit", "default.qubit"])
@pytest.mark.parametrize(
    ("circuit", "message"),
    [
        (_loop, "_loop: its structure depends on the values"),
        (_branch, "_branch: its structure depends on the values"),
        (_index, "_index: its structure depends on the values"),
        (_of_numpy, "_of_numpy: it calls NumPy on its arguments; allowed is jax.numpy"),
        (_nothing, "_nothing fails at one input, with .*measurement"),
        (_midway, "^_midway measures in the middle"),
        (_state, "^_state answers state.*allowed are qml.expval"),
        (_samples, "^_samples answers sample.*allowed are qml.expval"),
        (_traced_observable, "measures a .* of numbers that JAX computes"),
        (_for_batches, r"_for_batches fails at one input, with inputs of \(3,\), weights of"),
    ],
)
def test_what_cannot_be_traced_is_refused_by_name(circuit, message, device):
    with pytest.raises(ValueError, match=message):
        _layer(circuit, device)(_inputs(4))


@pytest.mark.parametrize("device", ["lightning.qubit", "default.qubit"])
def test_shapes_that_do_not_fit_are_named(device):
    layer = QuantumLayer(_qnode(_angle_embedding, device), {"weights": (2, N)}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"angle_embedding fails at .*, weights of \(2, 3\)"):
        layer(_inputs(4))
    with pytest.raises(ValueError, match=r"fails at one input, with inputs of \(7,\)"):
        _layer(device=device)(jnp.ones((4, 7)))
    with pytest.raises(ValueError, match="must have an axis of features"):
        _layer(device=device)(jnp.float32(1))


def test_a_state_has_no_derivative_on_a_device():
    with pytest.raises(
        NotImplementedError, match=r"allowed is default\.qubit without shots, or .* by gates"
    ):
        jax.grad(lambda x: _layer(_amplitude_embedding)(x).sum())(_inputs(4))
