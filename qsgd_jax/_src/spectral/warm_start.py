"""Going on with spectral superposition where AdamW has begun."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qsgd_jax._src.spectral.state import is_state


def warm_start(
    state: Any,
    adamw_state: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    beta: float = 0.9,
    adam_b1: float = 0.9,
    adam_b2: float = 0.99,
) -> Any:
    r"""Give `superpositional_muon` the moments that `optax.adamw` has gathered.

    .. math:: M_t = \frac{1 - \beta^t}{1 - \beta_1^t} \, m_t

    so that, corrected of its bias, the momentum of a matrix is AdamW's first moment; for leaves
    that stay with AdamW so are both moments. Leaves are found by their paths. Schedules begin
    anew, and so does a `second_moment` of turned matrices: they belong to the new optimizer.

    Args:
      state: of the new optimizer, as its `init` makes it; it may be wrapped.
      adamw_state: of `optax.adamw`, or of anything with one `optax.ScaleByAdamState` in it.
      b1: decay rate of the first moment of that AdamW.
      b2: decay rate of its second moment.
      beta: of the new optimizer.
      adam_b1: of the new optimizer.
      adam_b2: of the new optimizer.

    Returns:
      The new optimizer's state with the steps that AdamW has taken and its moments, in the dtypes
      of `state`. A leaf of which AdamW has none, or of another shape, is kept and warned of.

    Raises:
      ValueError: if there is not one AdamW in `adamw_state`, no spectral superposition in `state`,
        or no leaf that fits.

    Example:
      >>> import jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
      >>> adamw, optimizer = optax.adamw(1e-3), qsgd.superpositional_muon(1e-3)
      >>> _, adamw_state = adamw.update(params, adamw.init(params), params)
      >>> state = qsgd.warm_start(optimizer.init(params), adamw_state)
      >>> updates, state = optimizer.update(params, state, params)
    """
    found = [x for x in jax.tree.leaves(adamw_state, is_leaf=_is_adam) if _is_adam(x)]
    if len(found) != 1:
        raise ValueError(
            f"adamw_state has {len(found)} of optax.ScaleByAdamState; allowed is one, as that of "
            "optax.adamw has."
        )
    if not any(map(is_state, jax.tree.leaves(state, is_leaf=is_state))):
        raise ValueError("state has no spectral superposition: it must be superpositional_muon's.")
    count, first, second = found[0].count, *map(_by_path, (found[0].mu, found[0].nu))
    taken, left = set[str](), set[str]()

    def moment(known: dict[str, Any], old: Any, new: Any) -> Any:
        def of_leaf(path: Any, leaf: Any) -> Any:
            place = jax.tree_util.keystr(path)
            if not _alike(leaf, first.get(place)):
                left.add(place)
                return leaf
            taken.add(place)
            return _moved(known[place], count, old, new).astype(leaf.dtype)

        return of_leaf

    def of_part(part: Any) -> Any:
        if not (is_state(part) or _is_adam(part)):
            return part
        moments = {"mu": moment(first, b1, beta if is_state(part) else adam_b1)}
        if _is_adam(part):
            moments["nu"] = moment(second, b2, adam_b2)
        trees = {
            name: jax.tree_util.tree_map_with_path(of_leaf, getattr(part, name))
            for name, of_leaf in moments.items()
        }
        # A copy, since there are two counts: one buffer could not be donated twice.
        return part._replace(count=jnp.array(count, part.count.dtype, copy=True), **trees)

    result = jax.tree.map(of_part, state, is_leaf=lambda x: is_state(x) or _is_adam(x))
    if not taken:
        raise ValueError(
            f"adamw_state has no moments that fit: of {', '.join(sorted(left)) or 'no leaves'} "
            f"none has the path and the shape of one of {', '.join(first) or 'none'}."
        )
    if left:
        warnings.warn(
            f"adamw_state has no moments that fit {', '.join(sorted(left))}: they are as in state.",
            stacklevel=2,
        )
    return result


def _is_adam(x: Any) -> bool:
    return isinstance(x, optax.ScaleByAdamState)


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _alike(leaf: Any, other: Any) -> bool:
    if other is None or jnp.shape(leaf) != jnp.shape(other):
        return False
    return jnp.iscomplexobj(leaf) == jnp.iscomplexobj(other)


def _moved(moment: Any, count: Any, old: float, new: float) -> Any:
    """With the bias, after that many steps, of another decay rate."""
    # A copy even where there is nothing to do: the state it comes from may be donated or kept.
    steps = jnp.maximum(count, 1)
    factor = 1.0 if old == new else (1 - new**steps) / (1 - old**steps)
    return jnp.array(moment, copy=True) * factor
