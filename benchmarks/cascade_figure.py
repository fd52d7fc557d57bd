"""What a cascade does to singular values: its function, its probe, and the values of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, PyTree
from matplotlib.axes import Axes

import qsgd_jax as qsgd

SIGMA = np.geomspace(1e-4, 1, 500)  # small singular values are those that the cascade raises most


class Measured(NamedTuple):
    """What a device answered at the settings of a probe, with standard errors (0: exact)."""

    sigma: Float[np.ndarray, " settings"]
    answer: Float[np.ndarray, " settings"]
    error: Float[np.ndarray, " settings"]


def measured(stage: qsgd.Surrogate) -> Measured:
    """Return the answers that a stage was made of.

    A polynomial of degree R is probed at 2R + 1 settings, from a quarter of their distance on, and
    goes through all of them: there it is what was measured. A mean of measurements of ±1 has the
    variance (1 − mean²)/shots, taken to be that of one odd outcome at least.
    """
    size = 2 * stage.degree[0] + 1
    turns = (np.arange(size) + 0.25) / size - 0.5
    theta = np.asarray(stage.origin)[0] + turns * stage.period[0]
    answer = np.asarray(stage.evaluate([theta])[0], float)
    error = np.zeros(size)
    if stage.shots is not None:
        error = np.sqrt(np.maximum(1 - answer**2, 1 / stage.shots) / stage.shots)
    return Measured(np.sin(2 * np.pi * theta / stage.period[0]), answer, error)


def singular_values(opt_state: PyTree) -> Float[np.ndarray, " values"]:
    """Return those of the momentum of each matrix, over its Frobenius norm as the cascade sees it.

    Attention's output has its columns last and two axes of rows, all others one axis of rows.
    """
    kind = qsgd.ScaleBySpectralSuperpositionState
    states = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
    (state,) = (one for one in states if isinstance(one, kind))
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.mu):
        output = "'out'" in jax.tree_util.keystr(path)
        rows = (-1, leaf.shape[-1]) if output else (leaf.shape[0], -1)
        values = np.linalg.svd(np.asarray(leaf, float).reshape(rows), compute_uv=False)
        found.append(values / np.linalg.norm(values))
    return np.concatenate(found)


def content(cascade: qsgd.SpectralCascade) -> dict[str, Any]:
    """Return what JSON keeps of a cascade."""
    return {
        "device": cascade.stages[0].provenance.device,
        "shots": cascade.stages[0].shots,
        "stages": [
            {
                "polynomial": np.asarray(polynomial).tolist(),  # of T₁, T₃, T₅, …
                "input_scale": float(i),
                "output_scale": float(o),
                **{name: x.tolist() for name, x in measured(stage)._asdict().items()},
            }
            for stage, polynomial, i, o in zip(
                cascade.stages,
                cascade.polynomials,
                cascade.input_scales,
                cascade.output_scales,
                strict=True,
            )
        ],
    }


def plot(
    path: Path,
    cascade: qsgd.SpectralCascade,
    values: Float[np.ndarray, " values"],
    *,
    name: str = "Polar Express",
) -> None:
    """Draw f, w = f/σ and a model's singular values on the left, each stage on the right."""
    n = len(cascade.stages)
    figure = plt.figure(figsize=(10, 7.5), layout="constrained")
    figure.suptitle(f"{name}, probed on {cascade.stages[0].provenance.device}")
    grid = figure.add_gridspec(3 * n, 2)  # three panels on the left, n on the right
    whole = [figure.add_subplot(grid[n * place : n * (place + 1), 0]) for place in range(3)]
    _draw_whole(whole, cascade, values)
    for place in range(n):
        axes = figure.add_subplot(grid[3 * place : 3 * (place + 1), 1])
        _draw_stage(axes, cascade, place)
        if place == n - 1:
            axes.set_xlabel("input of the circuit, σ = sin πθ")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_whole(
    panels: Sequence[Axes], cascade: qsgd.SpectralCascade, values: Float[np.ndarray, " values"]
) -> None:
    of_values, weights, histogram = panels
    of_values.plot(SIGMA, SIGMA, color="0.6", ls="--", label="σ itself")
    of_values.plot(SIGMA, cascade.evaluate(SIGMA), color="C2", label="f(σ)")
    of_values.set(title="the whole cascade", ylabel="f(σ)", xscale="log")
    of_values.legend(loc="upper left", fontsize="small")
    weights.plot(SIGMA, cascade.weights(SIGMA), color="C2")
    weights.set(ylabel="weight w(σ) = f(σ)/σ", xscale="log", yscale="log")
    bins = np.geomspace(SIGMA[0], SIGMA[-1], 61)
    histogram.hist(np.clip(values, SIGMA[0], None), bins, color="C2", alpha=0.6)
    histogram.set(
        xlabel="singular value σ of the momentum, over its Frobenius norm",
        xscale="log",
        ylabel="how many, trained models",
    )
    for axes in panels:
        axes.set_xlim(SIGMA[0], SIGMA[-1])
        axes.grid(alpha=0.2)


def _draw_stage(axes: Axes, cascade: qsgd.SpectralCascade, place: int) -> None:
    stage = cascade.stages[place]
    theta = np.linspace(-0.25, 0.25, 301) * stage.period[0]
    line = np.asarray(stage.evaluate([np.asarray(stage.origin)[0] + theta])[0])
    sigma, answer, error = measured(stage)
    axes.plot(np.sin(2 * np.pi * theta / stage.period[0]), line, color="C0", lw=1)
    shots = "exact" if stage.shots is None else f"{stage.shots:,} shots, ± 2 standard errors"
    axes.errorbar(sigma, answer, 2 * error, fmt="o", ms=4, capsize=3, color="k")
    axes.set_title(f"circuit {place + 1}, degree {stage.degree[0]}; probe: {shots}", size="medium")
    axes.set(ylabel="⟨Z⟩", ylim=(-1.1, 1.1))
    axes.grid(alpha=0.2)
