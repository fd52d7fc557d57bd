"""The synthetic tasks: all train under vmap, and their models agree with independent references."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.workloads import examples, models
from experiments.workloads.synthetic import META_TRAINING, VALIDATION, task

pytestmark = pytest.mark.slow
ALL = META_TRAINING + VALIDATION
# Most of the time is LLVM's, on random numbers.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
each_task = pytest.mark.parametrize("workload", ALL, ids=lambda workload: workload.name)


def normal(*shapes):
    """Normal arrays of these shapes."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@functools.cache
def drawn(workload):
    """Data and parameters of two instances, as the meta-training batches them."""
    keys = jax.random.split(jax.random.key(3), 2)
    return jit(jax.vmap(lambda key: (workload.data(key), workload.init(key))))(keys)


@functools.cache
def trained(workload):
    """What 60 steps of Adam do to the two instances, each at a learning rate of its own."""

    def train(data, params, rate, key):
        optimizer = optax.adam(rate)

        def step(i, carry):
            params, state, *_ = carry
            batch = jax.random.fold_in(key, i)
            loss, gradients = jax.value_and_grad(workload.loss)(params, data, batch)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss, gradients

        start = (params, optimizer.init(params), jnp.zeros(()), params)
        final, _, loss, gradients = jax.lax.fori_loop(0, 60, step, start)
        validation = jax.lax.map(
            lambda params: workload.validation_loss(params, data),
            jax.tree.map(lambda *leaves: jnp.stack(leaves), params, final),
        )
        return loss, gradients, validation

    rates = jnp.array([3e-3, 2e-2])
    return jit(jax.vmap(train))(*drawn(workload), rates, jax.random.split(jax.random.key(4), 2))


def test_the_tasks_are_as_many_as_promised_and_two_of_each_family_at_least():
    families = collections.Counter(workload.family for workload in META_TRAINING)
    assert families == {"mlp": 4, "convolution": 3, "transformer": 4, "embedding": 2}
    assert len(VALIDATION) == 5
    assert len({workload.name for workload in ALL}) == len(ALL)


@each_task
def test_loss_is_finite_and_differentiable_over_mapped_parameters_and_data(workload):
    _, params = drawn(workload)
    losses, gradients, _ = trained(workload)
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
    most = 4096 if workload.name == "wide-teacher-mlp" else 2048
    assert 512 <= data["inputs"].shape[1] == data["targets"].shape[1] <= most


@each_task
def test_adam_lowers_the_validation_loss(workload):
    *_, validation = trained(workload)
    assert jnp.min(validation[:, 1] / validation[:, 0]) < 0.9


@pytest.mark.parametrize("name", ["regression-mlp", "autoencoder-mlp"])
def test_regressions_predict_targets_of_variance_one(name):
    data, _ = drawn(task(name))
    targets = jnp.concatenate([data["targets"], data["validation_targets"]], axis=1)
    np.testing.assert_allclose(targets.var(axis=range(1, targets.ndim)), 1, rtol=1e-4)


def test_dense_layer_on_patches_is_a_convolution():
    images, kernel = normal((4, 8, 7, 3), (27, 5))
    expected = jax.lax.conv_general_dilated(
        images,
        kernel.reshape(3, 3, 3, 5),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    layer = {"kernel": kernel, "bias": jnp.zeros(5)}
    actual = models.dense(layer, models.patches(images))
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_mean_pool_averages_squares():
    images = jnp.arange(16.0).reshape(1, 4, 4, 1)
    expected = [[2.5, 4.5], [10.5, 12.5]]
    np.testing.assert_allclose(models.mean_pool(images)[0, ..., 0], expected)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_jax_nn_s(causal):
    x, mixed, output = normal((3, 6, 8), (8, 24), (8, 8))
    params = {
        "queries_keys_values": {"kernel": mixed, "bias": jnp.ones(24)},
        "output": {"kernel": output, "bias": jnp.ones(8)},
    }

    def expected(x):
        parts = jnp.split(x @ mixed + 1, 3, axis=-1)
        query, key, value = (part.reshape(3, 6, 2, 4) for part in parts)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=causal)
        return attended.reshape(x.shape) @ output + 1

    actual = jit(functools.partial(models.attention, heads=2, causal=causal))(params, x)
    np.testing.assert_allclose(actual, jit(expected)(x), atol=1e-3)


def test_layer_norm_is_jax_nn_s():
    (x,) = normal((5, 16))
    params = models.layer_norm_params(16)
    expected = jit(functools.partial(jax.nn.standardize, epsilon=1e-6))(3 + 2 * x)
    np.testing.assert_allclose(jit(models.layer_norm)(params, 3 + 2 * x), expected, atol=1e-5)


def test_cross_entropy_is_optax_s():
    (logits,) = normal((5, 7, 9))
    labels = jnp.asarray(np.arange(35).reshape(5, 7) % 9)
    expected = jit(optax.softmax_cross_entropy_with_integer_labels)(logits, labels).mean()
    np.testing.assert_allclose(jit(models.cross_entropy)(logits, labels), expected, rtol=1e-5)


def test_causal_transformer_does_not_see_later_tokens():
    data, params = drawn(task("markov-transformer"))
    tokens = np.asarray(data["inputs"][:, :4])
    changed = tokens.copy()
    changed[..., 7:] = (changed[..., 7:] + 1) % 16
    predict = jit(jax.vmap(functools.partial(models.transformer, heads=2, causal=True)))
    before, after = (np.asarray(predict(params, t)) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :, :7], after[:, :, :7])
    assert np.all(np.any(before[:, :, 7:] != after[:, :, 7:], axis=-1))


def test_markov_targets_are_the_next_tokens():
    data, _ = drawn(task("markov-transformer"))
    tokens, following = np.asarray(data["inputs"]), np.asarray(data["targets"])
    np.testing.assert_array_equal(tokens[..., 1:], following[..., :-1])
    assert set(np.unique(tokens)) == set(range(16))


def test_sample_draws_by_its_row_of_probabilities():
    tables = jnp.array([[0.5, 0.0, 0.5], [0.1, 0.9, 0.0]])
    rows = jnp.array([[0], [1]])
    outcomes = jit(examples.sample, static_argnums=3)(jax.random.key(0), tables, rows, (2, 4000))
    shares = [np.bincount(row, minlength=3) / 4000 for row in np.asarray(outcomes)]
    np.testing.assert_allclose(shares, tables, atol=0.03)


def test_noiseless_images_are_rolled_templates():
    draw = jit(lambda key: examples.shifted_templates(key, 60, noise=0.0))
    images, labels = map(np.asarray, draw(jax.random.key(0)))
    for label in np.unique(labels):
        first, *others = images[labels == label]
        rolls = np.array([np.roll(first, (i, j), (0, 1)) for i in range(8) for j in range(8)])
        for other in others:
            assert np.abs(rolls - other).max(axis=(1, 2)).min() < 1e-5


def test_recalled_value_stands_behind_the_key_asked_for():
    data, _ = drawn(task("recall-transformer"))
    sequences, answers = (np.asarray(data[name][0, :40]) for name in ("inputs", "targets"))
    for sequence, answer in zip(sequences, answers, strict=True):
        memory = dict(zip(sequence[:-1:2], sequence[1::2], strict=True))
        assert len(memory) == 3
        assert memory[sequence[-1]] == 8 + answer


def test_bags_hold_each_token_s_share():
    data, _ = drawn(task("zipf-embedding"))
    counts = 8 * np.asarray(data["inputs"])
    np.testing.assert_array_equal(counts.sum(axis=-1), 8)
    np.testing.assert_array_equal(counts, counts.round())


def test_an_unknown_name_is_told_the_known_ones():
    assert task("digits-mlp") is VALIDATION[0]
    with pytest.raises(ValueError, match=r"'mnist'.*teacher-mlp.*autoencoder-mlp"):
        task("mnist")


def test_clean_classes_are_those_of_the_noisy_task_before_noise():
    key = jax.random.key(0)
    inputs, clean = examples.teacher_classes(key, 4096, largest_noise=0)
    same, noisy = examples.teacher_classes(key, 4096)
    np.testing.assert_array_equal(inputs, same)
    changed = np.mean(np.asarray(clean != noisy))
    assert 0 < changed < 0.2
    again = examples.random_teacher(jax.random.split(key, 3)[1], inputs, 32, 8)
    np.testing.assert_array_equal(clean, again.argmax(axis=-1))


def test_reversals_read_backwards():
    tokens, backwards = examples.reversals(jax.random.key(0), 5, vocabulary=7, length=4)
    assert 0 <= tokens.min() < tokens.max() < 7
    for read, written in zip(tokens.tolist(), backwards.tolist(), strict=True):
        assert written == list(reversed(read))
