"""PennyLane on a jax that has removed what PennyLane asks it for.

PennyLane 0.45 looks for names in `jax.core` that have been in jax's private module alone since jax
0.11: it can then neither tell a traced value from a known one nor run a QNode on lightning.qubit
under `jax.jit`. Its functions that ask are given the names while they run.
"""

import contextlib
import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import autoray
import jax
import jax._src.core
import jax.core
import pennylane as qml
from pennylane import math
from pennylane.math import single_dispatch

_LOCK = threading.Lock()
_borrowers: dict[str, int] = {}


def mend_pennylane() -> None:
    """Let the functions of PennyLane that ask jax for a name that it has removed find it.

    Raises:
      ImportError: if jax does not have it anywhere.
    """
    # Whatever else of PennyLane asks for a removed name is added here.
    _replace("is_abstract", math.is_abstract, "is_concrete")
    to_numpy = getattr(single_dispatch, "_to_numpy_jax", None)
    if to_numpy is not None:
        autoray.register_function("jax", "to_numpy", _mended(to_numpy, "concrete_or_error"))


def _replace(name: str, function: Callable[..., Any], *names: str) -> None:
    """Mend a function wherever PennyLane has imported it."""
    mended = _mended(function, *names)
    for module in [m for n, m in sys.modules.items() if n.partition(".")[0] == "pennylane"]:
        if vars(module).get(name) is function:
            setattr(module, name, mended)


def _mended(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """The function, if it asks `jax.core` for one of the names that is not there, lent them all."""
    asked = [name for name in names if name in function.__code__.co_names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jax 0.10 has them, and warns
        removed = [name for name in asked if not hasattr(jax.core, name)]
    for name in removed:
        if not hasattr(jax._src.core, name):
            raise ImportError(
                f"PennyLane {qml.version()} does not work with jax {jax.__version__}: it needs "
                f"jax.core.{name}, which is gone. A newer PennyLane or an older jax may do."
            )
    if not removed:
        return function

    @functools.wraps(function)
    def lent(*args, **kwargs):
        with _lent(removed):
            return function(*args, **kwargs)

    return lent


@contextlib.contextmanager
def _lent(names: list[str]) -> Iterator[None]:
    with _LOCK:
        for name in names:
            _borrowers[name] = _borrowers.get(name, 0) + 1
            setattr(jax.core, name, getattr(jax._src.core, name))
    try:
        yield
    finally:
        with _LOCK:
            for name in names:
                _borrowers[name] -= 1
                if not _borrowers[name]:  # else another thread's call goes on
                    delattr(jax.core, name)
