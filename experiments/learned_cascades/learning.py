"""Learn a cascade's numbers, by evolution or by gradients through unrolled trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cmaes import CMA
from tqdm import tqdm

from experiments.engine.contender import Contender, Hyper
from experiments.engine.workload import Workload, learning_rates, training_run
from experiments.learned_cascades.cascades import COURSE, LATE, start

# Of angles, in radians, and fills: the first generation's spread, and Adam's learning rate.
SPREAD, RATE = 0.1, 0.02
# exp(−x²) of it is 0.96: at 1, the hand-set value, the fill's gradient would be zero.
FILL = 0.2

# From a generation's candidates and its number to their losses.
Score = Callable[[list[Hyper], int], Sequence[float]]


def initial(form: str) -> Hyper:
    """Return where learning begins: the hand-set angles, which a course keeps to its last step.

    Args:
        form: `"fixed"` or `"course"`.
    """
    return start(FILL) | (dict.fromkeys(LATE, 0.0) if form == COURSE else {})


def evolve(form: str, score: Score, *, seed: int, generations: int, population: int) -> Hyper:
    """Return the mean of the last generation of CMA-ES.

    Args:
        form: `"fixed"` or `"course"`.
        score: The smaller the better.
        seed: Of the search.
        generations: How many.
        population: Candidates of one.

    References:
        Hansen, The CMA evolution strategy, arXiv:1604.00772.
    """
    first = initial(form)
    search = CMA(np.array(list(first.values())), SPREAD, seed=seed, population_size=population)
    for generation in tqdm(range(generations), desc=f"{form}: evolution, seed {seed}"):
        asked = [search.ask() for _ in range(population)]
        candidates = [dict(zip(first, x.tolist(), strict=True)) for x in asked]
        losses = score(candidates, generation)
        search.tell([(x, float(loss)) for x, loss in zip(asked, losses, strict=True)])
    return dict(zip(first, search.mean.tolist(), strict=True))


def hypergradient(contender: Contender, workload: Workload, rest: Hyper, *, steps: int) -> Any:
    """Return a function of numbers and a key: log(loss after a training), and its gradient.

    Args:
        contender: The form.
        workload: The task.
        rest: The other hyperparameters.
        steps: Of the training.
    """

    def build(hyper: Any) -> optax.GradientTransformation:
        rates = learning_rates(hyper["learning_rate"], steps, warmup=hyper["warmup"], cosine=True)
        return contender.build(hyper, rates)

    def loss(numbers: Any, key: Any) -> Any:
        of_data, of_run = jax.random.split(key)
        hyper = rest | numbers | {"steps": steps}
        data = workload.data(of_data)
        curves = training_run(workload, build, data, of_run, hyper, steps=steps, points=1)
        return jnp.log(curves.validation_loss[-1])

    return jax.jit(jax.value_and_grad(loss))


def descend(
    contender: Contender,
    tasks: Sequence[tuple[Workload, Hyper]],
    *,
    seed: int,
    iterations: int,
    steps: int,
) -> Hyper:
    r"""Return numbers moved by hypergradients, ∂ log(loss after a short training) / ∂ numbers.

    Each iteration trains on one task, in turn, and Adam moves the numbers. Their mean over the
    second half is returned.

    Args:
        contender: The form, whose name says where to begin.
        tasks: Each with its other hyperparameters.
        seed: Of the trainings.
        iterations: How many.
        steps: Of a training.
    """
    numbers: Any = jax.tree.map(jnp.float32, initial(contender.name))
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE))
    state = outer.init(numbers)

    gradients = [hypergradient(contender, *task, steps=steps) for task in tasks]
    second_half = []
    for i in tqdm(range(iterations), desc=f"{contender.name}: hypergradients, seed {seed}"):
        key = jax.random.fold_in(jax.random.key(seed), i)
        _, found = gradients[i % len(gradients)](numbers, key)
        # A training that diverged says nothing.
        updates, state = outer.update(jax.tree.map(jnp.nan_to_num, found), state)
        numbers = optax.apply_updates(numbers, updates)
        if 2 * i >= iterations:
            second_half.append(numbers)
    return {name: float(np.mean([x[name] for x in second_half])) for name in numbers}
