"""Natural gradients: updates measured by what they change, not by how far they move."""

import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32

from qsgd_jax._src.trees import check_gradients, check_state, is_none, is_number, wider

Matrix = Float[Array, "m m"]
_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Metric(Protocol):
    """What measures steps of parameters; `qsgd_jax.FubiniStudy` is one."""

    every: int | None
    decay: float

    def find(self, params: Any) -> Any: ...
    def measure(self, params: Any, batch: Any = None, *, key: Any = None) -> list[Matrix]: ...


class ScaleByMetricState(NamedTuple):
    """State of `scale_by_metric`.

    Attributes:
      count: steps taken.
      metric: of each circuit, as last measured; the unit matrix before.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    metric: list[Matrix]


def scale_by_metric(
    metric: Metric, damping: jax.typing.ArrayLike | None = 1e-3
) -> optax.GradientTransformationExtraArgs:
    r"""Turn a gradient into a natural gradient.

    .. math:: u_t \leftarrow (g(\theta_{t-1}) + \delta \, I)^{-1} \, u_t

    with g the metric of a circuit's parameters, flat one after the other. Several circuits are
    blocks of it, each solved alone.

    Args:
      metric: as `FubiniStudy` makes it. All leaves must be parameters of its circuits; beside
        others it stands in `optax.partition`.
      damping: δ, positive: how far a step may be lengthened where the state hardly moves, by 1/δ at
        most. `None` takes the pseudo-inverse, which leaves out directions in which it does not
        move at all, to rounding.

    Returns:
      A transformation whose `update` needs `params`, and `batch=` where a circuit takes data.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `damping` is not positive; in `init` and `update`, if leaves are no parameters
        of the circuits, or trees or state do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, optax, pennylane as qml, qsgd_jax as qsgd
      >>> @qml.qnode(qml.device("lightning.qubit", wires=1))
      ... def energy(weights):
      ...     qml.RX(weights[0], wires=0)
      ...     qml.RY(weights[1], wires=0)
      ...     return qml.expval(qml.Z(0))
      >>> optimizer = optax.chain(
      ...     qsgd.scale_by_metric(qsgd.FubiniStudy(energy), damping=1e-6), optax.sgd(0.1)
      ... )
      >>> params = {"weights": jnp.array([0.5, 0.0])}
      >>> gradients = jax.grad(lambda params: energy(**params))(params)
      >>> updates, _ = optimizer.update(gradients, optimizer.init(params), params)
      >>> print(updates["weights"][:1].round(3))
      [0.192]

    References:
      Stokes, Izaac, Killoran, Carleo, "Quantum natural gradient", arXiv:1909.02108.
    """
    if not hasattr(metric, "measure") or isinstance(metric, type):
        raise TypeError(f"metric={metric!r} must be a qsgd_jax.FubiniStudy.")
    _check_damping(damping)

    def init(params: optax.Params) -> ScaleByMetricState:
        leaves = jax.tree.leaves(params)
        found = []
        for place in metric.find(params):
            own = [leaves[i] for i in place.leaves.values()]
            size = sum(math.prod(x.shape) for x in own)
            found.append(jnp.eye(size, dtype=wider(jnp.float32, *(x.dtype for x in own))))
        return ScaleByMetricState(jnp.zeros((), jnp.int32), found)

    def update(
        updates: Any, state: Any, params: Any = None, *, batch: Any = None, **extra_args: Any
    ) -> Any:
        del extra_args
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates, is_leaf=is_none):
            if leaf is None:
                raise ValueError(
                    f"updates have None at {jax.tree_util.keystr(path)!r}: each parameter of a "
                    "circuit takes a part in its metric; one that rests is an argument of it, by "
                    "functools.partial."
                )
        check_state(state, init, params, updates)
        check_gradients(updates, params)

        def measured() -> list[Matrix]:
            key = jnp.stack([state.count, jnp.zeros_like(state.count)]).astype(jnp.uint32)
            new = metric.measure(params, batch, key=key)
            kept = jnp.where(state.count == 0, 0.0, metric.decay)
            pairs = zip(state.metric, new, strict=True)
            return [(kept * a + (1 - kept) * b).astype(a.dtype) for a, b in pairs]

        if metric.every is None:
            now = state.metric
        elif metric.every == 1:
            now = measured()
        else:
            due = state.count % metric.every == 0
            now = jax.lax.cond(due, measured, lambda: list(state.metric))
        leaves, tree = jax.tree.flatten(updates)
        for place, g in zip(metric.find(params), now, strict=True):
            own = [leaves[i] for i in place.leaves.values()]
            flat = _solved(g, jnp.concatenate([x.ravel().astype(g.dtype) for x in own]), damping)
            for i, x in zip(place.leaves.values(), own, strict=True):
                leaves[i], flat = flat[: x.size].reshape(x.shape).astype(x.dtype), flat[x.size :]
        count: Any = optax.safe_increment(state.count)
        return jax.tree.unflatten(tree, leaves), ScaleByMetricState(count, now)

    return optax.GradientTransformationExtraArgs(init, update)


def _solved(g: Matrix, u: Float[Array, " m"], damping: Any) -> Float[Array, " m"]:
    # By eigenvalues: rounding makes some of a singular metric's negative.
    values, basis = jnp.linalg.eigh(g)
    values = jnp.maximum(values, 0)
    if damping is None:
        least = 10 * len(u) * jnp.finfo(g.dtype).eps * jnp.max(values)
        scales = jnp.where(values > least, 1 / jnp.maximum(values, least), 0)
    else:
        scales = 1 / (values + jnp.asarray(damping, g.dtype))
    return _dot(basis, scales * _dot(basis.T, u))


def _check_damping(damping: Any) -> None:
    if damping is None or isinstance(damping, Tracer):
        return
    allowed = "a positive number, or None for the pseudo-inverse."
    if isinstance(damping, bool) or not (
        isinstance(damping, int) or is_number(damping, jnp.floating)
    ):
        raise TypeError(f"damping={damping!r} must be {allowed}")
    if jnp.ndim(damping) or not 0 < float(damping) < math.inf:
        raise ValueError(f"damping={damping} must be {allowed}")
