"""Any QNode as a layer: its weights are parameters, and a batch is one call to its device."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qsgd_jax._src import devices
from qsgd_jax._src.checks import check_integer
from qsgd_jax._src.host import name_of
from qsgd_jax._src.hybrid.functions import answer
from qsgd_jax._src.hybrid.held import Held
from qsgd_jax._src.hybrid.refusing import explained

Shape = int | Sequence[int]


class QuantumLayer(nnx.Module):
    r"""A QNode as a Flax module; its arguments beside the inputs are parameters.

    .. math::
      y_b = \langle \psi(x_b, \theta) | M | \psi(x_b, \theta) \rangle, \qquad
      \frac{\partial y_b}{\partial z} = \sum_g \frac{\partial y_b}{\partial \alpha_g}
        \frac{\partial \alpha_g}{\partial z}

    with gate angles α(x, θ). JAX traces the QNode: what is classical in it (`2 * x`,
    `jnp.arccos(x)`, the shape of a template) stays in the JAX program, and a device gets angles
    (and states to prepare), those of the whole batch in one call, up to 4,096 circuits, also
    under `jax.vmap`, `nnx.scan` and `jax.checkpoint` (of a layer that measures, nnx's: it takes
    from a stream). With derivatives that call is the adjoint method's, where the device has it
    for what is measured; elsewhere the parameter-shift rule, with the frequencies of the gates.
    A device that JAX can trace (`default.qubit`, exact) becomes a part of the program: there the
    layer is `jax.vmap` of the QNode, and no faster.

    The QNode is called with one input at a time, an array of the last axis. It answers by
    `qml.expval`, `qml.var` or `qml.probs`, one or several, which are joined.

    Args:
      qnode: its arguments are named; those with a default may be left out of `weight_shapes`.
      weight_shapes: of each weight, by its name: a number or a sequence. As in PennyLane's
        `TorchLayer`, 1 stands for a scalar.
      weight_init: an initializer for all weights, or for some by name one, or an array. By
        default uniform in [0, 2π).
      input_name: the argument that takes the inputs.
      param_dtype: of the weights.
      rngs: source of the weights (`params`) and, where the device measures, of a stream (`shots`)
        by which JAX tells one pass from the next.

    Attributes:
      weight_names: each is an attribute, too, an `nnx.Param`.
      shots: how often the device measures, `None` if exact.

    Raises:
      TypeError: if an argument has the wrong type, or the QNode takes `*args`.
      ValueError: if weights and arguments do not fit each other, or the device can only measure
        and no number of shots is set (`qml.set_shots`).

    Example:
      >>> import jax.numpy as jnp, pennylane as qml
      >>> from flax import nnx
      >>> from qsgd_jax.nn import QuantumLayer
      >>> @qml.qnode(qml.device("lightning.qubit", wires=2))
      ... def circuit(inputs, weights):
      ...     qml.AngleEmbedding(inputs, wires=range(2))
      ...     qml.StronglyEntanglingLayers(weights, wires=range(2))
      ...     return [qml.expval(qml.Z(i)) for i in range(2)]
      >>> layer = QuantumLayer(circuit, {"weights": (3, 2, 3)}, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((8, 2))).shape
      (8, 2)

    References:
      `pennylane.qnn.TorchLayer`. Parameter shift: Wierichs, Izaac, Wang, Lin, arXiv:2107.12390;
      adjoint method: Jones, Gacon, arXiv:2009.02823.
    """

    def __init__(
        self,
        qnode: Any,
        weight_shapes: Mapping[str, Shape],
        *,
        weight_init: Any = None,
        input_name: str = "inputs",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not isinstance(qnode, qml.QNode):
            raise TypeError(f"qnode={qnode!r} must be a pennylane.QNode.")
        if not jnp.issubdtype(param_dtype, jnp.floating):
            raise TypeError(f"param_dtype={param_dtype!r} must be a floating type.")
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"rngs={rngs!r} must be flax.nnx.Rngs(...).")
        shapes = _checked_shapes(weight_shapes)
        _check_signature(qnode, shapes, input_name)
        self._held: Held = Held(qnode)
        self.input_name: str = input_name
        self.shots: int | None = devices.shots_of(qnode)
        self.weight_names: tuple[str, ...] = tuple(shapes)
        self.rngs: Any = nnx.data(None)
        if isinstance(weight_init, Mapping) and (unknown := sorted(set(weight_init) - set(shapes))):
            raise ValueError(f"weight_init has {', '.join(unknown)}; allowed are {list(shapes)}.")
        for name, shape in shapes.items():
            if hasattr(type(self), name) or name in vars(self):
                raise ValueError(f"a weight {name!r} would hide what a layer has; rename it.")
            init = weight_init.get(name) if isinstance(weight_init, Mapping) else weight_init
            setattr(self, name, nnx.Param(_initial(name, init, shape, param_dtype, rngs)))
        if self.shots is not None:  # after the weights, which are those of an exact layer
            self.rngs = rngs.shots.fork()

    @property
    def qnode(self) -> Any:
        """The QNode."""
        return self._held.qnode

    def __call__(self, inputs: Float[Array, "*batch features"]) -> Float[Array, "..."]:
        """The QNode's answers at each input.

        Args:
          inputs: of any leading axes.

        Returns:
          An array of these leading axes, and those of an answer; several answers are joined in one
          axis. Of the inputs' dtype, if that is floating; computed in float32 at least.

        Raises:
          ValueError: if the QNode cannot take such inputs, its structure depends on values, or it
            measures in the middle.
        """
        inputs = jnp.asarray(inputs)
        if not inputs.ndim:
            raise ValueError(f"inputs={inputs!r} must have an axis of features.")
        weights = {name: getattr(self, name)[...] for name in self.weight_names}
        dtype = inputs.dtype if jnp.issubdtype(inputs.dtype, jnp.floating) else jnp.float32
        wide = jnp.result_type(dtype, jnp.float32, *weights.values())
        weights = {name: x.astype(wide) for name, x in weights.items()}
        key = jnp.zeros(2, jnp.uint32) if self.rngs is None else jax.random.key_data(self.rngs())
        found = _batched(self.qnode, self.input_name, inputs, weights, key, wide)
        return found.astype(dtype)


def _checked_shapes(shapes: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(shapes, Mapping):
        raise TypeError(f"weight_shapes={shapes!r} must be a mapping from names to shapes.")
    found = {}
    for name, shape in shapes.items():
        each = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        for length in each:
            check_integer(f"weight_shapes[{name!r}]", length, 0, 2**31 - 1)
        found[name] = () if not isinstance(shape, Sequence) and shape == 1 else each
    return found


def _check_signature(qnode: Any, shapes: Mapping[str, Any], input_name: str) -> None:
    parameters, name = inspect.signature(qnode.func).parameters, name_of(qnode.func)
    kinds = {x.kind for x in parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        raise TypeError(f"{name} takes *args; allowed are arguments with names.")
    if input_name in shapes:
        raise ValueError(f"weight_shapes has {input_name!r}, which is the input, not a weight.")
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return
    needed = {x.name for x in parameters.values() if x.default is inspect.Parameter.empty}
    if input_name not in parameters:
        raise ValueError(
            f"{name} has no argument {input_name!r}, but {list(parameters)}; name it by "
            "input_name=."
        )
    if missing := sorted(needed - {input_name} - set(shapes)):
        raise ValueError(f"weight_shapes has no {', '.join(missing)}, which {name} takes.")
    if unknown := sorted(set(shapes) - set(parameters)):
        raise ValueError(
            f"weight_shapes has {', '.join(unknown)}; {name} takes {list(parameters)}."
        )


def _initial(
    name: str, init: Any, shape: tuple[int, ...], dtype: DTypeLike, rngs: nnx.Rngs
) -> Float[Array, "..."]:
    if init is None:
        return jax.random.uniform(rngs.params(), shape, dtype, 0, 2 * np.pi)
    if isinstance(init, Callable):
        found = init(rngs.params(), shape, dtype)
    else:
        found = jnp.asarray(init, dtype)
    if found.shape != shape:
        raise ValueError(f"weight_init gave {name} the shape {found.shape}, not {shape}.")
    return found


@functools.partial(jax.jit, static_argnames=("qnode", "input_name", "dtype"))
def _batched(qnode, input_name, inputs, weights, key, dtype):
    def one(x):
        return answer(qnode, {input_name: x, **weights}, key, dtype)

    floating = jnp.issubdtype(inputs.dtype, jnp.floating)
    rows = inputs.reshape(-1, inputs.shape[-1])
    rows = rows.astype(dtype) if floating else rows
    shapes = {input_name: rows.shape[1:], **{name: x.shape for name, x in weights.items()}}
    with explained(name_of(qnode.func), shapes):
        found = jax.vmap(one)(rows)
    return found.reshape(*inputs.shape[:-1], *found.shape[1:])
