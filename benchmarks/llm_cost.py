"""Tell what a fine-tuning step costs on each device: memory without running it, and time.

Run it as `python -m benchmarks.llm_cost`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, get_args

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.arguments import not_negative, positive
from benchmarks.llm.llama import PRESETS, Llama, abstract_model
from benchmarks.llm.memory import abstract_training, compiled_memory, compiled_step
from benchmarks.llm.rows import Batch
from benchmarks.llm.training import Layout, Precision, new_state
from benchmarks.spectral_time import optax_muon
from benchmarks.step_time import ratios

DESCRIPTION = """\
Compile the training step of a model with each optimizer and print what XLA plans to hold on each
device at once. Nothing is allocated for that: model, optimizer state and batch are shapes alone
(jax.eval_shape). The mesh is of the devices that are here or, with --virtual, of CPU devices that
are not.

With --rounds, steps are taken, too, from random weights: in each round one by every optimizer, in
a random order, AdamW's twice as the control. The tables show medians over rounds, and of the ratio
to AdamW within the round, with a 95 % interval (order statistics). An optimizer's share is its own
update, compiled and timed alone, over the whole step. One device only.

"muon" is optax.contrib.muon, and "spectral" qsgd_jax.superpositional_muon, on the same matrices;
the others between them and AdamW are of qsgd_jax.superpositional_adamw.

On CPU, XLA computes bfloat16 and float16 in float32; what it plans for activations there is more
than on a GPU.
"""

CLIP = optax.clip_by_global_norm(1.0)
OPTIMIZERS = (
    "AdamW",
    "AdamW again",
    "leading",
    "everywhere",
    "everywhere, update",
    "muon",
    "spectral",
)


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Return what is compared; the circuits are run here."""
    superpositional = partial(qsgd.superpositional_adamw, 2e-5, weight_decay=0.01)
    found = (
        optax.adamw(2e-5, weight_decay=0.01),
        optax.adamw(2e-5, weight_decay=0.01),
        superpositional(weigh="gradient"),
        superpositional(weigh="gradient", coverage="everywhere"),
        superpositional(weigh="update", coverage="everywhere"),
        optax_muon(2e-5, weight_decay=0.01, adam_weight_decay=0.01),
        qsgd.superpositional_muon(2e-5, weight_decay=0.01, adam_weight_decay=0.01),
    )
    return dict(zip(OPTIMIZERS, found, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Compile, time, print the tables, write JSON."""
    parser = _parser()
    args = parser.parse_args(argv)
    config = PRESETS[args.model]
    if args.virtual:
        jax.config.update("jax_num_cpu_devices", prod(args.mesh))
    try:
        layout = Layout.over(args.mesh, config, args.batch_size)
        if args.rounds and layout.mesh is not None:
            raise ValueError("--rounds: on one device only, without --mesh.")
        if 0 < args.rounds < 6:
            raise ValueError(f"--rounds {args.rounds}: at least 6, for an interval, or 0.")
    except ValueError as error:
        parser.error(str(error))

    shape = (1, args.batch_size, args.context)
    abstract = abstract_model(config, jnp.dtype(args.precision))[1]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    rows: dict[str, Any] = {}
    steps = {}
    everything = optimizers()
    compared = {name: everything[name] for name in args.optimizers or everything}
    for name, optimizer in compared.items():
        chain = optax.chain(CLIP, optimizer)
        graph, state, batch = abstract_training(config, chain, args.precision, layout, shape)
        steps[name] = compiled_step(graph, chain, state, batch)
        rows[name] = compiled_memory(steps[name], state.params).as_json()
    first = next(iter(rows.values()))
    for figures in rows.values():
        figures["peak_ratio"] = figures["peak_gib"] / first["peak_gib"]
    content = {
        "benchmark": "llm_cost",
        "provenance": reporting.provenance(),
        "arguments": {key: value for key, value in vars(args).items() if key != "output"},
        "parameters": parameters,
        "optimizers": rows,
    }
    reporting.write_json(args.output / "llm_cost.json", content)
    if args.rounds:
        for name, figures in _times(args, compared, steps).items():
            rows[name] |= figures
        reporting.write_json(args.output / "llm_cost.json", content)
    for table in tables(content):
        table.print()


def _times(
    args: argparse.Namespace,
    compared: dict[str, optax.GradientTransformation],
    steps: dict[str, Any],
) -> dict[str, Any]:
    """Return seconds of each step and update, and their ratios to AdamW's."""
    config = PRESETS[args.model]
    rng = np.random.default_rng(0)

    def draw() -> PyTree:
        return nnx.split(Llama(config, rngs=nnx.Rngs(0)))[1]

    tokens = rng.integers(
        config.vocab_size, size=(1, args.batch_size, args.context), dtype=np.int32
    )
    ones = np.ones_like(tokens)
    batch = jax.device_put(Batch(tokens, tokens, ones.astype(np.float32), ones))
    states = {
        name: new_state(draw(), optax.chain(CLIP, optimizer), args.precision)
        for name, optimizer in compared.items()
    }
    gradients = draw()
    updates = {name: _compiled_update(optax.chain(CLIP, o)) for name, o in compared.items()}
    seconds = {kind: {name: [] for name in compared} for kind in ("step", "update")}
    for number in tqdm(range(args.rounds + 1), unit="round"):
        for name in rng.permutation(list(compared)).tolist():
            began = time.perf_counter()
            states[name], _ = jax.block_until_ready(steps[name](states[name], batch))
            middle = time.perf_counter()
            state = states.pop(name)
            params, opt_state = jax.block_until_ready(
                updates[name](gradients, state.opt_state, state.params)
            )
            if number:  # the first round warms up
                seconds["step"][name].append(middle - began)
                seconds["update"][name].append(time.perf_counter() - middle)
            states[name] = state.replace(params=params, opt_state=opt_state)
    ratio = ratios({name: np.array(times) for name, times in seconds["step"].items()})
    return {
        name: {
            "update_seconds": float(np.median(seconds["update"][name])),
            "share": float(np.median(np.divide(seconds["update"][name], seconds["step"][name]))),
            "step": ratio[name],
        }
        for name in compared
    }


def _compiled_update(chain: optax.GradientTransformation) -> Any:
    @partial(jax.jit, donate_argnums=(1, 2))
    def update(gradients: PyTree, opt_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        updates, opt_state = chain.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return update


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the memory of a step and, where steps were taken, their time."""
    arguments, rows = report["arguments"], report["optimizers"]
    sizes = ("parameters", "state", "temporary", "peak")
    title = f"{arguments['model']}: {report['parameters']:,} parameters"
    memory = reporting.Table(
        f"{title}, GiB on each of {prod(arguments['mesh'])}",
        ["optimizer", "parameters", "with optimizer state", "temporary", "peak", "ratio"],
        [
            [name, *(f"{row[f'{key}_gib']:.2f}" for key in sizes), f"{row['peak_ratio']:.4f}"]
            for name, row in rows.items()
        ],
    )
    if not arguments["rounds"]:
        return [memory]
    seconds = reporting.Table(
        "Time",
        ["optimizer", "s a step", "ratio to AdamW", "s of its update", "share of the step"],
        [
            [
                name,
                f"{row['step']['milliseconds'] / 1e3:.3f}",
                "{ratio:.3f} [{low:.3f}, {high:.3f}]".format(**row["step"]),
                f"{row['update_seconds']:.3f}",
                f"{row['share']:.1%}",
            ]
            for name, row in rows.items()
        ],
    )
    return [memory, seconds]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llm_cost",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", choices=PRESETS, default="llama-3.2-1b-instruct", help="default: %(default)s"
    )
    parser.add_argument(
        "--optimizers",
        choices=OPTIMIZERS,
        nargs="+",
        metavar="NAME",
        help=f"some of: {'; '.join(OPTIMIZERS)}; ratios are to the first (default: all)",
    )
    parser.add_argument("--context", type=positive(int), default=2048, help="default: 2048")
    parser.add_argument("--batch-size", type=positive(int), default=1, help="default: 1")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="float32", help="default: float32"
    )
    parser.add_argument(
        "--mesh",
        nargs=2,
        type=positive(int),
        default=[1, 1],
        metavar=("DATA", "MODEL"),
        help="devices that rows, and parameters, are split over (default: 1 1)",
    )
    parser.add_argument("--virtual", action="store_true", help="CPU devices for the whole mesh")
    parser.add_argument(
        "--rounds", type=not_negative(int), default=0, help="of steps to time (default: none)"
    )
    parser.add_argument("--output", type=Path, default=Path("results/llm_cost"))
    return parser


if __name__ == "__main__":
    main()
