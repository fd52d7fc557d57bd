"""What the shipped circuit costs: the optimizer alone, and in a whole training step.

In each round every optimizer takes one step of a transformer-like tree (gradients are constant),
and one epoch of 20 steps of the paper's transformer, in a random order; ratios to optax.adamw are
taken within the round, and the table shows their medians with 95 % intervals (order statistics).
`adamw again` is a second, identical optax.adamw: what it is off 1 is noise of the machine.

example: python -m benchmarks.learned_cost --millions 10 --rounds 60
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import datasets, reporting, training
from benchmarks.arguments import positive
from benchmarks.step_time import ratios, time_steps, transformer_like

BATCH, STEPS = 32, 20


def optimizers() -> dict[str, optax.GradientTransformation]:
    """AdamW, which the others are compared with, the shipped circuit, and other depths."""
    found: dict[str, optax.GradientTransformation] = {
        "adamw": optax.adamw(1e-3),
        "adamw again": optax.adamw(1e-3),
        "shipped circuit": qsgd.learned_superpositional_adamw(1e-3),
    }
    for depth in (1, 2, 3):
        circuit = qsgd.SignalSuperposition(qsgd.Circuit(n_qubits=4, depth=depth, seed=1))
        found[f"depth {depth}"] = qsgd.learned_superpositional_adamw(1e-3, superposition=circuit)
    return found


def time_training(rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a training step of the paper's transformer, means over epochs of 20 steps."""
    dataset = datasets.topic_order(train_size=BATCH * STEPS, validation_size=1, test_size=1)
    graph, params = training.new_model(dataset, jax.random.key(0))
    split = training.on_device(dataset.train)
    running = {}
    for name, optimizer in optimizers().items():
        own = jax.tree.map(jnp.copy, params)
        epoch = partial(training.run_epoch, graph, optimizer, BATCH)
        arguments = (own, optimizer.init(own), jax.random.key(1), *split)
        compiled = jax.jit(epoch, donate_argnums=(0, 1)).lower(*arguments).compile()
        running[name] = (compiled, *arguments[:2])
    seconds: dict[str, list[float]] = {name: [] for name in running}
    order = np.random.default_rng(0)
    for index in tqdm(range(-2, rounds), desc="the paper's transformer"):
        for name in order.permutation(list(running)):
            epoch, own, state = running[name]
            began = time.perf_counter()
            own, state, _ = jax.block_until_ready(epoch(own, state, jax.random.key(1), *split))
            elapsed = time.perf_counter() - began
            running[name] = (epoch, own, state)
            if index >= 0:  # the first rounds warm up
                seconds[name].append(elapsed / STEPS)
    return {name: np.array(times) for name, times in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learned_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--millions", type=positive(float), default=10, metavar="X", help="parameters of the tree")
    add("--rounds", type=positive(int), default=60, metavar="N", help="default: %(default)s")
    add("--output", type=Path, default=Path("results"), metavar="PATH", help="folder for the JSON")
    args = parser.parse_args(argv)
    if args.rounds < 6:
        parser.error(f"argument --rounds: {args.rounds} is too few for an interval; at least 6")
    params = transformer_like(int(1e6 * args.millions), layers=6)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    alone = f"{count / 1e6:.1f} M parameters"
    report = {
        "benchmark": "learned_cost",
        "provenance": reporting.provenance(),
        "parameters": count,
        "optimizer": ratios(time_steps(optimizers(), params, args.rounds, alone)),
        "training_step": ratios(time_training(args.rounds)),
    }
    reporting.write_json(args.output / "learned_cost.json", report)
    _print(f"The optimizer alone, {alone}", report["optimizer"])
    _print("A training step of the paper's transformer, batch 32", report["training_step"])


def _print(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    reporting.print_table(
        title,
        ["optimizer", "ms", "ratio to adamw", "95 % interval"],
        [
            [
                name,
                f"{row['milliseconds']:.2f}",
                f"{row['ratio']:.3f}",
                f"{row['low']:.3f} … {row['high']:.3f}",
            ]
            for name, row in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
