"""Which leaves of a model are matrices whose singular values a circuit reads, and which are not.

Shapes cannot say: an attention's `query` and `out` kernels may have the same one. Names can.
"""

import dataclasses
import functools
import math
import re
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax.contrib import MuonDimensionNumbers

from qsgd_jax._src.trees import check_stacked_axes, is_number, stacked_axes_of
from qsgd_jax._src.typing import PyTree

SPECTRAL, ADAMW = "spectral", "adamw"

YOURS = "your label"
UNKNOWN = "not in the table: say which axes by labels="

_VECTORS = {"b", "scale", "gamma", "beta", "mean", "var"}
_EMBEDDING = re.compile(r"embed|^(wte|wpe|emb|(tok|pos|token|position)_emb|cls|cls_token)$")
# A parameter of its own, not a module's: a table of vectors.
_TABLE = re.compile(r"(^|_)(tokens?|pos|positions?)$")
_HEADS = {"head", "lm_head", "logits", "unembed", "classifier", "readout", "fc_out"}
_HEADS |= {f"{x}_head" for x in ("mlp", "cls", "classification", "output")}
_ATTENTION_IN = {
    f"{x}{end}" for x in ("query", "key", "value", "qkv", "kv") for end in ("", "_proj")
}
_ATTENTION_IN |= {"q", "k", "v", "q_proj", "k_proj", "v_proj"}
_FUSED = {"qkv", "kv", "qkv_proj", "kv_proj"}
_ATTENTION_OUT = {"out", "o", "out_proj", "o_proj", "output_proj"}
_EXPERTS = re.compile(r"expert|moe")
_NORM = re.compile(r"norm|^ln(_\w+)?$")
_POSITIONS = re.compile(r"pos|^wpe$")


class Route(NamedTuple):
    """Where a leaf goes, and why.

    Attributes:
      label: `"spectral"` or `"adamw"`.
      why: the rule that decided, in words.
      numbers: which axes of a matrix are its rows, and which its columns; the others are batched.
    """

    label: str
    why: str
    numbers: MuonDimensionNumbers | None = None


@dataclasses.dataclass(frozen=True)
class SpectralRouting:
    """Which leaves are matrices, and which of their axes: a table of names, and your own word.

    Args:
      stacked_axes: how many leading axes of a leaf stack layers, as `nnx.scan` and `vmap` make
        them; each layer is a matrix of its own. A number for all leaves, a function of path and
        leaf, or a tree of numbers whose structure is a prefix of the parameters'. Undeclared, a
        stack of kernels may look like one kernel of an attention, and is then one matrix.
      labels: your own word on some leaves: a tree whose structure is a prefix of the parameters',
        or a function of the parameters that makes one, of `"spectral"` (a matrix), `"adamw"`,
        an `optax.contrib.MuonDimensionNumbers` (a matrix of these axes), or `None`, which leaves
        the leaf to the table (optax's Muon gives such a leaf to Adam).

    Raises:
      ValueError: if `stacked_axes` is none of these; in use, if a label is no route, or a leaf has
        fewer axes.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> params = {"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}}
      >>> print(qsgd.spectral_routing(params))
      leaf                 shape   route     why
      ['dense']['bias']    (4,)    adamw     a vector
      ['dense']['kernel']  (8, 4)  spectral  a matrix
    """

    stacked_axes: Any = 0
    labels: Any = None

    def __post_init__(self) -> None:
        check_stacked_axes(self.stacked_axes)


def spectral_routing(params: PyTree, routing: SpectralRouting | None = None) -> str:
    """Where each leaf of a model goes, and why, as a table to print.

    Args:
      params: arrays of any shape and dtype, or `jax.ShapeDtypeStruct`.
      routing: as for `superpositional_muon`.

    Returns:
      Lines of leaf, shape, route and why.

    Raises:
      ValueError: if a label is no route, or a leaf has fewer axes than stack layers.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> attention = {"query": jnp.ones((8, 2, 4)), "out": jnp.ones((2, 4, 8))}
      >>> print(qsgd.spectral_routing(attention))
      leaf       shape      route     why
      ['out']    (2, 4, 8)  spectral  attention's output: 0, 1 | 2
      ['query']  (8, 2, 4)  spectral  attention's input: 0 | 1, 2
    """
    rows = [("leaf", "shape", "route", "why")]
    found = jax.tree_util.tree_leaves_with_path(routes(params, routing), is_leaf=is_route)
    shapes = map(np.shape, jax.tree.leaves(params))
    for (path, route), shape in zip(found, shapes, strict=True):
        rows.append((jax.tree_util.keystr(path), str(shape), route.label, route.why))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


class Matrices(SpectralRouting):
    """The same of a tree that has had its outputs, known by their width, taken out before."""

    @classmethod
    def of(cls, routing: SpectralRouting) -> "Matrices":
        """The same table and labels."""
        return cls(routing.stacked_axes, routing.labels)


def resolved(routing: SpectralRouting, params: PyTree) -> SpectralRouting:
    """The same with the labels of all parameters, before some of them are masked."""
    return dataclasses.replace(routing, labels=_labels_of(routing, params))


def _labels_of(routing: SpectralRouting, params: PyTree) -> PyTree:
    if not callable(routing.labels):
        return routing.labels
    try:
        return routing.labels(params)
    except TypeError as error:
        raise TypeError(
            f"labels={routing.labels!r} is called with the parameters, all of them: {error}"
        ) from error


def routes(params: PyTree, routing: SpectralRouting | None = None) -> PyTree:
    """The `Route` of each leaf."""
    if not jax.tree.leaves(params):
        return params  # such as the placeholder of `optax.tree.map_params`
    routing = SpectralRouting() if routing is None else routing
    labels = _labels_of(routing, params)
    stacks = stacked_axes_of(routing.stacked_axes, params)
    width = None if isinstance(routing, Matrices) else _vocabulary(params, stacks)
    decide = functools.partial(_route, vocabulary=width)
    try:
        labels = jax.tree.map(
            lambda label, part: jax.tree.map(lambda _: _Label(label), part),
            labels,
            params,
            is_leaf=_is_label,
        )
    except ValueError as error:
        raise ValueError(
            f"labels={labels!r} is no prefix of params; a function of params can make one, with "
            f"jax.tree_util.tree_map_with_path: {error}"
        ) from error
    return jax.tree_util.tree_map_with_path(decide, params, labels, stacks)


def say_unknown(found: PyTree) -> None:
    """Say which leaves the table did not know: they train otherwise than their author may think."""
    places = [
        jax.tree_util.keystr(path) or "params"
        for path, route in jax.tree_util.tree_leaves_with_path(found, is_leaf=is_route)
        if route.why == UNKNOWN
    ]
    if places:
        warnings.warn(
            f"SpectralRouting does not know which axes of {', '.join(places)} are rows and "
            "columns, and leaves them to AdamW; labels= says so, or which.",
            stacklevel=3,
        )


class _Label:
    """A label as a leaf of a tree, also where it is `None` or a tuple."""

    def __init__(self, value: Any):
        self.value = value


def _is_label(x: Any) -> bool:
    return x is None or isinstance(x, (str, MuonDimensionNumbers))


def is_route(x: Any) -> bool:
    """Whether it is a leaf's route."""
    return isinstance(x, Route)


def _route(path: tuple[Any, ...], leaf: Any, label: _Label, stacked: int, vocabulary: Any) -> Route:
    place, shape = jax.tree_util.keystr(path), np.shape(leaf)
    if stacked > len(shape):
        raise ValueError(
            f"stacked_axes={stacked} at {place!r}: allowed are at most the {len(shape)} axes of "
            "the leaf."
        )
    given = label.value
    number = is_number(leaf, jnp.floating, jnp.complexfloating) or _is_abstract_number(leaf)
    if isinstance(given, MuonDimensionNumbers) and number and 0 not in shape:
        return _matrix(shape, YOURS, *_axes(given, shape, place))
    if given not in (None, SPECTRAL, ADAMW) and not isinstance(given, MuonDimensionNumbers):
        raise ValueError(
            f"label {given!r} at {place!r} must be {SPECTRAL!r}, {ADAMW!r}, None or an "
            "optax.contrib.MuonDimensionNumbers."
        )
    if given == ADAMW:
        return Route(ADAMW, YOURS)
    if not number:
        return Route(ADAMW, "no array of real or complex numbers")
    if 0 in shape:
        return Route(ADAMW, "empty")
    found = _by_table(_names(path), shape[stacked:], vocabulary)
    if given == SPECTRAL and found.label != SPECTRAL:
        if len(shape) - stacked != 2:
            raise ValueError(
                f"label {given!r} at {place!r}: a leaf of shape {shape} is no matrix by itself; "
                "allowed is an optax.contrib.MuonDimensionNumbers, which says its axes."
            )
        found = Route(SPECTRAL, YOURS, MuonDimensionNumbers(0, 1))
    if found.numbers is None:
        return found
    rows, columns = (
        tuple(axis + stacked for axis in axes)
        for axes in _axes(found.numbers, shape[stacked:], place)
    )
    return _matrix(shape, YOURS if given == SPECTRAL else found.why, rows, columns)


def _by_table(names: list[str], shape: tuple[int, ...], vocabulary: Any) -> Route:
    """The table. Its first line that fits decides."""
    name, rank = names[-1] if names else "", len(shape)
    near = set(names[-2:])
    rows_last = name == "weight"  # Equinox and PyTorch: (out, in, *space)
    *most, last = range(rank) if rank else (0,)
    if rank < 2:
        return Route(ADAMW, "a vector")
    if any("lora" in x for x in names) and rank == 2:
        return Route(SPECTRAL, "a factor of LoRA", MuonDimensionNumbers(0, 1))
    if name in _VECTORS or "bias" in name or any(_NORM.search(x) for x in near):
        return Route(ADAMW, "a bias or scale")
    if any(_EMBEDDING.search(x) for x in near) or _TABLE.search(name):
        return Route(ADAMW, "an embedding")
    if _HEADS.intersection(names):
        return Route(ADAMW, "a head")
    if near & _ATTENTION_IN and (rank == 3 or (rank == 4 and near & _FUSED)):
        return Route(SPECTRAL, "attention's input", MuonDimensionNumbers(0, tuple(range(1, rank))))
    if near & _ATTENTION_OUT and rank == 3:
        return Route(SPECTRAL, "attention's output", MuonDimensionNumbers((0, 1), 2))
    if any(_EXPERTS.search(x) for x in names) and rank == 3:
        return Route(SPECTRAL, "an expert each", MuonDimensionNumbers(1, 2))
    if (any("conv" in x for x in names) and rank > 2) or (rows_last and rank > 3):
        axes = (tuple(range(1, rank)), 0) if rows_last else (tuple(most), last)
        return Route(SPECTRAL, "a convolution", MuonDimensionNumbers(*axes))
    if rank > 2:
        return Route(ADAMW, UNKNOWN)
    if vocabulary is not None and vocabulary.is_output(names, shape):
        return Route(ADAMW, "an output as wide as the embedding's vocabulary")
    return Route(SPECTRAL, "a matrix", MuonDimensionNumbers(0, 1))


def _names(path: tuple[Any, ...]) -> list[str]:
    """The names along a path in small letters, without the `value` of an `nnx.Param`."""
    keys = (getattr(key, "key", getattr(key, "name", None)) for key in path)
    # Haiku writes several names into one.
    words = [word for key in keys if isinstance(key, str) for word in key.lower().split("/")]
    attribute = bool(path) and isinstance(path[-1], jax.tree_util.GetAttrKey)
    return words[:-1] if attribute and words[1:] and words[-1] == "value" else words


def _is_abstract_number(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)


class _Vocabulary(NamedTuple):
    """Rows of an embedding, and how many names lead to it: an output lies no deeper."""

    rows: int
    depth: int

    def is_output(self, names: list[str], shape: tuple[int, ...]) -> bool:
        """Whether a matrix is as wide as the vocabulary, and no deeper in the tree."""
        rows_last = bool(names) and names[-1] == "weight"
        return shape[0 if rows_last else 1] == self.rows and len(names) <= self.depth


def _vocabulary(params: PyTree, stacks: PyTree) -> _Vocabulary | None:
    """An embedding's, if one other matrix alone may be its output."""
    flat = jax.tree_util.tree_leaves_with_path(params)
    matrices = [
        (_names(path), np.shape(leaf))
        for (path, leaf), stacked in zip(flat, jax.tree.leaves(stacks), strict=True)
        if np.ndim(leaf) == 2 and not stacked
    ]
    embeddings = [
        _Vocabulary(shape[0], len(names))
        for names, shape in matrices
        if any(map(_EMBEDDING.search, names[-2:])) and not any(map(_POSITIONS.search, names[-2:]))
    ]
    for vocabulary in embeddings:
        outputs = [
            shape
            for names, shape in matrices
            if not any(map(_EMBEDDING.search, names[-2:])) and vocabulary.is_output(names, shape)
        ]
        if len(outputs) == 1:
            return vocabulary
    return None


def _axes(
    numbers: MuonDimensionNumbers, shape: tuple[int, ...], place: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of rows and of columns, counted from the first."""
    rows, columns = (
        tuple(axis + len(shape) if axis < 0 else axis for axis in np.atleast_1d(axes).tolist())
        for axes in numbers
    )
    every = rows + columns
    if len(set(every)) != len(every) or not all(0 <= axis < len(shape) for axis in every):
        raise ValueError(f"{numbers} at {place!r}: allowed are different axes of shape {shape}.")
    return rows, columns


def _matrix(
    shape: tuple[int, ...], why: str, rows: tuple[int, ...], columns: tuple[int, ...]
) -> Route:
    sizes = [math.prod(shape[axis] for axis in axes) for axes in (rows, columns)]
    if 1 in sizes and why != YOURS:
        return Route(ADAMW, "one row or column: a vector")
    sides = (", ".join(map(str, axes)) for axes in (rows, columns))
    whole = len(shape) == 2
    why = why if whole else f"{why}: {' | '.join(sides)}"
    return Route(SPECTRAL, why, MuonDimensionNumbers(rows, columns))
