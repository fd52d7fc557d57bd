"""What is run: the spectral form with each device's cascades, at the exact one's best settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import qsgd_jax as qsgd
from experiments.engine.contender import Contender
from experiments.engine.plan import best_trial
from experiments.engine.results import Job, Result
from experiments.noisy_cascades.probing import (
    DRIFT,
    PROBES,
    REFITTED,
    from_numbers,
    hand_set,
)
from experiments.spectral_study.arms import RATES, SPECTRAL
from experiments.spectral_study.plan import Task

TASKS = (
    Task("wikitext", 1000, RATES, shares=(), seeds=PROBES),
    Task("hwu64", 1000, RATES, shares=(), seeds=PROBES),
)
NAME = "device"
REFRESHED, NEVER_REFRESHED = "refreshed ten times", "never refreshed"
Cascades = Mapping[str, Mapping[str, Sequence[Any]]]


class Arm(NamedTuple):
    """A device, and what is done with its answers.

    Attributes:
        device: By name.
        how: Which scale, or how often it is probed.
    """

    device: str
    how: str


def table(cascades: Cascades) -> tuple[np.ndarray, dict[Arm, list[tuple[int, int]]]]:
    """Return all cascades, and of each arm the first and last that each seed uses.

    Args:
        cascades: From `probing.probed`.
    """
    rows: list[Any] = []
    places: dict[Arm, list[tuple[int, int]]] = {}
    for device, ways in cascades.items():
        for how, each in ways.items():
            first, last = len(rows), len(rows) + len(each) - 1
            rows += each
            if device == DRIFT and how == REFITTED:
                places[Arm(device, NEVER_REFRESHED)] = [(first, first)] * PROBES
                places[Arm(device, REFRESHED)] = [(first, last)] * PROBES
            elif device != DRIFT:
                seeds = range(first, last + 1) if len(each) > 1 else [first] * PROBES
                places[Arm(device, how)] = [(place, place) for place in seeds]
    return np.array(rows, np.float32), places


class Count(NamedTuple):
    """The state.

    Attributes:
        count: Steps done.
        inner: State of the optimizer, which is the same for all cascades.
    """

    count: Any
    inner: Any


def contender(rows: np.ndarray) -> Contender:
    r"""Return the spectral form that goes from one cascade of a table to another.

    .. math:: i(t) = i_0 + \lfloor (i_1 - i_0 + 1) \, t / T \rfloor

    Args:
        rows: The table; i₀ and i₁ are hyperparameters, so that all arms are one program.
    """
    cascades = jnp.asarray(rows)

    def build(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
        decay = hyper["weight_decay"]

        def optimizer(cascade: qsgd.SpectralCascade) -> optax.GradientTransformation:
            return qsgd.superpositional_muon(
                schedule, cascade, beta=hyper["beta"], weight_decay=decay, adam_weight_decay=decay
            )

        def init(params: Any) -> Count:
            return Count(jnp.int32(0), optimizer(hand_set()).init(params))

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            first, last = hyper["first"], hyper["last"]
            share = state.count / hyper["steps"]
            place = jnp.int32(first + jnp.floor((last - first + 1) * share))
            now = optimizer(from_numbers(cascades[place], hand_set()))
            updates, inner = now.update(updates, state.inner, params)
            return updates, Count(state.count + 1, inner)

        return optax.GradientTransformation(init, update)

    return Contender(NAME, "cascades of devices", build)


def jobs(
    task: Task, places: Mapping[Arm, Sequence[tuple[int, int]]], tuning: Sequence[Result]
) -> list[Job]:
    """Return the runs on a task.

    Args:
        task: The task.
        places: From `table`.
        tuning: The spectral study's runs, whose best settings without a second moment are taken.
    """
    settings = best_trial(
        [
            x
            for x in tuning
            if (x["phase"], x["workload"], x["contender"]) == ("tuning", task.name, SPECTRAL)
        ]
    )
    line = {"contender": NAME, "settings": "cascades of devices"}
    return [
        task.job(
            "final",
            line
            | {
                "trial": " | ".join(arm),
                "hyper": settings["hyper"] | {"first": float(first), "last": float(last)},
            },
            seed=seed,
        )
        for arm, each in places.items()
        for seed, (first, last) in enumerate(each)
    ]


def runs_of(task: Task, arm: Arm, lines: Sequence[Result]) -> list[Result]:
    """Return an arm's runs on a task, by seed.

    Args:
        task: The task.
        arm: The arm.
        lines: All runs.
    """
    found = [x for x in lines if (x["workload"], x["trial"]) == (task.name, " | ".join(arm))]
    return sorted(found, key=lambda x: x["seed"])


def kept(adamw: np.ndarray, exact: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    r"""Return the share of the gain over AdamW that is left.

    .. math:: \frac{\langle L_\text{AdamW} - L_\text{noisy} \rangle}
        {\langle L_\text{AdamW} - L_\text{exact} \rangle}

    Args:
        adamw: Final losses, the last axis the seeds; so of the others.
        exact: With exact circuits.
        noisy: With a device's.
    """
    return (adamw - noisy).mean(-1) / (adamw - exact).mean(-1)
