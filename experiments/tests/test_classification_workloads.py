"""The classification tasks: which examples they train on and are judged by."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.engine.workload import training_run
from experiments.workloads import classification, synthetic


def arrays(workload):
    return jax.tree.map(np.asarray, workload.data(jax.random.key(0)))


def test_digits_for_training_validation_and_test_are_disjoint():
    (train, _), (validation, _) = arrays(classification.digits("digits", 200))
    (again, _), (test, _) = arrays(classification.digits("digits", 200, split="test"))
    np.testing.assert_array_equal(train, again)
    # Some images may be alike; that two parts share more than a handful would be a mistake.
    known = [{image.tobytes() for image in part} for part in (train, validation, test)]
    assert [len(part) for part in (train, validation, test)] == [200, 400, 400]
    assert all(len(a & b) <= 2 for i, a in enumerate(known) for b in known[:i])


def test_labels_are_drawn_anew_in_training_only():
    (images, given), (seen, labels) = arrays(classification.digits("digits", 900, 0.4))
    every, truth = map(np.asarray, synthetic.digits(jax.random.key(0), 1797))
    label_of = {
        image.astype(np.float32).tobytes(): label
        for image, label in zip(every.reshape(len(every), -1), truth, strict=True)
    }
    true = np.array([label_of[image.tobytes()] for image in images])
    assert np.mean(given != true) == pytest.approx(0.4 * 0.9, abs=0.04)  # a tenth is right by luck
    assert (labels == [label_of[image.tobytes()] for image in seen]).all()


@pytest.mark.parametrize("make", [lambda: classification.digits("digits", 200)])
def test_accuracy_and_loss_are_those_of_the_logits(make):
    workload = make()
    params, data = workload.init(jax.random.key(1)), workload.data(jax.random.key(0))
    inputs, targets = map(np.asarray, data[1])
    x = inputs.astype(np.float64)
    for i, layer in enumerate(params):
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        x = np.tanh(x) if i < len(params) - 1 else x
    loss, accuracy = workload.evaluation(params, data)
    assert accuracy == pytest.approx(np.mean(x.argmax(1) == targets))
    logs = x - np.log(np.exp(x).sum(1, keepdims=True))
    assert loss == pytest.approx(-logs[np.arange(len(x)), targets].mean(), rel=1e-4)
    assert workload.validation_loss(params, data) == loss


def test_a_training_run_returns_accuracies_where_there_are_some():
    workload: Any = classification.digits("digits", 200)
    data = workload.data(jax.random.key(0))
    curves: Any = training_run(
        workload, lambda hyper: optax.adam(1e-2), data, jax.random.key(0), steps=20, points=2
    )
    assert curves.accuracy.shape == curves.validation_loss.shape == (3,)
    params = workload.init(jax.random.split(jax.random.key(0))[0])
    assert curves.accuracy[0] == workload.evaluation(params, data)[1]
    assert curves.accuracy[-1] > 0.5
    plain = synthetic.task("teacher-mlp")
    without = training_run(
        plain,
        lambda hyper: optax.adam(1e-2),
        plain.data(jax.random.key(0)),
        jax.random.key(0),
        steps=2,
        points=1,
    )
    assert without.accuracy is None


def test_topic_order_is_the_synthetic_task_with_fewer_test_examples():
    plain = classification.topic_order(split="test")
    data = plain.data(jax.random.key(0))
    assert len(data[0][1]) == 4000
    assert len(data[1][1]) == 2000
    assert jnp.isfinite(plain.validation_loss(plain.init(jax.random.key(0)), data))
