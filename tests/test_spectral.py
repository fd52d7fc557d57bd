"""Spectral superposition: against singular value decompositions, and optax's Newton–Schulz."""

import copy
import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest
from numpy.polynomial import Chebyshev, Polynomial
from optax.contrib import _muon  # pyright: ignore[reportPrivateImportUsage]

import qsgd_jax as qsgd
from qsgd_jax._src.spectral import polynomials
from qsgd_jax._src.spectral.products import on_matrix

# Polynomials of chance are below 0 somewhere.
ANY_SIGN = pytest.mark.filterwarnings("ignore:.*answers against some singular values")

MUON = Polynomial([0, 3.4445, 0, -4.7750, 0, 2.0315])
SIGMA = np.linspace(-1, 1, 201)


def _odd(degree: int, largest: float, seed: int) -> Chebyshev:
    """A random odd polynomial whose largest absolute value is given."""
    coefficients = np.zeros(degree + 1)
    coefficients[1::2] = np.random.default_rng(seed).normal(size=(degree + 1) // 2)
    found = Chebyshev(coefficients)
    turning = found.deriv().roots() if degree > 1 else np.zeros(0)
    turning = turning[np.abs(turning.imag) < 1e-6].real
    places = np.append(turning[np.abs(turning) <= 1], 1.0)
    return found * (largest / np.abs(found(places)).max())


def _answers(angles: Any, sigma: np.ndarray) -> np.ndarray:
    """What the circuit itself answers, all settings at once."""
    circuit = qsgd.spectral_circuit(angles, "default.qubit")
    return np.asarray(circuit(np.arcsin(sigma)[None] / np.pi))


@pytest.mark.parametrize("degree", [1, 3, 5, 7, 31, 101])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("largest", [0.5, 0.99, 1.0])
def test_the_circuit_at_its_angles_answers_the_polynomial(degree, seed, largest):
    polynomial = _odd(degree, largest, seed)
    angles = qsgd.spectral_angles(polynomial)
    assert angles.shape == ((degree + 1) // 2,)
    found = _answers(angles, SIGMA) / (1 - 1e-9 if largest == 1 else 1)
    assert np.abs(found - polynomial(SIGMA)).max() <= 1e-10


def test_powers_and_chebyshev_polynomials_are_the_same():
    expected = qsgd.spectral_angles([0.5, -0.25, 0.125])
    polynomial = Polynomial([0, 0.5, 0, -0.25, 0, 0.125])
    for same in (polynomial, polynomial.convert(kind=Chebyshev)):
        np.testing.assert_allclose(qsgd.spectral_angles(same), expected, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_any_angles_make_an_odd_answer(n):
    angles = np.random.default_rng(n).uniform(-4, 4, n)
    found = _answers(angles, SIGMA)
    assert np.abs(found + found[::-1]).max() <= 1e-12
    cascade = qsgd.spectral_cascade(angles=[angles])
    assert cascade.not_odd()[0] <= 1e-12
    np.testing.assert_allclose(cascade.evaluate(SIGMA), found, atol=1e-12)


def test_one_upload_is_the_paper_s_circuit():
    angles = [np.pi / 2]
    np.testing.assert_allclose(_answers(angles, SIGMA), SIGMA, atol=1e-12)
    paper = qsgd.spectral_cascade([qsgd.probe(qsgd.Circuit(n_qubits=1))])
    np.testing.assert_allclose(paper.evaluate(SIGMA), SIGMA, atol=1e-12)
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    for cascade in (paper, qsgd.spectral_cascade(angles=[angles])):
        step = _direction(cascade, gradient)
        np.testing.assert_allclose(step, gradient / np.linalg.norm(gradient), rtol=2e-6)


def _direction(cascade: Any, gradient: Any) -> np.ndarray:
    """The first step without momentum, of norm one."""
    optimizer: Any = qsgd.scale_by_spectral_superposition(cascade, beta=0.0, nesterov=False)
    params = jnp.zeros_like(gradient)
    step, _ = optimizer.update(gradient, optimizer.init(params), params)
    return np.asarray(step) / np.linalg.norm(step)


@pytest.mark.parametrize("stages", [1, 3, 5, 8, 10])
def test_named_cascades_are_their_polynomials(stages):
    expected = SIGMA
    for _ in range(stages):
        expected = MUON(expected)
    found = qsgd.spectral_cascade("muon", stages=stages)
    np.testing.assert_allclose(found.evaluate(SIGMA), expected, atol=2e-6)
    assert len(set(found.stages)) == 1  # one circuit, probed once
    expected, powers = SIGMA, np.array([1, 3, 5])
    for place in range(stages):
        row = PRINTED[min(place, len(PRINTED) - 1)]
        safe = 1.0 if place == stages - 1 else 1.01
        expected = sum(c * (expected / safe) ** k for c, k in zip(row, powers, strict=True))
    found = qsgd.spectral_cascade("polar-express", stages=stages)
    np.testing.assert_allclose(found.evaluate(SIGMA), expected, atol=2e-6)


# Of Amsel et al., arXiv:2505.16932, written down again.
PRINTED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def test_polar_express_is_the_best_of_its_degree():
    """Of the best quintic for the sign function, as printed, two largest values are equal."""
    reach = 1.0
    for a, b, c in polynomials.POLAR_EXPRESS[:6]:
        p = Polynomial([0, a, 0, b, 0, c])
        turning = p.deriv().roots()
        first = min(turning[turning.real > 0].real)
        assert p(first) == pytest.approx(p(reach), rel=1e-6)
        reach = p(reach)


@ANY_SIGN
@pytest.mark.parametrize("shape", [(4, 4), (5, 12), (12, 5)])
@pytest.mark.parametrize("cascade", ["muon", "polar-express", "degree 31", "degree 101"])
@pytest.mark.usefixtures("float64")
def test_a_matrix_in_float64_is_that_of_its_singular_values(shape, cascade):
    if cascade.startswith("degree"):
        cascade = qsgd.spectral_cascade([_odd(int(cascade[7:]), 0.99, 0)])
    else:
        cascade = qsgd.spectral_cascade(cascade)
    for kind in ("real", "complex"):
        rng = np.random.default_rng(1)
        gradient = rng.normal(size=shape) + (
            1j * rng.normal(size=shape) if kind == "complex" else 0
        )
        u, sigma, v = np.linalg.svd(gradient / np.linalg.norm(gradient), full_matrices=False)
        expected = u * cascade.evaluate(sigma) @ v
        found = _direction(cascade, jnp.asarray(gradient))
        assert np.abs(found - expected / np.linalg.norm(expected)).max() <= 1e-10


def _matrices(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    random = rng.normal(size=(48, 96))
    u, _, v = np.linalg.svd(random, full_matrices=False)
    return {
        "random": random,
        "low rank": rng.normal(size=(48, 4)) @ rng.normal(size=(4, 96)),
        "ill-conditioned": u * np.geomspace(1, 1e-6, 48) @ v,
        "transposed": random.T,
        "square": rng.normal(size=(64, 64)),
        "stacked": rng.normal(size=(3, 16, 32)),
    }


@pytest.mark.bits
@pytest.mark.parametrize("kind", _matrices(0))
@pytest.mark.usefixtures("float64")
def test_muon_s_cascade_is_as_near_to_newton_schulz_as_optax_is_itself(kind):
    """Over ten matrices: of a single one, either error may be twice the other by chance."""
    numbers = optax.contrib.MuonDimensionNumbers(-2, -1)
    routing = qsgd.SpectralRouting(labels=numbers)
    optimizer: Any = qsgd.scale_by_spectral_superposition(
        "muon", beta=0.0, nesterov=False, routing=routing
    )

    def newton_schulz(matrix: np.ndarray, dtype: Any) -> Any:
        coefficients = jnp.asarray((3.4445, -4.7750, 2.0315), dtype)
        return _muon.orthogonalize_via_newton_schulz(
            jnp.asarray(matrix, dtype), coefficients, 5, dimension_numbers=numbers
        )

    def directions(found: Any) -> np.ndarray:
        found = np.asarray(found, np.float64)
        return found / np.linalg.norm(found, axis=(-2, -1), keepdims=True)

    errors = []
    for matrix in (_matrices(seed)[kind] for seed in range(10)):
        gradient = jnp.asarray(matrix, jnp.float32)
        step, _ = optimizer.update(gradient, optimizer.init(gradient))
        assert step.dtype == jnp.float32
        expected = directions(newton_schulz(matrix, jnp.float64))
        both = (step, newton_schulz(matrix, jnp.float32))
        errors.append([np.abs(directions(x) - expected).max() for x in both])
    ours, theirs = np.mean(errors, axis=0)
    assert ours <= 2 * theirs


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 1e30])
def test_the_size_of_the_update_is_what_was_asked_for(size):
    gradient = size * jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)
    for rms in (0.2, 1.5):
        optimizer: Any = qsgd.scale_by_spectral_superposition(update_rms=rms)
        step, _ = optimizer.update(gradient, optimizer.init(gradient))
        # Noise far below the epsilon is not raised.
        expected = rms if size > 1e-8 else 0.0
        assert float(jnp.sqrt(jnp.mean(step**2))) == pytest.approx(expected, rel=2e-3, abs=1e-15)


def test_zeros_stay_zeros_and_nothing_is_made_finite():
    optimizer: Any = qsgd.scale_by_spectral_superposition()
    zeros = jnp.zeros((4, 6))
    step, state = optimizer.update(zeros, optimizer.init(zeros))
    np.testing.assert_array_equal(step, zeros)
    for bad in (np.nan, np.inf):
        step, state = optimizer.update(zeros.at[1, 2].set(bad), state)
        assert np.isnan(step).any()


def test_the_first_steps_equal_the_equation_in_numpy():
    rng, beta, r = np.random.default_rng(3), 0.8, 0.3
    cascade = qsgd.spectral_cascade("polar-express")
    gradients = rng.normal(size=(5, 6, 4)).astype(np.float32)
    for nesterov in (True, False):
        optimizer: Any = qsgd.scale_by_spectral_superposition(cascade, beta, nesterov, r)
        state, momentum = optimizer.init(jnp.zeros((6, 4))), np.zeros((6, 4))
        for t, gradient in enumerate(gradients, 1):
            step, state = optimizer.update(jnp.asarray(gradient), state)
            momentum = beta * momentum + (1 - beta) * gradient
            ahead = momentum / (1 - beta**t)
            if nesterov:
                ahead = beta * momentum / (1 - beta ** (t + 1))
                ahead += (1 - beta) * gradient / (1 - beta**t)
            u, sigma, v = np.linalg.svd(ahead / np.linalg.norm(ahead), full_matrices=False)
            turned = u * cascade.evaluate(sigma) @ v
            expected = r * turned / np.sqrt(np.mean(turned**2))
            np.testing.assert_allclose(step, expected, atol=2e-5)


@qml.qnode(qml.device("default.qubit", wires=1))
def _own(x):
    """A stage of a user's own: the angle of a rotation is the input, σ = sin x."""
    qml.RX(x[0], 0)
    return qml.expval(qml.Y(0))


@ANY_SIGN
def test_a_stage_of_one_s_own_and_a_broken_gate_change_the_step():
    own = qsgd.probe(lambda x: -_own(x), n_inputs=1, degree=1)
    third = qsgd.probe(lambda x: np.sin(3 * x[0]), n_inputs=1, degree=3)
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    steps = [
        _direction(qsgd.spectral_cascade(stages), gradient) for stages in ([own], [own, third])
    ]
    np.testing.assert_allclose(steps[0], gradient / np.linalg.norm(gradient), rtol=2e-6)
    u, sigma, v = np.linalg.svd(gradient / np.linalg.norm(gradient), full_matrices=False)
    expected = u * np.sin(3 * np.arcsin(sigma)) @ v
    np.testing.assert_allclose(steps[1], expected / np.linalg.norm(expected), atol=2e-6)
    angles = qsgd.spectral_angles(_odd(5, 0.9, 0))
    broken = angles + np.array([0, 0.1, 0])
    whole, other = (
        _direction(qsgd.spectral_cascade(angles=[x]), gradient) for x in (angles, broken)
    )
    assert np.abs(whole - other).max() > 1e-3


def test_a_noisy_device_s_output_scale_is_refitted_and_its_errors_reported():
    device = qml.device("default.mixed", wires=1)

    def noise(channel, *arguments):
        def add(op, **_):
            channel(*arguments, wires=op.wires)

        model = qml.NoiseModel({qml.noise.op_in([qml.RY, qml.RZ]): add})
        return qml.noise.add_noise(device, model)  # pyright: ignore[reportAttributeAccessIssue]

    exact = qsgd.spectral_cascade("muon")
    depolarized = qsgd.spectral_cascade("muon", device=noise(qml.DepolarizingChannel, 0.01))
    sigma = np.linspace(0, 1, 50)
    # It makes answers smaller alone: the scale takes that back.
    np.testing.assert_allclose(depolarized.evaluate(sigma), exact.evaluate(sigma), atol=1e-6)
    assert all(
        1.05 * a < b for a, b in zip(exact.output_scales, depolarized.output_scales, strict=True)
    )
    assert max(depolarized.not_odd()) < 1e-6
    assert max(x or 0 for x in depolarized.deviations) < 1e-6
    damped = qsgd.spectral_cascade("muon", device=noise(qml.AmplitudeDamping, 0.005))
    assert 0.003 < max(x or 0 for x in damped.deviations) < 0.05
    assert 0.001 < max(damped.not_odd()) < 0.05
    assert 1e-3 < np.abs(damped.evaluate(sigma) - exact.evaluate(sigma)).max() < 0.3


def test_a_measured_cascade_is_within_five_standard_errors():
    device = qml.device("default.qubit", wires=1, seed=3)
    exact = qsgd.spectral_cascade("polar-express")
    found = qsgd.spectral_cascade("polar-express", device=device, shots=4000)
    for stage, known in zip(found.stages, exact.stages, strict=True):
        assert stage.shots == 4000
        theta = [jnp.linspace(-0.5, 0.5, 50)]
        deviation = np.asarray(stage.evaluate(theta)[0]) - np.asarray(known.evaluate(theta)[0])
        assert 1e-4 < np.abs(deviation).max() <= 5 / 4000**0.5


def test_it_is_a_value(tmp_path):
    cascade = qsgd.spectral_cascade("polar-express")
    same = qsgd.spectral_cascade("polar-express")
    cascade.save(tmp_path / "cascade.json")
    leaves, treedef = jax.tree.flatten(cascade)
    for other in (
        same,
        pickle.loads(pickle.dumps(cascade)),
        copy.deepcopy(cascade),
        qsgd.SpectralCascade.load(tmp_path / "cascade.json"),
        treedef.unflatten(leaves),
    ):
        assert other == cascade and hash(other) == hash(cascade)
        np.testing.assert_array_equal(other.evaluate(SIGMA), cascade.evaluate(SIGMA))
    assert cascade != qsgd.spectral_cascade("polar-express", stages=2)
    assert repr(cascade) == "SpectralCascade(3 stages of degree 5, 5, 5, lightning.qubit)"


@ANY_SIGN
@pytest.mark.parametrize("device", [None, "default.qubit"])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_loss_differentiates_in_the_angles(jitted, device):
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    angles = qsgd.spectral_angles(_odd(5, 0.9, 0))

    def loss(angles):
        cascade = qsgd.spectral_cascade(angles=[angles], device=device)
        optimizer: Any = qsgd.scale_by_spectral_superposition(cascade)
        step, _ = optimizer.update(gradient, optimizer.init(gradient))
        return jnp.sum(step * jnp.arange(12.0).reshape(3, 4))

    derivative = jax.grad(loss)
    found = (jax.jit(derivative) if jitted else derivative)(jnp.asarray(angles))
    for j, basis in enumerate(np.eye(3)):
        difference = (loss(angles + 1e-3 * basis) - loss(angles - 1e-3 * basis)) / 2e-3
        assert float(found[j]) == pytest.approx(float(difference), rel=2e-2, abs=1e-2)


def test_stages_and_scales_may_come_from_generators():
    muon = qsgd.spectral_cascade("muon", stages=2)
    parts = (muon.stages, muon.input_scales, muon.output_scales, muon.deviations)
    again = ANY.SpectralCascade(*((x for x in part) for part in parts))
    assert again == muon


def test_a_loss_differentiates_in_a_scale():
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    muon = qsgd.spectral_cascade("muon", stages=2)

    def loss(scale):
        cascade = qsgd.spectral_cascade(muon.stages, input_scales=(1.0, scale))
        optimizer: Any = qsgd.scale_by_spectral_superposition(cascade)
        step, _ = optimizer.update(gradient, optimizer.init(gradient))
        return jnp.sum(step * jnp.arange(12.0).reshape(3, 4))

    difference = (loss(1.501) - loss(1.499)) / 2e-3
    for derivative in (jax.grad(loss), jax.jit(jax.grad(loss))):
        assert float(derivative(1.5)) == pytest.approx(float(difference), rel=2e-2)


def test_stacks_train_as_single_matrices():
    rng = np.random.default_rng(4)
    stack = jnp.asarray(rng.normal(size=(3, 5, 6)), jnp.float32)
    optimizer: Any = qsgd.scale_by_spectral_superposition(
        routing=qsgd.SpectralRouting(stacked_axes=1)
    )
    step, _ = optimizer.update(stack, optimizer.init(stack))
    for one, expected in zip(stack, step, strict=True):
        single: Any = qsgd.scale_by_spectral_superposition()
        found, _ = single.update(one, single.init(one))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_stage_s_origin_is_not_lost():
    shifted = qsgd.Surrogate(
        np.array([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -0.3]]),
        np.array([1.0]),  # half a period: sin and sin 3 change their sign
        degree=(3,),
        period=(2.0,),
    )
    with pytest.raises(ValueError, match="against σ"):
        qsgd.superpositional_muon(0.1, qsgd.spectral_cascade([shifted]))
    negative = qsgd.Surrogate(
        -shifted.coefficients, shifted.origin, degree=shifted.degree, period=shifted.period
    )
    found = qsgd.spectral_cascade([negative]).evaluate(SIGMA)
    expected = negative.evaluate([np.arcsin(SIGMA) / np.pi])[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="not odd"):  # entangled layers move the paper's circuit
        qsgd.spectral_cascade([qsgd.probe(qsgd.Circuit(n_qubits=1, depth=2))])


@pytest.mark.parametrize("degree", [5, 15, 31])
@pytest.mark.parametrize("own", [False, True])
def test_a_measured_cascade_stays_within_its_ranges(degree, own):
    """Beyond its range a polynomial of high degree knows no bounds."""
    device = qml.device("default.qubit", wires=1, seed=degree)
    # Falls with σ where the degree is 3 modulo 4.
    polynomial = Chebyshev.basis(degree) * (-1) ** ((degree - 1) // 2) * 0.999
    if own:
        circuit = qsgd.spectral_circuit(qsgd.spectral_angles(polynomial), device)
        measured = qsgd.probe(circuit, n_inputs=1, degree=degree, period=2, shots=1000)
        cascade = qsgd.spectral_cascade([measured] * 3)
    else:
        cascade = qsgd.spectral_cascade([polynomial] * 3, device=device, shots=1000)
    assert np.abs(cascade.evaluate(np.linspace(0, 1, 2001))).max() <= 1.2


def test_it_is_hashed_and_turned_whatever_its_numbers_are():
    angles = [qsgd.spectral_angles([0.5])] * 2
    expected = qsgd.spectral_cascade(angles=angles, output_scales=(1.0, 2.0))
    gradient = jnp.eye(2)
    for scales in ([1, 2], np.array([1.0, 2.0]), jnp.array([1.0, 2.0]), [np.float32(1), 2]):
        other = ANY.spectral_cascade(angles=angles, output_scales=scales)
        assert other == expected and hash(other) == hash(expected)
    for other in (
        jax.device_put(expected),
        jax.jit(lambda x: x)(expected),
        jax.tree.map(lambda x: x, expected),
        ANY.SpectralCascade(list(expected.stages), [1.0, 1.0], [1.0, 2.0]),
    ):
        np.testing.assert_allclose(_direction(other, gradient), _direction(expected, gradient))
    shapes = jax.eval_shape(lambda x: x, expected)
    assert jax.tree.structure(shapes) == jax.tree.structure(expected)
    zeros = jax.tree.map(jnp.zeros_like, expected)  # such as a gradient: no cascade to be checked
    assert zeros.output_scales == (0.0, 0.0)


def test_only_the_cascade_gives_numbers():
    x = jnp.eye(2) * jnp.array([0.9, 0.3])
    cascade = qsgd.spectral_cascade([[0.5], [0.25]])
    np.testing.assert_allclose(on_matrix(cascade, x), 0.125 * x, rtol=1e-6)
    halved = qsgd.SpectralCascade(
        cascade.stages,
        cascade.input_scales,
        (cascade.output_scales[0], cascade.output_scales[1] / 2),
    )
    np.testing.assert_allclose(on_matrix(halved, x), 0.0625 * x, rtol=1e-6)


ANY: Any = qsgd
STAGE = qsgd.probe(qsgd.Circuit(n_qubits=1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: qsgd.spectral_angles(MUON), ValueError, r"is 1\.2023\d+ at σ = 0\.55.* 1\.2023"),
        (lambda: qsgd.spectral_angles(Polynomial([0, 1, 0.5])), ValueError, "an even part"),
        (lambda: qsgd.spectral_angles("muon"), TypeError, "polynomial='muon'"),
        (lambda: qsgd.spectral_angles([]), ValueError, "at least one"),
        (lambda: qsgd.spectral_angles([np.nan]), ValueError, "finite"),
        (lambda: qsgd.spectral_angles(Polynomial([np.nan, 0.5])), ValueError, "finite"),
        (lambda: qsgd.spectral_angles([0.0]), ValueError, "is zero"),
        (lambda: qsgd.spectral_angles([1 + 1e-7]), ValueError, r"is 1\.0000001 at σ = 1"),
        (lambda: qsgd.spectral_angles(np.poly1d([0.5, 0])), TypeError, "poly1d"),
        (lambda: qsgd.spectral_cascade(angles=[]), ValueError, r"angles=\[\] must have a stage"),
        (lambda: ANY.spectral_cascade(angles=[0.1, 0.2]), TypeError, r"for each stage: \[\["),
        (lambda: ANY.spectral_cascade([0.1, 0.2]), TypeError, r"for each stage: \[\["),
        (lambda: ANY.spectral_cascade(STAGE), TypeError, "must be a sequence"),
        (lambda: ANY.spectral_cascade([STAGE], output_scales=2.0), TypeError, "output_scales=2.0"),
        (lambda: qsgd.spectral_cascade([STAGE], device="default.qubit"), ValueError, "device='def"),
        (lambda: qsgd.spectral_cascade([[0.5]], angles=[[0.1]]), ValueError, "beside angles="),
        (
            lambda: qsgd.superpositional_muon(0.1, qsgd.spectral_cascade([[-1.0]])),
            ValueError,
            "against σ",
        ),
        (lambda: qsgd.spectral_circuit([]), ValueError, r"angles=\[\]"),
        (lambda: ANY.spectral_circuit("x"), TypeError, "angles='x'"),
        (lambda: qsgd.spectral_circuit([0.1], "no.such"), ValueError, "'no.such'"),
        (lambda: qsgd.spectral_cascade("moun"), ValueError, "cascade='moun'"),
        (lambda: qsgd.spectral_cascade("muon", stages=0), ValueError, "stages=0"),
        (lambda: qsgd.spectral_cascade([[0.5]], stages=2), ValueError, "stages=2"),
        (lambda: qsgd.spectral_cascade([[0.5]], output_scales=[1]), ValueError, "output_scales"),
        (lambda: qsgd.spectral_cascade([]), ValueError, r"cascade=\[\] must have a stage"),
        (lambda: qsgd.spectral_cascade([Polynomial([1, 1])]), ValueError, "an even part"),
        (
            lambda: qsgd.spectral_cascade(
                [STAGE, STAGE], output_scales=[2, 1], input_scales=[1, 1]
            ),
            ValueError,
            r"input_scales\[1\]=1: stage 0 answers up to 2, beyond",
        ),
        (
            lambda: qsgd.spectral_cascade([STAGE], output_scales=[-1]),
            ValueError,
            r"=-1.0 must be p",
        ),
        (lambda: qsgd.spectral_cascade([STAGE], input_scales=[0.5]), ValueError, "begin up to 1"),
        (
            lambda: qsgd.spectral_cascade([qsgd.probe(qsgd.Circuit(n_qubits=2))]),
            ValueError,
            "one input and one output",
        ),
        (
            lambda: qsgd.spectral_cascade(
                [qsgd.probe(lambda x: np.cos(x[0]), n_inputs=1, degree=1)]
            ),
            ValueError,
            r"a part of 1 that is not odd.* It must be g\(−θ\) = −g\(θ\)",
        ),
        (lambda: ANY.superpositional_muon(0.1, cascade=3), TypeError, "cascade=3 .* or a name"),
        (lambda: ANY.spectral_cascade([np.cos]), TypeError, "of a circuit, what qsgd_jax.probe"),
        (lambda: ANY.superpositional_muon(0.1, routing=3), TypeError, "routing=3"),
        (lambda: ANY.superpositional_muon(0.1, beta=1.0), ValueError, "beta=1.0"),
        (lambda: ANY.superpositional_muon(0.1, beta="x"), TypeError, "beta='x'"),
        (lambda: ANY.superpositional_muon(0.1, update_rms=0), ValueError, "update_rms=0"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("polynomial", [[1, -1.5], [3, -4]])
def test_a_cascade_that_climbs_along_some_directions_says_so(polynomial):
    """On a momentum of one direction it climbs."""
    cascade = qsgd.spectral_cascade([np.array(polynomial) / 4])
    with pytest.warns(
        UserWarning, match=r"most at σ = 1 \(f = -0\.\d+\): along these a step climbs"
    ):
        optimizer = qsgd.scale_by_spectral_superposition(cascade)
    gradient = jnp.outer(jnp.ones(3), jnp.ones(4))
    step: Any = optimizer.update(gradient, optimizer.init(gradient))[0]
    assert jnp.vdot(step, gradient) < 0


@pytest.mark.parametrize("name", ["muon", "polar-express"])
def test_named_cascades_climb_nowhere(name):
    sigma = np.linspace(1e-6, 1, 10_001)
    assert qsgd.spectral_cascade(name).evaluate(sigma).min() > 0


def test_a_state_of_another_shape_is_refused():
    optimizer: Any = qsgd.scale_by_spectral_superposition()
    state = optimizer.init(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"shape \(3, 2\) at .* does not match its momentum"):
        optimizer.update(jnp.zeros((3, 2)), state)


@functools.cache
def _quadratic() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
        "embedding": jnp.asarray(rng.normal(size=(10, 6)), jnp.float32),
    }
    return params, jax.tree.map(lambda p: 0.3 * p + 0.1, params)


def _steps(optimizer: Any, n: int = 5) -> Any:
    params, target = _quadratic()
    state = optimizer.init(params)
    for _ in range(n):
        gradients = jax.tree.map(jnp.subtract, params, target)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_what_is_no_matrix_is_left_to_adamw():
    found = _steps(qsgd.superpositional_muon(0.05, adam_learning_rate=0.01, adam_weight_decay=0.1))
    expected = _steps(optax.adamw(0.01, b2=0.99, weight_decay=0.1, nesterov=True))
    for name in ("bias", "embedding"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert np.abs(found["kernel"] - expected["kernel"]).max() > 1e-3


@pytest.mark.parametrize("wrap", ["inject_hyperparams", "MultiSteps", "apply_if_finite", "jit"])
def test_wrappers_change_nothing(wrap):
    expected = _steps(qsgd.superpositional_muon(0.05))
    if wrap == "inject_hyperparams":
        optimizer = optax.inject_hyperparams(qsgd.superpositional_muon)(0.05)
        other = optax.inject_hyperparams(qsgd.superpositional_muon)(
            0.05, cascade=qsgd.spectral_cascade("polar-express")
        )
        np.testing.assert_allclose(_steps(other)["kernel"], expected["kernel"], atol=1e-6)
    elif wrap == "MultiSteps":
        optimizer = optax.MultiSteps(qsgd.superpositional_muon(0.05), 1)
    elif wrap == "apply_if_finite":
        optimizer = optax.apply_if_finite(qsgd.superpositional_muon(0.05), 3)
    else:
        inner = qsgd.superpositional_muon(0.05)
        optimizer = optax.GradientTransformation(inner.init, jax.jit(inner.update))
    found = _steps(optimizer)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


def test_seeds_under_vmap_are_trained_as_one_by_one():
    params, target = _quadratic()
    optimizer: Any = qsgd.superpositional_muon(0.05)

    def train(params):
        def step(carry, _):
            params, state = carry
            gradients = jax.tree.map(jnp.subtract, params, target)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 5)[0][0]

    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, p - 1]), params)
    together: Any = jax.jit(jax.vmap(train))(many)
    for i in range(3):
        alone: Any = train(jax.tree.map(lambda p, i=i: p[i], many))
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][i], value, atol=1e-5)
