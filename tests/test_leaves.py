"""Parameters of every kind, under each of jax's strictness flags."""

from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import qsgd_jax as qsgd
from tests.combinations import pairwise

CIRCUIT = qsgd.Circuit(4, 2)
SURROGATE = qsgd.probe(CIRCUIT)
FORMS = {
    "default": None,
    "entangled": SURROGATE,
    "sampled": qsgd.sampled(qsgd.probe(CIRCUIT, readout="probabilities"), 4),
    "refreshable": qsgd.refreshable(SURROGATE),
    "default.qubit": qsgd.Direct(CIRCUIT, "default.qubit"),
    "lightning.qubit": qsgd.Direct(CIRCUIT),
}
COVERAGES = ["leading", "everywhere", qsgd.Leading(stacked_axes=1), qsgd.Everywhere(stacked_axes=1)]


def _optimizers(surrogate: Any, coverage: Any) -> dict[str, Any]:
    weighing = (0.5, surrogate, coverage)
    return {
        "lion": optax.chain(
            qsgd.superpose(optax.scale_by_lion(), *weighing), optax.scale_by_learning_rate(0.1)
        ),
        "sgd": optax.chain(
            qsgd.scale_by_superposition(*weighing, diagnostics=True), optax.sgd(0.1)
        ),
    }


STRICT = {
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "dtype": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": lambda: jax.checking_leaks(),
    "nans": lambda: jax.debug_nans(True),
    "infinities": lambda: jax.debug_infs(True),
    "keys": lambda: jax.legacy_prng_key("error"),
}


@pairwise(
    flag=list(STRICT), name=list(FORMS), coverage=COVERAGES, dtype=[jnp.float32, jnp.bfloat16]
)
def test_steps_pass_where_jax_is_strict(flag, name, coverage, dtype):
    params = {"w": jnp.full((3, 6), 0.3, dtype), "b": jnp.full(5, 0.4, dtype)}
    optimizers = _optimizers(FORMS[name], coverage)
    expected = {k: tx.update(params, tx.init(params), params)[0] for k, tx in optimizers.items()}
    with STRICT[flag]():
        for k, optimizer in optimizers.items():
            for update in (optimizer.update, jax.jit(optimizer.update)):
                updates, _ = update(params, optimizer.init(params), params)
                jax.tree.map(
                    lambda x, y: np.testing.assert_allclose(
                        np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-2, atol=1e-5
                    ),
                    updates,
                    expected[k],
                )


@pytest.mark.parametrize("num_heads", [None, 4])
@pytest.mark.parametrize("readout", ["amplitude", "probability"])
def test_attention_passes_where_ranks_are_not_promoted(readout, num_heads):
    with STRICT["rank"]():
        rngs = nnx.Rngs(0)
        attention = nnx.MultiHeadAttention(
            num_heads=4,
            in_features=16,
            decode=False,
            rngs=rngs,
            attention_fn=qsgd.nn.QuantumAttention(readout=readout, num_heads=num_heads, rngs=rngs),
        )
        x = jnp.ones((2, 8, 16))
        gradients = nnx.grad(lambda module: module(x).sum())(attention)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


@jax.tree_util.register_pytree_node_class
class Module:
    """A tree of anything, as an Equinox module is."""

    def __init__(self, *leaves):
        self.leaves = leaves

    def tree_flatten(self):
        return self.leaves, None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


OTHERS = 0.5, True, "relu", jnp.tanh, jnp.arange(3), np.random.default_rng, 3


@pairwise(
    name=list(FORMS), coverage=["leading", "everywhere"], weigh=["update", "gradient", "moments"]
)
def test_leaves_without_a_gradient_are_skipped(name, coverage, weigh):
    optimizer: Any = qsgd.superpositional_adamw(
        0.1, surrogate=FORMS[name], coverage=coverage, weigh=weigh, diagnostics=True
    )
    array, none = jnp.linspace(-1, 1, 12).reshape(4, 3), [None] * len(OTHERS)
    alone, whole = Module(array, *none), Module(array, *OTHERS)
    gradients = Module(jnp.ones((4, 3)), *none)
    state, expected_state = optimizer.init(alone), optimizer.init(alone)
    for _ in range(2):
        updates, state = optimizer.update(gradients, state, whole)
        expected, expected_state = optimizer.update(gradients, expected_state, alone)
        assert updates.leaves[1:] == tuple(none)
        np.testing.assert_array_equal(updates.leaves[0], expected.leaves[0])


def test_parameters_that_are_python_floats_are_weighed():
    optimizer: Any = optax.chain(
        qsgd.scale_by_superposition(0.5, coverage="everywhere"), optax.sgd(1.0)
    )
    params, gradients = {"a": 0.5, "b": -0.5}, {"a": 1.0, "b": 1.0}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert float(updates["a"]) == pytest.approx(-1.5) and float(updates["b"]) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    "quantum_weight", [Fraction(1, 2), "0.5", None, True, 1j, [0.5], np.array("x"), np.array(True)]
)
def test_what_is_no_real_number_is_refused_as_quantum_weight(quantum_weight):
    for make in (qsgd.scale_by_superposition, lambda x: qsgd.superpose(optax.sgd(1.0), x)):
        with pytest.raises(TypeError, match=r"quantum_weight=.* must be a finite real number"):
            make(quantum_weight)


def test_a_vector_of_shots_is_refused():
    import pennylane as qml

    with pytest.warns(qml.exceptions.PennyLaneDeprecationWarning):
        device = qml.device("default.qubit", wires=2, shots=[5, 5])
    for use in (
        lambda: qsgd.probe(qsgd.Circuit(2), device=device),
        lambda: qsgd.Direct(qsgd.Circuit(2), device),
    ):
        with pytest.raises(ValueError, match="vector of shots"):
            use()


def test_what_are_no_random_streams_is_refused():
    with pytest.raises(TypeError, match="rngs=0 must be"):
        qsgd.nn.QuantumAttention(rngs=0)  # pyright: ignore[reportArgumentType]


class Layer(NamedTuple):
    """Two fields of which the path of one begins as that of the other does."""

    w: Any
    w2: Any


def test_a_leaf_without_a_gradient_hides_no_wrong_one_beside_it():
    params, gradients = Layer(jnp.ones(2), jnp.ones(3)), Layer(None, jnp.ones(4))
    optimizer = qsgd.superpose(optax.sgd(1.0))
    with pytest.raises(ValueError, match=r"shape \(4,\) at '\.w2' .* shape \(3,\)"):
        optimizer.update(gradients, optimizer.init(params), params)
