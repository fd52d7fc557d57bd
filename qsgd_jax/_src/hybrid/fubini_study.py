"""Which leaves of a tree are parameters of quantum circuits, and the metric of each circuit."""

import functools
import inspect
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pennylane as qml
from jax.tree_util import GetAttrKey, keystr, tree_leaves_with_path
from jaxtyping import Array, Float, UInt32

from qsgd_jax._src import devices
from qsgd_jax._src.checks import check_integer
from qsgd_jax._src.host import name_of
from qsgd_jax._src.hybrid.geometry import Approx, metric
from qsgd_jax._src.hybrid.held import Held
from qsgd_jax._src.hybrid.refusing import explained
from qsgd_jax._src.trees import is_number, wider
from qsgd_jax._src.typing import PyTree

Batch = Any
PARTITION = "classical parameters take another transformation, by optax.partition"


class Place(NamedTuple):
    """Where the parameters of a circuit are in a tree.

    Attributes:
      circuit: its name, as `FubiniStudy` was given it.
      leaves: of the tree, by the names of the circuit's arguments, in alphabetical order.
    """

    circuit: str
    leaves: dict[str, int]


class _Circuit(NamedTuple):
    held: Held
    parameters: frozenset[str]
    whole: bool
    input_name: str | None

    @property
    def name(self) -> str:
        return name_of(self.held.qnode.func)


def leaf_name(path: tuple[Any, ...]) -> str:
    """A leaf's name: its path's, joined by dots.

    Args:
      path: of a leaf.
    """
    if path and path[-1] in (GetAttrKey("value"), GetAttrKey("raw_value")):  # of nnx.Param
        path = path[:-1]
    return keystr(path, simple=True, separator=".")


class FubiniStudy:
    r"""The metric of quantum circuits, by which `scale_by_metric` measures a step.

    .. math:: g_{ij} = \mathrm{Re} \big( \langle \partial_i \psi | \partial_j \psi \rangle
      - \langle \partial_i \psi | \psi \rangle \langle \psi | \partial_j \psi \rangle \big)

    The parameters of a QNode are a mapping by the names of its arguments, as in
    `{"weights": ...}`; of a `qsgd_jax.nn.QuantumLayer`, those that Flax has for it. They may stand
    anywhere in a tree of which the rest is masked, as `optax.partition` does. Arguments that are no
    parameters are the circuit's data: `update` takes them as `batch=`, and the metric is the mean
    over the batch.

    On a device that JAX can trace (`default.qubit`, exact) it is a part of the compiled step: the
    Jacobian of the state. Another simulator is asked for its states, at the parameters and with
    each gate's angle moved once, in one call. With `approx` any device is asked for covariances of
    the gates' generators, by a circuit for each layer of gates, in one call; a noisy device has
    those of its noisy states. What a QNode reads beside its arguments is read once.

    Args:
      circuit: a QNode, a `QuantumLayer`, or a mapping of several: each is a block of its own, and
        its key is where its parameters are, as in `{"encoder.circuit": layer}`.
      approx: `None` for the whole metric, `"block-diag"` for gates within one layer of gates, none
        of which follows another, `"diag"` for each gate alone.
      every: steps from one measurement to the next; between them the optimizer's state keeps it.
        `None`: no step measures; a `MetricProber` does, beside the loop.
      decay: of a running mean of what is measured, 0 for none.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `approx`, `every` or `decay` is not allowed, or the device can only measure and
        has no shots; in use, if parameters and circuits do not fit each other, a batch is missing,
        or the device cannot tell what is needed.

    Example:
      >>> import jax.numpy as jnp, pennylane as qml, qsgd_jax as qsgd
      >>> @qml.qnode(qml.device("default.qubit", wires=1))
      ... def circuit(weights):
      ...     qml.RX(weights[0], wires=0)
      ...     qml.RY(weights[1], wires=0)
      ...     return qml.expval(qml.Z(0))
      >>> metric = qsgd.FubiniStudy(circuit)
      >>> print(metric.measure({"weights": jnp.zeros(2)})[0])
      [[0.25 0.  ]
       [0.   0.25]]

    References:
      Stokes, Izaac, Killoran, Carleo, "Quantum natural gradient", arXiv:1909.02108;
      `pennylane.metric_tensor`.
    """

    def __init__(
        self, circuit: Any, approx: Approx = None, *, every: int | None = 1, decay: float = 0.0
    ):
        if approx not in (None, "block-diag", "diag"):
            raise ValueError(f"approx={approx!r} must be None, 'block-diag' or 'diag'.")
        if every is not None:
            check_integer("every", every, 1, 2**31 - 1)
        if not is_number(decay, jnp.floating) and decay != 0:
            raise TypeError(f"decay={decay!r} must be a number in [0, 1).")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must lie in [0, 1).")
        several = isinstance(circuit, Mapping)
        if several and not circuit:
            raise ValueError("circuit={} must have a circuit at least.")
        circuits = circuit if several else {"": circuit}
        self._anywhere = not several
        self._circuits = {name: _circuit(x) for name, x in circuits.items()}
        self.approx: Approx = approx
        self.every = every
        self.decay = decay

    @property
    def parameters(self) -> dict[str, list[str]]:
        """Names of what may be each circuit's parameters; one circuit alone has the key `""`."""
        return {name: sorted(x.parameters) for name, x in self._circuits.items()}

    @property
    def devices(self) -> list[Any]:
        """What the circuits run on, each once."""
        found = [x.held.qnode.device for x in self._circuits.values()]
        return list({id(x): x for x in found}.values())

    def find(self, params: PyTree) -> list[Place]:
        """Find the parameters of each circuit.

        Args:
          params: a tree; what is masked has no leaves.

        Returns:
          A place for each circuit.

        Raises:
          ValueError: if a leaf is no circuit's parameter, or a circuit has none or some twice.
        """
        groups: dict[str, dict[str, int]] = {}
        for i, (path, leaf) in enumerate(tree_leaves_with_path(params)):
            whole = leaf_name(path)
            parent, _, name = whole.rpartition(".")
            wanted = self._circuits.get("" if self._anywhere else parent)
            if wanted is None or name not in wanted.parameters:
                names = {x.name: sorted(x.parameters) for x in self._circuits.values()}
                raise ValueError(
                    f"params have a leaf {whole!r}, which is no parameter of {names}; {PARTITION}."
                )
            if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
                raise TypeError(f"params[{whole!r}]={leaf!r} must be an array of real numbers.")
            groups.setdefault(parent, {})[name] = i
        if self._anywhere and len(groups) > 1:
            raise ValueError(
                f"params have such a circuit at {sorted(groups)}; say which by a mapping, as in "
                "FubiniStudy({'encoder.circuit': layer})."
            )
        places = []
        for name, circuit in self._circuits.items():
            found = next(iter(groups.values()), {}) if self._anywhere else groups.get(name, {})
            missing = circuit.parameters - set(found) if circuit.whole or not found else set()
            if missing:
                raise ValueError(f"params lack {sorted(missing)} of {name or circuit.name}.")
            places.append(Place(name, dict(sorted(found.items()))))
        return places

    def measure(
        self, params: PyTree, batch: Batch = None, *, key: UInt32[Array, "2"] | None = None
    ) -> list[Float[Array, "m m"]]:
        """Measure the metric of each circuit.

        Args:
          params: a tree with the circuits' parameters.
          batch: the circuit's data, an array with a leading axis; of several arguments a mapping
            by their names, of several circuits one by their keys.
          key: raw key data that differ from call to call where a device measures in a compiled
            loop.

        Returns:
          A matrix for each circuit; its parameters are in alphabetical order, each flat.

        Raises:
          ValueError: as said above.
        """
        key = jnp.zeros(2, jnp.uint32) if key is None else key
        leaves, found = jax.tree.leaves(params), []
        for place in self.find(params):
            circuit = self._circuits[place.circuit]
            own = {name: jnp.asarray(leaves[i]) for name, i in place.leaves.items()}
            dtype = wider(jnp.float32, *(x.dtype for x in own.values()))
            own = {name: x.astype(dtype) for name, x in own.items()}
            data = _inputs(circuit, set(own), self._own_batch(place.circuit, batch), dtype)
            found.append(_mean(circuit.held, self.approx, own, data, key, dtype))
        return found

    def _own_batch(self, name: str, batch: Batch) -> Batch:
        if self._anywhere or batch is None:
            return batch
        if not isinstance(batch, Mapping):
            raise TypeError(f"batch must be a mapping by circuit, of {list(self._circuits)}.")
        return batch.get(name)


def _circuit(given: Any) -> _Circuit:
    if isinstance(given, qml.QNode):
        if devices.shots_of(given) == 1:
            raise ValueError(
                f"{name_of(given.func)} has one shot, of which there is no covariance."
            )
        signature = inspect.signature(given.func).parameters
        return _Circuit(Held(given), frozenset(signature), False, None)
    if hasattr(given, "weight_names") and hasattr(given, "qnode"):  # Flax need not be there
        return _Circuit(Held(given.qnode), frozenset(given.weight_names), True, given.input_name)
    raise TypeError(
        f"circuit={reprlib.repr(given)} must be a pennylane.QNode, a qsgd_jax.nn.QuantumLayer (of "
        "a model, its layer), or a mapping of such."
    )


def _inputs(circuit: _Circuit, params: set[str], batch: Batch, dtype: Any) -> dict[str, Array]:
    """The batch of each of a circuit's arguments that is no parameter."""
    signature = inspect.signature(circuit.held.qnode.func).parameters
    names = (
        [circuit.input_name] if circuit.input_name else [x for x in signature if x not in params]
    )
    needed = [
        x for x in names if x not in signature or signature[x].default is inspect.Parameter.empty
    ]
    if not names or (batch is None and not needed):
        return {}
    if batch is None:
        raise ValueError(
            f"{circuit.name} takes {needed}: none is among the parameters, and there is no batch=."
        )
    if not isinstance(batch, Mapping):
        if len(needed) > 1:
            raise ValueError(f"{circuit.name} takes {needed}: batch must be a mapping of them.")
        batch = {(needed or names)[0]: batch}
    if set(batch) - set(names) or set(needed) - set(batch):
        raise ValueError(f"batch has {sorted(batch)}; {circuit.name} takes {names}.")
    found = {name: jnp.asarray(x) for name, x in batch.items()}
    if circuit.input_name:
        found = {name: x.reshape(-1, *x.shape[-1:]) for name, x in found.items()}
    lengths = {len(x) if x.ndim else 0 for x in found.values()}
    if len(lengths) != 1 or 0 in lengths:
        shapes = {name: x.shape for name, x in found.items()}
        raise ValueError(f"batch of {shapes} must have one leading axis, of 1 at least.")
    return {
        name: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for name, x in found.items()
    }


@functools.partial(jax.jit, static_argnames=("held", "approx", "dtype"))
def _mean(held: Held, approx: Approx, params: Any, batch: Any, key: Any, dtype: Any) -> Array:
    def one(inputs: Mapping[str, Array]) -> Array:
        return metric(held.qnode, params, inputs, approx, key, dtype)

    shapes = {name: x.shape for name, x in params.items()}
    shapes |= {name: x.shape[1:] for name, x in batch.items()}
    with explained(name_of(held.qnode.func), shapes):
        return jnp.mean(jax.vmap(one)(batch), axis=0) if batch else one({})
