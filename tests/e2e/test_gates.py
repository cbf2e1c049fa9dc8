"""Gates on the whole road: what is required and is not so leaves no file and an exit code; what is asked for goes.

Covers: road/gates.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from onnxopt.artifact.package import Artifact
from onnxopt.cli.main import main
from onnxopt.quantize import workplace
from onnxopt.records.manifest import FormName
from onnxopt.records.measurements import Latency, Race
from onnxopt.road import forms

WIDTH = 48


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[float, float]]]:
    """Intervals of speed-ups in place of races: of each form over the original, and of `int8` over the float graph."""
    known: dict[str, tuple[float, float]] = {"int8": (0.7, 0.9)}

    def told(form: FormName, name: str) -> Race:
        low, high = known[name]
        shape = Latency(shape={"batch": 1}, before_ms=1.0, after_ms=2 / (low + high), low=low, high=high)
        return Race(form=form, speedup=(low + high) / 2, low=low, high=high, turns=6, shapes=(shape,))

    monkeypatch.setattr(forms, "race", lambda *_, form, **__: told(form, form))
    monkeypatch.setattr(workplace, "speedup_of", lambda *_, **__: told("optimized", "int8"))
    yield known


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two layers with samples to calibrate them."""
    drawn = np.random.default_rng(5)
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,{WIDTH}] x) => (float[batch,{WIDTH}] y) {{ a = MatMul(x, u) b = Relu(a) y = MatMul(b, v) }}""")
    for name in ("u", "v"):
        weights = drawn.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", x=drawn.standard_normal((64, WIDTH)).astype(np.float32))
    return tmp_path / "model.onnx"


def optimize(source: Path, out: Path, *options: str) -> int:
    return main(["optimize", str(source), "--out", str(out), "--no-tune", *options])


def test_what_is_not_as_fast_as_required_leaves_the_older_result(
    source: Path, tmp_path: Path, speeds: dict[str, tuple[float, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    speeds["optimized"] = (1.2, 1.4)
    assert optimize(source, out, "--require-speedup", "1.3") == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert optimize(source, out, "--require-speedup", "1.5", "--quiet") == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert "1.5x was required, and the optimized graph is 1.30x (1.20 to 1.40) over the workload" in found.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_original_passes_where_nothing_slower_may_go(
    source: Path, tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    speeds["optimized"] = speeds["fused"] = (0.7, 0.9)
    assert optimize(source, tmp_path / "out", "--require-speedup", "1.0") == 0
    shipped = Artifact.open(tmp_path / "out").manifest.shipped
    assert shipped is not None
    assert shipped.form == "original"
    assert optimize(source, tmp_path / "other", "--require-speedup", "1.01") == 1
    assert not (tmp_path / "other").exists()


def test_fewer_bits_that_are_not_faster_go_where_that_is_allowed(
    source: Path, tmp_path: Path, speeds: dict[str, tuple[float, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    speeds["optimized"] = speeds["fused"] = (1.1, 1.2)
    int8 = ("-p", "int8", "--calibration", str(source.with_name("samples.npz")), "--budget", "cosine>=0.9")
    assert optimize(source, tmp_path / "float", *int8) == 0
    text = capsys.readouterr().out
    assert text.startswith("precision     int8: the float graph is shipped; not faster than the float graph")
    assert "--allow-slower ships the smaller file" in text.splitlines()[0]
    assert optimize(source, tmp_path / "none", *int8, "--require-precision") == 1
    assert "int8 was required, and the float graph would be shipped: not faster" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert optimize(source, tmp_path / "small", *int8, "--require-precision", "--allow-slower") == 0
    record = Artifact.open(tmp_path / "small").manifest.quantization
    assert record is not None
    assert record.shipped
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("small", "float")]
    assert sizes[0] < sizes[1]


def test_a_gate_that_cannot_be_told_is_refused_before_the_source_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimize(tmp_path / "none.onnx", tmp_path / "out", "--require-speedup", "1", "--no-measure") == 2
    assert "drop --no-measure" in capsys.readouterr().err
    assert optimize(tmp_path / "none.onnx", tmp_path / "out", "--require-precision") == 2
    assert "the precision is fp32" in capsys.readouterr().err
