"""Training on a mesh against one device, XLA's collectives, and two processes against one.

As a script, this file is one of the two processes.
"""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

import collections
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding

import qsgd_jax as qsgd
from qsgd_jax._src import blocks
from tests import meshes


def _products(n, readout="expectation"):
    """Of angles 0 only the CNOTs are left: ⟨Z_j⟩ = sin πθ_1 … sin πθ_j, quick to compile."""
    return qsgd.probe(qsgd.Circuit(n, depth=1, angles=np.zeros((1, n, 2))), readout=readout)


PLAIN = qsgd.probe(qsgd.Circuit())
SAMPLED_PAIRS = qsgd.sampled(_products(2, "probabilities"), shots=2)
# By name: a surrogate and a coverage.
WEIGHTS = {
    "leading": (PLAIN, "leading"),
    "leading, entangled": (_products(4), "leading"),
    "leading, shots": (SAMPLED_PAIRS, "leading"),
    "everywhere": (PLAIN, "everywhere"),
    "everywhere, pairs, shots": (SAMPLED_PAIRS, "everywhere"),
    "everywhere, triples": (_products(3), "everywhere"),
    "everywhere, fours": (_products(4), "everywhere"),
}


def _adamw(learning_rate, surrogate, coverage, weigh="gradient"):
    return qsgd.superpositional_adamw(
        learning_rate, weigh=weigh, surrogate=surrogate, coverage=coverage
    )


def _weigh(name, theta, key=0):
    surrogate, coverage = WEIGHTS[name]
    return qsgd.superposition_weights(surrogate, theta, coverage, key=key)


@pytest.fixture(scope="module", autouse=True)
def _eight_devices():
    assert jax.device_count() == 8, "tests/conftest.py must ask for 8 virtual CPU devices"


def _mesh(sizes, kind=AxisType.Auto):
    return jax.make_mesh(sizes, ("data", "model")[: len(sizes)], axis_types=(kind,) * len(sizes))


def _placed(tree, mesh, specs):
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs)


def _network():
    """Parameters and a batch; shards are multiples of 4 in some layouts and not in others."""
    rng = np.random.default_rng(0)
    params = {"in": rng.uniform(-1, 1, (48, 40)), "out": rng.uniform(-1, 1, (40, 8))}
    batch = rng.normal(size=(16, 48)), rng.normal(size=(16, 8))
    return jax.tree.map(np.float32, (params, batch))


def _loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)


def _train(name, layout, kind=AxisType.Auto, loss=_loss, weigh="gradient"):
    """The network's parameters after 20 steps."""
    sizes, specs, batch_spec = LAYOUTS[layout]
    mesh = _mesh(sizes, kind)
    params, batch = _network()
    params, batch = _placed(params, mesh, specs), _placed(batch, mesh, (batch_spec, batch_spec))
    optimizer = _adamw(0.01, *WEIGHTS[name], weigh)

    @functools.partial(jax.jit, compiler_options=meshes.QUICK)
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(20):
        params, state = step(params, state, batch)
    return params


# Mesh, layout of the parameters and layout of the batch.
LAYOUTS = {
    "one device": ((1,), {"in": P(), "out": P()}, P()),
    "data parallel": ((8,), {"in": P(), "out": P()}, P("data")),
    "fully sharded": ((8,), {"in": P("data"), "out": P("data")}, P("data")),
    "tensor parallel": ((2, 4), {"in": P(None, "model"), "out": P("model")}, P("data")),
    "two axes": ((4, 2), {"in": P("data", "model"), "out": P("model", "data")}, P("data")),
}
ON_A_MESH = tuple(layout for layout in LAYOUTS if layout != "one device")


@functools.cache
def _trained_on_one_device(name, loss=_loss, weigh="gradient"):
    with jax.set_mesh(_mesh((1,))):
        return _train(name, "one device", loss=loss, weigh=weigh)


def _assert_equal_to_rounding(result, expected):
    """Adam divides by the gradient's size, so rounding where it is small grows."""
    for leaf in expected:
        np.testing.assert_allclose(result[leaf], expected[leaf], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ON_A_MESH)
@pytest.mark.parametrize(
    ("name", "weigh"),
    [
        ("leading, entangled", "moments"),
        ("everywhere, fours", "gradient"),
        ("everywhere, fours", "update"),
    ],
)
def test_parameters_trained_on_a_mesh_are_those_of_one_device(name, weigh, layout):
    sizes, specs, _ = LAYOUTS[layout]
    result = _train(name, layout, weigh=weigh)
    _assert_equal_to_rounding(result, _trained_on_one_device(name, weigh=weigh))
    for leaf, spec in specs.items():
        kept = NamedSharding(_mesh(sizes), spec)
        assert result[leaf].sharding.is_equivalent_to(kept, result[leaf].ndim)


def _sine_products(theta, n):
    """The weights of `_products` everywhere, in NumPy."""
    axis = max(theta.ndim - 2, 0)
    sines = np.sin(np.pi * np.moveaxis(theta.astype(np.float64), axis, 0))
    products = [np.cumprod(sines[i : i + n], axis=0) for i in range(0, len(sines), n)]
    return np.moveaxis(np.concatenate(products), 0, axis)


@pytest.mark.parametrize("sizes", [(1,), (4, 2)], ids=str)
@pytest.mark.parametrize(("name", "n"), [("everywhere, triples", 3), ("everywhere, fours", 4)])
def test_weights_are_the_same_however_finely_a_mesh_may_cut_the_leaf(name, n, sizes):
    rng = np.random.default_rng(0)
    shapes = [(40,), (15, 2), (28, 3), (56, 2), (2, 40, 3), (8, 2)]
    thetas = [rng.uniform(-2, 2, shape).astype(np.float32) for shape in shapes]
    with jax.set_mesh(_mesh(sizes)):
        weigh = functools.partial(_weigh, name)
        weights = jax.jit(weigh, compiler_options=meshes.QUICK)(thetas)
    for theta, result in zip(thetas, weights, strict=True):
        np.testing.assert_allclose(result, _sine_products(theta, n), atol=2e-6)


# Shards of fewer rows than a block, of leaves that have fewer as well, or not.
SMALL = {
    "two rows": ((2, 16), P("model")),
    "two rows, two axes": ((2, 16), P("model", "data")),
    "two coordinates": ((2,), P("model")),
    "two rows of layers": ((3, 2, 8), P(None, "model")),
    "four rows": ((4, 3), P("data")),
    "six rows": ((6, 8), P("model")),
    "eight coordinates": ((8,), P(("data", "model"))),
}


@pytest.mark.parametrize(("name", "n"), [("everywhere, triples", 3), ("everywhere, fours", 4)])
def test_weights_of_shards_smaller_than_a_block(name, n):
    rng = np.random.default_rng(0)
    leaves = _leaves(SMALL, lambda shape: rng.uniform(-2, 2, shape))
    if jax.__version_info__ == (0, 7, 1) and n == 3:
        del leaves["eight coordinates"]  # whose rows are mixed up by that version's partitioner
    weights = jax.jit(functools.partial(_weigh, name), compiler_options=meshes.QUICK)(leaves)
    for layout, theta in leaves.items():
        expected = _sine_products(np.asarray(theta), n)
        np.testing.assert_allclose(weights[layout], expected, atol=2e-6, err_msg=layout)


# Leaves by shape and layout. Each shard holds a multiple of 2, 3 and 4 rows or columns …
WHOLE = {
    "rows": ((96, 13), P(("data", "model"))),
    "columns": ((13, 96), P(None, ("data", "model"))),
    "both": ((48, 24), P("data", "model")),
    "a vector": ((96,), P(("data", "model"))),
    "layers": ((8, 7, 12), P(("data", "model"))),
}
# … or of none of them. Last, the columns that a shard has.
BROKEN = {
    "rows": ((40, 16), P(("data", "model")), 16),
    "both": ((28, 20), P("data", "model"), 10),
    "a vector": ((40,), P(("data", "model")), 1),
    "layers": ((3, 40, 4), P(None, ("data", "model")), 12),
}


def _leaves(shapes_and_specs, fill=np.ones):
    mesh = _mesh((4, 2))
    return {
        name: jax.device_put(fill(shape).astype(np.float32), NamedSharding(mesh, spec))
        for name, (shape, spec, *_) in shapes_and_specs.items()
    }


@pytest.mark.parametrize("name", ["leading, shots", "everywhere, pairs, shots"])
def test_samples_do_not_depend_on_how_leaves_are_cut(name):
    cut = {layout: BROKEN[layout] for layout in ("both", "a vector")}
    leaves = _leaves(cut, np.random.default_rng(0).standard_normal)
    weigh = functools.partial(_weigh, name, key=7)
    result = jax.jit(weigh, compiler_options=meshes.QUICK)(leaves)
    with jax.set_mesh(_mesh((1,))):
        expected = jax.jit(weigh, compiler_options=meshes.QUICK)(jax.tree.map(np.asarray, leaves))
    for leaf in leaves:
        np.testing.assert_array_equal(result[leaf], expected[leaf])


def test_shards_draw_samples_of_their_own():
    """Of equal parameters, so that only the draws can differ."""
    theta = _leaves({"rows": WHOLE["rows"]}, functools.partial(np.full, fill_value=0.1))
    weigh = functools.partial(_weigh, "everywhere, pairs, shots")
    shards = jax.jit(weigh, compiler_options=meshes.QUICK)(theta)["rows"].addressable_shards
    assert len({np.asarray(shard.data).tobytes() for shard in shards}) == 8


# What XLA makes of an update.


def _collectives_beyond_adamw(weights, params, weigh="gradient"):
    superpositional = _adamw(1e-3, *weights, weigh)
    return meshes.collectives(superpositional, params) - meshes.collectives(
        optax.adamw(1e-3), params
    )


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "leading, shots"])
def test_shards_of_whole_blocks_need_no_collective_that_adamw_does_not(name):
    assert not _collectives_beyond_adamw(WEIGHTS[name], _leaves(WHOLE))


@pytest.mark.parametrize("name", ["leading, entangled", "everywhere, fours"])
def test_nor_do_they_in_the_update_form(name):
    assert not _collectives_beyond_adamw(WEIGHTS[name], _leaves(WHOLE), "update")


def test_of_a_sampled_leading_block_no_more_than_the_block_travels():
    found = _collectives_beyond_adamw(WEIGHTS["leading, shots"], _leaves(WHOLE))
    assert all(size <= 2 for _, size in found)


def test_a_leading_block_on_several_shards_is_all_that_travels():
    """A block of four on shards of two columns, at most once for each of eight devices."""
    params = _leaves({"columns": ((40, 16), P(None, ("data", "model")))})
    found = _collectives_beyond_adamw(WEIGHTS["leading, entangled"], params)
    assert found and all(size <= 8 * 4 for _, size in found)


@pytest.mark.parametrize(
    ("name", "weigh"),
    [
        ("everywhere, triples", "gradient"),
        ("everywhere, fours", "update"),
        ("everywhere, pairs, shots", "gradient"),
    ],
)
def test_shards_that_break_blocks_exchange_a_halo_and_no_more(name, weigh):
    weights = WEIGHTS[name]
    halo = weights[0].n_inputs - 1
    allowed = collections.Counter()
    for *_, columns in BROKEN.values():
        allowed["collective-permute", halo * columns] += 2  # one from either neighbour
    assert not _collectives_beyond_adamw(weights, _leaves(BROKEN), weigh) - allowed


@pytest.mark.parametrize("layout", ["columns", "both"])
def test_a_library_that_flattens_leaves_would_be_caught(layout, monkeypatch):
    """Blocks of the flat leaf are right on any mesh, at the price of gathering it."""
    monkeypatch.setattr(blocks, "blocks", lambda leaf, n, **_: list(leaf.reshape(-1, n).T))
    monkeypatch.setattr(
        blocks, "from_blocks", lambda block, shape: jnp.stack(block, -1).reshape(shape)
    )
    params, whole = _leaves({layout: WHOLE[layout]}), _products(4)
    # JAX has traced equal surrogates before, with the true blocks.
    surrogate = whole.with_coefficients(0.5 * whole.coefficients)
    found = _collectives_beyond_adamw((surrogate, "everywhere"), params)
    shard = params[layout].size // 8
    assert any(kind == "all-gather" and size > shard for kind, size in found)


# Meshes of explicit axes.


def _sum_of_leaves(params, batch):
    """Without a contraction, to which explicit axes would need an answer of the caller."""
    del batch
    return sum(jnp.sum((leaf - 0.3) ** 2 + jnp.sin(2 * leaf)) for leaf in params.values())


@pytest.mark.parametrize(
    "name", ["leading", "leading, shots", "everywhere, fours", "everywhere, pairs, shots"]
)
def test_training_on_explicit_axes_is_that_on_one_device(name):
    result = _train(name, "two axes", AxisType.Explicit, _sum_of_leaves)
    _assert_equal_to_rounding(result, _trained_on_one_device(name, _sum_of_leaves))
    for leaf, spec in LAYOUTS["two axes"][1].items():
        found = result[leaf].sharding
        assert found.is_equivalent_to(NamedSharding(found.mesh, spec), result[leaf].ndim)


# Inside `jax.shard_map` a shard is a leaf.

ROWS = np.random.default_rng(0).uniform(-1, 1, (96, 5)).astype(np.float32)


def _on_each_shard(function, *arrays):
    mapped = jax.shard_map(function, mesh=_mesh((8,)), in_specs=P("data"), out_specs=P("data"))
    return jax.jit(mapped, compiler_options=meshes.QUICK)(*arrays)


@pytest.mark.parametrize("name", ["everywhere", "everywhere, triples"])
def test_in_a_shard_map_weights_of_whole_blocks_are_those_outside(name):
    weigh = functools.partial(_weigh, name)
    np.testing.assert_allclose(_on_each_shard(weigh, ROWS), weigh(ROWS), atol=1e-6)


def test_in_a_shard_map_each_shard_has_a_leading_block():
    weigh = functools.partial(_weigh, "leading")
    expected = np.concatenate([weigh(shard) for shard in np.split(ROWS, 8)])
    np.testing.assert_allclose(_on_each_shard(weigh, ROWS), expected, atol=1e-6)
    assert np.count_nonzero(expected) == 8 * 4


def test_in_a_shard_map_samples_repeat_unless_the_key_differs():
    def weigh(theta, fold):
        key = jax.random.key(7)
        key = jax.random.fold_in(key, jax.lax.axis_index("data")) if fold else key
        return _weigh("everywhere, pairs, shots", theta, key)

    equal = np.full((96, 5), 0.1, np.float32)
    for fold, different in ((False, 1), (True, 8)):
        weights = _on_each_shard(functools.partial(weigh, fold=fold), equal)
        assert len({shard.tobytes() for shard in np.split(np.asarray(weights), 8)}) == different


def test_data_parallel_training_in_a_shard_map_is_that_on_one_device():
    """Replicas that share the key draw the same samples and stay equal."""
    optimizer = _adamw(0.01, *WEIGHTS["leading, shots"])

    @functools.partial(jax.jit, compiler_options=meshes.QUICK)
    @functools.partial(
        jax.shard_map, mesh=_mesh((8,)), in_specs=(P(), P(), P("data")), out_specs=P()
    )
    def step(params, state, batch):
        gradients = jax.grad(lambda p: jax.lax.pmean(_loss(p, batch), "data"))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, batch = _network()
    state = optimizer.init(params)
    for _ in range(20):
        params, state = step(params, state, batch)
    _assert_equal_to_rounding(params, _trained_on_one_device("leading, shots"))


# Two processes.


def _seen_by_processes():
    """What must not depend on the number of processes that hold the eight devices."""
    return {
        "exact": _train("everywhere, fours", "fully sharded"),
        "shots": _train("everywhere, pairs, shots", "fully sharded", loss=_sum_of_leaves),
    }


def _probe_together():
    """One process asks; both have the same coefficients after every step."""
    circuit = qsgd.Circuit(2, 1)
    surrogate = qsgd.probe(circuit)
    optimizer = _adamw(0.01, qsgd.refreshable(surrogate), "leading")
    params = jax.device_put(np.ones((16, 4), np.float32), NamedSharding(_mesh((8,)), P("data")))
    state, seen = jax.jit(optimizer.init)(params), []
    step = jax.jit(lambda params, state: optimizer.update(params, state, params)[1])
    with qsgd.RemoteProber(
        "default.qubit", circuit, probe_shots=1000, max_jobs=5, refresh_every=2
    ) as prober:
        assert (prober._asker._process is not None) == (jax.process_index() == 0)
        state = prober.wait(state)
        while prober.accounting.accepted < 3:
            state = prober.refresh(step(params, state))
            held = (
                optax.tree.get(state, "table"),
                *(optax.tree.get(state, name) for name in ("age", "jobs", "measured_at")),
            )
            seen.append([np.asarray(x.addressable_data(0)) for x in held])
        done = np.array([prober.accounting.jobs, prober.accounting.accepted])
    tables, *numbers = (np.stack(values) for values in zip(*seen, strict=True))
    assert (
        len(np.unique(tables, axis=0)) == 3 and np.abs(tables - surrogate.coefficients).max() < 0.2
    )
    return [tables, *(x.astype(np.int32) for x in numbers), done]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    seen, expected = meshes.seen_by_two_processes(__file__, tmp_path), _seen_by_processes()
    _assert_equal_to_rounding(seen, meshes.flat(expected))


def _be_one_of_two_processes(*arguments):
    with meshes.one_of_two_processes(*arguments) as write:
        for values in _probe_together():
            values = multihost_utils.process_allgather(values)
            np.testing.assert_array_equal(values[0], values[1])
        write(_seen_by_processes())


if __name__ == "__main__":
    _be_one_of_two_processes(*sys.argv[1:])
