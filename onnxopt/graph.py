"""Questions and small operations on an onnx_ir graph.

Everything that reads a graph for more than one caller lives here: constants, attributes with their defaults,
dimensions, sizes, and the cut of a region into a model of its own.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.exchange import PLAIN, is_float
from onnxopt.model import Array, Value

STANDARD_DOMAINS = ("", "ai.onnx")
CONTRIB = "com.microsoft"
PASS_KEY = "onnxopt.pass"  # noqa: S105 - metadata key on a node: the pass that built it
SMALL_CONSTANT_BYTES = 1024
PIECE = 2**18  # elements that are compared at a time


def opset(model: ir.Model, domain: str = "") -> int:
    """Return the imported version of a domain, 0 when it is not imported."""
    return model.opset_imports.get(domain, model.opset_imports.get("ai.onnx", 0) if domain == "" else 0)


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of a value that can never change, else None. An initializer that is also an input can change."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor is None:
        producer = value.producer()
        if producer is None or producer.op_type != "Constant":
            return None
        tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Tell whether a value is a constant, without reading its data."""
    if value is None or value.is_graph_input():
        return False
    producer = value.producer()
    return value.const_value is not None or (producer is not None and producer.op_type == "Constant")


def number(value: ir.Value | None) -> float | None:
    """Return the value of a constant with exactly one element, else None."""
    if value is None or not is_constant(value):
        return None
    size = value.const_value.size if value.const_value is not None else None
    if size is not None and size != 1:
        return None
    array = constant(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiub":
        return None
    return float(array.reshape(-1)[0])


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the elements of a small integer constant, else None."""
    array = constant(value)
    if array is None or array.dtype.kind not in "iu" or array.size > SMALL_CONSTANT_BYTES:
        return None
    return tuple(int(element) for element in array.reshape(-1))


@functools.cache
def _schema_default(op_type: str, version: int, domain: str, name: str) -> Any:
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    return onnx.helper.get_attribute_value(attribute.default_value)


@functools.cache
def _signature(op_type: str, version: int) -> tuple[int, frozenset[str]] | None:
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
    return schema.max_input, frozenset(schema.attributes)


def unknown_in(node: ir.Node, version: int) -> str:
    """Return what of a node a version of ai.onnx does not know: the operator, an attribute, an input; "" for nothing.

    What ONNX does not define is the runtime's own, and taken as it is.
    """
    import onnx

    if node.domain not in STANDARD_DOMAINS or not onnx.defs.has(node.op_type):
        return ""
    known = _signature(node.op_type, version)
    if known is None:
        return node.op_type
    inputs, attributes = known
    if len(node.inputs) > inputs:
        return f"{node.op_type} of {len(node.inputs)} inputs"
    return next((f"{node.op_type} with {name}" for name in node.attributes if name not in attributes), "")


def attribute(node: ir.Node, name: str) -> Any:
    """Return an attribute's value, the operator's default when it is not set, None when there is neither."""
    found = node.attributes.get(name)
    if found is None:
        version = node.version or (opset_of(node) or 1)
        default = _schema_default(node.op_type, version, node.domain, name)
        return default.decode() if isinstance(default, bytes) else default
    return found.value


def opset_of(node: ir.Node) -> int | None:
    """Return the opset version that applies to a node inside a graph, None for a detached node."""
    graph = node.graph
    if graph is None:
        return None
    imports = graph.opset_imports
    return imports.get(node.domain, imports.get("") if node.domain in STANDARD_DOMAINS else None)


Dim = int | str | None


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Return the dimensions: a size, the expression of a symbolic one, None for an unknown one; None without a rank."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def rank(value: ir.Value | None) -> int | None:
    """Return the number of dimensions, None when it is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def known_dims(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """Return the dimensions when every one is a size or a name, else None."""
    found = dims(value)
    if found is None or any(dim is None for dim in found):
        return None
    return tuple(dim for dim in found if dim is not None)


def is_op(node: ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """Tell whether a node is one of the operators of a domain."""
    if node is None or node.op_type not in op_types:
        return False
    return node.domain in STANDARD_DOMAINS if domain == "" else node.domain == domain


def op_counts(model: ir.Model) -> Counter[str]:
    """Count operators by `domain::op_type`, subgraphs included; a call of a function counts as what is in it."""
    bodies: dict[ir.OperatorIdentifier, Counter[str]] = {}

    def count(nodes: Iterable[ir.Node]) -> Counter[str]:
        found: Counter[str] = Counter()
        for node in nodes:
            key = node.op_identifier()
            if key not in model.functions:
                found[node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"] += 1
                continue
            if key not in bodies:
                bodies[key] = Counter()  # a function that calls itself is no ONNX, and ends here
                bodies[key] = count(ir.traversal.RecursiveGraphIterator(model.functions[key].graph))
            found += bodies[key]
        return found

    return count(all_nodes(model))


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of the main graph and its subgraphs."""
    return ir.traversal.RecursiveGraphIterator(model.graph)


def in_groups(values: Iterable[ir.Value], bytes_of: Callable[[ir.Value], int], most_bytes: int) -> list[list[ir.Value]]:
    """Split values, in order, into groups that stay within so many bytes each; one alone may be larger."""
    groups: list[list[ir.Value]] = [[]]
    used = 0
    for value in values:
        size = bytes_of(value)
        if groups[-1] and used + size > most_bytes:
            groups.append([])
            used = 0
        groups[-1].append(value)
        used += size
    return groups


def initializer_bytes(model: ir.Model) -> int:
    """Return the bytes of the initializers of the main graph."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def has_subgraph(node: ir.Node) -> bool:
    """Tell whether a node carries a graph (If, Loop, Scan)."""
    return any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values())


def remove_dead(nodes: Iterable[ir.Node]) -> int:
    """Remove those of the given nodes whose outputs nobody uses, and what only they kept alive. Returns how many."""
    removed = 0
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        parents = [value.producer() for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        removed += 1
        stack.extend(parent for parent in parents if parent is not None)
    return removed


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
        feeds: the large constants by input name.
    """

    model: ir.Model
    inputs: list[ir.Value]
    feeds: dict[str, Array]


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
    large = [value for value in copier.constants.values() if value.name in copier.feeds]
    small = [value for value in copier.constants.values() if value.name not in copier.feeds]
    graph = ir.Graph(
        [*copier.inputs.values(), *large],
        copier.outputs,
        nodes=copier.nodes,
        initializers=small,
        opset_imports=dict(opset_imports),
        name="region",
    )
    model = ir.Model(graph, ir_version=ir_version, functions=list(functions))
    return Detached(model, list(copier.inputs), copier.feeds)


class _Copier:
    """Copies regions into fresh values and nodes; constants are shared between regions, everything else is not."""

    def __init__(self, *, feed_constants: bool) -> None:
        self._feed_constants = feed_constants
        self.inputs: dict[ir.Value, ir.Value] = {}
        self.constants: dict[ir.Value, ir.Value] = {}
        self.feeds: dict[str, Array] = {}
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
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= SMALL_CONSTANT_BYTES:
                tensor = ir.tensor(tensor.numpy())  # the cut-out model has no folder to find it in
            copied = constant_value(tensor, f"const_{len(self.constants)}")
            if self._feed_constants and tensor.nbytes > SMALL_CONSTANT_BYTES and tensor.dtype in PLAIN:
                copied.const_value = None
                self.feeds[copied.name or ""] = tensor.numpy()
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


def tensor_shape(tensor: ir.TensorProtocol) -> ir.Shape:
    """Return the shape of a tensor as a new object."""
    return ir.Shape([int(dim) for dim in tensor.shape])  # type: ignore[arg-type]  # a tensor has no symbolic dimension


CODES = ("uint8", "int8")


def constant_value(tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Make a value that holds a tensor; it is not yet an initializer of a graph."""
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor_shape(tensor), const_value=tensor)


def worst_error(candidate: Value, reference: Value, rows: Array | None = None) -> tuple[float, float]:
    """Return (relative, absolute) worst error of a candidate.

    Relative is max|candidate - reference| / max|reference|; a difference of shape, dtype kind or of where NaN lies is
    inf, and so is one of how many tensors a sequence has or of whether an optional is there.

    Args:
        candidate: a tensor of any shape, a sequence of them, or None.
        reference: the same.
        rows: bool [leading dimensions], the rows that matter; None for all.
    """
    if not isinstance(reference, np.ndarray) or not isinstance(candidate, np.ndarray):
        absolute, scale = _difference_of_parts(candidate, reference)
        return (absolute / scale if scale > 0 else absolute and math.inf), absolute
    if candidate.shape != reference.shape or candidate.dtype.kind != reference.dtype.kind:
        return math.inf, math.inf
    if rows is not None:
        candidate, reference = candidate[rows], reference[rows]
    if not reference.size:
        return 0.0, 0.0
    absolute, scale = difference(candidate, reference)
    return (absolute / scale if scale > 0 else (0.0 if absolute == 0 else math.inf)), absolute


def difference(candidate: Value, reference: Value) -> tuple[float, float]:
    """Return (worst absolute error, largest magnitude of the reference), both over what is finite.

    Of sequences and optionals, both are the largest over what they hold. A difference of shape, dtype kind or of where
    NaN and infinities lie is inf, and so is any between numbers that are no floats, but for integers of 8 bits, which
    are codes of a grid. Arrays are read in pieces, since each step in float64 needs twice their memory.
    """
    if not isinstance(reference, np.ndarray) or not isinstance(candidate, np.ndarray):
        return _difference_of_parts(candidate, reference)
    if candidate.shape != reference.shape or candidate.dtype.kind != reference.dtype.kind:
        return math.inf, 0.0
    if reference.dtype.kind != "c" and reference.dtype.name not in CODES and not is_float(reference.dtype):
        return (0.0 if np.array_equal(candidate, reference) else math.inf), 0.0
    absolute, scale = 0.0, 0.0
    flat_c, flat_r = candidate.reshape(-1), reference.reshape(-1)
    for start in range(0, flat_r.size, PIECE):
        part = slice(start, start + PIECE)
        moved, size = _difference(flat_c[part].astype(np.float64), flat_r[part].astype(np.float64))
        absolute, scale = max(absolute, moved), max(scale, size)
    return absolute, scale


def _difference_of_parts(candidate: Value, reference: Value) -> tuple[float, float]:
    if not isinstance(candidate, list) or not isinstance(reference, list) or len(candidate) != len(reference):
        return (0.0 if candidate is reference else math.inf), 0.0
    found = [difference(one, other) for one, other in zip(candidate, reference, strict=True)]
    return max((each[0] for each in found), default=0.0), max((each[1] for each in found), default=0.0)


def sqnr_db(candidate: Array, reference: Array) -> float:
    """Return 10·log₁₀(Σ reference² / Σ (candidate − reference)²), the signal to quantization noise ratio in decibels.

    Equal tensors, and a reference of nothing but zeros that is met within rounding, give infinity; so does an integer
    or empty tensor that is equal, and one that is not gives minus infinity.
    """
    if candidate.shape != reference.shape:
        return -math.inf
    if reference.dtype.kind != "f" and reference.dtype.name not in CODES:
        return math.inf if np.array_equal(candidate, reference) else -math.inf
    signal = noise = 0.0
    flat_c, flat_r = candidate.reshape(-1), reference.reshape(-1)
    for start in range(0, flat_r.size, PIECE):
        part = slice(start, start + PIECE)
        one = flat_r[part].astype(np.float64)
        signal += float(one @ one)
        moved = flat_c[part].astype(np.float64) - one
        noise += float(moved @ moved)
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _difference(candidate: Array, reference: Array) -> tuple[float, float]:
    finite = np.isfinite(reference)
    if finite.all():
        moved = float(np.abs(candidate - reference).max())
        return (moved if math.isfinite(moved) else math.inf), float(np.abs(reference).max())
    if not np.array_equal(np.isfinite(candidate), finite):
        return math.inf, 0.0
    if not np.array_equal(candidate[~finite], reference[~finite], equal_nan=True):
        return math.inf, 0.0
    if not finite.any():
        return 0.0, 0.0
    return float(np.abs(candidate[finite] - reference[finite]).max()), float(np.abs(reference[finite]).max())
