"""Meta-training: evolution strategies over whole runs, or hypergradients of truncated ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms import CMA_ES
from flax import serialization
from jaxtyping import Array, Float
from scipy import stats

import qsgd_jax as qsgd
from benchmarks.meta.gates import Gate
from benchmarks.meta.objective import (
    WARMUP,
    WEIGHT_DECAY,
    Episode,
    Objective,
    draw_episodes,
)
from benchmarks.reporting import provenance, write_atomically, write_json
from benchmarks.workloads.base import Workload, learning_rates

# Of AdamW's best learning rate, that a gate has its best of, as users tune theirs: what is learned
# is the step's shape then, not its size.
RATE_FACTORS = (0.25, 0.5, 1.0, 2.0)
# Steps that a hypergradient reaches back over, and how many such windows make a generation's run.
_WINDOW, _WINDOWS = 20, 10


@dataclass(frozen=True)
class Assignment:
    """What is to be learned, and on what.

    Attributes:
        gate: What is learned.
        workloads: The tasks.
        population: Candidates a generation, or for hypergradients runs of each task.
        episodes: Of each task in a generation of evolution.
        seed: Of everything that is drawn.
        start: Numbers to start from.
        step_size: Of the first generation of evolution, a standard deviation.
        rates: As in `Objective`.
    """

    gate: Gate
    workloads: Sequence[Workload]
    population: int
    episodes: int
    seed: int
    start: Float[np.ndarray, " size"]
    step_size: float
    rates: Path


class Evolution:
    """CMA-ES on mean ranks: a generation's candidates meet the same episodes of each task.

    In each a candidate counts with the best of a few learning rates.
    """

    def __init__(self, given: Assignment):
        self._objective = Objective(given.workloads, given.gate, given.rates)
        self._n_tasks, self._repeats = len(given.workloads), given.episodes
        self._seed = given.seed
        self._strategy = CMA_ES(given.population, jnp.zeros(given.gate.size))
        self._params = self._strategy.default_params.replace(std_init=jnp.asarray(given.step_size))
        start, key = jnp.asarray(given.start), jax.random.key(given.seed)
        self.state: Any = self._strategy.init(key, start, self._params)

    @property
    def numbers(self) -> np.ndarray:
        """What has been learned so far: the mean of the distribution."""
        return np.asarray(self._strategy.get_mean(self.state))

    def generation(self, number: int) -> dict[str, float]:
        """Advance by one generation and return the mean and best score of its candidates."""
        rng = np.random.default_rng([self._seed, number])
        ask, tell = jax.random.split(jax.random.fold_in(jax.random.key(self._seed), number))
        candidates, state = self._strategy.ask(ask, self.state, self._params)
        of_tasks = draw_episodes(rng, self._n_tasks, repeats=self._repeats)
        drawn = [episode for episodes in of_tasks for episode in episodes]
        scores = _at_rates(self._objective, np.asarray(candidates), drawn).min(axis=-1).T
        # By ranks, tasks whose losses end near a floor of noise count as much as the others.
        fitness = stats.rankdata(scores, axis=0).mean(axis=1)
        self.state, _ = self._strategy.tell(
            tell, candidates, jnp.asarray(fitness, jnp.float32), state, self._params
        )
        means = scores.mean(axis=1)
        return {
            "score": float(means.mean()),
            "best": float(means[np.argmin(fitness)]),
            "spread": float(self.state.std),
        }


class Hypergradients:
    """Adam on the numbers themselves, by gradients through windows of the training runs."""

    def __init__(self, given: Assignment):
        self._rates = Objective(given.workloads, given.gate, given.rates)
        self._gradients = [_windowed_gradient(task, given.gate) for task in given.workloads]
        self._population, self._seed = given.population, given.seed
        self._adam = optax.adam(0.01)
        numbers = jnp.asarray(given.start)
        self.state: Any = (numbers, self._adam.init(numbers))

    @property
    def numbers(self) -> np.ndarray:
        """What has been learned so far."""
        return np.asarray(self.state[0])

    def generation(self, number: int) -> dict[str, float]:
        """Take one step and return the mean logarithm of the losses and the gradient's norm."""
        rng = np.random.default_rng([self._seed, number])
        numbers, adam_state = self.state

        def one(episode: Episode) -> tuple[Array, Array]:
            best = self._rates.best_learning_rate(episode.task, 200, episode.cosine)
            keys = jax.random.split(jax.random.key(episode.seed), self._population)
            rate = best * episode.learning_rate
            return self._gradients[episode.task](numbers, keys, rate, episode.cosine)

        found = in_parallel(one, [e for (e,) in draw_episodes(rng, len(self._gradients))])
        gradient = jnp.stack([_unit(g) for _, g in found]).mean(0)
        updates, adam_state = self._adam.update(gradient, adam_state)
        self.state = (optax.apply_updates(numbers, updates), adam_state)
        return {
            "score": float(np.mean([loss for loss, _ in found])),
            "best": float(np.min([loss for loss, _ in found])),
            "spread": float(jnp.linalg.norm(gradient)),
        }


def _unit(gradient: Array) -> Array:
    """Tasks whose windows explode count no more than the others, or not at all."""
    norm = jnp.linalg.norm(gradient)
    return jnp.where(jnp.isfinite(norm) & (norm > 0), gradient / norm, 0)


def _windowed_gradient(workload: Workload, gate: Gate) -> Callable[..., tuple[Array, Array]]:
    """Mean log validation loss after each window, and its gradient within the window alone."""

    def one(numbers: Array, key: Any, learning_rate: Any, cosine: Any) -> tuple[Array, Array]:
        data_key, init_key, run_key = jax.random.split(key, 3)
        data, params = workload.data(data_key), workload.init(init_key)
        schedule = learning_rates(learning_rate, _WINDOW * _WINDOWS, warmup=WARMUP, cosine=cosine)

        def optimizer(numbers: Array) -> optax.GradientTransformation:
            # Under the root as well, whose derivative at 0 is infinite.
            return qsgd.learned_superpositional_adamw(
                schedule,
                eps_root=1e-12,
                weight_decay=WEIGHT_DECAY,
                superposition=gate.build(numbers),
            )

        def window(numbers: Array, params: Any, state: Any, number: Any):
            chosen = optimizer(numbers)

            def step(carry, i):
                params, state = carry
                step_key = jax.random.fold_in(run_key, number * _WINDOW + i)
                gradients = jax.grad(workload.loss)(params, data, step_key)
                updates, state = chosen.update(gradients, state, params)
                return (optax.apply_updates(params, updates), state), None

            (params, state), _ = jax.lax.scan(step, (params, state), jnp.arange(_WINDOW))
            return jnp.log(workload.validation_loss(params, data)), (params, state)

        def part(carry, number):
            (loss, carry), gradient = jax.value_and_grad(window, has_aux=True)(
                numbers, *carry, number
            )
            return carry, (loss, gradient)

        start = (params, optimizer(numbers).init(params))
        _, (losses, gradients) = jax.lax.scan(part, start, jnp.arange(_WINDOWS))
        return losses.mean(), gradients.mean(0)

    def mean(numbers: Array, keys: Any, learning_rate: Any, cosine: Any) -> tuple[Array, Array]:
        losses, gradients = jax.vmap(one, (None, 0, None, None))(
            numbers, keys, learning_rate, cosine
        )
        return losses.mean(), gradients.mean(0)

    return jax.jit(mean)


METHODS: dict[str, Any] = {"evolution": Evolution, "hypergradients": Hypergradients}


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Apply the function on one thread per core; XLA keeps one busy with work this small."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(function, items))


def _at_rates(
    objective: Objective, candidates: Float[np.ndarray, "candidates size"], drawn: Sequence[Episode]
) -> Float[np.ndarray, "episodes candidates rates"]:
    """Return the candidates' scores in each episode at each of `RATE_FACTORS`."""
    tried = [[replace(e, learning_rate=factor) for factor in RATE_FACTORS] for e in drawn]
    return np.stack(in_parallel(lambda episodes: objective(candidates, episodes), tried))


def validate(
    objective: Objective, numbers: Float[np.ndarray, " size"], *, seeds: int, most: int = 400
) -> dict[str, float]:
    """Return the mean score on each task of fixed episodes, less AdamW's.

    Of a few learning rates each has its best on the task.

    Args:
        objective: The validation tasks'.
        numbers: The gate's.
        seeds: Episodes of each task.
        most: The longest horizon.
    """
    n_tasks = len(objective.names)
    drawn = [
        episode
        for seed in range(seeds)
        for (episode,) in draw_episodes(np.random.default_rng([2511, seed]), n_tasks, most=most)
    ]
    candidates = np.stack([numbers, objective.adamw])
    scores = _at_rates(objective, candidates, drawn)
    best = scores.reshape(seeds, n_tasks, 2, len(RATE_FACTORS)).mean(0).min(-1)
    return dict(zip(objective.names, map(float, best[:, 0] - best[:, 1]), strict=True))


class Record:
    """A run's files: `state.msgpack` to go on from, and a line of `history.jsonl` a generation.

    `settings.json` and `provenance.json` say how, where and by which code it was begun. The state
    is written first. Where it is a generation ahead of the history, that line is lost
    and nothing else, so the history's lines carry their numbers.

    Args:
        folder: Where the files are.
        settings: What the run was started with; another run's folder is refused.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self._state, self._history = folder / "state.msgpack", folder / "history.jsonl"
        self._provenance = folder / "provenance.json"
        folder.mkdir(parents=True, exist_ok=True)
        claimed = folder / "settings.json"
        if claimed.exists() and json.loads(claimed.read_text()) != settings:
            raise ValueError(
                f"{folder} holds a run of other settings, {claimed.read_text().strip()}; "
                f"these are {json.dumps(settings)}. Choose another --output."
            )
        write_atomically(claimed, json.dumps(settings) + "\n")
        if not self._provenance.exists():
            write_json(self._provenance, provenance())

    def resume(self, learner: Any) -> int:
        """Put the learner where it stood and return how many generations it has done."""
        if self._history.exists():  # without half a line, should writing it have been interrupted
            whole, _, _ = self._history.read_text().rpartition("\n")
            write_atomically(self._history, whole + "\n" if whole else "")
        if not self._state.exists():
            return 0
        like = {"done": 0, "learner": jax.tree.leaves(learner.state)}
        found = serialization.from_bytes(like, self._state.read_bytes())
        leaves = [jnp.asarray(leaf) for leaf in found["learner"]]
        learner.state = jax.tree.unflatten(jax.tree.structure(learner.state), leaves)
        return int(found["done"])

    def write(self, learner: Any, done: int, line: dict[str, Any]) -> None:
        """Write the state after a generation, and its line."""
        content = {"done": done, "learner": jax.tree.leaves(learner.state)}
        write_atomically(self._state, serialization.to_bytes(content))
        with self._history.open("a") as file:
            numbers = [float(x) for x in learner.numbers]
            file.write(json.dumps({"generation": done} | line | {"numbers": numbers}) + "\n")

    def done(self) -> int:
        """Return the number of generations that the state has seen."""
        if not self._state.exists():
            return 0
        return int(serialization.msgpack_restore(self._state.read_bytes())["done"])

    def provenance(self) -> dict[str, Any]:
        """Return where and by which code the run was begun."""
        return json.loads(self._provenance.read_text())

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of the generations, the last of each number."""
        if not self._history.exists():
            return []
        lines = map(json.loads, self._history.read_text().splitlines())
        return list({line["generation"]: line for line in lines}.values())
