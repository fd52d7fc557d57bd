"""Do the trees that a transformation is given fit each other? And what their leaves are."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from optax._src.base import NO_PARAMS_MSG  # optax exports its message nowhere else

from qsgd_jax._src.typing import PyTree


def is_none(x: Any) -> bool:
    """Whether a leaf is missing."""
    return x is None


def is_number(x: Any, *kinds: Any) -> bool:
    """Whether a leaf is an array or number of one of these kinds of dtype."""
    if not isinstance(x, (jax.Array, np.ndarray, np.generic, float, complex)):
        return False
    return any(jnp.issubdtype(jax.dtypes.result_type(x), kind) for kind in kinds)


def wider(*dtypes: Any) -> Any:
    """The dtype that holds all of them, also where jax is told to promote none by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def as_value(array: Any) -> Any:
    """A concrete array as a float64 NumPy array of its own, which cannot be written to."""
    if isinstance(array, Tracer) or not isinstance(array, (jax.Array, np.ndarray)):
        return array
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return array
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        return array  # such as a float0 tangent
    value = np.array(array, np.float64)
    value.setflags(write=False)
    return value


def check_stacked_axes(given: Any) -> None:
    """Refuse what cannot say how many leading axes of leaves stack layers."""
    for value in jax.tree.leaves(given):
        number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not callable(value) and not (number and value >= 0):
            raise ValueError(
                f"stacked_axes={given!r} must be an integer of at least 0, a function of path and "
                "leaf, or a tree of such integers."
            )


def stacked_axes_of(given: Any, params: PyTree) -> PyTree:
    """How many leading axes of each leaf stack layers."""
    if callable(given):
        return jax.tree_util.tree_map_with_path(given, params)
    try:
        return jax.tree.map(lambda n, part: jax.tree.map(lambda _: n, part), given, params)
    except ValueError as error:
        raise ValueError(f"stacked_axes={given!r} is no prefix of params: {error}") from error


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...] | None]:
    """The shape of every leaf by its path, `None` for a `None`."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
    return {
        jax.tree_util.keystr(path): None if leaf is None else np.shape(leaf)
        for path, leaf in paths_and_leaves
    }


def check_gradients(gradients: PyTree, params: PyTree) -> None:
    """Refuse gradients whose tree or shapes are not those of the parameters."""
    try:
        fits = jax.tree.map(_fits, gradients, params, is_leaf=is_none)
        if all(jax.tree.leaves(fits)):
            return
    except ValueError:
        pass
    found, expected = _shapes(gradients), _shapes(params)
    absent = [path for path, shape in found.items() if shape is None]
    for path in expected | found:
        if any(path.startswith((f"{above}[", f"{above}.")) or path == above for above in absent):
            continue
        if path not in found:
            raise ValueError(f"gradients have nothing at {path!r}, where params have a leaf.")
        if path not in expected:
            raise ValueError(f"gradients have a leaf at {path!r}, where params have nothing.")
        if found[path] != expected[path]:
            raise ValueError(
                f"gradient of shape {found[path]} at {path!r} does not match its parameter of "
                f"shape {expected[path]}."
            )
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        param = dict(jax.tree_util.tree_leaves_with_path(params))[path]
        if not _fits(gradient, param):
            raise ValueError(
                f"gradient of {jax.typeof(gradient)} at {jax.tree_util.keystr(path)!r} does not "
                f"match its parameter of {jax.typeof(param)}: one is complex."
            )


def _fits(gradient: Any, param: Any) -> bool:
    if gradient is None or param is None:
        return True
    kinds = [is_number(x, jnp.complexfloating) for x in (gradient, param)]
    real = [is_number(x, jnp.floating) for x in (gradient, param)]
    alike = kinds[0] == kinds[1] or not all(a or b for a, b in zip(kinds, real, strict=True))
    return jnp.shape(gradient) == jnp.shape(param) and alike


_checked: "weakref.WeakKeyDictionary[Any, set[Any]]" = weakref.WeakKeyDictionary()


def check_state(
    state: PyTree, init: Callable[[PyTree], PyTree], params: PyTree, updates: PyTree
) -> None:
    """Refuse a state, perhaps restored, of another optimizer or of other parameters.

    A leaf without a gradient may have a state or have none: `optax` masks it, or the caller has
    made the state without it.
    """
    if params is None:
        raise ValueError(NO_PARAMS_MSG)
    leaves, structure = jax.tree.flatten((state, params, updates), is_leaf=is_none)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        _check_state(state, init, params, updates)
        return
    # Not again in every step that is not compiled: it takes as long as the step.
    seen = _checked.setdefault(init, set())
    key = structure, tuple(getattr(leaf, "shape", leaf is None) for leaf in leaves)
    if key not in seen:
        _check_state(state, init, params, updates)
        seen.add(key)


def _check_state(state: PyTree, init: Any, params: PyTree, updates: PyTree) -> None:
    def numbers(x: Any) -> Any:
        return x if is_number(x, jnp.number) else None

    numeric = jax.tree.map(numbers, params)
    try:
        weighed = jax.tree.map(
            lambda g, p: None if g is None else jax.tree.map(numbers, p),
            updates,
            params,
            is_leaf=is_none,
        )
    except ValueError:  # of which `check_gradients` says more
        weighed = numeric
    # Functions made anew: Optimistix puts tracers into what `init` closes over, and
    # `jax.eval_shape` would compare them with those of the last call.
    whole, part = (_shapes(jax.eval_shape(lambda x: init(x), tree)) for tree in (numeric, weighed))
    found = _shapes(state)
    for path in whole | part | found:
        here = found.get(path)
        if here not in (whole.get(path), part.get(path)):
            has, should = (
                "nothing" if x is None else f"an array of shape {x}"
                for x in (here, whole.get(path))
            )
            raise ValueError(
                f"state has {has} at {path!r}, where that of this optimizer and these params has "
                f"{should}: was it made by another?"
            )


def varying_axes(array: Any) -> frozenset[str]:
    """The axes of `jax.shard_map` along which each device has an array of its own."""
    kind: Any = jax.typeof(array)  # of jax 0.7.1, or since 0.10
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying
