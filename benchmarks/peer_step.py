"""Measure whole training steps beside the peer that a user has today: PyTorch and Qiskit.

Run it as `python -m benchmarks.peer_step --python PATH`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree
from scipy import stats
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import datasets, reporting, training

DESCRIPTION = """\
Time whole training steps (forward, backward, optimizer) of the paper's text classifier in its
setting: batch 32, learning rate 1e-3, dropout 0.1, Eq. 1 at lambda 0.5 on the first four
coordinates of each tensor.

  Flax             one jitted function; optax.adamw and qsgd.superpositional_adamw
  PyTorch, Qiskit  eager; torch.optim.AdamW as it comes, and on top of it one Qiskit state vector
                   for each tensor and step (benchmarks/peers/torch_qiskit.py)

The peer runs in a process and an environment of its own:

  python3.11 -m venv PEER && PEER/bin/pip install -r benchmarks/peers/requirements.txt
  python -m benchmarks.peer_step --python PEER/bin/python

Both start from the same weights and see the same batches. Before anything is timed, the peer's
weights must be sin(pi theta) to 1e-12, and without dropout the losses of five steps must agree, at
a lambda so large that Eq. 1 shows in them.

In each round every arm has one turn, in a random order. A turn is two steps: the first brings the
program back into the caches, the second is timed. PyTorch has one thread, which was faster than two
on two cores that others used too; see --threads. Ratios and differences are taken within the
round; the tables show the median over rounds with its 95 % interval (order statistics).
"""

PEER = Path(__file__).parent / "peers" / "torch_qiskit.py"
BATCH_SIZE = 32
# Of the check alone: there λ = 0.5 changes the losses by less than rounding does.
LARGE_QUANTUM_WEIGHT = 300.0

Step = Callable[..., tuple[PyTree, optax.OptState, Float[Array, ""]]]


class Epoch:
    """The model's initial weights, and the batches of one epoch."""

    def __init__(self) -> None:
        """Draw the weights and the batches, always the same."""
        dataset = datasets.topic_order(validation_size=1, test_size=1)
        self.graph, self.params = training.new_model(dataset, jax.random.key(0))
        tokens, labels = training.on_device(dataset.train)
        count = len(labels) // BATCH_SIZE
        self.tokens = tokens[: count * BATCH_SIZE].reshape(count, BATCH_SIZE, -1)
        self.labels = labels[: count * BATCH_SIZE].reshape(count, BATCH_SIZE)

    def save(self, path: Path) -> None:
        """Write the arrays for the peer, the weights under their names."""
        leaves = jax.tree.leaves_with_path(nnx.to_pure_dict(self.params))
        named = {jax.tree_util.keystr(k, simple=True, separator="."): v for k, v in leaves}
        np.savez(path, allow_pickle=False, tokens=self.tokens, labels=self.labels, **named)


class Training:
    """Flax's training by one optimizer."""

    def __init__(
        self, epoch: Epoch, optimizer: optax.GradientTransformation, *, dropout: bool = True
    ):
        """Begin at the first batch."""
        self.batches = list(zip(epoch.tokens, epoch.labels, strict=True))
        self.params = jax.tree.map(jnp.copy, epoch.params)
        self.state = optimizer.init(self.params)
        self.key = jax.random.key(0) if dropout else None
        self.compiled = _compiled_step(epoch.graph, optimizer)
        self.steps = 0

    def step(self) -> float:
        """Take one training step and return the loss before it."""
        batch = self.batches[self.steps % len(self.batches)]
        self.params, self.state, loss = jax.block_until_ready(
            self.compiled(self.params, self.state, self.steps, self.key, *batch)
        )
        self.steps += 1
        return float(loss)

    def seconds(self) -> float:
        """Take one training step and return how long it took."""
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began


def _compiled_step(graph: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Step:
    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: PyTree,
        state: optax.OptState,
        index: Int[Array, ""],
        key: Key[Array, ""] | None,
        tokens: training.Tokens,
        labels: training.Labels,
    ):
        def mean_loss(params: PyTree) -> Float[Array, ""]:
            rngs = None if key is None else nnx.Rngs(dropout=jax.random.fold_in(key, index))
            model = nnx.merge(graph, params)
            logits = model(tokens, deterministic=rngs is None, rngs=rngs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def optimizers(quantum_weight: float) -> dict[str, optax.GradientTransformation]:
    """Flax's two arms; learning rate, betas and epsilon are those of the peer."""
    return {
        "adamw": optax.adamw(1e-3, weight_decay=0.0),
        "superpositional": qsgd.superpositional_adamw(
            1e-3, weight_decay=0.0, quantum_weight=quantum_weight, weigh="gradient"
        ),
    }


def exact_losses(epoch: Epoch, quantum_weight: float) -> dict[str, list[float]]:
    """The losses of five steps by each optimizer, without dropout."""
    losses = {}
    for name, optimizer in optimizers(quantum_weight).items():
        run = Training(epoch, optimizer, dropout=False)
        losses[name] = [run.step() for _ in range(5)]
    return losses


class Peer:
    """The peer's process; it ends with the `with` block."""

    def __init__(self, command: Sequence[Any]):
        """Start it and hear its hello."""
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hello = self._answer()

    def ask(self, command: str) -> Any:
        """Send one command and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The peer ended with status {self.process.wait()}, see above.")
        return json.loads(line)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes its input, which it takes as the end


def check(peer: Peer, epoch: Epoch) -> dict[str, float]:
    """Make sure that both train the same model by the same equation.

    Args:
        peer: Started on `epoch`.
        epoch: What both train.

    Returns:
        The error of the peer's weights, and the largest relative difference of the losses.

    Raises:
        RuntimeError: If the peer computes something else.
    """
    error = peer.hello["error_of_weights"]
    if not error <= 1e-12:
        raise RuntimeError(f"The peer's weights are off sin(π θ) by {error:.1e}.")
    theirs = peer.ask(f"check {LARGE_QUANTUM_WEIGHT}")
    off = 0.0
    for name, losses in exact_losses(epoch, LARGE_QUANTUM_WEIGHT).items():
        difference = float(np.max(np.abs(np.divide(theirs[name], losses) - 1)))
        if not difference <= 1e-4:
            raise RuntimeError(
                f"The peer trains something else, {name}: its losses are {theirs[name]}, "
                f"Flax's are {losses}."
            )
        off = max(off, difference)
    return {"error_of_weights": error, "relative_difference_of_losses": off}


def time_steps(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a step, `rounds` for each arm, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = np.random.default_rng(0)
    for index in tqdm(range(-3, rounds), desc="rounds"):
        for name in order.permutation(list(arms)):
            arms[name]()
            elapsed = arms[name]()
            if index >= 0:  # the first rounds compile and warm up
                seconds[name].append(elapsed)
    return {name: np.array(times) for name, times in seconds.items()}


def median(values: np.ndarray) -> dict[str, float]:
    """The median and its 95 % interval by order statistics."""
    interval = stats.quantile_test(values, p=0.5).confidence_interval()
    return {
        "median": float(np.median(values)),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def summary(seconds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Each arm's milliseconds, and what superposition adds to each framework's own AdamW."""
    added = {}
    for framework in ("flax", "torch"):
        plain, superposed = (seconds[f"{framework} {n}"] for n in ("adamw", "superpositional"))
        added[framework] = {
            "ratio": median(superposed / plain),
            "extra_milliseconds": median(1e3 * (superposed - plain)),
        }
    return {
        "milliseconds": {name: median(1e3 * times) for name, times in seconds.items()},
        "superposition_adds": added,
        "torch_over_flax": median(
            seconds["torch superpositional"] / seconds["flax superpositional"]
        ),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peer_step",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--python", required=True, metavar="PATH", help="Python of the peer's environment"
    )
    parser.add_argument("--rounds", type=int, default=100, metavar="X", help="default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="X", help="of PyTorch (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for peer_step.json (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.rounds < 6:
        parser.error(f"argument --rounds: {args.rounds} is too few for an interval; at least 6")

    report: dict[str, Any] = {"benchmark": "peer_step", "provenance": reporting.provenance()}
    epoch = Epoch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "epoch.npz"
        epoch.save(path)
        try:
            peer = Peer([args.python, PEER, path, "--threads", args.threads])
        except OSError as error:
            parser.error(f"argument --python: {error}")
        with peer:
            report["peer"] = peer.hello
            report["check"] = check(peer, epoch)
            arms: dict[str, Callable[[], float]] = {
                f"flax {name}": Training(epoch, optimizer).seconds
                for name, optimizer in optimizers(0.5).items()
            }
            arms |= {f"torch {name}": partial(peer.ask, name) for name in optimizers(0.5)}
            report |= {"rounds": args.rounds} | summary(time_steps(arms, args.rounds))
    reporting.write_json(args.output / "peer_step.json", report)
    for table in tables(report):
        table.print()


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return what a step takes in each arm, and what superposition adds to it."""
    steps = reporting.Table(
        f"One training step, {report['rounds']} rounds",
        ["arm", "ms", "95 % interval"],
        [[name, *_figures(row, ".2f")] for name, row in report["milliseconds"].items()],
    )
    ratio, interval = _figures(report["torch_over_flax"], ".2f")
    added = reporting.Table(
        "What superposition adds to the framework's own AdamW",
        ["framework", "ratio", "95 % interval", "extra ms", "95 % interval"],
        [
            [name, *_figures(row["ratio"], ".3f"), *_figures(row["extra_milliseconds"], "+.3f")]
            for name, row in report["superposition_adds"].items()
        ],
        [f"torch superpositional over flax superpositional: {ratio} ({interval})"],
    )
    return [steps, added]


def _figures(row: Mapping[str, float], spec: str) -> list[str]:
    return [format(row["median"], spec), f"{row['low']:{spec}} … {row['high']:{spec}}"]


if __name__ == "__main__":
    main()
