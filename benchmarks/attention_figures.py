"""What quantum attention has learned: Φ(x), its spectrum, and its size beside the softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from qsgd_jax.nn import QuantumTransformer


def sizes(
    model: QuantumTransformer, tokens: Int[Array, "examples length"]
) -> dict[str, Float[Array, " layers"]]:
    """Measure both parts of the attention weights in each layer, where neither token is padding.

    Returns:
        The root mean square of the softmax's weights and of Φ, and the mean of Φ.
    """

    def classify(model: QuantumTransformer, tokens: Array) -> Array:
        return model(tokens, deterministic=True, sow_weights=True)

    sown = captured(classify, model, tokens)
    real = tokens != model.pad
    allowed = real[:, None, None, :] & real[:, None, :, None]
    rows = []
    for _, layer in sorted(sown["layers"].items()):
        weights, phi = (
            layer["attention"][name][0]
            for name in ("attention_weights", "quantum_attention_weights")
        )
        where = jnp.broadcast_to(allowed, phi.shape)
        rows.append(
            {
                "softmax_rms": jnp.sqrt(jnp.mean((weights - phi) ** 2, where=where)),
                "phi_rms": jnp.sqrt(jnp.mean(phi**2, where=where)),
                "phi_mean": jnp.mean(phi, where=where),
            }
        )
    return jax.tree.map(lambda *layers: jnp.stack(layers), *rows)


def captured(function: Callable[..., Any], module: nnx.Module, *arguments: Any) -> Any:
    """Return what the module sows in a call; Flax 0.12.0 cannot but leave it in the module."""
    if hasattr(nnx, "capture"):
        return nnx.capture(function, nnx.Intermediate)(module, *arguments)[1]
    function(module, *arguments)
    return nnx.pop(module, nnx.Intermediate)


def learned(model: QuantumTransformer, x: Float[np.ndarray, " points"]) -> list[dict[str, Any]]:
    """Return Φ(x) and its spectrum in each layer, a row for each circuit, ready for JSON."""
    rows = []
    for layer in model.layers:
        attention: Any = layer.attention.attention_fn
        rows.append(
            {
                "phi": np.atleast_2d(attention.phi(x)).tolist(),
                "frequencies": attention.frequencies.tolist(),
                "spectrum": np.atleast_2d(attention.spectrum().T).tolist(),
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
    from matplotlib import pyplot as plt  # the rest does without

    figure, axes = plt.subplots(
        layers, 3, figsize=(11, 2.8 * layers), squeeze=False, layout="constrained"
    )
    for index, (phi, spectrum, size) in enumerate(axes):
        for seed, (run, epochs) in enumerate(zip(runs, diagnostics, strict=True)):
            color, layer = f"C{seed % 10}", run[index]
            phi.plot(x, np.transpose(layer["phi"]), color=color, lw=1)
            offset = 0.1 * (seed / max(1, len(runs) - 1) - 0.5)
            for circuit in layer["spectrum"]:
                nu = np.array(layer["frequencies"]) + offset
                spectrum.plot(nu, circuit, "o", color=color, ms=3)
            for name, style in (("phi_rms", "-"), ("softmax_rms", "--")):
                size.plot([epoch[name][index] for epoch in epochs], style, color=color, lw=1)
        phi.set(ylabel=f"layer {index}: Φ(x)", xlabel="score x, radians")
        spectrum.set(ylabel="amplitude", xlabel="frequency ν", ylim=(0, None))
        size.set(ylabel="weights, root mean square", xlabel="epoch", ylim=(0, None))
        size.plot([], "-", color="0.3", label="Φ")
        size.plot([], "--", color="0.3", label="softmax")
        size.legend(fontsize="small")
        for panel in (phi, spectrum, size):
            panel.grid(alpha=0.2)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
