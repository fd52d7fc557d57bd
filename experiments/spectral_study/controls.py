"""What does it: the same step with another curve, other leaves, or one part of it changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree
from numpy.polynomial import Chebyshev

import qsgd_jax as qsgd
from benchmarks.arm import Build
from benchmarks.spectral_time import is_axes_or_none, matrix_axes
from experiments.engine.contender import Contender
from experiments.spectral_study.arms import MUON, SPECTRAL, muon, spectral

Sigmas = Float[Array, " sigmas"]
Curve = Callable[[Sigmas, Key[Array, ""]], Sigmas]
# The first seeds whose angles do not fall with σ from the start, which the package refuses.
RANDOM_ODD = (0, 1, 4)


def by_svd(curve: Curve) -> optax.GradientTransformation:
    """Put other singular values in the place of a matrix's, with the root mean square of its step.

    Args:
        curve: From the singular values, the largest first, and a key of the step and matrix.
    """

    def of_matrix(u: Array, axes: Any, key: Array) -> Array:
        rows, columns = axes
        order = (*rows, *columns)
        matrix = u.transpose(order).reshape(np.prod([u.shape[i] for i in rows], dtype=int), -1)
        left, sigma, right = jnp.linalg.svd(matrix, full_matrices=False)
        x = (left * curve(sigma, key)) @ right
        x = x * (jnp.linalg.norm(matrix) / jnp.linalg.norm(x))
        return x.reshape([u.shape[i] for i in order]).transpose(np.argsort(order))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        leaves, treedef = jax.tree.flatten(updates)
        axes = treedef.flatten_up_to(matrix_axes(params))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state), len(leaves))
        found = [of_matrix(*one) for one in zip(leaves, axes, keys, strict=True)]
        return jax.tree.unflatten(treedef, found), state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def _one_upload() -> qsgd.SpectralCascade:
    return qsgd.spectral_cascade([np.array([1.0])])


def _svd(curve: Curve) -> Build:
    """As `superpositional_muon`, with this curve."""

    def build(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
        matrices = optax.chain(
            qsgd.scale_by_spectral_superposition(_one_upload(), beta=hyper["beta"]),
            by_svd(curve),
            optax.add_decayed_weights(hyper["weight_decay"]),
            optax.scale_by_learning_rate(schedule),
        )
        rest = optax.adamw(schedule, b2=0.99, weight_decay=hyper["weight_decay"], nesterov=True)
        return optax.partition({True: matrices, False: rest}, _are_matrices)

    return build


def _are_matrices(params: PyTree) -> PyTree:
    return jax.tree.map(lambda axes: axes is not None, matrix_axes(params), is_leaf=is_axes_or_none)


def _random_odd(seed: int) -> Build:
    """One circuit of five uploads at random angles, odd as all are."""
    angles = np.random.default_rng(seed).uniform(-np.pi, np.pi, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it may climb: it is what is to be seen
        return spectral(qsgd.spectral_cascade(angles=[angles]))


def _sign(degree: int) -> Build:
    """One circuit: the sign's Chebyshev series, up to a degree."""
    j = np.arange((degree + 1) // 2)
    series = np.zeros(degree + 1)
    series[1::2] = 4 / np.pi * (-1.0) ** j / (2 * j + 1)
    return spectral(qsgd.spectral_cascade([Chebyshev(series)]))


def _routed(of_leaf: Callable[[str], str | None]) -> Build:
    """The spectral form with a word on leaves by their paths."""

    def labels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: of_leaf(jax.tree_util.keystr(path)), params
        )

    return spectral(routing=qsgd.SpectralRouting(labels=labels))


def _only(attention: bool) -> Build:
    return _routed(lambda path: None if ("['attention']" in path) == attention else "adamw")


def _everything(path: str) -> str | None:
    """Embeddings, positions and head are matrices, too."""
    return "spectral" if "embedding" in path or "['head']['kernel']" in path else None


_BUILDS: dict[str, tuple[str, Build]] = {
    SPECTRAL: ("the spectral form, three stages", spectral()),
    "one-upload": ("one upload: the normalised momentum", spectral(_one_upload())),
    **{
        f"random-odd-{seed}": (f"random odd angles, seed {seed}", _random_odd(seed))
        for seed in RANDOM_ODD
    },
    "random-spectrum": (
        "random singular values of the same norm",
        _svd(lambda sigma, key: jax.random.uniform(key, sigma.shape)),
    ),
    "svd-sign": ("all singular values one, by SVD", _svd(lambda sigma, key: jnp.ones_like(sigma))),
    "svd-root": ("their square roots, by SVD", _svd(lambda sigma, key: jnp.sqrt(sigma))),
    **{
        f"stages-{n}": (
            f"{n} {'stage' if n == 1 else 'stages'}",
            spectral(qsgd.spectral_cascade("polar-express", stages=n)),
        )
        for n in (1, 2, 4, 5)
    },
    **{f"degree-{n}": (f"one circuit of degree {n}", _sign(n)) for n in (3, 7, 15, 31)},
    "attention": ("on attention alone", _only(attention=True)),
    "feed-forward": ("on feed-forward layers alone", _only(attention=False)),
    "everything": ("on embeddings and head, too", _routed(_everything)),
    "second-moment": ("with a second moment", spectral(second_moment="entry")),
    "beta-95": ("with a momentum of 0.95", spectral(beta=0.95)),
    "muon-cascade": ("Muon's five stages", spectral("muon")),
    MUON: ("optax's Muon", muon()),
    "muon-width": ("optax's Muon, its own scaling", muon(consistent_rms=None)),
    "muon-routing": ("optax's Muon, its own routing", muon(muon_weight_dimension_numbers=None)),
}

CONTROLS = {name: Contender(name, label, build) for name, (label, build) in _BUILDS.items()}
