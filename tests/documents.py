"""What the pages of the repository hold: code, commands, links."""

import re
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [
    *GUIDES,
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "experiments").rglob("*.md")),
]


def name(page: Path) -> str:
    """A page by its path in the repository."""
    return str(page.relative_to(ROOT))


def run(page: Path) -> None:
    """Run a page's Python from top to bottom, as one program; errors tell the page's line."""
    for example in Sybil([PythonCodeBlockParser()]).parse(page).examples():
        example.evaluate()


def commands(page: Path) -> list[str]:
    """The shell commands of a page, in its text and in its blocks."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = [" ".join(code.split()) for code in [*lines, *re.findall(r"`([^`]+)`", prose)]]
    return [code for code in found if code.split(" ")[0] in ("python", "pip", "make", "pytest")]


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }
