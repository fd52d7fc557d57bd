"""Train a small language model with AdamW, the paper's form and the spectral form, side by side.

Run it as `python -m benchmarks.character_model`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import cascade_figure, character_report, characters, reporting
from benchmarks.arguments import positive
from benchmarks.arm import Arm, Build
from benchmarks.arms import superposed
from benchmarks.character_report import tables
from benchmarks.characters import TEXT, Run, Text
from benchmarks.curves import plot_curves
from benchmarks.devices import DEVICES, open_device

DESCRIPTION = """\
Train a small transformer to predict the next character of Shakespeare, with three optimizers
(arms), side by side: AdamW, the paper's form, and the spectral form.

Seed s starts from the same weights and sees the same batches in every arm, so differences between
arms are taken seed by seed. The model has about the paper's sizes (embedding 64, 4 heads,
feed-forward 128, 2 layers), without dropout; 64 characters of context, batches of 32. The learning
rate rises in the first 5 % of the steps and falls to zero by a cosine. No weight decay.

This is a demonstration, not a study: each arm's learning rate, and AdamW's b2 and whether it looks
ahead (Nesterov), are the best of a sweep on this same text and its validation part, with seed 0.
Momentum and b2 of the spectral form are its defaults, not tuned here. To repeat the sweep:

  python -m benchmarks.character_model --seeds 1 --learning-rates {rates} \\
      --arms {arms}

The paper's own task is python -m benchmarks.text_classification (`make demo-paper`).
"""

EPILOG = """\
arms, with the highest learning rate of each:
{arms}

files in the output folder:
  character_model.json   every evaluation of every run, summaries, the probe, versions, arguments
  character_model.png    validation loss over steps, mean over seeds with 95 % bands
  cascade.png            the spectral form's function f of singular values and their weights f(σ)/σ,
                         the singular values of the momentum of the trained models, and what the
                         device answered when it was probed
  with --learning-rates instead character_model_rates.json

figures:
  validation loss       mean negative log likelihood of a character of the last tenth of the text,
                        in nats, at the end
  AdamW's loss at step  when an arm first has the validation loss at which AdamW (the first arm)
                        ends with the same seed; linear between evaluations
  time a step           median over the runs, relative to the first arm; runs take turns, so what
                        else the machine does is in all of them alike
  ±                     half of the 95 % t interval of a mean over seeds
"""

RATES = (2e-3, 4e-3, 8e-3, 1.13e-2, 1.6e-2, 2.26e-2, 3.2e-2, 4.5e-2)  # the sweep's
SHOWN_FROM = 0.1  # part of the steps; before it the loss falls so far that the rest would be flat
SHOWN = ("adamw", "paper", "spectral")
# AdamW's best of a sweep, and its other settings; for each the same learning rate was the best.
B2, NESTEROV, ADAMW_RATE = 0.95, True, 1.13e-2
OTHER_ADAMW = ((0.99, True), (0.999, True), (0.95, False), (0.99, False), (0.999, False))


def _arms(cascade: qsgd.SpectralCascade | str = "polar-express") -> dict[str, tuple[Arm, float]]:
    """Return each arm by its name, with its highest learning rate."""

    def adamw(b2: float, nesterov: bool) -> Build:
        return lambda hyper, learning_rate: optax.adamw(
            learning_rate, b2=b2, weight_decay=hyper["weight_decay"], nesterov=nesterov
        )

    def said(b2: float, nesterov: bool) -> str:
        return f"b2 {b2}, {'with' if nesterov else 'without'} Nesterov"

    def spectral(hyper: Mapping[str, Any], learning_rate: Any) -> optax.GradientTransformation:
        return qsgd.superpositional_muon(learning_rate, cascade, weight_decay=hyper["weight_decay"])

    paper = superposed(quantum_weight=0.5, weigh="gradient", b2=B2, nesterov=NESTEROV)
    words = "superpositional_muon: circuits on the momentum's singular values"
    listed = [
        (
            Arm("adamw", "AdamW", adamw(B2, NESTEROV), f"optax.adamw, {said(B2, NESTEROV)}"),
            ADAMW_RATE,
        ),
        (Arm("paper", "paper's form", paper, "Eq. 1, λ = 0.5, around the same AdamW"), 1.13e-2),
        (Arm("spectral", "spectral form", spectral, words), 3.2e-2),
    ]
    for b2, nesterov in OTHER_ADAMW:
        name = f"adamw-{b2}{'' if nesterov else '-plain'}"
        listed.append((Arm(name, name, adamw(b2, nesterov), said(b2, nesterov)), ADAMW_RATE))
    return {arm.name: (arm, learning_rate) for arm, learning_rate in listed}


def main(argv: Sequence[str] | None = None) -> None:
    """Train all arms, then print the table and write JSON and PNGs."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.steps % args.every:
        parser.error(f"argument --every: {args.every} must divide --steps, {args.steps}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)  # to fail now rather than after training
    except OSError as error:
        parser.error(f"argument --output: {error}")
    cascade = _cascade(parser, args)
    arms = {name: _arms(cascade)[name] for name in dict.fromkeys(args.arms)}
    text = characters.read_text(TEXT)
    print(
        f"Shakespeare: {len(text.train):,} characters to train on, {text.windows[:, 1:].size:,} "
        f"to validate on, {len(text.characters)} different ones"
    )
    if args.learning_rates:
        wanted = [(arm, rate) for arm, _ in arms.values() for rate in args.learning_rates]
        report = character_report.sweep(_train(wanted, text, args), args)
        reporting.write_json(args.output / "character_model_rates.json", report)
        for table in tables(report):
            table.print()
        return

    print("\nWhat the spectral form takes for matrices, and what it leaves to AdamW:\n")
    print(qsgd.spectral_routing(nnx.to_pure_dict(characters.new_model(text, 0)[1])), "\n")
    runs = _train(list(arms.values()), text, args)
    by_arm = {name: [run for run in runs if run.arm.name == name] for name in arms}
    report = character_report.report(by_arm, cascade, text, args)
    reporting.write_json(args.output / "character_model.json", report)
    _plot(args.output / "character_model.png", by_arm, args)
    momenta = [cascade_figure.singular_values(run.opt_state) for run in by_arm.get("spectral", [])]
    cascade_figure.plot(args.output / "cascade.png", cascade, np.concatenate([[], *momenta]))
    for table in tables(report):
        table.print()
    print(f"Wrote character_model.json, character_model.png and cascade.png to {args.output}")


def _parser() -> argparse.ArgumentParser:
    arms = _arms()
    listed = "\n".join(f"  {name:18}{rate:<8g}{arm.settings}" for name, (arm, rate) in arms.items())
    rates = " ".join(f"{rate:g}" for rate in RATES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.character_model",
        description=DESCRIPTION.format(arms=" ".join(arms), rates=rates),
        epilog=EPILOG.format(arms=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    compared = parser.add_argument_group("what is compared")
    compared.add_argument(
        "--arms",
        nargs="+",
        choices=arms,
        default=list(SHOWN),
        metavar="NAME",
        help="arms by name; the first is what the others are compared with "
        f"(default: {' '.join(SHOWN)})",
    )
    compared.add_argument(
        "--learning-rates",
        nargs="+",
        type=positive(float),
        default=[],
        metavar="X",
        help="instead, a sweep: train every arm with each of these highest learning rates, and "
        "print how each ends",
    )
    _add(compared, "seeds", 3, "runs of each arm, seeds 0, 1, ...")

    probe = parser.add_argument_group("the probe of the spectral form's circuits")
    probe.add_argument(
        "--device",
        default="lightning.qubit",
        metavar="NAME",
        help="PennyLane device: any that is installed, or one of "
        f"{', '.join(DEVICES)} (default: %(default)s)",
    )
    probe.add_argument(
        "--shots",
        type=positive(int),
        metavar="N",
        help="measurements of each setting of the probe (default: exact answers)",
    )

    settings = parser.add_argument_group("training")
    _add(settings, "steps", 400, "length of a run")
    _add(settings, "every", 25, "steps between two evaluations")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for the files (default: %(default)s)",
    )
    return parser


def _add(group: Any, name: str, default: int, text: str) -> None:
    group.add_argument(
        f"--{name}",
        type=positive(int),
        default=default,
        metavar="N",
        help=f"{text} (default: %(default)s)",
    )


def _cascade(parser: argparse.ArgumentParser, args: argparse.Namespace) -> qsgd.SpectralCascade:
    """Probe the circuits, or say which option is wrong."""
    try:
        device = open_device(args.device, 1)
    except ValueError as error:
        parser.error(f"argument --device: {error}")
    try:
        return qsgd.spectral_cascade(device=device, shots=args.shots)
    except ValueError as error:
        if args.shots is None:
            parser.error(f"argument --device: {args.device} without --shots: {error}")
        parser.error(f"argument --shots: {args.shots} on --device {args.device}: {error}")


def _train(arms: Sequence[tuple[Arm, float]], text: Text, args: argparse.Namespace) -> list[Run]:
    """Train each arm, with its learning rate, from every seed."""
    wanted = [(arm, seed, rate) for seed in range(args.seeds) for arm, rate in arms]
    last: dict[str, str] = {}
    with tqdm(total=len(wanted) * args.steps, desc="compiling", unit="step") as bar:

        def on_stretch(run: Run) -> None:
            last[run.arm.name] = f"{run.validation_loss[-1]:.2f}"
            bar.set_description("validation loss", refresh=False)
            bar.set_postfix(last, refresh=False)
            bar.update(args.every if run.seconds else 0)

        return characters.train(
            wanted, text, steps=args.steps, every=args.every, on_stretch=on_stretch
        )


def _plot(path: Path, by_arm: Mapping[str, list[Run]], args: argparse.Namespace) -> None:
    steps = np.arange(0, args.steps + 1, args.every)
    shown = steps >= SHOWN_FROM * args.steps
    plot_curves(
        path,
        {
            runs[0].arm.label: np.array([run.validation_loss for run in runs])[:, shown]
            for runs in by_arm.values()
        },
        title="characters of Shakespeare: mean over seeds and 95 % interval",
        ylabel="validation loss",
        times=steps[shown],
        xlabel="step",
        legend="upper right",
    )


if __name__ == "__main__":
    main()
