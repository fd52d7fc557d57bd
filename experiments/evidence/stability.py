r"""Where Eq. 1 stalls or diverges on a parabola, against the gradient's scale and λ.

The parabola, :math:`f(x) = \tfrac{s}{2} \sum_j (x_j - x^*_j)^2`, is convex, and Adam solves it at
any scale s. Eq. 1 moves coordinate j by :math:`-\alpha (u_j + \lambda w_j g_j)`, with
:math:`g_j = s (x_j - x^*_j)`, :math:`w_j = \sin \pi x_j`, and Adam's step u, of order 1 on the
way. Theory says of `weigh="gradient"`:

* Where :math:`w_j < 0` and :math:`|\lambda w_j g_j| \ge |u_j|` it does not descend. Where both are
  equal it rests, at a spurious fixed point that holds what arrives from afar. At distances of
  order 1 this begins at :math:`\lambda s \approx 1`, at any learning rate.
* Where :math:`\alpha \lambda |w_j| s > 2` it oversteps the optimum by ever more, and diverges.

With `"update"` and `"moments"` what λ weighs has no scale. Below λ = 1 each coordinate keeps the
sign of its step; from there on :math:`1 + \lambda w_j` vanishes somewhere, and holds it at any s.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

import qsgd_jax as qsgd

N = 4  # coordinates: one block of the circuit
BOX = 2.0  # half the width of where starts and optima are drawn
SCALES = tuple(np.geomspace(1e-3, 1e3, 13).tolist())
QUANTUM_WEIGHTS = tuple(np.geomspace(1e-2, 1e2, 13).tolist())
WEIGHS = ("gradient", "update", "moments")
SOLVED = 0.05  # of the initial distance
DIVERGED = 10.0


def stability_map(
    weigh: Any,
    scales: Sequence[float] = SCALES,
    quantum_weights: Sequence[float] = QUANTUM_WEIGHTS,
    *,
    starts: int = 32,
    steps: int = 3000,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> dict[str, list]:
    """Run superpositional Adam at each scale and λ, and Adam at each scale.

    Args:
        weigh: Where the weights act: `"gradient"`, `"update"` or `"moments"`.
        scales: Of the parabola, and so of its gradients.
        quantum_weights: λ.
        starts: Pairs of a start and an optimum, the same in every cell.
        steps: Length of a run.
        learning_rate: Constant.
        seed: Of starts and optima.

    Returns:
        The grid's `scales` and `quantum_weights`, and the shares of starts that `diverged` (are not
        finite, or at more than 10 times the initial distance) and that `stalled` (at more than 5 %
        of it), as rows of a scale each; `adam_diverged` and `adam_stalled`, of a scale each.

    Raises:
        ValueError: If `weigh` is unknown.
    """
    drawn = jax.random.uniform(jax.random.key(seed), (2, starts, N), minval=-BOX, maxval=BOX)
    weighed, adam = _distances(
        jnp.asarray(scales), jnp.asarray(quantum_weights), drawn, learning_rate, weigh, steps
    )
    found: dict[str, list] = {"scales": list(scales), "quantum_weights": list(quantum_weights)}
    for prefix, distances in (("", weighed), ("adam_", adam)):
        diverged = ~(np.asarray(distances) <= DIVERGED)  # NaN too
        stalled = ~diverged & (np.asarray(distances) > SOLVED)
        found[f"{prefix}diverged"] = diverged.mean(-1).tolist()
        found[f"{prefix}stalled"] = stalled.mean(-1).tolist()
    return found


@functools.partial(jax.jit, static_argnames=("weigh", "steps"))
def _distances(
    scales: Float[Array, " scales"],
    quantum_weights: Float[Array, " weights"],
    drawn: Float[Array, "2 starts n"],
    learning_rate: float,
    weigh: Any,
    steps: int,
) -> tuple[Float[Array, "scales weights starts"], Float[Array, "scales starts"]]:
    """Final distances from the optimum, in initial ones: superpositional Adam's, and Adam's."""

    def run(optimizer: optax.GradientTransformation, scale: Array, pair: Array) -> Array:
        start, optimum = pair

        def step(_, carry):
            x, state = carry
            updates, state = optimizer.update(scale * (x - optimum), state, x)
            return optax.apply_updates(x, updates), state

        x, _ = jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))
        return jnp.linalg.norm(x - optimum) / jnp.linalg.norm(start - optimum)

    def superposed(scale: Array, quantum_weight: Array, pair: Array) -> Array:
        optimizer = qsgd.superpositional_adamw(
            learning_rate, weight_decay=0.0, quantum_weight=quantum_weight, weigh=weigh
        )
        return run(optimizer, scale, pair)

    over_starts = jax.vmap(superposed, (None, None, 1))
    over_weights = jax.vmap(over_starts, (None, 0, None))
    over_scales = jax.vmap(over_weights, (0, None, None))
    adam = jax.vmap(
        jax.vmap(functools.partial(run, optax.adam(learning_rate)), (None, 1)), (0, None)
    )
    return over_scales(scales, quantum_weights, drawn), adam(scales, drawn)


def plot(path: Path, maps: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the share of starts that are solved, a panel for Adam and one for each form.

    Args:
        path: The PNG.
        maps: What `stability_map` returned, by `weigh`, of the same scales; both grids are
            geometric and have two values at least.
    """
    figure, panels = plt.subplots(
        1,
        1 + len(maps),
        figsize=(1.6 + 3.5 * len(maps), 4.2),
        width_ratios=[1, *[12] * len(maps)],
        sharey=True,
        layout="constrained",
    )
    first = next(iter(maps.values()))
    columns = [[first["adam_diverged"]], [first["adam_stalled"]]]
    image = _heat(panels[0], [0, 1], first["scales"], *(np.transpose(x) for x in columns))
    panels[0].set(title="Adam", xticks=[], ylabel="scale s of the gradients", yscale="log")
    for axes, (weigh, found) in zip(panels[1:], maps.items(), strict=True):
        weights, scales = np.asarray(found["quantum_weights"]), np.asarray(found["scales"])
        shares = np.asarray(found["diverged"]), np.asarray(found["stalled"])
        _heat(axes, _edges(weights), scales, *shares)
        bounds = axes.axis()
        if weigh == "gradient":
            axes.plot(1 / scales, scales, color="tab:red", linestyle="--", label="λ s = 1")
        else:
            axes.axvline(1, color="tab:red", linestyle="--", label="λ = 1")
        axes.axis(bounds)
        axes.set(title=f'weigh="{weigh}"', xlabel="quantum weight λ", xscale="log")
        axes.legend(loc="lower left")
    label = (
        f"share of starts that end within {SOLVED:.0%}\nof their distance (hatched: most diverge)"
    )
    figure.colorbar(image, ax=panels, label=label, aspect=30, pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _heat(axes: Axes, edges: Any, scales: Any, diverged: Any, stalled: Any) -> QuadMesh:
    """Colour the solved share of each cell, and hatch the cells most of whose starts diverge."""
    grid = edges, _edges(scales)
    mostly = np.ma.masked_less_equal(diverged, 0.5)
    axes.pcolor(*grid, mostly, hatch="xxx", facecolor="none", edgecolor="w", linewidth=0, zorder=2)
    return axes.pcolormesh(*grid, 1 - diverged - stalled, vmin=0, vmax=1)


def _edges(values: Any) -> Float[np.ndarray, " cells+1"]:
    """The borders of cells around values of a geometric grid."""
    half = (values[1] / values[0]) ** 0.5
    return np.append(np.asarray(values) / half, values[-1] * half)
