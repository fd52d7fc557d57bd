"""The training step against plain JAX, on meshes, in float16; and the memory that it needs."""

# optax and jax type what they take and return more widely than what it is here:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import P

import qsgd_jax as qsgd
from benchmarks.llm import memory
from benchmarks.llm.checkpoints import load_model, load_parameters, open_checkpoint
from benchmarks.llm.llama import PRESETS
from benchmarks.llm.rows import Batch, Example, Problem, fill
from benchmarks.llm.training import Layout, LossScale, losses_per_row, new_state, train_step

# LLVM's optimizations take most of the time that compiling takes.
QUICK: dict[str, bool | str] = {"xla_backend_optimization_level": "0"}
LENGTH = 24


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)

    def ids(n):
        return rng.integers(256, size=n).tolist()

    return [Example(Problem("q", "a"), ids(3 + i), ids(2 + 2 * i)) for i in range(4)]


@pytest.fixture(scope="module")
def split(tiny):
    return nnx.split(load_model(open_checkpoint(tiny)))


def optimizer(quantum_weight=0.5, coverage="everywhere", weigh="gradient"):
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        qsgd.superpositional_adamw(
            1e-2,
            quantum_weight=quantum_weight,
            weigh=weigh,
            coverage=coverage,
        ),
    )


def filled(examples, rows, shape):
    batch = fill(examples, rows, (int(np.prod(shape[:-1])), shape[-1]))
    return jax.tree.map(lambda x: jnp.asarray(x.reshape(shape)), batch)


def step(graph, chain, state, batch):
    jitted = jax.jit(train_step, static_argnums=(0, 1), compiler_options=QUICK)
    return jitted(graph, chain, state, batch)


@pytest.mark.slow
def test_the_loss_is_the_mean_over_answers_whatever_rows_they_lie_in(split, examples):
    graph, params = split
    model = jax.jit(nnx.merge(graph, params))
    total = count = 0
    for example in examples:
        ids = np.array(example.prompt + example.answer)
        logits = np.asarray(model(jnp.asarray(ids)[None])[0], np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        first = len(example.prompt)
        total -= sum(logs[t - 1, ids[t]] for t in range(first, len(ids)))
        count += len(example.answer)

    chain, after = optimizer(), []
    for rows, shape in (
        ([[0], [1], [2], [3]], (1, 4, LENGTH)),
        ([[3], [1], [0], [2]], (2, 2, LENGTH)),  # accumulated
        ([[0, 1], [2], [3]], (1, 3, LENGTH)),  # packed
        ([[2], [0, 1], [3]], (2, 2, LENGTH)),  # a row of padding is left
    ):
        batch = filled(examples, rows, shape)
        state, figures = step(graph, chain, new_state(params, chain, "float32"), batch)
        np.testing.assert_allclose(figures["loss"], total / count, rtol=1e-5)
        after.append((figures["gradient_norm"], state.opt_state))
    for norm, opt_state in after[1:]:
        np.testing.assert_allclose(norm, after[0][0], rtol=1e-4)
        compare = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)  # noqa: E731
        jax.tree.map(compare, opt_state, after[0][1])


def test_a_step_is_optax_on_the_gradient_of_that_loss(split, examples):
    graph, params = split
    chain = optimizer()
    batch = filled(examples, [[0], [1]], (1, 2, LENGTH))
    state, figures = step(graph, chain, new_state(params, chain, "float32"), batch)

    def loss(params):
        logits = nnx.merge(graph, params)(batch.tokens[0], batch.segments[0])
        logs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logs, batch.targets[0][..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * batch.weights[0]) / 6  # tokens of both answers

    gradients = jax.jit(jax.grad(loss))(params)
    updates, _ = chain.update(gradients, chain.init(params), params)
    np.testing.assert_allclose(figures["gradient_norm"], optax.tree.norm(gradients), rtol=1e-5)
    # Adam's first step is ± the learning rate: where a gradient is nearly 0, rounding has the say.
    clear = jax.tree.map(lambda g: np.abs(g) > 1e-5, gradients)
    for mine, theirs, where in zip(
        *map(jax.tree.leaves, (state.params, optax.apply_updates(params, updates), clear)),
        strict=True,
    ):
        np.testing.assert_allclose(mine[where], theirs[where], atol=2e-5)
    assert not figures["skipped"]


def test_losses_per_row(split, examples):
    graph, params = split
    batch = filled(examples, [[0], [1], [2]], (3, LENGTH))
    losses, counts = jax.jit(losses_per_row, static_argnums=0)(graph, params, batch)
    np.testing.assert_array_equal(counts, [2, 4, 6])
    for row in range(3):
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        one, _ = losses_per_row(graph, params, alone)
        np.testing.assert_allclose(losses[row], one[0], rtol=1e-5)


@pytest.mark.slow
def test_on_a_mesh_it_is_that_of_one_device(tiny, split, examples):
    graph, params = split
    checkpoint, chain = open_checkpoint(tiny), optimizer()
    layout = Layout.over((4, 2), checkpoint.config, rows=8)
    state = new_state(load_parameters(checkpoint, layout.parameter), chain, "float32")
    expected = new_state(params, chain, "float32")
    kernel = state.params["blocks"][0]["query"]["kernel"][...]
    assert kernel.sharding.spec == P(None, "model")
    assert kernel.addressable_shards[0].data.shape == (32, 16)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
    assert any(leaf.sharding == kernel.sharding for leaf in moments)
    batch = fill(examples, [[i % 4] for i in range(7)], (8, LENGTH))
    batch = jax.tree.map(lambda x: x.reshape(1, 8, LENGTH), batch)
    for _ in range(3):
        expected, one = step(graph, chain, expected, batch)
        state, many = step(graph, chain, state, layout.batch(batch))
        np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-5)
        np.testing.assert_allclose(many["gradient_norm"], one["gradient_norm"], rtol=1e-3)
    assert layout.batch(batch).tokens.addressable_shards[0].data.shape == (1, 2, LENGTH)


@pytest.mark.parametrize(
    ("sizes", "rows", "words"),
    [
        ((16, 1), 16, "--mesh 16 1 needs 16 devices; there are 8"),
        ((4, 1), 6, "--batch-size 6 must be a multiple of the mesh's data axis, 4"),
        ((1, 4), 1, "model axis, 4, must divide num_key_value_heads=2"),
    ],
)
def test_meshes_that_do_not_divide_are_refused(sizes, rows, words):
    with pytest.raises(ValueError, match=words):
        Layout.over(sizes, PRESETS["tiny"], rows)


# Precisions


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_narrow_arithmetic_learns_as_float32_does(tiny, split, examples, precision):
    graph = nnx.split(load_model(open_checkpoint(tiny), dtype=jnp.dtype(precision)))[0]
    batch = filled(examples, [[0], [1], [2]], (1, 3, LENGTH))
    losses, norms = {}, {}
    for name, structure in (("float32", split[0]), (precision, graph)):
        chain = optimizer()
        state = new_state(split[1], chain, name)
        losses[name], norms[name] = [], []
        for _ in range(5):
            state, figures = step(structure, chain, state, batch)
            losses[name].append(float(figures["loss"]))
            norms[name].append(float(figures["gradient_norm"]))
            assert not figures["skipped"]
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert losses["float32"][-1] < 0.8 * losses["float32"][0]
    np.testing.assert_allclose(losses[precision], losses["float32"], rtol=0.05)
    np.testing.assert_allclose(norms[precision], norms["float32"], rtol=0.2)


def test_a_float16_step_that_overflows_is_skipped_and_the_scale_halved(tiny, split, examples):
    graph = nnx.split(load_model(open_checkpoint(tiny), dtype=jnp.float16))[0]
    chain = optimizer()
    before = new_state(split[1], chain, "float16")
    before = before.replace(loss_scale=LossScale(jnp.float32(2.0**24), jnp.int32(7)))
    batch = filled(examples, [[0], [1]], (1, 2, LENGTH))
    after, figures = step(graph, chain, before, batch)
    assert figures["skipped"]
    assert float(after.loss_scale.scale) == 2.0**23
    assert int(after.loss_scale.finite_steps) == 0
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)
    np.testing.assert_allclose(figures["loss"], jnp.float32(figures["loss"]))
    assert np.isfinite(figures["loss"])


def test_the_scale_doubles_after_two_thousand_finite_steps():
    scale = LossScale(jnp.float32(8), jnp.int32(0))
    adjusted = jax.jit(LossScale.adjusted)
    for _ in range(1999):
        scale = adjusted(scale, jnp.bool_(True))
    assert float(scale.scale) == 8
    scale = adjusted(scale, jnp.bool_(True))
    assert (float(scale.scale), int(scale.finite_steps)) == (16, 0)


# Memory


def planned(chain, layout=None, rows=1):
    graph, state, batch = memory.abstract_training(
        PRESETS["tiny"], chain, "float32", layout or Layout(), (1, rows, 128)
    )
    compiled = memory.compiled_step(graph, chain, state, batch)
    return memory.compiled_memory(compiled, state.params)


@pytest.mark.slow
@pytest.mark.parametrize("weigh", ["gradient", "update"])
def test_superposition_needs_no_more_memory_than_adamw(weigh):
    adamw = planned(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)))
    assert adamw.state == pytest.approx(3 * adamw.parameters, rel=0.1)  # and two moments
    assert planned(optimizer(coverage="leading", weigh=weigh)).peak <= 1.05 * adamw.peak


@pytest.mark.slow
def test_memory_on_a_mesh_is_that_of_one_device():
    chain = optax.adamw(1e-2)
    whole = planned(chain, rows=4)
    half = planned(chain, Layout.over((4, 2), PRESETS["tiny"], 4), rows=4)
    assert half.parameters == pytest.approx(whole.parameters / 2, rel=0.05)
    assert half.state < 0.6 * whole.state
    assert half.temporary < 0.6 * whole.temporary


def test_what_does_not_fit_is_refused_with_what_would():
    gib = 2**30
    needed = memory.Memory(parameters=4 * gib, state=12 * gib, temporary=8 * gib)
    memory.check(needed, 20 * gib, context=2048, rows=2)
    for free, words in (
        (18, "needs 20.00 GiB a device and 18.00 are free: 16.00 .* 4.00 for 2 x 2048"),
        (18, "about --context 1024"),
        (16.1, "about --batch-size 1 --accumulate 2 --context 64"),
        (10, "about 2 such devices, --mesh 1 2"),
        (5, "about 4 such devices, --mesh 1 4"),
    ):
        with pytest.raises(memory.DoesNotFitError, match=words):
            memory.check(needed, int(free * gib), context=2048, rows=2)


def test_a_batch_is_a_tree():
    batch = fill([], [], (1, 2))
    assert isinstance(jax.tree.map(jnp.asarray, batch), Batch)
    assert len(jax.tree.leaves(batch)) == 4
