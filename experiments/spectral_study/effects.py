"""The study's runs, and what they say: paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from experiments.engine.contender import BASELINE
from experiments.engine.results import Result
from experiments.engine.statistics import Estimate, bootstrap, curves_of, holm, sign_flip_p
from experiments.spectral_study.arms import ARMS, MUON, SPECTRAL
from experiments.spectral_study.controls import CONTROLS

Losses = Float[np.ndarray, " seeds"]
ARM_OF = {x.name: name for name, variants in ARMS.items() for x in variants}
SIGNIFICANT = 0.01


@dataclass(frozen=True)
class Study:
    """The stored runs, found by what they are of.

    Attributes:
        lines: Of the three optimizers.
        controls: Of the controls.
        seconds: Of a step, by task and optimizer, one a round.
    """

    lines: Sequence[Result]
    controls: Sequence[Result] = ()
    seconds: Mapping[str, Mapping[str, Sequence[float]]] | None = None

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks with final runs of all three."""
        found = dict.fromkeys(x["workload"] for x in self.lines)
        return [task for task in found if all(self.finals(task, arm) for arm in ARMS)]

    def horizon(self, task: str) -> int:
        """Return the length of the longest runs on a task."""
        return max(x["steps"] for x in self.lines if x["workload"] == task)

    def finals(self, task: str, arm: str, share: float = 1.0) -> list[Result]:
        """Return the final runs over this share of the horizon, by seed."""
        steps = round(share * self.horizon(task))
        found = [
            x
            for x in self.lines
            if (x["phase"], x["workload"], x["steps"]) == ("final", task, steps)
            and ARM_OF[x["contender"]] == arm
        ]
        return sorted(found, key=lambda x: x["seed"])

    def losses(self, task: str, arm: str, share: float = 1.0) -> Losses:
        """Return the final losses, ordered by seed."""
        return curves_of(self.finals(task, arm, share))[:, -1]

    def of_controls(self, task: str) -> dict[str, list[Result]]:
        """Return the final runs of controls on a task, by name; those with all seeds."""
        found: dict[str, list[Result]] = {}
        for x in self.controls:
            if (x["phase"], x["workload"]) == ("final", task):
                found.setdefault(x["contender"], []).append(x)
        most = max(map(len, found.values()), default=0)
        return {name: found[name] for name in CONTROLS if len(found.get(name, ())) == most > 0}


@dataclass(frozen=True)
class Effect:
    """A paired difference, in per cent of the other's loss.

    Attributes:
        change: Its mean.
        p: By flips of sign.
    """

    change: Estimate
    p: float

    @classmethod
    def of(cls, losses: Losses, other: Losses, alternative: str = "two-sided") -> Effect:
        """Of runs with the same seeds, in the same order."""
        if len(losses) != len(other):
            raise ValueError(f"{len(losses)} and {len(other)} runs are no pairs.")
        change = 100 * (losses / other - 1)
        return cls(bootstrap(change), sign_flip_p(change, alternative))

    def __str__(self) -> str:
        """As tables show it."""
        return per_cent(self.change)


def per_cent(x: Estimate) -> str:
    """Return an estimate with its interval, as tables show it.

    Args:
        x: In per cent.
    """
    return f"{x.mean:+.2f} % [{x.low:+.2f}, {x.high:+.2f}]"


def against_adamw(study: Study, tasks: Iterable[str]) -> dict[tuple[str, float], Effect]:
    """Return the spectral form's differences to AdamW's whole runs, by task and share of the steps.

    Over fewer steps p is that it is not lower, after Holm over the tasks of that share.

    Args:
        study: The runs.
        tasks: Those that count.
    """
    tasks = list(tasks)
    found: dict[tuple[str, float], Effect] = {}
    for share in (0.6, 0.75, 1.0):
        with_share = [task for task in tasks if study.finals(task, SPECTRAL, share)]
        effects = [
            Effect.of(
                study.losses(task, SPECTRAL, share),
                study.losses(task, BASELINE),
                "two-sided" if share == 1.0 else "less",
            )
            for task in with_share
        ]
        adjusted = holm([x.p for x in effects])
        for task, effect, p in zip(with_share, effects, adjusted, strict=True):
            found[task, share] = Effect(effect.change, p)
    return found


def share_reached(effects: Mapping[tuple[str, float], Effect], task: str) -> float:
    """Return the least share of the steps at which a task's loss is below AdamW's.

    Args:
        effects: What `against_adamw` returned.
        task: The task.
    """
    shares = [
        share
        for (name, share), x in effects.items()
        if name == task and x.p < SIGNIFICANT and x.change.mean < 0
    ]
    return min(shares, default=math.inf)


def step_ratio(study: Study, task: str, arm: str = SPECTRAL) -> float:
    """Return the median ratio of a step's time to AdamW's; NaN where it was not measured.

    Args:
        study: The runs.
        task: The task.
        arm: Of the step.
    """
    seconds = (study.seconds or {}).get(task)
    if seconds is None:
        return math.nan
    return float(np.median(np.divide(seconds[arm], seconds[BASELINE])))


def muon_effects(study: Study, tasks: Sequence[str]) -> dict[str, Effect]:
    """Return the spectral form's differences to Muon's, p after Holm, by task.

    Args:
        study: The runs.
        tasks: Those that count.
    """
    effects = [Effect.of(study.losses(t, SPECTRAL), study.losses(t, MUON)) for t in tasks]
    adjusted = holm([x.p for x in effects])
    return {task: Effect(x.change, p) for task, x, p in zip(tasks, effects, adjusted, strict=True)}
