"""What may import what in the package; CONTRIBUTING.md tells the rooms in words."""

import ast
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qsgd_jax"
LONGEST = 350
# What the page names beside the package's own.
OUTSIDE = {"benchmarks", "experiments", "qsgd_jax"}
# Files by their names on the map.
ROOMS = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().removeprefix("_src/"): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}

# Each file imports those after its colon, which all stand below it, and no others of the package.
MAP = """
transforms: source weighing diagnostics refreshable trees
spectral/transforms: spectral/cascade spectral/matrices spectral/second_moment spectral/routing
  spectral/state spectral/building trees typing
spectral/warm_start: spectral/state
spectral/state: spectral/routing trees
spectral/matrices: spectral/products spectral/whole spectral/cascade trees
spectral/products: spectral/cascade spectral/polynomials
spectral/whole:
spectral/second_moment: trees
source: weighing coverage sampling refreshable direct surrogate diagnostics probing circuit typing
weighing: coverage sampling direct surrogate trees typing
diagnostics: coverage trees typing
coverage: blocks xla trees typing
sampling: direct surrogate checks
direct: surrogate devices circuit half_turns checks
spectral/building: spectral/cascade spectral/angles spectral/polynomials spectral/circuit
  surrogate checks
spectral/cascade: spectral/polynomials surrogate saving trees
spectral/angles: spectral/polynomials
spectral/circuit: probing surrogate circuit
spectral/routing: trees typing
spectral/polynomials:
remote/metric_prober: remote/beside remote/asker remote/answers remote/process remote/messages
  refreshable natural hybrid/fubini_study typing
remote/prober: remote/beside remote/asker remote/answers remote/process refreshable
  probing circuit checks typing
remote/beside: remote/asker remote/schedule checks
remote/asker: remote/answers remote/process remote/schedule
remote/worker: hybrid/fubini_study remote/answers remote/messages devices circuit
remote/answers: devices circuit fourier
remote/process: circuit
refreshable: surrogate typing
probing: surrogate qnodes devices circuit fourier provenance checks
surrogate: fourier half_turns saving provenance trees
nn/_transformer: nn/_attention
nn/_layer: hybrid/functions hybrid/held hybrid/refusing devices host checks
natural: trees
hybrid/fubini_study: hybrid/geometry hybrid/held hybrid/refusing devices host checks trees typing
hybrid/geometry: hybrid/functions hybrid/gates hybrid/gathering hybrid/refusing hybrid/tracing host
hybrid/gates: hybrid/refusing hybrid/tracing devices host
hybrid/functions: hybrid/asking hybrid/gathering hybrid/tracing devices host
hybrid/gathering:
hybrid/asking: hybrid/tracing host
hybrid/tracing: hybrid/refusing host
hybrid/refusing:
hybrid/held:
nn/_attention: harmonics devices circuit checks
harmonics: half_turns trees xla
qnodes: devices host circuit
devices: callbacks host circuit
callbacks: host circuit
host: circuit
circuit: compatibility
fourier: half_turns
blocks: xla
saving: provenance
trees: typing
remote/schedule:
remote/messages:
compatibility:
half_turns:
xla:
provenance:
checks:
typing:
"""


def _imports(path: Path) -> set[str]:
    """The modules that a file names in its imports, and the names that it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path} imports relative to itself"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_pennylane":
            found |= {f"qsgd_jax._src.{x.value}" for x in node.args if isinstance(x, ast.Constant)}
    return found


def _neighbours(path: Path) -> set[str]:
    """The rooms that a file imports."""
    found = set()
    for name in _imports(path):
        if name.split(".")[0] == "qsgd_jax":
            place = name.removeprefix("qsgd_jax.").removeprefix("_src.").replace(".", "/")
            room = place if place in ROOMS else place.rpartition("/")[0]
            assert room in ROOMS, f"{path} imports {name}"
            found |= {room} & set(ROOMS)
    return found


def _importers(library: str) -> set[str]:
    return {
        room
        for room, path in ROOMS.items()
        if any(name.partition(".")[0] == library for name in _imports(path))
    }


def _map() -> Mapping[str, Sequence[str]]:
    """Each room and those that it imports, in the map's order."""
    lines = [line.partition(":") for line in MAP.replace("\n ", "").strip().splitlines()]
    return {room: others.split() for room, _, others in lines}


def test_the_map_is_that_of_the_code():
    drawn = {room: set(others) for room, others in _map().items()}
    assert drawn == {room: _neighbours(path) for room, path in ROOMS.items()}


def test_data_flow_one_way():
    order = list(_map())
    for place, (room, others) in enumerate(_map().items()):
        assert not set(others) & set(order[: place + 1]), f"{room} imports what stands above it"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        (
            "optax",
            {
                "transforms",
                "source",
                "diagnostics",
                "natural",
                "trees",
                "spectral/transforms",
                "spectral/matrices",
                "spectral/routing",
                "spectral/second_moment",
                "spectral/state",
                "spectral/warm_start",
            },
        ),
        (
            "pennylane",
            {
                "circuit",
                "compatibility",
                "devices",
                "host",
                "probing",
                "qnodes",
                "spectral/circuit",
                "hybrid/functions",
                "hybrid/asking",
                "hybrid/fubini_study",
                "hybrid/gates",
                "hybrid/geometry",
                "hybrid/refusing",
                "hybrid/tracing",
                "nn/_layer",
            },
        ),
        ("flax", {"nn/_attention", "nn/_layer", "nn/_transformer"}),
    ],
)
def test_each_library_is_known_to_few(library, rooms):
    assert _importers(library) == rooms


def test_contributors_are_told_of_every_room():
    page = (ROOT / "CONTRIBUTING.md").read_text().partition("## Rooms")[2].partition("## ")[0]
    told, here = set(re.findall(r"`(\w+)/?`", page)), {part for r in ROOMS for part in r.split("/")}
    assert {room for room in here if room.removeprefix("_") not in told} == set()
    assert {room for room in told if not {room, f"_{room}"} & here} == OUTSIDE


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_is_long(room):
    assert len(ROOMS[room].read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "experiments"])
def test_who_uses_the_package_uses_public_names(folder):
    for path in (ROOT / folder).rglob("*.py"):
        if "tests" not in path.parts[len(ROOT.parts) :]:
            used = {name for name in _imports(path) if name.split(".")[0] == "qsgd_jax"}
            assert not {name for name in used if "._" in name}, path


@pytest.mark.parametrize(
    ("use", "library", "other"),
    [
        ("qsgd.nn.QuantumAttention", "flax", None),
        ("qsgd.Circuit()", "pennylane", "flax"),
        ("qsgd.probe", "pennylane", "flax"),
        ("qsgd.RemoteProber", "pennylane", "flax"),
        ("qsgd.superpositional_adamw(0.1)", "pennylane", "flax"),
    ],
)
def test_flax_and_pennylane_are_imported_by_who_uses_them_alone(use, library, other):
    program = (
        "import sys, qsgd_jax as qsgd; "
        "assert not {'flax', 'pennylane'} & set(sys.modules); "
        f"{use}; assert {library!r} in sys.modules and {other!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_there_is_nothing_else_in_the_package():
    import qsgd_jax

    with pytest.raises(AttributeError, match="has no attribute 'fourier'"):
        _ = qsgd_jax.fourier  # pyright: ignore[reportAttributeAccessIssue]


def test_benchmarks_know_nothing_of_experiments():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert not any(name.split(".")[0] == "experiments" for name in _imports(path)), path
