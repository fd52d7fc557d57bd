"""How much a step was perturbed."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from qsgd_jax._src.coverage import Coverage
from qsgd_jax._src.trees import is_none, is_number
from qsgd_jax._src.typing import PyTree


class PerturbationDiagnostics(NamedTuple):
    """How much a step was perturbed; read it with `optax.tree.get(state, "relative_norm")`.

    Attributes:
      relative_norm: Euclidean norm of the perturbation over that of the step before it,
        both over the whole tree; 0 where both vanish. The "step" is what the
        transformation is given or wraps: with `weigh="moments"`, the gradient before Adam.
      flipped_share: share of the weighed coordinates whose direction was reversed.
    """

    relative_norm: Float[Array, ""]
    flipped_share: Float[Array, ""]


def no_perturbation() -> PerturbationDiagnostics:
    """What a state begins with."""
    return PerturbationDiagnostics(*jnp.zeros((2,), jnp.float32))


def report(
    coverage: Coverage, n: int, before: PyTree, after: PyTree, gradients: PyTree, params: PyTree
) -> PerturbationDiagnostics:
    """What the perturbation did to a step, from the updates before and after it."""
    pairs = [
        (x.astype(jnp.float32), y.astype(jnp.float32))
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        for x, y in zip(_real_parts(old), _real_parts(new), strict=True)
    ]

    def n_weighed(gradient: Any, leaf: Any, stacked: int) -> int:
        parts = min(len(_real_parts(gradient)), len(_real_parts(leaf)))
        if not parts:
            return 0
        shape = jnp.shape(leaf)
        slices = functools.reduce(lambda a, b: a * b, shape[:stacked], 1)
        return parts * slices * coverage.n_weighed(shape[stacked:], n)

    counts = jax.tree.map(n_weighed, gradients, params, coverage.stacks(params), is_leaf=is_none)
    reversals = [jnp.sign(x) * jnp.sign(y) < 0 for x, y in pairs]
    flipped = sum((jnp.sum(each, dtype=jnp.float32) for each in reversals), jnp.zeros(()))
    # Squares of what is large or small would leave float32.
    largest = functools.reduce(
        jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x, _ in pairs], jnp.zeros(())
    )
    scale = jnp.where(largest > 0, largest, 1)
    norm = optax.tree.norm([x / scale for x, _ in pairs])
    change = optax.tree.norm([y / scale - x / scale for x, y in pairs])
    relative = jnp.where(change == 0, 0.0, change / norm)
    share = flipped / float(max(sum(jax.tree.leaves(counts)), 1))
    return PerturbationDiagnostics(relative.astype(jnp.float32), share.astype(jnp.float32))


def _real_parts(leaf: Any) -> tuple[Array, ...]:
    if is_number(leaf, jnp.complexfloating):
        return jnp.real(leaf), jnp.imag(leaf)
    return (jnp.asarray(leaf),) if is_number(leaf, jnp.floating) else ()
