"""The convolutions of a graph, each with the activation behind it that an integer kernel takes in for nothing.

Labels are made as those of linear layers are (`onnxopt.graph.linears`), and one selector chooses among both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxopt.graph.linears import label_of
from onnxopt.graph.nodes import attribute, is_op
from onnxopt.graph.values import constant, dims, is_constant, number
from onnxopt.spec import Array

SATURATING = ("Relu", "Clip")  # what the ends of a grid do for nothing
CARRYING = frozenset(  # what moves elements, or chooses among them: the result is on the grid of the input
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Resize", "Identity"}
)
GATES = frozenset({"HardSigmoid", "Sigmoid"})  # results between 0 and 1
BETWEEN = (
    CARRYING | GATES | {"Add", "Mul", "Relu", "HardSwish", "GlobalAveragePool", "AveragePool", "Concat"}
)  # what integer kernels do between convolutions


@dataclass(frozen=True)
class Convolution:
    """One convolution with constant weights: y = act(x ⊛ W + b).

    Attributes:
        label: its name for people and plans; unique in the graph.
        node: the Conv.
        root: the node that gives y: a Relu or a Clip from 0 that nothing else is in front of, or `node`.
        x: its input [batch, channels, ...].
        weight: the initializer, [out, channels / groups, ...].
        bias: float [out], None without one.
        groups: of channels; as many as channels for a depthwise one.
    """

    label: str
    node: ir.Node
    root: ir.Node
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    groups: int

    @property
    def result(self) -> ir.Value:
        """y."""
        return self.root.outputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(size for size in dims(self.weight) or () if isinstance(size, int))

    def kernel(self) -> Array:
        """Return the weight.

        Raises:
            ValueError: it is computed.
        """
        found = constant(self.weight)
        if found is None:
            raise ValueError(f"{self.label}: the weight is not constant")
        return found


def find_convs(model: ir.Model) -> list[Convolution]:
    """Return the convolutions of the main graph in order, float32 only."""
    times: dict[str, int] = {}
    unique = []
    for node in model.graph:
        conv = conv_of(node)
        if conv is None:
            continue
        times[conv.label] = times.get(conv.label, 0) + 1
        count = times[conv.label]
        unique.append(conv if count == 1 else replace(conv, label=f"{conv.label}#{count}"))
    return unique


def conv_of(node: ir.Node) -> Convolution | None:
    """Return the convolution that a node is, None when it is none."""
    if not is_op(node, "Conv"):
        return None
    x, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or weight is None or not is_constant(weight) or weight.dtype != ir.DataType.FLOAT:
        return None
    if bias is not None and not is_constant(bias):
        return None
    groups = int(attribute(node, "group") or 1)
    return Convolution(label_of(weight, node), node, _root(node), x, weight, bias, groups)


def _root(node: ir.Node) -> ir.Node:
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return node
    behind = uses[0].node
    return behind if is_op(behind, *SATURATING) and uses[0].idx == 0 and clipped(behind) is not None else node


def clipped(node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds of a Relu, or of a Clip from 0 to a constant; None for any other node."""
    if is_op(node, "Relu"):
        return 0.0, float("inf")
    if not is_op(node, "Clip"):
        return None
    if len(node.inputs) < 3:
        low, high = attribute(node, "min"), attribute(node, "max")
    else:
        low, high = number(node.inputs[1]), number(node.inputs[2])
    return (0.0, float(high)) if low == 0.0 and high is not None and high > 0 else None


def multiplications(conv: Convolution, spatial: Sequence[int]) -> float:
    """Return how often a convolution multiplies for one row whose result has these sizes behind the channels."""
    total = 1.0
    for size in (*conv.shape, *spatial):
        total *= size
    return total


def is_between(node: ir.Node) -> bool:
    """Tell whether an operator can hand on integers."""
    if not is_op(node, *BETWEEN):
        return False
    if is_op(node, "MaxPool"):
        return len(node.outputs) == 1 or not node.outputs[1].uses()
    if is_op(node, "Resize"):
        return attribute(node, "mode") in ("nearest", b"nearest")
    if is_op(node, "Add", "Mul"):
        return all(not is_constant(value) or number(value) is not None for value in node.inputs)
    return True


def exchanged(
    model: ir.Model, chosen: Sequence[Convolution], others: Sequence[ir.Value] = ()
) -> dict[ir.Value, ir.Value]:
    """Return the tensors that quantized layers exchange, each with the one whose grid it has.

    What lies between two of them exchanges integers too, if some input of it is there in integers already.

    Args:
        model: fused.
        chosen: the convolutions that are quantized.
        others: inputs of quantized linear layers.
    """
    wanted = {conv.x for conv in chosen} | set(others)
    nodes = list(model.graph)
    for node in reversed(nodes):
        if is_between(node) and any(output in wanted for output in node.outputs):
            wanted |= {value for value in node.inputs[: _data_inputs(node)] if value is not None}
    made = {conv.node: conv.result for conv in chosen}
    found: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        conv_result = made.get(node)
        if conv_result is not None:
            x = node.inputs[0]
            if x is not None:
                found.setdefault(x, x)
            found[conv_result] = conv_result
            continue
        result = node.outputs[0]
        if result in found or result not in wanted or not is_between(node):
            continue
        read = [value for value in node.inputs[: _data_inputs(node)] if value is not None and not is_constant(value)]
        if not any(value in found for value in read):
            continue
        summed = _summed(node)
        if summed is not None:
            result = summed
        for value in read:
            found.setdefault(value, value)
        found[result] = found[read[0]] if is_op(node, *CARRYING) else result
    return found


def _summed(node: ir.Node) -> ir.Value | None:
    """Return what a Relu makes of a sum that nobody else reads."""
    uses = list(node.outputs[0].uses())
    alone = is_op(node, "Add") and len(uses) == 1 and not node.outputs[0].is_graph_output()
    return uses[0].node.outputs[0] if alone and is_op(uses[0].node, "Relu") else None


def _data_inputs(node: ir.Node) -> int:
    """Return how many of the first inputs of an operator are tensors of numbers, not shapes and the like."""
    return len(node.inputs) if is_op(node, "Add", "Mul", "Concat") else 1
