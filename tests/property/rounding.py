"""What a graph's answers would be without its own rounding, and with weights that are off by some roundings."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper

from tests.property.sketch import Array

LEAST_SHAKEN = 2  # entries; a single number is a constant of the architecture, a mask's filler among them


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in which what was float32 is float64; not every operator has a kernel for that."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for graph in _graphs(made.graph):
        for tensor in _tensors(graph):
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            for attribute in node.attribute:
                if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", TensorProto.FLOAT):
                    attribute.i = TensorProto.DOUBLE
    return made


def with_shaken_weights(model: onnx.ModelProto, share: float, seed: int) -> onnx.ModelProto:
    """Return a graph whose float32 weights are off by up to a share of each entry."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    drawn = np.random.default_rng(seed)
    for graph in _graphs(made.graph):
        for tensor in _tensors(graph):
            array: Array = numpy_helper.to_array(tensor)
            if tensor.data_type == TensorProto.FLOAT and array.size >= LEAST_SHAKEN:
                moved = (array * (1 + share * drawn.uniform(-1, 1, array.shape))).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return made


def _graphs(graph: GraphProto) -> list[GraphProto]:
    """Return a graph and those inside of its nodes."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found += _graphs(attribute.g)
    return found


def _tensors(graph: GraphProto) -> list[TensorProto]:
    """Return the weights and constants of a graph, not of those inside of its nodes."""
    held = (attribute for node in graph.node for attribute in node.attribute)
    return [*graph.initializer, *(one.t for one in held if one.type == AttributeProto.TENSOR)]
