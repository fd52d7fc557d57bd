"""Types that the whole package speaks of."""

from typing import Any, TypeAlias

PyTree: TypeAlias = Any
"""A tree of arrays. (To a type checker, jaxtyping's is unknown.)"""
