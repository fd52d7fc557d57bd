"""One run of a fine-tuning, from its last checkpoint on; evaluation; files."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import PyTree
from tqdm import tqdm

from benchmarks import reporting
from benchmarks.arm import Arm
from benchmarks.llm import memory
from benchmarks.llm.checkpoints import (
    Checkpoint,
    load_parameters,
    read_json,
    save_model,
)
from benchmarks.llm.gsm8k import final_number
from benchmarks.llm.llama import abstract_model
from benchmarks.llm.memory import Memory
from benchmarks.llm.rows import Batch, Data, Example, batches, fill
from benchmarks.llm.text import Text
from benchmarks.llm.training import (
    Layout,
    Precision,
    TrainState,
    greedy,
    losses_per_row,
    new_state,
)

NEW_TOKENS = 256  # of an answer, at most


@dataclass(frozen=True)
class Task:
    """What all runs share.

    Attributes:
      source: path of the model.
      checkpoint: what was found there.
      precision: of the model's arithmetic.
      text: its tokenizer and chat template.
      data: what it is trained and tested on.
      layout: where parameters and rows lie.
    """

    source: Path
    checkpoint: Checkpoint
    precision: Precision
    text: Text
    data: Data
    layout: Layout

    @cached_property
    def abstract(self) -> tuple[nnx.GraphDef, PyTree]:
        """Structure and parameters of the model, the latter as shapes."""
        return abstract_model(self.checkpoint.config, jnp.dtype(self.precision))

    @property
    def graph(self) -> nnx.GraphDef:
        """Structure of the model."""
        return self.abstract[0]

    def load(self) -> PyTree:
        """Read the parameters; each run does, so that none holds more than its own."""
        return load_parameters(self.checkpoint, self.layout.parameter)

    def shape(self, args: argparse.Namespace) -> tuple[int, int, int]:
        """Return the shape of a step's batch."""
        return args.accumulate, args.batch_size, self.data.length

    @cached_property
    def losses(self) -> Any:
        """`losses_per_row`, compiled once."""
        return jax.jit(partial(losses_per_row, self.graph))

    @cached_property
    def continued(self) -> Any:
        """`greedy`, compiled once."""
        options = {"new_tokens": NEW_TOKENS, "stop": sorted(self.text.stop)}
        return jax.jit(partial(greedy, self.graph, **options))


class Step(NamedTuple):
    """A compiled training step.

    Attributes:
      run: from a state, which it consumes, and a batch to the next state and figures.
      memory: what it needs.
      state: the state's shapes, and where its arrays lie.
    """

    run: Any
    memory: Memory
    state: TrainState


class RunError(ValueError):
    """Files of a run that are damaged, or of another run."""


def compile_step(
    task: Task, args: argparse.Namespace, optimizer: optax.GradientTransformation
) -> Step:
    """Compile the step of an arm; all seeds with as many steps share it.

    Raises:
      DoesNotFitError: if a device has less memory than it needs.
    """
    graph, state, batch = memory.abstract_training(
        task.checkpoint.config, optimizer, task.precision, task.layout, task.shape(args)
    )
    compiled = memory.compiled_step(graph, optimizer, state, batch)
    needed = memory.compiled_memory(compiled, state.params)
    memory.check(needed, memory.available(), context=task.data.length, rows=args.batch_size)
    where, _ = compiled.input_shardings[0]
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        where,
    )
    return Step(compiled, needed, state)


def finish(
    task: Task,
    args: argparse.Namespace,
    arm: Arm,
    folder: Path,
    optimizer: optax.GradientTransformation,
    compiled: Callable[[], Step],
    change: Callable[[PyTree], PyTree],
    plan: Sequence[Sequence[Sequence[int]]],
) -> dict[str, Any]:
    """Train from the folder's last checkpoint, test, and write it down; read what is finished.

    Args:
      task: what is trained on what.
      args: the command line's.
      arm: what is trained with.
      folder: of this run.
      optimizer: the whole chain, whose `init` begins the training.
      compiled: returns its step.
      change: of the parameters before the first step.
      plan: which examples stand in each row of each step.

    Raises:
      RunError: if the folder holds a run of another arm, or damaged files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder / "arm.json", {"label": arm.label, "settings": arm.settings})
    result = folder / "result.json"
    if not result.exists():
        step = compiled()
        state = _train(task, args, arm.label, folder, optimizer, step, change, plan)
        figures = _test(task, args, state.params)
        if args.save_models:
            save_model(folder / "model", nnx.merge(task.graph, state.params), task.source)
            if not (folder / "model" / "tokenizer.json").exists():
                task.text.save(folder / "model")
        steps = _read_steps(folder / "steps.jsonl", len(plan))
        losses = [step["loss"] for step in steps if not step["skipped"]]
        unknown = not losses or None in losses
        figures |= {
            "train_loss": float("nan") if unknown else float(np.mean(losses)),
            "skipped_steps": sum(step["skipped"] for step in steps),
            "memory": step.memory.as_json(),
        }
        reporting.write_json(result, {k: _finite(v) for k, v in figures.items()})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # three times the model
    steps = _read_steps(folder / "steps.jsonl", len(plan))
    curves = {name: [step[name] for step in steps] for name in ("loss", "seconds", "tokens")}
    return read_json(result) | curves


def claim(file: Path, wanted: Mapping[str, Any]) -> None:
    """Write what a folder is for, or refuse it if it is for something else.

    Raises:
      RunError: naming what differs.
    """
    if not file.exists():
        reporting.write_json(file, wanted)
    found = read_json(file)
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        listed = ", ".join(f"{key}={found.get(key)!r}" for key in differing)
        raise RunError(
            f"{file.parent} holds runs with {listed}; choose another folder, or those settings."
        )


def _train(
    task: Task,
    args: argparse.Namespace,
    label: str,
    folder: Path,
    optimizer: optax.GradientTransformation,
    step: Step,
    change: Callable[[PyTree], PyTree],
    plan: Sequence[Sequence[Sequence[int]]],
) -> TrainState:
    shape = task.shape(args)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    log = folder / "steps.jsonl"
    with ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options) as manager:
        taken = manager.latest_step() or 0
        if taken:
            state = _restore(manager, taken, step.state)
        else:
            state = new_state(change(task.load()), optimizer, task.precision)
        kept = _read_steps(log, taken)
        whole = log.with_suffix(".tmp")
        whole.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(whole, log)
        with (
            log.open("a") as lines,
            tqdm(total=len(plan), initial=taken, desc=f"{label:28}", unit="step") as bar,
        ):
            for number in range(taken, len(plan)):
                batch = task.layout.batch(_batch(task.data.train, plan[number], shape))
                began = time.perf_counter()
                try:
                    state, figures = jax.block_until_ready(step.run(state, batch))
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    free = min(memory.available(), step.memory.peak - 1)
                    size = {"context": task.data.length, "rows": args.batch_size}
                    memory.check(step.memory, free, **size)
                    raise
                seconds = time.perf_counter() - began
                tokens = int(np.count_nonzero(batch.segments))
                line = {
                    "step": number + 1,
                    "loss": _finite(float(figures["loss"])),
                    "gradient_norm": _finite(float(figures["gradient_norm"])),
                    "tokens": tokens,
                    "seconds": seconds,
                    "skipped": bool(figures["skipped"]),
                }
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                bar.set_postfix(
                    loss=f"{figures['loss']:.3f}",
                    tokens_s=f"{tokens / seconds:,.0f}",
                    refresh=False,
                )
                bar.update()
                if (number + 1) % args.checkpoint_every == 0 or number + 1 == len(plan):
                    os.fsync(lines.fileno())  # the log is never behind the checkpoint
                    _save(manager, number + 1, state)
    return state


def _batch(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], shape: tuple[int, int, int]
) -> Batch:
    accumulated, size, length = shape
    flat = fill(examples, rows, (accumulated * size, length))
    return jax.tree.map(lambda x: x.reshape(shape), flat)


def _save(manager: ocp.CheckpointManager, step: int, state: TrainState) -> None:
    manager.save(step, args=ocp.args.StandardSave(_leaves(state)))


def _restore(manager: ocp.CheckpointManager, step: int, like: TrainState) -> TrainState:
    leaves = manager.restore(step, args=ocp.args.StandardRestore(_leaves(like)))
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in sorted(leaves)])


def _leaves(state: TrainState) -> dict[str, Any]:
    """Number the leaves: what orbax writes does not depend on the classes of optax and Flax."""
    return {f"{i:06}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _read_steps(log: Path, count: int) -> list[dict[str, Any]]:
    """Read the log's first lines; a killed run may have written more, and half of one."""
    lines = log.read_text().rpartition("\n")[0].splitlines() if log.exists() else []
    steps: list[dict[str, Any]] = []
    try:
        steps = [json.loads(line) for line in lines[:count]]
        complete = [step["step"] for step in steps] == list(range(1, count + 1))
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise RunError(f"{log} should hold {count} steps, but is damaged; remove {log.parent}.")
    return steps


def _finite(value: Any) -> Any:
    return reporting.finite(value) if isinstance(value, float) else value


def test_untrained(task: Task, args: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Test the model as it was loaded, or read what is written of it."""
    if not file.exists():
        figures = _test(task, args, task.load())
        reporting.write_json(file, {k: _finite(v) for k, v in figures.items()})
    return read_json(file)


def _test(task: Task, args: argparse.Namespace, params: PyTree) -> dict[str, Any]:
    """Return the likelihood of the test answers, and how many are found by greedy decoding."""
    longest = max(map(len, task.data.test))
    losses, tokens = [], []
    # No more rows than a training step has: what held that holds this.
    for members, batch in batches(task.data.test, args.batch_size, -(-longest // 64) * 64):
        loss, count = task.losses(params, task.layout.batch(batch))
        losses += np.asarray(loss)[: len(members)].tolist()
        tokens += np.asarray(count)[: len(members)].tolist()
    figures: dict[str, Any] = {"test_nll": sum(losses) / sum(tokens)}
    rows = -(-8 // args.mesh[0]) * args.mesh[0]  # a batch is cheaper than one after the other
    asked = range(min(args.generate, len(task.data.test)))
    if asked:
        right = 0
        width = -(-max(len(task.data.test[i].prompt) for i in asked) // 64) * 64
        for start in range(0, len(asked), rows):
            members = asked[start : start + rows]
            prompts = np.zeros((rows, width), np.int32)
            lengths = np.ones(rows, np.int32)
            for row, i in enumerate(members):
                lengths[row] = len(task.data.test[i].prompt)
                prompts[row, : lengths[row]] = task.data.test[i].prompt
            placed = jax.device_put(prompts, task.layout.sharding(("data", None)))
            answers = np.asarray(task.continued(params, placed, jnp.asarray(lengths)))
            for i, answer in zip(members, answers, strict=False):
                said = final_number(task.text.decode(task.text.ended(answer.tolist())))
                right += said is not None and said == final_number(task.data.test[i].problem.answer)
        figures |= {"exact_match": right / len(asked), "answered": len(asked)}
    return figures
