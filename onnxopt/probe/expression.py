"""Tell whether two graphs compute the same expressions of the same inputs and constants.

Equal expressions give equal results for every input, which is more than any run can show. What is no difference: names,
the order of nodes, a computation written twice, Identity, a Cast to the type that a value has, the order of the
operands of a commutative operator, where a constant is kept, and what no output needs. Everything else is one, also
where the results would be the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import STANDARD_DOMAINS
from onnxopt.graph.weight_files import elements
from onnxopt.probe.memory import release_pages
from onnxopt.spec import Array

COMMUTATIVE = ("Add", "Mul", "And", "Or", "Xor", "Equal")  # IEEE 754: with equal roundings, too
# Dropout draws only in training; it is not worth telling apart
RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
)
WHOLE = 1024  # elements; a tensor of so many is its own sample
CHUNK = 2**18  # elements that are compared at a time

_TUPLES = (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)
_PLAIN = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING)


class Tensors:
    """Numbers tensors by type, shape and content.

    Large ones are told apart by a sample, and only those with equal samples are compared, chunk by chunk; the memory
    behind what lies in a file is let go at once.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[ir.TensorProtocol, int]] = {}
        self._alike: dict[tuple[Any, ...], list[tuple[ir.TensorProtocol, int]]] = {}
        self._count = 0

    def number(self, tensor: ir.TensorProtocol) -> int:
        """Return the number that exactly the tensors equal to this one have."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known[1]
        group = self._alike.setdefault(_sample(tensor), [])
        found = next((number for other, number in group if equal_tensors(tensor, other)), None)
        if found is None:
            found, self._count = self._count, self._count + 1
            group.append((tensor, found))
        self._known[id(tensor)] = (tensor, found)  # kept, so that its id stays its own
        return found


def _sample(tensor: ir.TensorProtocol) -> tuple[Any, ...]:
    """Return what equal tensors have in common: type, shape, and a digest of a few places."""
    shape = tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]  # a tensor's
    if tensor.dtype == ir.DataType.STRING:
        return tensor.dtype, shape, tuple(tensor.numpy().reshape(-1).tolist())
    size, middle, part = tensor.size, tensor.size // 2, WHOLE // 4
    pieces = ((0, part), (middle, middle + part), (size - part, size)) if size > WHOLE else ((0, size),)
    data = np.concatenate([_bytes(elements(tensor, start, stop)) for start, stop in pieces])
    return tensor.dtype, shape, hashlib.sha256(data.data).digest()


def equal_tensors(first: ir.TensorProtocol, second: ir.TensorProtocol) -> bool:
    """Compare two tensors of one type and shape bit by bit, reading a chunk of each at a time."""
    if first is second or first.dtype == ir.DataType.STRING:
        return True  # the sample of strings is all of them
    same = first.size == second.size and all(
        np.array_equal(_bytes(elements(first, start, start + CHUNK)), _bytes(elements(second, start, start + CHUNK)))
        for start in range(0, first.size, CHUNK)
    )
    if first.size > CHUNK:
        release_pages([first, second])
    return same


def _bytes(array: Array) -> Array:
    """Return the bytes of an array; bfloat16 has no buffer of its own."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


Expression = tuple[tuple[Any, ...], ...]  # what a model takes and what its outputs compute, in numbers


class Expressions:
    """Numbers the values of graphs by what they compute; one object serves all graphs that are to be compared."""

    def __init__(self) -> None:
        self._tensors = Tensors()
        self._numbers: dict[tuple[Any, ...], int] = {}

    def of(self, model: ir.Model, given: Mapping[ir.Value, ir.TensorProtocol] | None = None) -> Expression | None:
        """Return what the model takes and what each of its outputs computes; None when that cannot be told.

        Args:
            model: its values must have their types for a Cast to be told from none.
            given: values of the main graph that count as these constants.
        """
        if model.functions:
            return None
        taken = tuple((value.name, value.dtype, value.name in model.graph.initializers) for value in model.graph.inputs)
        try:
            values = {value: self._constant(tensor) for value, tensor in (given or {}).items()}
            return taken, *self._graph(model.graph, values, model.opset_imports, 0)
        except _UntoldError:
            return None

    def _graph(
        self, graph: ir.Graph, values: dict[ir.Value, int], opsets: Mapping[str, int], depth: int
    ) -> tuple[tuple[Any, ...], ...]:
        for index, value in enumerate(graph.inputs):
            values[value] = self._number(("input", depth, value.name if depth == 0 else index))
        for value in graph.initializers.values():
            if value not in values and value.const_value is not None:
                values[value] = self._constant(value.const_value)
        for node in graph:
            self._node(node, values, opsets, depth)
        names = ((value.name if depth == 0 else "") for value in graph.outputs)
        defaults = tuple(
            self._constant(value.const_value)
            for value in graph.inputs
            if value.name in graph.initializers and value.const_value is not None
        )
        return (*((name, _of(values, value)) for name, value in zip(names, graph.outputs, strict=True)), defaults)

    def _node(self, node: ir.Node, values: dict[ir.Value, int], opsets: Mapping[str, int], depth: int) -> None:
        if all(value in values for value in node.outputs):
            return  # given
        standard = node.domain in STANDARD_DOMAINS
        inputs = [-1 if value is None else _of(values, value) for value in node.inputs]
        while inputs and inputs[-1] == -1:
            inputs.pop()
        operator, attrs = node.op_type, dict(node.attributes)
        kind = _cast_to(node) if standard else None
        source = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
        if standard and (operator == "Identity" or (kind is not None and source == kind)):
            values[node.outputs[0]] = inputs[0]
            return
        if kind is not None:
            operator, inputs, attrs["to"] = "Cast", inputs[:1], ir.AttrInt64("to", kind.value)
        if standard and operator == "Constant":
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is None:
                raise _UntoldError
            values[node.outputs[0]] = self._constant(tensor)
            return
        if standard and operator in COMMUTATIVE:
            inputs.sort()
        domain = "" if standard else node.domain
        version = node.version or opsets.get(domain, opsets.get("ai.onnx", 0) if standard else 0)
        drawn = node.outputs[0].name if standard and operator in RANDOM else ""
        attributes = tuple(sorted((name, self._attribute(attr, values, opsets, depth)) for name, attr in attrs.items()))
        key = (domain, operator, node.overload, version, drawn, tuple(inputs), attributes, len(node.outputs))
        for index, value in enumerate(node.outputs):
            values.setdefault(value, self._number((key, index) if index else key))

    def _attribute(
        self, attr: ir.Attr, values: dict[ir.Value, int], opsets: Mapping[str, int], depth: int
    ) -> tuple[Any, ...]:
        if attr.is_ref():
            raise _UntoldError
        kind = attr.type.value
        if attr.type in _PLAIN:
            return kind, repr(attr.value)  # 0.0 and -0.0 are equal, and not the same
        if attr.type in _TUPLES:
            return kind, repr(list(attr.value))
        if attr.type == ir.AttributeType.TENSOR:
            return kind, str(self._constant(attr.value))
        if attr.type == ir.AttributeType.GRAPH:
            return kind, repr(self._graph(attr.value, values, opsets, depth + 1)), len(attr.value.inputs)
        raise _UntoldError

    def _constant(self, tensor: ir.TensorProtocol) -> int:
        return self._number(("constant", self._tensors.number(tensor)))

    def _number(self, key: tuple[Any, ...]) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _cast_to(node: ir.Node) -> ir.DataType | None:
    """Return the type that a Cast or a CastLike gives, None where it is not known, and for other operators."""
    if node.op_type == "CastLike" and node.inputs[1] is not None:
        return node.inputs[1].dtype
    to = node.attributes.get("to") if node.op_type == "Cast" else None
    return None if to is None or to.is_ref() else ir.DataType(to.as_int())


class _UntoldError(Exception):
    """A graph holds something that has no number."""


def _of(values: Mapping[ir.Value, int], value: ir.Value) -> int:
    found = values.get(value)
    if found is None:  # made later in the list, or nowhere
        raise _UntoldError
    return found
