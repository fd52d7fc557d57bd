"""What is minimised: the validation loss along training runs, against AdamW's tuned ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

import qsgd_jax as qsgd
from benchmarks.meta.gates import Gate
from benchmarks.reporting import write_json
from benchmarks.workloads.base import Curves, Workload, learning_rates, training_run

HORIZONS = (48, 96, 200, 400, 800, 2000)
POINTS = 8
# AdamW's learning rates to choose from, half a decade apart.
GRID = 10.0 ** np.arange(-3.5, -0.9, 0.5)
WARMUP = 0.05
WEIGHT_DECAY = 1e-4
# A run that diverges counts as one whose loss is e³ times AdamW's.
WORST = 3.0


@dataclass(frozen=True)
class Episode:
    """One training run's circumstances, the same for all candidates of a generation.

    Attributes:
        task: Index of the task.
        horizon: Number of steps.
        cosine: Whether the learning rate decays to zero.
        learning_rate: Factor on AdamW's best learning rate.
        seed: Of the task's data, initial parameters and batches.
    """

    task: int
    horizon: int
    cosine: bool
    learning_rate: float
    seed: int


def draw_episodes(
    rng: np.random.Generator, n_tasks: int, *, spread: float = 0.3, most: int = HORIZONS[-1]
) -> list[Episode]:
    """Draw one episode of each task: short horizons more often, so that each costs as much.

    Args:
        rng: Source of all that is drawn.
        n_tasks: Number of tasks.
        spread: Of the learning rates, in decades to both sides.
        most: The longest horizon.
    """
    horizons = np.array([h for h in HORIZONS if h <= most])
    odds = 1 / horizons
    return [
        Episode(
            task,
            int(rng.choice(horizons, p=odds / odds.sum())),
            bool(rng.integers(2)),
            float(10 ** rng.uniform(-spread, spread)),
            int(rng.integers(2**31)),
        )
        for task in range(n_tasks)
    ]


def _curves(
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation],
    workload: Workload,
    key: Key[Array, ""],
    steps: Any,
    learning_rate: Any,
    cosine: Any,
) -> Curves:
    data_key, run_key = jax.random.split(key)
    schedule = learning_rates(learning_rate, steps, warmup=WARMUP, cosine=cosine)
    data = workload.data(data_key)
    return training_run(workload, optimizer(schedule), data, run_key, steps=steps, points=POINTS)


def score(curves: Curves) -> Float[Array, ""]:
    """Return the mean logarithm of the validation loss along the way and at the end, half each."""
    logs = jnp.log(curves.validation_loss[1:])
    return 0.5 * logs.mean() + 0.5 * logs[-1]


class Objective:
    """The scores of candidates on a family of tasks, relative to AdamW's.

    Args:
        workloads: The tasks.
        gate: What is learned.
        rates: File that remembers AdamW's best learning rates, which do not depend on the gate.
    """

    def __init__(self, workloads: Sequence[Workload], gate: Gate, rates: Path):
        self._rates, self._lock = rates, threading.Lock()
        self._gated = [_compiled(workload, gate) for workload in workloads]
        self._adamw = [_baseline(workload) for workload in workloads]
        self.names = [workload.name for workload in workloads]

    def best_learning_rate(self, task: int, horizon: int, cosine: bool) -> float:
        """AdamW's best learning rate on a grid, over two seeds of the task."""
        case = f"{self.names[task]}, {horizon} steps" + (", cosine" if cosine else "")
        known = self._known()
        if case not in known:
            keys = jax.random.split(jax.random.key(task), 2)
            scores = self._adamw[task](keys, jnp.int32(horizon), jnp.asarray(GRID), cosine)
            best = np.argmin(np.where(np.isfinite(scores), scores, np.inf).mean(1))
            with self._lock:
                known = self._known() | {case: float(GRID[best])}
                write_json(self._rates, known)
        return known[case]

    def _known(self) -> dict[str, float]:
        return json.loads(self._rates.read_text()) if self._rates.exists() else {}

    def __call__(
        self, candidates: Float[np.ndarray, "candidates size"], episode: Episode
    ) -> Float[np.ndarray, " candidates"]:
        """Return the mean log ratio of each candidate's losses to tuned AdamW's, at most 3."""
        best = self.best_learning_rate(episode.task, episode.horizon, episode.cosine)
        key, steps = jax.random.key(episode.seed), jnp.int32(episode.horizon)
        reference = self._adamw[episode.task](
            key[None], steps, jnp.asarray([best]), episode.cosine
        )[0, 0]
        rate = best * episode.learning_rate
        scores = self._gated[episode.task](
            jnp.asarray(candidates), key, steps, rate, episode.cosine
        )
        found = np.asarray(scores - reference, np.float64)
        return np.where(np.isfinite(found), np.minimum(found, WORST), WORST)


def _compiled(workload: Workload, gate: Gate) -> Callable[..., Array]:
    def one(numbers: Array, key: Any, steps: Any, learning_rate: Any, cosine: Any) -> Array:
        superposition = gate.build(numbers)
        return score(
            _curves(
                lambda schedule: qsgd.learned_superpositional_adamw(
                    schedule, weight_decay=WEIGHT_DECAY, superposition=superposition
                ),
                workload,
                key,
                steps,
                learning_rate,
                cosine,
            )
        )

    return jax.jit(jax.vmap(one, (0, None, None, None, None)))


def _baseline(workload: Workload) -> Callable[..., Array]:
    def one(key: Any, steps: Any, learning_rate: Any, cosine: Any) -> Array:
        return score(
            _curves(
                lambda schedule: optax.adamw(schedule, weight_decay=WEIGHT_DECAY),
                workload,
                key,
                steps,
                learning_rate,
                cosine,
            )
        )

    over_keys = jax.vmap(one, (0, None, None, None))
    return jax.jit(jax.vmap(over_keys, (None, None, 0, None)))
