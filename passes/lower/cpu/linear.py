"""Run a linear layer with bias over all tokens as one Gemm.

Before::

    x [batch, sequence, in] ─ MatMul(W) ─ Add(b) ─ y

After::

    x ─ Reshape [tokens, in] ─ Gemm(W, b) ─ Reshape [batch, sequence, out] ─ y

The axes in front of the last are read from an input of the graph; where none has them, such as behind a class token, a
cut or a convolution, from x itself or what it was made from.

Meets: every linear layer of a transformer; flatten-tokens then removes the Reshapes between layers.
Numerics: reassociated. Gemm starts from the bias.
Source: the CPU session fuses MatMul and Add into Gemm for matrices only (onnxruntime MatMulAddFusion).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import dims, known_dims, opset, rank
from onnxopt.graph.dimensions import with_leading_axes_of
from onnxopt.rewrite import ALLOWS_ZERO, AS_IS, Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import linear
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Result:
    """The shape of the result, where the inputs of the graph have all of its axes."""

    shape: tuple[int | str, ...] | None


@register
class LowerLinear(Rule):
    """X @ W + b on tokens  →  Gemm on rows."""

    name = "lower-linear"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("flatten-tokens",)
    forms = ("Gemm on rows", AS_IS)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """The product and the bias behind it."""
        del op
        yield linear(x, "weight", "bias")

    def guard(self, match: Match, x: ir.Value, weight: ir.Value, bias: ir.Value) -> None:
        """float32, more than two axes."""
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; the CPU kernel takes float32", x)
        matrix = dims(weight) or ()
        match.require(len(matrix) == 2, "the weight is not a matrix", weight)
        match.require(dims(bias) == matrix[1:], f"the bias has shape {dims(bias)}", bias)
        match.require(rank(x) is not None, "how many axes x has is not known", x)
        match.needs((rank(x) or 0) > 2, "x is a matrix already")
        out = known_dims(match.root.outputs[0])
        shape = out if out is not None and _in_inputs(match.model, out) else None
        told = shape is not None or opset(match.model) >= ALLOWS_ZERO
        match.require(told, f"no input has the axes of x, and below opset {ALLOWS_ZERO} no Reshape keeps a 0", x)
        match.note(Result(shape))

    def rewrite(self, op: Builder, match: Match, x: ir.Value, weight: ir.Value, bias: ir.Value) -> ir.Value:
        """Rows in, rows out."""
        width, columns = (int(size) for size in dims(weight) or () if isinstance(size, int))
        product = op.Gemm(op.Reshape(x, op.ints([-1, width], "rows")), weight, bias)
        shape = match.noted(Result).shape
        if shape is not None:
            return op.reshape(product, shape, "shape")
        leading = op.sizes(with_leading_axes_of(x), 0, len(dims(x) or ()) - 1, "leading")
        return op.Reshape(product, op.Concat(leading, op.ints([columns], "columns"), axis=0), allowzero=1)


def _in_inputs(model: ir.Model, wanted: tuple[int | str, ...]) -> bool:
    """Tell whether the inputs of a graph have all named axes of a shape; one alone is the rest of it."""
    named = {dim for dim in wanted if isinstance(dim, str)}
    return len([dim for dim in wanted if isinstance(dim, str)]) < 2 or named <= {
        dim for value in model.graph.inputs for dim in dims(value) or ()
    }
