"""How large the perturbation is next to the step, along training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import qsgd_jax as qsgd
from experiments.engine.workload import Workload


def forms() -> dict[str, dict[str, Any]]:
    """Return the forms of superpositional AdamW whose norms are shown, as its options by label."""
    return {
        "paper, Eq. 1, λ = 0.1": {"weigh": "gradient", "quantum_weight": 0.1},
        "paper, Eq. 1, λ = 0.5": {"weigh": "gradient"},
        "everywhere, Eq. 1": {"weigh": "gradient", "coverage": "everywhere"},
        "everywhere, on the update": {"weigh": "update", "coverage": "everywhere"},
    }


def relative_norms(
    workload: Workload,
    *,
    learning_rate: float,
    steps: int,
    points: int,
    seeds: Sequence[int],
    **options: Any,
) -> list[list[float]]:
    """Return the perturbation's norm over that of Adam's step, over all parameters.

    Args:
        workload: The task.
        learning_rate: Of superpositional AdamW, constant.
        steps: Length of a run, a multiple of `points`.
        points: How often to look; the mean over the steps between two looks counts.
        seeds: One run each.
        options: Of superpositional AdamW.
    """
    optimizer = qsgd.superpositional_adamw(
        learning_rate, weight_decay=0.0, diagnostics=True, **options
    )

    @jax.jit
    def run(key: Any) -> Any:
        data = workload.data(key)
        params = workload.init(jax.random.split(key)[0])

        def step(carry: Any, i: Any) -> Any:
            params, state = carry
            drawn = jax.random.fold_in(jax.random.split(key)[1], i)
            gradients = jax.grad(workload.loss)(params, data, drawn)
            updates, state = optimizer.update(gradients, state, params)
            norm = optax.tree.get(state, "relative_norm")
            return (optax.apply_updates(params, updates), state), norm

        _, norms = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
        return norms.reshape(points, -1).mean(1)

    found = [np.asarray(run(jax.random.key(seed)), float) for seed in seeds]
    return [[float(f"{value:.4g}") for value in norms] for norms in found]
