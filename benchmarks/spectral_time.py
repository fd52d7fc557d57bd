"""Measure what a step of the spectral form costs, beside `optax.contrib.muon` and `optax.adamw`.

Run it as `python -m benchmarks.spectral_time`; `--help` is the manual.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PyTree

import qsgd_jax as qsgd
from benchmarks import characters, reporting
from benchmarks.llm.llama import PRESETS, Llama
from benchmarks.step_time import compiled_step, memory, ratios, time_steps

DESCRIPTION = """\
Time one jitted optimizer step, with donated buffers and constant gradients, of

  optax.contrib.muon        five quintics, too, matrix by matrix
  adamw, adamw again        optax.adamw, twice: how far apart they are is noise of the machine
  five quintics             qsgd_jax.superpositional_muon, cascade "muon"
  three stages              the same with its default cascade, "polar-express"
  three stages, bfloat16    the same with product_dtype=bfloat16; not timed on CPU, where XLA
                            multiplies in float32

on trees of parameters (--trees). All that are not AdamW take the same leaves for matrices. In each
round every optimizer takes one step (on an accelerator ten, one after the other), in a random
order; shown are medians over rounds.

  ms             of a step
  floor, ms      the floating-point operations of its matrix products, counted in its jaxpr, over
                 the rate that one large square product of their kind reaches in the same run; more
                 than a step where XLA is quicker at other shapes
  ratio          to the first row, within the round, with its 95 % interval (order statistics)
  held, MB       what the compiled step holds beside its arguments, as XLA plans it
  state, MB      the optimizer's state
  compile, s     from tracing to the executable
  error          of the update of the matrices by rounded products, relative to that of float32, of
                 normal gradients (Frobenius norms)

The next table has the compilation of 24 and of 96 matrices of width 64, and the matrix products in
the compiled programs. With --whole, whole training steps follow, forward and backward included, of
the transformer of benchmarks.character_model (64 wide), and the same four times as wide; ratios are
to AdamW there.

The default takes five to seven minutes on two CPU cores.
"""

EPILOG = """\
trees:
  64, 256, 768  24 matrices, of 4 layers: query, key, value and out of width × width, up of
                width × 4 width, down of 4 width × width
  transformer   the same of 12 layers of width 768, with an embedding of 50,257 tokens, biases and
                norms: about a minute a round on two CPU cores
  llama         Llama 3.2 1B; where the default backend is no GPU it is compiled from shapes alone
"""

MUON, STAGES, ROUNDED = "optax.contrib.muon", "three stages", "three stages, bfloat16"
# Rounds of each tree on a CPU, where 6, the fewest that have an interval, take minutes.
TREES = {"64": 100, "256": 30, "768": 6, "transformer": 6, "llama": 6}
ACCELERATOR_ROUNDS = 40
LAYERS_TO_COMPILE = (4, 16)
WHOLE = {64: 60, 256: 20}  # widths of a training step, and rounds


def optax_muon(learning_rate: Any, **options: Any) -> optax.GradientTransformation:
    """Build `optax.contrib.muon` on the very leaves that the spectral form takes for matrices.

    Args:
        learning_rate: A number or a schedule.
        options: Of `optax.contrib.muon`.
    """

    def of(params: PyTree) -> optax.GradientTransformation:
        axes = {"muon_weight_dimension_numbers": matrix_axes(params)}
        return optax.contrib.muon(learning_rate, **(axes | options))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return of(params).update(updates, state, params)

    return optax.GradientTransformation(lambda params: of(params).init(params), update)


def matrix_axes(params: PyTree) -> PyTree:
    """Return the axes of rows and columns of each leaf, or `None`, as `spectral_routing` prints."""

    def axes(line: str) -> optax.contrib.MuonDimensionNumbers | None:
        _, _, label, why = re.split(r"\s{2,}", line)
        if label != "spectral":
            return None
        found = re.search(r": ([\d, ]+) \| ([\d, ]+)$", why)  # none if it has two
        sides = found.groups() if found else ("0", "1")
        return optax.contrib.MuonDimensionNumbers(
            *(tuple(map(int, side.split(", "))) for side in sides)
        )

    lines = qsgd.spectral_routing(params).splitlines()[1:]
    return jax.tree.unflatten(jax.tree.structure(params), map(axes, lines))


def matrices(params: PyTree) -> list[Any]:
    """Return the leaves that are matrices."""
    axes = jax.tree.leaves(matrix_axes(params), is_leaf=is_axes_or_none)
    return [leaf for leaf, each in zip(jax.tree.leaves(params), axes, strict=True) if each]


def is_axes_or_none(x: Any) -> bool:
    """Return whether it is what `matrix_axes` has for a leaf."""
    return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Return what is compared; the first is what the others are compared with."""
    return {
        MUON: optax_muon(1e-3),
        "adamw": optax.adamw(1e-3),
        "adamw again": optax.adamw(1e-3),
        "five quintics": qsgd.superpositional_muon(1e-3, "muon"),
        STAGES: qsgd.superpositional_muon(1e-3),
        ROUNDED: qsgd.superpositional_muon(1e-3, product_dtype=jnp.bfloat16),
    }


def tree(name: str) -> PyTree:
    """Return a tree of `--trees` as shapes."""
    if name == "llama":
        return nnx.split(nnx.eval_shape(lambda: Llama(PRESETS["llama-3.2-1b"], rngs=nnx.Rngs(0))))[
            1
        ]
    if name == "transformer":
        return layers(12, 768, embedding=50_257)
    return layers(4, int(name))


def layers(count: int, width: int, embedding: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
    """Return a transformer's matrices as shapes; with an embedding also the biases and norms."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (embedding, width)} if embedding else {}
    for layer in range(count):
        shapes |= {f"{layer}/{x}": (width, width) for x in ("query", "key", "value", "out")}
        shapes |= {f"{layer}/up": (width, 4 * width), f"{layer}/down": (4 * width, width)}
        if embedding:
            shapes |= {f"{layer}/{x}_bias": (width,) for x in ("query", "key", "value", "out")}
            shapes |= {f"{layer}/up_bias": (4 * width,), f"{layer}/down_bias": (width,)}
            shapes |= {f"{layer}/norm": (2, width), f"{layer}/norm_bias": (2, width)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def drawn(shapes: PyTree) -> PyTree:
    """Return normal arrays of these shapes."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return structure.unflatten(
        0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    )


def training(
    optimizer: optax.GradientTransformation, graph: nnx.GraphDef, windows: jax.Array
) -> optax.GradientTransformation:
    """Let an optimizer take the gradients of a model's loss, whatever it is given."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del updates
        gradients = jax.grad(partial(characters.mean_loss, graph))(params, windows)
        return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def operations(optimizer: optax.GradientTransformation, params: PyTree) -> Counter[str]:
    """Count the floating-point operations of an update's matrix products, by their kind."""
    state = jax.eval_shape(optimizer.init, params)
    return _of_jaxpr(jax.make_jaxpr(optimizer.update)(params, state, params).jaxpr)


def _of_jaxpr(jaxpr: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found[_kind(eqn)] += _of_product(eqn)
            continue
        inner = [
            _of_jaxpr(getattr(leaf, "jaxpr", leaf))
            for leaf in jax.tree.leaves(list(eqn.params.values()))
            if hasattr(leaf, "eqns")
        ]
        if eqn.primitive.name == "cond":  # by platform: the same in another order
            inner = [max(inner, key=Counter.total)] if inner else []
        for each in inner:
            for kind, count in each.items():
                found[kind] += count * eqn.params.get("length", 1)  # of a scan
    return found


def _kind(eqn: Any) -> str:
    """Name what decides the rate of a product: a GPU's default for float32 is TF32."""
    dtype = str(eqn.invars[0].aval.dtype)
    full = "HIGHEST" in str(eqn.params["precision"]) or jax.default_backend() == "cpu"
    return dtype if full else f"{dtype}, default precision"


def _of_product(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    long = prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * long * prod(eqn.outvars[0].aval.shape)


@cache
def rate(kind: str) -> float:
    """Operations a second of one large square product of a kind."""
    dtype, _, default = kind.partition(", ")
    size = 2048 if jax.default_backend() == "cpu" else 8192
    square = jax.jit(partial(jnp.matmul, precision=None if default else "highest"))
    x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        jax.block_until_ready(square(x, x))
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[2:])  # the first compile and warm up


def relative_error(params: PyTree) -> float:
    """Of the update of the matrices by bfloat16 products to that by float32 ones."""

    def update(name: str) -> Any:
        chosen = optimizers()[name]
        return jax.jit(lambda m: chosen.update(m, chosen.init(m), m)[0])(matrices(params))

    full, rounded = update(STAGES), update(ROUNDED)
    difference = optax.tree.sub(rounded, full)
    return float(optax.tree.norm(difference) / optax.tree.norm(full))


def measure(
    compared: Mapping[str, optax.GradientTransformation], params: PyTree, rounds: int, describe: str
) -> dict[str, dict[str, Any]]:
    """Return the columns of each optimizer; without rounds nothing is allocated."""
    steps, rows = {}, {}
    for name, optimizer in compared.items():
        jax.clear_caches()  # none gains by what another one has traced
        steps[name], seconds = compiled_step(optimizer, params)
        rows[name] = {
            "compile_seconds": seconds,
            "products": products(steps[name]),
            "operations": operations(optimizer, params),
        }
    for name, held in memory(compared, params, steps).items():
        rows[name] |= {"held_bytes": held["default"], "state_bytes": held["state"]}
    if not rounds:
        return rows
    if jax.default_backend() == "cpu":
        steps.pop(ROUNDED, None)  # XLA:CPU multiplies in float32
    for name, times in ratios(time_steps(compared, params, rounds, describe, steps)).items():
        floor = sum(count / rate(kind) for kind, count in rows[name]["operations"].items())
        rows[name] |= times | {"floor_milliseconds": 1e3 * floor}
    return rows


def products(compiled: Any) -> int:
    """Count the matrix products in a compiled program, a loop's once."""
    called = r' dot\(|custom_call_target="[^"]*(?:gemm|matmul)'
    return len(re.findall(called, compiled.as_text()))


def whole_step(width: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure training steps of the character model, relative to AdamW's."""
    text = characters.read_text(characters.TEXT)
    windows = text.windows[: characters.BATCH_SIZE]
    model = characters.CharacterModel(
        len(text.characters), features=width, hidden=2 * width, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(model)
    found = {name: training(o, graph, windows) for name, o in optimizers().items()}
    first = {name: found.pop(name) for name in ("adamw", "adamw again")}
    return measure(first | found, params, rounds, f"training, {width} wide")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spectral_time",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--trees",
        choices=TREES,
        nargs="+",
        default=["64", "256", "768", "llama"],
        metavar="NAME",
        help=f"some of: {' '.join(TREES)} (default: 64 256 768 llama)",
    )
    parser.add_argument("--whole", action="store_true", help="also whole training steps")
    on_cpu = ", ".join(f"{rounds} of {name}" for name, rounds in TREES.items())
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="X",
        help=f"default: {on_cpu}; on an accelerator {ACCELERATOR_ROUNDS}",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="PATH",
        help="folder for spectral_time.json (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.rounds is not None and args.rounds < 6:
        parser.error(f"argument --rounds: {args.rounds} is too few for an interval; at least 6")
    accelerated = jax.default_backend() != "cpu"

    def rounds(default: int) -> int:
        return args.rounds or (ACCELERATOR_ROUNDS if accelerated else default)

    report: dict[str, Any] = {"benchmark": "spectral_time", "provenance": reporting.provenance()}
    report |= {"trees": {}, "compiling": {}, "whole": {}, "rates": {}}

    def write(part: str, key: str, content: Any) -> None:
        # After each: what is killed at the next one keeps this one.
        report[part][key] = content
        kinds = {kind for x in _rows(report) if "ratio" in x for kind in x["operations"]}
        report["rates"] = {kind: rate(kind) for kind in sorted(kinds)}
        reporting.write_json(args.output / "spectral_time.json", report)

    compared = optimizers()
    for name in args.trees:
        params = tree(name)
        content = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "matrices": len(matrices(params)),
        }
        timed = name != "llama" or jax.default_backend() == "gpu"
        params = drawn(params) if timed else params
        rows = measure(compared, params, rounds(TREES[name]) if timed else 0, name)
        if timed:
            rows[ROUNDED]["error"] = relative_error(params)
        write("trees", name, content | {"optimizers": rows})
    for width, default in WHOLE.items() if args.whole else ():
        write("whole", str(width), whole_step(width, rounds(default)))
    for count in LAYERS_TO_COMPILE:
        write("compiling", str(6 * count), measure(compared, layers(count, 64), 0, ""))
    for table in tables(report):
        table.print()


def _rows(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    of_trees = [found["optimizers"] for found in report["trees"].values()]
    return [row for rows in [*of_trees, *report["whole"].values()] for row in rows.values()]


def tables(report: Mapping[str, Any]) -> list[reporting.Table]:
    """Return a step of each tree, what compiling takes, and whole training steps."""
    notes = [
        f"A large square product, {kind}: {found / 1e9:,.0f} Gflop/s"
        for kind, found in report["rates"].items()
    ]
    found = [
        _table(
            f"One step of {name}: {content['matrices']} matrices, "
            f"{content['parameters'] / 1e6:.1f} M parameters",
            content["optimizers"],
            notes,
        )
        for name, content in report["trees"].items()
    ]
    counts = report["compiling"]
    if counts:
        found.append(
            reporting.Table(
                f"Compiling a step of {' and of '.join(counts)} matrices of width 64",
                [
                    "optimizer",
                    *(f"{count}: {x}" for count in counts for x in ("s", "matrix products")),
                ],
                [
                    [
                        name,
                        *(
                            cell
                            for rows in counts.values()
                            for row in [rows[name]]
                            for cell in (f"{row['compile_seconds']:.2f}", f"{row['products']}")
                        ),
                    ]
                    for name in next(iter(counts.values()))
                ],
            )
        )
    return found + [
        _table(f"One training step of the character model, {width} wide", rows, notes)
        for width, rows in report["whole"].items()
    ]


def _table(title: str, rows: Mapping[str, Any], notes: Sequence[str]) -> reporting.Table:
    errors = any("error" in row for row in rows.values())

    def cells(row: Mapping[str, Any]) -> list[str]:
        timed = ["", "", "", ""]
        if "ratio" in row:
            timed = [f"{row[key]:.2f}" for key in ("milliseconds", "floor_milliseconds")]
            timed += [f"{row['ratio']:.3f}", f"{row['low']:.3f} … {row['high']:.3f}"]
        sizes = [f"{row[key] / 1e6:.2f}" for key in ("held_bytes", "state_bytes")]
        error = [f"{row['error']:.1e}" if "error" in row else ""] if errors else []
        return [*timed, *sizes, f"{row['compile_seconds']:.2f}", *error]

    columns = ["optimizer", "ms", "floor, ms", f"ratio to {next(iter(rows))}", "95 % interval"]
    columns += ["held, MB", "state, MB", "compile, s", *(["error"] if errors else [])]
    return reporting.Table(
        title, columns, [[name, *cells(row)] for name, row in rows.items()], notes
    )


if __name__ == "__main__":
    main()
