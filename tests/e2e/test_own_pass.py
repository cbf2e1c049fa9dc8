"""A pass of one's own on the command line: what it does, what is written of it, and what is said where it is wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxopt
from onnxopt.cli.main import main

RULE = '''"""Leave out what is taken back.

Source: the sign of a sign.
"""

from onnxopt.rewrite import Lossy, Rule, register


@register
class TakeBack(Rule):
    """1/(1/x)  →  x."""

    name = "take-back"

    def patterns(self, op, x):
        yield op.Reciprocal(op.Reciprocal(x))

    def rewrite(self, op, x):
        return x
'''
SIGN = RULE.replace("Reciprocal", "Neg").replace("1/(1/x)", "−(−x)")  # which is exact; of Reciprocal it is not
GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[batch, 3, width] x) => (float[batch, 3, width] y)
{
    a = Neg (x)
    b = Neg (a)
    c = Reciprocal (b)
    d = Reciprocal (c)
    y = Erf (d)
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where we are: a graph, a rule that holds, and one that does not."""
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "graph.onnx")
    (tmp_path / "sign.py").write_text(SIGN, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(RULE.replace("take-back", "take-wrong"), encoding="utf-8")
    return tmp_path


def operators(artifact: str) -> list[str]:
    return [node.op_type for node in onnx.load(Path(artifact) / "model.onnx").graph.node]


def own_entry(artifact: str) -> dict[str, object]:
    ledger = json.loads((Path(artifact) / "manifest.json").read_text(encoding="utf-8"))["ledger"]
    [entry] = [entry for entry in ledger if "origin" in entry]
    return dict(entry)


def test_optimize_runs_it_and_writes_where_it_came_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", "graph.onnx", "--no-measure", "--out", "out", "--pass", str(folder / "sign.py")]) == 0
    assert operators("out") == ["Reciprocal", "Reciprocal", "Erf"]
    digest = hashlib.sha256((folder / "sign.py").read_bytes()).hexdigest()
    entry = own_entry("out")
    assert entry["origin"] == {"named": "sign.py", "file": "sign.py", "sha256": digest}
    assert (entry["name"], entry["applied"], entry["stage"]) == ("take-back", 1, "fuse")
    said = capsys.readouterr().out
    assert f"own passes    take-back from sign.py (sha256 {digest[:12]})" in said
    for name in ("manifest.json", "report.html"):
        text = (folder / "out" / name).read_text(encoding="utf-8")
        assert digest[:12] in text
        assert str(folder) not in text, "whose folder it was is nobody's business"
    x = np.random.default_rng(5).normal(size=(4, 3, 19)).astype(np.float32)
    found, wanted = (onnxopt.Session(path).run({"x": x})["y"] for path in ("out", "graph.onnx"))
    np.testing.assert_array_equal(found, wanted)


def test_without_it_the_artifact_says_nothing_of_passes_from_outside(folder: Path) -> None:
    assert main(["optimize", "graph.onnx", "--no-measure", "--out", "out", "--quiet"]) == 0
    assert operators("out") == ["Neg", "Neg", "Reciprocal", "Reciprocal", "Erf"]
    assert '"sha256": ""' not in (folder / "out" / "manifest.json").read_text(encoding="utf-8")
    assert "origin" not in {key for entry in onnxopt.Artifact.open("out").manifest.ledger for key in entry.model_dump()}


def test_a_wrong_rule_is_rolled_back_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--pass", "wrong.py", "--pass", "sign.py"]
    assert main(["optimize", "graph.onnx", "--no-measure", "--out", "out", *given]) == 0
    assert operators("out") == ["Reciprocal", "Reciprocal", "Erf"]
    assert "rolled back   take-wrong at " in capsys.readouterr().out
    manifest = onnxopt.Artifact.open("out").manifest
    undone = {entry.name: len(entry.rolled_back) for entry in manifest.ledger if entry.origin is not None}
    assert undone == {"take-wrong": 1, "take-back": 0}
    assert "take-wrong" in (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_a_rule_that_promises_too_little_is_caught_at_the_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loose = SIGN.replace('"take-back"', '"take-more"\n    numerics = Lossy("sqnr_db", -300.0)')
    (folder / "loose.py").write_text(loose.replace("return x", "return op.Abs(x)"), encoding="utf-8")
    assert main(["optimize", "graph.onnx", "--no-measure", "--out", "out", "-q", "--pass", "loose.py"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith("nothing was written; run it again without the passes of your own: take-more of loose.py")
    assert not (folder / "out").exists()


def test_inspect_explain_and_passes_know_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "graph.onnx", "--json", "--pass", "sign.py", "--pass", "wrong.py"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["would_apply"] == {"take-back": 1}
    assert any(note.startswith("rolled back: take-wrong at ") for note in told["notes"])
    assert main(["explain", "graph.onnx", "take-back", "--json", "--pass", "sign.py"]) == 0
    verdicts = json.loads(capsys.readouterr().out)["candidates"]
    assert [verdict["fires"] for verdict in verdicts] == [True, False]
    assert main(["passes", "--json", "--pass", "sign.py"]) == 0
    last = json.loads(capsys.readouterr().out)["passes"][-1]
    assert (last["name"], last["stage"], last["identity"]) == ("take-back", "fuse", "−(−x) → x.")
    assert last["source"] == "the sign of a sign."
    assert last["origin"].startswith("sign.py (sha256 ")
    assert main(["explain", "graph.onnx", "take-back"]) == 2, "without its file there is no such pass"


@pytest.mark.parametrize("command", ["optimize graph.onnx --out out", "inspect graph.onnx", "passes", "explain a b"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "error: bad.py: no such file; name a .py file, a module, or what an installed package offers"),
        ("import nothing_of_that_name\n", "error: bad.py:1: does not import: ModuleNotFoundError: No module named"),
        ("x = 1\n", "error: bad.py: it registers no pass; put @register of onnxopt.rewrite in front of its classes"),
        (
            SIGN.replace("take-back", "fuse-gelu"),
            "error: bad.py:9: the pass name 'fuse-gelu' is taken by onnxopt",
        ),
        (
            SIGN.replace("rewrite(self, op, x)", "rewrite(self, op, z)"),
            "error: bad.py:18: rewrite of take-back takes",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_before_anything_else(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, body: str | None, said: str
) -> None:
    if body is not None:
        (folder / "bad.py").write_text(body, encoding="utf-8")
    assert main([*command.split(), "--pass", "bad.py"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(said)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "command", ["optimize graph.onnx --out out", "inspect graph.onnx", "explain graph.onnx take-back"]
)
def test_what_fails_where_it_works_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (folder / "bad.py").write_text(SIGN.replace("return x", "return x[0]"), encoding="utf-8")
    assert main([*command.split(), "--quiet", "--pass", "bad.py"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: bad.py:19: take-back: rewrite raised TypeError: ")
    assert len(said.err.strip().splitlines()) == 1
    assert not said.out
    assert not (folder / "out").exists()
