"""Superpositional gradient descent as optax gradient transformations."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, UInt32

from qsgd_jax._src.diagnostics import PerturbationDiagnostics
from qsgd_jax._src.refreshable import RefreshableCoefficients
from qsgd_jax._src.source import AnyCoverage, AnySurrogate, Source
from qsgd_jax._src.trees import check_gradients, check_state, is_none, wider
from qsgd_jax._src.weighing import weigh

Weigh = Literal["update", "gradient", "moments"]
ScalarOrSchedule = Float[Array, ""] | float | optax.Schedule


class ScaleBySuperpositionState(NamedTuple):
    """State of `scale_by_superposition`.

    Attributes:
      count: steps taken.
      key: raw data of the random key, to be replaced where seeds should differ.
      diagnostics: of the last step, `None` unless asked for.
      coefficients: of the circuit, `None` unless they are refreshable.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    key: UInt32[Array, "2"]
    diagnostics: PerturbationDiagnostics | None
    coefficients: RefreshableCoefficients | None


class SuperposeState(NamedTuple):
    """State of `superpose`.

    Attributes:
      count: steps taken.
      key: raw data of the random key, to be replaced where seeds should differ.
      diagnostics: of the last step, `None` unless asked for.
      coefficients: of the circuit, `None` unless they are refreshable.
      inner_state: state of the wrapped transformation.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    key: UInt32[Array, "2"]
    diagnostics: PerturbationDiagnostics | None
    coefficients: RefreshableCoefficients | None
    inner_state: optax.OptState


def scale_by_superposition(
    quantum_weight: ScalarOrSchedule = 0.5,
    surrogate: AnySurrogate | None = None,
    coverage: AnyCoverage = "leading",
    *,
    key: Array | int = 0,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each coordinate of the updates by its superposition weight.

    .. math:: u_t \leftarrow u_t \, (1 + \lambda_t \, w(\theta_{t-1}))

    For :math:`|\lambda| < 1` each coordinate keeps its direction, at any scale of the
    gradient. With :math:`\lambda = 0` updates pass unchanged, as long as they and the
    parameters are finite (and are no denormal numbers, which XLA flushes on CPU). Unless the
    weights are `sampled`, the result is differentiable in λ, in the parameters and in the
    circuit's angles.

    Args:
      quantum_weight: λ, a float, a scalar array or a schedule of the count of steps
        taken before this one.
      surrogate: what answers the weights: a `Surrogate`, or what `sampled`, `refreshable` and
        `Direct` make; by default that of `Circuit()`, at depth 0.
      coverage: `"leading"`, the first coordinates of each tensor as one block (the paper),
        `"everywhere"`, all of them, or `Leading(...)`, `Everywhere(...)`.
      key: a seed or a random key for `sampled` weights; it lives in the state.
      diagnostics: whether the state reports the size of the perturbation, which reads
        every update once more.

    Returns:
      A transformation whose `update` needs `params`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `quantum_weight` is not finite or not a scalar, or the surrogate has not
        one output for each input, within ±1; in `update`, if trees or state do not fit.

    Example:
      >>> import jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> optimizer = optax.chain(qsgd.scale_by_superposition(0.5), optax.sgd(0.1))
      >>> params = jnp.array([0.5, -0.5, 0.0])
      >>> updates, _ = optimizer.update(jnp.ones(3), optimizer.init(params), params)
      >>> print(updates)
      [-0.15 -0.05 -0.1 ]

    References:
      The perturbation Q of Eq. 2 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918, applied
      to the update instead of being added to it.
    """
    source = Source(quantum_weight, surrogate, coverage, key, diagnostics)

    def init(params: optax.Params) -> Any:
        del params
        return ScaleBySuperpositionState(*source.init())

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del extra_args
        check_state(state, init, params, updates)
        weigher, strength, step = source.now(state)
        scaled = weigh(weigher, source.coverage, params, updates, strength, step)  # u (1 + λ w)
        scaled = jax.tree.map(_as_update, updates, scaled, is_leaf=is_none)
        return scaled, ScaleBySuperpositionState(
            *source.next(state, updates, scaled, updates, params)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def superpose(
    inner: optax.GradientTransformation,
    quantum_weight: ScalarOrSchedule = 0.5,
    surrogate: AnySurrogate | None = None,
    coverage: AnyCoverage = "leading",
    *,
    key: Array | int = 0,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the gradient, weighed by the superposition, to another transformation's updates.

    .. math:: u_t = \mathrm{inner}(g_t) + \lambda_t \, w(\theta_{t-1}) \odot g_t

    This is Eq. 1 around any `scale_by_*` that does not flip the sign. The weighed
    gradient keeps the gradient's scale, so where :math:`|\lambda w g|` exceeds the inner
    step and :math:`w < 0`, the step climbs; `scale_by_superposition` does not.

    Args:
      inner: a transformation of the gradients, e.g. `optax.scale_by_adam()`.
      quantum_weight: λ, a float, a scalar array or a schedule of the count of steps
        taken before this one.
      surrogate: what answers the weights: a `Surrogate`, or what `sampled`, `refreshable` and
        `Direct` make; by default that of `Circuit()`, at depth 0.
      coverage: `"leading"`, the first coordinates of each tensor as one block (the paper),
        `"everywhere"`, all of them, or `Leading(...)`, `Everywhere(...)`.
      key: a seed or a random key for `sampled` weights; it lives in the state.
      diagnostics: whether the state reports the size of the perturbation, which reads
        every update once more.

    Returns:
      A transformation whose `update` needs `params` and passes extra arguments on.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `quantum_weight` is not finite or not a scalar, or the surrogate has not
        one output for each input, within ±1; in `update`, if trees or state do not fit.

    Example:
      >>> import optax, qsgd_jax as qsgd
      >>> optimizer = optax.chain(
      ...     optax.clip_by_global_norm(1.0),
      ...     qsgd.superpose(optax.scale_by_lion(), quantum_weight=0.5),
      ...     optax.add_decayed_weights(0.01),
      ...     optax.scale_by_learning_rate(1e-4),
      ... )

    References:
      Eq. 1 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918.
    """
    source = Source(quantum_weight, surrogate, coverage, key, diagnostics)
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner={inner!r} must be an optax.GradientTransformation.")
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> Any:
        return SuperposeState(*source.init(), wrapped.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        check_state(state, init, params, updates)
        check_gradients(updates, params)  # Adam's moments would broadcast what does not fit
        weigher, strength, step = source.now(state)
        steps, inner_state = wrapped.update(updates, state.inner_state, params, **extra_args)
        weighed = weigh(weigher, source.coverage, params, updates, key=step)  # w ⊙ g
        perturbed = jax.tree.map(
            lambda u, q: u if u is None or q is None else _plus(u, strength, q),  # u + λ w ⊙ g
            steps,
            weighed,
            is_leaf=is_none,
        )
        return perturbed, SuperposeState(
            *source.next(state, steps, perturbed, updates, params), inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def superpositional_adamw(
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
    quantum_weight: ScalarOrSchedule = 0.5,
    weigh: Weigh = "update",
    surrogate: AnySurrogate | None = None,
    coverage: AnyCoverage = "leading",
    key: Array | int = 0,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW whose step is weighed by a superposition of the parameters.

    .. math::
      \theta_t = \theta_{t-1} - \alpha_t \Big( \tilde u_t + \omega \, \theta_{t-1} \Big),
      \qquad u_t = \hat m_t / (\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon)

    with ω the weight decay, and by `weigh`

    * `"update"`: :math:`\tilde u_t = u_t \, (1 + \lambda_t w(\theta_{t-1}))`; keeps each
      coordinate's direction for :math:`|\lambda| < 1`.
    * `"gradient"`: :math:`\tilde u_t = u_t + \lambda_t w(\theta_{t-1}) \odot g_t`, the
      paper's Eq. 1. It adds a raw gradient to a normalised step and can climb where
      gradients are large.
    * `"moments"`: Adam of :math:`g_t \, (1 + \lambda_t w(\theta_{t-1}))`, the paper's
      "quantum-inspired moment updates". A weight that changes slowly cancels in Adam's
      ratio, so it does little.

    With :math:`\lambda = 0` the parameters are those of `optax.adamw`, operation by operation,
    as long as gradients and parameters are finite; of `"moments"` XLA may make multiply-adds
    that differ in the last bit.

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
      quantum_weight: λ, a float, a scalar array or a schedule of the count of steps
        taken before this one.
      weigh: where the weights act: `"update"`, `"gradient"` or `"moments"`.
      surrogate: what answers the weights: a `Surrogate`, or what `sampled`, `refreshable` and
        `Direct` make; by default that of `Circuit()`, at depth 0.
      coverage: `"leading"`, the first coordinates of each tensor as one block (the paper),
        `"everywhere"`, all of them, or `Leading(...)`, `Everywhere(...)`.
      key: a seed or a random key for `sampled` weights; it lives in the state.
      diagnostics: whether the state reports the size of the perturbation, which reads
        every update once more.

    Returns:
      A transformation to be used as `optax.adamw` is.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `weigh` is unknown, `quantum_weight` is not finite or not a scalar, or the
        surrogate has not one output for each input, within ±1; in `update`, if trees or state do
        not fit.

    Example:
      >>> import jax, jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> optimizer = qsgd.superpositional_adamw(0.1, quantum_weight=0.5)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(60):
      ...     updates, state = optimizer.update(2 * params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(bool(jnp.sum(params**2) < 0.5))
      True

    References:
      Eq. 1 and 2 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918; Loshchilov, Hutter,
      arXiv:1711.05101.
    """
    adam = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    weighing: Any = (quantum_weight, surrogate, coverage)
    options: dict[str, Any] = {"key": key, "diagnostics": diagnostics}
    if weigh == "update":
        direction = optax.chain(adam, scale_by_superposition(*weighing, **options))
    elif weigh == "gradient":
        direction = superpose(adam, *weighing, **options)
    elif weigh == "moments":
        direction = optax.chain(scale_by_superposition(*weighing, **options), adam)
    else:
        raise ValueError(f"weigh={weigh!r} must be 'update', 'gradient' or 'moments'.")
    return optax.chain(
        direction,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _as_update(update: Any, scaled: Any) -> Any:
    return update if scaled is None else scaled.astype(jnp.result_type(update))


@jax.jit
def _plus(update: Any, strength: Float[Array, ""], weighed: Any) -> Array:
    """Eq. 1, u + λ Q, in the dtype of u."""
    dtype = wider(jnp.result_type(update), weighed.dtype)
    change = strength.astype(weighed.real.dtype) * weighed
    return (jnp.asarray(update, dtype) + change.astype(dtype)).astype(jnp.result_type(update))
