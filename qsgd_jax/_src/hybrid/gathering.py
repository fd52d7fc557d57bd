"""Many entries of a few arrays in one gather, where JAX would compile a slice for each."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float

# What only moves entries, on their places.
_MOVES: dict[str, Callable[..., np.ndarray]] = {
    "copy": lambda x: x,
    "reshape": lambda x, new_sizes, dimensions, **_: x.transpose(
        range(x.ndim) if dimensions is None else dimensions
    ).reshape(new_sizes),
    "slice": lambda x, start_indices, limit_indices, strides: x[
        tuple(map(slice, start_indices, limit_indices, strides or [None] * x.ndim))
    ],
    "squeeze": lambda x, dimensions: x.squeeze(dimensions),
    "transpose": lambda x, permutation: x.transpose(permutation),
}


def gathered(
    function: Callable[..., tuple[Sequence[Any], Any]], *arguments: Any, dtype: Any
) -> tuple[Float[Array, " numbers"], Any]:
    """Call a function and join what it returns.

    XLA's time to compile a program grows with its operations; a template takes each of a circuit's
    angles out of the weights by one, and its derivative puts each back by another.

    Args:
      function: returns arrays, and a tree of others.
      *arguments: its own.
      dtype: of the result.

    Returns:
      The arrays, flat, one after the other; and the tree.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    jaxpr, n = closed.jaxpr, len(shapes[0])
    found: dict[Any, tuple[Any, np.ndarray]] = {}  # another variable, and the places in it

    def places(atom: Any) -> tuple[Any, np.ndarray]:
        new = (atom, np.arange(atom.aval.size).reshape(atom.aval.shape))
        return new if isinstance(atom, core.Literal) else found.get(atom, new)

    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _MOVES:
            source, at = places(eqn.invars[0])
            found[eqn.outvars[0]] = (source, _MOVES[eqn.primitive.name](at, **eqn.params))
    taken = [places(atom) for atom in jaxpr.outvars[:n]]
    sources = list({id(source): source for source, _ in taken}.values())
    ends = itertools.accumulate((x.aval.size for x in sources), initial=0)
    starts = {id(source): end for source, end in zip(sources, ends, strict=False)}
    index = [starts[id(source)] + i for source, at in taken for i in at.ravel().tolist()]
    fewer = core.ClosedJaxpr(jaxpr.replace(outvars=[*sources, *jaxpr.outvars[n:]]), closed.consts)
    results = core.jaxpr_as_fun(fewer)(*jax.tree.leaves(arguments))
    tree = jax.tree.unflatten(jax.tree.structure(shapes[1]), results[len(sources) :])
    flat = [jnp.ravel(x).astype(dtype) for x in results[: len(sources)]]
    joined = jnp.concatenate([jnp.zeros(0, dtype), *flat])
    return joined if index == list(range(joined.size)) else joined[np.asarray(index, int)], tree
