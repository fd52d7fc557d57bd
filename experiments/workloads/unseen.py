"""Real tasks that chose nothing of the package: none of its numbers was ever set on them.

`split` chooses the examples that `validation_loss` reads: tuning looks at "validation", the final
figures come from "test". The training examples are the same.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

from benchmarks import datasets
from experiments.engine.workload import SplitName, Workload
from experiments.workloads.classification import classifier
from experiments.workloads.real import (
    WIDE,
    HeldOut,
    character_model,
    check,
    fine_tuning,
    held_out,
)

# Of CPython 3.11.7; its hash pins them.
MODULES = (
    *("argparse", "ast", "configparser", "contextlib", "dataclasses", "datetime", "difflib"),
    *("doctest", "enum", "functools", "inspect", "ipaddress", "mailbox", "optparse", "pathlib"),
    *("pickle", "pydoc", "random", "shutil", "statistics", "subprocess", "tarfile", "typing"),
)
SOURCES_SHA256 = "c906e99d52f6ee1108c56a3ca3d8cd822bca1e5f34b2955184e0f99f65179692"


def wikitext2(folder: Path) -> str:
    """Wikipedia's articles, of WikiText-2's validation and test files.

    Args:
        folder: Holds `valid.txt` and `test.txt`.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    files = [folder / f"{name}.txt" for name in ("valid", "test")]
    for file in files:
        check(file, "WikiText-2 (pytorch/examples)")
    return "".join(file.read_text(encoding="utf-8") for file in files)


def encyclopedia(folder: Path, *, width: int = 64, split: SplitName = "validation") -> Workload:
    """A small causal transformer that predicts the next character of Wikipedia.

    Args:
        folder: Of WikiText-2.
        width: Of the residual stream.
        split: What the evaluation reads.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    name = "wikitext" if width == 64 else "wikitext-wide"
    return character_model(name, wikitext2(folder), width=width, split=split)


def sources(*, split: SplitName = "validation") -> Workload:
    """The same model on modules of Python's standard library.

    Args:
        split: What the evaluation reads.

    Raises:
        ValueError: If this Python has others.
    """
    library = Path(sysconfig.get_path("stdlib"))
    text = "\n".join((library / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != SOURCES_SHA256:
        raise ValueError(
            f"the standard library's sources have the SHA-256 {found}; expected is "
            f"{SOURCES_SHA256}, of CPython 3.11.7."
        )
    return character_model("sources", text, split=split)


def hwu64(folder: Path, *, split: SplitName = "validation") -> Workload:
    """The paper's transformer, without quantum attention, on 64 intents of requests.

    Args:
        folder: Holds a `.text` and a `.label` for each of train, valid and test.
        split: What the evaluation reads.

    Raises:
        FileNotFoundError: If a file is missing.
    """

    def entries(name: str) -> list[tuple[str, str]]:
        files = [folder / f"{name}.{kind}" for kind in ("text", "label")]
        for file in files:
            check(file, "HWU64 (xliuhw/NLU-Evaluation-Data)")
        texts, labels = (file.read_text(encoding="utf-8").splitlines() for file in files)
        return list(zip(texts, labels, strict=True))

    train, validation, test = map(entries, ("train", "valid", "test"))
    classes = {label for _, label in train}
    dataset = datasets.requests("hwu64", train, validation, test, classes=classes)
    return classifier("hwu64", dataset, split=split)


def stories(folder: Path, texts: Path, *, split: SplitName = "validation") -> Workload:
    """Fine-tune the Llama of children's stories to Wikipedia.

    Args:
        folder: The checkpoint and its tokenizer.
        texts: Of WikiText-2.
        split: What the evaluation reads.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    return fine_tuning("stories-wikitext", folder, wikitext2(texts), split=split)


UNSEEN: dict[str, HeldOut] = {
    "wikitext": held_out(encyclopedia, "wikitext2", horizon=1000),
    "sources": held_out(sources, horizon=1000),
    "hwu64": held_out(hwu64, "hwu64", horizon=1000),
    "stories-wikitext": held_out(stories, "stories260k", "wikitext2", horizon=200),
    "wikitext-wide": held_out(encyclopedia, "wikitext2", width=WIDE, horizon=1000),
    "wikitext-long": held_out(encyclopedia, "wikitext2", horizon=5000),
}
