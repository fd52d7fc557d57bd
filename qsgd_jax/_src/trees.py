"""Do the trees that a transformation is given fit each other?"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree
from optax._src.base import NO_PARAMS_MSG  # optax exports its message nowhere else


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...] | None]:
    """The shape of every leaf by its path, `None` for a `None`."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return {
        jax.tree_util.keystr(path): None if leaf is None else np.shape(leaf)
        for path, leaf in paths_and_leaves
    }


def check_gradients(gradients: PyTree, params: PyTree) -> None:
    """Refuse gradients whose tree or shapes are not those of the parameters."""
    found, expected = _shapes(gradients), _shapes(params)
    for path in expected | found:
        if path not in found:
            raise ValueError(f"gradients have nothing at {path!r}, where params have a leaf.")
        if path not in expected:
            raise ValueError(f"gradients have a leaf at {path!r}, where params have nothing.")
        if found[path] is not None and found[path] != expected[path]:
            raise ValueError(
                f"gradient of shape {found[path]} at {path!r} does not match its parameter of "
                f"shape {expected[path]}."
            )


def check_state(state: PyTree, init: Callable[[PyTree], PyTree], params: PyTree) -> None:
    """Refuse a state, perhaps restored, of another optimizer or of other parameters."""
    if params is None:
        raise ValueError(NO_PARAMS_MSG)
    # A function made anew: Optimistix puts tracers into what `init` closes over, and
    # `jax.eval_shape` would compare them with those of the last call.
    expected = jax.eval_shape(lambda params: init(params), params)
    found, wanted = _shapes(state), _shapes(expected)
    for path in wanted | found:
        if found.get(path) != wanted.get(path):
            has, should = (
                "nothing" if x is None else f"an array of shape {x}"
                for x in (found.get(path), wanted.get(path))
            )
            raise ValueError(
                f"state has {has} at {path!r}, where that of this optimizer and these params has "
                f"{should}: was it made by another?"
            )
