"""Kill a training with SIGKILL, go on from orbax, and compare it with one left alone.

Run it as `python -m benchmarks.resume`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

import qsgd_jax as qsgd
from benchmarks import reporting

DESCRIPTION = """\
Train a small Flax model with superpositional AdamW and sampled weights, kill the process with
SIGKILL at random steps, each time start another from the last orbax checkpoint, and compare bit for
bit with the same training left alone.

The trainer saves after the first step and every 5, asynchronously, and reports after each step a
SHA-256 of all that it holds: parameters, optimizer state, the random state of dropout. Batches, λ
and dropout change with the step, and the weights are fresh samples in each.

One kill: a step of the training is drawn at random. Once the trainer has taken a step itself and
reports the one drawn, or one beyond, it may run for a random moment of up to a tenth of a second,
in which it takes further steps and saves; then it is killed and the next one gets what lies on
disk, half a save included. Up to ten kills fall on one training; then come another seed and another
of the three forms. A kill that comes too late, after the end, does not count and is made up for in
the next training.

A step is identical if its SHA-256 is that of the training left alone, which runs in the harness's
own process and is compiled there (trainers share a compilation cache). All steps ever reported are
compared, the last one among them: the final parameters.

SIGKILL is not a power cut: what the killed process has written, the operating system still has.
"""

Form = Literal["gradient", "update", "moments"]
FORMS: tuple[Form, ...] = ("gradient", "update", "moments")
SAVE_EVERY = 5
KILLS_PER_TRAINING = 10
LONGEST_DELAY = 0.1  # seconds; a save takes about as long


class Model(nnx.Module):
    """A perceptron with dropout, so that the model has random state to restore as well."""

    def __init__(self, rngs: nnx.Rngs):
        """Initialise both layers."""
        self.hidden = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(16, 1, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "batch 8"]) -> Float[Array, "batch 1"]:
        """Predict a number."""
        return self.out(self.dropout(jnp.tanh(self.hidden(x))))


def train(folder: Path, seed: int, steps: int) -> Iterator[tuple[int, str]]:
    """Train, from the folder's last checkpoint where there is one.

    Args:
      folder: of the checkpoints; empty for a new training.
      seed: of the initial parameters, dropout, batches and sampled weights.
      steps: of the whole training.

    Yields:
      The number of steps taken so far and a SHA-256 of model and optimizer: as created or
      restored, and after each step.
    """
    circuit = qsgd.Circuit(n_qubits=2, depth=1)
    transformation = qsgd.superpositional_adamw(
        0.01,
        quantum_weight=optax.linear_schedule(0.5, 0.1, steps),
        weigh=FORMS[seed % len(FORMS)],
        superposition=qsgd.Superposition(circuit, coverage="everywhere", shots=4),
        key=seed,
        diagnostics=True,
    )

    def create() -> tuple[Model, nnx.Optimizer]:
        model = Model(nnx.Rngs(seed))
        return model, nnx.Optimizer(model, transformation, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer, index: int) -> None:
        x = jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), (32, 8))
        target = jnp.sin(x.sum(axis=1, keepdims=True))
        gradients = nnx.grad(lambda model: jnp.mean((model(x) - target) ** 2))(model)
        optimizer.update(model, gradients)

    options = ocp.CheckpointManagerOptions(save_interval_steps=SAVE_EVERY, max_to_keep=2)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        taken = manager.latest_step() or 0
        if taken:
            graph, abstract = nnx.split(nnx.eval_shape(create))
            restored = manager.restore(taken, args=ocp.args.StandardRestore(abstract))
            model, optimizer = nnx.merge(graph, restored)
        else:
            model, optimizer = nnx.jit(create)()
        yield taken, digest(nnx.state((model, optimizer)))
        while taken < steps:
            step(model, optimizer, taken)
            taken += 1
            state = nnx.state((model, optimizer))
            yield taken, digest(state)
            manager.save(taken, args=ocp.args.StandardSave(state))


def digest(tree: PyTree[Array]) -> str:
    """SHA-256 of the bytes of all leaves, random keys included."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        sha.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return sha.hexdigest()


def live(
    folder: Path, seed: int, steps: int, victim: int | None = None, delay: float = 0.0
) -> tuple[dict[int, str], bool]:
    """Run one trainer to the end, or kill it `delay` seconds after it reports the `victim`.

    Args:
      folder: of the checkpoints; the compilation cache lies beside it.
      seed: of the training.
      steps: of the training.
      victim: the first step after whose report the trainer is killed, `None` for no kill.
      delay: seconds from that report to the kill.

    Returns:
      The SHA-256 of each step it reported, and whether it was killed.

    Raises:
      RuntimeError: if it neither finished nor was killed.
    """
    command = [sys.executable, "-m", "benchmarks.resume", "--trainer", str(folder.absolute())]
    command += ["--seed", str(seed), "--steps", str(steps)]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.absolute().parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    reported: dict[int, str] = {}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            env=os.environ | cache,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                step, sha = line.split()
                reported[int(step)] = sha
                if victim is not None and int(step) >= victim and len(reported) > 1:
                    time.sleep(delay)
                    process.kill()  # what it had reported by then is still in the pipe
                    victim = None
            process.wait()
        finally:
            process.kill()
        if process.returncode not in (0, -signal.SIGKILL):
            errors.seek(0)
            raise RuntimeError(f"The trainer ended with {process.returncode}:\n{errors.read()}")
    return reported, process.returncode != 0


def unfinished_saves(folder: Path) -> set[tuple[str, int]]:
    """The folders of saves that are not committed, each with the time of its last change."""
    return {(path.name, path.stat().st_mtime_ns) for path in folder.glob("*.orbax-checkpoint-tmp*")}


def kill_and_compare(folder: Path, seed: int, steps: int, kills: int, bar: tqdm) -> dict[str, Any]:
    """One training that is killed `kills` times, against the same one left alone.

    Args:
      folder: an empty one, for all that the two write.
      seed: of the training and of the moments of the kills.
      steps: of the training.
      kills: number of steps drawn for a kill.
      bar: a progress bar, moved on by each kill.

    Returns:
      What each trainer did, how many were killed, and whether all steps are identical.
    """
    left_alone, killed = folder / "left_alone", folder / "killed"
    left_alone.mkdir(parents=True)
    killed.mkdir()
    expected = dict(train(left_alone, seed, steps))
    rng = np.random.default_rng(seed)
    victims = np.sort(rng.choice(np.arange(1, steps), kills, replace=False))
    lives: list[dict[str, Any]] = []
    for victim in [*victims, None]:
        before = unfinished_saves(killed)
        reported, hit = live(killed, seed, steps, victim, LONGEST_DELAY * rng.uniform())
        lives.append(
            {
                "from": min(reported),
                "to": max(reported),
                "killed": hit,
                "in_a_save": hit and not unfinished_saves(killed) <= before,
                "differing": [step for step, sha in reported.items() if sha != expected[step]],
            }
        )
        if not hit:
            break
        bar.update()
    return {
        "seed": seed,
        "weigh": FORMS[seed % len(FORMS)],
        "steps": steps,
        "kills": sum(life["killed"] for life in lives),
        "identical": lives[-1]["to"] == steps and not any(life["differing"] for life in lives),
        "lives": lives,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Kill trainings until there are enough kills, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resume",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=50, metavar="X", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=200, metavar="X", help="of a training (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="X", help="of the first training (default: 0)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for resume.json (default: %(default)s)",
    )
    parser.add_argument(
        "--trainer",
        type=Path,
        metavar="PATH",
        help="only train, with the checkpoints in this folder, and report: what is killed",
    )
    args = parser.parse_args(argv)
    if args.trainer is not None:
        for step, sha in train(args.trainer, args.seed, args.steps):
            print(step, sha, flush=True)
        return
    if args.kills < 1:
        parser.error(f"argument --kills: {args.kills} must be at least 1")
    if args.steps <= KILLS_PER_TRAINING:
        parser.error(f"argument --steps: {args.steps} is too few for {KILLS_PER_TRAINING} kills")

    trainings: list[dict[str, Any]] = []
    missing = args.kills
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=args.kills, desc="kills") as bar:
        while missing:
            seed = args.seed + len(trainings)
            folder = Path(scratch) / str(seed)
            kills = min(KILLS_PER_TRAINING, missing)
            trainings.append(kill_and_compare(folder, seed, args.steps, kills, bar))
            if not trainings[-1]["kills"]:
                raise RuntimeError(f"A training of {args.steps} steps ended before any kill.")
            missing -= trainings[-1]["kills"]
    identical = all(training["identical"] for training in trainings)
    reporting.write_json(
        args.output / "resume.json",
        {
            "benchmark": "resume",
            "provenance": reporting.provenance(),
            "kills": args.kills,
            "identical": identical,
            "trainings": trainings,
        },
    )
    _print(trainings)
    if not identical:
        raise SystemExit("Not all steps are those of the training left alone.")


def _print(trainings: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for training in trainings:
        lives = training["lives"]
        rows.append(
            [
                f"{training['seed']}, {training['weigh']}",
                str(training["kills"]),
                str(sum(life["in_a_save"] for life in lives)),
                str(sum(life["to"] - life["from"] + 1 for life in lives)),
                str(sum(len(life["differing"]) for life in lives)),
                "yes" if training["identical"] else "NO",
            ]
        )
    reporting.print_table(
        "Trainings killed and restored, against the same ones left alone",
        [
            "seed, form",
            "kills",
            "in a save",
            "states compared",
            "differing",
            "identical to the end",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
