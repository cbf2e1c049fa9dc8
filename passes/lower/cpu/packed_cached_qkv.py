"""Hand queries, keys and values to GroupQueryAttention in one tensor, out of one matrix product.

Before::

    x ─┬─ MatMul(Wq) ─ Add(bq) ─┐
       ├─ MatMul(Wk) ─ Add(bk) ─┼─ GroupQueryAttention(past) ─ y, present
       └─ MatMul(Wv) ─ Add(bv) ─┘

After::

    x ─ MatMul([Wq Wk Wv]) ─ Add([bq bk bv]) ─ GroupQueryAttention(past) ─ y, present

Meets: decoders after lower-cached-attention whose queries and keys go straight from the projection to the kernel; a
    projection that is packed and split again (GPT-2).
Numerics: reassociated. The same sums in a wider product.
Source: ONNX Runtime contrib operator GroupQueryAttention: query may hold [query, key, value] side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, attribute, constant, dims, integers
from onnxopt.patterns import Ops, Pat, Var, either
from onnxopt.patterns import constant as any_constant
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register

OUTPUTS = 3  # y, present key, present value


@register
class PackCachedQKV(Rule):
    """GroupQueryAttention(xWq + bq, xWk + bk, xWv + bv)  →  GroupQueryAttention(xW + b)."""

    name = "pack-cached-qkv"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)

    def patterns(self, op: Ops, x: Pat, packed: Pat) -> Iterator[Pat]:
        """Three parts of one tensor, or three projections of one input, each with or without a bias."""
        parts = [
            op.Split(packed, Var("maybe_widths", optional=True), axis=_last_of_three, _output=index, _name="split")
            for index in range(OUTPUTS)
        ]
        yield op.GroupQueryAttention(*parts, _domain=CONTRIB, _rest=True)

        def projection(name: str) -> Pat:
            product = op.MatMul(x, any_constant(f"w{name}"))
            return either(op.Add(product, any_constant(f"b{name}")), product)

        projections = [projection(name) for name in "qkv"]
        yield op.GroupQueryAttention(*projections, _domain=CONTRIB, _rest=True)

    def guard(self, match: Match, x: ir.Value | None, packed: ir.Value | None) -> None:
        """The parts must be as wide as the heads say, in the kernel's order."""
        node = match.root
        heads, groups = attribute(node, "num_heads"), attribute(node, "kv_num_heads")
        widths = [(dims(value) or (None,))[-1] for value in node.inputs[:3]]
        fits = isinstance(widths[0], int) and widths[1] == widths[2] == widths[0] // heads * groups
        match.require(fits, f"queries, keys and values are {widths} wide", node)
        if packed is not None:
            sizes = integers(match.values.get("maybe_widths"))
            match.require(len(match.named["split"].outputs) == OUTPUTS, "the projection has other parts", packed)
            match.require(sizes is None or list(sizes) == widths, f"the parts are {sizes} wide", packed)
            return
        match.require(len(dims(x) or ()) == OUTPUTS, "x is not [batch, sequence, width]", x)
        for name in "qkv":
            weight, bias = match.values[f"w{name}"], match.values.get(f"b{name}")
            shape = dims(weight) or ()
            match.require(len(shape) == 2, f"the weight of {name} is not a matrix", weight)
            match.require(bias is None or dims(bias) == shape[1:], f"the bias of {name} is not a vector", bias)
            match.require(weight is not None and len(weight.uses()) == 1, f"the weight of {name} is shared", weight)

    def rewrite(self, op: Builder, match: Match, x: ir.Value | None, packed: ir.Value | None) -> tuple[ir.Value, ...]:
        """The kernel takes the rest as it was."""
        if packed is None:
            weights = np.concatenate([match.array(f"w{name}") for name in "qkv"], axis=1)
            packed = op.MatMul(x, op.constant(weights, "weight"))
            biases = [constant(match.values.get(f"b{name}")) for name in "qkv"]
            if any(bias is not None for bias in biases):
                sizes = [match.array(f"w{name}").shape[1] for name in "qkv"]
                filled = [
                    np.zeros(size, weights.dtype) if bias is None else bias
                    for bias, size in zip(biases, sizes, strict=True)
                ]
                packed = op.Add(packed, op.constant(np.concatenate(filled), "bias"))
        attributes = {name: attr.value for name, attr in match.root.attributes.items()}
        inputs = [packed, None, None, *match.root.inputs[3:]]
        return op.node("GroupQueryAttention", inputs, attributes, domain=CONTRIB, outputs=OUTPUTS)


def _last_of_three(axis: int) -> bool:
    """The last of three axes."""
    return axis in (-1, 2)
