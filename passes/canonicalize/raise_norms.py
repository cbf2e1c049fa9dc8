"""Read ONNX Runtime's normalization kernels as a sum and a normalization.

Before::

    x, skip, γ, β, bias ─ com.microsoft.SkipLayerNormalization ─ y, sum

After::

    x, bias ─ Add ─ Add(skip) = sum ─ LayerNormalization(γ, β) ─ y

Meets: graphs that ONNX Runtime's session or its transformers optimizer wrote; SimplifiedLayerNormalization is what
    they call RMSNormalization, and both it and LayerNormalization stand in the standard domain of any opset.
Numerics: reassociated. The kernel adds and sums in one pass.
Source: ONNX Runtime's operators SkipLayerNormalization, SkipSimplifiedLayerNormalization, SimplifiedLayerNormalization;
    ONNX operators LayerNormalization-17 and RMSNormalization-23, their parts below those opsets.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import CONTRIB, opset, rank
from onnxopt.passes.words.contrib import given, layer_norm, require_wide, rms_norm
from onnxopt.passes.words.norms import SKIP_EPSILON
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

SIMPLIFIED_EPSILON = 1e-5


@register
class RaiseSkipLayerNorm(Rule):
    """com.microsoft SkipLayerNormalization(x, skip)  →  LayerNormalization(x + skip)."""

    name = "raise-skip-layer-norm"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-layer-norm", "lower-norm")

    def patterns(self, op: Ops, x: Pat, skip: Pat, gamma: Pat, maybe_beta: Pat, maybe_bias: Pat) -> Iterator[Pat]:
        """β and the bias are optional."""
        yield op.SkipLayerNormalization(x, skip, gamma, maybe_beta, maybe_bias, _domain=CONTRIB)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Half precision needs the operator."""
        require_wide(match, x, 17, "LayerNormalization")

    def rewrite(
        self,
        op: Builder,
        match: Match,
        x: ir.Value,
        skip: ir.Value,
        gamma: ir.Value,
        maybe_beta: ir.Value | None,
        maybe_bias: ir.Value | None,
    ) -> tuple[ir.Value | None, ...]:
        """The sum is the fourth output."""
        total = _sum(op, x, skip, maybe_bias)
        epsilon = given(match.root, "epsilon", SKIP_EPSILON)
        return _outputs(match, layer_norm(op, total, gamma, maybe_beta, epsilon), total)


@register
class RaiseSkipRMSNorm(Rule):
    """com.microsoft SkipSimplifiedLayerNormalization(x, skip)  →  RMSNormalization(x + skip)."""

    name = "raise-skip-rms-norm"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-rms-norm",)

    def patterns(self, op: Ops, x: Pat, skip: Pat, gamma: Pat, maybe_bias: Pat) -> Iterator[Pat]:
        """The bias is optional."""
        yield op.SkipSimplifiedLayerNormalization(x, skip, gamma, maybe_bias, _domain=CONTRIB)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Half precision needs the operator."""
        require_wide(match, x, 23, "RMSNormalization")

    def rewrite(
        self, op: Builder, match: Match, x: ir.Value, skip: ir.Value, gamma: ir.Value, maybe_bias: ir.Value | None
    ) -> tuple[ir.Value | None, ...]:
        """The sum is the fourth output."""
        total = _sum(op, x, skip, maybe_bias)
        return _outputs(match, rms_norm(op, total, gamma, given(match.root, "epsilon", SKIP_EPSILON)), total)


@register
class RaiseRMSNorm(Rule):
    """SimplifiedLayerNormalization(x)  →  RMSNormalization(x)."""

    name = "raise-rms-norm"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-rms-norm",)

    def patterns(self, op: Ops, x: Pat, gamma: Pat) -> Iterator[Pat]:
        """ONNX Runtime keeps this one in the standard domain, where ONNX does not have it."""
        yield op.SimplifiedLayerNormalization(x, gamma)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Over the last axis."""
        axis = given(match.root, "axis", -1)
        match.require(axis in (-1, (rank(x) or 0) - 1), f"normalizes from axis {axis} on, not the last", x)
        require_wide(match, x, 23, "RMSNormalization")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value) -> ir.Value:
        """Another name."""
        return rms_norm(op, x, gamma, given(match.root, "epsilon", SIMPLIFIED_EPSILON))


@register
class RaiseLayerNorm(Rule):
    """LayerNormalization in a graph below opset 17  →  its parts."""

    name = "raise-layer-norm"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-layer-norm",)

    def patterns(self, op: Ops, x: Pat, gamma: Pat, maybe_beta: Pat) -> Iterator[Pat]:
        """ONNX Runtime's session saves it in the standard domain of any opset; no tool can raise such a file."""
        yield op.LayerNormalization(x, gamma, maybe_beta)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Where ONNX has the operator it stays."""
        match.needs(opset(match.model) < 17, "the opset has the operator")
        axis = given(match.root, "axis", -1)
        match.require(axis in (-1, (rank(x) or 0) - 1), f"normalizes from axis {axis} on, not the last", x)
        require_wide(match, x, 17, "LayerNormalization")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value, maybe_beta: ir.Value | None) -> ir.Value:
        """The fuse stage puts it together again, in an opset that has it."""
        return layer_norm(op, x, gamma, maybe_beta, given(match.root, "epsilon", SIMPLIFIED_EPSILON))


def _sum(op: Builder, x: ir.Value, skip: ir.Value, bias: ir.Value | None) -> ir.Value:
    """x + bias + skip; the bias goes to x, whose product it belongs to."""
    total = op.Add(x if bias is None else op.Add(x, bias), skip)
    total.type = x.type
    return total


def _outputs(match: Match, y: ir.Value, total: ir.Value) -> tuple[ir.Value | None, ...]:
    outputs = match.root.outputs
    wanted = len(outputs) > 3 and (outputs[3].uses() or outputs[3].is_graph_output())
    return (y, None, None, total) if wanted else (y,)
