"""A surrogate is a value: it is copied, compared, saved, traced and passed as any array is."""

import copy
import json
import math
import pickle
import subprocess
import sys
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import joblib
import numpy as np
import optax
import pytest

import qsgd_jax as qsgd

ENTANGLED: Any = qsgd.probe(qsgd.Circuit(4, 2))
PROBABILITIES = qsgd.probe(qsgd.Circuit(2, 1), readout="probabilities")
SURROGATES: dict[str, Any] = {
    "exact": ENTANGLED,
    "shots": qsgd.probe(qsgd.Circuit(2, 1), device="default.qubit", shots=100),
    "own units": qsgd.probe(lambda x: np.sin(x), n_inputs=1, degree=2),
    "probabilities": PROBABILITIES,
}
FORMS: dict[str, Any] = {
    "default": None,
    "exact": ENTANGLED,
    "sampled": qsgd.sampled(PROBABILITIES, 4),
    "refreshable": qsgd.refreshable(ENTANGLED),
    "direct": qsgd.Direct(qsgd.Circuit(2, 1)),
}
PARAMS = {"w": jnp.linspace(-1, 1, 30).reshape(6, 5), "b": jnp.ones(5)}


def _steps(surrogate: Any, coverage: Any = "everywhere", n=2) -> Any:
    optimizer: Any = qsgd.superpositional_adamw(0.1, surrogate=surrogate, coverage=coverage)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(n):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_copies_are_equal(name, module):
    surrogate = SURROGATES[name]
    for other in (module.loads(module.dumps(surrogate)), copy.deepcopy(surrogate)):
        assert other == surrogate and hash(other) == hash(surrogate) and other is not surrogate
        assert repr(other) == repr(surrogate) and "\n" not in repr(other)
        assert other.provenance.circuit == surrogate.provenance.circuit
        assert not other.coefficients.flags.writeable
        with pytest.raises(AttributeError):
            other.degree = (1,)


def test_different_content_is_unequal():
    others = [
        qsgd.probe(qsgd.Circuit(4, 2, seed=1)),
        ENTANGLED.with_coefficients(2 * ENTANGLED.coefficients),
        qsgd.probe(qsgd.Circuit(4, 2), device="default.qubit", shots=10),
        qsgd.probe(lambda x: np.sin(x), n_inputs=1, degree=2, period=4 * math.pi),
    ]
    surrogates = [*SURROGATES.values(), *others]
    for i, first in enumerate(surrogates):
        assert [first == second for second in surrogates] == [
            i == k for k in range(len(surrogates))
        ]
    assert len({*surrogates, *map(copy.deepcopy, surrogates)}) == len(surrogates)
    assert ENTANGLED != "another thing"


@pytest.mark.parametrize("coverage", ["leading", "everywhere"])
@pytest.mark.parametrize("name", FORMS)
def test_what_a_user_holds_is_pickled_after_its_use(name, coverage):
    surrogate = FORMS[name]
    expected = _steps(surrogate, coverage)
    for used in (pickle.loads(pickle.dumps(surrogate)), copy.deepcopy(surrogate)):
        jax.tree.map(np.testing.assert_array_equal, _steps(used, coverage), expected)
    optimizer: Any = qsgd.superpositional_adamw(0.1, surrogate=surrogate, coverage=coverage)
    state = optimizer.init(PARAMS)
    optimizer.update(PARAMS, state, PARAMS)
    again = cloudpickle.loads(cloudpickle.dumps(optimizer))
    first, second = (tx.update(PARAMS, state, PARAMS)[0] for tx in (optimizer, again))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_sweep_in_processes_works_after_a_step_in_the_parent():
    forms = [FORMS["default"], ENTANGLED]
    expected = [_steps(form) for form in forms]
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(_steps)(form) for form in forms)
    for one, other in zip(found, expected, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one, other)


@pytest.mark.parametrize("name", SURROGATES)
def test_a_saved_surrogate_is_loaded_as_it_was(name, tmp_path):
    surrogate, path = SURROGATES[name], tmp_path / "surrogate.json"
    surrogate.save(path)
    loaded = qsgd.Surrogate.load(path)
    assert loaded == surrogate and repr(loaded) == repr(surrogate)
    for field in ("circuit", "checksum", "device", "shots", "probed_at", "versions"):
        assert getattr(loaded.provenance, field) == getattr(surrogate.provenance, field)
    assert path.stat().st_size < 30_000


def test_a_loaded_surrogate_needs_no_pennylane(tmp_path):
    ENTANGLED.save(tmp_path / "surrogate.json")
    program = """if True:
        import sys
        sys.modules["pennylane"] = None  # as if it were not installed
        import jax.numpy as jnp, qsgd_jax as qsgd
        surrogate = qsgd.Surrogate.load(sys.argv[1])
        tx = qsgd.superpositional_adamw(0.1, surrogate=surrogate, coverage="everywhere")
        params = jnp.linspace(-1, 1, 8)
        print(tx.update(params, tx.init(params), params)[0].tolist())
    """
    command = [sys.executable, "-c", program, str(tmp_path / "surrogate.json")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    optimizer: Any = qsgd.superpositional_adamw(0.1, surrogate=ENTANGLED, coverage="everywhere")
    params = jnp.linspace(-1, 1, 8)
    expected = optimizer.update(params, optimizer.init(params), params)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"\('qsgd_jax.Surrogate', 2\); allowed is \('qsgd_jax.Surrogate', 1\)"),
        ({"format": "another"}, "'another'"),
        ({"degree": [1, 1]}, "cannot be read"),
        ({"coefficients": [1.0, 2.0]}, "cannot be read"),
        ({"origin": [float("nan")] * 4}, "origin must be finite"),
        ({"surplus": 1}, "cannot be read"),
    ],
)
def test_a_file_of_another_kind_is_refused(change, message, tmp_path):
    path = tmp_path / "surrogate.json"
    ENTANGLED.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        qsgd.Surrogate.load(path)
    for text in ("", "3", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no Surrogate"):
            qsgd.Surrogate.load(path)


def test_an_argument_of_a_jitted_function_is_compiled_once_and_keeps_its_zeros():
    thetas = [jnp.linspace(-1, 1, 9) * j for j in range(1, 5)]

    @jax.jit
    def evaluate(surrogate):
        return surrogate.evaluate(thetas)

    expected = ENTANGLED.evaluate(thetas)
    for other in (ENTANGLED, copy.deepcopy(ENTANGLED), jax.tree.map(jnp.asarray, ENTANGLED)):
        for found, right in zip(evaluate(other), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-6)
    assert evaluate._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]

    def n_products(function, *arguments):
        return str(jax.make_jaxpr(function)(*arguments)).count(" mul ")

    # It takes the products of its 30 coefficients, as it does as a constant, not those of 324.
    constant = n_products(lambda thetas: ENTANGLED.evaluate(thetas), thetas)
    assert n_products(lambda s: s.evaluate(thetas), ENTANGLED) <= constant + 30


def test_what_jax_returns_is_a_value_again():
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(ENTANGLED)
    assert isinstance(doubled.coefficients, np.ndarray)
    assert doubled.coefficients.dtype == np.float64
    np.testing.assert_allclose(doubled.coefficients, 2 * ENTANGLED.coefficients, rtol=1e-6)
    shifted = jax.tree.map(lambda x: x + 1, ENTANGLED)  # of which no coefficient is zero
    found = shifted.evaluate([jnp.float32(0.3)] * 4)[0]
    assert float(
        jax.jit(lambda s: s.evaluate([jnp.float32(0.3)] * 4)[0])(shifted)
    ) == pytest.approx(float(found), rel=1e-5)


def test_it_differentiates_in_inputs_and_coefficients(float64):
    thetas = np.random.default_rng(0).uniform(-1, 1, 4)

    def loss(surrogate, thetas):
        return sum(
            w * x for w, x in zip((1, 2, 3, 4), surrogate.evaluate(list(thetas)), strict=True)
        )

    of_surrogate, of_thetas = jax.grad(loss, (0, 1))(ENTANGLED, jnp.asarray(thetas))
    for j in range(4):
        step = 1e-6 * np.eye(4)[j]
        slope = (loss(ENTANGLED, thetas + step) - loss(ENTANGLED, thetas - step)) / 2e-6
        assert float(of_thetas[j]) == pytest.approx(float(slope), abs=1e-8)
    place = ENTANGLED.support[7]
    step = np.zeros(ENTANGLED.coefficients.size)
    step[place] = 1e-3
    step = step.reshape(ENTANGLED.coefficients.shape)
    above, below = (
        loss(ENTANGLED.with_coefficients(ENTANGLED.coefficients + sign * step), thetas)
        for sign in (1, -1)
    )
    slope = float(above - below) / 2e-3
    assert of_surrogate.coefficients.ravel()[place] == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_injected_hyperparameters_leave_it_alone(name):
    surrogate, coverage = FORMS[name], qsgd.Everywhere(stacked_axes=0)
    make = optax.inject_hyperparams(qsgd.superpositional_adamw)
    optimizer: Any = make(0.1, quantum_weight=0.5, surrogate=surrogate, coverage=coverage)
    params, state = PARAMS, optimizer.init(PARAMS)
    assert not {"surrogate", "coverage"} & set(state.hyperparams)
    step = jax.jit(lambda p, s: optimizer.update(p, s, p))
    for _ in range(2):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    expected = _steps(surrogate, coverage)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), params, expected)


@pytest.mark.parametrize("form", [f for f in FORMS.values() if f is not None] + [qsgd.Leading()])
def test_none_is_callable(form):
    assert not callable(form)  # `inject_hyperparams` would take it for a schedule


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="3 inputs are given; allowed are 4"):
        ENTANGLED.evaluate([jnp.ones(2)] * 3)
    with pytest.raises(ValueError, match="shapes"):
        ENTANGLED.evaluate([jnp.ones(2)] * 3 + [jnp.ones(3)])
    with pytest.raises(TypeError, match=r"complex64.* must be real"):
        ENTANGLED.evaluate([jnp.ones(2, jnp.complex64)] * 4)
    with pytest.raises(ValueError, match=r"coefficients of shape \(4, 3\)"):
        ENTANGLED.with_coefficients(np.ones((4, 3)))
    with pytest.raises(ValueError, match="readout='probabilities'"):
        qsgd.sampled(ENTANGLED, 4)
    with pytest.raises(ValueError, match="measurements"):
        qsgd.sampled(qsgd.probe(qsgd.Circuit(2), readout="probabilities", shots=9), 4)
    with pytest.raises(ValueError, match="shots=0"):
        qsgd.sampled(PROBABILITIES, 0)
    with pytest.raises(TypeError, match="surrogate="):
        qsgd.refreshable(qsgd.sampled(PROBABILITIES, 4))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="sampled"):
        qsgd.superpositional_adamw(0.1, surrogate=PROBABILITIES)
    with pytest.raises(TypeError, match="surrogate="):
        qsgd.superpositional_adamw(0.1, surrogate=qsgd.Circuit())  # pyright: ignore[reportArgumentType]


def test_coefficients_that_were_measured_elsewhere_may_exceed_one_by_their_error():
    measured = qsgd.probe(qsgd.Circuit(4, 2), device="default.qubit", shots=1000)
    table = 1.01 / ENTANGLED.largest * ENTANGLED.coefficients
    params = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="weights lie within ±1"):
        qsgd.superposition_weights(ENTANGLED.with_coefficients(table), params)
    for shots, coefficients in ((1000, measured.coefficients), (1000, table)):
        surrogate = ENTANGLED.with_coefficients(coefficients, shots=shots)
        assert surrogate.shots == 1000
        qsgd.superposition_weights(surrogate, params)
