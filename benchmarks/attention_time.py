"""Time quantum attention beside Flax's own, forward and backward.

Run it as `python -m benchmarks.attention_time`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree
from tqdm import tqdm

from benchmarks import attention_reference, reporting
from benchmarks.step_time import ratios
from qsgd_jax.nn import QuantumAttention

DESCRIPTION = """\
Time attention forward and backward (output, and derivatives with respect to inputs and
parameters) with batch 32, 4 heads, 64 features, float32, no mask, no dropout:

  layer      nnx.MultiHeadAttention, with its projections
  function   its attention_fn alone, nnx.dot_product_attention by default

each with Flax's own attention (twice: the second is a control) and with QuantumAttention of 4
qubits and depth 2. In each round every arm has one turn, in a random order: two calls, of which
the first brings the program back into the caches and the second (on an accelerator ten, one after
the other) is timed. Ratios are taken within
the round. Shown are medians over rounds with their 95 % intervals (order statistics). The peak is
what XLA reserves beside arguments and results, in tensors of the scores' size; so is the largest
tensor.

The last table is one circuit for each score (PennyLane's default.qubit, all circuits in one
broadcast, compiled) beside the same, at --circuits-length.
"""

BATCH, HEADS, FEATURES = 32, 4, 16
N_QUBITS, DEPTH = 4, 2
UNIFORM = nnx.initializers.uniform(2 * np.pi)

Program = Callable[[PyTree, PyTree], Any]


def with_derivatives(function: Callable[[PyTree, PyTree], Array]) -> Program:
    """Return the output and all derivatives of the sum of its squares."""

    def loss(params: PyTree, arrays: PyTree):
        output = function(params, arrays)
        return (output**2).sum(), output

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


def layers(length: int) -> tuple[dict[str, tuple[Program, PyTree]], PyTree]:
    """Build the whole layers: for each name the program and its parameters, and the input."""

    def layer(attention: QuantumAttention | None) -> tuple[Program, PyTree]:
        options: dict[str, Any] = {} if attention is None else {"attention_fn": attention}
        module = nnx.MultiHeadAttention(
            HEADS, HEADS * FEATURES, decode=False, rngs=nnx.Rngs(0), **options
        )
        graph, params = nnx.split(module)
        return with_derivatives(lambda params, x: nnx.merge(graph, params)(x)), params

    x = jax.random.normal(jax.random.key(0), (BATCH, length, HEADS * FEATURES))
    return {
        "flax": layer(None),
        "flax again": layer(None),
        "amplitude": layer(QuantumAttention(N_QUBITS, DEPTH, rngs=nnx.Rngs(0))),
        "probability": layer(
            QuantumAttention(N_QUBITS, DEPTH, readout="probability", rngs=nnx.Rngs(0))
        ),
    }, x


def functions(length: int) -> tuple[dict[str, tuple[Program, PyTree]], PyTree]:
    """Build the attention functions alone, as `layers` does."""
    attend: Any = nnx.dot_product_attention
    flax = with_derivatives(lambda _, arrays: attend(*arrays)), {}

    def quantum(**options: Any) -> tuple[Program, PyTree]:
        graph, params = nnx.split(
            QuantumAttention(N_QUBITS, DEPTH, angle_init=UNIFORM, rngs=nnx.Rngs(0), **options)
        )
        return with_derivatives(lambda params, x: nnx.merge(graph, params)(*x)), params

    shape = (BATCH, length, HEADS, FEATURES)
    arrays = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3)]
    return {
        "flax": flax,
        "flax again": flax,
        "amplitude": quantum(),
        "probability": quantum(readout="probability"),
    }, arrays


def one_circuit_a_score(length: int) -> tuple[Program, PyTree, PyTree]:
    """Build the attention function that simulates every score's circuit."""
    _, arrays = functions(length)
    attention = QuantumAttention(N_QUBITS, DEPTH, angle_init=UNIFORM, rngs=nnx.Rngs(0))

    def call(angles: Array, arrays: PyTree) -> Array:
        query, key, value = arrays
        return attention_reference.attention(query, key, value, angles, "amplitude")[0]

    return with_derivatives(call), attention.angles[...], arrays


def time_programs(
    programs: Mapping[str, Callable[[], Any]], rounds: int, describe: str
) -> dict[str, np.ndarray]:
    """Seconds of each program's second call in each round, interleaved.

    An accelerator is given ten to do, so that it does not wait for Python.
    """
    calls, result = 1 if jax.default_backend() == "cpu" else 10, None
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    order = np.random.default_rng(0)
    for index in tqdm(range(-2, rounds), desc=describe):
        for name in order.permutation(list(programs)):
            jax.block_until_ready(programs[name]())
            began = time.perf_counter()
            for _ in range(calls):
                result = programs[name]()
            jax.block_until_ready(result)
            if index >= 0:  # the first rounds warm up
                seconds[name].append((time.perf_counter() - began) / calls)
    return {name: np.array(times) for name, times in seconds.items()}


def measure(parts: Callable, length: int, rounds: int) -> dict[str, Any]:
    """Time one part at one length, and look at the memory it takes."""
    programs, arrays = parts(length)
    scores = BATCH * HEADS * length**2
    compiled, memory = {}, {}
    for name, (program, params) in programs.items():
        began = time.perf_counter()
        step = jax.jit(program).lower(params, arrays).compile()
        memory[name] = {"compile_seconds": time.perf_counter() - began}
        memory[name] |= _memory(step, scores)
        compiled[name] = lambda step=step, params=params: step(params, arrays)
    found = ratios(time_programs(compiled, rounds, f"{parts.__name__}, length {length}"))
    return {name: row | memory[name] for name, row in found.items()}


def _memory(compiled: Any, scores: int) -> dict[str, float]:
    program = compiled.as_text().partition("ENTRY")[2]  # within fusions, nothing is stored
    shapes = re.findall(r"\w\d+\[([\d,]+)\]", program)
    largest = max(np.prod([int(size) for size in shape.split(",")]) for shape in shapes)
    return {
        "peak_over_scores": compiled.memory_analysis().temp_size_in_bytes / (4 * scores),
        "largest_over_scores": float(largest / scores),
    }


def compare_with_circuits(length: int, rounds: int) -> dict[str, Any]:
    """Time one circuit for each score beside the polynomial of them all, and compare both."""
    programs, _ = functions(length)
    program, angles, arrays = one_circuit_a_score(length)
    quick, params = programs["amplitude"]
    slow, fast = jax.jit(program), jax.jit(quick)
    (_, expected), (_, output) = slow(angles, arrays)[0], fast(params, arrays)[0]
    found = ratios(
        time_programs(
            {
                "amplitude": lambda: fast(params, arrays),
                "one circuit a score": lambda: slow(angles, arrays),
            },
            rounds,
            f"circuits, length {length}",
        )
    )
    return {"rows": found, "largest_difference": float(jnp.abs(output - expected).max())}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention_time",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[32, 64, 128, 256, 512],
        metavar="X",
        help="lengths of the sequences (default: 32 64 128 256 512)",
    )
    for name, default, text in (
        ("rounds", 30, "of each length"),
        ("circuits-length", 32, "where each score has its circuit"),
        ("circuits-rounds", 20, "of one circuit for each score"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="X", help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for attention_time.json (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    for name in ("rounds", "circuits_rounds"):
        if getattr(args, name) < 6:
            option = name.replace("_", "-")
            parser.error(
                f"argument --{option}: {getattr(args, name)} is too few for an interval; at least 6"
            )
    if min(*args.lengths, args.circuits_length) < 1:
        parser.error("lengths must be at least 1")

    report: dict[str, Any] = {"benchmark": "attention_time", "provenance": reporting.provenance()}
    report["lengths"] = {}
    for length in args.lengths:
        report["lengths"][str(length)] = {
            part.__name__: measure(part, length, args.rounds) for part in (layers, functions)
        }
        # After each length: what is killed at the next one keeps this one.
        reporting.write_json(args.output / "attention_time.json", report)
    report["circuits"] = {"length": args.circuits_length}
    report["circuits"] |= compare_with_circuits(args.circuits_length, args.circuits_rounds)
    reporting.write_json(args.output / "attention_time.json", report)
    for table in tables(report):
        table.print()


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the times of each length, and those of one circuit for each score."""
    interval = "{ratio:.3f} [{low:.3f}, {high:.3f}]"
    found = [
        reporting.Table(
            f"Attention of length {length}, forward and backward",
            ["", "ms", "ratio to flax", "peak", "largest", "compile s"],
            [
                [
                    f"{part[:-1]}, {name}",
                    f"{row['milliseconds']:.2f}",
                    interval.format(**row),
                    f"{row['peak_over_scores']:.2f}",
                    f"{row['largest_over_scores']:.2f}",
                    f"{row['compile_seconds']:.1f}",
                ]
                for part, rows in parts.items()
                for name, row in rows.items()
            ],
        )
        for length, parts in report["lengths"].items()
    ]
    circuits = report["circuits"]
    last = reporting.Table(
        f"One circuit for each score, length {circuits['length']}",
        ["", "ms", "ratio to the polynomial"],
        [
            [
                name,
                f"{row['milliseconds']:.1f}",
                "{ratio:.0f} [{low:.0f}, {high:.0f}]".format(**row),
            ]
            for name, row in circuits["rows"].items()
        ],
        [f"Largest difference of the outputs: {circuits['largest_difference']:.1e}"],
    )
    return [*found, last]


if __name__ == "__main__":
    main()
