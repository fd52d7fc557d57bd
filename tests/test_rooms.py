"""What may import what: the rooms of the package, as CONTRIBUTING.md draws them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _imports(path: Path) -> set[str]:
    """The modules that a file names in its imports, and the names that it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _importers(library: str) -> set[str]:
    files = (ROOT / "qsgd_jax").rglob("*.py")
    return {
        path.stem
        for path in files
        if any(name.partition(".")[0] == library for name in _imports(path))
    }


def test_each_library_is_known_to_few():
    assert _importers("optax") == {"transforms", "trees"}
    assert _importers("pennylane") == {"circuit", "compatibility", "compiled", "devices", "host"}
    assert _importers("flax") == {"_attention", "_transformer"}


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "experiments"])
def test_who_uses_the_package_uses_public_names(folder):
    for path in (ROOT / folder).rglob("*.py"):
        if "tests" not in path.parts[len(ROOT.parts) :]:
            used = {name for name in _imports(path) if name.split(".")[0] == "qsgd_jax"}
            assert not {name for name in used if "._" in name}, path


def test_flax_is_imported_by_who_uses_it_alone():
    program = (
        "import sys, qsgd_jax as qsgd; assert 'flax' not in sys.modules; "
        "qsgd.nn.QuantumAttention; assert 'flax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_there_is_nothing_else_in_the_package():
    import qsgd_jax

    with pytest.raises(AttributeError, match="has no attribute 'fourier'"):
        _ = qsgd_jax.fourier  # pyright: ignore[reportAttributeAccessIssue]


def test_benchmarks_know_nothing_of_experiments():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert not any(name.split(".")[0] == "experiments" for name in _imports(path)), path
