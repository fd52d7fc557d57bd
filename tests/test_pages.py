"""The pages: their code runs, commands and links lead somewhere, tables are of stored runs."""

import argparse
import importlib
import re
import shlex
import tomllib

import pytest
import yaml

import qsgd_jax as qsgd
from benchmarks import pages
from benchmarks.reporting import Table
from tests import documents

PAGE = "Before.\n\n<!-- table: step_time/step_time.json 0 -->\n<!-- end of table -->\n\nAfter.\n"
README = documents.ROOT / "README.md"
WORKFLOW = documents.ROOT / ".github" / "workflows" / "test.yml"
CI = documents.ROOT / ".ci" / "run"
YAML = [
    *sorted((documents.ROOT / ".github").rglob("*.yml")),
    documents.ROOT / ".pre-commit-config.yaml",
    documents.ROOT / "CITATION.cff",
]
MAKEFILE = (documents.ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((documents.ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
STORED = sorted(pages.RESULTS.glob("*/*.json"))


@pytest.mark.parametrize(
    "page",
    [page for page in documents.GUIDES if page.stem != "catalyst"],  # `make test-catalyst` runs it
    ids=documents.name,
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents.run(page)


def test_code_that_fails_is_told_by_the_line_of_its_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\n```\n\nText.\n\n```python\nx / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as raised:
        documents.run(page)
    assert (raised.traceback[-1].path, raised.traceback[-1].lineno) == (page, 9)


class _Parsed(Exception):  # noqa: N818 - what a command line that a script takes ends in
    pass


def _follow(command, monkeypatch):
    """Fail unless the command is one that can be typed here."""
    words = shlex.split(command)
    if words[0] == "make":
        for target in words[1:]:
            assert "=" in target or re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), command
    elif words[0] == "pip":
        for extra in re.findall(r"\.\[(\w+)\]", command):
            assert extra in EXTRAS, command
    else:
        files = [
            word.partition("::")[0]
            for word in words
            if re.match(r"(tests|benchmarks)/.*\.py", word)
        ]
        assert all((documents.ROOT / file).exists() for file in files), command
        module = words[2] if words[1] == "-m" else None
        if words[0] == "python" and files:
            module, words = files[0].removesuffix(".py").replace("/", "."), ["", *words]
        if module and module.startswith("experiments"):  # its own tests know its arguments
            place = documents.ROOT / module.replace(".", "/")
            assert place.is_dir() or place.with_suffix(".py").is_file(), command
        elif module and module.startswith("benchmarks"):
            _parse(importlib.import_module(module).main, words[3:], monkeypatch)


def _parse(main, arguments, monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self, *given):
        parse_args(self, *given)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(_Parsed):
        main(arguments)


@pytest.mark.parametrize("page", documents.PAGES, ids=documents.name)
def test_the_commands_of_a_page_can_be_typed(page, monkeypatch):
    for command in documents.commands(page):
        _follow(command, monkeypatch)


def test_the_workflow_calls_targets_of_the_makefile():
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    targets = {x for job in jobs for x in job["strategy"]["matrix"]["target"]}
    (own,) = re.findall("^for target in (.+); do", CI.read_text(), re.MULTILINE)
    assert set(own.split()) - {"docs"} <= targets and "docs-test" in targets  # which builds it
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


@pytest.mark.parametrize("path", YAML, ids=documents.name)
def test_files_for_the_host_are_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_readme_has_commands():
    assert {"make demo", "make test", "pip install ."} <= set(documents.commands(README))


@pytest.mark.parametrize(
    "command",
    [
        "make tests",
        "pip install '.[gpu]'",
        "pytest tests/test_nothing.py",
        "python -m benchmarks.step_time --turns 3",
        "python benchmarks/step_time.py --rounds three",
        "python -m experiments.nothing",
    ],
)
def test_a_command_that_cannot_be_typed_is_seen(command, monkeypatch, capsys):
    with pytest.raises((AssertionError, SystemExit)):
        _follow(command, monkeypatch)


@pytest.mark.parametrize("page", documents.PAGES, ids=documents.name)
def test_the_links_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith("http"):
            assert target.exists(), link
            assert not anchor or anchor in documents.anchors(target), link


def test_the_readme_is_a_screenful():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert all(len(line) <= 130 for line in lines if not line.startswith("|"))


@pytest.mark.parametrize("page", pages.pages(), ids=documents.name)
def test_each_page_is_what_its_stored_runs_say(page):
    text = page.read_text()
    assert text == pages.written(text, documents.name(page)), "`make pages` writes it"


@pytest.mark.parametrize("path", STORED, ids=documents.name)
def test_each_stored_run_gives_tables_without_gaps(path):
    tables = pages.stored_tables(path)
    assert tables
    for table in tables:
        assert table.rows and {len(row) for row in table.rows} == {len(table.columns)}


def test_a_figure_that_is_not_the_runs_is_seen():
    page = pages.written(PAGE, "page.md")
    assert page.startswith("Before.\n\n<!-- table") and page.endswith("-->\n\nAfter.\n")
    assert pages.written(page, "page.md") == page
    figure = re.findall(r"\d\.\d{3}", page)[0]
    altered = page.replace(figure, "9.999", 1)
    assert pages.written(altered, "page.md") == page != altered


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("json 0", "json 99", r"page\.md, table 'step_time/step_time\.json 99': there are \d+"),
        ("json 0", "json -1", r"page\.md, table 'step_time/step_time\.json -1': expected FOLDER"),
        ("json 0", "json", r"page\.md, table 'step_time/step_time\.json': expected FOLDER"),
        ("time.json", "times.json", r"page\.md, table 'step_time/step_times\.json 0': expected"),
        ("table: ", "table:", r"page\.md: a marker that begins '<!-- table' is not"),
        ("end of", "end", r"page\.md, table 'step_time/step_time\.json 0': expected a line"),
    ],
)
def test_a_marker_of_no_table_is_refused_by_name(old, new, message):
    with pytest.raises(ValueError, match=message):
        pages.written(PAGE.replace(old, new), "page.md")


def test_a_table_as_markdown():
    table = Table("Title", ["arm", "|x|"], [["a", "1"], ["b", ""]], ["One thing", "And another."])
    assert table.markdown().splitlines() == [
        "**Title**",
        "",
        "| arm | \\|x\\| |",
        "| --- | --: |",
        "| a | 1 |",
        "| b |  |",
        "",
        "One thing. And another.",
    ]


def test_the_reference_has_every_public_name_once():
    page = (documents.ROOT / "docs" / "reference.md").read_text()
    told = re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", page, re.MULTILINE)
    assert sorted(told) == sorted({*qsgd.__all__, *qsgd.nn.__all__} - {"nn"})


def test_every_page_of_the_site_is_in_its_contents():
    docs = documents.ROOT / "docs"
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", (docs / "index.md").read_text(), re.S | re.M)
    told = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    pages = {str(x.relative_to(docs).with_suffix("")) for x in docs.rglob("*.md")} - {"index"}
    assert sorted(told) == sorted(pages - {x for x in pages if x.startswith("_build")})
