"""Spectral superposition as optax gradient transformations."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array

from qsgd_jax._src.spectral.cascade import SpectralCascade, check_descent
from qsgd_jax._src.spectral.matrices import checked_product_dtype, real, turned
from qsgd_jax._src.spectral.routing import (
    ADAMW,
    SPECTRAL,
    Matrices,
    SpectralRouting,
    is_route,
    resolved,
    routes,
    say_unknown,
)
from qsgd_jax._src.spectral.second_moment import (
    check_fits,
    check_second_moment,
    evened,
    zero_moment,
)
from qsgd_jax._src.spectral.state import (
    ScaleBySpectralSuperpositionState,
    check_leaf,
    is_masked_or_none,
    momentum_of,
)
from qsgd_jax._src.trees import NO_PARAMS_MSG, wider
from qsgd_jax._src.typing import PyTree

AnyCascade = SpectralCascade | str


def scale_by_spectral_superposition(
    cascade: AnyCascade = "polar-express",
    beta: jax.typing.ArrayLike = 0.9,
    nesterov: bool = True,
    update_rms: jax.typing.ArrayLike = 0.2,
    mu_dtype: Any | None = None,
    routing: SpectralRouting | None = None,
    product_dtype: Any | None = None,
    second_moment: Literal["entry"] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replace each matrix of updates by what circuits make of its momentum's singular values.

    .. math::
      M_t = \beta M_{t-1} + (1 - \beta) G_t, \qquad
      \hat M_t / \lVert \hat M_t \rVert = U \Sigma V^\top, \qquad
      u_t = r \, \frac{U f(\Sigma) V^\top}{\mathrm{rms}(U f(\Sigma) V^\top)}

    with :math:`\hat M_t` the momentum after correction of its bias (and Nesterov's look ahead), f
    the cascade, and r the root mean square of the update. Each singular direction is weighed by
    :math:`f(\sigma) / \sigma`: small ones are raised, large ones held. With
    `second_moment="entry"` each entry of that is divided by the root of its mean square:

    .. math:: v_t = 0.99 \, v_{t-1} + 0.01 \, |u_t / r|^2, \qquad
      u'_t = r \, \frac{u_t / \sqrt{v_t}}{\mathrm{rms}(u_t / \sqrt{v_t})}

    Leaves that are no matrices pass unchanged; `superpositional_muon` gives them to AdamW.

    Args:
      cascade: what `spectral_cascade` makes, or the name of one.
      beta: β, decay rate of the momentum.
      nesterov: whether to look one step ahead.
      update_rms: r, root mean square of each matrix's update; of 0.2, about AdamW's, its learning
        rates fit.
      mu_dtype: dtype of the momentum; by default that of the parameters.
      routing: which leaves are matrices; by default `SpectralRouting()`.
      product_dtype: what matrices are rounded to before they are multiplied, such as `jnp.bfloat16`
        on an accelerator, where that is faster; the update is then off by about a hundredth of its
        size. By default nothing is rounded.
      second_moment: `"entry"` for entries evened out as above, which takes a second buffer as large
        as the momentum, of at least float32. On two small language models the test loss was 0.6 and
        0.2 % lower by it, within the noise of five seeds (`experiments/records/second_moment.md`).

    Returns:
      A transformation whose `update` needs no `params`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range.

    Example:
      >>> import jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> optimizer = optax.chain(qsgd.scale_by_spectral_superposition("muon"), optax.sgd(0.1))
      >>> params = jnp.eye(2)
      >>> updates, _ = optimizer.update(jnp.array([[1.0, 0], [0, 0.1]]), optimizer.init(params))
      >>> print(updates.round(3))
      [[-0.028 -0.   ]
       [-0.    -0.028]]

    References:
      Muon: Jordan et al., 2024; the size of the update: Liu et al., arXiv:2502.16982; the second
      moment: AdaMuon, Si et al., arXiv:2507.11005, without its sign before the singular values.
    """
    cascade, routing = _chosen(cascade), _checked_routing(routing)
    _check_number("beta", beta, "in [0, 1)", lambda x: 0 <= x < 1)
    _check_number("update_rms", update_rms, "positive and finite", lambda x: 0 < x < math.inf)
    product_dtype = checked_product_dtype(product_dtype)
    check_second_moment(second_moment)

    def init(params: optax.Params) -> Any:
        mu = jax.tree.map(
            lambda route, p: _zeros(p, mu_dtype) if route.label == SPECTRAL else optax.MaskedNode(),
            routes(params, routing),
            params,
            is_leaf=is_route,
        )
        nu = None if second_moment is None else zero_moment(mu)
        return ScaleBySpectralSuperpositionState(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del extra_args
        check_fits(second_moment, state.nu)
        count = cast(Array, optax.safe_increment(state.count))
        after = cast(Array, optax.safe_increment(count))

        def of_leaf(path: Any, m: Any, g: Any, route: Any, v: Any = None) -> _Leaf:
            if g is None or isinstance(m, optax.MaskedNode):
                return _Leaf(g, m, v)
            check_leaf(jax.tree_util.keystr(path), g, m, route, product_dtype)
            dtype = wider(m.dtype, jnp.result_type(g), jnp.float32)
            g_wide, m_wide = jnp.asarray(g, dtype), jnp.asarray(m, dtype)
            b, rest = real(beta, dtype), real(1 - beta, dtype)
            now, ahead = (1 - b ** real(n, dtype) for n in (count, after))
            momentum = b * m_wide + rest * g_wide
            hat = b * momentum / ahead + rest * g_wide / now if nesterov else momentum / now
            return _Leaf(jnp.result_type(g), momentum.astype(m.dtype), v, hat, route.numbers)

        # By the momenta, which are all matrices: gradients may be missing, embeddings masked.
        table = resolved(routing, updates if params is None else params)
        known = routes(state.mu, Matrices.of(table))
        trees = (updates, known) if second_moment is None else (updates, known, state.nu)
        leaves = jax.tree_util.tree_map_with_path(
            of_leaf, state.mu, *trees, is_leaf=is_masked_or_none
        )
        matrices = [x for x in jax.tree.leaves(leaves, is_leaf=_is_leaf) if x.hat is not None]
        turned_ones = iter(
            turned(cascade, [x.hat for x in matrices], [x.axes for x in matrices], product_dtype)
        )

        def stepped(leaf: _Leaf) -> _Leaf:
            if leaf.hat is None:
                return leaf
            step, second = next(turned_ones), leaf.second
            if second is not None:
                step, second = evened(step, second, leaf.axes)
            step = real(update_rms, step.dtype) * step
            return leaf._replace(update=step.astype(leaf.update), second=second)

        leaves = jax.tree.map(stepped, leaves, is_leaf=_is_leaf)
        updates, mu, nu = (
            jax.tree.map(operator.attrgetter(name), leaves, is_leaf=_is_leaf)
            for name in ("update", "momentum", "second")
        )
        nu = None if second_moment is None else nu
        return updates, ScaleBySpectralSuperpositionState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def superpositional_muon(
    learning_rate: optax.ScalarOrSchedule,
    cascade: AnyCascade = "polar-express",
    beta: jax.typing.ArrayLike = 0.9,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    mu_dtype: Any | None = None,
    *,
    nesterov: bool = True,
    update_rms: jax.typing.ArrayLike = 0.2,
    routing: SpectralRouting | None = None,
    product_dtype: Any | None = None,
    second_moment: Literal["entry"] | None = None,
    adam_b1: jax.typing.ArrayLike = 0.9,
    adam_b2: jax.typing.ArrayLike = 0.99,
    adam_eps: jax.typing.ArrayLike = 1e-8,
    adam_eps_root: jax.typing.ArrayLike = 0.0,
    adam_weight_decay: optax.ScalarOrSchedule = 0.0,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Circuits on the singular values of matrices, AdamW on the rest.

    .. math:: W_t = W_{t-1} - \alpha_t \big( r \, U f(\Sigma) V^\top / \mathrm{rms}(\cdot)
      + \omega \, W_{t-1} \big), \qquad U \Sigma V^\top = \hat M_t / \lVert \hat M_t \rVert

    for the matrices of a model (`print(spectral_routing(params))` shows which they are), and
    `optax.adamw` for embeddings, heads, biases and scales.

    Args:
      learning_rate: α, a float or a schedule; with `update_rms=0.2` about as for AdamW, or larger.
      cascade: what `spectral_cascade` makes, or the name of one.
      beta: decay rate of the momentum of matrices.
      weight_decay: ω, decoupled weight decay of matrices; a float or a schedule.
      weight_decay_mask: which leaves are decayed, a tree of booleans or a function that makes one.
      mu_dtype: dtype of the momentum and of AdamW's first moment; by default that of the
        parameters.
      nesterov: whether to look one step ahead; AdamW on the rest does so too.
      update_rms: r, root mean square of each matrix's update.
      routing: which leaves are matrices; by default `SpectralRouting()`.
      product_dtype: as for `scale_by_spectral_superposition`.
      second_moment: as for `scale_by_spectral_superposition`.
      adam_b1: decay rate of AdamW's first moment.
      adam_b2: decay rate of AdamW's second moment.
      adam_eps: ε of AdamW, outside the root.
      adam_eps_root: ε of AdamW, inside the root.
      adam_weight_decay: AdamW's weight decay.
      adam_learning_rate: AdamW's learning rate; by default `learning_rate`.

    Returns:
      A transformation to be used as `optax.adamw` is.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> optimizer = qsgd.superpositional_muon(0.05)
      >>> target = jnp.arange(12.0).reshape(3, 4) / 12
      >>> params = jnp.zeros((3, 4))
      >>> state = optimizer.init(params)
      >>> for _ in range(100):
      ...     updates, state = optimizer.update(params - target, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(bool(jnp.abs(params - target).max() < 0.05))
      True

    References:
      Muon: Jordan et al., 2024; `optax.contrib.muon`. Singular values by one-qubit circuits:
      Gilyén, Su, Low, Wiebe, arXiv:1806.01838.
    """
    routing, cascade = _checked_routing(routing), _chosen(cascade)
    of_matrices = functools.partial(
        scale_by_spectral_superposition,
        *(cascade, beta, nesterov, update_rms, mu_dtype),
        product_dtype=product_dtype,
        second_moment=second_moment,
    )
    of_matrices()  # checks its arguments
    rest = optax.adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        adam_eps,
        adam_eps_root,
        mu_dtype,
        adam_weight_decay,
        weight_decay_mask,
        nesterov=nesterov,
    )

    def routed(tree: PyTree, table: SpectralRouting) -> optax.GradientTransformationExtraArgs:
        labels = jax.tree.map(lambda route: route.label, routes(tree, table), is_leaf=is_route)
        matrices = optax.chain(
            of_matrices(routing=Matrices.of(table)),
            optax.add_decayed_weights(weight_decay, weight_decay_mask),
            optax.scale_by_learning_rate(learning_rate),
        )
        return optax.partition({SPECTRAL: matrices, ADAMW: rest}, labels)

    def init(params: optax.Params) -> Any:
        table = resolved(routing, params)
        say_unknown(routes(params, table))
        return routed(params, table).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        table = resolved(routing, params)
        # By the parameters, since gradients may be missing; by those that the state was made for.
        params = jax.tree.map(
            lambda m, p: None if m is None else p,
            momentum_of(state),
            params,
            is_leaf=is_masked_or_none,
        )
        return routed(params, table).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


class _Leaf(NamedTuple):
    """A leaf's update, or at first, of a matrix, its dtype; its moments; what is turned."""

    update: Any
    momentum: Any
    second: Any = None
    hat: Any = None
    axes: Any = None


def _is_leaf(x: Any) -> bool:
    return isinstance(x, _Leaf)


def _zeros(leaf: Any, dtype: Any) -> Array:
    """In a dtype that is asked for, unless it would drop what is imaginary."""
    dropped = jnp.iscomplexobj(leaf) and not jnp.issubdtype(dtype, jnp.complexfloating)
    return jnp.zeros_like(leaf, dtype=None if dropped else dtype)


@functools.cache
def _named(cascade: str) -> SpectralCascade:
    """Shared, so that `inject_hyperparams`, which rebuilds its optimizer, probes once."""
    from qsgd_jax._src.spectral.building import spectral_cascade  # imports PennyLane

    return spectral_cascade(cascade)


def _chosen(cascade: Any) -> SpectralCascade:
    chosen = _named(cascade) if isinstance(cascade, str) else cascade
    if not isinstance(chosen, SpectralCascade):
        raise TypeError(f"cascade={cascade!r} must be one of qsgd_jax.spectral_cascade, or a name.")
    if not chosen.traced:
        check_descent(chosen)
    return chosen


def _checked_routing(routing: Any) -> SpectralRouting:
    if routing is not None and not isinstance(routing, SpectralRouting):
        raise TypeError(f"routing={routing!r} must be a qsgd_jax.SpectralRouting.")
    return routing or SpectralRouting()


def _check_number(name: str, value: Any, allowed: str, fits: Callable[[float], bool]) -> None:
    if isinstance(value, (Tracer, jax.Array, np.ndarray)):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}={value!r} must be a number {allowed}.")
    if not fits(float(value)):
        raise ValueError(f"{name}={value!r} must be {allowed}.")
