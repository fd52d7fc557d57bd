"""What quantum attention has learned: Φ(x), its spectrum, and its size beside the softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from matplotlib import pyplot as plt

from qsgd_jax.nn import QuantumTransformer


def sizes(
    model: QuantumTransformer, tokens: Int[Array, "examples length"]
) -> dict[str, Float[Array, " layers"]]:
    """Measure both parts of the attention weights in each layer, where attention is allowed.

    Returns:
        The mean of the softmax's weights, and the mean and the root mean square of Φ.
    """

    def classify(model: QuantumTransformer, tokens: Array) -> Array:
        return model(tokens, deterministic=True, sow_weights=True)

    _, sown = nnx.capture(classify, nnx.Intermediate)(model, tokens)
    allowed = (tokens != model.pad)[:, None, None, :]
    rows = []
    for _, layer in sorted(sown["layers"].items()):
        weights, phi = (
            layer["attention"][name][0]
            for name in ("attention_weights", "quantum_attention_weights")
        )
        where = jnp.broadcast_to(allowed, phi.shape)
        rows.append(
            {
                "softmax": jnp.mean(weights - phi, where=where),
                "phi": jnp.mean(phi, where=where),
                "phi_rms": jnp.sqrt(jnp.mean(phi**2, where=where)),
            }
        )
    return jax.tree.map(lambda *layers: jnp.stack(layers), *rows)


def learned(model: QuantumTransformer, x: Float[np.ndarray, " points"]) -> list[dict[str, Any]]:
    """Return Φ(x) and its spectrum in each layer, ready for JSON."""
    rows = []
    for layer in model.layers:
        attention: Any = layer.attention.attention_fn
        rows.append(
            {
                "phi": np.asarray(attention.phi(x)).tolist(),
                "frequencies": attention.frequencies.tolist(),
                "spectrum": np.asarray(attention.spectrum()).tolist(),
            }
        )
    return rows


def plot(
    path: Path,
    x: Float[np.ndarray, " points"],
    runs: Sequence[Sequence[Mapping[str, Any]]],
    diagnostics: Sequence[Sequence[Mapping[str, Float[np.ndarray, " layers"]]]],
    title: str,
) -> None:
    """Draw a row for each layer, a line for each seed.

    Args:
        path: Of the PNG.
        x: Scores, in radians.
        runs: For each seed and layer what `learned` says.
        diagnostics: For each seed and epoch what `sizes` says.
        title: Of the figure.
    """
    layers = len(runs[0])
    figure, axes = plt.subplots(
        layers, 3, figsize=(11, 2.8 * layers), squeeze=False, layout="constrained"
    )
    for index, (phi, spectrum, size) in enumerate(axes):
        for seed, (run, epochs) in enumerate(zip(runs, diagnostics, strict=True)):
            color, layer = f"C{seed % 10}", run[index]
            phi.plot(x, layer["phi"], color=color, lw=1)
            offset = 0.1 * (seed / max(1, len(runs) - 1) - 0.5)
            spectrum.plot(
                np.array(layer["frequencies"]) + offset, layer["spectrum"], "o", color=color, ms=3
            )
            for name, style in (("phi_rms", "-"), ("softmax", "--")):
                size.plot([epoch[name][index] for epoch in epochs], style, color=color, lw=1)
        phi.set(ylabel=f"layer {index}: Φ(x)", xlabel="score x, radians")
        spectrum.set(ylabel="amplitude", xlabel="frequency ν", ylim=(0, None))
        size.set(ylabel="weight", xlabel="epoch", ylim=(0, None))
        size.plot([], "-", color="0.3", label="Φ, root mean square")
        size.plot([], "--", color="0.3", label="softmax, mean")
        size.legend(fontsize="small")
        for panel in (phi, spectrum, size):
            panel.grid(alpha=0.2)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
