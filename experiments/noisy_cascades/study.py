"""What is run: the spectral form with each device's cascades, at the exact one's best settings."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import qsgd_jax as qsgd
from experiments.engine.contender import Contender
from experiments.engine.plan import best_trial
from experiments.engine.results import Job, Result
from experiments.learned_cascades.cascades import changing, hand_set
from experiments.noisy_cascades.probing import (
    DRIFT,
    PROBES,
    from_numbers,
)
from experiments.spectral_study.arms import RATES, SPECTRAL
from experiments.spectral_study.plan import Task

TASKS = (
    Task("wikitext", 1000, RATES, shares=(), seeds=PROBES),
    Task("hwu64", 1000, RATES, shares=(), seeds=PROBES),
)
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
        cascades: What `probing` has written.
    """
    rows: list[Any] = []
    places: dict[Arm, list[tuple[int, int]]] = {}
    for device, ways in cascades.items():
        for how, each in ways.items():
            first, last = len(rows), len(rows) + len(each) - 1
            rows += each
            if device == DRIFT:
                places[Arm(device, NEVER_REFRESHED)] = [(first, first)] * PROBES
                places[Arm(device, REFRESHED)] = [(first, last)] * PROBES
            else:
                seeds = range(first, last + 1) if len(each) > 1 else [first] * PROBES
                places[Arm(device, how)] = [(place, place) for place in seeds]
    return np.array(rows, np.float32), places


def contender(rows: np.ndarray) -> Contender:
    r"""Return the spectral form that goes from one cascade of a table to another.

    .. math:: i(t) = i_0 + \lfloor (i_1 - i_0 + 1) \, t / T \rfloor

    Args:
        rows: The table; i₀ and i₁ are hyperparameters, so that all arms are one program.
    """
    cascades, like = jnp.asarray(rows), hand_set()

    def build(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
        def at(share: Any) -> qsgd.SpectralCascade:
            first, last = hyper["first"], hyper["last"]
            place = jnp.int32(first + jnp.floor((last - first + 1) * share))
            return from_numbers(cascades[place], like)

        return changing(hyper, schedule, at)

    # Runs with other cascades are other runs.
    return Contender(f"cascades {zlib.crc32(rows.tobytes()):08x}", "cascades of devices", build)


def jobs(
    task: Task,
    form: Contender,
    places: Mapping[Arm, Sequence[tuple[int, int]]],
    tuning: Sequence[Result],
) -> list[Job]:
    """Return the runs on a task.

    Args:
        task: The task.
        form: From `contender`.
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
    line = {"contender": form.name, "settings": form.settings}
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
