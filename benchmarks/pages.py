"""Write the tables of stored runs into README.md and docs/*.md.

Run it as `python -m benchmarks.pages`. Between the line `<!-- table: FOLDER/NAME.json N -->` and
the line `<!-- end of table -->` stands table N, counted from 0, of what the script prints after the
run that is stored in benchmarks/results/FOLDER/NAME.json.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import benchmarks.requirements  # noqa: F401 - says what brings a module that follows

from benchmarks import reporting

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKER = re.compile(r"^<!-- table: (.*) -->\n", re.MULTILINE)
END = "<!-- end of table -->\n"


def pages() -> list[Path]:
    """Return the pages that are written."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def stored_tables(path: Path) -> list[reporting.Table]:
    """Return the tables of a stored run, made by the script that it is of."""
    content = json.loads(path.read_text())
    return importlib.import_module(f"benchmarks.{content['benchmark']}").tables(content)


def written(text: str, name: str) -> str:
    """Return a page with each of its tables as the stored run has it.

    Args:
        text: Of the page.
        name: Of the page, for errors.

    Raises:
        ValueError: If a marker is mistyped, names no table, or has no end.
    """
    before, *parts = MARKER.split(text)
    if len(parts) // 2 != len(re.findall("^<!-- table", text, re.MULTILINE)):
        raise ValueError(f"{name}: a marker that begins '<!-- table' is not '<!-- table: … -->'.")
    pieces = [before]
    for marker, part in zip(parts[::2], parts[1::2], strict=True):
        _, end, after = part.partition(END)
        if not end:
            raise ValueError(f"{name}, table {marker!r}: expected a line {END.strip()!r} after it.")
        pieces += [f"<!-- table: {marker} -->\n\n{_markdown(marker, name)}\n\n", end, after]
    return "".join(pieces)


def _markdown(marker: str, page: str) -> str:
    found = re.fullmatch(r"(\S+\.json) (\d+)", marker)
    if found is None or not (RESULTS / found[1]).is_file():
        raise ValueError(
            f"{page}, table {marker!r}: expected FOLDER/NAME.json N of benchmarks/results."
        )
    tables = stored_tables(RESULTS / found[1])
    if int(found[2]) >= len(tables):
        raise ValueError(f"{page}, table {marker!r}: there are {len(tables)}, counted from 0.")
    return tables[int(found[2])].markdown()


def main() -> None:
    """Write every page."""
    for page in pages():
        name = str(page.relative_to(ROOT))
        reporting.write_atomically(page, written(page.read_text(), name))


if __name__ == "__main__":
    main()
