"""Fine-tune a Llama-architecture language model on GSM8K, AdamW and the package's forms in pairs.

Run it as `python -m benchmarks.llm_finetune`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PyTree

from benchmarks import reporting
from benchmarks.arguments import not_negative, positive
from benchmarks.arm import Arm, Build
from benchmarks.arms import KEYS, adamw, parse_arm, spectral, superposed
from benchmarks.devices import DEVICES
from benchmarks.llm import report
from benchmarks.llm.checkpoints import (
    CheckpointError,
    check_tensors,
    gguf_files,
    open_checkpoint,
)
from benchmarks.llm.gsm8k import GSM8K, encode, read_problems
from benchmarks.llm.memory import DoesNotFitError
from benchmarks.llm.report import tables
from benchmarks.llm.rows import Data, epoch
from benchmarks.llm.runs import RunError, Step, Task, claim, compile_step, finish, test_untrained
from benchmarks.llm.text import Text, open_text
from benchmarks.llm.training import Layout, Precision

DESCRIPTION = """\
Fine-tune a Llama-architecture language model on GSM8K with AdamW, and with superpositional AdamW or
the spectral form.

All runs of a seed start from the same weights and see the same problems in the same order, so that
differences are taken seed by seed. The settings are those of the paper's second experiment
(arXiv:2511.01918): context 2048, batch 1, learning rate 2e-5, weight decay 0.01, 500 of 7,473 steps
of warm-up, linear decay to 0, gradients clipped to norm 1, one epoch. The paper trained in float16;
--precision float16 does so, with loss scaling. Parameters and optimizer state are float32 always.
The loss is that of the answers alone.

The model is a Hugging Face folder (config.json, *.safetensors, tokenizer.json), a .gguf file
(dequantised), or a folder of llama2.c.

The same command again goes on where it was interrupted, and skips what is finished.
"""

EPILOG = """\
arms:
  AdamW comes first; all others are compared with it. --optimizer superpositional adds one arm for
  each --quantum-weight, --weigh and --coverage; --optimizer spectral adds superpositional_muon.
  --control adds AdamW from weights of which one is moved by one rounding unit: how far chance alone
  carries two runs apart. --arm adds superpositional AdamW as its specification says,
  NAME:KEY=VALUE,KEY=VALUE... with keys
  {keys}.

files in the output folder:
  llm_finetune.json       figures of every run, differences, versions, device, arguments
  llm_finetune.png        loss curves, and their distance from AdamW's
  ARM/seed-N/steps.jsonl  each step: loss, gradient norm, tokens, seconds
  ARM/seed-N/model        with --save-models: the weights, as a Hugging Face folder

figures:
  training loss   mean over the steps of the run, each on problems not yet trained on in its epoch
  test NLL        negative log likelihood of a test answer's token, in nats
  exact match     share of test problems whose greedy continuation has the right number after ####
  ±               half of the 95 %% t interval of a mean over seeds

examples:
  python -m benchmarks.llm_finetune --model DIR --data gsm8k/train.jsonl \\
      --optimizer superpositional --quantum-weight 0.5
  python -m benchmarks.llm_finetune --model model.gguf --data gsm8k/train.jsonl --limit 64 \\
      --context 512 --quantum-weight 0.1 0.5 --weigh gradient update --control --seeds 3
  python -m benchmarks.llm_finetune --model DIR --data gsm8k/train.jsonl --packing \\
      --mesh 2 4 --batch-size 8
"""

PAPER_STEPS, PAPER_WARMUP = 7473, 500


def main(argv: Sequence[str] | None = None) -> None:
    """Train all arms, then print the tables and write JSON and PNG."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        arms = _arms(args)
        checkpoint = open_checkpoint(args.model)
        text = open_text(args.model, checkpoint.config)
        data = _read(args, text, checkpoint.config.max_position_embeddings)
        layout = Layout.over(args.mesh, checkpoint.config, args.batch_size)
        check_tensors(checkpoint)
        settings = _settings(args)
        if args.save_models and not (args.model / "config.json").is_file():
            checkpoint.config.to_huggingface()  # to fail now rather than after training
        args.output.mkdir(parents=True, exist_ok=True)
        claim(args.output / "settings.json", settings)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    task = Task(args.model, checkpoint, args.precision, text, data, layout)
    try:
        _run(args, task, arms, settings)
    except (CheckpointError, DoesNotFitError, RunError) as error:
        parser.error(str(error))


def _run(
    args: argparse.Namespace, task: Task, arms: dict[str, Arm], settings: dict[str, Any]
) -> None:
    data, checkpoint = task.data, task.checkpoint
    parameters = sum(leaf.size for leaf in jax.tree.leaves(task.abstract[1]))
    note = f", {checkpoint.note}" if checkpoint.note else ""
    print(f"{args.model.name}: {parameters:,} parameters{note}; {args.precision}")
    first = data.train[0].problem
    for line in (*checkpoint.log, *task.text.described(first.question, first.answer)):
        print(line)
    print(
        f"{len(data.train):,} problems to train on, {len(data.test):,} to test on, rows of "
        f"{data.length} tokens; longer than the context and left out: "
        f"{data.too_long['train']} and {data.too_long['test']}"
    )

    untrained = test_untrained(task, args, args.output / "untrained.json")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    plans = [_plan(data, args, seed) for seed in range(args.seeds)]

    @cache
    def step(build: Build, steps: int) -> Step:
        return compile_step(task, args, make_optimizer(build, args, 0, steps))

    for seed, (name, arm) in itertools.product(range(args.seeds), arms.items()):
        plan, folder = plans[seed], args.output / name / f"seed-{seed}"
        optimizer = make_optimizer(arm.build, args, seed, len(plan))
        compiled = partial(step, arm.build, len(plan))
        change = partial(_start, arm, args.precision)
        run = finish(task, args, arm, folder, optimizer, compiled, change, plan)
        runs[name].append({"seed": seed, **run})

    content = {
        "benchmark": "llm_finetune",
        "provenance": reporting.provenance(),
        "arguments": settings | {"steps": [len(plan) for plan in plans]},
        "model": {"name": args.model.name, "parameters": parameters, "note": checkpoint.note},
        "data": {
            "train": len(data.train),
            "test": len(data.test),
            "too_long": data.too_long,
            "length": data.length,
        },
        "untrained": untrained,
        "arms": report.summaries(arms, runs),
    }
    reporting.write_json(args.output / "llm_finetune.json", content)
    report.plot(args.output / "llm_finetune.png", content)
    for table in tables(content):
        table.print()
    print(f"Wrote llm_finetune.json and llm_finetune.png to {args.output}")


CONTROL = "AdamW, one rounding unit away"


def _start(arm: Arm, precision: str, params: PyTree) -> PyTree:
    return moved_by_one_rounding_unit(params, precision) if arm.name == "control" else params


def _arms(args: argparse.Namespace) -> dict[str, Arm]:
    arms = {"adamw": Arm("adamw", "AdamW", adamw, "optax.adamw")}
    if args.control:
        arms["control"] = Arm("control", CONTROL, adamw, "optax.adamw")
    if args.optimizer == "superpositional":
        for weight, weigh, coverage in itertools.product(
            args.quantum_weight, args.weigh, args.coverage
        ):
            name = f"{weigh}-{coverage}-{weight}"
            if name in arms:
                raise ValueError(f"--quantum-weight {weight} is there twice.")
            build = superposed(quantum_weight=weight, weigh=weigh, coverage=coverage)
            settings = f"quantum_weight={weight}, weigh={weigh}, coverage={coverage}"
            arms[name] = Arm(name, f"λ = {weight}, {weigh}, {coverage}", build, settings)
    if args.optimizer == "spectral":
        rate = _peak_learning_rate(spectral, args)
        label = "spectral" if rate == args.learning_rate else f"spectral, learning rate {rate:g}"
        arms["spectral"] = Arm("spectral", label, spectral, "qsgd_jax.superpositional_muon")
    elif args.spectral_learning_rate is not None:
        raise ValueError("--spectral-learning-rate is that of --optimizer spectral.")
    for arm in args.arm:
        if arm.name in arms or arm.name == "control":
            raise ValueError(f"--arm: there are two arms called {arm.name!r}.")
        if not re.fullmatch(r"\w[\w.-]*", arm.name):
            raise ValueError(f"--arm: {arm.name!r} must be letters, digits, '_', '-' and '.'.")
        arms[arm.name] = arm
    for arm in arms.values():
        # To fail now rather than after the first arm has trained.
        arm.build(vars(args) | {"seed": 0}, _peak_learning_rate(arm.build, args))
    return arms


def make_optimizer(
    build: Build, args: argparse.Namespace, seed: int, steps: int
) -> optax.GradientTransformation:
    """Return gradient clipping and the arm's optimizer under the schedule of a run."""
    schedule = warmup_and_decay(_peak_learning_rate(build, args), warmup_steps(args, steps), steps)
    optimizer = build(vars(args) | {"seed": seed}, schedule)
    return optax.chain(optax.clip_by_global_norm(args.clip_norm), optimizer)


def _peak_learning_rate(build: Build, args: argparse.Namespace) -> float:
    own = args.spectral_learning_rate if build is spectral else None
    return args.learning_rate if own is None else own


def warmup_steps(args: argparse.Namespace, steps: int) -> int:
    """Return the paper's share of warm-up steps, unless the command line says how many."""
    if args.warmup_steps is not None:
        return min(args.warmup_steps, steps)
    return max(1, round(steps * PAPER_WARMUP / PAPER_STEPS))


def warmup_and_decay(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """Rise linearly to the peak at step `warmup`, then fall, to reach 0 after the last step."""

    def schedule(count: Any) -> jax.Array:
        rise = (count + 1) / max(warmup, 1)
        fall = (steps - count) / max(steps - warmup, 1)
        return peak * jnp.clip(jnp.minimum(rise, fall), 0, 1)

    return schedule


def moved_by_one_rounding_unit(params: PyTree, precision: str) -> PyTree:
    """Move the first scale of the last norm, which every token meets, by one unit upwards.

    The unit is that of the model's arithmetic: a smaller one would vanish in it.
    """
    flat = dict(nnx.to_flat_state(params))
    scale = flat["norm", "scale"]
    first = scale[...][0]
    unit = jnp.finfo(precision).eps * 2.0 ** jnp.floor(jnp.log2(jnp.abs(first)))
    flat["norm", "scale"] = scale.replace(scale[...].at[0].set(first + unit))
    return nnx.from_flat_state(flat)


def _read(args: argparse.Namespace, text: Text, most: int) -> Data:
    if args.context > most:
        raise ValueError(f"--context {args.context} is more than the model was made for, {most}.")
    files = {"train": (args.data, args.limit), "test": (_test_data(args), args.test_limit)}
    examples, too_long = {}, {}
    for name, (file, limit) in files.items():
        listed, blank = read_problems(file, limit)
        if blank:
            print(f"{file.name}: {blank} blank lines were skipped")
        every = encode(text, listed)
        examples[name] = [example for example in every if len(example) <= args.context]
        too_long[name] = len(every) - len(examples[name])
        if not examples[name]:
            raise ValueError(
                f"--context {args.context}: none of the {len(listed)} {name} problems fits into "
                f"it; the shortest has {min(map(len, every))} tokens."
            )
    longest = max(map(len, examples["train"] + examples["test"]))
    length = args.context if args.packing else min(args.context, -(-longest // 64) * 64)
    return Data(examples["train"], examples["test"], too_long, length)


def _plan(data: Data, args: argparse.Namespace, seed: int) -> list[list[list[int]]]:
    """Return which examples stand in each row of each step, over all epochs."""
    return [
        step
        for number in range(args.epochs)
        for step in epoch(
            data.train,
            seed=seed,
            number=number,
            packing=args.packing,
            length=data.length,
            rows_per_step=args.accumulate * args.batch_size,
        )
    ]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what runs depend on, as JSON: options, and the files by name, size and content."""
    paths = {"model": args.model, "data": args.data, "test_data": _test_data(args)}
    options = {key: value for key, value in vars(args).items() if key not in (*_FREE, *paths)}
    return {key: _fingerprint(path) for key, path in paths.items()} | options


def _fingerprint(path: Path) -> list[str]:
    """Tell files apart by their sizes and the first million bytes of each."""
    files = sorted(path.iterdir()) if path.is_dir() else gguf_files(path)
    prints = []
    for file in (file for file in files if file.is_file()):
        with file.open("rb") as content:
            digest = hashlib.sha256(content.read(1_000_000)).hexdigest()[:16]
        prints.append(f"{file.name} {file.stat().st_size} {digest}")
    return prints


def _test_data(args: argparse.Namespace) -> Path:
    return args.test_data or args.data.with_name("test.jsonl")


# What may differ between calls that share an output folder: which runs there are, not how.
_FREE = (
    *("output", "optimizer", "quantum_weight", "weigh", "coverage", "arm", "control", "seeds"),
    "checkpoint_every",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llm_finetune",
        description=DESCRIPTION,
        epilog=EPILOG.format(keys=", ".join(KEYS)).replace("%%", "%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("model and data")
    group.add_argument("--model", type=Path, required=True, metavar="PATH", help="see above")
    group.add_argument("--data", type=Path, required=True, metavar="PATH", help=f"GSM8K's {GSM8K}")
    group.add_argument(
        "--test-data", type=Path, metavar="PATH", help="default: test.jsonl beside --data"
    )
    _add(group, "limit", positive(int), None, "train on the first X problems (default: all)")
    _add(group, "test-limit", positive(int), None, "test on the first X problems (default: all)")

    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--optimizer",
        choices=("adamw", "superpositional", "spectral"),
        default="superpositional",
        help="AdamW alone, or what is beside it (default: %(default)s)",
    )
    _add(group, "quantum-weight", float, [0.5], "λ (default: 0.5)", nargs="+")
    for name, choices in (
        ("weigh", ("gradient", "update", "moments")),
        ("coverage", ("leading", "everywhere")),
    ):
        group.add_argument(
            f"--{name}",
            nargs="+",
            choices=choices,
            default=[choices[0]],
            help=f"default: {choices[0]}",
        )
    group.add_argument("--control", action="store_true", help="see below")
    group.add_argument(
        "--arm", action="append", type=parse_arm, default=[], metavar="SPEC", help="see below"
    )
    group.add_argument(
        "--device",
        metavar="NAME",
        help="PennyLane device: any that is installed, or one of "
        f"{', '.join(DEVICES)} (default: lightning.qubit)",
    )
    _add(group, "probe-shots", positive(int), None, "measurements of a setting (default: exact)")
    _add(group, "seeds", positive(int), 1, "orders of the data, 0, 1, ... (default: 1)")

    group = parser.add_argument_group("training")
    _add(group, "context", positive(int), 2048, "most tokens of a row (default: 2048)")
    _add(group, "batch-size", positive(int), 1, "rows at once (default: 1)")
    _add(group, "accumulate", positive(int), 1, "batches a step (default: 1)")
    group.add_argument(
        "--packing", action="store_true", help="put several problems into a row where they fit"
    )
    _add(group, "epochs", positive(int), 1, "passes over the data (default: 1)")
    _add(group, "learning-rate", positive(float), 2e-5, "at its peak (default: 2e-5)")
    spectral_rate = "of --optimizer spectral's own arm (default: that of --learning-rate)"
    _add(group, "spectral-learning-rate", positive(float), None, spectral_rate)
    decay = "decoupled, of all parameters (default: 0.01)"
    _add(group, "weight-decay", not_negative(float), 0.01, decay)
    _add(group, "warmup-steps", not_negative(int), None, "default: 500/7473 of the run")
    _add(group, "clip-norm", positive(float), 1.0, "greatest norm of a gradient (default: 1)")
    group.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="bfloat16",
        help="of the model's arithmetic (default: %(default)s)",
    )
    group.add_argument(
        "--mesh",
        nargs=2,
        type=positive(int),
        default=[1, 1],
        metavar=("DATA", "MODEL"),
        help="devices that rows, and parameters, are split over (default: 1 1)",
    )

    group = parser.add_argument_group("evaluation and output")
    _add(
        group,
        "generate",
        not_negative(int),
        100,
        "test problems that are answered, for exact match; each takes up to 256 tokens "
        "(default: 100)",
    )
    _add(group, "checkpoint-every", positive(int), 200, "steps (default: 200)")
    group.add_argument("--save-models", action="store_true", help="keep the weights of every run")
    group.add_argument(
        "--output",
        type=Path,
        default=Path("results/llm_finetune"),
        metavar="PATH",
        help="folder for the files (default: %(default)s)",
    )
    return parser


def _add(group: Any, name: str, kind: Any, default: Any, text: str, **options: Any) -> None:
    group.add_argument(f"--{name}", type=kind, default=default, metavar="X", help=text, **options)


if __name__ == "__main__":
    main()
