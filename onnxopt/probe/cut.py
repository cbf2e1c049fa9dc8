"""Cut out the part of a graph that some values need, as a message without large weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from onnxopt.graph import CONTRIB, SMALL_CONSTANT_BYTES, dims, has_subgraph, is_op, rank
from onnxopt.graph.exchange import CARRIERS, PLAIN
from onnxopt.probe.program import import_standard

LARGEST_KEPT_BYTES = 2**16
MILES = 8


def shape_name(value: ir.Value) -> str:
    """Return the name of the output that holds the shape of a value."""
    return f"{value.name}::shape"


class Cut:
    """The part of a model that some values need, as a message without large weights.

    Attributes:
        proto: an `onnx.ModelProto`; its graph has no outputs yet but the shapes of `measured`.
        weights: the large constants by name, inputs of the graph; `hand_over` makes feeds of them.
    """

    def __init__(
        self,
        model: ir.Model,
        wanted: Sequence[ir.Value],
        *,
        measured: Mapping[ir.Value, ir.DataType] = MappingProxyType({}),
        known: Collection[ir.Value] = (),
        turned: bool = False,
    ) -> None:
        import onnx

        self.weights: dict[str, ir.TensorProtocol] = {}
        self.proto = onnx.ModelProto()
        self.proto.ir_version = model.ir_version
        for domain, version in model.opset_imports.items():
            self.proto.opset_import.add(domain=domain, version=version)
        for function in model.functions.values():
            self.proto.functions.append(ir.serde.serialize_function(function))
        self.proto.graph.name = "probe"
        weight_of = _turned_weight if turned else _no_weight
        nodes, values = _needed(model, wanted, known, weight_of)
        self._add_inputs(model, values)
        # what a node makes that runs for another of its outputs is there without being fed
        fed = [value for value in known if value in values and value.producer() not in nodes]
        self.proto.graph.input.extend(_fed(value) for value in fed)
        for node in model.graph:
            if node not in nodes:
                continue
            ir.serde.serialize_node_into(self.proto.graph.node.add(), node)
            if (weight := weight_of(node)) is not None:
                _turn(self.proto, self.proto.graph.node[-1], weight)
            for value in node.outputs:
                self._declare(value)
        # The runtime works its way back from the nodes that nobody reads, the last in the list first, and on that way
        # runs what needs no inputs (the transposition of every weight, say). So each shape is read as soon as its value
        # is there, and no value waits for the others; where none are asked for, some are read to that end.
        for value in reversed(list(measured) or _milestones(model, nodes)):
            self._measure(value, measured.get(value, value.dtype), hand_out=bool(measured))

    def hand_out(self, values: Sequence[ir.Value]) -> None:
        """Make values outputs of the graph."""
        for value in dict.fromkeys(values):
            found = self.proto.graph.output.add()
            found.name = value.name or ""
            if isinstance(value.type, ir.TensorType):
                found.type.tensor_type.elem_type = value.type.dtype.value

    def _add_inputs(self, model: ir.Model, needed: set[ir.Value]) -> None:
        graph = self.proto.graph
        for value in model.graph.inputs:
            graph.input.append(ir.serde.serialize_value(value))
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or (value not in needed and not value.is_graph_input()):
                continue
            small = tensor.nbytes <= SMALL_CONSTANT_BYTES or value.is_graph_output()
            if small or tensor.dtype not in PLAIN:
                inside = ir.tensor(tensor.numpy(), name=name) if isinstance(tensor, ir.ExternalTensor) else tensor
                ir.serde.serialize_tensor_into(graph.initializer.add(), inside)
                graph.initializer[-1].name = name
                continue
            self.weights[name] = tensor
            if not value.is_graph_input():
                found = graph.input.add()
                found.name = name
                found.type.tensor_type.elem_type = tensor.dtype.value
                for dim in tensor.shape:
                    found.type.tensor_type.shape.dim.add().dim_value = int(dim)  # type: ignore[arg-type]  # a tensor's

    def _declare(self, value: ir.Value) -> None:
        """Say the type that a value is known to have: the runtime refuses the graph when it is wrong."""
        if value.name and isinstance(value.type, ir.TensorType):
            found = self.proto.graph.value_info.add()
            found.name = value.name
            found.type.tensor_type.elem_type = value.type.dtype.value
            width = (dims(value) or (None,))[-1]
            if isinstance(width, int) and any(is_op(use.node, "Attention") for use in value.uses()):
                # ONNX Runtime (1.32) takes attention on three axes for 0 wide where it knows no width of the values
                sizes = found.type.tensor_type.shape.dim
                for axis in range((rank(value) or 1) - 1):
                    sizes.add(dim_param=f"{value.name}::{axis}")
                sizes.add(dim_value=width)

    def _measure(self, value: ir.Value, dtype: ir.DataType | None, *, hand_out: bool) -> None:
        import onnx

        import_standard(self.proto)
        graph, name = self.proto.graph, shape_name(value)
        read = value.name or ""
        carrier = CARRIERS.get(dtype) if dtype is not None else None
        if carrier is not None:  # the runtime has no Shape for some of these types
            read = f"{name}::carried"
            graph.node.append(onnx.helper.make_node("Cast", [value.name or ""], [read], to=carrier.value))
        graph.node.append(onnx.helper.make_node("Shape", [read], [name], name=name))
        if not hand_out:
            return
        found = graph.output.add()
        found.name = name
        found.type.tensor_type.elem_type = onnx.TensorProto.INT64


def _milestones(model: ir.Model, nodes: set[ir.Node]) -> list[ir.Value]:
    """Return some values along the way, in order."""
    passed = [node.outputs[0] for node in model.graph if node in nodes][::MILES]
    return [value for value in passed if value.name and isinstance(value.type, ir.TensorType)]


def feedable(value: ir.Value) -> bool:
    """Tell whether a value is a tensor of a type that NumPy and the runtime exchange."""
    return bool(value.name) and isinstance(value.type, ir.TensorType) and value.type.dtype in PLAIN


def _fed(value: ir.Value) -> Any:
    import onnx

    found = onnx.ValueInfoProto()
    found.name = value.name or ""
    found.type.tensor_type.elem_type = value.type.dtype.value if isinstance(value.type, ir.TensorType) else 0
    length = dims(value) or ()
    if len(length) == 1 and isinstance(length[0], int) and value.dtype == ir.DataType.INT64:
        # ONNX Runtime (1.32) takes sizes of which a part is fed for none at all where it knows no length of that part
        found.type.tensor_type.shape.dim.add(dim_value=length[0])
    return found


def _needed(
    model: ir.Model,
    wanted: Sequence[ir.Value],
    known: Collection[ir.Value],
    weight_of: Callable[[ir.Node], ir.Value | None],
) -> tuple[set[ir.Node], set[ir.Value]]:
    """Return the nodes of the main graph that values need where some are known, and all values that those read."""
    nodes: set[ir.Node] = set()
    values: set[ir.Value] = set()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        if value in values:
            continue
        values.add(value)
        node = None if value in known else value.producer()
        if node is None or node in nodes:
            continue
        if node.graph is model.graph:
            nodes.add(node)
        weight = weight_of(node)
        read = node.inputs if weight is None else (node.inputs[0], weight)
        stack.extend(parent for parent in read if parent is not None)
        if has_subgraph(node):
            stack.extend(_read_inside(node))
    return nodes, values


def _turned_weight(node: ir.Node) -> ir.Value | None:
    """Return the weight [columns, rows] that a product reads transposed.

    The runtime would write the transposed weight anew in every run. Its product that reads it as it lies, which the
    runtime's own optimizer puts there too, gives the same numbers.
    """
    turn = node.inputs[1].producer() if is_op(node, "MatMul") and node.inputs[1] is not None else None
    weight = turn.inputs[0] if turn is not None and is_op(turn, "Transpose") else None
    if weight is None or weight.const_value is None or not weight.is_initializer() or node.graph is not weight.graph:
        return None
    tensor = weight.const_value
    large = tensor.nbytes > LARGEST_KEPT_BYTES and tensor.dtype == ir.DataType.FLOAT
    return weight if large and len(tensor.shape) == 2 and turn is not None and _swaps(turn) else None


def needed_nodes(model: ir.Model, wanted: Sequence[ir.Value], known: Collection[ir.Value] = ()) -> set[ir.Node]:
    """Return the nodes of the main graph that run for some values where others are known."""
    return _needed(model, wanted, known, _no_weight)[0]


def _no_weight(_: ir.Node) -> ir.Value | None:
    return None


def _swaps(turn: ir.Node) -> bool:
    order = turn.attributes.get("perm")
    return order is None or list(order.as_ints()) == [1, 0]


def _turn(proto: Any, product: Any, weight: ir.Value) -> None:
    import onnx

    product.op_type, product.domain = "FusedMatMul", CONTRIB
    product.input[1] = weight.name
    product.attribute.append(onnx.helper.make_attribute("transB", 1))
    if not any(entry.domain == CONTRIB for entry in proto.opset_import):
        proto.opset_import.add(domain=CONTRIB, version=1)


def _read_inside(node: ir.Node) -> Iterable[ir.Value]:
    """Yield what the graphs that a node carries read."""
    for attr in node.attributes.values():
        if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        for graph in [attr.value] if attr.type == ir.AttributeType.GRAPH else attr.value:
            yield from graph.outputs
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (value for value in inner.inputs if value is not None)
                for part in inner.attributes.values():
                    if part.type == ir.AttributeType.GRAPH:
                        yield from part.value.outputs
