"""The house keeps its shape: imports run one way, heavy libraries stay outside the door, lists match the tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]

# Rooms from the ground up: a module may import what stands in its own row or in a row above it.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("spec", "record", "speed", "usercache", "quiet", "runtime", "sampling", "token_rules", "textstream", "sides"),
    ("model", "machine", "wire", "opset_rules"),
    ("precision", "qmath", "exchange"),
    ("cache", "graph", "recipe", "ledger", "manifest", "rows"),
    ("measurements", "savings"),
    ("linears",),
    ("convs", "filters", "dimensions", "stored"),
    ("providers",),
    ("branches", "bodies"),
    ("probe", "safety_files", "safety", "blocks", "observe", "operands", "draws"),
    ("sizes",),
    ("expression", "sidegraph", "patterns", "registry", "graph_feeder", "opset", "channels"),
    ("axis_names", "compared", "given", "roles", "observations", "first_sizes"),
    ("unnamed",),
    ("rewrite", "repro", "captures", "folded", "crossing", "cases", "reached"),
    ("body_runs",),
    ("contract",),
    ("rounding",),
    ("proof",),
    ("passes", "models"),
    ("timing", "calibrate", "metrics", "busy"),
    ("profit", "quantize"),
    ("driver", "samples", "session", "gguf", "stores"),
    ("padding",),
    ("placing", "buckets", "batcher"),
    ("inside",),
    ("lowering", "pipeline", "source", "checkpoint", "prober", "imports"),
    ("torch_seq2seq", "forward_inputs", "golden", "latency", "tolerance", "empties"),
    ("explain", "pooling", "tasks", "feeds", "torch_model", "capture", "trace", "axes", "inspection", "requests"),
    ("verify", "audioinput"),
    (
        "export",
        "package",
        "bench_inputs",
        "textinput",
        "io_json",
        "imageinput",
        "audioinput",
        "report",
        "decoder",
        "chat",
        "stacks",
    ),
    ("verify_pair", "saving"),
    ("seq2seq",),
    ("bench_worker", "bench", "textrun", "generator", "perplexity"),
    ("gate", "selftext"),
    ("trials",),
    ("branching",),
    ("quantizing", "halving"),
    ("continuous", "clients"),
    ("serve",),
    ("report",),
    ("prune", "distill"),
    ("shipping",),
    ("forms",),
    ("evidence",),
    ("road",),
    ("live", "compress"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: level for level, names in enumerate(ROOMS) for name in names}
HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "optimum", "pandas", "matplotlib")


def modules() -> list[Path]:
    """Every file of the machine; `passes` and `models` in it are links to folders of their own."""
    machine = ROOT / "onnxopt"
    folders = [machine, *(path for path in machine.iterdir() if path.is_dir() and not path.is_symlink())]
    return sorted(path for folder in folders for path in folder.glob("*.py") if path.name != "__init__.py")


def room_of(path: Path) -> str:
    """A file directly in `onnxopt` is a room; so is a folder there, with all its files."""
    return path.stem if path.parent.name == "onnxopt" else path.parent.name


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports when it is loaded; imports inside functions and for type checkers do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    rooms: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxopt."):
            rooms.add((node.module or "").split(".")[1])
        if isinstance(node, ast.Import):
            rooms.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("onnxopt."))
    return rooms


def test_every_module_has_a_floor() -> None:
    assert {room_of(path) for path in modules()} <= set(FLOOR)


@pytest.mark.parametrize("path", modules(), ids=lambda path: f"{room_of(path)}-{path.stem}")
def test_imports_run_one_way(path: Path) -> None:
    upward = {room for room in imported_rooms(path) if FLOOR[room] > FLOOR[room_of(path)]}
    assert not upward, f"{path.name} imports {sorted(upward)} from a floor above it"


@pytest.mark.parametrize("folder", ["passes", "models"])
def test_passes_and_recipes_stand_on_the_floors_below_them(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        above = {room for room in imported_rooms(path) if FLOOR[room] > FLOOR[folder]}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def test_passes_do_not_import_onnx_protobufs() -> None:
    for path in (ROOT / "passes").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert "onnx" not in names, path


def test_importing_onnxopt_loads_nothing_heavy() -> None:
    code = f"import onnxopt, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_list_matches_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    wanted = {"onnxopt"} | {f"onnxopt.{room_of(path)}" for path in modules() if path.parent.name != "onnxopt"}
    for folder in ("passes", "models"):
        wanted |= {
            f"onnxopt.{path.parent.relative_to(ROOT).as_posix().replace('/', '.')}"
            for path in (ROOT / folder).rglob("__init__.py")
        }
    assert wanted == set(settings["packages"])


def test_the_links_for_editors_are_there() -> None:
    for folder in ("passes", "models"):
        assert (ROOT / "onnxopt" / folder).resolve() == ROOT / folder


def test_files_stay_small_enough_to_read() -> None:
    long = {
        path.name: lines for path in modules() if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 700
    }
    assert not long
