"""PennyLane works with this jax, whichever it is."""

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import jax
import jax._src.core
import jax.core
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from pennylane.math import single_dispatch
from pennylane.transforms import unitary_to_rot

import qsgd_jax as qsgd
from qsgd_jax._src import compatibility


@pytest.mark.parametrize("device", ["default.qubit", "default.mixed", "lightning.qubit"])
def test_a_qnode_is_compiled_and_differentiated(simulate, central, float64, device):
    circuit, theta = qsgd.Circuit(2, depth=1), np.array([0.3, -0.7])
    qnode, before = circuit.qnode(device), set(vars(jax.core))

    def answers(theta):
        return jnp.stack(qnode(theta))

    def expected(theta):
        return simulate(theta[None], circuit.angles)[0][0]

    np.testing.assert_allclose(jax.jit(answers)(theta), expected(theta), atol=1e-12)
    slopes = jax.jit(jax.jacobian(answers))(theta)
    np.testing.assert_allclose(slopes, central(expected, theta), atol=1e-8)
    assert set(vars(jax.core)) == before


def test_a_transform_of_pennylane_is_compiled():
    """It asks through another module than devices do."""

    @unitary_to_rot
    @qml.qnode(qml.device("default.qubit", wires=1))
    def cosine(x):
        qml.QubitUnitary(qml.RX.compute_matrix(x), 0)
        return qml.expval(qml.Z(0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PennyLane's, of complex128 and of names
        found = jax.jit(cosine)(0.5)
    np.testing.assert_allclose(found, np.cos(0.5), atol=1e-6)


def test_a_pennylane_without_the_function_is_left_alone(monkeypatch):
    monkeypatch.delattr(single_dispatch, "_to_numpy_jax")
    compatibility.mend_pennylane()


@pytest.fixture
def removed(monkeypatch):
    """A name that jax has in its private module alone, in any version."""
    monkeypatch.setattr(jax._src.core, "removed", lambda: "found", raising=False)
    return lambda: hasattr(jax.core, "removed")


def _asks():
    return jax.core.removed()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_function_finds_a_removed_name_while_it_runs(removed):
    with pytest.raises(AttributeError, match="removed"):
        _asks()
    assert compatibility._mended(_asks, "removed")() == "found"
    assert not removed()


def test_a_name_stays_while_any_thread_needs_it(removed):
    both, one_left = Barrier(2), Barrier(2)

    def first():
        jax.core.removed()  # pyright: ignore[reportAttributeAccessIssue]
        both.wait(10)

    def second():
        jax.core.removed()  # pyright: ignore[reportAttributeAccessIssue]
        both.wait(10)
        one_left.wait(10)
        return jax.core.removed()  # pyright: ignore[reportAttributeAccessIssue]

    mended = [compatibility._mended(function, "removed") for function in (first, second)]
    with ThreadPoolExecutor(2) as threads:
        ended, found = map(threads.submit, mended)
        ended.result(10)
        one_left.wait(10)
        assert found.result(10) == "found"
    assert not removed()


def test_an_error_of_another_kind_is_raised_as_it_is(removed):
    def fails():
        jax.core.removed()  # pyright: ignore[reportAttributeAccessIssue]
        raise AttributeError("its own")

    with pytest.raises(AttributeError, match="its own"):
        compatibility._mended(fails, "removed")()
    assert not removed()


def test_a_function_that_asks_for_no_removed_name_stays_as_it_is(removed):
    def asks_for_another():
        return jax.core.Tracer

    assert compatibility._mended(asks_for_another, "Tracer", "removed") is asks_for_another


REMOVES_A_NAME_FOR_GOOD = """
import jax.core, jax._src.core
for module in jax.core, jax._src.core:
    vars(module).pop("is_concrete", None)
vars(jax.core).pop("__getattr__", None)  # of deprecated names
import qsgd_jax
qsgd_jax.Circuit  # which imports PennyLane
"""


def test_versions_that_do_not_fit_are_refused_where_pennylane_is_imported():
    command = [sys.executable, "-c", REMOVES_A_NAME_FOR_GOOD]
    last = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: PennyLane {qml.version()} does not work with jax")
    assert jax.__version__ in last and "jax.core.is_concrete" in last
