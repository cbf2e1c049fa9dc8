"""Find the constants that an input is compared with, so that each branch behind a comparison can be run.

A sampling rate is compared with 16000, a language with "en", a flag decides an If: with made-up numbers one side alone
would ever be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.spec import Array, TensorSpec

MAX_CHOICES = 12  # of one input; an input compared with more is a number, not an enumeration
MAX_VISITED = 10_000
_SAME_VALUES = frozenset(
    {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Tile", "Slice", "Gather", "Not"}
)
_ORDERED = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Min", "Max", "Clip"})
_COMPARING = _ORDERED | {"Equal"}


def compared_values(value: ir.Value, spec: TensorSpec, functions: Mapping[Any, ir.Function]) -> tuple[Any, ...]:
    """Return values of an input that between them take every side of the comparisons with constants.

    Args:
        value: the input in the graph.
        spec: its type and axes; only inputs of one element, or of one for each entry of an open axis, are looked at.
        functions: the model's own functions, by identifier.

    Returns:
        Constants that it is compared with, and one beside each; both sides of a flag; empty for an input that no
        constant decides anything about, or that too many do.
    """
    if not all(isinstance(axis, str) or axis == 1 for axis in spec.axes) or len(spec.axes) > 1:
        return ()
    kind = np.dtype(spec.dtype)
    if kind == np.dtype(bool):
        return (True, False)
    found: dict[Any, None] = {}
    for operator, constant in _comparisons(value, functions):
        for element in np.unique(constant.reshape(-1)):
            found.update(dict.fromkeys(_sides(operator, element, kind)))
    choices = tuple(found)
    return choices if len(choices) <= MAX_CHOICES else ()


def _sides(operator: str, constant: Any, kind: np.dtype[Any]) -> Iterator[Any]:
    """Yield the constant, and a value on each other side of it, in the type of the input."""
    if kind == np.dtype(object):
        word = constant.decode() if isinstance(constant, bytes) else str(constant)
        yield from (word, f"{word}_")
        return
    if not isinstance(constant, (np.number, np.bool_, int, float)):
        return
    number = float(constant)
    if kind.kind in "iu":
        around = (number, number + 1, number - 1) if operator in _ORDERED else (number, number + 1)
        limits = np.iinfo(kind)
        yield from (kind.type(int(one)) for one in around if limits.min <= one <= limits.max and one == int(one))
        return
    move = abs(number) / 2 or 0.5
    around = (number, number + move, number - move) if operator in _ORDERED else (number, number + move)
    yield from (kind.type(one) for one in around)


def _comparisons(value: ir.Value, functions: Mapping[Any, ir.Function]) -> Iterator[tuple[str, Array]]:
    """Yield the operator and the constant of each comparison that the numbers of a value meet, in branches too."""
    queue, seen = [value], {value}
    while queue and len(seen) < MAX_VISITED:
        for node, index in queue.pop().uses():
            if node.op_type in _COMPARING:
                others = (_constant(other) for place, other in enumerate(node.inputs) if place != index)
                yield from ((node.op_type, other) for other in others if other is not None)
            for carried in _carried(node, index, functions):
                if carried not in seen:
                    seen.add(carried)
                    queue.append(carried)


def _carried(node: ir.Node, index: int, functions: Mapping[Any, ir.Function]) -> Iterable[ir.Value]:
    """Return the values that hold the same numbers as an input of a node."""
    function = functions.get(node.op_identifier())
    if function is not None:
        return function.inputs[index : index + 1]
    return node.outputs if node.op_type in _SAME_VALUES and index == 0 else ()


def _constant(value: ir.Value | None) -> Array | None:
    if value is None:
        return None
    tensor = value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)
    return tensor.numpy() if tensor is not None and 0 < tensor.size <= MAX_CHOICES else None
