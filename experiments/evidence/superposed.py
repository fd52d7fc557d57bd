"""The method in its forms, and the matched controls of each, as contenders."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

import qsgd_jax as qsgd
from experiments.engine.contender import BASELINE, Contender
from experiments.evidence.controls import Base, Coverage, Kind, matched_control
from experiments.optimizers import classical

QUANTUM_WEIGHT = 0.5  # the paper's "stronger interference"
QUANTUM_WEIGHTS = (0.1, 100.0)
OWN_STREAM = 2511
# Arms of the stored runs whose code has left: a gate on the optimizer's signals, and a control.
RETIRED = {"circuit": "learned circuit", "random-angles": "random angles"}
SWEEP = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SHOTS = (1, 4, 16, 64)  # 40 runs of a second with exact weights take 63 with 64, 204 with 256
KINDS: dict[Kind, str] = {
    "noise": "noise",
    "shuffled": "shuffled weights",
    "signs": "random signs",
    "rates": "fixed rates",
}
FORMS = {"gradient": "Eq. 1", "update": "on the update", "moments": "before the moments"}


def superpositional(
    name: str,
    label: str,
    *,
    weigh: Any,
    quantum_weight: Any = QUANTUM_WEIGHT,
    annealed: bool = False,
    surrogate: Any = None,
    coverage: Coverage = "leading",
    **options: Any,
) -> Contender:
    """Return superpositional AdamW as a contender.

    Args:
        name: What files call it.
        label: What tables call it.
        weigh: As in `superpositional_adamw`.
        quantum_weight: λ, or the range that it is tuned over.
        annealed: Whether λ follows the learning rate's schedule.
        surrogate: As in `superpositional_adamw`.
        coverage: As in `superpositional_adamw`.
        options: Of the contender.
    """
    ranged = isinstance(quantum_weight, tuple)

    def build(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
        strength: Any = hyper["quantum_weight"] if ranged else quantum_weight

        def decayed(count: Any) -> Any:
            return strength * schedule(count) / hyper["learning_rate"]

        return qsgd.superpositional_adamw(
            schedule,
            weight_decay=hyper["weight_decay"],
            quantum_weight=decayed if annealed else strength,
            weigh=weigh,
            surrogate=surrogate,
            coverage=coverage,
            key=_own_key(hyper),
        )

    return Contender(
        name, label, build, quantum_weight=quantum_weight if ranged else None, **options
    )


def matched(
    name: str,
    label: str,
    kind: Kind,
    *,
    base: Base,
    surrogate: qsgd.Surrogate,
    coverage: Coverage,
) -> Contender:
    """Return AdamW with a matched control of a superposition as a contender.

    Args:
        name: What files call it.
        label: What tables call it.
        kind: As in `matched_control`.
        base: As in `matched_control`.
        surrogate: Whose weights are matched.
        coverage: Which coordinates have one.
    """

    def build(hyper: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(
            matched_control(
                optax.scale_by_adam(),
                kind,
                QUANTUM_WEIGHT,
                surrogate,
                coverage,
                base=base,
                key=_own_key(hyper),
            ),
            optax.add_decayed_weights(hyper["weight_decay"]),
            optax.scale_by_learning_rate(schedule),
        )

    return Contender(name, label, build)


def _own_key(hyper: Mapping[str, Any]) -> Any:
    """What an optimizer draws itself must not be what parameters and batches are drawn from."""
    return jax.random.fold_in(jax.random.key(hyper["seed"]), OWN_STREAM)


@functools.cache
def everything() -> dict[str, Contender]:
    """Return every contender of the evidence study that still exists by name, AdamW first."""
    circuit = qsgd.Circuit()
    surrogate = qsgd.probe(circuit)
    probabilities = qsgd.probe(circuit, readout="probabilities")
    adamw = classical()[BASELINE]
    found = [
        *classical().values(),
        dataclasses.replace(adamw, name="adamw-twice", label="AdamW, twice the trials", effort=2),
        superpositional("zero", "λ = 0", weigh="gradient", quantum_weight=0.0),
        superpositional("paper-0.1", "paper, Eq. 1, λ = 0.1", weigh="gradient", quantum_weight=0.1),
        superpositional(
            "paper-tuned",
            "Eq. 1, λ tuned, twice the trials",
            weigh="gradient",
            quantum_weight=QUANTUM_WEIGHTS,
            effort=2,
        ),
        superpositional("update", "on the update", weigh="update"),
        superpositional("annealed", "Eq. 1, λ annealed", weigh="gradient", annealed=True),
        superpositional(
            "everywhere-gradient",
            "everywhere, Eq. 1",
            weigh="gradient",
            coverage="everywhere",
        ),
        superpositional(
            "everywhere", "everywhere, on the update", weigh="update", coverage="everywhere"
        ),
        superpositional(
            "entangled",
            "everywhere, on the update, depth 2",
            weigh="update",
            surrogate=qsgd.probe(qsgd.Circuit(depth=2)),
            coverage="everywhere",
        ),
    ]
    for kind, label in KINDS.items():
        found += [
            matched(
                kind,
                f"control: {label}",
                kind,
                base="gradient",
                surrogate=surrogate,
                coverage="leading",
            ),
            matched(
                f"everywhere-{kind}",
                f"everywhere, control: {label}",
                kind,
                base="update",
                surrogate=surrogate,
                coverage="everywhere",
            ),
        ]
    found += [
        superpositional(
            f"shots-{shots}",
            f"everywhere, on the update, {shots} shots",
            weigh="update",
            surrogate=qsgd.sampled(probabilities, shots),
            coverage="everywhere",
        )
        for shots in SHOTS
    ]
    found += [
        superpositional(
            f"{weigh}-{value:g}", f"{form}, λ = {value:g}", weigh=weigh, quantum_weight=value
        )
        for weigh, form in FORMS.items()
        for value in SWEEP
    ]
    return {contender.name: contender for contender in found}


# Each form of the method with its own controls, and what else has a counterpart of its own.
PAIRS: tuple[tuple[str, str], ...] = (
    *(("paper", kind) for kind in KINDS),
    *(("everywhere", f"everywhere-{kind}") for kind in KINDS),
    ("paper-tuned", "adamw-twice"),
    ("entangled", "everywhere"),
    ("circuit", "random-angles"),
)
SWEEPS: dict[str, dict[float, str]] = {
    f"λ, {form}": {value: f"{weigh}-{value:g}" for value in SWEEP} for weigh, form in FORMS.items()
} | {"shots, everywhere, on the update": {float(shots): f"shots-{shots}" for shots in SHOTS}}
SWEPT_ARMS = frozenset(name for names in SWEEPS.values() for name in names.values())
