r"""Learn the angles of the circuit that gates AdamW's step, or a classical gate as a control.

The protocol, what was changed in it and when, and the commands of the shipped versions are in
`docs/learned_circuit.md`; tasks and gates in `benchmarks/workloads` and `benchmarks/meta/gates.py`.

A score is the mean of the log ratio of validation losses to those of AdamW at its best learning
rate: half along the way, half at the end of the run. A candidate counts with the best of a few
learning rates around AdamW's. What is minimised is the mean rank among a generation's candidates.
On the validation tasks AdamW has the choice of the same learning rates: there, less than 0 is
better than AdamW.

files: OUTPUT/GATE-SEED/ with history.jsonl (a line a generation), state.msgpack (to go on from),
  numbers.json (what was learned, and where it comes from), learning.png; for circuits also
  circuit.json, which `qsgd_jax.load_superposition` reads.

Examples:
  python -m benchmarks.learn_circuit --gate circuit-1 --start cautious --step-size 0.08 \
      --generations 48
  python -m benchmarks.learn_circuit --gate perceptron-2 --seed 1
  python -m benchmarks.learn_circuit --gate circuit-2 --start circuit-2-0/numbers.json
  python -m benchmarks.learn_circuit --gate circuit-2 --method hypergradients --population 4
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.arguments import not_negative, positive
from benchmarks.meta.gates import Gate, all_gates
from benchmarks.meta.learning import METHODS, Assignment, Record, validate
from benchmarks.meta.objective import Objective
from benchmarks.workloads import synthetic

VALIDATION_SEEDS = 32
VERSION = 6  # of the protocol in docs/learned_circuit.md
CURVES = ("score", "best", "spread")
SMOOTHING = 25  # generations: what is drawn anew in each makes their scores hard to compare


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    gate = all_gates()[args.gate]
    workloads = [synthetic.task(name) for name in args.tasks]
    settings = {"version": VERSION} | {
        key: getattr(args, key)
        for key in ("gate", "method", "population", "episodes", "seed", "step_size", "tasks")
    }
    folder = args.output / f"{gate.name}-{args.seed}"
    try:
        start = _start(args.start, gate, args.seed)
        record = Record(folder, settings | {"start": [float(x) for x in start]})
    except (OSError, ValueError) as error:
        parser.error(str(error))
    rates = args.output / f"adamw_learning_rates-{VERSION}.json"
    given = Assignment(
        gate, workloads, args.population, args.episodes, args.seed, start, args.step_size, rates
    )
    learner = METHODS[args.method](given)
    done = record.resume(learner)
    bar = tqdm(
        range(done, args.generations), desc=folder.name, initial=done, total=args.generations
    )
    for number in bar:
        line = learner.generation(number)
        record.write(learner, number + 1, line)
        bar.set_postfix({key: f"{value:.3f}" for key, value in line.items()}, refresh=False)

    history = {line["generation"]: line for line in record.history()}
    # A run may have gone on for longer than is asked for now.
    known = {0: start} | {number: line["numbers"] for number, line in history.items()}
    if args.generations not in known and record.done() != args.generations:
        parser.error(f"{folder}: what generation {args.generations} had learned is lost.")
    numbers = np.array(known.get(args.generations, learner.numbers), np.float32)
    objective = Objective([synthetic.task(name) for name in args.validation], gate, rates)
    scores = validate(objective, numbers, seeds=args.validation_seeds)
    shown = [history[number] for number in sorted(history) if number <= args.generations]
    content: dict[str, Any] = {
        "benchmark": "learn_circuit",
        "provenance": record.provenance(),
        "settings": settings | {"start": args.start or "random", "generations": args.generations},
        "numbers": [float(x) for x in numbers],
        "score": float(np.mean([line["score"] for line in shown[-10:]])) if shown else None,
        "validation": scores,
        "validation_score": float(np.mean(list(scores.values()))),
        "history": [{k: line[k] for k in ("generation", *CURVES)} for line in shown],
    }
    reporting.write_json(folder / "numbers.json", content)
    if shown:
        _plot(folder / "learning.png", content)
    _save_circuit(folder / "circuit.json", gate, content)
    reporting.print_table(
        f"{folder.name}: log ratio to AdamW, at the best of a few learning rates (less is better)",
        ["task", "score"],
        [[name, f"{value:+.3f}"] for name, value in scores.items()]
        + [["mean", f"{content['validation_score']:+.3f}"]],
    )


def _save_circuit(path: Path, gate: Gate, content: dict[str, Any]) -> None:
    if not gate.is_circuit:
        return
    superposition = gate.build(np.asarray(content["numbers"]))
    provenance = {key: content[key] for key in ("settings", "score", "validation_score")}
    shown = ("date", "argv", "git", "versions")
    provenance |= {key: content["provenance"][key] for key in shown}
    qsgd.save_superposition(path, superposition, "adamw", VERSION, provenance)


def _plot(path: Path, content: dict[str, Any]) -> None:
    history = content["history"]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    generations = np.array([line["generation"] for line in history])
    window = min(SMOOTHING, len(history))
    for key, label in (("score", "mean of the candidates"), ("best", "candidate of best rank")):
        values = np.array([line[key] for line in history])
        (drawn,) = axes.plot(generations, values, lw=0.5, alpha=0.3)
        mean = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(generations[window - 1 :], mean, color=drawn.get_color(), label=label)
    axes.axhline(0, color="0.6", lw=0.8, ls="--")
    axes.axhline(content["validation_score"], color="C3", lw=0.8, label="validation tasks, at last")
    axes.set(xlabel="generation", ylabel="log ratio to tuned AdamW", title=path.parent.name)
    axes.legend(title=f"mean over {window} generations")
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learn_circuit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    training = [workload.name for workload in synthetic.META_TRAINING]
    validation = [workload.name for workload in synthetic.VALIDATION]
    names = [*training, *validation]
    add = parser.add_argument
    add("--gate", choices=sorted(all_gates()), default="circuit-2", help="default: %(default)s")
    add("--method", choices=sorted(METHODS), default="evolution", help="default: %(default)s")
    add(
        "--generations",
        type=not_negative(int),
        default=150,
        metavar="N",
        help="0 only scores the start (default: %(default)s)",
    )
    add("--population", type=positive(int), default=16, metavar="N", help="default: %(default)s")
    add(
        "--episodes",
        type=positive(int),
        default=1,
        metavar="N",
        help="of each task, in evolution (default: %(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    add(
        "--start",
        metavar="FILE",
        help="numbers to start from: a numbers.json of the same gate, or 'cautious', set by hand "
        "(default: random ones)",
    )
    add(
        "--step-size",
        type=positive(float),
        default=0.3,
        metavar="X",
        help="of the first generation of evolution (default: %(default)s)",
    )
    add("--tasks", nargs="+", choices=names, default=training, metavar="TASK", help="to train on")
    add(
        "--validation",
        nargs="+",
        choices=names,
        default=validation,
        metavar="TASK",
        help=f"to choose by; tasks: {', '.join(names)}",
    )
    add("--validation-seeds", type=positive(int), default=VALIDATION_SEEDS, metavar="N")
    add(
        "--output",
        type=Path,
        default=Path("results/learn_circuit"),
        metavar="PATH",
        help="default: %(default)s",
    )
    return parser


def _start(given: str | None, gate: Gate, seed: int) -> np.ndarray:
    if given is None:
        return gate.start(seed)
    if given == "cautious":
        if gate.cautious is None:
            known = [name for name, other in all_gates().items() if other.cautious is not None]
            raise ValueError(f"--start cautious: {gate.name} has none; {', '.join(known)} have.")
        return gate.cautious
    found, numbers, _ = read_numbers(Path(given))
    if found.name != gate.name:
        raise ValueError(f"--start {given}: is of {found.name}, not of {gate.name}.")
    return numbers.astype(np.float32)


def read_numbers(file: Path) -> tuple[Gate, np.ndarray, dict[str, Any]]:
    """Read what a run has learned: its gate, its numbers, and the whole record.

    Args:
        file: The `numbers.json` of a run.

    Raises:
        ValueError: If it is no such file, or its numbers do not fit its gate.
    """
    try:
        content = json.loads(file.read_text())
        gate = all_gates()[content["settings"]["gate"]]
        numbers = np.asarray(content["numbers"], np.float64)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a numbers.json of learn_circuit ({error!r}).") from None
    if numbers.shape != (gate.size,):
        raise ValueError(
            f"{file}: {numbers.size} numbers, where {gate.name} has {gate.size} of them."
        )
    return gate, numbers, content


if __name__ == "__main__":
    main()
