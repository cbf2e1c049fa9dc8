"""Weights that lie in files are what they would be in memory, to the bit."""

from __future__ import annotations

import io
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import weight_files
from onnxopt.graph.weight_files import (
    Turned,
    WeightFile,
    Widened,
    elements,
    in_file,
    is_large,
    narrowest,
    row_major,
    stored_bytes,
    tensor_of,
    turn_in_files,
    weight_file,
    weights_in_file,
)
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Array
from tests.support.rules import parse

ODD = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 2.0**-133, 2.0**127, 65504.0, 2.0**-24], np.float32)


def _bits(array: Array) -> list[int]:
    return [int(one) for one in array.reshape(-1).view(np.uint32)]


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16])
def test_widening_gives_the_numbers_that_are_stored(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_AT_ONCE", 3)
    with np.errstate(over="ignore"):
        stored: Array = np.concatenate([ODD, np.linspace(-2, 2, 11, dtype=np.float32)]).astype(kind).reshape(3, 7)
    made = Widened(ir.tensor(stored), "w")
    expected = stored.astype(np.float32)
    assert (made.dtype, made.name, list(made.shape), made.nbytes) == (ir.DataType.FLOAT, "w", [3, 7], 84)
    assert _bits(made.numpy()) == _bits(expected)
    assert made.tobytes() == expected.tobytes()
    written = io.BytesIO()
    made.tofile(written)
    assert written.getvalue() == expected.tobytes()
    assert stored_bytes(made) == 42


def test_only_sixteen_bits_are_widened() -> None:
    with pytest.raises(TypeError, match="is no type of 16 bits"):
        Widened(ir.tensor(np.zeros(2, np.float32)), "w")


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (ODD[:8], ir.DataType.BFLOAT16),
        (np.array([1.0009765625, 65504.0], np.float32), ir.DataType.FLOAT16),
        (np.array([1.0009765625, 1e30], np.float32), None),
        (np.array([0.1], np.float32), None),
        (np.zeros((0, 4), np.float32), ir.DataType.BFLOAT16),
    ],
)
def test_an_array_is_stored_in_what_holds_all_of_it(array: Array, kind: ir.DataType | None, tmp_path: Path) -> None:
    assert narrowest(array) == kind
    if array.size:
        made = WeightFile(tmp_path / "w").add(array, "w")
        assert _bits(made.numpy()) == _bits(array)
        assert isinstance(made, Widened) == (kind is not None)


def test_one_number_at_the_end_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_AT_ONCE", 4)
    array = np.ones(10, np.float32)
    assert narrowest(array) == ir.DataType.BFLOAT16
    array[9] = 0.1
    assert narrowest(array) is None


@pytest.mark.parametrize("size", [1, 3, 4, 9, 12, 25])
def test_every_number_is_looked_at(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_AT_ONCE", 8)
    monkeypatch.setattr(weight_files, "_FIRST", 3)
    assert narrowest(np.ones(size, np.float32)) == ir.DataType.BFLOAT16
    for place in range(size):
        array = np.ones(size, np.float32)
        array[place] = 1.0009765625
        assert narrowest(array) == ir.DataType.FLOAT16
        array[place] = 0.1
        assert narrowest(array) is None


def test_large_constants_lie_in_the_file_and_small_ones_do_not(tmp_path: Path) -> None:
    large, small = np.arange(1 << 18, dtype=np.float32).reshape(512, 512) + 0.1, np.arange(3.0, dtype=np.float32)
    turned = large.T
    with weights_in_file(WeightFile(tmp_path / "weights")):
        tensors = [tensor_of(one, str(index)) for index, one in enumerate((large, small, turned, large > 3))]
    assert [in_file(one) is not None for one in tensors] == [True, False, True, False]
    for tensor, array in zip(tensors, (large, small, turned, large > 3), strict=True):
        assert np.array_equal(tensor.numpy(), array)
    assert in_file(tensor_of(large, "after")) is None


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.int8, np.float64])
def test_constants_of_every_type_are_read_as_they_were(kind: type, tmp_path: Path) -> None:
    array: Array = (np.arange(1 << 20) % 100).reshape(1024, 1024).astype(kind)
    with weights_in_file(WeightFile(tmp_path / "weights")):
        made = tensor_of(array, "w")
    assert isinstance(made, ir.ExternalTensor)
    assert made.numpy().dtype == array.dtype
    assert made.tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.float32, np.int64])
def test_elements_are_read_in_parts(kind: type) -> None:
    array: Array = np.arange(21).reshape(3, 7).astype(kind)
    tensor = ir.tensor(array) if array.dtype.itemsize > 2 else Widened(ir.tensor(array), "w")
    expected = tensor.numpy().reshape(-1)
    for start, stop in ((0, None), (5, 9), (19, 40), (0, 0)):
        found = elements(tensor, start, stop)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected[start:stop])
    assert np.array_equal(elements(ir.tensor(array.T)), array.T.reshape(-1))


def test_a_model_is_large_by_what_its_weights_take_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(
        "g (float[4] x) => (float[4] y) { y = Add (x, w) }", {"w": np.zeros(4, np.float32), "v": np.zeros(2, np.int8)}
    )
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 18)
    assert not is_large(model)
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 17)
    assert is_large(model)
    model.graph.initializers["w"].const_value = Widened(ir.tensor(np.zeros(4, np.float16)), "w")
    assert is_large(model)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with pytest.raises(OSError, match="directory"):
        WeightFile(tmp_path / "weights").add(np.ones(3, np.float32), "w")


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_turned_weights_are_written_as_transpose_gives_them(
    kind: type, order: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "_AT_ONCE", 7)
    array: Array = np.random.default_rng(0).integers(-9, 9, (3, 5, 4)).astype(kind)
    stored = WeightFile(tmp_path / "weights").add(array, "w")
    given = Widened(stored, "w") if kind in (np.float16, ml_dtypes.bfloat16) else stored
    made = Turned(given, order, "turned")
    expected = np.ascontiguousarray(given.numpy().transpose(order))
    assert (made.dtype, list(made.shape)) == (given.dtype, list(expected.shape))
    assert np.array_equal(made.numpy(), expected)
    written = io.BytesIO()
    made.tofile(written)
    assert written.getvalue() == made.tobytes() == expected.tobytes()
    laid = WeightFile(tmp_path / "turned").add_turned(made)
    assert (type(laid), laid.dtype, laid.name) == (type(given), given.dtype, "turned")
    assert stored_bytes(laid) == stored_bytes(given)
    assert laid.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [np.int8, np.float16, ml_dtypes.bfloat16, np.float32, np.int64])
@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((300, 129), (1, 0)),
        ((128, 257), (1, 0)),
        ((3, 130, 131), (0, 2, 1)),
        ((2, 130, 3, 140), (2, 0, 3, 1)),
        ((7,), (0,)),
    ],
)
def test_rows_come_in_order_whatever_lies_how(kind: type, shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    array: Array = np.random.default_rng(0).integers(-99, 99, shape).astype(kind)
    for given in (array.transpose(order), array[::-1].transpose(order), array[..., ::2].transpose(order)):
        made = row_major(given)
        assert made.flags.c_contiguous
        assert made.dtype == given.dtype
        assert np.array_equal(made, given)
    assert row_major(array) is array


def test_what_is_wanted_is_turned_where_it_is_laid_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LEAST_BYTES", 64)
    weights = {name: np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32) for name in ("w", "kept")}
    text = """m (float[b, 6] x) => (float[b, 4] y) {
        wt = Transpose(w)
        kt = Transpose(kept)
        sum = Add(wt, kt)
        y = MatMul(x, sum)
    }"""
    model, file = parse(text, weights), WeightFile(tmp_path / "weights")
    for name, array in weights.items():
        model.graph.initializers[name].const_value = file.add(array, name)
    turned = WeightFile(tmp_path / "turned")
    turn_in_files(model, wanted=lambda node: node.outputs[0].name == "wt", laid=turned)
    assert [node.op_type for node in model.graph] == ["Transpose", "Add", "MatMul"]
    laid = in_file(model.graph.initializers["wt"].const_value)
    assert laid is not None
    assert Path(laid.path) == turned.path
    assert np.array_equal(laid.numpy(), weights["w"].T)


def test_the_file_of_large_constants_is_known_while_it_is_asked_for(tmp_path: Path) -> None:
    file = WeightFile(tmp_path / "weights")
    assert weight_file() is None
    with weights_in_file(file):
        assert weight_file() is file
    assert weight_file() is None


def test_what_transposes_a_weight_in_a_file_becomes_that_weight_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "LEAST_BYTES", 64)
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 6), "out": (6, 9), "small": (2, 2)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    text = """m (float[b, 6] x, float[4, 6] z) => (float[b, 4] y, float[9, 6] o) {
        wt = Transpose<perm = [1, 0]>(w)
        wide = Transpose(w)
        st = Transpose(small)
        o = Transpose(out)
        zt = Transpose<perm = [0, 1]>(z)
        a = MatMul(x, wt)
        c = MatMul(zt, wide)
        d = MatMul(a, c)
        e = ReduceSum<keepdims = 0>(st)
        y = Add(d, e)
    }"""
    model = parse(text, weights)
    file = WeightFile(tmp_path / "weights")
    for name in ("w", "out"):
        model.graph.initializers[name].const_value = file.add(weights[name], name)
    feeds = {"x": rng.standard_normal((3, 6), np.float32), "z": rng.standard_normal((4, 6), np.float32)}
    before = GraphRunner(model).run(feeds)[0]
    turn_in_files(model)
    left = sorted(node.outputs[0].name or "" for node in model.graph if node.op_type == "Transpose")
    assert left == ["o", "st", "zt"]
    assert [isinstance(model.graph.initializers[name].const_value, Turned) for name in ("wt", "wide")] == [True, True]
    after = GraphRunner(model).run(feeds)[0]
    assert all(np.array_equal(after[name], before[name]) for name in before)
