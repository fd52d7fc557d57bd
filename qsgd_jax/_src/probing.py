"""Probing a circuit: a few settings on a device, in one batch, make it a surrogate."""

import datetime
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import pennylane as qml
from jaxtyping import Bool, Float
from pennylane.exceptions import DeviceError

from qsgd_jax._src import devices, fourier, qnodes
from qsgd_jax._src.checks import check_integer, shots_for
from qsgd_jax._src.circuit import Circuit
from qsgd_jax._src.provenance import VERSION, Provenance
from qsgd_jax._src.surrogate import Readout, Surrogate

# 65,536 tapes are about 4 seconds on lightning.qubit and 1 GB of host memory; 2²²
# coefficients are 32 MiB of constants in every compiled step.
_MAX_SETTINGS = 2**16
_MAX_COEFFICIENTS = 2**22
# Settings off the grid, whose answers follow from those on it, and how far they may be off: what
# devices of single precision round, or what shots exceed less than once in a million probes, as a
# multiple of the expected mean square of eight deviations (χ²).
_FURTHER = 8
_ROUNDING = 1e-5
_CHI_SQUARED = 5.4
_NOISELESS = ("default.qubit", "lightning.qubit", "lightning.kokkos", "lightning.gpu")
_CIRCUIT_PERIOD = 2.0


class _Source(NamedTuple):
    """What is probed: how it answers settings in its own units, and what is known of it."""

    answer: Callable[[np.ndarray], Any]
    name: str
    degree: tuple[int, ...]
    period: tuple[float, ...]
    origin: Any
    device: str
    shots: int | None
    circuits: int = 1
    checksum: int | None = None
    n_outputs: int = 1
    support: Bool[np.ndarray, "outputs *sizes"] | None = None
    traced: bool = False


def probe(
    circuit: Any,
    *,
    n_inputs: int | None = None,
    degree: int | Sequence[int] | None = None,
    period: float | Sequence[float] | None = None,
    batched: bool = False,
    readout: Readout = "expectation",
    device: Any = None,
    shots: int | None = None,
    target_standard_error: float | None = None,
    verbose: bool = False,
) -> Surrogate:
    r"""Ask a circuit at a few settings, in one batch, for the polynomial that it is.

    .. math:: f_o(\theta) = \sum_k c_{ok} \prod_j b_{k_j}(2\pi\theta_j / P_j)

    A circuit whose inputs enter only as angles of Pauli rotations is exactly such a polynomial, on
    a noisy device too as long as the noise does not depend on the angles.
    :math:`\prod_j (2R_j + 1)` settings on a grid determine it. Eight more, off the grid, are
    compared with what it says, unless JAX is tracing.

    Measured coefficients are unbiased. An output that lies within ±1 then has the variance
    :math:`\sum_g K_g(\theta)^2 (1 - f(\theta_g)^2) / S \le 1/S` from S shots at each setting g of
    the grid, with :math:`K_g = \prod_j (1 + 2 \sum_r \cos 2\pi r (\theta_j - \theta_{gj}) / P_j) /
    (2 R_j + 1)`: the error of the probe, the same in every step.

    Args:
      circuit: a `Circuit`, which says the next three by itself, or a QNode, a QNode compiled by
        `qml.qjit`, or any function, whose one argument is the vector of inputs, in their own units.
        `functools.partial` binds further arguments.
      n_inputs: n, number of inputs.
      degree: R, how many rotations by θ_j an input's angle is encoded by (more where the angle is
        a multiple of it), one number for all or one for each input.
      period: P, in the units of the input; by default 2π. A rotation that is controlled by a
        qubit turns by halves: 4π, and twice the degree.
      batched: whether the QNode or function takes all settings at once, `(settings, n_inputs)`,
        and answers with as many rows.
      readout: `"expectation"`, or `"probabilities"` of all bitstrings, for `sampled`. A `Circuit`
        is asked for it; of anything else it states what the outputs are.
      device: a PennyLane device, by name or open; it replaces a QNode's own. A `Circuit` is run on
        `"lightning.qubit"` by default.
      shots: how often each setting is measured; `None` for exact answers, or as often as the
        device or QNode says. Of a function: of how many its answers are the means.
      target_standard_error: σ, instead of `shots`: `⌈1/σ²⌉` shots, with which no output within
        ±1 has a greater standard error.
      verbose: print what the probe costs before it is run.

    Returns:
      The surrogate; traced where the circuit's angles or a bound argument are.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is missing, or out of range; the device is not installed, too
        small or cannot answer; the grid is too large; or an answer has the wrong shape, is not
        finite, or does not belong to a polynomial of this degree and period.

    Example:
      >>> import numpy as np, pennylane as qml, qsgd_jax as qsgd
      >>> @qml.qnode(qml.device("lightning.qubit", wires=2))
      ... def mine(x):
      ...     for wire in (0, 1):
      ...         qml.RY(x[wire], wire)
      ...     qml.CRZ(0.3, (0, 1))
      ...     return [qml.expval(qml.X(wire)) for wire in (0, 1)]
      >>> surrogate = qsgd.probe(mine, n_inputs=2, degree=1)
      >>> print(*(f"{x:.3f}" for x in surrogate.evaluate([np.array(0.1), np.array(0.2)])))
      0.099 0.199

    References:
      Schuld, Sweke, Meyer, arXiv:2008.08605; Schreiber, Eisert, Meyer, arXiv:2206.11740.
    """
    for name, value in (("batched", batched), ("verbose", verbose)):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name}={value!r} must be True or False.")
    if readout not in get_args(Readout):
        allowed = " or ".join(map(repr, get_args(Readout)))
        raise ValueError(f"readout={readout!r} must be {allowed}.")
    if shots is not None:
        check_integer("shots", shots, 1, 2**31 - 1)
    if target_standard_error is not None:
        if shots is not None:
            raise ValueError(
                f"shots={shots} and target_standard_error={target_standard_error}: one of them "
                "must be None."
            )
        shots = shots_for(target_standard_error, 1.0)
    given = {"n_inputs": n_inputs, "degree": degree, "period": period}
    if isinstance(circuit, Circuit):
        said = {name: value for name, value in given.items() if value is not None}
        if said or batched:
            raise ValueError(f"{said or 'batched=True'}: allowed is None, as a Circuit says it.")
        source = _of_circuit(circuit, readout, device, shots)
    else:
        source = _of_function(circuit, batched, device, shots, *_checked(**given))
    return _probed(source, readout, verbose)


def _checked(n_inputs: Any, degree: Any, period: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The degree and the period of each input."""
    if n_inputs is None or degree is None:
        name = "n_inputs" if n_inputs is None else "degree"
        raise ValueError(
            f"{name}=None: allowed is a number, "
            + ("of the arguments" if n_inputs is None else "how often each input enters")
            + ". Only a Circuit says it itself."
        )
    check_integer("n_inputs", n_inputs, 1, 16)
    degrees = degree if isinstance(degree, (Sequence, np.ndarray)) else [degree] * n_inputs
    period = 2 * math.pi if period is None else period
    periods = period if isinstance(period, (Sequence, np.ndarray)) else [period] * n_inputs
    for name, values in (("degree", degrees), ("period", periods)):
        if isinstance(values, str) or len(values) != n_inputs:
            raise ValueError(
                f"{name}={values!r} must be one number, or one for each of {n_inputs}."
            )
    for value in degrees:
        check_integer("degree", value, 1, 2**15)
    for value in periods:
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(f"period={period!r} must be positive and finite.")
    return tuple(map(int, degrees)), tuple(map(float, periods))


def _of_circuit(circuit: Circuit, readout: Readout, device: Any, shots: int | None) -> _Source:
    device = devices.open_device("lightning.qubit" if device is None else device, circuit.n_qubits)
    shots = devices.n_shots(circuit, device, shots)
    # A noisy device may answer with all coefficients, and so may a circuit of other gates.
    known = circuit.traced and type(circuit) is Circuit and device.name in _NOISELESS
    size = circuit.n_qubits, circuit.depth, circuit.uploads
    return _Source(
        answer=lambda theta: devices.run(circuit, device, theta, readout, shots),
        name=f"Circuit(n_qubits={size[0]}, depth={size[1]}, uploads={size[2]})",
        degree=(circuit.uploads,) * circuit.n_qubits,
        period=(_CIRCUIT_PERIOD,) * circuit.n_qubits,
        origin=circuit.origin,
        device=device.name,
        shots=shots,
        checksum=None if circuit.traced else checksum(circuit),
        n_outputs=circuit.n_outputs(readout),
        support=_support(*size, readout) if known else None,
        traced=circuit.traced,
    )


def checksum(circuit: Circuit) -> int:
    """A number that tells circuits apart: coefficients mean nothing for another."""
    shape = np.array([circuit.n_qubits, circuit.depth, circuit.uploads])
    return zlib.crc32(shape.tobytes() + np.asarray(circuit.angles, np.float64).tobytes())


def _of_function(
    circuit: Any,
    batched: bool,
    device: Any,
    shots: int | None,
    degree: tuple[int, ...],
    period: tuple[float, ...],
) -> _Source:
    if not callable(circuit):
        raise TypeError(f"circuit={circuit!r} must be a Circuit, a QNode or a function.")
    call, n = qnodes.call_of(circuit), len(degree)
    plan, where = qnodes.Plan(1, shots), "a function"
    if call.is_qnode:
        call = qnodes.on_device(call, device, shots, n)
        where = call.function.device.name
        if not call.is_traced:
            plan = qnodes.plan(call, np.zeros((1, n) if batched else n))
            if plan.shots is None and devices.measures_only(call.function.device):
                raise ValueError(f"shots=None: {where!r} can only measure; say how often.")
    elif device is not None:
        raise ValueError(f"device={device!r}: allowed is None, unless the circuit is a QNode.")
    elif isinstance(qnode := getattr(call.function, "original_function", None), qml.QNode):
        if shots is not None:
            raise ValueError(
                f"shots={shots}: allowed is None, as a compiled QNode measures as often as it was "
                "compiled to."
            )
        plan, where = qnodes.Plan(1, qnode.shots.total_shots), qnode.device.name
    return _Source(
        answer=functools.partial(qnodes.values, call, batched=batched),
        name=call.name,
        degree=degree,
        period=period,
        origin=np.zeros(n),
        device=where,
        shots=plan.shots,
        circuits=plan.circuits,
        traced=call.is_traced,
    )


def _probed(source: _Source, readout: Readout, verbose: bool) -> Surrogate:
    degree, scale = source.degree, np.array(source.period) / 2
    n, n_grid = len(degree), fourier.n_settings(degree)
    if n_grid > _MAX_SETTINGS or n_grid * source.n_outputs > _MAX_COEFFICIENTS:
        raise ValueError(
            f"{source.name} of degree={degree} needs {n_grid} settings, with {source.n_outputs} "
            f"outputs each; allowed are at most {_MAX_SETTINGS} settings and {_MAX_COEFFICIENTS} "
            "values. A Circuit (no other) that no grid can hold is run by qsgd_jax.Direct."
        )
    grid = fourier.probe_grid(degree)
    further = np.random.default_rng(0).uniform(-1, 1, (0 if source.traced else _FURTHER, n))
    settings = np.concatenate([grid, further]) * scale
    if verbose:
        print(_cost(source, n_grid, len(further)))
    try:
        values = source.answer(source.origin + settings)
    except DeviceError as error:
        raise ValueError(f"{source.name}: device={source.device!r} refuses it: {error}") from error
    concrete = isinstance(values, np.ndarray)
    if concrete and not np.isfinite(values).all():
        raise ValueError(f"{source.name} on {source.device!r} answers with values not finite.")
    values, others = values[:n_grid], values[n_grid:]
    if values.size > _MAX_COEFFICIENTS:
        raise ValueError(f"{values.size} coefficients; at most {_MAX_COEFFICIENTS} are allowed.")
    errors = None
    if concrete and not source.traced:
        _compare(source, values, others, fourier.interpolation(further, degree))
        if source.shots is not None:
            errors = _standard_errors(values, source.shots, readout, degree)
    support = None if source.support is None else np.flatnonzero(source.support)
    return Surrogate(
        fourier.coefficients(values, degree),
        source.origin,
        errors,
        degree=degree,
        period=source.period,
        readout=readout,
        support=None if support is None else tuple(support.tolist()),
        provenance=_provenance(source),
    )


def _cost(source: _Source, n_grid: int, n_further: int) -> str:
    circuits = (n_grid + n_further) * source.circuits
    measured = "exact answers"
    if source.shots is not None:
        measured = f"{source.shots:,} shots each, {source.shots * circuits:,} in all"
    return (
        f"probe of {source.name} on {source.device}: {n_grid:,} settings on the grid and "
        f"{n_further} off it, {circuits:,} circuits, {measured}"
    )


def _compare(
    source: _Source,
    values: Float[np.ndarray, "grid outputs"],
    others: Float[np.ndarray, "further outputs"],
    prediction: Float[np.ndarray, "further grid"],
) -> None:
    """Refuse answers off the grid that are not what those on it imply."""
    misfit = others - prediction @ values
    size = max(1.0, np.abs(values).max(initial=0))
    if source.shots is None:
        wrong = np.abs(misfit).max(initial=0) > _ROUNDING * size
    else:
        wrong = np.mean(misfit**2) > _CHI_SQUARED * 2 * size**2 / source.shots
    if wrong:
        raise ValueError(
            f"{source.name} on {source.device!r} is no trigonometric polynomial of degree="
            f"{source.degree} and period={source.period}: at {len(others)} settings off the grid "
            f"it is up to {np.abs(misfit).max():.2g} off what the {len(values)} on it imply. Is a "
            "degree larger, a period another, or an input encoded in another way? (A rotation "
            "controlled by a qubit has period 4π and twice the degree.) "
            + ("Or does it measure? shots= says how often." if source.shots is None else "")
        )


def _standard_errors(
    values: Float[np.ndarray, "grid outputs"], shots: int, readout: Readout, degree: tuple[int, ...]
) -> Float[np.ndarray, "outputs *sizes"]:
    # An output that lies within ±size has at most this variance in one shot. It is not taken to
    # be below that of one odd outcome among all, also where none was seen.
    size = max(1.0, np.abs(values).max())
    one_shot = size**2 - values**2 if readout == "expectation" else values * (1 - values)
    return np.sqrt(fourier.variances(np.maximum(one_shot, size**2 / shots) / shots, degree))


def _provenance(source: _Source) -> Provenance:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    versions = ("qsgd_jax", VERSION), ("pennylane", qml.version())
    return Provenance(source.name, source.checksum, source.device, source.shots, now, versions)


@functools.cache
def _support(n_qubits: int, depth: int, uploads: int, readout: Readout) -> Bool[np.ndarray, "..."]:
    """Which coefficients the circuit has at angles of no special value."""
    found = np.zeros(())
    for seed in (1, 2):
        surrogate = probe(Circuit(n_qubits, depth, uploads, seed=seed), readout=readout)
        found = found + np.abs(surrogate.coefficients)
    return found > 1e-12
