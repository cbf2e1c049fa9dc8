"""Operators that keep the dimensions of their input, or broadcast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.sizes.facts import UNKNOWN, Fact, kind_of, of_elements
from onnxopt.sizes.rules import Step, contrib, elements_together, rule, together
from onnxopt.sizes.terms import BOOL, INT, Number, call, is_constant

_NAMES = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Pow": "pow",
    "Max": "max",
    "Min": "min",
    "Sum": "add",
    "And": "and",
    "Or": "or",
    "Xor": "xor",
    "Equal": "equal",
    "Greater": "greater",
    "Less": "less",
    "GreaterOrEqual": "greater_equal",
    "LessOrEqual": "less_equal",
    "Abs": "abs",
    "Neg": "neg",
    "Relu": "relu",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Sqrt": "sqrt",
    "Exp": "exp",
    "Log": "log",
    "Reciprocal": "reciprocal",
    "Sign": "sign",
    "Not": "not",
}
_COMPARISONS = frozenset({"equal", "greater", "less", "greater_equal", "less_equal"})


@rule(
    *("Abs", "Neg", "Relu", "Floor", "Ceil", "Round", "Sqrt", "Exp", "Log", "Reciprocal", "Sign", "Not"),
)
def _computed(step: Step) -> Sequence[Fact]:
    fact = step.fact(0)
    if fact.elements is None:
        return [Fact(fact.dims)]
    name = _NAMES[step.node.op_type]
    return [Fact(fact.dims, tuple(call(name, fact.dtype, one) for one in fact.elements), fact.dtype)]


@rule(
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan", "Tanh", "Erf"),
    *(
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Elu",
        "Selu",
        "Celu",
        "LeakyRelu",
        "ThresholdedRelu",
        "Softplus",
        "Softsign",
    ),
    *(
        "Mish",
        "Swish",
        "Shrink",
        "Gelu",
        "IsNaN",
        "IsInf",
        "BitwiseNot",
        "Bernoulli",
        "RandomNormalLike",
        "RandomUniformLike",
    ),
    *("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "MeanVarianceNormalization", "LRN", "CumSum", "CumProd"),
    *("Trilu", "ReverseSequence", "EyeLike", "PRelu", "InstanceNormalization", "GroupNormalization"),
    *("QuantizeLinear", "DequantizeLinear", "ScatterElements", "ScatterND", "Scatter", "RotaryEmbedding"),
    *("RMSNormalization", "TensorScatter", "BitCast"),
)
@rule("Scaler", "Binarizer", "Normalizer", "Imputer", domain="ai.onnx.ml")
def _same(step: Step) -> Sequence[Fact]:
    return [Fact(step.dims(0))]


@rule("Identity", "OptionalGetElement")
def _handed_on(step: Step) -> Sequence[Fact]:
    return [step.fact(0)]


@rule("Dropout")
def _dropout(step: Step) -> Sequence[Fact]:
    training = step.fact(2)
    idle = not step.has(2) or (training.elements is not None and not any(training.elements))
    return [step.fact(0) if idle else Fact(step.dims(0)), Fact(step.dims(0))]


@rule("BatchNormalization")
def _batch_norm(step: Step) -> Sequence[Fact]:
    return [Fact(step.dims(0)), *(Fact(step.dims(1)) for _ in step.node.outputs[1:])]


@rule("LayerNormalization")
def _layer_norm(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [UNKNOWN]
    axis = int(step.attribute("axis") or 0) % max(1, len(dims))
    statistics = Fact((*dims[:axis], *(1 for _ in dims[axis:])))
    return [Fact(dims), statistics, statistics]


@rule("Cast", "CastLike")
def _cast(step: Step) -> Sequence[Fact]:
    fact = step.fact(0)
    to = step.attribute("to")
    dtype = ir.DataType(to) if to is not None else getattr(step.node.inputs[1], "dtype", None)
    kind = "" if dtype is None or dtype.is_string() else kind_of(dtype.numpy())
    if fact.elements is None or not kind:
        return [Fact(fact.dims)]
    if kind == fact.dtype:
        return [fact]
    return [Fact(fact.dims, tuple(call("cast", kind, one) for one in fact.elements), kind)]


@rule("Clip")
def _clip(step: Step) -> Sequence[Fact]:
    fact = step.fact(0)
    low, high = _bound(step, 1, "min"), _bound(step, 2, "max")
    if fact.elements is None or UNKNOWN in (low, high):
        return [Fact(fact.dims)]
    elements = fact.elements
    for name, bound in (("max", low), ("min", high)):
        if bound is not None:
            elements = tuple(call(name, fact.dtype, one, (bound.elements or (0,))[0]) for one in elements)
    return [Fact(fact.dims, elements, fact.dtype)]


def _bound(step: Step, index: int, name: str) -> Fact | None:
    """Return a bound of a Clip: an input since opset 11, an attribute before; None for no bound."""
    if step.has(index):
        fact = step.fact(index)
        return fact if fact.elements is not None and len(fact.elements) == 1 else UNKNOWN
    given = step.node.attributes.get(name)
    return None if given is None else of_elements([np.float32(given.as_float())], "float32", ())


@rule(
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "And", "Or", "Xor"),
    *("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Mod"),
)
def _broadcasting(step: Step) -> Sequence[Fact]:
    dims = together(*(fact.dims for fact in step.inputs))
    elements = elements_together(step.inputs)
    kinds = [fact.dtype for fact in step.inputs]
    if elements is None or (step.node.op_type != "Pow" and len(set(kinds)) > 1):
        return [Fact(dims)]
    name = _NAMES.get(step.node.op_type) or ("fmod" if step.attribute("fmod") or kinds[0] != INT else "mod")
    dtype = BOOL if name in _COMPARISONS else kinds[0]
    return [Fact(dims, tuple(_folded(name, dtype, one) for one in zip(*elements, strict=True)), dtype)]


def _folded(name: str, dtype: str, numbers: Sequence[Number]) -> Number:
    if len(numbers) == 1:
        return numbers[0]
    result = numbers[0]
    for one in numbers[1:]:
        result = call(name, dtype, result, one)
    return result


@rule("Mean", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "StringConcat")
def _only_dims(step: Step) -> Sequence[Fact]:
    return [Fact(together(*(fact.dims for fact in step.inputs)))]


@rule("Where")
def _where(step: Step) -> Sequence[Fact]:
    dims = together(*(fact.dims for fact in step.inputs))
    elements = elements_together(step.inputs)
    dtype = step.fact(1).dtype
    if elements is None or dtype != step.fact(2).dtype:
        return [Fact(dims)]
    chosen = []
    for condition, first, second in zip(*elements, strict=True):
        if is_constant(condition):
            chosen.append(first if condition else second)
        else:
            chosen.append(call("where", dtype, condition, first, second))
    return [Fact(dims, tuple(chosen), dtype)]


@contrib(
    *(
        "Gelu",
        "QuickGelu",
        "FastGelu",
        "BiasGelu",
        "BiasSoftmax",
        "BiasDropout",
        "BiasSplitGelu",
        "RotaryEmbedding",
        "GroupNorm",
    ),
    *("QuantizeLinear", "DequantizeLinear", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "Trilu"),
)
def _same_contrib(step: Step) -> Sequence[Fact]:
    return [Fact(step.dims(0))]


@contrib("QLinearAdd", "QLinearMul")
def _quantized_broadcast(step: Step) -> Sequence[Fact]:
    return [Fact(together(step.dims(0), step.dims(3)))]


@contrib("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip_norm(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    inner = None if dims is None else (*dims[:-1], 1)
    return [Fact(dims), Fact(inner), Fact(inner), Fact(dims)][: len(step.node.outputs)]


@rule("SimplifiedLayerNormalization")
def _simplified_norm(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    return [Fact(dims), Fact(None if dims is None else (*dims[:-1], 1))]
