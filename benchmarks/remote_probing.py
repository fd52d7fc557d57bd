"""Train beside a device that is slow: what a step costs, and how many answers get into it.

Run it as `python -m benchmarks.remote_probing`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import numpy as np
import optax
from rich.logging import RichHandler
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting
from benchmarks.peer_step import Epoch, Training, median

DESCRIPTION = """\
Time whole training steps (forward, backward, optimizer) of the paper's text classifier, batch 32,
with three optimizers in turn:

  adamw            optax.adamw
  lightning.qubit  superpositional AdamW by Eq. 1, probed once
  remote           the same with coefficients in the state, and a RemoteProber whose refresh()
                   follows each step and counts as part of it

By default the remote device is lightning.qubit behind a queue of 30 s (SECONDS_PER_JOB in the
environment). In each round every arm has one turn, in a random order: two steps, of which the
second is timed. Ratios are taken within the round; the tables show the median over rounds with its
95 % interval (order statistics). How far the last accepted weights lie from the noiseless ones is
the root mean square over 1,000 random blocks.
"""


class Remote:
    """Training with a prober beside it."""

    def __init__(self, epoch: Epoch, optimizer: Any, prober: qsgd.RemoteProber):
        """Begin without waiting for an answer."""
        self.training, self.prober = Training(epoch, optimizer), prober
        self.refresh_seconds: list[float] = []

    def seconds(self) -> float:
        """Take one training step, refresh, and return how long both took."""
        elapsed = self.training.seconds()
        began = time.perf_counter()
        self.training.state = self.prober.refresh(self.training.state)
        self.refresh_seconds.append(time.perf_counter() - began)
        return elapsed + self.refresh_seconds[-1]


def measure(
    device: Callable[[], Any], circuit: qsgd.Circuit, seconds: float, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Train for so many seconds; what a step took, and what became of the probes."""
    epoch = Epoch()
    surrogate = qsgd.probe(circuit)

    def superpositional(surrogate: Any) -> optax.GradientTransformation:
        return qsgd.superpositional_adamw(1e-3, surrogate=surrogate, weigh="gradient")

    with qsgd.RemoteProber(device, circuit, **options) as prober:
        remote = Remote(epoch, superpositional(qsgd.refreshable(surrogate)), prober)
        arms: dict[str, Callable[[], float]] = {
            "adamw": Training(epoch, optax.adamw(1e-3)).seconds,
            "lightning.qubit": Training(epoch, superpositional(surrogate)).seconds,
            "remote": remote.seconds,
        }
        times: dict[str, list[float]] = {name: [] for name in arms}
        order = np.random.default_rng(0)
        for arm in arms.values():  # compiles
            arm()
        remote.refresh_seconds.clear()
        began, last = time.perf_counter(), 0.0
        with tqdm(total=round(seconds), desc="seconds") as bar:
            while last < seconds or len(times["adamw"]) < 6:
                for name in order.permutation(list(arms)):
                    arms[name]()
                    times[name].append(arms[name]())
                now = time.perf_counter() - began
                bar.update(int(min(now, seconds)) - int(min(last, seconds)))
                last = now
        state = remote.training.state
    found = {name: np.array(values) for name, values in times.items()}
    theta = np.random.default_rng(0).uniform(-1, 1, (1000, circuit.n_qubits))
    measured = surrogate.with_coefficients(optax.tree.get(state, "table"))
    weights = [np.asarray(each.evaluate(list(theta.T))) for each in (measured, surrogate)]
    return {
        "rounds": len(found["adamw"]),
        "milliseconds": {name: median(1e3 * values) for name, values in found.items()},
        "ratio_to_adamw": {name: median(v / found["adamw"]) for name, v in found.items()},
        "ratio_to_lightning": median(found["remote"] / found["lightning.qubit"]),
        "refresh_milliseconds": {
            "median": 1e3 * float(np.median(remote.refresh_seconds)),
            "largest": 1e3 * max(remote.refresh_seconds),
        },
        "distance_from_exact": float(np.sqrt(np.mean((weights[0] - weights[1]) ** 2))),
        "age": int(optax.tree.get(state, "age")),
        "accounting": vars(prober.accounting),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.remote_probing",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device",
        default="benchmarks.devices:slow_lightning",
        metavar="MODULE:FUNCTION",
        help="what opens the device (default: %(default)s)",
    )
    for name, kind, default in (
        ("seconds", float, 300.0),
        ("depth", int, 2),
        ("probe-shots", int, 1000),
        ("refresh-every", int, 100),
        ("max-jobs", int, 100),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=default, metavar="X", help="default: %(default)s"
        )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for remote_probing.json (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler()])
    module, _, function = args.device.partition(":")
    try:
        device = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"argument --device: {error}")
    report: dict[str, Any] = {
        "benchmark": "remote_probing",
        "provenance": reporting.provenance(),
        "device": args.device,
        **measure(
            device,
            qsgd.Circuit(depth=args.depth),
            args.seconds,
            {
                "probe_shots": args.probe_shots,
                "refresh_every": args.refresh_every,
                "max_jobs": args.max_jobs,
            },
        ),
    }
    reporting.write_json(args.output / "remote_probing.json", report)
    for table in tables(report):
        table.print()


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return what a step takes in each arm, and what became of the probes."""
    rows = [
        [
            name,
            f"{row['median']:.2f}",
            "{median:.3f} [{low:.3f}, {high:.3f}]".format(**report["ratio_to_adamw"][name]),
        ]
        for name, row in report["milliseconds"].items()
    ]
    ratio, refresh = report["ratio_to_lightning"], report["refresh_milliseconds"]
    notes = [
        "remote over lightning.qubit: {median:.3f} [{low:.3f}, {high:.3f}]".format(**ratio),
        f"refresh: {refresh['median']:.3f} ms, at most {refresh['largest']:.1f} ms",
        "{accepted} refreshes accepted of {jobs} jobs, {shots} shots".format(
            **report["accounting"]
        ),
        f"distance of the last accepted weights: {report['distance_from_exact']:.3f}",
    ]
    title = f"One training step, {report['rounds']} rounds"
    return [reporting.Table(title, ["arm", "ms", "ratio to adamw"], rows, notes)]


if __name__ == "__main__":
    main()
