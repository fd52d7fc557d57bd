"""The comparison with PyTorch and Qiskit, against a peer that only pretends to be them."""

import json
import sys
from functools import partial

import jax
import numpy as np
import optax
import pytest

from benchmarks import peer_step, training
from qsgd_jax.nn import QuantumTransformer

FAKE = """\
import json, sys
import numpy as np

arrays = np.load(sys.argv[1])
assert arrays["layers.0.attention.out.kernel"].shape == (4, 16, 64)
assert arrays["tokens"].shape == (125, 32, 16) and arrays["labels"].shape == (125, 32)
print(json.dumps({{"error_of_weights": {error}}}), flush=True)
for line in sys.stdin:
    answer = {losses} if "check" in line else {{"adamw": 1.0, "superpositional": 3.0}}[line.strip()]
    print(json.dumps(answer), flush=True)
"""
LOSSES = {"adamw": [2.3, 2.2], "superpositional": [2.3, 2.1]}


@pytest.fixture(scope="module")
def epoch():
    """With one layer, which compiles in half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "QuantumTransformer", partial(QuantumTransformer, layers=1))
        yield peer_step.Epoch()


@pytest.fixture
def measure(tmp_path, monkeypatch, epoch):
    """Run the benchmark beside a peer that claims these losses and this error of its weights."""
    monkeypatch.setattr(peer_step, "exact_losses", lambda *_: LOSSES)
    monkeypatch.setattr(peer_step, "Epoch", lambda: epoch)

    def run(claimed, error=1e-15):
        path = tmp_path / "fake.py"
        path.write_text(FAKE.format(losses=claimed, error=error))
        monkeypatch.setattr(peer_step, "PEER", path)
        arguments = ["--python", sys.executable, "--rounds", "6", "--output", str(tmp_path)]
        peer_step.main(arguments)
        return json.loads((tmp_path / "peer_step.json").read_text())

    return run


@pytest.mark.slow
def test_a_peer_that_trains_the_same_is_measured(measure):
    report = measure(LOSSES)
    torch = report["superposition_adds"]["torch"]
    assert torch["ratio"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert torch["extra_milliseconds"]["median"] == 2000.0
    flax_ms = report["milliseconds"]["flax superpositional"]
    assert 0 < flax_ms["low"] <= flax_ms["median"] <= flax_ms["high"]
    assert report["torch_over_flax"]["high"] == pytest.approx(3000 / flax_ms["low"])


def test_a_peer_without_eq_1_is_refused(measure):
    with pytest.raises(RuntimeError, match="something else, superpositional"):
        measure({"adamw": LOSSES["adamw"], "superpositional": LOSSES["adamw"]})


def test_a_peer_whose_weights_are_no_sines_is_refused(measure):
    with pytest.raises(RuntimeError, match="off sin"):
        measure(LOSSES, error=1e-9)


@pytest.mark.slow
def test_one_step_is_adamw_and_eq_1(epoch):
    plain, superposed = (
        peer_step.Training(epoch, optimizer, dropout=False)
        for optimizer in peer_step.optimizers(peer_step.LARGE_QUANTUM_WEIGHT).values()
    )
    assert plain.step() == pytest.approx(superposed.step())
    first_moment = optax.tree.get(plain.state, "mu")  # of the first step: a tenth of the gradient

    def eq_1(theta, moment, after_adamw):
        q = np.sin(np.pi * np.asarray(theta, np.float64)) * 10 * np.asarray(moment)
        q.flat[4:] = 0
        return after_adamw - 1e-3 * peer_step.LARGE_QUANTUM_WEIGHT * q

    expected = jax.tree.map(eq_1, epoch.params, first_moment, plain.params)
    for result, value in zip(
        jax.tree.leaves(superposed.params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-7)
