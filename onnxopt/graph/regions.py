"""Regions of a graph: what a node needs, a few nodes as a region, a region as a graph of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph.exchange import PLAIN
from onnxopt.graph.nodes import SMALL_CONSTANT_BYTES, is_op
from onnxopt.graph.values import constant_value, is_constant


def has_subgraph(node: ir.Node) -> bool:
    """Tell whether a node carries a graph (If, Loop, Scan)."""
    return any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values())


def ancestors(
    value: ir.Value, *, through_shape: bool = True, stop: Collection[ir.Value] = ()
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Return the nodes that compute a value, in topological order, and the non-constant values that they start from.

    Args:
        value: where to start.
        through_shape: when False, the walk stops at Shape and Size nodes, which only read dimensions; they are in the
            list.
        stop: values that count as starts although something computes them.
    """
    order: list[ir.Node] = []
    leaves: dict[ir.Value, None] = {}
    done: set[ir.Node] = set()
    stack: list[tuple[ir.Value, bool]] = [(value, False)]
    while stack:
        current, expanded = stack.pop()
        node = current.producer()
        if node is None or current in stop:
            if not is_constant(current):
                leaves[current] = None
            continue
        if expanded:
            if node not in done:
                done.add(node)
                order.append(node)
            continue
        if node in done:
            continue
        stack.append((current, True))
        if not through_shape and is_op(node, "Shape", "Size"):
            continue
        stack.extend((parent, False) for parent in reversed(node.inputs) if parent is not None)
    return order, list(leaves)


def has_few_ancestors(value: ir.Value, limit: int) -> bool:
    """Tell whether at most `limit` nodes compute a value, without looking at more than those."""
    seen: set[ir.Node] = set()
    stack = [value]
    while stack:
        node = stack.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if len(seen) > limit:
            return False
        stack.extend(parent for parent in node.inputs if parent is not None)
    return True


@dataclass(frozen=True)
class Region:
    """Nodes in topological order with the values that flow in and out."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def region(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> Region:
    """Bound a set of nodes: inputs are the non-constant values that they use and do not make.

    Args:
        nodes: in any order.
        outputs: the values wanted.
    """
    ordered = _in_dependency_order(list(dict.fromkeys(nodes)))
    made = {value for node in ordered for value in node.outputs}
    inputs: dict[ir.Value, None] = {}
    for node in ordered:
        for value in node.inputs:
            if value is not None and value not in made and not is_constant(value):
                inputs[value] = None
    for value in outputs:
        if value not in made and not is_constant(value):
            inputs[value] = None
    return Region(tuple(ordered), tuple(inputs), tuple(outputs))


def _in_dependency_order(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    members = set(nodes)
    done: set[ir.Node] = set()
    order: list[ir.Node] = []
    for start in nodes:
        stack = [(start, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                if node not in done:
                    done.add(node)
                    order.append(node)
                continue
            if node in done:
                continue
            stack.append((node, True))
            stack.extend(
                (p, False) for v in node.inputs if v is not None and (p := v.producer()) in members and p is not None
            )
    return order


@dataclass
class Detached:
    """A model cut out of a graph.

    Attributes:
        model: large constants are inputs of it, so that its bytes stay small.
        inputs: the original value behind each data input, in order of the model's first inputs.
        weights: the large constants by input name.
    """

    model: ir.Model
    inputs: list[ir.Value]
    weights: dict[str, ir.TensorProtocol]


def detach(
    regions: Sequence[Region],
    opset_imports: Mapping[str, int],
    functions: Sequence[ir.Function] = (),
    ir_version: int = 10,
    *,
    feed_constants: bool = True,
) -> Detached:
    """Copy regions side by side into one model.

    Args:
        regions: what to copy.
        opset_imports: of the model they come from.
        functions: of the same model.
        ir_version: of the same model.
        feed_constants: make large constants inputs, so that no weight is copied; False keeps them as initializers.

    Data inputs are named `in_<i>`, outputs `out_<j>` in the order of the regions' outputs. A value that is input of one
    region and made by another stays an input of the first: each region is computed from given inputs alone.
    """
    copier = _Copier(feed_constants=feed_constants)
    for part in regions:
        copier.copy(part)
    large = [value for value in copier.constants.values() if value.name in copier.weights]
    small = [value for value in copier.constants.values() if value.name not in copier.weights]
    graph = ir.Graph(
        [*copier.inputs.values(), *large],
        copier.outputs,
        nodes=copier.nodes,
        initializers=small,
        opset_imports=dict(opset_imports),
        name="region",
    )
    model = ir.Model(graph, ir_version=ir_version, functions=list(functions))
    return Detached(model, list(copier.inputs), copier.weights)


class _Copier:
    """Copies regions into fresh values and nodes; constants are shared between regions, everything else is not."""

    def __init__(self, *, feed_constants: bool) -> None:
        self._feed_constants = feed_constants
        self.inputs: dict[ir.Value, ir.Value] = {}
        self.constants: dict[ir.Value, ir.Value] = {}
        self.weights: dict[str, ir.TensorProtocol] = {}
        self.nodes: list[ir.Node] = []
        self.outputs: list[ir.Value] = []

    def copy(self, part: Region) -> None:
        """Copy one region; its outputs are appended to `outputs`."""
        made = {value: self._input(value) for value in part.inputs}
        for node in part.nodes:
            self._node(node, made)
        for value in part.outputs:
            source = made.get(value) or self._constant(value)
            identity = ir.node("Identity", [source], name=f"out_node_{len(self.outputs)}")
            identity.outputs[0].name, identity.outputs[0].type = f"out_{len(self.outputs)}", source.type
            self.nodes.append(identity)
            self.outputs.append(identity.outputs[0])

    def _input(self, value: ir.Value) -> ir.Value:
        if value not in self.inputs:
            free = None if value.shape is None else ir.Shape([None] * len(value.shape))
            self.inputs[value] = ir.Value(name=f"in_{len(self.inputs)}", type=value.type, shape=free)
        return self.inputs[value]

    def _constant(self, value: ir.Value) -> ir.Value:
        copied = self.constants.get(value)
        if copied is None:
            tensor = value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)
            if tensor is None:
                raise ValueError(f"{value.name} is not a constant")
            is_fed = self._feed_constants and tensor.nbytes > SMALL_CONSTANT_BYTES and tensor.dtype in PLAIN
            if isinstance(tensor, ir.ExternalTensor) and not is_fed:
                # the cut-out model has no folder to find it in
                tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
            copied = constant_value(tensor, f"const_{len(self.constants)}")
            if is_fed:
                copied.const_value = None
                self.weights[copied.name or ""] = tensor
            self.constants[value] = copied
        return copied

    def _node(self, node: ir.Node, made: dict[ir.Value, ir.Value]) -> None:
        if has_subgraph(node):
            raise ValueError(f"{node.name}: a node with a subgraph cannot be cut out")
        name = f"n{len(self.nodes)}"
        copied = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else made.get(v) or self._constant(v) for v in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=name,
        )
        for position, (old, new) in enumerate(zip(node.outputs, copied.outputs, strict=True)):
            new.name = f"{name}_{position}" if old.name else ""
            new.type = old.type
            made[old] = new
        self.nodes.append(copied)
