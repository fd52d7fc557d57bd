"""Which coordinates of a tensor a surrogate weighs, and what it makes of them."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from qsgd_jax._src import blocks
from qsgd_jax._src.trees import check_stacked_axes, stacked_axes_of
from qsgd_jax._src.typing import PyTree
from qsgd_jax._src.xla import apart, in_one_loop

Leaf = Float[Array, "..."]


class Answer(NamedTuple):
    """How the weights of blocks are answered.

    Attributes:
      n: number of coordinates of a block.
      weights: from an array for each coordinate of a block to as many arrays of weights.
      alone: whether each coordinate is answered by itself, as if `n` were 1.
    """

    n: int
    weights: Callable[[list[Leaf]], list[Leaf]]
    alone: bool


@dataclasses.dataclass(frozen=True)
class Coverage(abc.ABC):
    """Which coordinates of a leaf are weighed: `Leading` or `Everywhere`."""

    stacked_axes: Any = 0

    def __post_init__(self) -> None:
        check_stacked_axes(self.stacked_axes)

    @abc.abstractmethod
    def weigh(self, answer: Answer, theta: Leaf, x: Leaf | None, strength: Array | None) -> Leaf:
        r"""What the weights make of a leaf.

        .. math:: w(\theta) \odot x, \qquad\text{with a strength } x \odot (1 + \lambda w(\theta))

        Args:
          answer: the weights of blocks.
          theta: the leaf of parameters.
          x: of its shape; `None` for the weights themselves.
          strength: λ, a scalar of the dtype of x.

        Returns:
          An array of that shape.
        """

    @abc.abstractmethod
    def blocks(self, theta: Leaf, n: int) -> list[Leaf]:
        """A leaf's blocks, one array for each of their `n` coordinates."""

    @abc.abstractmethod
    def numbers(self, shape: tuple[int, ...], n: int) -> Int32[Array, "..."]:
        """The place of each of those blocks in a leaf."""

    @abc.abstractmethod
    def n_weighed(self, shape: tuple[int, ...], n: int) -> int:
        """How many coordinates of a leaf are weighed."""

    @property
    def plain(self) -> "Coverage":
        """The same of a leaf that stacks nothing."""
        return type(self)()

    def stacks(self, params: PyTree) -> PyTree:
        """How many leading axes of each leaf stack layers."""
        return stacked_axes_of(self.stacked_axes, params)


@dataclasses.dataclass(frozen=True)
class Leading(Coverage):
    """The first coordinates of each tensor, in row-major order, as one block: the paper's.

    Args:
      stacked_axes: how many leading axes of a leaf stack layers, as `nnx.scan` and `vmap` make
        them; the rest is one tensor each. A number for all leaves, a function of path and leaf, or
        a tree of numbers whose structure is a prefix of the parameters'. Undeclared, a stack is one
        tensor, of which the first layer alone has a block.

    Raises:
      ValueError: if it is none of these; in use, if a leaf has fewer axes.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> surrogate, layers = qsgd.probe(qsgd.Circuit(n_qubits=1)), jnp.full((2, 2), 0.5)
      >>> print(qsgd.superposition_weights(surrogate, layers, qsgd.Leading(stacked_axes=1)))
      [[1. 0.]
       [1. 0.]]
    """

    def weigh(self, answer: Answer, theta: Leaf, x: Leaf | None, strength: Array | None) -> Leaf:
        corners = blocks.corner_blocks(theta, answer.n)
        if answer.alone:
            (head,) = answer.weights([corners])
        else:
            head = jnp.stack(answer.weights([corners[..., j] for j in range(answer.n)]), axis=-1)
        head = apart(head)
        if x is None:
            return blocks.from_leading_block(head, theta.shape)
        head = head.astype(x.dtype)
        if strength is not None:
            # x is read once: XLA would compute and keep an update that is read twice.
            return x * (1 + strength * blocks.from_leading_block(head, theta.shape))
        # x is read at the block alone: XLA would read all of it, to multiply most by zero, which
        # is a tenth of AdamW's memory traffic.
        corners = blocks.corner_blocks(x, answer.n)
        head = head.reshape((1,) * (corners.ndim - head.ndim) + head.shape)
        return blocks.from_leading_block(head * corners, theta.shape)

    def blocks(self, theta: Leaf, n: int) -> list[Leaf]:
        return list(blocks.leading_block(theta, n))

    def numbers(self, shape: tuple[int, ...], n: int) -> Int32[Array, "..."]:
        return jnp.int32(0)

    def n_weighed(self, shape: tuple[int, ...], n: int) -> int:
        return min(math.prod(shape), n)


@dataclasses.dataclass(frozen=True)
class Everywhere(Coverage):
    """All coordinates of each tensor, in blocks of adjacent rows.

    Rows are counted along the last axis but one; a vector has its only axis.

    Args:
      stacked_axes: how many leading axes of a leaf stack layers, as `nnx.scan` and `vmap` make
        them; the rest is one tensor each. A number for all leaves, a function of path and leaf, or
        a tree of numbers whose structure is a prefix of the parameters'. Undeclared, a stack is one
        tensor: one of biases, (layers, features), then has blocks across its layers.

    Raises:
      ValueError: if it is none of these; in use, if a leaf has fewer axes.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> surrogate, layers = qsgd.probe(qsgd.Circuit(n_qubits=2)), jnp.full((2, 2), 0.5)
      >>> print(qsgd.superposition_weights(surrogate, layers, qsgd.Everywhere(stacked_axes=1)))
      [[1. 1.]
       [1. 1.]]
    """

    def weigh(self, answer: Answer, theta: Leaf, x: Leaf | None, strength: Array | None) -> Leaf:
        n = 1 if answer.alone else answer.n
        # The weights of coordinates that a leaf of fewer rows lacks would be dropped.
        weights = answer.weights(blocks.blocks(theta, n))[: blocks.n_filled(theta.shape, n)]
        # What they act on goes into their loop. From parameters alone XLA would compute all
        # weights before the gradients, and keep them in memory.
        if x is not None:
            parts = blocks.blocks(x, n, borrow=False)[: len(weights)]
            weights = [
                part * w if strength is None else part * (1 + strength * w)
                for w, part in zip((w.astype(x.dtype) for w in weights), parts, strict=True)
            ]
        return blocks.from_blocks(in_one_loop(weights), theta.shape)

    def blocks(self, theta: Leaf, n: int) -> list[Leaf]:
        return blocks.blocks(theta, n)

    def numbers(self, shape: tuple[int, ...], n: int) -> Int32[Array, "..."]:
        return blocks.block_numbers(shape, n)

    def n_weighed(self, shape: tuple[int, ...], n: int) -> int:
        return math.prod(shape)


def coverage_of(coverage: Coverage | Literal["leading", "everywhere"]) -> Coverage:
    """The coverage that an argument names."""
    if isinstance(coverage, Coverage):
        return coverage
    short = {"leading": Leading, "everywhere": Everywhere}
    if not isinstance(coverage, str) or coverage not in short:
        raise ValueError(
            f"coverage={coverage!r} must be 'leading', 'everywhere', qsgd_jax.Leading(...) or "
            "qsgd_jax.Everywhere(...)."
        )
    return short[coverage]()
