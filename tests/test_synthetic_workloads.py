"""The synthetic tasks: all train under vmap, and their models agree with independent references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.workloads import synthetic
from benchmarks.workloads.base import training_run
from benchmarks.workloads.synthetic import META_TRAINING, VALIDATION, task

ALL = META_TRAINING + VALIDATION
each_task = pytest.mark.parametrize("workload", ALL, ids=lambda workload: workload.name)


@functools.cache
def drawn(workload):
    """Data and parameters of two instances, as the meta-training batches them."""
    keys = jax.random.split(jax.random.key(3), 2)
    return jax.jit(jax.vmap(workload.data))(keys), jax.jit(jax.vmap(workload.init))(keys)


def test_the_tasks_are_as_many_as_promised_and_two_of_each_family():
    families = [workload.family for workload in META_TRAINING]
    assert sorted(families) == sorted(["mlp", "convolution", "transformer", "embedding"] * 2)
    assert len(VALIDATION) == 5
    assert len({workload.name for workload in ALL}) == len(ALL)


@each_task
def test_loss_is_finite_and_differentiable_over_mapped_parameters_and_data(workload):
    data, params = drawn(workload)
    keys = jax.random.split(jax.random.key(4), 2)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(workload.loss)))(params, data, keys)
    assert losses.shape == (2,)
    assert jnp.isfinite(losses).all()
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    for gradient, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(params), strict=True):
        assert gradient.shape == leaf.shape
        assert jnp.isfinite(gradient).all()
        assert jnp.any(gradient != 0)


@each_task
def test_another_key_gives_another_task_but_of_the_digits(workload):
    data, _ = drawn(workload)
    same = [np.array_equal(leaf[0], leaf[1]) for leaf in jax.tree.leaves(data)]
    assert all(same) if workload.name.startswith("digits") else not any(same)


@each_task
def test_training_and_validation_examples_are_disjoint_draws_of_the_promised_sizes(workload):
    data, _ = drawn(workload)
    size = 500 if workload.name.startswith("digits") else 256
    assert data["validation_inputs"].shape[1] == data["validation_targets"].shape[1] == size
    assert 512 <= data["inputs"].shape[1] == data["targets"].shape[1] <= 2048


@each_task
def test_adam_lowers_the_validation_loss(workload):
    data, _ = drawn(workload)
    one = jax.tree.map(lambda leaf: leaf[0], data)

    @jax.jit
    @jax.vmap
    def train(rate):
        key = jax.random.key(5)
        return training_run(workload, optax.adam(rate), one, key, steps=60, points=1)

    validation = train(jnp.array([3e-3, 2e-2])).validation_loss
    assert validation[:, -1].min() < 0.98 * validation[0, 0]


@pytest.mark.parametrize("workload", [w for w in ALL if "mlp" in w.name], ids=lambda w: w.name)
def test_regressions_predict_targets_of_variance_one(workload):
    if workload.name not in ("regression-mlp", "autoencoder-mlp"):
        pytest.skip("a classification")
    data, _ = drawn(workload)
    targets = jnp.concatenate([data["targets"], data["validation_targets"]], axis=1)
    np.testing.assert_allclose(targets.var(axis=range(1, targets.ndim)), 1, rtol=1e-4)


def test_dense_layer_on_patches_is_a_convolution():
    images = jax.random.normal(jax.random.key(0), (4, 8, 7, 3))
    layer = synthetic.dense_params(jax.random.key(1), 27, 5)
    expected = jax.lax.conv_general_dilated(
        images,
        layer["kernel"].reshape(3, 3, 3, 5),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    actual = synthetic.dense(layer, synthetic.patches(images))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_mean_pool_averages_squares():
    images = jnp.arange(16.0).reshape(1, 4, 4, 1)
    expected = [[2.5, 4.5], [10.5, 12.5]]
    np.testing.assert_allclose(synthetic.mean_pool(images)[0, ..., 0], expected)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_jax_nn_s(causal):
    x = jax.random.normal(jax.random.key(0), (3, 6, 8))
    params = synthetic.attention_params(jax.random.key(1), 8)
    mixed = synthetic.dense(params["queries_keys_values"], x)
    query, key, value = (part.reshape(3, 6, 2, 4) for part in jnp.split(mixed, 3, axis=-1))
    attended = jax.nn.dot_product_attention(query, key, value, is_causal=causal)
    expected = synthetic.dense(params["output"], attended.reshape(x.shape))
    actual = synthetic.attention(params, x, heads=2, causal=causal)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_layer_norm_is_jax_nn_s():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (5, 16))
    params = synthetic.layer_norm_params(16)
    expected = jax.nn.standardize(x, epsilon=1e-6)
    np.testing.assert_allclose(synthetic.layer_norm(params, x), expected, atol=1e-5)


def test_cross_entropy_is_optax_s():
    logits = jax.random.normal(jax.random.key(0), (5, 7, 9))
    labels = jax.random.randint(jax.random.key(1), (5, 7), 0, 9)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    np.testing.assert_allclose(synthetic.cross_entropy(logits, labels), expected, rtol=1e-5)


def test_causal_transformer_does_not_see_later_tokens():
    params = task("markov-transformer").init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, 16)
    changed = tokens.at[:, 7:].set((tokens[:, 7:] + 1) % 16)
    before, after = (
        synthetic.transformer(params, t, heads=2, causal=True) for t in (tokens, changed)
    )
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert jnp.any(before[:, 7:] != after[:, 7:])


def test_markov_targets_are_the_next_tokens():
    tokens, following = synthetic.markov_sequences(jax.random.key(0), 50)
    np.testing.assert_array_equal(tokens[:, 1:], following[:, :-1])
    assert tokens.min() >= 0
    assert tokens.max() < 16


def test_sample_draws_by_its_row_of_probabilities():
    tables = jnp.array([[0.5, 0.0, 0.5], [0.1, 0.9, 0.0]])
    rows = jnp.array([[0], [1]])
    drawn = synthetic.sample(jax.random.key(0), tables, rows, (2, 4000))
    shares = jax.nn.one_hot(drawn, 3).mean(axis=1)
    np.testing.assert_allclose(shares, tables, atol=0.03)


def test_noiseless_images_are_rolled_templates():
    images, labels = synthetic.shifted_templates(jax.random.key(0), 60, noise=0.0)
    for label in np.unique(labels):
        first, *others = np.asarray(images[labels == label])
        rolls = np.array([np.roll(first, (i, j), (0, 1)) for i in range(8) for j in range(8)])
        for other in others:
            assert np.abs(rolls - other).max(axis=(1, 2)).min() < 1e-5


def test_recalled_value_stands_behind_the_key_asked_for():
    sequences, answers = map(np.asarray, synthetic.recalls(jax.random.key(0), 40))
    for sequence, answer in zip(sequences, answers, strict=True):
        memory = dict(zip(sequence[:-1:2], sequence[1::2], strict=True))
        assert len(memory) == 3
        assert memory[sequence[-1]] == 8 + answer


def test_bags_hold_each_token_s_share():
    frequencies, _ = synthetic.zipf_bags(jax.random.key(0), 30, vocabulary=20, classes=3, length=8)
    np.testing.assert_allclose(frequencies.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(frequencies * 8, jnp.round(frequencies * 8))


def test_an_unknown_name_is_told_the_known_ones():
    assert task("digits-mlp") is VALIDATION[0]
    with pytest.raises(ValueError, match=r"'mnist'.*teacher-mlp.*autoencoder-mlp"):
        task("mnist")
