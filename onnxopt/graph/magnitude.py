"""Tell how large the numbers of a value can become, whatever the inputs of the graph hold.

What is normalized, squashed or looked up in a table is bounded by its weights alone: a row of LayerNormalization is no
longer than √d · max|γ| + ‖β‖, and a product with a matrix makes it longer by its largest singular value at most. So it
can be told whether the scores of an attention reach the number by which keys are hidden. An input of floats may hold
anything, and nothing is known of what is added up from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from onnxopt.graph.nodes import CONTRIB, STANDARD_DOMAINS, attribute
from onnxopt.graph.values import constant, dims, is_constant, number
from onnxopt.spec import Array

DEEPEST = 40  # nodes one behind the other; a residual stream that no norm ends is left alone
LARGEST_EXACT = 1024  # of the smaller side of a matrix whose singular values are computed; beyond, all of it counts
ROUNDING = 1.01  # what float32 may add to a bound in real arithmetic


@dataclass(frozen=True)
class Magnitude:
    """Bounds of a tensor; infinite where nothing is known.

    Attributes:
        entry: max|x|.
        row: max ‖x‖₂ of the vectors along the last axis.
    """

    entry: float
    row: float


UNKNOWN = Magnitude(math.inf, math.inf)
Rule = Callable[[ir.Node, list[Magnitude]], Magnitude]
_RULES: dict[str, Rule] = {}
_STRETCHES: WeakKeyDictionary[ir.TensorProtocol, float] = WeakKeyDictionary()

# With |f(x)| <= |x|, entry by entry.
_SHRINKS = frozenset(
    {"Abs", "Cast", "Dropout", "FastGelu", "Gelu", "HardSwish", "Identity", "Neg", "QuickGelu", "Relu"}
    | {"SiLU", "Squeeze", "Swish", "Unsqueeze"}
)
_MOVES = frozenset({"DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Reshape", "Slice"})
_SQUASHES = frozenset({"Cos", "Erf", "Sigmoid", "Sin", "Tanh"})  # into [-1, 1]
# What goes in does not matter.
_ENDS = _SQUASHES | {"Clip", "LayerNormalization", "LpNormalization", "RMSNormalization"}
_ENDS |= {"SimplifiedLayerNormalization", "Softmax"}


def magnitude(value: ir.Value | None) -> Magnitude:
    """Return bounds of a value that hold for every input of the graph."""
    found = _magnitude(value, 0, {})
    return Magnitude(found.entry * ROUNDING, found.row * ROUNDING)


def _magnitude(value: ir.Value | None, depth: int, known: dict[ir.Value, Magnitude]) -> Magnitude:
    if value is None:
        return Magnitude(0.0, 0.0)
    if value not in known:
        known[value] = _with_width(value, _derived(value, depth, known))
    return known[value]


def _derived(value: ir.Value, depth: int, known: dict[ir.Value, Magnitude]) -> Magnitude:
    if is_constant(value):
        return _of_constant(value)
    node = value.producer()
    if value.dtype == ir.DataType.BOOL:
        return Magnitude(1.0, math.inf)
    if node is None or depth > DEEPEST or node.domain not in (*STANDARD_DOMAINS, CONTRIB):
        return UNKNOWN
    rule = _RULES.get(node.op_type)
    if rule is None or (node.outputs[0] is not value and node.op_type != "Split"):
        return UNKNOWN
    taken = node.inputs[:1] if node.op_type in _ENDS else node.inputs
    inputs = [UNKNOWN] if node.op_type in _ENDS else [_magnitude(one, depth + 1, known) for one in taken]
    return rule(node, inputs)


def _of_constant(value: ir.Value) -> Magnitude:
    array = constant(value)
    if array is None or array.dtype.kind not in "fiub" or not array.size:
        return UNKNOWN
    wide = np.abs(array.astype(np.float64))
    rows = np.sqrt((wide**2).sum(axis=-1)) if array.ndim else wide
    return Magnitude(float(wide.max()), float(rows.max()))


def _with_width(value: ir.Value, found: Magnitude) -> Magnitude:
    """Use that a row of n entries is no longer than √n of the largest, and no entry larger than its row."""
    width = _width(value)
    row = min(found.row, found.entry * math.sqrt(width)) if width else found.row
    return Magnitude(min(found.entry, row), row)


def _width(value: ir.Value | None) -> int:
    """Return how many entries a row has, 0 where that is not known."""
    shape = dims(value) or ()
    last = shape[-1] if shape else 1
    return last if isinstance(last, int) else 0


def _stretch(value: ir.Value | None, weight: Array) -> float:
    """Return `longest_row` of a constant; layers and passes ask again, and it takes a tenth of a second."""
    tensor = value.const_value if value is not None else None
    if tensor is None:
        return longest_row(weight)
    if tensor not in _STRETCHES:
        _STRETCHES[tensor] = longest_row(weight)
    return _STRETCHES[tensor]


def longest_row(weight: Array) -> float:
    """Return the largest singular value of a matrix, or a little more: ‖x W‖₂ <= σ ‖x‖₂.

    Args:
        weight: float [inputs, outputs].
    """
    wide = weight.astype(np.float64)
    if min(wide.shape) > LARGEST_EXACT:
        return float(np.sqrt((wide**2).sum()))
    inner = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    return math.sqrt(max(0.0, float(np.linalg.eigvalsh(inner)[-1])))


def _rule(*op_types: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(op_types, function))
        return function

    return register


@_rule(*_SHRINKS)
def _shrinks(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    if node.op_type in ("Squeeze", "Unsqueeze", "Cast") and _width(node.outputs[0]) != _width(node.inputs[0]):
        return Magnitude(inputs[0].entry, math.inf)
    return inputs[0]


@_rule(*_MOVES)
def _moves(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    """Keep the rows where each lies in one old row: those of heads in that of a token, those of a table as they are."""
    old, new = _width(node.inputs[0]), _width(node.outputs[0])
    whole = bool(old and new and old % new == 0) if node.op_type in ("Reshape", "Slice") else False
    if node.op_type == "Gather":
        axis = attribute(node, "axis") or 0
        whole = axis not in (-1, len(dims(node.inputs[0]) or ()) - 1) and old == new > 0
    return Magnitude(inputs[0].entry, inputs[0].row if whole else math.inf)


@_rule("Transpose")
def _transpose(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    order = tuple(attribute(node, "perm") or ())
    stays = bool(order) and order[-1] == len(order) - 1
    return Magnitude(inputs[0].entry, inputs[0].row if stays else math.inf)


@_rule("Split")
def _split(_: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    return inputs[0]


@_rule("Concat")
def _concat(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    last = attribute(node, "axis") in (-1, len(dims(node.outputs[0]) or ()) - 1)
    rows = [one.row for one in inputs]
    return Magnitude(max(one.entry for one in inputs), math.hypot(*rows) if last else max(rows))


@_rule(*_SQUASHES)
def _squashes(_: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    del inputs
    return Magnitude(1.0, math.inf)


@_rule("Softmax", "LpNormalization")
def _normalized(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    del inputs
    last = attribute(node, "axis") in (-1, None, len(dims(node.outputs[0]) or ()) - 1)
    return Magnitude(1.0, 1.0 if last else math.inf)


@_rule("Clip")
def _clip(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    del inputs
    bounds = [number(value) for value in node.inputs[1:3]]
    if len(bounds) == 2 and None not in bounds:
        return Magnitude(max(abs(bound) for bound in bounds if bound is not None), math.inf)
    return UNKNOWN


@_rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _norm(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    """‖γ ∘ n + β‖ <= max|γ| · ‖n‖ + ‖β‖, where ‖n‖ <= √d; LayerNormalization-17."""
    del inputs
    gamma = node.inputs[1] if len(node.inputs) > 1 else None
    beta = node.inputs[2] if len(node.inputs) > 2 else None
    rank = len(dims(node.inputs[0]) or ())
    along_last = attribute(node, "axis") in (-1, None, rank - 1)
    width = _width(node.inputs[0])
    if not along_last or not width or not is_constant(gamma) or (beta is not None and not is_constant(beta)):
        return UNKNOWN
    factor, shift = (_of_constant(one) if one is not None else Magnitude(0.0, 0.0) for one in (gamma, beta))
    root = math.sqrt(width)
    row = shift.row if _width(beta) == width else shift.entry * root
    return Magnitude(factor.entry * root + shift.entry, factor.entry * root + row)


def _are_weights(value: ir.Value | None) -> bool:
    """Tell whether each row of a value is of weights that sum to one."""
    node = value.producer() if value is not None else None
    along = attribute(node, "axis") if node is not None and node.op_type == "Softmax" else None
    return along in (-1, len(dims(value) or ()) - 1)


@_rule("MatMul", "Gemm")
def _product(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    """A matrix makes a row longer by its largest singular value; weights of an attention keep within its values."""
    rows, weight = inputs[0], constant(node.inputs[1])
    if weight is None and _are_weights(node.inputs[0]) and len(dims(node.inputs[1]) or ()) > 1:
        return inputs[1]
    if weight is None or weight.ndim != 2 or math.isinf(rows.row):
        return UNKNOWN
    factor = 1.0
    if node.op_type == "Gemm":
        factor = abs(float(attribute(node, "alpha") or 0.0))
        if attribute(node, "transA"):
            return UNKNOWN
        weight = weight.T if attribute(node, "transB") else weight
    long = rows.row * factor
    columns = float(np.sqrt((weight.astype(np.float64) ** 2).sum(axis=0)).max())
    found = Magnitude(long * columns, long * _stretch(node.inputs[1], weight))
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        share = abs(float(attribute(node, "beta") or 0.0))
        wide = _broad(node, 2, inputs[2])
        return Magnitude(found.entry + share * wide.entry, found.row + share * wide.row)
    return found


@_rule("Add", "Sub", "Sum")
def _sum(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    wide = [_broad(node, index, one) for index, one in enumerate(inputs)]
    return Magnitude(sum(one.entry for one in wide), sum(one.row for one in wide))


@_rule("Mul")
def _scaled(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    left, right = (_broad(node, index, one) for index, one in enumerate(inputs))
    return Magnitude(_times(left.entry, right.entry), min(_times(left.entry, right.row), _times(left.row, right.entry)))


@_rule("Div")
def _divided(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    divisor = number(node.inputs[1])
    if not divisor:
        return UNKNOWN
    return Magnitude(inputs[0].entry / abs(divisor), inputs[0].row / abs(divisor))


@_rule("Where")
def _either(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    left, right = (_broad(node, index, inputs[index]) for index in (1, 2))
    return Magnitude(max(left.entry, right.entry), math.hypot(left.row, right.row))


@_rule("RotaryEmbedding")
def _turned(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    """A pair that is turned by a cosine and a sine is longer by their length at most."""
    if node.domain not in STANDARD_DOMAINS:
        return UNKNOWN
    longer = max(1.0, math.hypot(*(one.entry for one in inputs[1:3]))) if len(inputs) > 2 else math.inf
    return Magnitude(_times(inputs[0].row, longer), _times(inputs[0].row, longer))


@_rule("Attention")
def _attended(node: ir.Node, inputs: list[Magnitude]) -> Magnitude:
    """Means of values; of heads beside each other, each is within a row of all."""
    if node.domain not in STANDARD_DOMAINS or any(one is not None for one in node.inputs[4:]):
        return UNKNOWN  # values of a cache may be any
    heads = attribute(node, "q_num_heads") or 1
    return Magnitude(inputs[2].entry, inputs[2].row * math.sqrt(heads))


def _broad(node: ir.Node, index: int, found: Magnitude) -> Magnitude:
    """Return the bounds of an input spread over the output: one entry for a row becomes as many as that has."""
    old, new = _width(node.inputs[index]), _width(node.outputs[0])
    spread = found.entry * math.sqrt(new) if new else math.inf
    return Magnitude(found.entry, found.row if old == new > 0 else spread)


def _times(left: float, right: float) -> float:
    """The product, 0 where one factor is: nothing of anything."""
    return left * right if left and right else 0.0
