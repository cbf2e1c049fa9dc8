"""Projections that share their input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Dim, constant, dims
from onnxopt.graph.linears import name_after
from onnxopt.rewrite import Builder, Match
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.rewrite.vocabulary import either


def projections(op: Ops, x: Pat) -> list[Pat]:
    """Queries, keys and values as products of one input with constants, each with or without a bias."""
    products = {name: op.MatMul(x, any_constant(f"w{name}")) for name in "qkv"}
    return [either(op.Add(product, any_constant(f"b{name}")), product) for name, product in products.items()]


def require_projections(match: Match) -> list[Dim]:
    """Require matrices of their own and vectors; return the widths of queries, keys and values."""
    widths = []
    for name in "qkv":
        weight, bias = match.values[f"w{name}"], match.values.get(f"b{name}")
        shape = dims(weight) or ()
        match.require(len(shape) == 2, f"the weight of {name} is not a matrix", weight)
        match.require(bias is None or dims(bias) == shape[1:], f"the bias of {name} is not a vector", bias)
        match.require(weight is not None and len(weight.uses()) == 1, f"the weight of {name} is shared", weight)
        widths.append(shape[1])
    return widths


def one_product(op: Builder, match: Match, x: ir.Value | None) -> ir.Value:
    """Concatenate the constants; a missing bias counts as zero."""
    weights = [match.array(f"w{name}") for name in "qkv"]
    weight = op.constant(np.concatenate(weights, axis=1), "weight")
    name_after(weight, [value for name in "qkv" if (value := match.values[f"w{name}"]) is not None])
    packed = op.MatMul(x, weight)
    biases = [constant(match.values.get(f"b{name}")) for name in "qkv"]
    if all(bias is None for bias in biases):
        return packed
    kind = weights[0].dtype
    filled = [np.zeros(w.shape[1], kind) if b is None else b for b, w in zip(biases, weights, strict=True)]
    return op.Add(packed, op.constant(np.concatenate(filled), "bias"))
