"""AdamW whose step is gated by a circuit of its signals, and the general form beneath it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qsgd_jax.angles import load_superposition
from qsgd_jax.perturbation import from_real_parts, real_parts
from qsgd_jax.signals import SignalSuperposition
from qsgd_jax.trees import check_gradients, check_state


def superpose_signals(
    inner: optax.GradientTransformation,
    superposition: SignalSuperposition | None = None,
    *,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Gate each coordinate's step by a circuit that reads signals about it.

    .. math::
      \tilde u_t = \kappa \big( u_t (1 + \lambda_1 z_1) + \lambda_2 z_2 \tanh \hat g_t \big),
      \qquad u_t = \mathrm{inner}(g_t), \qquad
      \hat g_t = g_t / (\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon)

    with z₁, z₂ the circuit's readouts of u, ĝ, the parameter over its tensor's root mean square,
    and u ĝ. The state is the inner transformation's own.

    Args:
      inner: a transformation that keeps the second moments v of Adam:
        `optax.scale_by_adam` (with or without Nesterov's momentum), `scale_by_radam` or
        `scale_by_yogi`.
      superposition: circuit, λ₁, λ₂ and κ; by default `load_superposition()`.
      b2: decay rate of the second moment, that of `inner`.
      eps: ε, that of `inner`.
      eps_root: ε̄, that of `inner`.

    Returns:
      A transformation whose `update` needs `params` and passes extra arguments on.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: in `init`, if `inner` keeps no second moments of that kind; in `update`, if
        gradients or state do not fit the parameters.

    Example:
      >>> import optax, qsgd_jax as qsgd
      >>> optimizer = optax.chain(
      ...     optax.clip_by_global_norm(1.0),
      ...     qsgd.superpose_signals(optax.scale_by_adam(b2=0.95), b2=0.95),
      ...     optax.add_decayed_weights(0.01),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )

    References:
      The circuit is that of Pamuk, Özdemir, Kocabay, arXiv:2511.01918; the signals and the gates
      are this package's own.
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner={inner!r} must be an optax.GradientTransformation.")
    chosen = load_superposition() if superposition is None else superposition
    if not isinstance(chosen, SignalSuperposition):
        raise TypeError(f"superposition={chosen!r} must be a qsgd_jax.SignalSuperposition.")
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> Any:
        return _with_moments(wrapped.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        check_state(state, init, params)
        check_gradients(updates, params)
        steps, state = wrapped.update(updates, state, params, **extra_args)
        # Not the quotient that Adam takes: shared, it would change Adam's own step in the last bit.
        correction = 1 / (1 - b2**state.count)
        # XLA:CPU gives a quotient that is used more than once a loop of its own, and the step would
        # take 1.5 times as long. It does not so with a product, of a 1 that it cannot foresee.
        one = jnp.where(state.count > 0, 1, 0)

        def gated(theta: Any, u: Any, g: Any, v: Any) -> Any:
            thetas, us = real_parts(theta), real_parts(u)
            if not thetas or not us:
                return u
            moment = jnp.real(v)  # which optax keeps as a complex number for complex parameters
            inverse = 1 / (jnp.sqrt(moment * correction.astype(moment.dtype) + eps_root) + eps)
            parts = [
                chosen.gated(part * one.astype(part.dtype), slope * inverse, part_of_theta)
                for part, slope, part_of_theta in zip(us, real_parts(g), thetas, strict=True)
            ]
            return from_real_parts(parts, jnp.shape(u))

        leaves, treedef = jax.tree.flatten(params)
        rows = zip(leaves, *map(treedef.flatten_up_to, (steps, updates, state.nu)), strict=True)
        return treedef.unflatten([gated(*row) for row in rows]), state

    return optax.GradientTransformationExtraArgs(init, update)


def _with_moments(state: Any) -> optax.ScaleByAdamState:
    if not isinstance(state, optax.ScaleByAdamState):
        raise ValueError(
            f"inner has a state of {type(state).__name__}, without the second moments that the "
            "circuit needs; allowed are optax.scale_by_adam, scale_by_radam and scale_by_yogi."
        )
    return state


def learned_superpositional_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: Any | None = None,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    nesterov: bool = False,
    superposition: SignalSuperposition | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW whose step is gated by a circuit of its signals, with `optax.adamw`'s arguments.

    .. math::
      \theta_t = \theta_{t-1} - \alpha_t \Big(
        \kappa \big( u_t (1 + \lambda_1 z_1) + \lambda_2 z_2 \tanh \hat g_t \big)
        + \omega \, \theta_{t-1} \Big)

    with u Adam's step, ĝ the gradient over the same root, ω the weight decay, and z₁, z₂ what the
    circuit answers to signals about the coordinate (`SignalSuperposition`). The state is that of
    `optax.adamw`, so that a run may go on from AdamW's checkpoint.

    With :math:`\lambda_1 = \lambda_2 = 0` and :math:`\kappa = 1` the parameters are those of
    `optax.adamw`, bit for bit, as long as they and the gradients are finite. Where the gradient is
    itself elementwise in the parameters, XLA may fuse it into the moments and round the last bit
    otherwise.

    Args:
      learning_rate: α, a float or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: ε, added outside the root.
      eps_root: ε̄, added inside the root.
      mu_dtype: dtype of the first moment; by default that of the parameters.
      weight_decay: ω, decoupled weight decay; a float or a schedule.
      mask: which leaves are decayed, a tree of booleans or a function that makes one.
      nesterov: whether to use Nesterov momentum.
      superposition: circuit, λ₁, λ₂ and κ; by default `load_superposition()`.

    Returns:
      A transformation to be used as `optax.adamw` is.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: in `update`, if gradients or state do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> optimizer = qsgd.learned_superpositional_adamw(0.1)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(60):
      ...     updates, state = optimizer.update(2 * params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(bool(jnp.sum(params**2) < 0.5))
      True

    References:
      The circuit is that of Pamuk, Özdemir, Kocabay, arXiv:2511.01918; Loshchilov, Hutter,
      arXiv:1711.05101. Where the numbers come from: `load_superposition`.
    """
    adam = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    chain = optax.chain(
        superpose_signals(adam, superposition, b2=b2, eps=eps, eps_root=eps_root),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        check_state(state, chain.init, params)
        return chain.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(chain.init, update)
