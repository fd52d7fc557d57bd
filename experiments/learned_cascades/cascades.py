"""A cascade of three circuits as numbers that can be learned, and a course of them over a training.

A stage has three angles and a *fill*: how much of the next circuit's range its answers take up. The
update's root mean square is fixed, so that what follows the last stage has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import qsgd_jax as qsgd
from benchmarks.spectral_devices import angles_of
from experiments.engine.contender import Contender

STAGES, ANGLES = 3, 3
EARLY = tuple(f"angle_{s}_{j}" for s in range(STAGES) for j in range(ANGLES)) + tuple(
    f"fill_{s}" for s in range(STAGES - 1)
)
LATE = tuple(f"late_{name}" for name in EARLY)
Numbers = Mapping[str, Any]


def hand_set(**device: Any) -> qsgd.SpectralCascade:
    """Return three stages of Polar Express, where learning begins.

    Args:
        device: And shots; exact by default.
    """
    return qsgd.spectral_cascade("polar-express", stages=STAGES, **device)


def start(fill: float = 0.0) -> dict[str, float]:
    """Return the numbers of the hand-set cascade.

    Args:
        fill: x of each stage but the last; 0 is the hand-set one.
    """
    angles = np.concatenate(angles_of(hand_set())).tolist()
    return dict(zip(EARLY, [*angles, *[fill] * (STAGES - 1)], strict=True))


def cascade(numbers: Numbers, share: Any = None) -> qsgd.SpectralCascade:
    r"""Return the cascade that numbers, which may be traced, stand for.

    .. math:: \alpha_{sj}(t) = \alpha_{sj} + t\,\delta_{sj}, \qquad i_{s+1} = e^{x_s^2}

    Args:
        numbers: α by `EARLY`'s names, and of a course δ by `LATE`'s.
        share: t, how much of the training is done; `None` where there is no course.
    """
    now = {name: numbers[name] for name in EARLY}
    if share is not None:
        now = {name: now[name] + share * numbers[f"late_{name}"] for name in EARLY}
    angles = [[now[f"angle_{s}_{j}"] for j in range(ANGLES)] for s in range(STAGES)]
    xp: Any = np if all(isinstance(x, float) for x in now.values()) else jnp
    widths = [xp.exp(now[f"fill_{s}"] ** 2) for s in range(STAGES - 1)]
    return qsgd.spectral_cascade(
        angles=[xp.stack(one) for one in angles], input_scales=(1.0, *widths)
    )


class Changing(NamedTuple):
    """The state of an optimizer whose cascade changes.

    Attributes:
        count: Steps done.
        inner: State of the optimizer, which is the same for all cascades.
    """

    count: Any
    inner: Any


def fixed(hyper: Numbers, schedule: Any) -> optax.GradientTransformation:
    """Build the spectral form with the cascade of these hyperparameters.

    Args:
        hyper: Weight decay, momentum and the cascade's numbers.
        schedule: Of learning rates.
    """
    return _optimizer(hyper, schedule, cascade(hyper))


def course(hyper: Numbers, schedule: Any) -> optax.GradientTransformation:
    """Build the spectral form whose cascade changes from the first step to the last.

    Args:
        hyper: Likewise, and `steps`.
        schedule: Of learning rates.
    """
    return changing(hyper, schedule, lambda share: cascade(hyper, share))


def changing(
    hyper: Numbers, schedule: Any, at: Callable[[Any], qsgd.SpectralCascade]
) -> optax.GradientTransformation:
    """Build the spectral form with another cascade in each step.

    Args:
        hyper: Weight decay, momentum and `steps`.
        schedule: Of learning rates.
        at: From how much of the training is done to the cascade.
    """

    def init(params: Any) -> Changing:
        return Changing(jnp.int32(0), _optimizer(hyper, schedule, hand_set()).init(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        now = _optimizer(hyper, schedule, at(state.count / hyper["steps"]))
        updates, inner = now.update(updates, state.inner, params)
        return updates, Changing(state.count + 1, inner)

    return optax.GradientTransformation(init, update)


def _optimizer(hyper: Numbers, schedule: Any, one: Any) -> optax.GradientTransformation:
    decay = hyper["weight_decay"]
    return qsgd.superpositional_muon(
        schedule, one, beta=hyper["beta"], weight_decay=decay, adam_weight_decay=decay
    )


FIXED, COURSE = "fixed", "course"
FORMS = {
    FIXED: Contender(FIXED, "one cascade", fixed),
    COURSE: Contender(COURSE, "a course of cascades", course),
}
