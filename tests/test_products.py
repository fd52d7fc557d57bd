"""The forms of a function of a matrix: against an SVD, their operations, what XLA makes of them."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qsgd_jax as qsgd
from qsgd_jax._src.spectral.products import Form, on_matrix, shorter_form

FORMS: tuple[Form, ...] = ("products", "gram")

SPECTRA = {
    "flat": np.ones(32),
    "of chance": np.linalg.svd(np.random.default_rng(1).normal(size=(32, 96)), compute_uv=False),
    "falling": np.geomspace(1, 1e-3, 32),
    "ill-conditioned": np.geomspace(1, 1e-6, 32),
    "low rank": np.r_[np.ones(4), np.zeros(28)],
    "one direction above all": np.r_[1, np.full(31, 1e-3)],
}
CASCADES = ["muon", "polar-express"]


def _matrix(spectrum, columns, kind=np.float64):
    """X = U Σ Vᵀ of norm 1, and its parts."""
    rng = np.random.default_rng(0)

    def orthogonal(rows):
        found = rng.normal(size=(rows, len(spectrum)))
        if kind == np.complex128:
            found = found + 1j * rng.normal(size=found.shape)
        return np.linalg.qr(found)[0]

    u, v = orthogonal(len(spectrum)), orthogonal(columns)
    sigma = spectrum / np.linalg.norm(spectrum)
    return (u * sigma) @ v.conj().T, u, sigma, v


def _error(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASCADES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_in_float32_no_form_loses_more_than_three_in_ten_thousand(spectrum, name, form):
    cascade = qsgd.spectral_cascade(name)
    x, u, sigma, v = _matrix(SPECTRA[spectrum], 96)
    expected = (u * cascade.evaluate(sigma)) @ v.T
    assert _error(on_matrix(cascade, jnp.asarray(x, jnp.float32), form), expected) < 3e-4


@pytest.mark.parametrize("kind", [np.float64, np.complex128])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("float64")
def test_in_float64_the_forms_are_one(form, kind):
    for cascade in (*map(qsgd.spectral_cascade, CASCADES), qsgd.spectral_cascade([[0.3] * 8] * 2)):
        x, u, sigma, v = _matrix(SPECTRA["one direction above all"], 64, kind)
        expected = (u * cascade.evaluate(sigma)) @ v.conj().T
        assert _error(on_matrix(cascade, jnp.asarray(x), form), expected) < 1e-10


def _operations(jaxpr):
    """Two for each multiplication and addition of every matrix product."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = int(np.prod([left[axis] for axis in contracted]))
            found += 2 * inner * int(np.prod(equation.outvars[0].aval.shape))
    return found


def _floating_point_operations(
    shape: tuple[int, int], terms: Sequence[int], form: Form, runs: int = 1
) -> int:
    """Of the products of a form, which begins anew so often; two for each term of a sum.

    `terms` are how many coefficients each stage has, of σ, σ³, …: two or more.
    """
    m, n = shape
    long, square = 2 * m * m * n, 2 * m**3
    powers = sum(k - 2 for k in terms) * square
    if form == "products":
        return powers + 2 * long * len(terms)
    return powers + 2 * long * runs + 3 * (len(terms) - runs) * square


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (8, 13), (8, 32)])
@pytest.mark.parametrize("form", FORMS)
def test_operations_are_those_of_the_program(form, shape):
    for cascade, terms, runs in (
        (qsgd.spectral_cascade("muon"), [3] * 5, 2),  # float32 begins anew before the last
        (qsgd.spectral_cascade("polar-express"), [3] * 3, 1),
        (qsgd.spectral_cascade([[0.5, 0.3], [0.4, 0.1, 0.1, 0.2]]), [2, 4], 1),
    ):
        x = jnp.zeros(shape, jnp.float32)
        program = jax.make_jaxpr(lambda x, cascade=cascade: on_matrix(cascade, x, form))(x)
        assert _operations(program.jaxpr) == _floating_point_operations(shape, terms, form, runs)


def test_the_shorter_form_is_that_of_fewer_operations():
    assert [shorter_form((8, n)) for n in (8, 12, 13, 32)] == ["products"] * 2 + ["gram"] * 2
    cascade = qsgd.spectral_cascade()
    for n in (8, 32):
        x = jnp.zeros((8, n), jnp.float32)
        forms = [None, *FORMS]
        programs = [jax.make_jaxpr(lambda x, f=f: on_matrix(cascade, x, f))(x) for f in forms]
        default, *others = (_operations(program.jaxpr) for program in programs)
        assert default == min(others)


def _products_of_step(leaves, shapes):
    """How many matrix products XLA's program of a step has."""
    shape = {"square": (16, 16), "wide": (16, 40), "high": (40, 16)}
    params = {f"{i}": {k: jnp.zeros(shape[k]) for k in shapes} for i in range(leaves)}
    optimizer = qsgd.superpositional_muon(0.1)
    state = optimizer.init(params)
    program = jax.jit(optimizer.update).lower(params, state, params).compile()
    return len(re.findall(r" dot\(", program.as_text() or ""))


def test_the_program_does_not_grow_with_leaves_of_equal_shape():
    alone = _products_of_step(2, ["square", "wide", "high"])
    assert alone > 0 and _products_of_step(12, ["square", "wide", "high"]) == alone
    # A matrix and one that is its transpose are one shape.
    assert _products_of_step(3, ["wide", "high"]) == _products_of_step(6, ["wide"])


def test_rounded_products_are_off_by_what_they_are_rounded_to():
    params = jnp.asarray(np.random.default_rng(0).normal(size=(32, 96)), jnp.float32)

    def step(dtype: Any) -> np.ndarray:
        optimizer = qsgd.scale_by_spectral_superposition(product_dtype=dtype)
        updates: Any = optimizer.update(params, optimizer.init(params))[0]
        assert updates.dtype == jnp.float32
        return np.asarray(updates)

    exact = step(None)
    assert _error(step(jnp.float32), exact) < 1e-5
    assert 1e-4 < _error(step(jnp.bfloat16), exact) < 3e-2


@pytest.mark.parametrize("dtype", ["int8", jnp.complex64, "mist", 3.0])
def test_a_product_dtype_that_is_none_is_refused(dtype):
    with pytest.raises(ValueError, match=r"product_dtype=.* must be a real floating dtype"):
        qsgd.superpositional_muon(0.1, product_dtype=dtype)


def test_complex_matrices_are_not_rounded():
    params: Any = {"w": jnp.ones((3, 4), jnp.complex64)}
    optimizer = qsgd.superpositional_muon(0.1, product_dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"product_dtype=bfloat16: the matrix at .* is complex"):
        optimizer.update(params, optimizer.init(params), params)
