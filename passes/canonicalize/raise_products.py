"""Read ONNX Runtime's fused products and convolutions as their parts.

Before::

    a, b ─ com.microsoft.FusedMatMul(α, transA, transBatchA, ...) ─ y
    x, w, b, z ─ com.microsoft.FusedConv(activation) ─ y

After::

    a ─ Transpose ─┐
    b ─ Transpose ─┴─ MatMul ─ Mul(α) ─ y
    x, w, b ─ Conv ─ Add(z) ─ Relu ─ y

Meets: graphs that ONNX Runtime's session wrote at the extended level.
Numerics: reassociated. The kernels scale and bend while they write the product.
Source: ONNX Runtime's operators FusedMatMul, TransposeMatMul, FusedGemm, FusedConv; transBatch moves the first axis in
    front of the last one, before the last two are exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxopt.graph import CONTRIB, rank
from onnxopt.passes.words.contrib import ACTIVATIONS, activation, given, number_like
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Turned:
    """The axes of each operand in the order that they are multiplied in; None where none moves."""

    perms: tuple[tuple[int, ...] | None, ...]


@register
class RaiseFusedMatMul(Rule):
    """com.microsoft FusedMatMul(a, b)  →  α · aᵀ @ bᵀ."""

    name = "raise-fused-matmul"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-attention",)

    def patterns(self, op: Ops, a: Pat, b: Pat) -> Iterator[Pat]:
        """Today's name and an older one."""
        yield op.FusedMatMul(a, b, _domain=CONTRIB)
        yield op.TransposeMatMul(a, b, _domain=CONTRIB)

    def guard(self, match: Match, a: ir.Value, b: ir.Value) -> None:
        """What is transposed must have axes to exchange."""
        perms = []
        for side, value in (("A", a), ("B", b)):
            flips = given(match.root, f"trans{side}", 0), given(match.root, f"transBatch{side}", 0)
            match.require(
                not any(flips) or (rank(value) or 0) >= 2, f"{side} is transposed, its rank is not known", value
            )
            perms.append(_permutation(rank(value) or 0, *flips))
        match.note(Turned(tuple(perms)))

    def rewrite(self, op: Builder, match: Match, a: ir.Value, b: ir.Value) -> ir.Value:
        """Move the axes, multiply, scale."""
        sides = [
            value if perm is None else op.Transpose(value, perm=perm)
            for value, perm in zip((a, b), match.noted(Turned).perms, strict=True)
        ]
        alpha = float(given(match.root, "alpha", 1.0))
        product = op.MatMul(*sides)
        return product if alpha == 1.0 else op.Mul(product, number_like(op, a, alpha, "alpha"))


def _permutation(width: int, last: int, batch: int) -> tuple[int, ...] | None:
    """The axes of a transposed operand; None when none moves."""
    axes = list(range(width))
    if batch and width > 2:
        axes = [*axes[1:-1], 0, axes[-1]]
    if last:
        axes = [*axes[:-2], axes[-1], axes[-2]]
    return None if axes == sorted(axes) else tuple(axes)


@register
class RaiseFusedGemm(Rule):
    """com.microsoft FusedGemm(a, b, c)  →  activation(Gemm(a, b, c))."""

    name = "raise-fused-gemm"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)

    def patterns(self, op: Ops, a: Pat, b: Pat, maybe_c: Pat) -> Iterator[Pat]:
        """One kernel."""
        yield op.FusedGemm(a, b, maybe_c, _domain=CONTRIB)

    def guard(self, match: Match) -> None:
        """An activation that ONNX has."""
        name = given(match.root, "activation", "")
        match.require(not name or name in ACTIVATIONS, f"the activation {name} has no standard operator")

    def rewrite(self, op: Builder, match: Match, a: ir.Value, b: ir.Value, maybe_c: ir.Value | None) -> ir.Value:
        """The product keeps its attributes."""
        node = match.root
        product = op.Gemm(a, b, maybe_c, **_attributes(node, "alpha", "beta", "transA", "transB"))
        product.type = a.type
        found = [given(node, f"activation_{name}", None) for name in ("alpha", "beta", "gamma")]
        return activation(op, product, given(node, "activation", ""), [value for value in found if value is not None])


@register
class RaiseFusedConv(Rule):
    """com.microsoft FusedConv(x, w, b, z)  →  activation(Conv(x, w, b) + z)."""

    name = "raise-fused-conv"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)

    def patterns(self, op: Ops, x: Pat, w: Pat, maybe_b: Pat, maybe_z: Pat) -> Iterator[Pat]:
        """One kernel."""
        yield op.FusedConv(x, w, maybe_b, maybe_z, _domain=CONTRIB)

    def guard(self, match: Match) -> None:
        """An activation that ONNX has."""
        name = given(match.root, "activation", "")
        match.require(not name or name in ACTIVATIONS, f"the activation {name} has no standard operator")

    def rewrite(
        self,
        op: Builder,
        match: Match,
        x: ir.Value,
        w: ir.Value,
        maybe_b: ir.Value | None,
        maybe_z: ir.Value | None,
    ) -> ir.Value:
        """The convolution keeps its attributes."""
        node = match.root
        kept = _attributes(node, "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
        result = op.Conv(x, w, maybe_b, **kept)
        total = result if maybe_z is None else op.Add(result, maybe_z)
        total.type = x.type
        return activation(op, total, given(node, "activation", ""), given(node, "activation_params", ()))


def _attributes(node: ir.Node, *names: str) -> dict[str, Any]:
    return {name: given(node, name, None) for name in names}
