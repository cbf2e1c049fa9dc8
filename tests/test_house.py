"""The house keeps its shape: rooms in the order of the road, imports that run one way, files and functions to read."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]

# From the ground up: a room imports itself and what stands before it.
ROOMS = (
    "errors",
    "version",
    "host",
    "spec",
    "records",
    "tasks",
    "texts",
    "qmath",
    "graph",
    "sizes",
    "probe",
    "rewrite",
    "passes",
    "run",
    "load",
    "models",
    "artifact",
    "proof",
    "timing",
    "calibrate",
    "judge",
    "pipeline",
    "quantize",
    "prune",
    "distill",
    "road",
    "compress",
    "serve",
    "cli",
)
DOORS = ("__init__", "__main__")  # the public face, which imports on first use, and `python -m onnxopt`
HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "optimum", "pandas", "matplotlib")
TYPED = ("onnxopt", "passes", "models", "tests", "bench", "tools", "examples", "training")
MOST_LINES = 550
MOST_STATEMENT_LINES = 60  # of a function, behind its docstring
ONE_THOUGHT: dict[str, str] = {}  # functions that are longer, with the reason
BESIDE = {  # folders of tests that are of no single room
    "bench": "the benchmarks and their tables",
    "docs": "the documents and what makes them",
    "census": "many architectures on the whole road",
    "clients": "artifacts in other languages",
    "e2e": "commands and the whole road, as a user sees them",
    "exam": "the backend cases of ONNX, random graphs, files of packages",
    "examples": "the programs in `examples/`",
    "property": "random graphs",
    "support": "what tests share",
}


def files() -> list[Path]:
    """Every file of the package, from the root of the repository; `onnxopt/passes` and `onnxopt/models` are links."""
    found = [path for top in ("onnxopt", "passes", "models") for path in (ROOT / top).rglob("*.py")]
    inside = [path.relative_to(ROOT) for path in found if "templates" not in path.parts]
    return sorted(path for path in inside if path.parts[:2] not in {("onnxopt", "passes"), ("onnxopt", "models")})


def room_of(path: Path) -> str:
    """The folder below `onnxopt`, or the file there; `passes` and `models` are rooms of their own."""
    return path.parts[0] if path.parts[0] != "onnxopt" else path.parts[1].removesuffix(".py")


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    parts = path.with_suffix("").parts
    name = ".".join(parts if parts[0] == "onnxopt" else ("onnxopt", *parts))
    return name.removesuffix(".__init__")


def tree_of(path: Path) -> ast.Module:
    """A file as Python reads it; its path is that from the root of the repository."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield modules of the package that statements import, with each imported name behind it: it may be a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("onnxopt."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "onnxopt":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def typed_files() -> list[Path]:
    """Every file that mypy reads, from the root of the repository."""
    return sorted(path.relative_to(ROOT) for top in TYPED for path in (ROOT / top).rglob("*.py"))


def lines_of(path: Path) -> list[str]:
    return (ROOT / path).read_text(encoding="utf-8").splitlines()


def files_of_tests() -> list[Path]:
    """Every file of tests, from the folder `tests`."""
    return sorted(path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))


def place(path: Path) -> Path:
    """Where a file lies inside the package, whose rooms `passes` and `models` lie at the top of the repository."""
    return path.relative_to("onnxopt") if path.parts[0] == "onnxopt" else path


def own_test(path: Path) -> Path:
    """The file of tests that is about one file of the package: of the same folder and name."""
    return place(path).parent / f"test_{path.name}"


def covered_by(test: Path) -> set[str]:
    """The files that a file of tests says it is about besides its own: `Covers: graph/files.py, graph/regions.py`."""
    said = re.search(r"^Covers: (.*)", ast.get_docstring(tree_of("tests" / test)) or "", re.DOTALL | re.MULTILINE)
    return set(re.split(r",\s+", said[1])) if said else set()


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in files()} == {*ROOMS, *DOORS}


def test_no_import_goes_up_wherever_it_stands() -> None:
    upward = [
        f"{path} imports {name}"
        for path in files()
        if (room := room_of(path)) in ROOMS
        for name in imported(ast.walk(tree_of(path)))
        if (other := name.split(".")[1]) in ROOMS and ROOMS.index(other) > ROOMS.index(room)
    ]
    assert not upward


def test_no_module_waits_for_itself() -> None:
    modules = {module_of(path): path for path in files()}
    needs: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = set(imported(ast.walk(tree_of(path))))
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        # a folder's own face may be imported by what lies in it: it is being loaded then
        needs[module] = {name for name in found if name in modules and not module.startswith(f"{name}.")}
    list(TopologicalSorter(needs).static_order())  # raises CycleError, which names them


def test_every_room_and_file_says_what_it_is_for() -> None:
    assert not [str(path) for path in files() if not ast.get_docstring(tree_of(path))]


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    long = [f"{path}: {lines} lines" for path in typed_files() if (lines := len(lines_of(path))) > MOST_LINES]
    for path in files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > MOST_STATEMENT_LINES and f"{module_of(path)}.{node.name}" not in ONE_THOUGHT:
                    long.append(f"{path}: {node.name} has {lines} lines")
    assert not long


def test_tests_mirror_the_rooms() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= {*ROOMS, *BESIDE}


def test_every_file_has_tests_of_its_own_or_is_named_by_others() -> None:
    tests = files_of_tests()
    sources = [path for path in files() if path.stem not in DOORS]
    named = {name for test in tests for name in covered_by(test)}
    assert named <= {str(place(path)) for path in sources}, "named, and not there"
    assert not [str(path) for path in sources if own_test(path) not in tests and str(place(path)) not in named]


def test_a_file_of_tests_is_named_after_what_lies_in_the_same_place_or_says_what_it_covers() -> None:
    own = {own_test(path) for path in files()}
    rooms = [test for test in files_of_tests() if test.parts[0] in ROOMS]
    assert not [str(test) for test in rooms if test not in own and not covered_by(test)]


def test_every_folder_of_tests_is_a_package() -> None:
    """Names of files repeat from room to room; without packages they would be one module for Python and mypy."""
    folders = {ROOT / "tests" / test.parent for test in files_of_tests()}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_what_is_typed_otherwise_says_why() -> None:
    """A reason stands behind each `type: ignore[code]`; mypy itself refuses those that are not needed."""
    lines = [(path, line) for path in typed_files() for line in lines_of(path)]
    assert not [f"{path}: {line}" for path, line in lines if re.search(r"# type: ignore(\[[^]]*\])?\s*$", line)]


def test_passes_do_not_import_onnx_protobufs() -> None:
    for path in files():
        if room_of(path) == "passes":
            names = {
                alias.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.Import) for alias in node.names
            }
            assert "onnx" not in names, path


def test_importing_onnxopt_loads_nothing_heavy() -> None:
    code = f"import onnxopt, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_list_matches_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert {module_of(path) for path in files() if path.name == "__init__.py"} == set(settings["packages"])


def test_the_links_for_editors_are_there() -> None:
    for folder in ("passes", "models"):
        assert (ROOT / "onnxopt" / folder).resolve() == ROOT / folder
