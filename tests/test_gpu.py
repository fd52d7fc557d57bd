"""The run on a GPU: parts that end, fail and are stopped, and how their figures are read."""

import importlib
import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import jax
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu, reporting

PRINTED = """\
12 workers [7 items]
[gw0] [ 10%] PASSED tests/test_a.py::test_one[a b]\x20
[gw11] [ 20%] FAILED tests/test_a.py::test_two\x20
[gw0] [100%] PASSED tests/test_a.py::test_three - of a name like that\x20
FAILED tests/test_a.py::test_two - AssertionError
ERROR tests/test_b.py - ImportError
"""


def part(name, program, read=gpu._tests, **options):
    return gpu.Part(name, 1, ["-c", program], read, **options)


def writes(path, ratio, more=""):
    row = {"ratio": ratio, "low": 0.9, "high": 1.1}
    content = json.dumps({"steps": {"10000000": {"adamw": row, "leading": row}}})
    return f"import pathlib, time; pathlib.Path({str(path)!r}).write_text({content!r}); {more}"


def test_each_test_is_counted_once():
    passed, not_passed, not_run = gpu._tests(PRINTED)
    assert (passed.value, not_passed.value, not_passed.most) == (2, 2, 0)
    assert not_run.value == 7 - 4


def test_a_part_that_is_stopped_keeps_what_it_has(tmp_path):
    result = tmp_path / "step_time.json"
    sleeps = part("steps", writes(result, 1.5, "time.sleep(60)"), gpu._steps, result=result)
    found = gpu.run(sleeps, tmp_path / "log.txt", time.monotonic() + 5)
    assert found["end"] == "stopped" and 5 <= found["seconds"] < 30
    (figure,) = found["figures"]
    assert figure == {"name": "10 M: leading", "value": 1.5, "low": 0.9, "high": 1.1, "most": 1.01}


def test_a_run_that_is_interrupted_leaves_nothing_running(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    sleeps = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))"

    def interrupt(process, seconds):
        monkeypatch.undo()
        while not pid.exists() or not pid.read_text():
            time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(part("sleeps", f"{sleeps}; time.sleep(60)"), tmp_path / "log.txt", 0.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_part_that_fails_has_no_figures_of_an_earlier_run(tmp_path):
    result = tmp_path / "step_time.json"
    ends = part("steps", writes(result, 1.0), gpu._steps, result=result)
    fails = part("steps", "print('no', 'memory'); 1 / 0", gpu._steps, result=result)
    log, deadline = tmp_path / "log.txt", time.monotonic() + 60
    assert gpu.run(ends, log, deadline)["figures"]
    found = gpu.run(fails, log, deadline)
    assert found["end"] == "failed" and found["figures"] == []
    assert "no memory" in log.read_text() and "ZeroDivisionError" in log.read_text()


@pytest.mark.parametrize("passes", [True, False])
def test_all_parts_are_run_and_reported_and_what_failed_once_more(
    tmp_path, monkeypatch, capsys, passes
):
    outcome = "PASSED" if passes else "FAILED"
    line = f"[gw0] [100%] {outcome} tests/test_a.py::test_one "
    prints = f"print({line!r}, 'and that is all', sep='\\n'); exit({1 - passes})"
    result = tmp_path / "step_time.json"
    planned = [
        part("tests", prints),
        part(
            "again", "print('[gw0] [100%] PASSED tests/test_a.py::test_one ')", after_failure=True
        ),
        part("steps", writes(result, 1.0), gpu._steps, result=result),
    ]
    monkeypatch.setattr(gpu, "parts", lambda *_: planned)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")  # which the run sets
    arguments = ["--small", "--seconds", "60", "--output", str(tmp_path)]
    if passes:
        gpu.main(arguments)
    else:
        with pytest.raises(SystemExit, match="1"):
            gpu.main(arguments)
    assert ("and that is all" in capsys.readouterr().out) == (
        not passes
    )  # what a failed part said last
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    expected = [("tests", passes), *([] if passes else [("again", True)]), ("steps", True)]
    assert [(row["part"], row["end"] == "ended") for row in found] == expected
    assert [figure["value"] for figure in found[0]["figures"]] == [passes, 1 - passes, 0]


@pytest.mark.parametrize("small", [True, False])
def test_each_script_takes_its_options(tmp_path, small):
    scripts = [each for each in gpu.parts(tmp_path, tmp_path, small) if each.result is not None]
    for each in scripts:
        module = importlib.import_module(each.command[1])
        with pytest.raises(SystemExit, match="0"):  # what is not allowed is refused before
            module.main([*each.command[2:], "--help"])
    assert {each.result.name for each in scripts} == {  # pyright: ignore[reportOptionalMemberAccess]
        "step_time.json",
        "spectral_time.json",
        "attention_time.json",
        "quantum_layer_time.json",
        "llm_cost.json",
    }


def required(file):
    lines = (Path(gpu.__file__).parent / file).read_text().splitlines()
    return {
        canonicalize_name(Requirement(line).name)
        for line in lines
        if line and not line.startswith("#")
    }


def with_what_they_require(distributions):
    """Add, over and over, what pip would install with them."""
    found, new = set(), set(distributions)
    while new:
        found |= new
        needs = [need for name in new for need in metadata.requires(name) or []]
        new = {
            canonicalize_name(need.name)
            for need in map(Requirement, needs)
            if need.marker is None or need.marker.evaluate({"extra": ""})
        } - found
    return found


def test_the_scripts_need_no_package_that_a_machine_with_a_gpu_lacks(tmp_path):
    there = with_what_they_require(required("gpu_machine.txt")) | required("gpu_wheels.txt")
    there.add("qsgd-jax")
    lacking = [
        module
        for module, names in metadata.packages_distributions().items()
        if not there & set(map(canonicalize_name, names))
    ]
    assert "transformers" in lacking
    scripts = [each.command[1] for each in gpu.parts(tmp_path, tmp_path, True) if each.result]
    program = f"""import importlib, sys
class Lacking:
    def find_spec(name, path, target=None):
        if name in {lacking!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking)
for script in {scripts!r}:
    importlib.import_module(script)"""
    tried = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr


def test_without_a_gpu_it_says_what_is_allowed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(SystemExit):
        gpu.main(["--output", str(tmp_path)])
    assert "no GPU" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_table_keeps_whole_names_however_narrow_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    rows = [[f"lightning.qubit-{i}", "figures of some length"] for i in range(3)]
    reporting.Table("Title", ["a long name of a column", "another"], rows).print()
    printed = capsys.readouterr().out
    assert all(cell in printed for row in rows for cell in row)
    assert "a long name of a column" in printed
