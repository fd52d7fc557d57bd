"""optax's own test suites on our transforms, and on `optax.adamw` as their control.

`make test` runs the variant that is recommended, `make test-peers` all of them.
"""

import functools
import importlib.util
import unittest
from collections.abc import Mapping
from typing import Any

import jax
import optax
import pytest
from injection import Miss, Suite, Variant, load

import qsgd_jax as qsgd

LAMBDA = 0.5
ENTANGLED = qsgd.Circuit(depth=1)


def _sampled(circuit):
    return qsgd.sampled(qsgd.probe(circuit, readout="probabilities"), shots=16)


CLIMBS = Miss("Eq. 1 adds a raw gradient and climbs where it is large.")
# A start moved by 1e-6 decides where the last step lands, also with g (1 + λ sin πθ) written out
# by hand; `optax.adamw` itself comes within a third of the tolerance.
RESTLESS = {
    "test_optimizers_mechanize_parabola_float32": Miss(
        "The scale that Mechanic learns does not settle on the parabola.", always=False
    )
}


def _update_form(surrogate: Any = None, coverage: Any = "leading", misses: Mapping[str, Miss] = {}):
    optimizer = functools.partial(
        qsgd.superpositional_adamw,
        quantum_weight=LAMBDA,
        weigh="update",
        surrogate=surrogate,
        coverage=coverage,
    )
    return Variant(
        optimizer, lambda: qsgd.scale_by_superposition(LAMBDA, surrogate, coverage), misses
    )


def _weighed_gradients_into_adamw(
    learning_rate: optax.ScalarOrSchedule, mu_dtype=None, quantum_weight=LAMBDA
):
    return optax.chain(
        qsgd.scale_by_superposition(quantum_weight), optax.adamw(learning_rate, mu_dtype=mu_dtype)
    )


def _stacks(params):
    """Leaves of three axes, which have no names in optax's tests: matrices one upon the other."""
    numbers = optax.contrib.MuonDimensionNumbers(-2, -1)
    return jax.tree.map(lambda leaf: numbers if leaf.ndim == 3 else None, params)


STACKS = qsgd.SpectralRouting(labels=_stacks)


def _of_explicit_dtypes(miss):
    names = ("bfloat16", "float32", "complex64", "None")
    return {f"test_explicit_dtype_{p}_{s}": miss for p in names for s in names}


def _spectral_alone(
    learning_rate: optax.ScalarOrSchedule, mu_dtype=None, weight_decay: optax.ScalarOrSchedule = 0.0
):
    return optax.chain(
        qsgd.scale_by_spectral_superposition(mu_dtype=mu_dtype, routing=STACKS),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


TWO_MU = Miss("There are two mu, as in optax.contrib.muon: AdamW's, too.", error="multiple val")
VARIANTS = {
    "update": _update_form(),
    "update_everywhere": _update_form(qsgd.probe(ENTANGLED), "everywhere"),
    "update_shots": _update_form(_sampled(qsgd.Circuit()), misses=RESTLESS),
    "update_everywhere_shots": _update_form(_sampled(ENTANGLED), "everywhere", RESTLESS),
    "before_adamw": Variant(
        _weighed_gradients_into_adamw,
        lambda: optax.chain(qsgd.scale_by_superposition(LAMBDA), optax.scale_by_adam()),
        RESTLESS,
    ),
    "gradient": Variant(
        functools.partial(qsgd.superpositional_adamw, quantum_weight=LAMBDA, weigh="gradient"),
        lambda: qsgd.superpose(optax.scale_by_adam(), LAMBDA),
        dict.fromkeys(
            [
                "test_optimization_parabola_float32",
                "test_optimization_parabola_complex64",
                "test_optimization_rosenbrock_float32",
                "test_optimization_rosenbrock_complex64",
                "test_optimizers_parabola_float32",
                "test_optimizers_rosenbrock_float32",
                "test_optimizers_matrix_parabola_float32",
                "test_optimizers_schedule_free_parabola_float32",
                "test_optimizers_schedule_free_matrix_parabola_float32",
                "test_optimizers_reduce_on_plateau_parabola_float32",
                "test_optimizers_reduce_on_plateau_matrix_parabola_float32",
            ],
            CLIMBS,
        )
        | RESTLESS,
    ),
    "muon": Variant(
        functools.partial(qsgd.superpositional_muon, routing=STACKS),
        lambda: qsgd.scale_by_spectral_superposition(routing=STACKS),
        _of_explicit_dtypes(TWO_MU),
    ),
    "muon_second_moment": Variant(
        functools.partial(qsgd.superpositional_muon, routing=STACKS, second_moment="entry"),
        lambda: qsgd.scale_by_spectral_superposition(routing=STACKS, second_moment="entry"),
        _of_explicit_dtypes(TWO_MU),
    ),
    "spectral": Variant(
        _spectral_alone,
        lambda: qsgd.scale_by_spectral_superposition(routing=STACKS),
        _of_explicit_dtypes(Miss("A vector has no momentum.", error="'MaskedNode' object has no"))
        | dict.fromkeys(
            [
                "test_optimization_rosenbrock_float32",
                "test_optimization_rosenbrock_complex64",
                "test_optimizers_rosenbrock_float32",
            ],
            Miss("Vectors pass unchanged, and gradient descent at 0.01 diverges."),
        ),
    ),
    "adamw": Variant(optax.adamw, optax.scale_by_adam),
}


def _by_name(learning_rate, name="adamw"):
    return {"opt_name": name, "opt_kwargs": {"learning_rate": learning_rate}}


def _wrapped(case, wrapper, **options):
    return case | {"wrapper_name": wrapper, "wrapper_kwargs": options}


# Wrapped optimizers have the learning rates of optax's lists. AdamW has 0.1 there; at 0.01 its
# last third of steps is within the tolerance in every form, so that the last is so not by luck.
def _alias_cases(variant):
    return [_by_name(0.01)]


def _contrib_cases(variant):
    return [
        _wrapped(_by_name(0.01), None),
        _wrapped(_by_name(1.0), "mechanize", weight_decay=0.0),
        _wrapped(_by_name(0.01, "sgd"), "schedule_free", learning_rate=0.01),
        _wrapped(_by_name(0.001, "sgd"), "reduce_on_plateau"),
    ]


def _sharding_cases(variant):
    return [("optimizer", variant.optimizer(1.0)), ("scaler", variant.scaler())]


def _float64_cases(variant):
    optimizer = ("optimizer", variant.optimizer, {"learning_rate": 0.1})
    return [optimizer, ("scaler", variant.scaler, {})]


def _transform_cases(variant):
    return [("optimizer", lambda: variant.optimizer(0.1)), ("scaler", variant.scaler)]


SUITES = [
    Suite("optax._src.alias_test", "AliasTest", _alias_cases, 32),
    Suite(
        "optax.contrib._common_test",
        "ContribTest",
        _contrib_cases,
        64,
        allowed_skips=("reduce_on_plateau is not supported by inject_hyperparams.",),
    ),
    # Its test of microbatches takes no optimizer.
    Suite(
        "optax._src.sharding_test", "ShardingTest", _sharding_cases, 6, ("test_init", "test_state")
    ),
    Suite("optax._src.float64_test", "Float64Test", _float64_cases, 2),
    Suite("optax._src.transform_test", "TransformTest", _transform_cases, 2, ("test_scalers",)),
]
if importlib.util.find_spec("optax.contrib._sharding_test"):  # newer than optax 0.2.8
    SUITES.append(Suite("optax.contrib._sharding_test", "ContribShardingTest", _sharding_cases, 2))


def _tests(suite, variant):
    tests = load(suite, VARIANTS[variant])
    return tests if variant == "update" else pytest.mark.peers(tests)


globals().update(
    {f"{suite.name}_{variant}": _tests(suite, variant) for suite in SUITES for variant in VARIANTS}
)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_test_of_optax_asks_our_optimizer_or_is_allowed_to_skip(suite):
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("asked ours")

    @functools.wraps(optax.adamw)
    def broken(*_, **__):
        return optax.GradientTransformation(refuse, refuse)

    tests = unittest.defaultTestLoader.loadTestsFromTestCase(load(suite, Variant(broken, broken)))
    assert tests.countTestCases() == suite.n_tests
    for test in tests:
        result = unittest.TestResult()
        test.run(result)
        # Theirs turn double precision off at the end, which none of them reaches.
        jax.config.update("jax_enable_x64", False)
        assert result.skipped or "asked ours" in str(result.errors), test
