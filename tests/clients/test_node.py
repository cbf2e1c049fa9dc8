"""An artifact in onnxruntime-node: a default session repeats the golden cases, and a damaged case is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.artifact.golden import Golden
from onnxopt.artifact.package import check_golden
from onnxopt.run.session import Session
from onnxopt.spec import Feeds
from tests.support import loaded as support
from tests.support.node import install_script, run

pytestmark = pytest.mark.node

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
mixed (int64[n] ids, float[n] x, bool[n] keep, int32[n] whole, float16[n] half)
    => (float[n] y, int64[n] twice, bool[n] drop, int32[n] less, float16[n] more, float[n] odd)
<float[3] table = {0.1, -2.5, 7.25}, int32 one = {1}>
{
    row = Gather(table, ids)
    y = Mul(row, x)
    twice = Add(ids, ids)
    drop = Not(keep)
    less = Sub(whole, one)
    more = Add(half, half)
    odd = Sqrt(row)
}
"""


@pytest.fixture(scope="module")
def script() -> Path:
    return install_script()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    model = ir.from_proto(onnx.parser.parse_model(MODEL))
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    session = Session(path)
    cases = []
    for size in (1, 5):
        rng = np.random.default_rng(size)
        feeds: Feeds = {
            "ids": np.arange(size, dtype=np.int64) % 3,
            "x": rng.standard_normal(size).astype(np.float32),
            "keep": rng.random(size) > 0.5,
            "whole": rng.integers(-9, 9, size).astype(np.int32),
            "half": rng.standard_normal(size).astype(np.float16),
        }
        cases.append(Golden(feeds, session.run(feeds), 1e-4, {"n": size}))
    return support.write(tmp_path / "out", support.loaded(model), golden=cases).path


def test_an_artifact_opens_in_node_and_reproduces_its_golden_outputs(script: Path, artifact: Path) -> None:
    assert check_golden(artifact) == []
    code, line = run(script, artifact)
    assert code == 0, line
    assert line.startswith("equal: 2 cases, 12 outputs, worst absolute error ")
    assert line.endswith("onnxruntime-node 1.30.0")


@pytest.mark.parametrize(("output", "name"), list(enumerate(("y", "twice", "drop", "less", "more", "odd"))))
def test_a_corrupted_golden_output_is_noticed(script: Path, artifact: Path, output: int, name: str) -> None:
    path = artifact / "golden" / f"outputs_1_{output}.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1 if name == "drop" else 0x7F
    path.write_bytes(content)
    code, line = run(script, artifact)
    assert code == 1
    assert line.startswith(f"differs: case 1, output {name} at 4 is ")


def test_a_corrupted_golden_input_is_noticed(script: Path, artifact: Path) -> None:
    path = artifact / "golden" / "inputs_0_1.bin"
    path.write_bytes(np.array([1000.0], "<f4").tobytes())
    assert run(script, artifact)[0] == 1


def test_what_cannot_be_read_is_one_line(script: Path, artifact: Path, tmp_path: Path) -> None:
    assert run(script, tmp_path / "none")[0] == 2
    golden = artifact / "golden"
    (golden / "inputs_0_1.bin").write_bytes(b"x")
    assert run(script, artifact) == (2, "unusable: inputs_0_1.bin: 1 bytes, expected 4")
    index = json.loads((golden / "golden.json").read_text())
    (golden / "golden.json").write_text(json.dumps(index | {"cases": []}))
    assert run(script, artifact) == (2, "unusable: golden.json holds no cases")
