"""Measure what superposition costs a step, a compilation and a probe, against `optax.adamw`.

Run it as `python -m benchmarks.step_time`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from scipy import stats
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting

DESCRIPTION = """\
Time one jitted optimizer step on a transformer-like tree of parameters, with donated buffers, as a
ratio to optax.adamw in the same run.

In each round every optimizer takes one step, in a random order; the ratio is taken within the
round, and the table shows the median over rounds with its 95 % interval (order statistics).
`adamw again` is a second, identical optax.adamw: what it is off 1 is noise of the machine.
Nothing but the optimizer is timed: gradients are constant, so in training the ratio of a whole step
is closer to 1.

Also: the extra time that compiling the first step of 100 leaves of 8 shapes takes, and the time to
probe 81 settings on lightning.qubit.
"""

Step = Callable[[PyTree, optax.OptState, PyTree], tuple[PyTree, optax.OptState]]


def optimizers() -> dict[str, optax.GradientTransformation]:
    """The optimizers that are timed; the first is what the others are compared with."""
    everywhere = {
        depth: qsgd.Superposition(qsgd.Circuit(depth=depth), coverage="everywhere")
        for depth in (0, 1, 2)
    }
    return {
        "adamw": optax.adamw(1e-3),
        "adamw again": optax.adamw(1e-3),
        "leading": qsgd.superpositional_adamw(1e-3),
        "leading, update": qsgd.superpositional_adamw(1e-3, weigh="update"),
        "everywhere, depth 0": qsgd.superpositional_adamw(1e-3, superposition=everywhere[0]),
        "everywhere, depth 0, update": qsgd.superpositional_adamw(
            1e-3, superposition=everywhere[0], weigh="update"
        ),
        "everywhere, depth 1": qsgd.superpositional_adamw(1e-3, superposition=everywhere[1]),
        "everywhere, depth 2": qsgd.superpositional_adamw(1e-3, superposition=everywhere[2]),
    }


def transformer_like(n_parameters: int, layers: int) -> dict[str, Array]:
    """Leaves of a decoder's shapes, as wide as needed to hold about `n_parameters`.

    An embedding of 8 rows a column of width, and in each layer 8 shapes: four kernels of
    attention and feed-forward, two norms' scales and two biases.
    """
    width = 8 * max(1, round((n_parameters / (12 * layers + 8)) ** 0.5 / 8))
    shapes = {"embedding": (8 * width, width)}
    for layer in range(layers):
        shapes |= {
            f"{layer}/qkv": (width, 3, width),
            f"{layer}/out": (width, width),
            f"{layer}/up": (width, 4 * width),
            f"{layer}/down": (4 * width, width),
            f"{layer}/norm": (2, width),
            f"{layer}/scale": (width,),
            f"{layer}/bias": (4 * width,),
            f"{layer}/qkv_bias": (3, width),
        }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: 0.1 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def compiled_step(optimizer: optax.GradientTransformation, params: PyTree) -> tuple[Step, float]:
    """Compile one step afresh; also return the seconds from tracing to the executable."""

    def step(params: PyTree, state: optax.OptState, gradients: PyTree):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return compiled, time.perf_counter() - began


def time_steps(params: PyTree, rounds: int, describe: str) -> dict[str, np.ndarray]:
    """Seconds of each step, `rounds` for each optimizer, interleaved."""
    gradients = jax.tree.map(lambda leaf: 0.01 * leaf + 0.003, params)
    running = {}
    for name, optimizer in optimizers().items():
        step, _ = compiled_step(optimizer, params)
        own = jax.tree.map(jnp.copy, params)
        running[name] = (step, own, optimizer.init(own))
    seconds: dict[str, list[float]] = {name: [] for name in running}
    order = np.random.default_rng(0)
    for index in tqdm(range(-3, rounds), desc=describe):
        for name in order.permutation(list(running)):
            step, own, state = running[name]
            began = time.perf_counter()
            own, state = jax.block_until_ready(step(own, state, gradients))
            elapsed = time.perf_counter() - began
            running[name] = (step, own, state)
            if index >= 0:  # the first rounds warm up
                seconds[name].append(elapsed)
    return {name: np.array(times) for name, times in seconds.items()}


def ratios(seconds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Median milliseconds, and the median ratio to the first within rounds with its interval."""
    first = next(iter(seconds.values()))
    report = {}
    for name, times in seconds.items():
        ratio = times / first
        interval = stats.quantile_test(ratio, p=0.5).confidence_interval()
        report[name] = {
            "milliseconds": 1e3 * float(np.median(times)),
            "ratio": float(np.median(ratio)),
            "low": float(interval.low),
            "high": float(interval.high),
            "rounds": len(times),
        }
    return report


def compile_seconds(repeats: int) -> dict[str, float]:
    """Median seconds to compile the first step of 100 leaves of 8 shapes."""
    params = transformer_like(2_000_000, layers=13)
    hundred = dict(list(params.items())[-100:])
    seconds: dict[str, list[float]] = {name: [] for name in optimizers()}
    for _ in tqdm(range(repeats), desc="compiling 100 leaves"):
        for name, optimizer in optimizers().items():
            seconds[name].append(compiled_step(optimizer, hundred)[1])
    return {name: statistics.median(times) for name, times in seconds.items()}


def probe_seconds(repeats: int) -> float:
    """Median seconds to probe the 81 settings of 4 qubits at depth 2 on lightning.qubit."""
    seconds = []
    for _ in range(repeats + 1):  # the first loads the device's code
        superposition = qsgd.Superposition(qsgd.Circuit(depth=2), device="lightning.qubit")
        began = time.perf_counter()
        _ = superposition.coefficients
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_time",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--millions",
        type=int,
        nargs="+",
        default=[1, 10, 100],
        metavar="X",
        help="sizes of the tree in millions of parameters (default: 1 10 100)",
    )
    parser.add_argument("--rounds", type=int, default=200, metavar="X", help="default: %(default)s")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="X",
        help="compilations and probes (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for step_time.json (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.rounds < 6:
        parser.error(f"argument --rounds: {args.rounds} is too few for an interval; at least 6")

    report: dict[str, Any] = {"benchmark": "step_time", "provenance": reporting.provenance()}
    report["probe_seconds"] = probe_seconds(args.repeats)
    report["compile_seconds"] = compile_seconds(args.repeats)
    report["steps"] = {}
    for millions in args.millions:
        params = transformer_like(1_000_000 * millions, layers=6)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        seconds = time_steps(params, args.rounds, f"{count / 1e6:.1f} M parameters")
        report["steps"][str(count)] = ratios(seconds)
    reporting.write_json(args.output / "step_time.json", report)
    _print(report)


def _print(report: Mapping[str, Any]) -> None:
    for count, rows in report["steps"].items():
        reporting.print_table(
            f"One step of {int(count) / 1e6:.1f} M parameters",
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
    first = next(iter(report["compile_seconds"].values()))
    reporting.print_table(
        "Compiling the first step of 100 leaves of 8 shapes",
        ["optimizer", "s", "more than adamw"],
        [
            [name, f"{seconds:.2f}", f"{seconds - first:+.2f}"]
            for name, seconds in report["compile_seconds"].items()
        ],
        [f"Probing 81 settings on lightning.qubit: {1e3 * report['probe_seconds']:.0f} ms"],
    )


if __name__ == "__main__":
    main()
