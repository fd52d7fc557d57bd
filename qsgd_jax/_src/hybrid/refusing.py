"""What a QNode cannot be asked for, told in words of its author's."""

import contextlib
from collections.abc import Iterator, Mapping

import jax
from pennylane.exceptions import (
    DecompositionUndefinedError,
    DeviceError,
    DiagGatesUndefinedError,
    QuantumFunctionError,
)

_OF_CIRCUITS = (
    *(TypeError, IndexError, ValueError),
    *(QuantumFunctionError, DeviceError, DecompositionUndefinedError, DiagGatesUndefinedError),
)


class RefusedError(ValueError):
    """What is not done, in words of its own."""


@contextlib.contextmanager
def explained(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Say of a QNode that JAX traces what its author did, not where JAX or PennyLane failed.

    Args:
      name: of the QNode.
      shapes: of its arguments at one input.
    """
    try:
        yield
    except RefusedError:
        raise
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError) as error:
        raise ValueError(
            f"{name}: its structure depends on the values of its arguments; allowed is one "
            f"circuit for all. {str(error).splitlines()[0]}"
        ) from error
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"{name}: it calls NumPy on its arguments; allowed is jax.numpy. "
            f"{str(error).splitlines()[0]}"
        ) from error
    except _OF_CIRCUITS as error:
        of = ", ".join(f"{argument} of {shape}" for argument, shape in shapes.items())
        raise ValueError(f"{name} fails at one input, with {of}: {error}") from error
