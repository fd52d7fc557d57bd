"""Screen a second moment after the cascade: none, of each entry, of each output.

The protocol, fixed before the runs, heads `experiments/records/second_moment.md`.

`python -m experiments.spectral.second_moment --data PATH` runs it and goes on from what is there;
`--pack PATH` keeps what the tables are made of; `--report FILE` writes them between the markers of
the record.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.spectral_time import is_axes_or_none, matrix_axes
from experiments.engine import report
from experiments.engine.contender import Contender, Hyper
from experiments.engine.plan import FIRST_TUNING_SEED, Plan, best_trial, losses_of_trials
from experiments.engine.results import Job, Result, Results, read_results, write_compressed
from experiments.engine.runner import Bench, run_jobs
from experiments.engine.statistics import bootstrap, curves_of, sign_flip_p
from experiments.spectral.__main__ import PACKED, TASKS, open_workload

DECAYS = (0.9, 0.95, 0.99)
FACTORS = (0.7, 1.0, 1.4)
STEPS = 500
SEEDS = 5
TUNING_SEEDS = 2
# Of the best trial of `spectral-polar` in the screening of the spectral form.
BEST: dict[str, Hyper] = {
    "characters": {"learning_rate": 0.021591, "weight_decay": 0.00024342, "warmup": 0.069074},
    "word-problems": {"learning_rate": 0.010514, "weight_decay": 0.12840, "warmup": 0.11707},
}
LABELS = {"none": "none", "entry": "of each entry", "row": "of each output"}


def evened(form: str, decay: Any) -> optax.GradientTransformation:
    """Divide updates of matrices by the root of v, and give them their sizes again.

    The package has the form that was chosen; here are both, for the runs to be repeated.

    Args:
      form: `"entry"` or `"row"`.
      decay: β₂.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        inputs = jax.tree.map(lambda axes: axes[0], matrix_axes(params), is_leaf=is_axes_or_none)

        def mean(o: Any, v: Any, axes: tuple[int, ...]) -> Any:
            squares = o**2
            if form == "row":
                squares = jnp.mean(squares, axis=axes, keepdims=True)
            return decay * v + (1 - decay) * squares

        def quotient(o: Any, v: Any) -> Any:
            x = o / jnp.sqrt(v + 1e-16)
            return x * jnp.sqrt(jnp.mean(o**2) / jnp.mean(x**2))

        state = jax.tree.map(mean, updates, state, inputs)
        return jax.tree.map(quotient, updates, state), state

    return optax.GradientTransformation(init, update)


def _build(form: str) -> Callable[..., optax.GradientTransformation]:
    """As `superpositional_muon`, with either form after the cascade."""

    def build(hyper: Mapping[str, Any], schedule: Any) -> optax.GradientTransformation:
        decay = hyper["weight_decay"]
        matrices = optax.chain(
            qsgd.scale_by_spectral_superposition(),
            optax.identity() if form == "none" else evened(form, hyper["decay"]),
            optax.add_decayed_weights(decay),
            optax.scale_by_learning_rate(schedule),
        )
        rest = optax.adamw(schedule, b2=0.99, weight_decay=decay, nesterov=True)
        return optax.partition({True: matrices, False: rest}, _are_matrices)

    return build


def _are_matrices(params: Any) -> Any:
    return jax.tree.map(lambda axes: axes is not None, matrix_axes(params), is_leaf=is_axes_or_none)


CONTENDERS = {name: Contender(name, label, _build(name)) for name, label in LABELS.items()}
Run = Callable[[Iterable[Job], str], list[Result]]


def compare(plan: Plan, run: Run) -> None:
    """Choose a decay rate for each form and a learning rate for each task, and run other seeds.

    Args:
        plan: Which tasks and forms, over how many steps and seeds.
        run: Runs jobs under a label, and returns their results.
    """
    decays = {name: DECAYS if name != "none" else (0.0,) for name in plan.contenders}

    def trials(name: str, over: Iterable[float], factors: Iterable[float]) -> list[Job]:
        return [
            plan.job(
                "tuning",
                task,
                plan.contenders[name],
                f"{decay:g} x {factor:g}",
                hyper | {"learning_rate": factor * hyper["learning_rate"], "decay": decay},
                FIRST_TUNING_SEED + seed,
            )
            for task, hyper in ((task, BEST[task]) for task in plan.horizons)
            for decay in over
            for factor in factors
            for seed in range(plan.tuning_seeds)
        ]

    first = run((job for name in decays for job in trials(name, decays[name], (1.0,))), "decay")
    decay = {name: best_decay([x for x in first if x["contender"] == name]) for name in decays}
    rates = run((job for name in decays for job in trials(name, [decay[name]], FACTORS)), "rate")
    finals = []
    for task, contender in plan.pairs():
        of_pair = [x for x in rates if (x["workload"], x["contender"]) == (task, contender.name)]
        finals += plan.final(task, contender, best_trial(of_pair))
    run(finals, "final")


def best_decay(results: Sequence[Result]) -> float:
    """The decay rate of the lowest mean of the tasks' losses."""
    losses = losses_of_trials(results)
    rates = {x["trial"]: x["hyper"]["decay"] for x in results}
    return rates[min(losses, key=lambda trial: losses[trial])]


def tables(results: Sequence[Result]) -> str:
    """What was tried, and what came of it on the test windows, as markdown."""
    tasks = list(dict.fromkeys(x["workload"] for x in results))

    def found(phase: str, task: str, form: str) -> list[Result]:
        wanted = (phase, task, form)
        return [x for x in results if (x["phase"], x["workload"], x["contender"]) == wanted]

    tried, final = [], []
    losses: dict[str, list[np.ndarray]] = {form: [] for form in LABELS}
    for task in tasks:
        for form, label in LABELS.items():
            of_trials = losses_of_trials(found("tuning", task, form))
            tried += [
                [f"{task}: {label}", *trial.split(" x "), f"{loss:.4f}"]
                for trial, loss in of_trials.items()
            ]
            losses[form].append(curves_of(found("final", task, form))[:, -1])
    for place, task in enumerate([*tasks, "mean of both"]):
        for form, label in LABELS.items():
            loss, none = (
                np.mean(losses[x], axis=0) if place == len(tasks) else losses[x][place]
                for x in (form, "none")
            )
            hypers = found("final", task, form)
            hyper = hypers[0]["hyper"] if hypers else {}
            change = bootstrap(100 * (loss / none - 1))
            final.append(
                [
                    f"{task}: {label}",
                    f"{hyper['decay']:g}" if hyper and form != "none" else "–",
                    f"{hyper['learning_rate']:.4f}" if hyper else "–",
                    f"{loss.mean():.4f}",
                ]
                + (
                    ["", ""]
                    if form == "none"
                    else [
                        f"{change.mean:+.2f} % [{change.low:+.2f}, {change.high:+.2f}]",
                        f"{sign_flip_p(loss - none):.3f}",
                    ]
                )
            )
    return "\n\n".join(
        [
            reporting.markdown_table(
                ("task: second moment", "β₂", "learning rate", "test loss", "to none", "p"), final
            ),
            "What was tried (validation loss, mean of two seeds):",
            reporting.markdown_table(
                ("task: second moment", "β₂", "times the learning rate", "loss"), tried
            ),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the screening, or write its tables."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.spectral.second_moment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="folder of all data")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/second_moment"),
        metavar="PATH",
        help="folder of the runs (default: %(default)s)",
    )
    parser.add_argument("--pack", type=Path, metavar="PATH", help="copy the runs there, compressed")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the tables there")
    args = parser.parse_args(argv)
    if args.data is args.pack is args.report is None:
        parser.error("nothing to do: give --data, --pack or --report")
    results = args.output / "results.jsonl"
    if args.data is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        reporting.write_json(args.output / "provenance.json", reporting.provenance())
        plan = Plan(
            dict.fromkeys(TASKS, STEPS),
            CONTENDERS,
            seeds=SEEDS,
            tuning_seeds=TUNING_SEEDS,
            shares=(1.0,),
        )
        bench = Bench(partial(open_workload, args.data), CONTENDERS)
        kept = Results(results)
        compare(plan, lambda jobs, label: run_jobs(jobs, bench, kept, label=label))
    if args.pack is not None:
        args.pack.mkdir(parents=True, exist_ok=True)
        write_compressed(args.pack / PACKED, read_results(results))
        shutil.copy(args.output / "provenance.json", args.pack)
    if args.report is not None:
        packed = args.output / PACKED
        found = read_results(packed if packed.exists() else results)
        old = args.report.read_text() if args.report.exists() else ""
        reporting.write_atomically(args.report, report.replaced(old, tables(found)))


if __name__ == "__main__":
    main()
