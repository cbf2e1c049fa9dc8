"""Graphs that pass every check of a file and are not to be run in one's own process."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
_RANGES: dict[int, type[np.signedinteger]] = {TensorProto.INT64: np.int64, TensorProto.INT32: np.int32}


def _model(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    *,
    output: int = FLOAT,
    shape: list[int | str | None] | None = None,
) -> onnx.ModelProto:
    made: list[int | str | None] = ["n", 4] if shape is None else shape
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", output, made)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dividing_the_smallest(dtype: int = TensorProto.INT64) -> onnx.ModelProto:
    """y = x + smallest / -1: no such number, for which processors raise SIGFPE."""
    kind = _RANGES[dtype]
    weights = [
        numpy_helper.from_array(np.array([np.iinfo(kind).min], kind), "smallest"),
        numpy_helper.from_array(np.array([-1], kind), "minus"),
    ]
    nodes = [
        helper.make_node("Div", ["smallest", "minus"], ["large"], name="divide"),
        helper.make_node("Cast", ["large"], ["added"], to=FLOAT),
        helper.make_node("Add", ["x", "added"], ["y"]),
    ]
    return _model(nodes, weights)


def counting_without_end(trips: int = 2**62) -> onnx.ModelProto:
    """A Loop that adds one to x, more often than anyone can wait."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    weights = [
        numpy_helper.from_array(np.array(trips, np.int64), "trips"),
        numpy_helper.from_array(np.array(True), "true"),  # noqa: FBT003  an array's content
    ]
    return _model([helper.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)], weights)


def growing(elements: int) -> onnx.ModelProto:
    """Make a tensor of so many numbers, of a size that no check of the file sees, and count them."""
    weights = [numpy_helper.from_array(np.array([elements // 2], np.int64), "half")]
    nodes = [
        helper.make_node("Add", ["half", "half"], ["whole"]),
        helper.make_node("ConstantOfShape", ["whole"], ["large"]),
        helper.make_node("Size", ["large"], ["y"]),
    ]
    return _model(nodes, weights, output=TensorProto.INT64, shape=[])
