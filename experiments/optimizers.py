"""The optimizers that a comparison holds against each other, AdamW first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from benchmarks.arms import adamw, superposed
from experiments.engine.contender import Contender

# Lion's steps are larger: its authors advise lower rates, and as much more decay.
LION_LEARNING_RATES = (10**-5.0, 10**-2.5)
LION_WEIGHT_DECAYS = (10**-3.0, 10**0.5)


def cautious(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    r"""Keep only the coordinates of a step that agree in sign with the gradient.

    .. math::
      \tilde u = u \, \varphi \, \frac{d}{\lVert \varphi \rVert_1 + 1}, \qquad
      \varphi = \mathbb{1}[u \, g > 0]

    for each tensor, of d coordinates.

    Args:
        inner: Makes the step u from the gradient g, before the learning rate's minus.

    References:
        Liang, Chen, Liu, Liu, Cautious Optimizers, arXiv:2411.16085.
    """

    def masked(step: Array, gradient: Array) -> Array:
        kept = step * gradient > 0
        return jnp.where(kept, step, 0) * (kept.size / (kept.sum() + 1)).astype(step.dtype)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        steps, state = inner.update(updates, state, params)
        return jax.tree.map(masked, steps, updates), state

    return optax.GradientTransformation(inner.init, update)


def _nesterov(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=hyper["weight_decay"], nesterov=True)


def _cautious(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        cautious(optax.scale_by_adam()),
        optax.add_decayed_weights(hyper["weight_decay"]),
        optax.scale_by_learning_rate(schedule),
    )


def _lion(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(schedule, weight_decay=hyper["weight_decay"])


def _schedule_free(
    hyper: Mapping[str, Any], schedule: optax.Schedule
) -> optax.GradientTransformation:
    rate: Any = schedule  # optax allows schedules here, but does not say so
    return optax.contrib.schedule_free_adamw(rate, weight_decay=hyper["weight_decay"])


def classical() -> dict[str, Contender]:
    """Return the contenders by name, AdamW first."""
    contenders: list[Contender] = [
        Contender("adamw", "AdamW", adamw),
        Contender("cautious", "Cautious AdamW", _cautious),
        Contender("nesterov", "AdamW, Nesterov", _nesterov),
        Contender(
            "lion",
            "Lion",
            _lion,
            learning_rate=LION_LEARNING_RATES,
            weight_decay=LION_WEIGHT_DECAYS,
        ),
        Contender(
            "schedule-free",
            "schedule-free AdamW",
            _schedule_free,
            cosine=False,
            evaluated=optax.contrib.schedule_free_eval_params,
        ),
        Contender(
            "paper",
            "paper, Eq. 1, λ = 0.5",
            superposed(quantum_weight=0.5, weigh="gradient"),
        ),
        Contender(
            "paper-moments",
            "paper, moment updates",
            superposed(quantum_weight=0.5, weigh="moments"),
        ),
    ]
    return {contender.name: contender for contender in contenders}
