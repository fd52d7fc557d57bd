"""The run on a GPU: parts that end, fail and are stopped, and how their figures are read."""

import importlib
import json
import os
import subprocess
import time

import jax
import pytest

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
def test_all_parts_are_run_and_reported_and_what_failed_once_more(tmp_path, monkeypatch, passes):
    outcome = "PASSED" if passes else "FAILED"
    prints = f"print('[gw0] [100%] {outcome} tests/test_a.py::test_one '); exit({1 - passes})"
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
