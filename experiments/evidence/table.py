"""The evidence study's one table: which optimizers meet which tasks, how often, how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.engine.contender import BASELINE, Contender, Hyper
from experiments.engine.plan import Plan
from experiments.engine.workload import SplitName, Workload
from experiments.evidence.superposed import KINDS, RETIRED, SWEEP, SWEPT_ARMS
from experiments.workloads import classification, nonconvex
from experiments.workloads.real import HELD_OUT

PUBLISHED = ", published settings"
SWEPT = ", sweep"  # a task of its own, so that its many arms share no correction with the others
PUBLISHED_HYPER: Hyper = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup": 0.0}
TOPICS, TOPICS_ATTENTION = "topic-order", "topic-order, quantum attention"
DIGITS = {"digits-few": (200, 0.0), "digits-mislabelled": (900, 0.4)}
REAL = ("clinc-domains", "clinc-intents", "characters")
DIMENSIONS = (2, 10, 50, 200)
SCREEN = 0.5
SMOKE_ARMS = (BASELINE, "paper", "noise", "gradient-1", "gradient-10", "shots-1", "shots-16")
PAPER = ("paper-moments", "paper-0.1", "paper")
LANDSCAPE_ARMS = (
    BASELINE,
    "paper",
    "everywhere-gradient",
    "everywhere",
    "entangled",
    "everywhere-noise",
    "everywhere-signs",
    "circuit",
)


@dataclass(frozen=True)
class Part:
    """A part of the study: some tasks with some optimizers.

    Attributes:
        question: What it answers.
        horizons: Length of a run on each task, in steps.
        contenders: Names, AdamW's among them.
        trials: Hyperparameters to try.
        seeds: Final runs.
        points: Evaluations a run.
        tuning_seeds: Runs of each trial.
        batch: Runs in one program, on CPU too where they are tiny.
        published: Whether all run at the paper's settings instead of being tuned.
        screen: As in `Plan`.
    """

    question: str
    horizons: Mapping[str, int]
    contenders: tuple[str, ...]
    trials: int = 8
    seeds: int = 20
    points: int = 10
    tuning_seeds: int = 1
    batch: int = 1
    published: bool = False
    screen: float | None = SCREEN

    def plan(self, known: Mapping[str, Contender]) -> Plan:
        """Return the plan of all of it that still exists.

        Args:
            known: Contenders by name.
        """
        chosen = {name: known[name] for name in self.contenders if name not in RETIRED}
        if self.published:  # the paper's learning rate is constant
            chosen = {name: dataclasses.replace(c, cosine=False) for name, c in chosen.items()}
        return Plan(
            self.horizons,
            chosen,
            trials=self.trials,
            seeds=self.seeds,
            points=self.points,
            tuning_seeds=self.tuning_seeds,
            shares=(1.0,),
            published=PUBLISHED_HYPER if self.published else None,
            screen=None if self.published else self.screen,
        )

    def restricted(self, tasks: Iterable[str]) -> Part:
        """Return the same on some of its tasks.

        Args:
            tasks: Names; others than the part's own are passed over.
        """
        wanted = set(tasks)
        kept = {name: steps for name, steps in self.horizons.items() if name in wanted}
        return dataclasses.replace(self, horizons=kept)

    def smoke(self) -> Part:
        """Return a small likeness that runs in seconds: its figures mean nothing."""
        arms = tuple(name for name in self.contenders if name in SMOKE_ARMS)
        shortest = dict(list(self.horizons.items())[:1])
        return dataclasses.replace(
            self,
            horizons={name: 4 * self.points for name in shortest},
            contenders=arms,
            trials=2,
            seeds=3,
            tuning_seeds=1,
            batch=min(self.batch, 3),
        )


PARTS: dict[str, Part] = {
    "paper": Part(
        "The paper's arms at the paper's settings, with classical and with quantum attention",
        {TOPICS + PUBLISHED: 1875, TOPICS_ATTENTION + PUBLISHED: 1875},  # 15 epochs
        (BASELINE, *PAPER),
        points=15,
        published=True,
    ),
    "tuned": Part(
        "The same task with every arm tuned, and matched controls",
        {TOPICS: 1250},
        (
            BASELINE,
            "adamw-twice",
            *PAPER,
            "paper-tuned",
            *KINDS,
            "update",
            "everywhere",
            "everywhere-noise",
            "entangled",
            "circuit",
        ),
    ),
    "attention": Part(
        "Quantum attention, every arm tuned",
        {TOPICS_ATTENTION: 1250},
        (BASELINE, "paper"),
    ),
    "sweep": Part(
        "More and more of Eq. 1 at the paper's settings",
        {TOPICS + SWEPT: 1875},
        (BASELINE, *(f"gradient-{value:g}" for value in SWEEP)),
        points=15,
        published=True,
    ),
    "small": Part(
        "Few data and wrong labels, where noise may regularise: every arm, every λ, every shot",
        dict.fromkeys(DIGITS, 1000),
        (
            BASELINE,
            "adamw-twice",
            "cautious",
            "paper-moments",  # λ = 0.1 is in the sweep
            "paper",
            "zero",
            "paper-tuned",
            *KINDS,
            "update",
            "annealed",
            "everywhere-gradient",
            "everywhere",
            *(f"everywhere-{kind}" for kind in KINDS),
            "entangled",
            "circuit",
            "random-angles",
            *sorted(SWEPT_ARMS),
        ),
        seeds=40,
        tuning_seeds=5,
        batch=40,
    ),
    "real": Part(
        "Real text: requests in 10 domains and 150 intents, Shakespeare's characters",
        {name: HELD_OUT[name].horizon for name in REAL},
        (BASELINE, "cautious", "paper", "noise", "circuit"),
        seeds=10,
    ),
    "landscapes": Part(
        "Non-convex landscapes in 2 to 200 dimensions",
        {f"{name}-{n}": 2000 for name in nonconvex.NAMES for n in DIMENSIONS},
        LANDSCAPE_ARMS,
        seeds=50,
        tuning_seeds=5,
        batch=50,
        screen=None,  # an excess near 0 has no meaningful share
    ),
}


def needs_data(workload: str) -> bool:
    """Say whether a task reads files.

    Args:
        workload: Its name.
    """
    return workload in REAL


def open_workload(data: Path, name: str, split: SplitName) -> Workload:
    """Return a task of the table.

    Args:
        data: Folder with clinc150 and tinyshakespeare.
        name: Of the task.
        split: What its evaluations read.
    """
    plain = name.removesuffix(PUBLISHED).removesuffix(SWEPT)
    if plain in REAL:
        return HELD_OUT[plain](data, split)
    if plain in DIGITS:
        train_size, wrong = DIGITS[plain]
        return classification.digits(plain, train_size, wrong, split=split)
    if plain in (TOPICS, TOPICS_ATTENTION):
        return classification.topic_order(quantum=plain == TOPICS_ATTENTION, split=split)
    return nonconvex.landscape(*split_name(plain)).workload


def split_name(workload: str) -> tuple[str, int]:
    """Return a landscape's name and dimension.

    Args:
        workload: The task's name.
    """
    name, _, dimension = workload.rpartition("-")
    return name, int(dimension)
