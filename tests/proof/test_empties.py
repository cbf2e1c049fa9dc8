from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.load.onnx_file import load_onnx
from onnxopt.proof.empties import tried_empty
from onnxopt.run.session import Session
from onnxopt.spec import Feeds
from tests.support.axes import load

HEADER = '<ir_version: 8, opset_import: ["" : 17]> '
PLAIN = HEADER + "g (float[rows,4] x) => (float[rows,4] y) { a = Relu(x) y = Neg(a) }"
INFERRED = (
    HEADER + "g (float[rows,cells,4] x) => (float[rows,more,2] y) <int64[3] t = {0, -1, 2}> "
    "{ a = Relu(x) y = Reshape(a, t) }"  # where there are no rows, there is nothing to infer -1 from
)


def saved(text: str, folder: Path) -> Path:
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    return folder / "model.onnx"


def saved_with(text: str, folder: Path, **weights: np.ndarray[Any, Any]) -> Path:
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_an_empty_axis_that_is_answered_as_before_is_promised(tmp_path: Path) -> None:
    artifact = onnxopt.optimize(saved(PLAIN, tmp_path), out=tmp_path / "out", measure=False)
    assert json.loads((artifact.path / "io.json").read_text())["sizes"]["rows"]["least"] == 0
    found = Session(artifact.path).run({"x": np.zeros((0, 4), np.float32)})
    assert found["y"].shape == (0, 4)


def test_where_the_original_does_not_run_nothing_is_promised_or_said(tmp_path: Path) -> None:
    artifact = onnxopt.optimize(saved(INFERRED, tmp_path), out=tmp_path / "out", measure=False)
    assert artifact.manifest.proved["rows"].least == 1
    assert not any("may be asked from 1 on" in note for note in artifact.manifest.notes)
    with pytest.raises(InputError, match="no entries along its axis 'rows'; the artifact answers from 1 on"):
        Session(artifact.path).run({"x": np.zeros((0, 3, 4), np.float32)})


def test_a_result_that_does_not_run_or_answers_otherwise_is_asked_from_one_on(tmp_path: Path) -> None:
    loaded = load_onnx(saved(PLAIN, tmp_path))

    def refuses(feeds: Feeds) -> Feeds:
        raise InputError(f"nothing in {list(feeds)}")

    for run in (refuses, lambda feeds: {"y": feeds["x"][:, :2]}):
        records, notes = tried_empty(run, loaded, 1e-4)
        assert records == []
        assert notes == ["axis 'rows' may be asked from 1 on: where it is 0, the original answers otherwise"]
    records, notes = tried_empty(loaded.reference.run, loaded, 1e-4)
    assert [record.sizes for record in records] == [{"rows": 0}]
    assert notes == []


@pytest.mark.parametrize(("cell", "gates", "is_tried"), [("LSTM", 4, False), ("GRU", 3, False), ("RNN", 1, True)])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_is_asked_of_cells_that_end_the_process(
    cell: str,
    gates: int,
    is_tried: bool,  # noqa: FBT001
    inside: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    node = f"h = {cell}<hidden_size = 5>(x, w, r)"
    text = f"g (float[steps,rows,3] x) => (float[steps,1,rows,5] y) {{ {node} y = Neg(h) }}"
    if inside:
        body = f"t () => (float[steps,1,rows,5] h) {{ {node} }}"
        other = body.replace("t ()", "e ()").replace("h)", "o)").replace("h =", "o =")
        text = f"""g (float[steps,rows,3] x) => (float[steps,1,rows,5] y) {{
          y = If(yes)<then_branch = {body}, else_branch = {other}> }}"""
    weights = {"w": np.ones((1, gates * 5, 3), np.float32), "r": np.ones((1, gates * 5, 5), np.float32)}
    given: dict[str, Any] = weights | ({"yes": np.ones((), bool)} if inside else {})
    loaded = load(tmp_path, text, **given)
    records, notes = tried_empty(loaded.reference.run, loaded, 1e-4)
    assert bool(records) == is_tried
    assert [f"since {cell} ends the process" in note for note in notes] == ([] if is_tried else [True, True])


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_kernels_that_end_the_process_are_not_asked(op: str, gates: int, tmp_path: Path) -> None:
    text = f"g (float[steps,rows,4] x) => (float[steps,1,rows,4] y) {{ y = {op}<hidden_size = 4>(x, w, r) }}"
    model = onnx.parser.parse_model(HEADER + text)
    weight = np.ones((1, gates * 4, 4), np.float32)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(weight, name) for name in "wr")
    onnx.save(model, tmp_path / "model.onnx")
    artifact = onnxopt.optimize(tmp_path / "model.onnx", out=tmp_path / "out", measure=False)
    assert artifact.manifest.proved["rows"].least == 1


@pytest.mark.parametrize("before", ["a = Relu(x)", "t = Transpose<perm = [0, 1, 2]>(x) a = Abs(t)"])
def test_an_instance_normalization_is_asked_of_no_rows_and_not_of_no_places(before: str, tmp_path: Path) -> None:
    """Its kernel ends the process where nothing lies behind the channels; no rows it answers."""
    text = f"g (float[rows,3,cells] x) => (float[rows,3,cells] y) {{ {before} y = InstanceNormalization(a, one, one) }}"
    artifact = onnxopt.optimize(
        saved_with(text, tmp_path, one=np.ones(3, np.float32)), out=tmp_path / "out", measure=False
    )
    assert [artifact.manifest.proved[axis].least for axis in ("rows", "cells")] == [0, 1]
    with pytest.raises(InputError, match="no entries along its axis 'cells'; the artifact answers from 1 on"):
        Session(artifact.path).run({"x": np.zeros((2, 3, 0), np.float32)})


def test_no_places_are_not_tried_beside_another_empty_axis_either(tmp_path: Path) -> None:
    text = """g (float[others,2] o, float[rows,3,cells] x) => (float[rows,3,cells] y, float[others,2] p) {
      y = InstanceNormalization(x, one, one) p = Neg(o) }"""
    artifact = onnxopt.optimize(
        saved_with(text, tmp_path, one=np.ones(3, np.float32)), out=tmp_path / "out", measure=False
    )
    assert [artifact.manifest.proved[axis].least for axis in ("others", "rows", "cells")] == [0, 0, 1]


def test_an_empty_axis_is_tried_beside_other_sizes_too(tmp_path: Path) -> None:
    """A result that is right where an axis is empty and the other short, and wrong where that is long."""
    onnx.save(onnx.parser.parse_model(HEADER + TWO), tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")

    def forgets_long_rows(feeds: Feeds) -> Feeds:
        return {"y": -feeds["x"][:, :100]}

    records, notes = tried_empty(forgets_long_rows, loaded, 1e-4)
    assert [record.sizes["cells"] for record in records] == [0]
    assert notes == ["axis 'rows' may be asked from 1 on: where it is 0, the original answers otherwise"]


TWO = "g (float[rows,cells,4] x) => (float[rows,cells,4] y) { y = Neg(x) }"


COPIES = (
    HEADER + "g (float[rows,cells,4] x) => (float[a,b,c] y) <int64[2] f = {-1, 4}, int64[1] r = {-1}, "
    "int64[1] one = {1}, int64[1] two = {2}, int64[1] i = {0}, int64[1] w = {4}> { flat = Reshape(x, f) s = Shape(x) "
    "n = Slice(s, one, two, i) t = Concat<axis=0>(r, n, w) y = Reshape(flat, t) }"
)


def test_an_axis_whose_0_copies_another_size_is_asked_from_one_on(tmp_path: Path) -> None:
    """Of no cells the target is [-1, 0, 4], whose 0 means 4: the output is not [rows, cells, 4] then."""
    artifact = onnxopt.optimize(saved(COPIES, tmp_path), out=tmp_path / "out", measure=False)
    assert artifact.manifest.proved["cells"].least == 1
    assert (
        "axis 'cells' may be asked from 1 on: where it is 0, the original answers otherwise" in artifact.manifest.notes
    )


@pytest.mark.parametrize(("step", "axis"), [(2, "cells"), (3, "n"), (8, "width")])
def test_an_artifact_answers_no_size_that_is_no_multiple_where_it_was_made_for_multiples(
    step: int, axis: str, tmp_path: Path
) -> None:
    """Of other sizes nothing was proved, whether the graph runs there or not."""
    text = f"""{HEADER} g (float[1,{axis}] x) => (float[k,{step}] y)
      <int64[2] t = {{-1, {step}}}> {{ a = Reshape(x, t) y = Neg(a) }}"""
    artifact = onnxopt.optimize(saved(text, tmp_path), out=tmp_path / "out", measure=False)
    session = Session(artifact.path)
    for size in (step, 5 * step):
        assert session.run({"x": np.ones((1, size), np.float32)})["y"].shape == (size // step, step)
    said = rf"has {step + 1} entries along its axis '{axis}'; the artifact answers multiples of {step}"
    with pytest.raises(InputError, match=said):
        session.run({"x": np.ones((1, step + 1), np.float32)})
