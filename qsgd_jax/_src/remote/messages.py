"""Arrays as JSON: what a device's process is told beside the number of its job."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def encoded(tree: Any) -> Any:
    """Mappings of arrays as what JSON has.

    Args:
      tree: an array, a mapping of such, or `None`.

    Example:
      >>> import numpy as np
      >>> from qsgd_jax._src.remote.messages import decoded, encoded
      >>> encoded({"a": np.float32([1, 2])})
      {'a': ['float32', [1.0, 2.0]]}
      >>> decoded(encoded(np.int32(3)))
      array(3, dtype=int32)
    """
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {name: encoded(x) for name, x in tree.items()}
    array = np.asarray(tree)
    return [str(array.dtype), array.tolist()]


def decoded(tree: Any) -> Any:
    """What was `encoded`.

    Args:
      tree: what JSON had.
    """
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {name: decoded(x) for name, x in tree.items()}
    dtype, values = tree
    return np.array(values, dtype)
