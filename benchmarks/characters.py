"""Train a small language model of characters with several optimizers, run by run.

Seed s has the same initial weights and sees the same batches whatever the optimizer, so that arms
can be compared in pairs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from benchmarks.arm import Arm

TEXT = Path(__file__).parent / "data" / "shakespeare.txt"
CONTEXT = 64  # characters
BATCH_SIZE = 32
WARM_UP = 0.05  # part of the steps
HYPER = {"weight_decay": 0.0}  # of every arm; the seed comes to it

Scalar = Float[Array, ""]


class Text(NamedTuple):
    """A text as numbers: nine tenths to train on, the last tenth in windows to validate on."""

    characters: str
    train: Int[Array, " train"]
    windows: Int[Array, "windows context+1"]


def read_text(path: Path) -> Text:
    """Read a text; validation windows lie side by side, so each character is predicted once."""
    known, numbers = np.unique(list(path.read_text(encoding="utf-8")), return_inverse=True)
    train, rest = np.split(numbers, [int(0.9 * len(numbers))])
    starts = np.arange(0, len(rest) - CONTEXT, CONTEXT)
    windows = rest[starts[:, None] + np.arange(CONTEXT + 1)]
    return Text("".join(known), jnp.asarray(train, jnp.int32), jnp.asarray(windows, jnp.int32))


class CharacterModel(nnx.Module):
    """A causal transformer of the paper's sizes, with layer norms first, without dropout.

    Args:
        vocabulary_size: Number of characters.
        features: Width of the embedding.
        heads: Of the attention.
        hidden: Width of the feed-forward layers.
        layers: Number of blocks.
        rngs: Source of the initial values.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        features: int = 64,
        heads: int = 4,
        hidden: int = 128,
        layers: int = 2,
        rngs: nnx.Rngs,
    ):
        self.embedding = nnx.Embed(vocabulary_size, features, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, features, rngs=rngs)
        self.layers = nnx.List([_Layer(features, heads, hidden, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = nnx.Linear(features, vocabulary_size, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch length vocabulary"]:
        """Return the logits of each next character."""
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        mask = nnx.make_causal_mask(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.norm(x))


class _Layer(nnx.Module):
    """Causal attention and a two-layer perceptron, each behind a layer norm and a residual."""

    def __init__(self, features: int, heads: int, hidden: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, features, decode=False, keep_rngs=False, rngs=rngs
        )
        self.hidden_norm = nnx.LayerNorm(features, rngs=rngs)
        self.expand = nnx.Linear(features, hidden, rngs=rngs)
        self.contract = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch length features"],
        mask: Bool[Array, "batch 1 length length"] | Array,
    ) -> Float[Array, "batch length features"]:
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.contract(nnx.relu(self.expand(self.hidden_norm(x))))


@dataclass
class Run:
    """One training: where it stands, and what was measured.

    Attributes:
        arm: Its optimizer.
        seed: Fixes initial weights and batches.
        learning_rate: The highest of its schedule.
        key: Source of the batches.
        params: Parameters of the model.
        opt_state: State of the optimizer.
        train_loss: Mean loss over the steps between two evaluations.
        validation_loss: At the start and after each such stretch of steps.
        seconds: Training time of each stretch, without evaluation and compilation.
    """

    arm: Arm
    seed: int
    learning_rate: float
    key: Key[Array, ""]
    params: PyTree
    opt_state: PyTree
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def new_model(text: Text, seed: int) -> tuple[nnx.GraphDef, PyTree, Key[Array, ""]]:
    """Draw the initial weights of a seed; the key that remains is for its batches."""
    weights_key, key = jax.random.split(jax.random.key(seed))
    model = CharacterModel(len(text.characters), rngs=nnx.Rngs(params=weights_key))
    return *nnx.split(model), key


def train(
    wanted: Sequence[tuple[Arm, int, float]],
    text: Text,
    *,
    steps: int,
    every: int,
    on_stretch: Callable[[Run], None],
) -> list[Run]:
    """Train every arm, seed and highest learning rate that is wanted.

    The runs take turns on one thread per core, some steps at a time: XLA keeps one core busy with
    products as small as these. By taking turns, all arms feel alike what else the machine does, so
    that their times can be compared.

    Args:
        wanted: Arm, seed and learning rate of each run.
        text: To learn.
        steps: Length of a run.
        every: Steps between two evaluations; a divisor of `steps`.
        on_stretch: Called with a run whenever it was evaluated.

    Returns:
        The runs, in the order in which they are wanted.
    """
    runs = []
    for arm, seed, learning_rate in wanted:
        graph, params, key = new_model(text, seed)
        optimizer = arm.build(HYPER | {"seed": seed}, schedule(learning_rate, steps))
        opt_state = optimizer.init(params)
        runs.append(Run(arm, seed, learning_rate, key, params, opt_state))
    graph, params, _ = new_model(text, 0)
    evaluate = jax.jit(partial(validation_loss, graph)).lower(params, text.windows).compile()
    lowered = {}
    for run in runs:
        if run.arm.name not in lowered:  # the learning rate is an argument: one program an arm
            stretch = jax.jit(partial(_stretch, graph, run.arm, steps, every), donate_argnums=0)
            lowered[run.arm.name] = stretch.lower(*_arguments(run, text, 0))

    def advance(run: Run) -> Run:
        if run.validation_loss:
            arguments = _arguments(run, text, len(run.seconds) * every)
            began = time.perf_counter()
            (run.params, run.opt_state), loss = jax.block_until_ready(
                compiled[run.arm.name](*arguments)
            )
            run.seconds.append(time.perf_counter() - began)
            run.train_loss.append(float(loss))
        run.validation_loss.append(float(evaluate(run.params, text.windows)))
        return run

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        programs = pool.map(lambda program: program.compile(), lowered.values())
        compiled = dict(zip(lowered, programs, strict=True))
        pending = {pool.submit(advance, run) for run in runs}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for run in (future.result() for future in done):
                on_stretch(run)
                if len(run.seconds) < steps // every:
                    pending.add(pool.submit(advance, run))
    return runs


def mean_loss(graph: nnx.GraphDef, params: PyTree, windows: Int[Array, "batch length"]) -> Scalar:
    """Return the mean negative log likelihood of a next character, in nats."""
    logits = nnx.merge(graph, params)(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def validation_loss(
    graph: nnx.GraphDef, params: PyTree, windows: Int[Array, "windows length"]
) -> Scalar:
    """Return the mean loss over all windows, one at a time: more would leave the cache."""
    losses = jax.lax.map(
        lambda window: mean_loss(graph, params, window[None]), windows, batch_size=BATCH_SIZE
    )
    return losses.mean()


def schedule(learning_rate: Scalar | float, steps: int) -> optax.Schedule:
    """Rise linearly to the learning rate in a twentieth of the steps, fall to zero by a cosine."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, round(WARM_UP * steps)), steps)
    return lambda count: learning_rate * shape(count)


def _arguments(run: Run, text: Text, start: int) -> tuple[PyTree, ...]:
    learning_rate = jnp.float32(run.learning_rate)
    return (run.params, run.opt_state), run.key, jnp.int32(start), learning_rate, text.train


def _stretch(
    graph: nnx.GraphDef,
    arm: Arm,
    steps: int,
    every: int,
    state: tuple[PyTree, optax.OptState],
    key: Key[Array, ""],
    start: Int[Array, ""],
    learning_rate: Scalar,
    train: Int[Array, " train"],
) -> tuple[tuple[PyTree, optax.OptState], Scalar]:
    """Take the steps from one evaluation to the next and return their mean loss."""
    optimizer = arm.build(HYPER | {"seed": 0}, schedule(learning_rate, steps))

    def step(
        state: tuple[PyTree, optax.OptState], number: Int[Array, ""]
    ) -> tuple[tuple[PyTree, optax.OptState], Scalar]:
        params, opt_state = state
        batch_key = jax.random.fold_in(key, number)
        starts = jax.random.randint(batch_key, (BATCH_SIZE, 1), 0, len(train) - CONTEXT)
        windows = train[starts + jnp.arange(CONTEXT + 1)]
        loss, gradients = jax.value_and_grad(partial(mean_loss, graph))(params, windows)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    state, losses = jax.lax.scan(step, state, start + jnp.arange(every))
    return state, losses.mean()
