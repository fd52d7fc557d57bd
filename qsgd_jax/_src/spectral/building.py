"""Making cascades: from polynomials, angles, or the surrogates of a user's own circuits."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from qsgd_jax._src.checks import check_integer
from qsgd_jax._src.spectral import angles as to_angles
from qsgd_jax._src.spectral import polynomials
from qsgd_jax._src.spectral.cascade import SpectralCascade, odd_part, one_for_each_stage
from qsgd_jax._src.spectral.circuit import probed
from qsgd_jax._src.surrogate import Surrogate

_STAGES = {"muon": 5, "polar-express": 3}
# Polar Express divides the argument of each of its polynomials but the last by this, so that
# rounding does not carry a singular value beyond the range of the next.
_SAFETY = 1.01


def spectral_cascade(
    cascade: Any = None,
    *,
    angles: Sequence[Any] | None = None,
    stages: int | None = None,
    input_scales: Sequence[float] | None = None,
    output_scales: Sequence[float] | None = None,
    device: Any = None,
    shots: int | None = None,
) -> SpectralCascade:
    r"""Probe a cascade of one-qubit circuits, which bends singular values towards one.

    .. math:: \sigma \leftarrow o_s \, f_s(\sigma / i_s), \qquad s = 1, 2, \dots

    Each :math:`f_s` is what `spectral_circuit` answers on the device. Of a polynomial :math:`p_s`
    the scales are how far its values reach, so that :math:`|f_s| \le 1`. Noise makes the answers
    smaller: the output scale is fitted to what the device answers (least squares), as far as the
    next stage takes it.

    Args:
      cascade: `"muon"`, five times its quintic; `"polar-express"`, of which three stages train
        as well as five; a sequence of odd polynomials, each by its coefficients of σ, σ³, … or one
        of `numpy.polynomial`; or of surrogates of one input θ with σ = sin(2πθ / period), a
        user's own stages. By default `"polar-express"`.
      angles: instead, the angles of each circuit. They, and the scales, may be traced.
      stages: of a name, how many; by default 5 and 3.
      input_scales: i, of angles or surrogates; by default 1, then how far the stage before reaches.
      output_scales: o, of angles or surrogates; by default 1.
      device: a PennyLane device, by name or open; by default `"lightning.qubit"`, or
        `"default.qubit"` for traced angles. None beside surrogates, which have been probed.
      shots: how often each setting is measured; `None` for exact answers.

    Returns:
      The cascade.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range, a polynomial has an even part, the device cannot
        answer, or a stage leaves the range of the next one.

    Example:
      >>> import qsgd_jax as qsgd
      >>> qsgd.spectral_cascade("muon", stages=3)
      SpectralCascade(3 stages of degree 5, 5, 5, lightning.qubit)

    References:
      Muon: Jordan et al., 2024. Amsel et al., "The Polar Express", arXiv:2505.16932.
    """
    if stages is not None:
        if not isinstance(cascade, str) or angles is not None:
            raise ValueError(f"stages={stages}: allowed is None, unless of a name.")
        check_integer("stages", stages, 1, 32)
    if angles is not None and cascade is not None:
        raise ValueError(f"cascade={cascade!r}: allowed is None, beside angles=.")
    given = _listed("angles", angles) if angles is not None else _stages(cascade)
    own = bool(given) and all(isinstance(stage, Surrogate) for stage in given)
    if own and (device is not None or shots is not None):
        raise ValueError(f"device={device!r}, shots={shots}: allowed is None, of surrogates.")
    if own or angles is not None:
        found = given if own else [probed(one, device, shots) for one in given]
        ones = (1.0,) * len(found)
        outputs = one_for_each_stage(
            "output_scales", ones if output_scales is None else output_scales
        )
        reach = (o * _reach(stage) for stage, o in zip(found[:-1], outputs, strict=False))
        inputs = (1.0, *reach) if input_scales is None else input_scales
        return SpectralCascade(tuple(found), cast(Any, inputs), outputs)
    if input_scales is not None or output_scales is not None:
        raise ValueError(
            f"input_scales={input_scales}, output_scales={output_scales}: allowed is None, unless "
            "of angles or surrogates; those of polynomials follow from them."
        )
    wanted = given or _named(cascade or "polar-express", stages)
    return _of_polynomials([polynomials.odd_coefficients(p) for p in wanted], device, shots)


def _listed(name: str, given: Any) -> list[Any]:
    """A sequence of stages, of which there is one at least."""
    if not isinstance(given, (Sequence, np.ndarray)) or isinstance(given, np.poly1d):
        raise TypeError(f"{name}={given!r} must be a sequence, one for each stage.")
    if not len(given):
        raise ValueError(f"{name}={given!r} must have a stage.")
    if any(np.ndim(one) == 0 and isinstance(one, (int, float, np.number)) for one in given):
        raise TypeError(f"{name}={given!r} must have a sequence for each stage: [[…], …].")
    return list(given)


def _stages(cascade: Any) -> list[Any]:
    if cascade is None or isinstance(cascade, str):
        return []
    return _listed("cascade", cascade)


def _reach(stage: Any) -> float:
    """How far an answer goes, where that is known: at least 1."""
    known = isinstance(stage, Surrogate) and not stage.traced and stage.n_inputs == 1
    return max(1.0, polynomials.peak(odd_part(stage))[1]) if known else 1.0


def _named(name: str, stages: int | None) -> list[Any]:
    if name not in _STAGES:
        raise ValueError(
            f"cascade={name!r} must be one of {', '.join(map(repr, _STAGES))}, or polynomials, or "
            "surrogates."
        )
    stages = stages or _STAGES[name]
    if name == "muon":
        return [polynomials.MUON] * stages
    table = polynomials.POLAR_EXPRESS
    table = table + table[-1:] * (stages - len(table))
    powers = np.array([1, 3, 5])
    return [row / _SAFETY**powers for row in np.array(table[: stages - 1]).reshape(-1, 3)] + [
        np.array(table[stages - 1])
    ]


def _of_polynomials(
    wanted: list[polynomials.Odd], device: Any, shots: int | None
) -> SpectralCascade:
    ranges = polynomials.ranges(wanted)
    asked: dict[bytes, Surrogate] = {}  # equal polynomials are one circuit, probed once
    stages, outputs, deviations = [], [], []
    for odd, start, end in zip(wanted, ranges, ranges[1:], strict=False):
        ideal = polynomials.rescaled(odd, start, end) * (1 - to_angles.MARGIN)
        key = ideal.tobytes()
        if key not in asked:
            asked[key] = probed(to_angles.angles(ideal), device, shots)
        factor, deviation = _fitted(odd_part(asked[key]), ideal / (1 - to_angles.MARGIN))
        stages.append(asked[key])
        outputs.append(end * factor)
        deviations.append(deviation)
    return SpectralCascade(tuple(stages), tuple(ranges[:-1]), tuple(outputs), tuple(deviations))


def _fitted(found: polynomials.Odd, ideal: polynomials.Odd) -> tuple[float, float]:
    """The factor that brings an answer nearest to what was wanted, and how far it stays off.

    Where a measured answer reaches too far for the next circuit, the factor is smaller.
    """
    sigma = np.linspace(0, 1, 1001)
    f, wanted = polynomials.value(found, sigma), polynomials.value(ideal, sigma)
    factor = min(float(f @ wanted / (f @ f)), 1 / polynomials.peak(found)[1])
    return factor, float(np.abs(factor * f - wanted).max())
