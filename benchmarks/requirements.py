"""Say what to install when a script does not find a module."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType


def explain(brought: Mapping[str, Sequence[str]]) -> None:
    """Say what brings a module if an error that ends the process is that it is missing.

    Args:
        brought: What pip is to install, and the modules that come with it.
    """
    package_of = {module: package for package, modules in brought.items() for module in modules}
    shown = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        shown(kind, error, traceback)
        if isinstance(error, ModuleNotFoundError):
            package = package_of.get((error.name or "").partition(".")[0])
            if package is not None:
                print(f"What brings it: python -m pip install {package}", file=sys.stderr)

    sys.excepthook = hook
