"""Runs optax's own test classes, from the installed wheel, on other optimizers.

optax parameterizes its tests by lists of optimizers, and each list reaches its tests through one
of two decorators, `parameterized.product` and `parameterized.named_parameters`. `load` executes a
fresh copy of a test module while these two hand over our cases instead of theirs. The installed
modules stay as they are, and no code of theirs is repeated here.

Some cases name an optimizer, which the tests look up in the module `alias`; one test calls
`alias.adamw` itself. In the copy, `alias.adamw` is ours, and so is `alias.sgd`, which optax's
cases of wrappers wrap.

What optax skips has not run: a skip is a failure, unless its reason is among
`Suite.allowed_skips`. Its sharding tests skip themselves where `jax.__version__ < "0.7.2"`, as
strings, and so on jax 0.10; in the copy, versions compare by number.
"""

import contextlib
import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import optax
import pytest
from absl.testing import parameterized

_PRODUCT = parameterized.product
_NAMED_PARAMETERS = parameterized.named_parameters


class Miss(NamedTuple):
    """Why a test does not reach its minimum.

    Attributes:
      reason: said in the report.
      always: whether reaching the minimum is a failure; else either outcome is right.
      error: words of the error that is expected.
    """

    reason: str
    always: bool = True
    error: str = "Not equal to tolerance"


class Variant(NamedTuple):
    """What stands in the place of optax's optimizers.

    Attributes:
      optimizer: with the arguments of `optax.adamw` that the tests use.
      scaler: makes a transformation without a learning rate, such as `optax.scale_by_adam()`.
      misses: the tests, by name, that are expected not to reach their minimum.
    """

    optimizer: Callable[..., optax.GradientTransformation]
    scaler: Callable[[], optax.GradientTransformation]
    misses: Mapping[str, Miss] = {}


class Suite(NamedTuple):
    """One of optax's test classes.

    Attributes:
      module: the name of its module.
      name: its name.
      cases: of a variant, to stand in the place of each list of theirs.
      n_tests: the number of tests that this makes.
      prefixes: how the names of the tests begin that take an optimizer.
      allowed_skips: reasons to skip that hold for our cases as well.
    """

    module: str
    name: str
    cases: Callable[[Variant], Sequence[Any]]
    n_tests: int
    prefixes: tuple[str, ...] = ("test_",)
    allowed_skips: tuple[str, ...] = ()


class _SkippedError(AssertionError):
    """A test that optax skips, and that has not passed therefore."""


class _Peer(parameterized.TestCase):
    """What our copies of optax's classes do otherwise: they judge misses and skips."""

    suite: Suite
    variant: Variant
    _missed = False

    @contextlib.contextmanager
    def subTest(self, *args: Any, **kwargs: Any) -> Iterator[None]:  # noqa: N802
        with super().subTest(*args, **kwargs):
            try:
                yield
            except Exception as error:
                miss = self.variant.misses.get(self._testMethodName)
                if not miss or miss.error not in str(error):
                    raise
                self._missed = True

    def tearDown(self):
        super().tearDown()
        miss = self.variant.misses.get(self._testMethodName)
        if miss and self._missed:
            pytest.xfail(miss.reason)
        if miss and miss.always:
            self.fail(f"The minimum was reached, against the expectation: {miss.reason}")

    def skipTest(self, reason: str):  # noqa: N802
        if reason not in self.suite.allowed_skips:
            raise _SkippedError(reason)
        super().skipTest(reason)


class _Overlay(SimpleNamespace):
    """A module with some of its names replaced."""

    def __init__(self, module: ModuleType, **names: Any):
        super().__init__(**names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _JaxVersion(str):
    def __lt__(self, other: str) -> bool:
        return jax.__version_info__ < tuple(map(int, other.split(".")))


def load(suite: Suite, variant: Variant) -> type[parameterized.TestCase]:
    """The suite's class with the variant in the place of optax's optimizers."""
    module = _copy(suite.module, suite.cases(variant))
    replaced = {
        "absltest": {"SkipTest": _SkippedError},
        "alias": {"adamw": variant.optimizer, "sgd": variant.optimizer},
        "jax": {"__version__": _JaxVersion(jax.__version__)},
    }
    for name in replaced.keys() & vars(module).keys():
        setattr(module, name, _Overlay(getattr(module, name), **replaced[name]))
    theirs = getattr(module, suite.name)
    members: dict[str, Any] = {"suite": suite, "variant": variant}
    for name in dir(theirs):
        if name.startswith("test_") and not name.startswith(suite.prefixes):
            members[name] = None
    return type(theirs)(suite.name, (_Peer, theirs), members)


def _copy(name: str, cases: Sequence[Any]) -> ModuleType:
    """A fresh copy of a module in which our cases stand in the place of lists of optimizers."""

    def product(*lists: Sequence[Any], **grid: Sequence[Any]):
        if lists:
            return _NAMED_PARAMETERS(list(_named(cases, grid)))
        if "opt_name" in grid:
            return _NAMED_PARAMETERS(list(_named([{"opt_name": "adamw"}], grid)))
        return _PRODUCT(**grid)

    def named_parameters(*theirs: Any):
        # A list is one of optimizers; other cases are arguments of the decorator.
        return _NAMED_PARAMETERS(*([cases] if len(theirs) == 1 else theirs))

    spec = importlib.util.find_spec(name)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with contextlib.ExitStack() as stack:
        decorators = {"product": product, "named_parameters": named_parameters}
        stack.enter_context(mock.patch.multiple(parameterized, **decorators))
        # Newer sharding tests set the number of devices here, too late in a running process.
        stack.enter_context(mock.patch.object(jax.config, "update"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # their lists hold optimizers that warn
        spec.loader.exec_module(module)
    return module


def _named(cases: Sequence[Mapping[str, Any]], grid: Mapping[str, Sequence[Any]]):
    """Like `parameterized.product`, with names that say what is tested."""
    for case in cases:
        free = {key: values for key, values in grid.items() if key not in case}
        for values in itertools.product(*free.values()):
            labels = [getattr(value, "__name__", str(value)) for value in values]
            words = [case.get("wrapper_name"), *(label.removeprefix("_setup_") for label in labels)]
            name = "_".join(filter(None, words))
            yield {"testcase_name": name, **case, **dict(zip(free, values, strict=True))}
