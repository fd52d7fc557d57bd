"""The spectral form on a mesh against one device, XLA's collectives, and two processes against one.

As a script, this file is one of the two processes.
"""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.sharding import AxisType, NamedSharding

import qsgd_jax as qsgd
from qsgd_jax._src.spectral import matrices, whole
from tests import meshes

LAYERS, WIDTH, WIDE = 8, 16, 64
STACKED = {"in": 0, "layers": 1, "out": 0, "bias": 0}
MATRICES = 2 * WIDE * WIDTH + LAYERS * WIDTH**2


def _optimizer(cascade="polar-express"):
    routing = qsgd.SpectralRouting(stacked_axes=STACKED)
    return qsgd.superpositional_muon(0.01, cascade, weight_decay=0.1, routing=routing)


OPTIMIZER = _optimizer()
ON_A_MESH = {  # the mesh's sizes, and how each leaf is cut
    "data parallel": ((8,), {"in": P(), "layers": P(), "out": P(), "bias": P()}),
    "fully sharded": (
        (8,),
        {"in": P("data"), "layers": P(None, "data"), "out": P("data"), "bias": P("data")},
    ),
    "tensor parallel": (
        (2, 4),
        {"in": P(None, "model"), "layers": P(None, "model"), "out": P("model"), "bias": P()},
    ),
    "sharded over the stack": (
        (8,),
        {"in": P(), "layers": P("data"), "out": P(), "bias": P()},
    ),
    "two axes": (
        (4, 2),
        {
            "in": P("data", "model"),
            "layers": P("model", None, "data"),
            "out": P("model", "data"),
            "bias": P("data"),
        },
    ),
}


def _network():
    rng = np.random.default_rng(0)
    shapes = {"in": (WIDE, WIDTH), "layers": (LAYERS, WIDTH, WIDTH), "out": (WIDTH, WIDE)}
    params = {name: rng.normal(size=shape) / 4 for name, shape in shapes.items()}
    batch = rng.normal(size=(16, WIDE)), rng.normal(size=(16, WIDE))
    return jax.tree.map(np.float32, (params | {"bias": np.zeros(WIDE)}, batch))


def _loss(params, batch):
    x, y = batch
    x = jnp.tanh(x @ params["in"])
    x, _ = jax.lax.scan(lambda x, layer: (x + jnp.tanh(x @ layer), None), x, params["layers"])
    return jnp.mean((x @ params["out"] + params["bias"] - y) ** 2)


def _placed(params, layout, kind=AxisType.Auto):
    sizes, specs = ON_A_MESH[layout]
    names = ("data", "model")[: len(sizes)]
    mesh = jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))
    return {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in params.items()}


def _trained(layout=None, optimizer=OPTIMIZER):
    """The parameters after 20 steps."""
    params, batch = _network()
    if layout:
        params = _placed(params, layout)

    @functools.partial(jax.jit, compiler_options=meshes.QUICK)
    def step(params, state):
        updates, state = optimizer.update(jax.grad(_loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(20):
        params, state = step(params, state)
    return params


_trained_on_one_device = functools.cache(_trained)


@pytest.mark.parametrize("layout", ON_A_MESH)
def test_parameters_trained_on_a_mesh_are_those_of_one_device(layout):
    found, expected = _trained(layout), _trained_on_one_device()
    for name, leaf in _placed(expected, layout).items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
        assert found[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    seen = meshes.seen_by_two_processes(__file__, tmp_path)
    for name, leaf in meshes.flat(_trained_on_one_device()).items():
        np.testing.assert_allclose(seen[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)


def _elements(layout, optimizer=OPTIMIZER, kind=AxisType.Auto):
    """The kinds of collectives in the update, and how many elements all have."""
    found = meshes.collectives(optimizer, _placed(_network()[0], layout, kind))
    return {kind for kind, _ in found}, sum(size * n for (_, size), n in found.items())


@pytest.mark.parametrize("layout", ["data parallel", "sharded over the stack"])
def test_nothing_travels_where_each_matrix_is_whole(layout):
    assert _elements(layout) == (set(), 0)


EXPLICIT = pytest.param(
    AxisType.Explicit,
    marks=pytest.mark.skipif(not whole.PARTITIONS_EXPLICIT_AXES, reason="left to XLA there"),
)


@pytest.mark.parametrize("kind", [AxisType.Auto, EXPLICIT])
@pytest.mark.parametrize("layout", ["fully sharded", "tensor parallel", "two axes"])
def test_a_matrix_that_is_cut_travels_once(layout, kind):
    """Each way at most; of what is gathered each device keeps its slice."""
    kinds, elements = _elements(layout, kind=kind)
    assert kinds <= {"all-gather", "all-to-all", "collective-permute"}
    assert 0 < elements <= 2 * MATRICES


def test_left_to_xla_matrices_would_travel_in_each_product(monkeypatch):
    monkeypatch.setattr(matrices, "on_whole_matrices", lambda function: function)
    cascade = qsgd.spectral_cascade("muon", stages=7)  # of which JAX has traced nothing
    kinds, _ = _elements("fully sharded", _optimizer(cascade))
    assert "all-reduce" in kinds


def _mapped(spec, matrix, **options):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    optimizer: Any = qsgd.scale_by_spectral_superposition(
        routing=qsgd.SpectralRouting(stacked_axes=matrix.ndim - 2)
    )

    def update(matrix):
        return optimizer.update(matrix, optimizer.init(matrix))[0]

    found = jax.shard_map(update, mesh=mesh, in_specs=spec, out_specs=spec, **options)(matrix)
    return found, update


def test_a_shard_of_shard_map_is_not_taken_for_a_matrix():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16)), jnp.float32)
    with pytest.raises(ValueError, match="is another on each device along data"):
        _mapped(P("data"), matrix)
    found, update = _mapped(P(), matrix)
    np.testing.assert_allclose(found, update(matrix), rtol=1e-4, atol=1e-5)
    found, update = _mapped(P("data"), matrix, check_vma=False)  # a model on each device
    np.testing.assert_allclose(found[2:4], update(matrix[2:4]), rtol=1e-4, atol=1e-5)


def test_where_shard_map_leaves_an_axis_to_xla():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    stack = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 12)), jnp.float32)
    placed = jax.device_put(stack, NamedSharding(mesh, P("data", None, "model")))
    _, update = _mapped(P(), stack)
    mapped = jax.shard_map(
        update, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
    )
    np.testing.assert_allclose(jax.jit(mapped)(placed), update(stack), rtol=1e-4, atol=1e-5)


def test_leaves_of_equal_shape_may_live_apart():
    """On devices and meshes of their own, in a step that is not compiled."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)
    optimizer: Any = qsgd.scale_by_spectral_superposition()
    expected = optimizer.update(matrix, optimizer.init(matrix))[0]
    places = [*jax.devices()[:2], NamedSharding(mesh, P("data")), NamedSharding(mesh, P())]
    params = {f"{i}": jax.device_put(matrix, place) for i, place in enumerate(places)}
    found = optimizer.update(params, optimizer.init(params))[0]
    for name, x in params.items():
        assert found[name].sharding.is_equivalent_to(x.sharding, 2)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


def test_layers_of_a_stack_may_be_shards_of_shard_map():
    stack = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 6)), jnp.float32)
    found, update = _mapped(P("data"), stack)
    np.testing.assert_allclose(found, update(stack), rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    with meshes.one_of_two_processes(*sys.argv[1:]) as write:
        write(_trained("fully sharded"))
