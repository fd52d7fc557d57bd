"""Train the paper's transformer with several optimizers, side by side.

Run it as `python -m benchmarks.text_classification`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from benchmarks import attention_figures, comparison, datasets, reporting, training
from benchmarks.arguments import positive
from benchmarks.arm import Arm
from benchmarks.arms import ARMS, KEYS, parse_arm
from benchmarks.comparison import tables
from benchmarks.curves import plot_curves
from benchmarks.datasets import Dataset
from benchmarks.devices import DEVICES
from benchmarks.training import Run, TrainedRuns

DESCRIPTION = """\
Train a small transformer on text classification with several optimizers (arms), side by side.

Seed s starts from the same weights and sees the same examples and dropout masks in every arm, so
differences between arms are taken seed by seed. The model and the training settings are the
paper's (arXiv:2511.01918): embedding 64, 4 heads, feed-forward 128, 2 layers, dropout 0.1; batch
32, learning rate 1e-3, beta (0.9, 0.999), epsilon 1e-8, weight decay 0, float32.

With --attention quantum, the attention of every arm runs the paper's circuit (4 qubits, depth 2) on
every score; with "classical quantum", each arm trains both models, from the same initial weights.

Data sets:
  synthetic   At which of 8 topics does a sequence start its round through all of them? The bag of
              words says nothing. Made on the spot, always the same.
  clinc150    15,000 requests to an assistant, in 10 domains or 150 intents. Needs --data.
"""

EPILOG = """\
arms:
{arms}
  A further arm is superpositional AdamW as its specification says, NAME:KEY=VALUE,KEY=VALUE...
  with keys {keys}.

files in the output folder:
  text_classification.json   every epoch of every seed, summaries, versions, device, arguments
  text_classification.png    validation accuracy, mean over seeds with 95 % bands
  quantum_attention.png      of the first arm with quantum attention: what its circuits have learned

figures:
  epochs to target   when the validation accuracy, smoothed by a centred running mean over 3
                     epochs, first reaches --target (linear interpolation). A run that never does
                     counts as infinite; such runs are counted beside the median.
  seconds to target  training time until then: no compilation, no evaluation. As many seeds as
                     there are CPU cores train at the same time. Arms train one after
                     another, so what else the machine did meanwhile is in it.
  ±                  half of the 95 % t interval of a mean over seeds

examples:
  python -m benchmarks.text_classification --seeds 3
  python -m benchmarks.text_classification --arms adam \\
      --arm "everywhere:quantum_weight=0.5,weigh=update,coverage=everywhere,depth=2"
  python -m benchmarks.text_classification --arms adam \\
      --arm "sampled:quantum_weight=0.5,weigh=update,shots=16,device=default.qubit"
  python -m benchmarks.text_classification --arms adam lambda-0.5 --attention classical quantum
  python -m benchmarks.text_classification --dataset clinc150 --data PATH --labels intents
"""

ATTENTIONS = ("classical", "quantum")
ANGLES = {"default": None, "random": nnx.initializers.uniform(2 * np.pi)}
SCORES = np.linspace(-4 * np.pi, 4 * np.pi, 241)  # radians, where Φ is drawn


class Trained(NamedTuple):
    """An arm with one of the models."""

    arm: str
    label: str
    settings: str
    quantum: bool
    result: TrainedRuns


def main(argv: Sequence[str] | None = None) -> None:
    """Train all arms, then print the table and write JSON and PNG."""
    parser = _parser()
    args = parser.parse_args(argv)
    arms = {name: ARMS[name] for name in args.arms}
    for arm in args.arm:
        if arm.name in arms or arm.name in (other.label for other in arms.values()):
            parser.error(f"argument --arm: there are two arms called {arm.name!r}")
        arms[arm.name] = arm
    try:
        args.output.mkdir(parents=True, exist_ok=True)  # to fail now rather than after training
        for arm in arms.values():
            _optimizer(arm, args, 0)
        dataset = _load(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    _describe(dataset)

    trained = {
        name if attention == "classical" else f"{name}, {attention}": _train(
            arm, attention == "quantum", dataset, args
        )
        for name, arm in arms.items()
        for attention in dict.fromkeys(args.attention)
    }
    report = _report(trained, dataset, args)
    reporting.write_json(args.output / "text_classification.json", report)
    _plot(args.output / "text_classification.png", trained, dataset, args)
    first = next((name for name, one in trained.items() if one.quantum), None)
    if first is not None:
        runs = trained[first].result.runs
        models = [nnx.merge(trained[first].result.graph, run.params) for run in runs]
        attention_figures.plot(
            args.output / "quantum_attention.png",
            SCORES,
            [attention_figures.learned(model, SCORES) for model in models],
            [run.diagnostics for run in runs],
            title=f"{dataset.name}, {trained[first].label}: a line for each seed",
        )
    for table in tables(report):
        table.print()
    print(f"Wrote text_classification.json and the figures to {args.output}")


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:12}{arm.settings}" for name, arm in ARMS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.text_classification",
        description=DESCRIPTION,
        epilog=EPILOG.format(arms=listed, keys=", ".join(KEYS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=list(ARMS),
        metavar="NAME",
        help="arms by name; the first is what the others are compared with (default: all)",
    )
    compared.add_argument(
        "--arm",
        action="append",
        type=parse_arm,
        default=[],
        metavar="SPEC",
        help="a further arm, see below; may be repeated",
    )
    compared.add_argument(
        "--device",
        metavar="NAME",
        help="PennyLane device of all superpositional arms: any that is installed, or one of "
        f"{', '.join(DEVICES)} (default: lightning.qubit)",
    )
    compared.add_argument(
        "--probe-shots",
        type=positive(int),
        metavar="N",
        help="measurements of each setting of a probe (default: exact answers)",
    )
    compared.add_argument(
        "--attention",
        nargs="+",
        choices=ATTENTIONS,
        default=["classical"],
        metavar="KIND",
        help=f"attention of the models, among {', '.join(ATTENTIONS)} (default: classical)",
    )
    compared.add_argument(
        "--readout",
        choices=("amplitude", "probability"),
        default="amplitude",
        help="what quantum attention reads off its circuits (default: %(default)s)",
    )
    compared.add_argument(
        "--angles",
        choices=ANGLES,
        default="default",
        help="how quantum attention begins: as QuantumAttention does by itself (amplitudes add "
        "nothing at first), or with random angles (default: %(default)s)",
    )
    _add(compared, "seeds", positive(int), 5, "runs of each arm, seeds 0, 1, ...")
    _add(compared, "target", _fraction, 0.9, "validation accuracy that the arms race for")

    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        choices=("synthetic", "clinc150"),
        default="synthetic",
        help="default: %(default)s",
    )
    data.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help=f"folder with CLINC150's {datasets.CLINC150}",
    )
    data.add_argument(
        "--labels",
        choices=("domains", "intents"),
        default="domains",
        help="labels of CLINC150 (default: %(default)s)",
    )
    data.add_argument(
        "--train-size",
        type=positive(int),
        metavar="N",
        help="training examples (default: 4,000 synthetic ones, all of CLINC150)",
    )

    settings = parser.add_argument_group("training")
    _add(settings, "epochs", positive(int), 15, "passes over the training examples")
    _add(settings, "batch-size", positive(int), 32, "examples a step")
    _add(settings, "learning-rate", positive(float), 1e-3, "constant learning rate")
    _add(settings, "weight-decay", float, 0.0, "decoupled weight decay")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for the files (default: %(default)s)",
    )
    return parser


def _add(group: Any, name: str, kind: Any, default: float, text: str) -> None:
    """Add an option that takes a number."""
    group.add_argument(
        f"--{name}", type=kind, default=default, metavar="X", help=f"{text} (default: %(default)s)"
    )


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must lie between 0 and 1")
    return value


def _load(args: argparse.Namespace) -> Dataset:
    if args.dataset == "synthetic":
        dataset = datasets.topic_order(
            **({"train_size": args.train_size} if args.train_size else {})
        )
    elif args.data is None:
        raise ValueError(f"--dataset clinc150 needs --data PATH, a folder with {datasets.CLINC150}")
    else:
        dataset = datasets.clinc150(args.data, args.labels, train_size=args.train_size)
    if len(dataset.train.labels) < args.batch_size:
        raise ValueError(
            f"--batch-size {args.batch_size} is more than the {len(dataset.train.labels)} "
            "training examples"
        )
    return dataset


def _describe(dataset: Dataset) -> None:
    sizes = " / ".join(
        f"{len(split.labels):,}" for split in (dataset.train, dataset.validation, dataset.test)
    )
    best = f"; best possible accuracy {dataset.ceiling:.1%}" if dataset.ceiling else ""
    print(f"{dataset.name}: {sizes} examples, {dataset.n_classes} classes{best}")


def _optimizer(arm: Arm, args: argparse.Namespace, seed: int) -> optax.GradientTransformation:
    return arm.build(vars(args) | {"seed": seed}, args.learning_rate)


def _train(arm: Arm, quantum: bool, dataset: Dataset, args: argparse.Namespace) -> Trained:
    label = f"{arm.label}, quantum" if quantum else arm.label
    with tqdm(total=args.epochs * args.seeds, desc=f"{label:24}", unit="epoch") as bar:

        def on_epoch(runs: Sequence[Run]) -> None:
            started = [run for run in runs if run.train_loss]
            bar.set_postfix(
                loss=f"{np.mean([run.train_loss[-1] for run in started]):.3f}",
                accuracy=f"{np.mean([run.validation_accuracy[-1] for run in started]):.1%}",
                refresh=False,
            )
            bar.update()

        result = training.train(
            partial(_optimizer, arm, args),
            dataset,
            seeds=range(args.seeds),
            epochs=args.epochs,
            batch_size=args.batch_size,
            on_epoch=on_epoch,
            model={
                "quantum": quantum,
                "readout": args.readout,
                "angle_init": ANGLES[args.angles],
            },
            diagnose=attention_figures.sizes if quantum else None,
        )
    return Trained(arm.name, label, arm.settings, quantum, result)


def _report(
    trained: Mapping[str, Trained], dataset: Dataset, args: argparse.Namespace
) -> dict[str, Any]:
    figures = {
        name: [comparison.figures(run, args.target) for run in one.result.runs]
        for name, one in trained.items()
    }
    first = next(iter(figures.values()))
    arguments = {key: value for key, value in vars(args).items() if key not in ("data", "output")}
    return {
        "benchmark": "text_classification",
        "provenance": reporting.provenance(),
        "arguments": arguments | {"arm": [arm.name for arm in args.arm]},
        "dataset": {
            "name": dataset.name,
            "train": len(dataset.train.labels),
            "validation": len(dataset.validation.labels),
            "test": len(dataset.test.labels),
            "length": dataset.train.tokens.shape[1],
            "vocabulary_size": dataset.vocabulary_size,
            "classes": dataset.n_classes,
            "ceiling": dataset.ceiling,
        },
        "arms": {
            name: {
                "label": one.label,
                "settings": one.settings,
                "attention": "quantum" if one.quantum else "classical",
                "compile_seconds": one.result.compile_seconds,
                "wall_seconds": one.result.wall_seconds,
                "summary": comparison.summary(figures[name]),
                "minus_first_arm": comparison.differences(figures[name], first),
                "minus_classical": comparison.differences(figures[name], figures[one.arm])
                if one.quantum and one.arm in figures
                else None,
                "runs": [
                    _curves(run)
                    | (_attention(one, run) if one.quantum else {})
                    | {key: reporting.finite(value) for key, value in row.items()}
                    for run, row in zip(one.result.runs, figures[name], strict=True)
                ],
            }
            for name, one in trained.items()
        },
    }


def _curves(run: Run) -> dict[str, Any]:
    names = ("train_loss", "validation_loss", "validation_accuracy", "seconds")
    curves = {name: [reporting.finite(value) for value in getattr(run, name)] for name in names}
    return {"seed": run.seed} | curves


def _attention(one: Trained, run: Run) -> dict[str, Any]:
    layers = attention_figures.learned(nnx.merge(one.result.graph, run.params), SCORES)
    epochs = [{name: row.tolist() for name, row in each.items()} for each in run.diagnostics]
    kept = [{name: layer[name] for name in ("frequencies", "spectrum")} for layer in layers]
    return {"attention": {"layers": kept, "epochs": epochs}}


def _plot(
    path: Path, trained: Mapping[str, Trained], dataset: Dataset, args: argparse.Namespace
) -> None:
    lines = {"target": args.target}
    if dataset.ceiling:
        lines["best possible"] = dataset.ceiling
    plot_curves(
        path,
        {
            one.label: np.array([run.validation_accuracy for run in one.result.runs])
            for one in trained.values()
        },
        title=f"{dataset.name}: mean over seeds and 95 % interval",
        ylabel="validation accuracy",
        lines=lines,
    )


if __name__ == "__main__":
    main()
