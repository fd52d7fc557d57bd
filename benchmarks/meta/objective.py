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
from jaxtyping import Array, Float

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
    rng: np.random.Generator,
    n_tasks: int,
    *,
    repeats: int = 1,
    spread: float = 0.3,
    most: int = HORIZONS[-1],
) -> list[list[Episode]]:
    """Draw episodes of each task, all of one task with the same horizon.

    Short horizons are drawn more often, by the root of their length, and decaying learning rates
    three times as often as constant ones.

    Args:
        rng: Source of all that is drawn.
        n_tasks: Number of tasks.
        repeats: Number of episodes of each task.
        spread: Of the learning rates, in decades to both sides.
        most: The longest horizon.
    """
    horizons = np.array([h for h in HORIZONS if h <= most])
    odds = 1 / np.sqrt(horizons)

    def draw(task: int, horizon: int) -> Episode:
        return Episode(
            task,
            horizon,
            bool(rng.random() < 0.75),
            float(10 ** rng.uniform(-spread, spread)),
            int(rng.integers(2**31)),
        )

    lengths = [int(rng.choice(horizons, p=odds / odds.sum())) for _ in range(n_tasks)]
    return [[draw(task, length) for _ in range(repeats)] for task, length in enumerate(lengths)]


def score(curves: Curves) -> Float[Array, "*runs"]:
    """Return the mean logarithm of the validation loss along the way and at the end, half each."""
    logs = jnp.log(curves.validation_loss[..., 1:])
    return 0.5 * logs.mean(-1) + 0.5 * logs[..., -1]


class Objective:
    """The scores of candidates on a family of tasks, relative to AdamW's.

    Args:
        workloads: The tasks.
        gate: What is learned.
        rates: File that remembers AdamW's best learning rates, which do not depend on the gate.
    """

    def __init__(self, workloads: Sequence[Workload], gate: Gate, rates: Path):
        self._rates, self._lock = rates, threading.Lock()
        self._scores = [_compiled(workload, gate) for workload in workloads]
        self.names = [workload.name for workload in workloads]
        # With λ₁ = λ₂ = 0 and κ = 1 every gate's step is AdamW's, so that one program runs both.
        self.adamw = np.concatenate([gate.start(0)[:-3], np.zeros(3, np.float32)])

    def best_learning_rate(self, task: int, horizon: int, cosine: bool) -> float:
        """AdamW's best learning rate on a grid, over two seeds of the task."""
        case = f"{self.names[task]}, {horizon} steps" + (", cosine" if cosine else "")
        known = self._known()
        if case not in known:
            keys = jax.random.split(jax.random.key(task), 2)
            rates = np.broadcast_to(GRID[:, None], (len(GRID), 2))
            numbers = np.broadcast_to(self.adamw, (len(GRID), len(self.adamw)))
            found = self._scores[task](numbers, keys, horizon, rates, np.repeat(cosine, 2))
            best = np.argmin(np.where(np.isfinite(found), found, np.inf).mean(1))
            with self._lock:
                known = self._known() | {case: float(GRID[best])}
                write_json(self._rates, known)
        return known[case]

    def _known(self) -> dict[str, float]:
        return json.loads(self._rates.read_text()) if self._rates.exists() else {}

    def __call__(
        self, candidates: Float[np.ndarray, "candidates size"], episodes: Sequence[Episode]
    ) -> Float[np.ndarray, "candidates episodes"]:
        """Return the mean log ratio of each candidate's losses to tuned AdamW's, at most 3.

        Args:
            candidates: Their numbers.
            episodes: Of one task and horizon.
        """
        ((task, horizon),) = {(episode.task, episode.horizon) for episode in episodes}
        best = np.array([self.best_learning_rate(task, horizon, e.cosine) for e in episodes])
        factors = np.array([episode.learning_rate for episode in episodes])
        tried = np.broadcast_to(best * factors, (len(candidates), len(episodes)))
        scores = self._scores[task](
            np.vstack([self.adamw, candidates]).astype(np.float32),
            jax.vmap(jax.random.key)(np.array([episode.seed for episode in episodes])),
            horizon,
            np.vstack([best, tried]),
            np.array([episode.cosine for episode in episodes]),
        )
        found = np.asarray(scores[1:] - scores[0], np.float64)
        return np.where(np.isfinite(found), np.minimum(found, WORST), WORST)


def _compiled(workload: Workload, gate: Gate) -> Callable[..., Array]:
    """Scores of candidates × episodes, of candidates' numbers and rates and episodes' keys."""

    def scores(numbers: Array, keys: Any, steps: Any, rates: Array, cosine: Array) -> Array:
        def optimizer(hyper: Any) -> optax.GradientTransformation:
            probed, rate, decays = hyper
            schedule = learning_rates(rate, steps, warmup=WARMUP, cosine=decays)
            return qsgd.learned_superpositional_adamw(
                schedule, weight_decay=WEIGHT_DECAY, superposition=gate.restored(probed)
            )

        data_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        curves = training_run(
            workload,
            optimizer,
            jax.vmap(workload.data)(data_keys),
            run_keys,
            (jax.vmap(gate.probed)(numbers), rates, cosine),
            steps=steps,
            points=POINTS,
            over=[(0, 0, (None, 0, 0)), (None, None, (0, 0, None))],
        )
        return score(curves)

    return jax.jit(scores)
