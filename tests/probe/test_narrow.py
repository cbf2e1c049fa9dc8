"""Weights that lie in 16 bits give the same numbers as in float32, and are widened one at a time.

Covers: probe/cut.py, probe/memory.py, probe/runners.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import region
from onnxopt.graph.weight_files import WeightFile, Widened
from onnxopt.probe import memory
from onnxopt.probe.cut import Cut
from onnxopt.probe.narrow import hand_over
from onnxopt.probe.runners import GraphRunner, RegionRunner, ShapeRunner
from onnxopt.spec import Array
from tests.support.rules import parse

KINDS = pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
TEXT = """
g (int64[rows] ids, float[rows,24] x, bool flag) => (float[rows,24] y) <float half = {0.5}> {
  found = Gather <axis = 0> (table, ids)
  wide = MatMul (x, table)
  tall = Transpose <perm = [1, 0]> (table)
  back = MatMul (wide, tall)
  picked = If (flag) <then_branch = a () => (float[24,40] one) { one = Mul (inner, half) },
                      else_branch = b () => (float[24,40] other) { other = Identity (inner) }>
  sides = MatMul (found, tall)
  more = MatMul (wide, side)
  mixed = Add (sides, more)
  low = MatMul (x, picked)
  last = MatMul (low, tall)
  sum = Add (mixed, last)
  y = Add (sum, back)
}"""


@pytest.fixture
def weights() -> dict[str, Array]:
    rng = np.random.default_rng(11)
    shapes = {"table": (24, 40), "inner": (24, 40), "side": (40, 24)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def named(model: ir.Model, *names: str) -> list[ir.Value]:
    table = {value.name: value for node in model.graph for value in node.outputs}
    return [table[name] for name in names]


def _narrowed(model: ir.Model, kind: type, folder: Path) -> ir.Model:
    """Return the model with its weights in a file of 16 bits."""
    made, file = model.clone(), WeightFile(folder / "weights")
    for value in made.graph.initializers.values():
        if value.const_value is not None and value.const_value.size > 1:
            array: Array = value.const_value.numpy().astype(kind)
            stored = file.add(array, value.name or "")
            assert isinstance(stored, ir.ExternalTensor)
            value.const_value = Widened(stored, value.name or "")
    return made


def _rounded(weights: dict[str, Array], kind: type) -> dict[str, Array]:
    return {name: array.astype(kind).astype(np.float32) for name, array in weights.items()}


def _feeds() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "ids": np.array([3, 0, 23], np.int64),
        "x": rng.standard_normal((3, 24)).astype(np.float32),
        "flag": np.ones((), np.bool_),
    }


@KINDS
@pytest.mark.parametrize("turned", [False, True])
def test_results_are_those_of_float32(kind: type, *, turned: bool, weights: dict[str, Array], tmp_path: Path) -> None:
    model = parse(TEXT, _rounded(weights, kind))
    made = _narrowed(model, kind, tmp_path)
    expected, values = GraphRunner(model, named(model, "found", "picked"), turned=turned).run(_feeds())
    found, fetched = GraphRunner(made, named(made, "found", "picked"), turned=turned).run(_feeds())
    assert expected.keys() == found.keys() == {"y"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    for one, other in zip(values.values(), fetched.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(made.graph.initializers["side"].const_value, Widened)  # the model itself stays as it is


@KINDS
def test_shapes_and_regions_are_found_with_it(kind: type, weights: dict[str, Array], tmp_path: Path) -> None:
    model = parse(TEXT, _rounded(weights, kind))
    made = _narrowed(model, kind, tmp_path)
    shapes = ShapeRunner(made, named(made, "wide", "found")).run(_feeds())[0]
    assert list(shapes.values()) == [(3, 40), (3, 40)]
    parts = []
    for one in (model, made):
        (root,) = named(one, "more")
        nodes = [node for node in one.graph if node.outputs[0].name in ("wide", "more")]
        (x,) = [value for value in one.graph.inputs if value.name == "x"]
        parts.append(RegionRunner([region(nodes, [root])], one).run({x: _feeds()["x"]})[0])
    np.testing.assert_array_equal(parts[0], parts[1])


@KINDS
def test_each_reader_has_a_cast_in_front_of_all_other_nodes(
    kind: type, weights: dict[str, Array], tmp_path: Path
) -> None:
    made = _narrowed(parse(TEXT, weights), kind, tmp_path)
    cut = Cut(made, made.graph.outputs)
    cut.hand_out(made.graph.outputs)
    handed = hand_over(cut.proto, cut.weights)
    assert all(np.dtype(array.dtype).itemsize == 2 for array in handed.feeds.values() if isinstance(array, np.ndarray))
    assert set(handed.feeds) == {f"{name}::stored" for name in weights}
    assert (handed.as_stored == set(handed.feeds)) == (kind is ml_dtypes.bfloat16)
    kinds = [node.op_type for node in cut.proto.graph.node]
    first = next(index for index, one in enumerate(kinds) if one != "Cast")
    behind = [node for node in cut.proto.graph.node[first:] if node.op_type == "Cast"]
    assert first == 3  # the table for MatMul, what is read inside, the other side
    assert [node.output[0] for node in behind] == ["found", "tall"]


def test_a_worker_is_fed_float32(weights: dict[str, Array], tmp_path: Path) -> None:
    made = _narrowed(parse(TEXT, weights), np.float16, tmp_path)
    cut = Cut(made, named(made, "wide"))
    handed = hand_over(cut.proto, cut.weights, narrow=False)
    assert {array.dtype for array in handed.feeds.values()} == {np.dtype(np.float32)}


def test_bfloat16_is_fed_as_float32_where_no_cast_knows_it(weights: dict[str, Array], tmp_path: Path) -> None:
    made = _narrowed(parse(TEXT, weights), ml_dtypes.bfloat16, tmp_path)
    made.graph.opset_imports[""] = 12
    cut = Cut(made, named(made, "wide"))
    assert not hand_over(cut.proto, cut.weights).as_stored


def test_pages_of_widened_weights_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LEAST_PAGED_BYTES", 10)
    monkeypatch.setattr(memory, "PAGING_SECONDS", 1e-4)
    stored = WeightFile(tmp_path / "w").add(np.ones((64, 64), np.float16), "w")
    assert isinstance(stored, ir.ExternalTensor)
    wide, told = Widened(stored, "w"), []
    wide.numpy()

    class Mapping:
        def madvise(self, advice: int) -> None:
            told.append(advice)

    monkeypatch.setattr(stored, "raw", Mapping())
    with memory.paging([wide, ir.tensor(np.ones(3, np.float32))]):
        pass
    assert told
