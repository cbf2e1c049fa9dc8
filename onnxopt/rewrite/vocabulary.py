"""The words of patterns: a scalar, a scaled value, a square, a mean, a linear layer."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from onnxopt.graph import integers, number
from onnxopt.rewrite.patterns import SCALAR_RTOL, Const, Either, Ops, Pat

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
op = Ops()


def either(*options: Pat) -> Pat:
    """Any of several spellings."""
    return Either(options)


def maybe(op_type: str, x: Pat, **attributes: Any) -> Pat:
    """`x`, or one node of the given operator over it."""
    return Either((x, getattr(op, op_type)(x, **attributes)))


def scalar(expected: float | None = None, name: str = "") -> Pat:
    """A constant of one element, of any rank, close to `expected`; None for any number."""

    def accepts(value: ir.Value) -> bool:
        found = number(value)
        return found is not None and (
            expected is None or math.isclose(found, expected, rel_tol=SCALAR_RTOL, abs_tol=1e-30)
        )

    return Const(accepts, "a scalar constant" if expected is None else f"the constant {expected:g}", name)


def constant(name: str = "") -> Pat:
    """Any constant."""
    return Const(lambda _: True, "a constant", name)


def scaled(x: Pat, factor: float) -> Pat:
    """x times a factor: Mul by it or Div by its inverse."""
    return Either((op.Mul(x, scalar(factor)), op.Div(x, scalar(1 / factor))))


def product(*factors: Pat) -> Pat:
    """The product of all factors, multiplied in any order and bracketing; a factor may be given more than once."""
    if len(factors) == 1:
        return factors[0]
    trees: dict[tuple[tuple[Pat, ...], tuple[Pat, ...]], Pat] = {}
    for chosen in range(1, 2 ** (len(factors) - 1)):  # the last factor stays on the right: Mul is commutative
        left = tuple(factor for index, factor in enumerate(factors) if chosen >> index & 1)
        right = tuple(factor for index, factor in enumerate(factors) if not chosen >> index & 1)
        if (left, right) not in trees and (right, left) not in trees:
            trees[left, right] = op.Mul(product(*left), product(*right))
    return Either(tuple(trees.values()))


def squared(x: Pat) -> Pat:
    """X times itself: Pow 2 or Mul(x, x)."""
    return Either((op.Pow(x, scalar(2.0)), op.Mul(x, x)))


def cubed(x: Pat) -> Pat:
    """X to the third: Pow 3 or two Muls."""
    return Either((op.Pow(x, scalar(3.0)), product(x, x, x), op.Mul(x, op.Pow(x, scalar(2.0)))))


def square_root(x: Pat) -> Pat:
    """Sqrt or Pow one half."""
    return Either((op.Sqrt(x), op.Pow(x, scalar(0.5))))


def one_axis(name: str) -> Pat:
    """A constant list of one axis, bound to `name`; the guard compares it with the rank."""
    return Const(
        lambda value: (axes := integers(value)) is not None and len(axes) == 1, "a constant list of one axis", name
    )


def mean_last(x: Pat, axes: str) -> Pat:
    """The mean over one axis, kept; the axis is an attribute before opset 18 and an input, bound to `axes`, since."""
    return Either(
        (
            op.ReduceMean(x, one_axis(axes), keepdims=1),
            op.ReduceMean(x, keepdims=1, axes=(-1,)),
        )
    )


def reduced(op_type: str, x: Pat, name: str) -> Pat:
    """A reduction over constant axes, given as an input or an attribute; the node is bound to `name` for the guard."""
    make = getattr(op, op_type)
    return Either((make(x, constant(), _name=name), make(x, _name=name)))


def kept(x: Pat, name: str) -> Pat:
    """`x`, or what gives a reduction its axis back: a Reshape or Unsqueeze, bound to `name` for the guard."""
    return Either((x, op.Reshape(x, constant(), _name=name), op.Unsqueeze(x, constant(), _name=name)))


def linear(x: Pat, weight: str, bias: str) -> Pat:
    """X @ W + b with constant W [K, N] and b [N]."""
    return op.Add(op.MatMul(x, constant(weight)), constant(bias))
