"""Measure on a GPU what a CPU cannot tell, in one command of ten minutes.

Run it as `python -m benchmarks.gpu`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax

from benchmarks import reporting
from benchmarks.arguments import positive

DESCRIPTION = """\
Run, each in a process of its own and in this order:

  tests      the package's tests of what is computed on the accelerator; what fails is run again
             with every matrix product in full float32 (a GPU's default, TF32, has 10 bits)
  steps      step_time: one step of the optimizer beside one of optax.adamw
  spectral   spectral_time: one step of the spectral form beside optax.contrib.muon, and whole
             training steps of a small transformer beside AdamW's
  attention  attention_time: quantum attention beside Flax's own
  layer      quantum_layer_time: a QNode as a layer beside jax.vmap of it
  training   llm_cost: whole training steps of Llama-architecture models, and their memory

Each part writes its results as it goes on. As it ends, its figures are printed, and written to
gpu.json with the most that each should be: a run that is cut short keeps what it has. A part is
stopped when its share of --seconds is over; what it leaves is the next one's. The default is ten
minutes less the time to install packages where they are carried. log.txt holds all that the parts
print. The exit status is 1 if a part fails or is stopped.

It needs one GPU of 128 GB, and jax, flax, optax, orbax-checkpoint, hypothesis and pytest on
Python 3.12. `make gpu-wheels` gathers into .gpu_wheels/ what else it needs, for a machine that
reaches no network. There, in the repository's root:

  python -m pip install --no-index --no-deps --target site .gpu_wheels/*.whl
  PYTHONPATH=site python -m benchmarks.gpu

--small runs a little of everything on any machine, to see that it starts (`make test-gpu`).
"""

TESTS = [
    f"tests/test_{name}.py"
    for name in ("half_turns", "fourier", "transforms", "numbers", "attention")
]
# As each test ends and, what did not pass, once more at the end.
OUTCOME = re.compile(
    r"^(?:\[gw.*%\] )?(PASSED|FAILED|ERROR) (tests/.+?)(?: - .*| )?$", re.MULTILINE
)
SELECTED = re.compile(r"\d+ workers? \[(\d+) items?\]")
GRACE = 10.0  # seconds for a part that is stopped
# The most that the ratio of a step to one of optax.adamw should be, and that of attention to
# Flax's own by the length of the sequence.
STEPS = {
    "leading": 1.01,
    "leading, update": 1.01,
    "everywhere, depth 0": 1.05,
    "everywhere, depth 0, update": 1.05,
    "everywhere, depth 2": 1.3,
    "everywhere, depth 2, update": 1.3,
}
ATTENTION = {"512": 1.1}
# The most that the spectral form's step should be of one of optax's Muon, and a whole training step
# with it of one with AdamW.
SPECTRAL = {"five quintics": 0.4}
WHOLE = {"five quintics": 1.05, "three stages": 1.05}
TRAINING = {"spectral": 1.05}
# Not what needs several devices, or looks at what XLA:CPU makes of a program.
ON_ONE_GPU = "not mesh and not shard_map and not no_tensor_is_larger"
_LAYERS = "--devices default.qubit lightning.qubit"
# Options of each part.
_FULL: dict[str, Any] = {
    "tests": ["-n", "12", "-k", ON_ONE_GPU],
    "steps": "--millions 10 100 1000 --rounds 40 --repeats 1",
    "spectral": "--trees 256 transformer --whole --rounds 20",
    "attention": "--lengths 512 128 --rounds 30 --circuits-rounds 6",
    "layer": f"{_LAYERS} --qubits 4 10 14 --batches 32 256 --rounds 7",
    "training": [
        (
            "smollm2-135m",
            2,
            "--context 1024 --batch-size 8 --rounds 20",
            ("AdamW", "AdamW again", "everywhere", "muon", "spectral"),
        ),
        (
            "llama-3.2-1b",
            2,
            "--context 2048 --batch-size 2 --rounds 10",
            ("AdamW", "AdamW again", "everywhere"),
        ),
    ],
}
_SMALL: dict[str, Any] = {
    "tests": ["-n", "2", "-k", "keeps_relative or fifty_steps or denormal_grad or phi_begins"],
    "steps": "--millions 1 --rounds 6 --repeats 1",
    "spectral": "--trees 64 --rounds 6",
    "attention": "--lengths 16 --rounds 6 --circuits-length 4 --circuits-rounds 6",
    "layer": f"{_LAYERS} --qubits 2 --batches 4 --rounds 6",
    "training": [
        (
            "tiny",
            3,
            "--context 64 --batch-size 2 --rounds 6",
            ("AdamW", "AdamW again", "everywhere", "muon", "spectral"),
        )
    ],
}


@dataclass(frozen=True)
class Figure:
    """A figure, its 95 % interval, and the most that it should be."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Part:
    """What is run, and where its figures are.

    Attributes:
      name: of the part.
      share: of the time, relative to the other parts.
      command: arguments of Python.
      read: from the content of `result`, or of what was printed, to figures.
      result: the JSON file that it writes, if it writes one.
      environment: variables that are set for it.
      after_failure: whether it is run only if the part before it failed.
    """

    name: str
    share: float
    command: Sequence[str]
    read: Callable[[Any], list[Figure]]
    result: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    after_failure: bool = False


def parts(output: Path, cache: Path, small: bool) -> list[Part]:
    """List the parts in their order; what else is to be measured is added here.

    Args:
      output: folder of the results.
      cache: folder of what pytest remembers, and of compiled programs.
      small: whether to run a little of everything.
    """
    sizes = _SMALL if small else _FULL
    tests = ["-m", "pytest", *TESTS, "-v", "--tb=short", "-o", f"cache_dir={cache / 'pytest'}"]
    tests += sizes["tests"]
    again = [*tests, "--last-failed", "--last-failed-no-failures", "none"]
    together = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    full_float32 = together | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    steps = ["--optimizers", "adamw", "adamw again", *STEPS]
    return [
        Part("tests", 3, tests, _tests, None, together),
        Part("tests in full float32", 1, again, _tests, None, full_float32, after_failure=True),
        _script("steps", 3, "step_time", [*sizes["steps"].split(), *steps], output, _steps),
        _script("spectral", 4, "spectral_time", sizes["spectral"].split(), output, _spectral),
        _script("attention", 2, "attention_time", sizes["attention"].split(), output, _attention),
        _script("layer", 2, "quantum_layer_time", sizes["layer"].split(), output, _layer),
        *(
            _script(
                f"training {model}",
                share,
                "llm_cost",
                ["--model", model, *options.split(), "--optimizers", *names],
                output / model,
                partial(_training, model),
                JAX_COMPILATION_CACHE_DIR=str(cache / "compiled"),  # AdamW's is compiled once
            )
            for model, share, options, names in sizes["training"]
        ),
    ]


def _script(
    name: str,
    share: float,
    module: str,
    options: Sequence[str],
    output: Path,
    read: Callable[[Any], list[Figure]],
    **environment: str,
) -> Part:
    environment |= {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        "XLA_CLIENT_MEM_FRACTION": ".92",
    }
    command = ["-m", f"benchmarks.{module}", *options, "--output", str(output)]
    return Part(name, share, command, read, output / f"{module}.json", environment)


def _tests(printed: str) -> list[Figure]:
    outcomes = {test: outcome for outcome, test in OUTCOME.findall(printed)}
    passed = list(outcomes.values()).count("PASSED")
    selected = sum(map(int, SELECTED.findall(printed)))
    return [
        Figure("passed", passed),
        Figure("not passed", len(outcomes) - passed, most=0),
        Figure("not run", max(0, selected - len(outcomes)), most=0),
    ]


def _steps(content: Any) -> list[Figure]:
    return [
        _ratio(f"{int(count) / 1e6:.0f} M: {name}", row, STEPS.get(name))
        for count, rows in content["steps"].items()
        for name, row in rows.items()
        if name in ("adamw again", *STEPS)
    ]


def _spectral(content: Any) -> list[Figure]:
    steps = [(name, found["optimizers"], SPECTRAL) for name, found in content["trees"].items()]
    steps += [(f"training, {width} wide", x, WHOLE) for width, x in content["whole"].items()]
    return [
        _ratio(f"{step}: {name}", row, most.get(name))
        for step, rows, most in steps
        for place, (name, row) in enumerate(rows.items())
        if place and "ratio" in row  # the first is what the others are compared with
    ]


def _attention(content: Any) -> list[Figure]:
    return [
        _ratio(f"length {length}: {part[:-1]}, {name}", row, most if name != "flax again" else None)
        for length, parts in content["lengths"].items()
        for part, rows in parts.items()
        for name, row in rows.items()
        if name != "flax"
        for most in [ATTENTION.get(length)]
    ]


def _layer(content: Any) -> list[Figure]:
    figures = []
    for device, passes in content["passes"].items():
        for each in passes:
            name = f"{device}, {each['n_qubits']} qubits, batch {each['batch']}"
            layer, mapped = each["arms"]["layer"], each["arms"]["vmap"]
            figures.append(Figure(f"{name}: layer, milliseconds", layer["milliseconds"]))
            figures.append(_ratio(f"{name}: vmap", mapped, None))
    return figures


def _training(model: str, content: Any) -> list[Figure]:
    figures = []
    for name, row in content["optimizers"].items():
        figures.append(Figure(f"{name}, peak memory in GiB", row["peak_gib"]))
        if "step" in row:
            figures.append(Figure(f"{name}, milliseconds", row["step"]["milliseconds"]))
            figures.append(_ratio(f"{name}, ratio to AdamW", row["step"], TRAINING.get(name)))
    return figures


def _ratio(name: str, row: Mapping[str, float], most: float | None = None) -> Figure:
    return Figure(name, row["ratio"], row["low"], row["high"], most)


def run(part: Part, log: Path, deadline: float) -> dict[str, Any]:
    """Run one part until it ends, or the deadline of `time.monotonic`, and read its figures."""
    if part.result is not None:
        part.result.unlink(missing_ok=True)  # of a run before this one
    began = time.monotonic()
    with log.open("ab") as printed:
        printed.write(f"== {part.name}\n".encode())
        printed.flush()
        start = printed.tell()
        with subprocess.Popen(
            [sys.executable, *part.command],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "TQDM_DISABLE": "1", **part.environment},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                code = process.wait(max(0, deadline - time.monotonic()))
                end = "ended" if code == 0 or (part.after_failure and code == 5) else "failed"
            except subprocess.TimeoutExpired:
                end = "stopped"
                process.send_signal(signal.SIGINT)  # pytest then says what failed
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            finally:  # also of one that is stopped itself: the GPU is not to be left busy
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if part.result is None:
        content: Any = log.read_bytes()[start:].decode(errors="replace")
    else:
        content = json.loads(part.result.read_text()) if part.result.exists() else None
    return {
        "part": part.name,
        "end": end,
        "seconds": time.monotonic() - began,
        "figures": [asdict(figure) for figure in part.read(content)] if content else [],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts, print and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="a little of everything")
    parser.add_argument(
        "--seconds", type=positive(float), default=530, metavar="X", help="default: %(default)s"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder of the results (default: results/gpu, or results/gpu-small)",
    )
    args = parser.parse_args(argv)
    deadline = time.monotonic()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # to leave the memory to the parts
    if jax.default_backend() != "gpu" and not args.small:
        parser.error(
            f"JAX finds no GPU, its device is {jax.devices()[0]}; allowed there is --small"
        )
    output = (args.output or Path("results/gpu-small" if args.small else "results/gpu")).absolute()
    output.mkdir(parents=True, exist_ok=True)
    log = output / "log.txt"
    log.unlink(missing_ok=True)
    report: dict[str, Any] = {"benchmark": "gpu", "provenance": reporting.provenance()}
    report["parts"] = []
    with tempfile.TemporaryDirectory() as cache:
        planned = parts(output, Path(cache), args.small)
        shares = sum(part.share for part in planned)
        for part in planned:
            deadline += args.seconds * part.share / shares
            if part.after_failure and report["parts"][-1]["end"] == "ended":
                continue
            report["parts"].append(run(part, log, deadline))
            reporting.write_json(output / "gpu.json", report)
            tables(report)[-1].print()
            if report["parts"][-1]["end"] == "failed":
                print(*log.read_text(errors="replace").splitlines()[-20:], sep="\n")
    if any(part["end"] != "ended" for part in report["parts"]):
        raise SystemExit(1)


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return the figures of each part."""
    return [_table(part) for part in report["parts"]]


def _table(found: Mapping[str, Any]) -> reporting.Table:
    rows = []
    for figure in found["figures"]:
        interval = "" if figure["low"] is None else f"{figure['low']:.3f} … {figure['high']:.3f}"
        most = "" if figure["most"] is None else f"{figure['most']:g}"
        rows.append([figure["name"], f"{figure['value']:.4g}", interval, most])
    return reporting.Table(
        f"{found['part']}: {found['end']} after {found['seconds']:.0f} s",
        ["", "figure", "95 % interval", "at most"],
        rows,
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the part ends, too
    main()
