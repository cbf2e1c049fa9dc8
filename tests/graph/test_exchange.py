"""Types that NumPy does not know go in and out as they are, by whatever carries them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt import Session
from onnxopt.graph.exchange import CARRIERS, Exchange, dtype_name
from onnxopt.load.reference import OrtReference
from onnxopt.qmath.compare import is_float, worst_error
from onnxopt.spec import tensors_of

TYPES = ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"]


def cast_there(kind: str, folder: Path) -> Path:
    """A file that takes numbers of a type and gives them back in another order."""
    dtype = getattr(TensorProto, kind)
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["wide"], ["turned"])
        if "UINT" not in kind
        else helper.make_node("Abs", ["wide"], ["turned"]),
        helper.make_node("Cast", ["turned"], ["y"], to=dtype),
    ]
    graph = helper.make_graph(
        nodes,
        "there",
        [helper.make_tensor_value_info("x", dtype, ["n"])],
        [helper.make_tensor_value_info("y", dtype, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_of_every_type_come_back_in_it(kind: str, tmp_path: Path) -> None:
    file, dtype = cast_there(kind, tmp_path), ir.DataType[kind].numpy()
    given = np.array([0, 1, 2, 3]).astype(dtype)
    expected = given if kind.startswith("U") else (-given.astype(np.float32)).astype(dtype)
    for run in (OrtReference(file).run, Session(file).run):
        found = run({"x": given})["y"]
        assert found.dtype == dtype
        assert np.array_equal(found.astype(np.float32), expected.astype(np.float32))
    assert Session(file).inputs[0].dtype == dtype_name(ir.DataType[kind])


def test_a_carrier_holds_every_number_of_the_type_it_carries() -> None:
    for dtype, carrier in CARRIERS.items():
        info = ml_dtypes.finfo(dtype.numpy()) if is_float(np.dtype(dtype.numpy())) else ml_dtypes.iinfo(dtype.numpy())
        for number in (info.max, info.min):
            carried = np.asarray(number).astype(carrier.numpy())
            assert float(carried.astype(dtype.numpy())) == float(number), dtype


def test_carried_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    weight = np.arange(8, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "w"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=TensorProto.BFLOAT16),
        ],
        "beside",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n", 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    given = np.ones((2, 8), ml_dtypes.bfloat16)
    for run in (OrtReference(tmp_path / "m.onnx").run, Session(tmp_path / "m.onnx").run):
        assert np.array_equal(run({"x": given})["y"].astype(np.float32), np.stack([weight, weight]))


def test_plain_types_need_no_exchange(tmp_path: Path) -> None:
    assert not Exchange({}, {}).needed
    assert Exchange({}, {}).give({"x": 1}) == {"x": 1}


def test_every_difference_between_sequences_is_one() -> None:
    one, two = np.ones(2, np.float32), np.zeros(2, np.float32)
    assert worst_error([one, two], [one, two]) == (0.0, 0.0)
    assert worst_error([one], [one, one])[1] == np.inf
    assert worst_error(None, None) == (0.0, 0.0)
    assert worst_error(None, [one])[1] == np.inf
    assert worst_error(one, None)[1] == np.inf
    assert worst_error([two, one], [one, one]) == (1.0, 1.0)


def test_sequences_are_told_apart_as_tensors() -> None:
    long, short = tensors_of({"s": [np.ones(1), np.ones(1)]}), tensors_of({"s": [np.ones(1)]})
    assert long["s[]"] != short["s[]"]
    assert set(long) == {"s[]", "s[0]", "s[1]"}
    assert tensors_of({"o": None})["o[]"] == -1
    assert tensors_of({"o": []})["o[]"] == 0
