"""What the user gives on the command line reaches the whole road, and is refused in one line where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxopt.cli.main import main
from tests.support.axes import write

# as a detector of speech has it: another window for each sampling rate
SOUND = """g (float[rows,512] x, int64 sr) => (float[k,m] y) <int64 fast = {16000}> {
  is_fast = Equal(sr, fast)
  y = If(is_fast) <
    then_branch = t () => (float[k,m] p) { c = Constant<value_ints = [-1, 512]>() r = Reshape(x, c) p = Relu(r) },
    else_branch = e () => (float[k,m] q) { d = Constant<value_ints = [-1, 256]>() s = Reshape(x, d) q = Neg(s) }>
}"""
# the rows of one input are seven times those of the other, and four more
LINKED = """g (float[long,2] x, float[short,2] y) => (float[short,2] z) {
  n = Shape<start = 0, end = 1>(y) m = Mul(n, seven) k = Add(m, four) two = Constant<value_ints = [2]>()
  shape = Concat<axis = 0>(k, two) same = Reshape(x, shape) cut = Slice(same, zero, n) z = Add(cut, y) }"""
NUMBERS = {name: np.array([number], np.int64) for name, number in (("seven", 7), ("four", 4), ("zero", 0))}
FRAMES = "g (float[frames,8] x) => (float[frames,8] y) { y = Relu(x) }"


def optimize(path: Path, *options: str) -> int:
    return main(["optimize", str(path), "-o", str(path.parent / "out"), "--no-measure", "-q", *options])


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "manifest.json").read_text(encoding="utf-8"))
    return found


def test_both_branches_behind_a_rate_are_right(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", SOUND)
    assert optimize(path, "--value", "sr=16000,8000") == 0
    plain, made = (ort.InferenceSession(str(one)) for one in (path, tmp_path / "out" / "model.onnx"))
    assert [spec.shape for spec in made.get_inputs()] == [["rows", 512], []]
    for rate in (16000, 8000):
        x = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
        feeds = {"x": x, "sr": np.array(rate, np.int64)}
        assert np.array_equal(plain.run(None, feeds)[0], made.run(None, feeds)[0])
    assert not any("not proved" in str(note) for note in manifest(tmp_path)["notes"])


def test_a_branch_that_no_value_takes_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", SOUND)
    assert optimize(path, "--value", "sr=16000") == 0
    assert any("1 branches (else of" in str(note) for note in manifest(tmp_path)["notes"])


def test_a_refusal_names_the_option_and_no_file_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m.onnx", LINKED, **NUMBERS)
    assert optimize(path) == 2
    said = capsys.readouterr().err
    assert "--feeds example.npz" in said
    assert "Traceback" not in said
    assert "candidate" not in said
    assert "original" not in said


def test_an_example_that_runs_is_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", LINKED, **NUMBERS)
    np.savez(tmp_path / "one.npz", x=np.ones((39, 2), np.float32), y=np.ones((5, 2), np.float32))
    feeds = ["--feeds", str(tmp_path / "one.npz")]
    assert optimize(path, *feeds) == 0
    assert main(["verify", str(path), str(tmp_path / "out"), "-q", *feeds]) == 0


def test_the_range_that_is_proved_is_written_down(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", FRAMES)
    assert optimize(path, "--axis", "frames=16..1024:16") == 0
    expected = {"frames": {"least": 16, "most": 1024, "step": 16, "promised": 1024}}
    assert manifest(tmp_path)["proved"] == expected
    described = json.loads((tmp_path / "out" / "io.json").read_text(encoding="utf-8"))
    assert described["sizes"] == expected
    assert described["inputs"][0]["axes"] == ["frames", 8]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--axis", "width=3"], "open axes: frames"),
        (["--axis", "frames=x"], "name=8..4096 for a range"),
        (["--value", "rate=3"], "'rate' is given but is no input; inputs: x"),
        (["--feeds", "absent.npz"], "absent.npz: no such file or folder"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimize(write(tmp_path / "m.onnx", FRAMES), *options) == 2
    assert said in capsys.readouterr().err


def test_a_workload_in_the_names_of_the_file_is_taken_and_one_beyond_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "m.onnx", FRAMES)
    assert optimize(path, "--axis", "frames=16..1024:16", "-w", "frames=48") == 0
    assert optimize(path, "--axis", "frames=16..1024:16", "-w", "frames=50") == 2
    assert "asks for axis 'frames' at 50; the model runs from 16 to 1024, in steps of 16" in capsys.readouterr().err


# an attention whose mask is subtracted from one, as BERT of 2018 has it
ENCODER = """g (float[batch,sequence,16] x, int64[batch,sequence] attention_mask) => (float[batch,sequence,16] y) {
  q0 = MatMul(x, wq) q1 = Reshape(q0, heads) q = Transpose<perm = [0, 2, 1, 3]>(q1)
  k0 = MatMul(x, wk) k1 = Reshape(k0, heads) k = Transpose<perm = [0, 2, 3, 1]>(k1)
  v0 = MatMul(x, wv) v1 = Reshape(v0, heads) v = Transpose<perm = [0, 2, 1, 3]>(v1)
  p = MatMul(q, k) s = Mul(p, scale)
  u = Unsqueeze(attention_mask, axes) f = Cast<to = 1>(u) i = Sub(one, f) b = Mul(i, far) m = Add(s, b)
  w = Softmax<axis = -1>(m) z = MatMul(w, v) t = Transpose<perm = [0, 2, 1, 3]>(z) y = Reshape(t, tokens) }"""


def encoder(folder: Path) -> Path:
    drawn = np.random.default_rng(5)
    weights = {name: (drawn.standard_normal((16, 16)) / 4).astype(np.float32) for name in ("wq", "wk", "wv")}
    numbers = {name: np.array(number, np.float32) for name, number in (("scale", 0.5), ("one", 1), ("far", -1e4))}
    shapes = {"heads": np.array([0, 0, 4, 4]), "tokens": np.array([0, 0, 16]), "axes": np.array([1, 2])}
    return write(folder / "m.onnx", ENCODER, **weights, **numbers, **shapes)


def operators(folder: Path) -> list[str]:
    return [node.op_type for node in onnx.load(folder / "out" / "model.onnx").graph.node]


def test_a_mask_may_hold_anything_of_which_nobody_says_otherwise(tmp_path: Path) -> None:
    path = encoder(tmp_path)
    assert optimize(path) == 0
    assert "Attention" in operators(tmp_path)
    plain, made = (ort.InferenceSession(str(one)) for one in (path, tmp_path / "out" / "model.onnx"))
    drawn = np.random.default_rng(6)
    x = drawn.standard_normal((3, 9, 16)).astype(np.float32)
    for mask in (drawn.choice([0, 1, 2, -1], (3, 9)), np.zeros((3, 9), np.int64), np.ones((3, 9), np.int64)):
        feeds = {"x": x, "attention_mask": mask.astype(np.int64)}
        np.testing.assert_allclose(made.run(None, feeds)[0], plain.run(None, feeds)[0], rtol=1e-3, atol=1e-3)
    ledger = str(manifest(tmp_path)["ledger"])
    assert "--value attention_mask=0,1 excludes" in ledger


def test_a_mask_of_which_zeros_and_ones_are_promised_gets_the_kernel_for_them(tmp_path: Path) -> None:
    path = encoder(tmp_path)
    assert optimize(path, "--value", "attention_mask=0,1") == 0
    nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
    assert [node.domain for node in nodes if node.op_type == "Attention"] == ["com.microsoft"]
    plain, made = (ort.InferenceSession(str(one)) for one in (path, tmp_path / "out" / "model.onnx"))
    x = np.random.default_rng(6).standard_normal((3, 9, 16)).astype(np.float32)
    mask = np.tril(np.ones((9, 9), np.int64))[[3, 8, 0]]
    feeds = {"x": x, "attention_mask": mask}
    np.testing.assert_allclose(made.run(None, feeds)[0], plain.run(None, feeds)[0], rtol=1e-3, atol=1e-4)
