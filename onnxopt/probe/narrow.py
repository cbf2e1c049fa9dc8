"""Hand a graph's weights over as inputs: those that are widened from 16 bits as they lie, with a Cast for each reader.

A Cast depends on no input of the model, and the runtime, which works its way back from the outputs, would make all of
them before anything else. Of what a node reads it makes first what stands last in the list, so the Casts stand in front
of all other nodes: each runs when its reader is about to, and one widened weight is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import STANDARD_DOMAINS
from onnxopt.graph.weight_files import Widened
from onnxopt.probe.program import import_standard

MOVES = ("Gather", "Transpose")  # whose result is widened in place of the weight
CASTS_BFLOAT = 13  # the opset since which Cast knows bfloat16


@dataclass(frozen=True)
class Handed:
    """What a graph is fed for its weights.

    Attributes:
        feeds: by name; bfloat16 as a value of the runtime's own, everything else as an array.
        as_stored: the inputs that take bfloat16 as it is.
    """

    feeds: dict[str, Any]
    as_stored: frozenset[str]


def hand_over(proto: Any, weights: Mapping[str, ir.TensorProtocol], *, narrow: bool = True) -> Handed:
    """Return what a graph is fed for its weights, and let it take the widened ones in the type in which they lie.

    Args:
        proto: an `onnx.ModelProto` whose inputs the weights are, with the types in which it computes; changed.
        weights: large constants by the name of their input.
        narrow: False hands float32 over, as a worker takes it.
    """
    version = max((one.version for one in proto.opset_import if one.domain in STANDARD_DOMAINS), default=CASTS_BFLOAT)
    stored = {
        name: tensor.stored
        for name, tensor in weights.items()
        if narrow and isinstance(tensor, Widened)
        if tensor.stored.dtype == ir.DataType.FLOAT16 or version >= CASTS_BFLOAT
    }
    feeds: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights.items() if name not in stored}
    if stored:
        _take_stored(proto, stored)
        feeds |= {_stored_name(name): _fed(tensor) for name, tensor in stored.items()}
    wide = {name for name, tensor in stored.items() if tensor.dtype == ir.DataType.BFLOAT16}
    return Handed(feeds, frozenset(map(_stored_name, wide)))


def _stored_name(name: str) -> str:
    return f"{name}::stored"


def _fed(tensor: ir.TensorProtocol) -> Any:
    array = np.ascontiguousarray(tensor.numpy())
    if tensor.dtype != ir.DataType.BFLOAT16:
        return array
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), ir.DataType.BFLOAT16.value)


def _take_stored(proto: Any, stored: Mapping[str, ir.TensorProtocol]) -> None:
    """Give the inputs their stored types, and each node that reads one a Cast of its own; `MOVES` cast their result."""
    import onnx

    graph, make = proto.graph, onnx.helper.make_node
    for value in graph.input:
        if value.name in stored:
            value.type.tensor_type.elem_type = stored[value.name].dtype.value
            value.name = _stored_name(value.name)
    casts, nodes = [], []

    def cast(name: str, made: str) -> None:
        casts.append(make("Cast", [_stored_name(name)], [made], name=f"{made}::cast", to=onnx.TensorProto.FLOAT))

    for name in sorted(stored.keys() & _read_inside(graph.node)):
        cast(name, name)
    for number, node in enumerate(list(graph.node)):
        behind = []
        if _moves(node, stored):
            name, made = node.input[0], node.output[0]
            node.input[0], node.output[0] = _stored_name(name), f"{made}::stored"
            behind.append(make("Cast", [node.output[0]], [made], name=f"{made}::cast", to=onnx.TensorProto.FLOAT))
        for name in dict.fromkeys(one for one in node.input if one in stored):
            wide = f"{name}::read_{number}"
            cast(name, wide)
            node.input[:] = [wide if one == name else one for one in node.input]
        nodes += [node, *behind]
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    import_standard(proto)


def _moves(node: Any, stored: Collection[str]) -> bool:
    """Tell whether a node picks or moves elements of a weight, which are the same widened before and after."""
    return node.op_type in MOVES and node.domain in STANDARD_DOMAINS and node.input[0] in stored


def _read_inside(nodes: Iterable[Any]) -> set[str]:
    """Return the names that the graphs which nodes carry read or hand out, and those in there again."""
    found: set[str] = set()
    for node in nodes:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                found.update(name for inner in graph.node for name in inner.input)
                found.update(value.name for value in graph.output)
                found |= _read_inside(graph.node)
    return found
