"""What a pipe gets: one record a line, whatever the width, nothing left out; and a quiet end where nobody reads on.

Covers: cli/tables.py
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from rich.console import Console

import onnxopt.cli.main  # noqa: F401  # registers the passes with the commands
from onnxopt.cli.main import UNREAD_EXIT_CODE
from onnxopt.cli.tables import EMPTY, aligned, print_table
from onnxopt.records.quantization import QuantizationRecord, SensitivityRecord
from onnxopt.rewrite.registry import catalogue
from tests.artifact.test_report import make_manifest

LONG = "a/name/that/is/longer/than/any/terminal/that/is/forty/columns/wide"  # 67 characters
LAYERS = 7
_ALL_IN_ONE = """
import json, sys
from onnxopt.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print(f"## {arguments[0]}", flush=True)
    assert main(arguments) == 0, arguments
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the lines that each command writes into a pipe, told that a line has forty columns."""
    folder = tmp_path_factory.mktemp("pipes")
    path, made = folder / f"{LONG.replace('/', '-')}.onnx", folder / "quantized"
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[a_batch_of_requests,96] "{LONG}.in") => (float[a_batch_of_requests,64] "{LONG}.out") {{
      "{LONG}.h" = MatMul("{LONG}.in", w) e = Exp("{LONG}.h") "{LONG}.out" = Gelu(e)
    }}""")
    weights = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32) / 10
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    for place, node in enumerate(model.graph.node):
        node.name = f"{LONG}/{place}"
    onnx.save(model, path)
    layers = tuple(
        SensitivityRecord(label=f"{LONG}.{place}", loss=0.1, precision="int8", reason="its inputs have a long tail")
        for place in range(LAYERS)
    )
    made.mkdir()
    record = QuantizationRecord(asked="int8", shipped=True, sensitivities=layers)
    (made / "manifest.json").write_text(make_manifest(quantization=record).to_json(), encoding="utf-8")
    commands = [
        ["passes"],
        ["inspect", str(path)],
        ["explain", str(path), "fuse-attention"],
        ["verify", str(path), str(path)],
        ["bench", str(path), str(path), "-w", "1x8,2x8", "--rounds", "1", "--seconds", "0.2"],
        ["placement", str(path)],
        ["sensitivity", str(made), "--limit", "5"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", _ALL_IN_ONE, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "COLUMNS": "40"},
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^## (\w+)\n", done.stdout, flags=re.MULTILINE)[1:]
    return {name: text.splitlines() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_every_pass_is_a_line(printed: dict[str, list[str]]) -> None:
    header, *records = printed["passes"]
    assert header.split() == ["name", "stage", "before", "→", "after", "numerics", "opset"]
    assert [line.split()[0] for line in records] == list(catalogue())
    for line, step in zip(records, catalogue().values(), strict=True):
        assert step.stage in line
        assert " ".join((step.__doc__ or "").strip().splitlines()[0].split()) in line


def test_inputs_outputs_and_operators_are_lines(printed: dict[str, list[str]]) -> None:
    lines = [line.split() for line in printed["inspect"]]
    assert ["input", f"{LONG}.in", "float32", "batch", "x", "96"] in lines
    assert ["output", f"{LONG}.out", "float32", "batch", "x", "64"] in lines
    assert ["MatMul", "1", "24.0", "KiB"] in lines
    assert sum(line.startswith("would become") for line in printed["inspect"]) == 1


def test_a_comparison_is_a_line(printed: dict[str, list[str]]) -> None:
    (line,) = (line for line in printed["verify"] if line.startswith(f"{LONG}.out"))
    assert re.fullmatch(rf"{re.escape(LONG)}\.out +0 +0 +1\.000000 +100\.00%", line)


def test_a_timed_shape_is_a_line(printed: dict[str, list[str]]) -> None:
    records = [line for line in printed["bench"] if "a_batch_of_requests" in line]
    assert len(records) == 2 * 2
    assert all(re.search(r"a_batch_of_requests [12] .*\d+\.\d+-\d+\.\d+ .*\(.*\).*iB$", line) for line in records)


def test_what_explains_and_places_is_in_lines(printed: dict[str, list[str]]) -> None:
    assert printed["explain"][0].startswith("fuse-attention: fires at 0 of ")
    assert all(line.startswith(("  misses ", "  ... and ")) for line in printed["explain"][1:])
    assert sum(line.startswith("CPUExecutionProvider: ") for line in printed["placement"]) == 1


def test_a_ranked_layer_is_a_line_and_what_is_left_out_is_said(printed: dict[str, list[str]]) -> None:
    records = [line for line in printed["sensitivity"] if line.startswith(LONG)]
    assert len(records) == 5
    for place, line in enumerate(records):
        cells = re.split(r"  +", line)
        assert cells == [f"{LONG}.{place}", "0.1", EMPTY, "0", "int8", "its inputs have a long tail"]
    assert "... and 2 more; --limit shows them" in printed["sensitivity"]


def test_nothing_is_said_when_nobody_reads_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "onnxopt", "passes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == UNREAD_EXIT_CODE
    assert said == b""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_signs_that_an_encoding_lacks_are_escaped(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxopt", "passes"],
        capture_output=True,
        text=True,
        encoding=encoding,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stderr) == (0, "")
    header, *records = done.stdout.splitlines()
    assert r"before \u2192 after" in header
    assert [line.split()[0] for line in records] == list(catalogue())


def test_columns_are_kept_where_cells_are_empty_or_wide() -> None:
    lines = aligned(("a", "n", "b"), [["文", "10", ""], ["y", "", "last"]], numbers=("n",))
    assert lines == ["a    n  b", "文  10", "y    -  last"]


def test_a_name_cannot_break_its_line() -> None:
    console = Console(file=io.StringIO(), width=20, force_terminal=False)
    print_table(console, ("name", "count"), [["two\nlines \x1b[31m[red]", "3"]], title="of a file")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == ["of a file", f"name{'':<18}count", "two lines ?[31m[red]  3"]


def test_a_terminal_gets_a_table_within_its_width_and_whole_names() -> None:
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    words = "what it does is said in more words than a line has"
    print_table(console, ("name", "words"), [["fuse-attention", words]], whole=("name",))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 40
    assert "fuse-attention" in text
    assert set(words.split()) <= set(text.split())
