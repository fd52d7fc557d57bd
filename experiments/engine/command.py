"""The command line that studies share."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.engine.results import read_results, write_compressed


def parser(study: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that each study has.

    Args:
        study: Its module in `experiments`.
        description: For `--help`.
    """
    found = argparse.ArgumentParser(
        prog=f"python -m experiments.{study}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--data", type=Path, metavar="PATH", help="run, with this folder of data")
    found.add_argument(
        "--output",
        type=Path,
        default=Path(f"results/{study}"),
        metavar="PATH",
        help="folder of the runs (default: %(default)s)",
    )
    found.add_argument("--pack", type=Path, metavar="PATH", help="copy the runs there, compressed")
    found.add_argument("--report", type=Path, metavar="FILE", help="write tables and figures")
    return found


def parse(
    found: argparse.ArgumentParser, argv: Sequence[str] | None, *more: str
) -> argparse.Namespace:
    """Parse arguments, of which one must say what is to be done.

    Args:
        found: From `parser`.
        argv: The arguments.
        more: Options that also say what is to be done.
    """
    args = found.parse_args(argv)
    jobs = ("data", "pack", "report", *more)
    if all(getattr(args, job) is None for job in jobs):
        given = [f"--{job}" for job in jobs]
        found.error(f"nothing to do: give {', '.join(given[:-1])} or {given[-1]}")
    return args


def pack(output: Path, folder: Path, lines: Sequence[str], others: Sequence[str]) -> None:
    """Copy what there is of a study's files.

    Args:
        output: Where they are.
        folder: Where they are to be.
        lines: Names of those of results, which are compressed.
        others: Names of the others.

    Raises:
        FileNotFoundError: If there are no results.
    """
    if not any((output / name).exists() for name in lines):
        raise FileNotFoundError(f"{output}: none of {', '.join(lines)} is there.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in lines:
        if (output / name).exists():
            write_compressed(folder / f"{name}.gz", read_results(output / name))
    for name in others:
        if (output / name).exists():
            shutil.copy(output / name, folder)


def packed(folder: Path, name: str) -> Path | None:
    """Return the file of results of this name, compressed or not, if there is one.

    Args:
        folder: Of the study.
        name: As it is not compressed.
    """
    return next((x for x in (folder / f"{name}.gz", folder / name) if x.exists()), None)
