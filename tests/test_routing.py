"""Which leaves of Flax's, Equinox's and plain models are matrices, and of which axes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers

import qsgd_jax as qsgd
from qsgd_jax._src.spectral.routing import Route, routes


def _routed(params: Any, routing: Any = None) -> dict[str, Any]:
    """The axes of each leaf that is a matrix, by its path; `None` of the others."""
    found = jax.tree_util.tree_leaves_with_path(
        routes(params, routing), is_leaf=lambda x: isinstance(x, Route)
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): route.numbers
        and tuple(route.numbers)
        for path, route in found
    }


class Model(nn.Module):
    """One of each that Flax's linen has."""

    @nn.compact
    def __call__(self, tokens, image):
        x = nn.Embed(17, 12)(tokens)
        x = x + nn.MultiHeadDotProductAttention(num_heads=3)(nn.LayerNorm()(x))
        x = x + nn.Dense(12)(nn.gelu(nn.Dense(20)(x)))
        y = nn.Conv(5, (3, 3))(image)
        y = nn.Conv(7, (3,))(y.reshape(1, -1, 5))
        return nn.Dense(17, name="unnamed_output")(x), y


def test_linen():
    shapes = jax.eval_shape(
        Model().init, jax.random.key(0), jnp.zeros((1, 4), int), jnp.zeros((1, 6, 6, 2))
    )
    attention = "params/MultiHeadDotProductAttention_0"
    expected: dict[str, Any] = {
        f"{attention}/query/kernel": ((0,), (1, 2)),
        f"{attention}/key/kernel": ((0,), (1, 2)),
        f"{attention}/value/kernel": ((0,), (1, 2)),
        f"{attention}/out/kernel": ((0, 1), (2,)),
        "params/Dense_0/kernel": ((0,), (1,)),
        "params/Dense_1/kernel": ((0,), (1,)),
        "params/Conv_0/kernel": ((0, 1, 2), (3,)),
        "params/Conv_1/kernel": ((0, 1), (2,)),
    }
    found = _routed(shapes)
    assert {path: axes for path, axes in found.items() if axes} == expected
    assert found["params/Embed_0/embedding"] is None
    # As wide as the vocabulary, and alone in that.
    assert found["params/unnamed_output/kernel"] is None


def test_nnx():
    rngs = nnx.Rngs(0)

    class Block(nnx.Module):
        def __init__(self):
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.mlp = nnx.Linear(8, 16, rngs=rngs)
            self.norm = nnx.LayerNorm(8, rngs=rngs)
            self.conv = nnx.Conv(3, 5, (3, 3), rngs=rngs)
            self.embed = nnx.Embed(16, 8, rngs=rngs)
            self.lora = nnx.LoRA(8, 2, 16, rngs=rngs)
            self.lm_head = nnx.Linear(8, 32, rngs=rngs)

    found = _routed(nnx.state(Block(), (nnx.Param, nnx.LoRAParam)))
    found = {path.removesuffix("/value"): axes for path, axes in found.items()}
    expected: dict[str, Any] = {
        "attention/query/kernel": ((0,), (1, 2)),
        "attention/key/kernel": ((0,), (1, 2)),
        "attention/value/kernel": ((0,), (1, 2)),
        "attention/out/kernel": ((0, 1), (2,)),
        "mlp/kernel": ((0,), (1,)),
        "conv/kernel": ((0, 1, 2), (3,)),
        "lora/lora_a": ((0,), (1,)),
        "lora/lora_b": ((0,), (1,)),
    }
    assert {path: axes for path, axes in found.items() if axes} == expected


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("attn/qkv/kernel", (8, 3, 2, 4), ((0,), (1, 2, 3))),
        ("attn/qkv/kernel", (8, 24), ((0,), (1,))),
        ("attn/key/kernel", (8, 1, 4), ((0,), (1, 2))),  # grouped queries share it
        ("attn/q_proj/kernel", (8, 2, 4), ((0,), (1, 2))),
        ("attn/o_proj/kernel", (2, 4, 8), ((0, 1), (2,))),
        ("attn/query/bias", (2, 4), None),
        ("mlp/experts/kernel", (4, 8, 16), ((1,), (2,))),
        ("moe/w_in", (4, 8, 16), ((1,), (2,))),
        ("dense/lora_a", (8, 2), ((0,), (1,))),
        ("conv/weight", (7, 3, 5, 5), ((1, 2, 3), (0,))),  # Equinox and PyTorch
        ("linear/weight", (7, 3), ((0,), (1,))),
        ("wte/weight", (7, 3), None),
        ("embedding/weight", (7, 3), None),
        ("pos_embedding", (7, 3), None),
        ("head/kernel", (3, 7), None),
        ("norm/scale", (3, 7), None),
        ("norm/weight", (3, 7), None),
        ("ln_1/weight", (3, 7), None),
        ("attn/value", (8, 2, 4), ((0,), (1, 2))),
        ("value/kernel", (3, 3, 8, 16), None),
        ("layers/attn/query/kernel", (6, 64, 4, 16), None),  # a stack that was not declared
        ("moe_block/attention/query/kernel", (8, 2, 4), ((0,), (1, 2))),
        ("experts/attn/out/kernel", (2, 4, 8), ((0, 1), (2,))),
        ("lora/q/b", (2, 8), ((0,), (1,))),
        ("lm_head/linear/kernel", (8, 32), None),
        ("embedding_model/dense/kernel", (8, 32), ((0,), (1,))),
        ("layers/weight", (7, 3, 5, 5), ((1, 2, 3), (0,))),
        ("net/~/lm_head/w", (8, 32), None),
        ("w", (3, 7), ((0,), (1,))),
        ("w", (1, 7), None),
        ("w", (7,), None),
        ("w", (), None),
        ("w", (0, 4), None),
        ("mystery/kernel", (2, 3, 4), None),
    ],
)
def test_names_and_ranks_decide(path, shape, axes):
    params: Any = jnp.zeros(shape)
    for name in reversed(path.split("/")):
        params = {name: params}
    assert _routed(params) == {path: axes}


@pytest.mark.parametrize("dtype", [jnp.int32, bool, jnp.bfloat16, jnp.complex64])
def test_dtypes(dtype):
    found = _routed({"kernel": jnp.zeros((3, 4), dtype)})["kernel"]
    assert (found is not None) == jnp.issubdtype(dtype, jnp.inexact)


def test_a_hidden_layer_as_wide_as_the_vocabulary_is_no_output():
    params = {"embed": jnp.zeros((8, 4)), "up": jnp.zeros((4, 8)), "other": jnp.zeros((4, 8))}
    assert _routed(params) == {"embed": None, "up": ((0,), (1,)), "other": ((0,), (1,))}


def test_a_hidden_layer_alone_as_wide_as_a_tied_embedding_is_no_output():
    params: dict[str, Any] = {
        "embed": {"embedding": jnp.zeros((8, 2))},
        "block": {"mlp": {"up": {"kernel": jnp.zeros((2, 8))}}},
    }
    assert _routed(params)["block/mlp/up/kernel"] == ((0,), (1,))
    params["out"] = {"kernel": jnp.zeros((2, 8))}  # the embedding is not tied
    found = _routed(params)
    assert found["block/mlp/up/kernel"] == ((0,), (1,)) and found["out/kernel"] is None


@pytest.mark.parametrize("name", ["pos", "positions", "query_tokens", "cls_token", "pos_embedding"])
def test_tables_of_vectors_are_no_matrices(name):
    assert _routed({"decoder": {name: jnp.zeros((12, 32))}}) == {f"decoder/{name}": None}


@pytest.mark.parametrize("name", ["classifier", "readout", "fc_out", "mlp_head", "output_head"])
def test_outputs_by_name(name):
    assert _routed({name: {"kernel": jnp.zeros((32, 5))}}) == {f"{name}/kernel": None}


def test_positions_are_no_vocabulary():
    params = {
        "wpe": jnp.zeros((8, 4)),
        "wte": jnp.zeros((9, 4)),
        "up": {"kernel": jnp.zeros((4, 8))},
    }
    assert _routed(params)["up/kernel"] == ((0,), (1,))


def test_labels_may_read_the_leaves():
    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 3)), "b": jnp.ones(3)}

    def labels(params):
        return {k: "adamw" if k == "v" or x.ndim < 2 else "spectral" for k, x in params.items()}

    routing = qsgd.SpectralRouting(labels=labels)
    for make in (qsgd.superpositional_muon, _chained):
        optimizer: Any = make(0.1, routing=routing)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        assert np.abs(updates["w"]).max() > 1e-3


def _chained(learning_rate: float, routing: Any) -> Any:
    return optax.chain(
        qsgd.scale_by_spectral_superposition(routing=routing),
        optax.scale_by_learning_rate(learning_rate),
    )


def test_a_label_makes_no_matrix_of_what_is_none():
    params = {
        "n": jnp.zeros((3, 4), jnp.int32),
        "empty": jnp.zeros((0, 4)),
        "row": jnp.ones((1, 4)),
    }
    found = _routed(params, qsgd.SpectralRouting(labels="spectral"))
    assert found == {"empty": None, "n": None, "row": ((0,), (1,))}


def test_stacked_axes_are_batched():
    params = {"attn": {"query": {"kernel": jnp.zeros((5, 8, 2, 4)), "bias": jnp.zeros((5, 2, 4))}}}
    found = _routed(params, qsgd.SpectralRouting(stacked_axes=1))
    assert found == {"attn/query/kernel": ((1,), (2, 3)), "attn/query/bias": None}

    def by_name(path, leaf):
        return 1 if "layers" in jax.tree_util.keystr(path) else 0

    params = {"layers": {"kernel": jnp.zeros((5, 3, 4))}, "embedding": jnp.zeros((9, 3))}
    found = _routed(params, qsgd.SpectralRouting(stacked_axes=by_name))
    assert found == {"layers/kernel": ((1,), (2,)), "embedding": None}


def test_labels_have_the_last_word():
    params = {
        "a": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros((3, 4))},
        "b": jnp.zeros((2, 3, 4)),
        "embedding": jnp.zeros((9, 3)),
    }
    labels = {"a": "adamw", "b": MuonDimensionNumbers((0, 1), -1), "embedding": "spectral"}
    expected = {"a/bias": None, "a/kernel": None, "b": ((0, 1), (2,)), "embedding": ((0,), (1,))}
    for given in (labels, lambda params: labels):
        assert _routed(params, qsgd.SpectralRouting(labels=given)) == expected
    found = _routed(params, qsgd.SpectralRouting(labels={"a": None, "b": None, "embedding": None}))
    assert found == _routed(params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qsgd.SpectralRouting(labels="muon"), "label 'muon' at .* must be 'spectral'"),
        (
            lambda: qsgd.SpectralRouting(labels={"x": "adamw"}),
            "no prefix of params; a function of params can make one",
        ),
        (lambda: qsgd.SpectralRouting(labels="spectral"), r"shape \(2, 3, 4\) is no matrix"),
        (lambda: qsgd.SpectralRouting(labels=MuonDimensionNumbers(0, 5)), "different axes"),
        (lambda: qsgd.SpectralRouting(labels=MuonDimensionNumbers(0, 0)), "different axes"),
        (lambda: qsgd.SpectralRouting(stacked_axes=4), "at most the 3 axes"),
        (lambda: qsgd.SpectralRouting(stacked_axes=-1), "stacked_axes=-1"),
        (lambda: qsgd.SpectralRouting(stacked_axes="x"), "stacked_axes='x'"),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    params = {"w": jnp.zeros((2, 3, 4))}
    for use in (
        lambda routing: qsgd.spectral_routing(params, routing),
        lambda routing: qsgd.superpositional_muon(0.1, routing=routing).init(params),
    ):
        with pytest.raises(ValueError, match=message):
            use(make())


def test_labels_are_a_function_of_the_parameters():
    wrong: Any = qsgd.SpectralRouting(labels=lambda path, leaf: "adamw")
    with pytest.raises(TypeError, match=r"labels=.* is called with the parameters, all of them"):
        qsgd.spectral_routing({"w": jnp.zeros((2, 3))}, wrong)


def test_what_the_table_does_not_know_is_said():
    params = {"mystery": {"kernel": jnp.zeros((2, 3, 4))}, "w": jnp.zeros((3, 4))}
    with pytest.warns(UserWarning, match=r"axes of \['mystery'\]\['kernel'\] are rows"):
        qsgd.superpositional_muon(0.1).init(params)
    said = qsgd.SpectralRouting(labels={"mystery": "adamw", "w": None})
    qsgd.superpositional_muon(0.1, routing=said).init(params)  # warnings are errors


def test_an_attention_of_flax_is_turned_as_the_matrix_that_it_is():
    """Against each kernel flattened by hand: optax's Muon leaves them to Adam."""
    rng = np.random.default_rng(0)
    gradients = {
        "query": {"kernel": jnp.asarray(rng.normal(size=(8, 2, 4)), jnp.float32)},
        "out": {"kernel": jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32)},
    }
    optimizer = qsgd.superpositional_muon(1.0)
    found: Any = optimizer.update(gradients, optimizer.init(gradients), gradients)[0]
    for name in gradients:
        flat = {"kernel": gradients[name]["kernel"].reshape(8, 8)}
        expected: Any = optimizer.update(flat, optimizer.init(flat), flat)[0]
        np.testing.assert_allclose(
            found[name]["kernel"].reshape(8, 8), expected["kernel"], atol=1e-6
        )


def test_leaves_without_a_gradient_are_skipped():
    params: Any = {"w": jnp.ones((3, 4)), "frozen": jnp.ones((3, 4)), "name": None}
    optimizer = qsgd.superpositional_muon(0.1)
    state = optimizer.init(params)
    gradients: Any = {"w": jnp.ones((3, 4)), "frozen": None, "name": None}
    for _ in range(2):
        updates: Any
        updates, state = optimizer.update(gradients, state, params)
        assert updates["frozen"] is None
        params = params | {"w": params["w"] + updates["w"]}
    assert np.abs(params["w"] - 1).max() > 0.01
    np.testing.assert_array_equal(params["frozen"], np.ones((3, 4)))
