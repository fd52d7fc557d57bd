"""Quantum attention against one circuit for each score, and against Flax's own attention."""

import functools
import re
from typing import Any

import autograd
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from flax import nnx
from flax.nnx import bridge
from jax import P
from jax.sharding import AxisType, NamedSharding

from benchmarks import attention_figures, attention_reference
from qsgd_jax.nn import QuantumAttention
from tests.combinations import covering

# LLVM's optimizations take most of the time, and no part in what is computed.
quick_jit: Any = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": "0"}
)
differentiate: Any = autograd.grad
reference: Any = attention_reference  # it takes the arrays of any library
READOUTS = ("amplitude", "probability")
CAUSAL = np.tril(np.ones((5, 5), bool))


def inputs(rng, *, batch=(2,), queries=5, keys=5, heads=2, key_heads=None, features=3, channels=4):
    key_heads = heads if key_heads is None else key_heads
    return (
        rng.normal(size=(*batch, queries, heads, features)),
        rng.normal(size=(*batch, keys, key_heads, features)),
        rng.normal(size=(*batch, keys, key_heads, channels)),
    )


def make(n_qubits=2, depth=1, **options) -> Any:
    random: dict[str, Any] = {"angle_init": nnx.initializers.uniform(2 * np.pi)}
    return QuantumAttention(n_qubits, depth, rngs=nnx.Rngs(0), **(random | options))


def with_angles(attention, angles) -> Any:
    graph, params, rest = nnx.split(attention, nnx.Param, ...)
    copies = jax.tree.map(lambda x: x, rest)  # of its counters, at the level of the caller's trace
    return nnx.merge(graph, jax.tree.map(lambda _: angles, params), copies)


@jax.jit
def phi(attention, x) -> Any:
    return attention.phi(x)


def captured(layer, x) -> Any:
    """What the layer sows in a call."""
    return attention_figures.captured(lambda layer, x: layer(x, sow_weights=True), layer, x)


def value_and_slopes(attention, arrays, cotangent, **options):
    """The output and what it says of queries, keys, values and angles."""

    @quick_jit
    def both(arrays, angles):
        def call(arrays, angles):
            return with_angles(attention, angles)(*arrays, **options)

        output, pull = jax.vjp(call, arrays, angles)
        return output, pull(cotangent.astype(output.dtype))

    output, ((query, key, value), angles) = both(arrays, attention.angles[...])
    return output, query, key, value, angles


@pytest.mark.parametrize(
    ("device", "n_qubits", "depth", "readout"),
    [("lightning.qubit", *row) for row in covering([(2, 3, 4), (1, 2, 3), READOUTS])]
    + [
        pytest.param("lightning.qubit", *row, marks=pytest.mark.slow)
        for row in covering([(5, 6), (1, 2, 3), READOUTS])
    ]
    # Its simulation is compiled: 6 qubits of depth 3 take 25 s.
    + [("default.qubit", 2, 1, "amplitude"), ("default.qubit", 3, 1, "probability")]
    + [pytest.param("default.qubit", 4, 2, "amplitude", marks=pytest.mark.slow)],
)
def test_equals_one_circuit_a_score(float64, device, n_qubits, depth, readout):
    rng = np.random.default_rng(10 * n_qubits + depth)
    arrays = inputs(rng, queries=4)
    attention = make(n_qubits, depth, readout=readout, device=device)
    angles = rng.uniform(-np.pi, np.pi, (depth, n_qubits, 2)).astype(np.float32)
    cotangent = rng.normal(size=(2, 4, 2, 4)).astype(np.float32)
    arrays = [x.astype(np.float32) for x in arrays]  # so that both precisions see the same

    def loss(*arguments):
        return (reference.attention(*arguments, readout)[0] * cotangent).sum()

    wide = [x.astype(np.float64) for x in (*arrays, angles)]
    expected = [reference.attention(*wide, readout)[0]]
    expected += differentiate(loss, argnum=(0, 1, 2, 3))(*wide)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.float64, 1e-12)):
        own = with_angles(attention, jnp.asarray(angles, dtype))
        found = value_and_slopes(own, [jnp.asarray(x, dtype) for x in arrays], cotangent)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            # A derivative is a sum over scores; its rounding grows with what is summed.
            scale = max(1.0, np.abs(other).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("n_qubits", [1, 3])
def test_phi_begins_at_zero_and_can_leave_it(n_qubits):
    attention = make(n_qubits, 2, angle_init=None, num_heads=2)
    x = jnp.linspace(-9, 9, 50)
    assert np.abs(phi(attention, x)).max() < 2e-6
    slope = jax.jit(jax.grad(lambda a: with_angles(attention, a).phi(x)[:, 7].sum()))(
        attention.angles[...]
    )
    assert np.abs(slope[..., 1]).max() > 1e-2


@pytest.mark.parametrize("readout", READOUTS)
def test_heads_with_circuits_of_their_own_equal_the_oracle_head_by_head(readout):
    rng = np.random.default_rng(1)
    arrays = inputs(rng)
    attention = make(2, 2, readout=readout, num_heads=2)
    assert attention.angles.shape == (2, 2, 2, 2)
    found = jax.jit(functools.partial(attention, mask=CAUSAL))(*arrays)
    for head in range(2):
        angles = np.asarray(attention.angles[head], np.float64)
        one = [x[..., head : head + 1, :] for x in arrays]
        expected, _ = reference.attention(*one, angles, readout, CAUSAL)
        np.testing.assert_allclose(found[..., head : head + 1, :], expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": CAUSAL},
        {"is_causal": True},
        {"is_causal": True, "mask": np.array([True, True, False, True, True])},
        {"mask": np.zeros((5, 5), bool) | (np.arange(5) < 3)[:, None]},  # two rows see nothing
        {"dropout_rate": 0.4, "dropout_rng": jax.random.key(3)},
        {"dropout_rate": 0.4, "dropout_rng": jax.random.key(3), "broadcast_dropout": False},
        {"dropout_rate": 0.4, "dropout_rng": jax.random.key(3), "deterministic": True},
    ],
)
def test_without_phi_it_is_flax_attention(options):
    rng = np.random.default_rng(2)
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs(rng, channels=3)]
    cotangent = rng.normal(size=(2, 5, 2, 3)).astype(np.float32)
    attention = make(2, 2, angle_init=None)  # the default begins there
    assert np.abs(phi(attention, np.linspace(-9, 9, 99, dtype=np.float32))).max() < 1e-6
    found, *slopes = value_and_slopes(attention, arrays, cotangent, **options)
    if options.pop("is_causal", False):  # Flax 0.12.0 does not know it
        options["mask"] = CAUSAL & options.get("mask", True)
    if "mask" in options:
        options["mask"] = jnp.broadcast_to(options["mask"], (2, 2, 5, 5))

    @jax.jit
    def flax_attention(*arrays):
        output, pull = jax.vjp(lambda *a: nnx.dot_product_attention(*a, **options), *arrays)
        return output, pull(cotangent)

    expected, expected_slopes = flax_attention(*arrays)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for one, other in zip(slopes[:3], expected_slopes, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


def test_dropout_acts_on_the_sum_of_both_weights():
    rng = np.random.default_rng(3)
    attention, (query, key, value) = make(), inputs(rng)
    value = np.broadcast_to(np.eye(5)[:, None], (2, 5, 2, 5))  # the output is the weights
    angles = np.asarray(attention.angles[...], np.float64)
    whole = reference.attention(query, key, value, angles, "amplitude")[0]
    options = {"dropout_rate": 0.5, "dropout_rng": jax.random.key(1), "broadcast_dropout": False}
    dropped = np.asarray(attention(query, key, value, **options))
    kept = dropped != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(dropped[kept], 2 * whole[kept], atol=1e-5)


def test_key_heads_may_be_shared_and_batches_have_any_rank():
    rng = np.random.default_rng(4)
    attention = make()
    query, key, value = inputs(rng, batch=(2, 3), heads=4, key_heads=2)
    found = attention(query, key, value)
    whole = query[1], *(x[1].repeat(2, axis=-2) for x in (key, value))
    angles = np.asarray(attention.angles[...], np.float64)
    assert found.shape == (2, 3, 5, 4, 4)
    expected, _ = reference.attention(*whole, angles, "amplitude")
    np.testing.assert_allclose(found[1], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"mask": CAUSAL}])
def test_the_future_does_not_leak(options):
    """Outputs up to a position, and derivatives of them, know nothing of what comes later."""
    rng = np.random.default_rng(5)
    layer = nnx.MultiHeadAttention(
        2, 6, decode=False, rngs=nnx.Rngs(0), attention_fn=make(2, 1, readout="probability")
    )
    x = jnp.asarray(rng.normal(size=(1, 5, 6)), jnp.float32)

    def attend(x):
        heads = layer.query(x), layer.key(x), layer.value(x)
        return layer.out(layer.attention_fn(*heads, **options))

    # Of each output by each input.
    slope = quick_jit(jax.jacrev(lambda x: attend(x)[0].sum(-1)))(x)[:, 0]
    call = quick_jit(attend)
    before = call(x)
    for position in range(1, 5):
        after = call(x.at[:, position:].add(rng.normal(size=(1, 5 - position, 6))))
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert np.abs(after - before)[:, position:].max() > 1e-3
        assert not slope[:position, position:].any() and slope[position, :position].any()


def test_what_the_mask_forbids_may_be_anything():
    rng = np.random.default_rng(6)
    query, key, value = inputs(rng)
    key[:, 3] = np.nan
    mask = np.arange(5) != 3
    arrays = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
    found = value_and_slopes(make(), arrays, np.ones((2, 5, 2, 4)), mask=mask)
    clean = [arrays[0], arrays[1].at[:, 3].set(0.0), arrays[2]]
    expected = value_and_slopes(make(), clean, np.ones((2, 5, 2, 4)), mask=mask)
    for one, other in zip(found[::2], expected[::2], strict=True):  # output, keys, angles
        np.testing.assert_array_equal(one[:, :3], other[:, :3])
        assert np.isfinite(one[:, :3]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_spoils_its_query_only_as_in_plain_attention(bad):
    query, key, value = inputs(np.random.default_rng(7), channels=3)
    query[0, 2, 1] = bad
    calls: tuple[Any, ...] = make(), nnx.dot_product_attention
    for call in calls:
        output = np.asarray(call(*(jnp.asarray(x) for x in (query, key, value))))
        expected = np.zeros((2, 5, 2), bool)
        expected[0, 2, 1] = True
        np.testing.assert_array_equal(np.isnan(output).any(-1), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_phi_is_float32_where_the_inputs_are_narrow(dtype):
    """Scores of some hundred, at which a bfloat16 phase would be anything."""
    rng = np.random.default_rng(8)
    x = jnp.asarray(rng.normal(size=(2, 5, 8)), dtype)
    layer = nnx.MultiHeadAttention(
        2, 8, decode=False, dtype=dtype, rngs=nnx.Rngs(0), attention_fn=make(4, 2)
    )
    layer.query.kernel[...] *= 60
    sown = captured(layer, x)
    query, key = (np.asarray(y, np.float64) for y in (layer.query(x), layer.key(x)))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key)
    assert np.abs(scores).max() > 100
    expected = reference.phi(scores, np.asarray(make(4, 2).angles[...], np.float64), "amplitude")
    phi = sown["quantum_attention_weights"][0]
    assert phi.dtype == jnp.float32 and layer(x).dtype == dtype
    np.testing.assert_allclose(phi, expected, atol=3e-4)  # the sum of products is float32's


@pytest.mark.parametrize(("readout", "runs"), [("amplitude", 9), ("probability", 17)])
def test_circuits_a_pass_do_not_depend_on_batch_heads_or_length(readout, runs):
    device = qml.device("lightning.qubit", wires=4)
    attention = make(4, 2, readout=readout, device=device)
    rng = np.random.default_rng(9)
    for shape in ({}, {"batch": (4, 3), "heads": 8, "queries": 17, "keys": 9}):
        arrays = inputs(rng, **shape)
        call = quick_jit(attention)
        jax.block_until_ready(call(*arrays))
        with qml.Tracker(device) as tracker:
            jax.block_until_ready(call(*arrays))
        assert tracker.totals["executions"] == runs
    own = make(4, 2, readout=readout, device=device, num_heads=2)
    with qml.Tracker(device) as tracker:
        jax.block_until_ready(own(*inputs(rng)))
    assert tracker.totals["executions"] == 2 * runs


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("num_heads", [None, 2])
def test_a_wider_host_device_says_the_same(readout, num_heads):
    """Two wires more, with names: the circuit takes the first, the others rest."""
    device = qml.device("lightning.qubit", wires=["a", "b", "c", "d"])
    rng = np.random.default_rng(10)
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs(rng)]
    options = {"readout": readout, "num_heads": num_heads}
    host, traced = make(2, 1, device=device, **options), make(2, 1, **options)
    cotangent = rng.normal(size=(2, 5, 2, 4))
    for one, other in zip(
        value_and_slopes(host, arrays, cotangent),
        value_and_slopes(traced, arrays, cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_measured_probabilities_are_fresh_in_each_pass_and_unbiased():
    shots, passes = 100, 150
    attention = make(2, 1, readout="probability", device="lightning.qubit", shots=shots)
    exact = make(2, 1, readout="probability")
    x = jnp.linspace(-2, 2, 5)
    graph, state = nnx.split(attention)

    @quick_jit
    def repeat(state):
        def step(state, _):
            model = nnx.merge(graph, state)

            def loss(angles):
                return with_angles(model, angles).phi(x).sum()

            slope = jax.grad(loss)(model.angles[...])
            phi = model.phi(x)
            return nnx.state(model), (phi, slope)

        return jax.lax.scan(step, state, length=passes)[1]

    phi, slopes = (np.asarray(y) for y in repeat(state))
    assert len(np.unique(phi[:, 0])) > passes / 4  # a frozen sample would be one value
    expected = (
        exact.phi(x),
        jax.grad(lambda a: with_angles(exact, a).phi(x).sum())(exact.angles[...]),
    )
    for samples, mean in zip((phi, slopes), expected, strict=True):
        error = samples.std(0) / np.sqrt(passes)
        assert (np.abs(samples.mean(0) - mean) < 5 * error + 1e-6).all()
    # Each run is a binomial of two bits' first two states; the dual basis adds their variances.
    assert 0.2 / np.sqrt(shots) < phi.std() < 3 / np.sqrt(shots) + np.std(expected[0])


def test_phi_and_its_spectrum_are_what_pennylane_finds():
    attention = make(3, 1, readout="probability")
    angles = np.asarray(attention.angles[...], np.float64)
    found = attention.coefficients()
    expected = qml.fourier.coefficients(
        lambda x: reference.phi(np.asarray(x), angles, "probability").item(), 1, 3
    )[:4]
    np.testing.assert_allclose(found[0], expected.real * [1, 2, 2, 2], atol=1e-6)
    np.testing.assert_allclose(found[1], -2 * expected.imag, atol=1e-6)
    np.testing.assert_allclose(attention.spectrum(), np.abs(expected) * [1, 2, 2, 2], atol=1e-6)
    np.testing.assert_array_equal(attention.frequencies, [0, 1, 2, 3])
    x = np.linspace(-7, 7, 30).reshape(2, 15)
    np.testing.assert_allclose(attention.phi(x), reference.phi(x, angles, "probability"), atol=1e-6)


def test_the_size_of_phi_can_be_watched():
    attention = make(4, 2)
    layer = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0), attention_fn=attention)
    x = jnp.asarray(np.random.default_rng(11).normal(size=(2, 5, 6)), jnp.float32)
    sown = captured(layer, x)
    weights, phi = (sown[name][0] for name in ("attention_weights", "quantum_attention_weights"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", layer.query(x), layer.key(x))
    np.testing.assert_allclose(phi, attention.phi(scores), atol=1e-5)
    np.testing.assert_allclose((weights - phi).sum(-1), 1, atol=1e-5)


def test_no_tensor_is_larger_than_the_scores():
    """Neither forward nor backward, and of the passing ones there are few."""
    arrays = [jnp.zeros((4, 64, 2, 8))] * 3
    scores = 4 * 2 * 64 * 64
    attention, cotangent = make(4, 2), jnp.ones((4, 64, 2, 8))

    def both(*arrays):
        def call(angles, *arrays):
            return with_angles(attention, angles)(*arrays)

        output, pull = jax.vjp(call, attention.angles[...], *arrays)
        return output, pull(cotangent)

    compiled: Any = jax.jit(both).lower(*arrays).compile()
    _, _, program = compiled.as_text().partition("ENTRY")
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for shape in re.findall(r"f32\[([\d,]+)\]", program)
    ]
    assert max(sizes) == scores
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * 4 * scores


LAYOUTS = {
    "batch": P("data"),
    "heads": P(None, None, "model"),
    "queries": P(None, "data"),
    "batch and heads": P("data", None, "model"),
}


@functools.cache
def on_one_device():
    rng = np.random.default_rng(14)
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs(rng, batch=(4,), queries=32, keys=32)]
    cotangent = rng.normal(size=(4, 32, 2, 4)).astype(np.float32)
    attention = make(2, 1, num_heads=2)
    found = value_and_slopes(attention, arrays, cotangent, is_causal=True)
    return attention, arrays, cotangent, found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_a_mesh_it_is_that_of_one_device(layout):
    """Queries cut finer, too, than the rows that a loop of the backward pass takes at a time."""
    attention, arrays, cotangent, expected = on_one_device()
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    placed = [jax.device_put(x, NamedSharding(mesh, LAYOUTS[layout])) for x in arrays]
    with jax.set_mesh(mesh):
        found = value_and_slopes(attention, placed, cotangent, is_causal=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_second_derivatives_and_batches_of_models():
    rng = np.random.default_rng(12)
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs(rng, batch=(), queries=2, keys=3)]
    attention = make(2, 1)

    def loss(angles):
        return (with_angles(attention, angles)(*arrays) ** 2).sum()

    angles = jnp.asarray(rng.normal(size=(3, 1, 2, 2)), jnp.float32)
    slopes = quick_jit(jax.vmap(jax.grad(loss)))(angles)
    hessian = quick_jit(jax.hessian(loss))(angles[0]).reshape(4, 4)
    slope = quick_jit(jax.grad(loss))
    for i in range(3):
        np.testing.assert_allclose(slopes[i], slope(angles[i]), atol=1e-5)
    steps = 1e-2 * np.eye(4).reshape(4, 1, 2, 2)
    differences = [(slope(angles[0] + h) - slope(angles[0] - h)).ravel() / 2e-2 for h in steps]
    np.testing.assert_allclose(hessian, differences, atol=5e-3 * np.abs(hessian).max())


def test_it_serves_linen_by_the_bridge():
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs(np.random.default_rng(13))]
    linen = bridge.to_linen(QuantumAttention, 2, 1)
    variables = linen.init(jax.random.key(0), *arrays)
    (angles,) = jax.tree.leaves(variables["params"])
    found = linen.apply(variables, *arrays)
    np.testing.assert_array_equal(found, with_angles(make(), angles)(*arrays))
    layer = flax.linen.MultiHeadDotProductAttention(2, attention_fn=linen)
    x = jnp.ones((2, 5, 6))
    variables = layer.init(jax.random.key(0), x)
    assert np.isfinite(np.asarray(layer.apply(variables, x))).all()


def test_two_that_are_alike_share_a_compiled_step():
    one, other = make(device="lightning.qubit"), make(device="lightning.qubit")
    assert nnx.graphdef(one) == nnx.graphdef(other)
    assert set(nnx.to_flat_state(nnx.state(one)).paths) == {("angles",)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_qubits": 0}, ValueError, r"n_qubits=0 must be an integer in \[1, 20\]"),
        ({"n_qubits": 2.0}, TypeError, "n_qubits=2.0"),
        ({"depth": 0}, ValueError, "depth=0"),
        ({"depth": True}, TypeError, "depth=True"),
        ({"n_qubits": 4, "depth": 33}, ValueError, r"depth=33 .*\[1, 32\]"),
        ({"readout": "phase"}, ValueError, "readout='phase' must be 'amplitude' or 'probability'"),
        ({"num_heads": 0}, ValueError, "num_heads=0"),
        ({"shots": 0, "readout": "probability"}, ValueError, "shots=0"),
        ({"shots": 10}, ValueError, "readout='amplitude': .* measures"),
        ({"device": "no.device"}, ValueError, "device='no.device' is not installed"),
        ({"device": 3}, TypeError, "device=3"),
        ({"device": qml.device("lightning.qubit", wires=1)}, ValueError, "has 1 wires"),
        ({"device": ["default.qubit"]}, TypeError, r"device=\['default.qubit'\]"),
        ({"device": "default.mixed"}, ValueError, "'default.mixed' cannot answer its amplitudes"),
        pytest.param(
            {"device": "default.qutrit", "readout": "probability"},
            ValueError,
            "'default.qutrit' cannot answer its probabilities",
            marks=pytest.mark.filterwarnings("ignore:Operator .* does not define"),
        ),
        ({"param_dtype": jnp.int32}, TypeError, "param_dtype=.*int32.* must be a floating"),
        ({"angle_init": lambda *_: jnp.zeros(3)}, ValueError, r"angle_init gave .*\(3,\), not"),
    ],
)
def test_bad_arguments_are_refused_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        make(**({"n_qubits": 2, "depth": 1} | options))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(5, 2, 3), (1, 5, 2, 3), (5, 2, 3)], "do not fit"),
        ([(5, 3), (5, 3), (5, 3)], "do not fit"),
        ([(2, 5, 2, 3), (3, 5, 2, 3), (2, 5, 2, 3)], "do not fit"),
        ([(5, 2, 3), (5, 2, 4), (5, 2, 3)], "do not fit"),
        ([(5, 2, 3), (5, 2, 3), (6, 2, 3)], "do not fit"),
        ([(5, 3, 3), (5, 2, 3), (5, 2, 3)], "2 heads of key must divide query's 3"),
        ([(5, 4, 3), (5, 4, 3), (5, 4, 3)], "num_heads=2 circuits; query has 4 heads"),
    ],
)
def test_wrong_shapes_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        make(num_heads=2)(*(jnp.zeros(shape) for shape in shapes))


def test_dropout_without_a_key_is_refused():
    with pytest.raises(ValueError, match=r"dropout_rate=0.5 .*dropout_rng"):
        make()(*inputs(np.random.default_rng(0)), dropout_rate=0.5)


@pytest.mark.parametrize("shape", [(1, 1, 2, 2, 5, 5), (6, 1, 5, 5), (4, 5)])
def test_a_mask_that_does_not_broadcast_to_the_scores_is_refused(shape):
    arrays = inputs(np.random.default_rng(0), batch=(1,))
    with pytest.raises(ValueError, match=r"mask has shape .* broadcasts to"):
        make()(*arrays, mask=np.ones(shape, bool))


@pytest.mark.parametrize("sizes", [{"batch": (0,)}, {"queries": 0}, {"keys": 0}])
def test_nothing_to_attend_has_a_derivative_too(sizes):
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs(np.random.default_rng(0), **sizes)]
    shape = (*arrays[0].shape[:-1], 4)
    output, *slopes = value_and_slopes(make(), arrays, np.ones(shape))
    assert output.shape == shape
    assert not any(slope.any() for slope in slopes)


OLD_JAX = pytest.mark.xfail(
    not hasattr(jax.lax, "pcast"), reason="jax 0.7.1: see Caveats", raises=TypeError, strict=True
)


@pytest.mark.parametrize(
    "device", ["default.qubit", pytest.param("lightning.qubit", marks=OLD_JAX)]
)
def test_in_a_shard_map_derivatives_are_those_outside(device):
    rng = np.random.default_rng(15)
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs(rng, batch=(2,))]
    attention, cotangent = make(2, 1, device=device), np.ones((2, 5, 2, 4), np.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def both(angles, arrays):
        def call(angles, arrays):
            return with_angles(attention, angles)(*arrays, is_causal=True)

        split = jax.shard_map(call, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
        output, pull = jax.vjp(split, angles, arrays)
        return output, *pull(cotangent)

    output, angles, slopes = quick_jit(both)(attention.angles[...], arrays)
    expected = value_and_slopes(attention, arrays, cotangent, is_causal=True)
    for one, other in zip((output, *slopes, angles), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_an_instance_that_brings_shots_is_differentiated_by_measuring():
    with pytest.warns(qml.exceptions.PennyLaneDeprecationWarning):
        device = qml.device("default.qubit", wires=2, shots=2000)
        several = qml.device("default.qubit", wires=2, shots=(5, 6))
    with pytest.raises(ValueError, match="a vector of shots"):
        make(2, 1, readout="probability", device=several)
    attention = make(2, 1, readout="probability", device=device)
    exact = make(2, 1, readout="probability")
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs(np.random.default_rng(16))]
    arguments = arrays, np.ones((2, 5, 2, 4), np.float32)
    for one, other in zip(
        value_and_slopes(attention, *arguments), value_and_slopes(exact, *arguments), strict=True
    ):
        error = np.abs(one - other).max()
        assert 0 < error < 0.2 * np.abs(other).max()
