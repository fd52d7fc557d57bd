"""Measure what superposition costs a step, a compilation and a probe, against `optax.adamw`.

Run it as `python -m benchmarks.step_time`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

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

In each round every optimizer takes one step (on an accelerator ten, one after the other), in a
random order; the ratio is taken within the round, and the table shows the median over rounds with
its 95 % interval (order statistics). `adamw again` is a second, identical optax.adamw: what it is
off 1 is noise of the machine.
Nothing but the optimizer is timed: gradients are constant, so in training the ratio of a whole step
is closer to 1.

On CPU, steps of entangled circuits are also timed as XLA schedules them with the compiler option
xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED ("for memory"): by default it holds what
they add to the memory of a step for all leaves at once.

The floor is the time to move the arrays that XLA's kernels of a step read and write, each as large
as all parameters, at the bandwidth of an in-place addition of two trees in the same run. Memory is
what the compiled step holds beside its arguments, beyond adamw, as XLA schedules it by default and,
on CPU, for memory; and what the optimizer's state holds beyond adamw's.

Also: the extra time that compiling the first step of 200 leaves of 8 shapes takes, and the time to
probe 81 settings on lightning.qubit, with the eight more that check them.
"""

# Arrays of the parameters' size that a step moves. XLA makes three kernels of adamw, of g, m -> m;
# g, v -> v; and p, m, v -> p. Eq. 1 reads g again in the last. Entangled blocks take a kernel of
# their own: p, g -> w g, which the last one reads; or m, v -> u and p, u -> u (1 + w), which makes
# the last one p, u -> p.
ARRAYS = {
    "adamw": 10,
    "adamw again": 10,
    "leading": 10,
    "leading, update": 10,
    "leading, refreshable": 10,
    "everywhere, depth 0": 11,
    "everywhere, depth 0, update": 10,
    "everywhere, depth 1": 14,
    "everywhere, depth 1, update": 15,
    "everywhere, depth 2": 14,
    "everywhere, depth 2, update": 15,
    "everywhere, depth 2, refreshable": 14,
}
MEMORY_OPTIMIZED = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
FOR_MEMORY = ", for memory"
LAYERS_TO_COMPILE = 25  # 200 leaves
STEPS_IN_A_TURN = 10

Step = Callable[[PyTree, optax.OptState, PyTree], tuple[PyTree, optax.OptState]]


def optimizers() -> dict[str, optax.GradientTransformation]:
    """The optimizers that are timed; the first is what the others are compared with."""
    eq_1 = functools.partial(qsgd.superpositional_adamw, 1e-3, weigh="gradient")
    update = functools.partial(qsgd.superpositional_adamw, 1e-3, weigh="update")
    found: dict[str, optax.GradientTransformation] = {
        "adamw": optax.adamw(1e-3),
        "adamw again": optax.adamw(1e-3),
        "leading": eq_1(),
        "leading, update": update(),
        "leading, refreshable": eq_1(surrogate=qsgd.refreshable(qsgd.probe(qsgd.Circuit()))),
    }
    for depth in (0, 1, 2):
        surrogate, name = qsgd.probe(qsgd.Circuit(depth=depth)), f"everywhere, depth {depth}"
        found[name] = eq_1(surrogate=surrogate, coverage="everywhere")
        found[f"{name}, update"] = update(surrogate=surrogate, coverage="everywhere")
    surrogate = qsgd.refreshable(qsgd.probe(qsgd.Circuit(depth=2)))
    found["everywhere, depth 2, refreshable"] = eq_1(surrogate=surrogate, coverage="everywhere")
    return found


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


def compiled_step(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    compiler_options: dict[str, Any] | None = None,
) -> tuple[Any, float]:
    """Compile one step afresh; also return the seconds from tracing to the executable."""

    def step(params: PyTree, state: optax.OptState, gradients: PyTree):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    began = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    compiled = lowered.compile(compiler_options)
    return compiled, time.perf_counter() - began


def compiled_steps(
    compared: Mapping[str, optax.GradientTransformation], params: PyTree
) -> dict[str, Any]:
    """Each optimizer's step; on CPU also as XLA schedules it for memory."""
    schedules: dict[str, dict[str, Any] | None] = {"": None}
    if jax.default_backend() == "cpu":
        schedules[FOR_MEMORY] = MEMORY_OPTIMIZED
    return {
        name + schedule: compiled_step(optimizer, params, options)[0]
        for name, optimizer in compared.items()
        for schedule, options in schedules.items()
    }


def memory(
    compared: Mapping[str, optax.GradientTransformation], params: PyTree, steps: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """Bytes of each optimizer's state, and of what its step holds beside its arguments."""
    report = {}
    for name, optimizer in compared.items():
        state = jax.eval_shape(optimizer.init, params)
        rows = {"state": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))}
        for column, schedule in (("default", ""), ("memory_optimized", FOR_MEMORY)):
            if name + schedule in steps:
                found = steps[name + schedule].memory_analysis()
                outputs = found.output_size_in_bytes - found.alias_size_in_bytes
                rows[column] = found.temp_size_in_bytes + outputs
        report[name] = rows
    return report


def bytes_per_second(params: PyTree, repeats: int = 20) -> float:
    """Bandwidth of adding one tree to another in place: two arrays read, one written."""
    add = jax.jit(lambda p, g: jax.tree.map(jnp.add, p, g), donate_argnums=0)
    own, other = jax.tree.map(jnp.copy, params), jax.tree.map(jnp.zeros_like, params)
    seconds = []
    for _ in range(repeats + 2):
        own, elapsed = _timed_turn(lambda own: add(own, other), own)
        seconds.append(elapsed)
    moved = 3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return moved / statistics.median(seconds[2:])  # the first compile and warm up


def _timed_turn(step: Callable[[PyTree], PyTree], state: PyTree) -> tuple[PyTree, float]:
    """Take steps and return the seconds of each.

    An accelerator is given several to do, as in training, so that it does not wait for Python.
    """
    steps = 1 if jax.default_backend() == "cpu" else STEPS_IN_A_TURN
    began = time.perf_counter()
    for _ in range(steps):
        state = step(state)
    state = jax.block_until_ready(state)
    return state, (time.perf_counter() - began) / steps


def time_steps(
    compared: Mapping[str, optax.GradientTransformation],
    params: PyTree,
    rounds: int,
    describe: str,
    steps: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Seconds of each step, `rounds` for each optimizer, interleaved."""
    gradients = jax.tree.map(lambda leaf: 0.01 * leaf + 0.003, params)
    running, states = {}, {}
    for label, compiled in (steps or compiled_steps(compared, params)).items():
        name = label.removesuffix(FOR_MEMORY)
        if label == name or ARRAYS.get(name, 0) > 11:
            running[label] = compiled
            if name not in states:  # both schedules of an optimizer step the same: memory is scarce
                own = jax.tree.map(jnp.copy, params)
                states[name] = own, compared[name].init(own)
    seconds: dict[str, list[float]] = {label: [] for label in running}
    order = np.random.default_rng(0)
    for index in tqdm(range(-3, rounds), desc=describe):
        for label in order.permutation(list(running)):
            name, compiled = label.removesuffix(FOR_MEMORY), running[label]
            states[name], elapsed = _timed_turn(
                lambda state, compiled=compiled: compiled(*state, gradients), states[name]
            )
            if index >= 0:  # the first rounds warm up
                seconds[label].append(elapsed)
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


def compile_seconds(
    compared: Mapping[str, optax.GradientTransformation], repeats: int
) -> dict[str, float]:
    """Median seconds to compile the first step of 200 leaves of 8 shapes."""
    params = transformer_like(2_000_000, layers=LAYERS_TO_COMPILE)
    leaves = dict(list(params.items())[-8 * LAYERS_TO_COMPILE :])
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for _ in tqdm(range(repeats), desc="compiling 200 leaves"):
        for name, optimizer in compared.items():
            seconds[name].append(compiled_step(optimizer, leaves)[1])
    return {name: statistics.median(times) for name, times in seconds.items()}


def probe_seconds(repeats: int) -> float:
    """Median seconds to probe the 81 settings of 4 qubits at depth 2 on lightning.qubit."""
    circuit, seconds = qsgd.Circuit(depth=2), []
    for _ in range(repeats + 1):  # the first loads the device's code
        began = time.perf_counter()
        qsgd.probe(circuit, device="lightning.qubit")
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
    parser.add_argument(
        "--optimizers",
        choices=ARRAYS,
        nargs="+",
        metavar="NAME",
        help=f"some of: {'; '.join(ARRAYS)}; ratios are to the first (default: all)",
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

    everything = optimizers()
    compared = {name: everything[name] for name in args.optimizers or everything}
    report: dict[str, Any] = {"benchmark": "step_time", "provenance": reporting.provenance()}
    report["steps"], report["memory"], report["bytes_per_second"] = {}, {}, {}
    for millions in args.millions:
        params = transformer_like(1_000_000 * millions, layers=6)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        bandwidth = bytes_per_second(params)
        steps = compiled_steps(compared, params)
        describe = f"{count / 1e6:.1f} M parameters"
        rows = ratios(time_steps(compared, params, args.rounds, describe, steps))
        for name, row in rows.items():
            row["floor_milliseconds"] = (
                1e3 * ARRAYS[name.removesuffix(FOR_MEMORY)] * 4 * count / bandwidth
            )
        report["steps"][str(count)] = rows
        report["bytes_per_second"][str(count)] = bandwidth
        report["memory"][str(count)] = {
            "largest_leaf": 4 * max(leaf.size for leaf in jax.tree.leaves(params)),
            "optimizers": memory(compared, params, steps),
        }
        # After each size: what is killed at the next one keeps this one.
        reporting.write_json(args.output / "step_time.json", report)
    report["probe_seconds"] = probe_seconds(args.repeats)
    report["compile_seconds"] = compile_seconds(compared, args.repeats)
    reporting.write_json(args.output / "step_time.json", report)
    for table in tables(report):
        table.print()


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return time and memory of a step for each size, and what compiling takes."""
    found = []
    for count, rows in report["steps"].items():
        bandwidth = report["bytes_per_second"][count]
        time_of_step = reporting.Table(
            f"One step of {int(count) / 1e6:.1f} M parameters",
            ["optimizer", "ms", "floor, ms", "ratio to adamw", "95 % interval"],
            [
                [
                    name,
                    f"{row['milliseconds']:.2f}",
                    f"{row['floor_milliseconds']:.2f}",
                    f"{row['ratio']:.3f}",
                    f"{row['low']:.3f} … {row['high']:.3f}",
                ]
                for name, row in rows.items()
            ],
            [f"Bandwidth of an addition in place: {bandwidth / 1e9:.1f} GB/s"],
        )
        held = report["memory"][count]["optimizers"]
        memory_of_step = reporting.Table(
            f"Memory of a step of {int(count) / 1e6:.1f} M parameters, more than adamw",
            ["optimizer", "state, bytes", *(f"{k}, MB" for k in held["adamw"] if k != "state")],
            [
                [name, f"{row['state'] - held['adamw']['state']:d}"]
                + [f"{(row[k] - held['adamw'][k]) / 1e6:.2f}" for k in row if k != "state"]
                for name, row in held.items()
            ],
            [
                f"The parameters: {4 * int(count) / 1e6:.2f} MB; the largest leaf: "
                f"{report['memory'][count]['largest_leaf'] / 1e6:.2f} MB"
            ],
        )
        found += [time_of_step, memory_of_step]
    first = next(iter(report["compile_seconds"].values()))
    compiling = reporting.Table(
        "Compiling the first step of 200 leaves of 8 shapes",
        ["optimizer", "s", "more than adamw"],
        [
            [name, f"{seconds:.2f}", f"{seconds - first:+.2f}"]
            for name, seconds in report["compile_seconds"].items()
        ],
        [f"Probing 81 settings on lightning.qubit: {1e3 * report['probe_seconds']:.0f} ms"],
    )
    return [*found, compiling]


if __name__ == "__main__":
    main()
