"""Put a whole graph into both branches of an If that the size of an input decides."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def in_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes what another does, in the one branch or in the other.

    Which one is taken follows from whether the first open axis of the first input is even. Weights stay outside.

    Args:
        model: not changed; no branch may give one of its inputs or weights as it is, so an Identity stands before each.
    """
    graph = model.graph
    bodies = [_body(graph, side) for side in ("then", "else")]
    two, zero = (numpy_helper.from_array(np.array(number), f"wrapped_{number}") for number in (2, 0))
    first = graph.input[0]
    sizes = first.type.tensor_type.shape.dim
    place = next((axis for axis, dim in enumerate(sizes) if not dim.HasField("dim_value")), 0)
    axis = numpy_helper.from_array(np.array(place), "wrapped_axis")
    nodes = [
        helper.make_node("Shape", [first.name], ["wrapped_shape"]),
        helper.make_node("Gather", ["wrapped_shape", "wrapped_axis"], ["wrapped_size"]),
        helper.make_node("Mod", ["wrapped_size", "wrapped_2"], ["wrapped_rest"]),
        helper.make_node("Equal", ["wrapped_rest", "wrapped_0"], ["wrapped_even"]),
        helper.make_node(
            "If",
            ["wrapped_even"],
            [value.name for value in graph.output],
            name="wrapped",
            then_branch=bodies[0],
            else_branch=bodies[1],
        ),
    ]
    taken = {value.name for value in graph.output}
    weights = [tensor for tensor in graph.initializer if tensor.name not in taken]
    whole = helper.make_graph(nodes, "wrapped", graph.input, graph.output, [*weights, two, zero, axis])
    made = helper.make_model(whole, opset_imports=model.opset_import)
    made.ir_version = model.ir_version
    return made


def _body(graph: onnx.GraphProto, side: str) -> onnx.GraphProto:
    inner = {name: f"{name}/{side}" for node in graph.node for name in node.output if name}
    inner |= {value.name: f"{value.name}/{side}" for value in graph.output}
    given = [tensor for tensor in graph.initializer if tensor.name in inner]  # a weight that is an output
    nodes = [helper.make_node("Constant", [], [inner[tensor.name]], value=tensor) for tensor in given]
    for node in graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        _rename(copied, inner)
        nodes.append(copied)
    outputs = []
    for value in graph.output:
        info = onnx.ValueInfoProto()
        info.CopyFrom(value)
        info.name = inner[value.name]
        info.type.tensor_type.ClearField("shape")
        outputs.append(info)
    return helper.make_graph(nodes, side, [], outputs)


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _rename(inner, names)
            for value in attribute.g.output:
                value.name = names.get(value.name, value.name)
