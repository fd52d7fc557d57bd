"""Superpositional gradient descent as optax gradient transformations."""

import functools
import math
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32, UInt32

from qsgd_jax._src.perturbation import real_parts
from qsgd_jax._src.refreshable import RefreshableCoefficients, initial_coefficients
from qsgd_jax._src.sampling import key_data, step_key
from qsgd_jax._src.superposition import Superposition
from qsgd_jax._src.trees import check_gradients, check_state

Weigh = Literal["gradient", "update", "moments"]
ScalarOrSchedule = Float[Array, ""] | float | optax.Schedule


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
    superposition: Superposition | None = None,
    *,
    key: Array | int = 0,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each coordinate of the updates by its superposition weight.

    .. math:: u_t \leftarrow u_t \, (1 + \lambda_t \, w(\theta_{t-1}))

    For :math:`|\lambda| < 1` each coordinate keeps its direction, at any scale of the
    gradient. With :math:`\lambda = 0` updates pass unchanged, as long as they and the
    parameters are finite (and are no denormal numbers, which XLA flushes on CPU). Without
    shots the result is differentiable in λ, in the parameters and in the circuit's angles.

    Args:
      quantum_weight: λ, a float, a scalar array or a schedule of the count of steps
        taken before this one.
      superposition: circuit, coverage and device; by default `Superposition()`.
      key: a seed or a random key for sampled weights (`shots`); it lives in the state.
      diagnostics: whether the state reports the size of the perturbation, which reads
        every update once more.

    Returns:
      A transformation whose `update` needs `params`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `quantum_weight` is not finite or not a scalar.

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
    _check_quantum_weight(quantum_weight)
    chosen = _chosen(superposition)
    seed = key_data(key)

    def init(params: optax.Params) -> Any:
        del params
        return ScaleBySuperpositionState(
            jnp.zeros((), jnp.int32),
            jnp.copy(seed),
            _no_perturbation() if diagnostics else None,
            initial_coefficients(chosen),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del extra_args
        check_state(state, init, params)
        strength, step = _strength_and_key(chosen, quantum_weight, state)
        held = state.coefficients
        scaled = chosen.perturb(updates, None, params, strength, step, held and held.table)
        report = _report(chosen, updates, scaled, updates, params) if diagnostics else None
        return scaled, ScaleBySuperpositionState(
            _next(state.count), state.key, report, _a_step_older(held)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def superpose(
    inner: optax.GradientTransformation,
    quantum_weight: ScalarOrSchedule = 0.5,
    superposition: Superposition | None = None,
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
      superposition: circuit, coverage and device; by default `Superposition()`.
      key: a seed or a random key for sampled weights (`shots`); it lives in the state.
      diagnostics: whether the state reports the size of the perturbation, which reads
        every update once more.

    Returns:
      A transformation whose `update` needs `params` and passes extra arguments on.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `quantum_weight` is not finite or not a scalar.

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
    _check_quantum_weight(quantum_weight)
    chosen = _chosen(superposition)
    seed = key_data(key)
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner={inner!r} must be an optax.GradientTransformation.")
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> Any:
        return SuperposeState(
            jnp.zeros((), jnp.int32),
            jnp.copy(seed),
            _no_perturbation() if diagnostics else None,
            initial_coefficients(chosen),
            wrapped.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        check_state(state, init, params)
        check_gradients(updates, params)
        strength, step = _strength_and_key(chosen, quantum_weight, state)
        steps, inner_state = wrapped.update(updates, state.inner_state, params, **extra_args)
        held = state.coefficients
        perturbed = chosen.perturb(steps, updates, params, strength, step, held and held.table)
        report = _report(chosen, steps, perturbed, updates, params) if diagnostics else None
        return perturbed, SuperposeState(
            _next(state.count), state.key, report, _a_step_older(held), inner_state
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
    weigh: Weigh = "gradient",
    superposition: Superposition | None = None,
    key: Array | int = 0,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW whose step is weighed by a superposition of the parameters.

    .. math::
      \theta_t = \theta_{t-1} - \alpha_t \Big( \tilde u_t + \omega \, \theta_{t-1} \Big),
      \qquad u_t = \hat m_t / (\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon)

    with ω the weight decay, and by `weigh`

    * `"gradient"`: :math:`\tilde u_t = u_t + \lambda_t w(\theta_{t-1}) \odot g_t`, the
      paper's Eq. 1. It adds a raw gradient to a normalised step and can climb where
      gradients are large.
    * `"update"`: :math:`\tilde u_t = u_t \, (1 + \lambda_t w(\theta_{t-1}))`; keeps each
      coordinate's direction for :math:`|\lambda| < 1`. Recommended outside replication.
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
      weigh: where the weights act: `"gradient"`, `"update"` or `"moments"`.
      superposition: circuit, coverage and device; by default `Superposition()`.
      key: a seed or a random key for sampled weights (`shots`); it lives in the state.
      diagnostics: whether the state reports the size of the perturbation, which reads
        every update once more.

    Returns:
      A transformation to be used as `optax.adamw` is.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `weigh` is unknown, or `quantum_weight` is not finite or not a scalar;
        in `update`, if gradients or state do not fit the parameters.

    Example:
      >>> import jax, jax.numpy as jnp, optax, qsgd_jax as qsgd
      >>> optimizer = qsgd.superpositional_adamw(0.1, quantum_weight=0.5, weigh="update")
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
    options: dict[str, Any] = {"key": key, "diagnostics": diagnostics}
    if weigh == "gradient":
        direction = superpose(adam, quantum_weight, superposition, **options)
    elif weigh == "update":
        direction = optax.chain(
            adam, scale_by_superposition(quantum_weight, superposition, **options)
        )
    elif weigh == "moments":
        direction = optax.chain(
            scale_by_superposition(quantum_weight, superposition, **options), adam
        )
    else:
        raise ValueError(f"weigh={weigh!r} must be 'gradient', 'update' or 'moments'.")
    chain = optax.chain(
        direction,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        check_state(state, chain.init, params)
        check_gradients(updates, params)  # Adam's moments would broadcast what does not fit
        return chain.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(chain.init, update)


@functools.cache
def _default_superposition() -> Superposition:
    """Shared, so that `inject_hyperparams`, which rebuilds its optimizer, probes once."""
    return Superposition()


def _chosen(superposition: Superposition | None) -> Superposition:
    if superposition is None:
        return _default_superposition()
    if not isinstance(superposition, Superposition):
        raise TypeError(f"superposition={superposition!r} must be a qsgd_jax.Superposition.")
    return superposition


def _check_quantum_weight(quantum_weight: Any) -> None:
    if callable(quantum_weight) or isinstance(quantum_weight, Tracer):
        return
    allowed = "a finite real number, a scalar array or a schedule"
    # `inject_hyperparams` holds numbers in the dtype of the parameters, which may be complex.
    if isinstance(quantum_weight, (bool, np.bool_, str, NoneType)) or np.any(
        np.imag(quantum_weight)
    ):
        raise TypeError(f"quantum_weight={quantum_weight!r} must be {allowed}.")
    try:
        value = np.asarray(np.real(quantum_weight), np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"quantum_weight={quantum_weight!r} must be {allowed}.") from None
    if value.shape != () or not np.isfinite(value):
        raise ValueError(f"quantum_weight={quantum_weight!r} must be {allowed}.")


def _next(count: Int32[Array, ""]) -> Int32[Array, ""]:
    return cast(Array, optax.safe_increment(count))


def _a_step_older(held: RefreshableCoefficients | None) -> RefreshableCoefficients | None:
    return held and held._replace(
        age=_next(held.age), steps_since_request=_next(held.steps_since_request)
    )


def _strength_and_key(superposition, quantum_weight, state):
    for name, shape, dtype in (("count", (), jnp.int32), ("key", (2,), jnp.uint32)):
        found = jax.typeof(getattr(state, name))
        if (found.shape, found.dtype) != (shape, dtype):
            raise ValueError(
                f"{name} of {found} in the state must be {jax.ShapeDtypeStruct(shape, dtype)}."
            )
    strength: Any = quantum_weight(state.count) if callable(quantum_weight) else quantum_weight
    if jnp.shape(strength) != ():
        raise ValueError(f"quantum_weight of shape {jnp.shape(strength)} must be a scalar.")
    key = None if superposition.shots is None else step_key(state.key, state.count)
    return jnp.real(strength), key


def _no_perturbation() -> PerturbationDiagnostics:
    return PerturbationDiagnostics(*jnp.zeros((2,), jnp.float32))


def _report(superposition, before, after, gradients, params) -> PerturbationDiagnostics:
    """What the perturbation did to a step, from the updates before and after it."""
    pairs = [
        (x.astype(jnp.float32), y.astype(jnp.float32))
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        for x, y in zip(real_parts(old), real_parts(new), strict=True)
    ]
    leaves, treedef = jax.tree.flatten(params)
    most = superposition.circuit.n_qubits if superposition.coverage == "leading" else math.inf
    weighed = sum(
        min(part.size, most)
        for leaf, gradient in zip(leaves, treedef.flatten_up_to(gradients), strict=True)
        for part, _ in zip(real_parts(leaf), real_parts(gradient), strict=False)
    )
    flipped = sum((jnp.sum(jnp.sign(x) * jnp.sign(y) < 0) for x, y in pairs), jnp.zeros(()))
    # Squares of what is large or small would leave float32.
    largest = functools.reduce(
        jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x, _ in pairs], jnp.zeros(())
    )
    scale = jnp.where(largest > 0, largest, 1)
    norm = optax.tree.norm([x / scale for x, _ in pairs])
    change = optax.tree.norm([y / scale - x / scale for x, y in pairs])
    relative = jnp.where(change == 0, 0.0, change / norm)
    share = flipped / max(weighed, 1)
    return PerturbationDiagnostics(relative.astype(jnp.float32), share.astype(jnp.float32))
