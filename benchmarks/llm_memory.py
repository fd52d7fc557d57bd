"""Tell the memory that a fine-tuning step needs on each device, without weights or running it.

Run it as `python -m benchmarks.llm_memory`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.llm.checkpoints import abstract_model
from benchmarks.llm.llama import PRESETS
from benchmarks.llm.memory import abstract_training, compiled_memory, compiled_step
from benchmarks.llm.training import Layout, Precision
from benchmarks.llm_finetune import positive

DESCRIPTION = """\
Compile the training step of a model with each optimizer, for a mesh of the devices that are here
or, with --virtual, of CPU devices that are not, and print what XLA plans to hold on each device at
once. Nothing is allocated: model, optimizer state and batch are shapes alone (jax.eval_shape).

On CPU, XLA computes bfloat16 and float16 in float32; what it plans for activations there is more
than on a GPU.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Compile, print the table, write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llm_memory",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", choices=PRESETS, default="llama-3.2-1b-instruct")
    parser.add_argument("--context", type=positive(int), default=2048, help="default: 2048")
    parser.add_argument("--batch-size", type=positive(int), default=1, help="default: 1")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="float32", help="default: float32"
    )
    parser.add_argument(
        "--mesh", nargs=2, type=positive(int), default=[1, 1], metavar=("DATA", "MODEL")
    )
    parser.add_argument("--virtual", action="store_true", help="CPU devices for the whole mesh")
    parser.add_argument("--output", type=Path, default=Path("results/llm_memory"))
    args = parser.parse_args(argv)
    config = PRESETS[args.model]
    if args.virtual:
        jax.config.update("jax_num_cpu_devices", prod(args.mesh))
    try:
        layout = Layout.over(args.mesh, config, args.batch_size)
    except ValueError as error:
        parser.error(str(error))

    everywhere = qsgd.Superposition(coverage="everywhere")
    optimizers = {
        "AdamW": optax.adamw(2e-5, weight_decay=0.01),
        "leading": qsgd.superpositional_adamw(2e-5, weight_decay=0.01),
        "everywhere": qsgd.superpositional_adamw(2e-5, weight_decay=0.01, superposition=everywhere),
    }
    shape = (1, args.batch_size, args.context)
    abstract = abstract_model(config, jnp.dtype(args.precision))[1]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    rows: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        chain = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
        graph, state, batch = abstract_training(config, chain, args.precision, layout, shape)
        compiled = compiled_step(graph, chain, state, batch)
        rows[name] = compiled_memory(compiled, state.params).as_json()
    for figures in rows.values():
        figures["peak_ratio"] = figures["peak_gib"] / rows["AdamW"]["peak_gib"]
    content = {
        "benchmark": "llm_memory",
        "provenance": reporting.provenance(),
        "arguments": {key: value for key, value in vars(args).items() if key != "output"},
        "parameters": parameters,
        "optimizers": rows,
    }
    reporting.write_json(args.output / "llm_memory.json", content)
    reporting.print_table(
        f"{args.model}: {parameters:,} parameters, GiB on each of {prod(args.mesh)}",
        ["optimizer", "parameters", "with optimizer state", "temporary", "peak", "ratio"],
        [
            [
                name,
                *(
                    f"{figures[f'{key}_gib']:.2f}"
                    for key in ("parameters", "state", "temporary", "peak")
                ),
                f"{figures['peak_ratio']:.4f}",
            ]
            for name, figures in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
