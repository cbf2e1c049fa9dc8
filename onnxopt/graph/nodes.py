"""Questions and small operations on an onnx_ir graph.

Everything that reads a graph for more than one caller lives here: constants, attributes with their defaults,
dimensions, sizes, and the cut of a region into a model of its own.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx_ir as ir

STANDARD_DOMAINS = ("", "ai.onnx")
CONTRIB = "com.microsoft"
PASS_KEY = "onnxopt.pass"  # noqa: S105 - metadata key on a node: the pass that built it
SMALL_CONSTANT_BYTES = 1024


def opset(model: ir.Model, domain: str = "") -> int:
    """Return the imported version of a domain, 0 when it is not imported."""
    return model.opset_imports.get(domain, model.opset_imports.get("ai.onnx", 0) if domain == "" else 0)


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
