"""Metrics that the process of a `MetricProber` makes."""

import os
import time

import jax.numpy as jnp
import pennylane as qml

import qsgd_jax as qsgd


def _qnode(shots=None):
    @qml.set_shots(shots)
    @qml.qnode(qml.device("lightning.qubit", wires=2, seed=0))
    def circuit(inputs, weights):
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return qml.expval(qml.Z(0))

    return circuit


def energy():
    """Of one circuit without data."""

    @qml.qnode(qml.device("lightning.qubit", wires=2))
    def circuit(weights):
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return qml.expval(qml.Z(0))

    return qsgd.FubiniStudy(circuit, every=None, decay=0.5)


def blocks():
    """Of two circuits with data."""
    return qsgd.FubiniStudy({"first": _qnode(), "second": _qnode()}, every=None)


def measured():
    """In shots."""
    return qsgd.FubiniStudy(_qnode(100), "block-diag", every=None)


class _Faulty(qsgd.FubiniStudy):
    """Does as `FAULTS` says, job by job."""

    jobs = 0

    def measure(self, params, batch=None, *, key=None):
        (g,) = super().measure(params, batch, key=key)
        faults = os.environ["FAULTS"].split(",")
        type(self).jobs += 1
        match faults[min(self.jobs, len(faults)) - 1]:
            case "raise":
                raise RuntimeError("token=secret")
            case "NaN":
                return [g.at[0, 0].set(jnp.nan)]
            case "shape":
                return [g[1:, 1:]]
            case "skewed":
                return [g.at[0, 1].add(1.0)]
            case "negative":
                return [-g]
            case "hang":
                time.sleep(1000)
        return [g]


def faulty():
    """One that fails."""
    return _Faulty(energy()._circuits[""].held.qnode, every=None)


def no_metric():
    """Something else."""
    return _qnode()
