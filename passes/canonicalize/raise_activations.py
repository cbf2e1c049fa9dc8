"""Read ONNX Runtime's activation kernels as what they compute.

Before::

    x, bias ─ com.microsoft.BiasGelu ─ y          x ─ com.microsoft.QuickGelu(α) ─ y

After::

    x, bias ─ Add ─ Gelu ─ y                      x ─┬─ Mul(α) ─ Sigmoid ─┐
                                                     └────────────────────┴─ Mul ─ y

Meets: graphs that ONNX Runtime's session or its transformers optimizer wrote, and onnxopt's own for the CPU.
Numerics: reassociated. The kernels approximate erf, tanh and the sigmoid by polynomials.
Source: ONNX Runtime's operators Gelu, BiasGelu, FastGelu, QuickGelu (ContribOperators); ONNX operator Gelu-20, its
    parts below that opset.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import CONTRIB
from onnxopt.passes.words.contrib import gelu, given, number_like
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

QUICK = 1.702  # the kernel's default


@register
class RaiseGelu(Rule):
    """com.microsoft Gelu, BiasGelu, FastGelu  →  Gelu of the same approximation."""

    name = "raise-gelu"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("fuse-gelu", "lower-gelu")

    def patterns(self, op: Ops, x: Pat, maybe_bias: Pat) -> Iterator[Pat]:
        """Three kernels, two of them with a bias."""
        yield op.Gelu(x, _domain=CONTRIB)
        yield op.BiasGelu(x, maybe_bias, _domain=CONTRIB)
        yield op.FastGelu(x, maybe_bias, _domain=CONTRIB, _name="tanh")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, maybe_bias: ir.Value | None) -> ir.Value:
        """Never swap one approximation for the other."""
        total = x if maybe_bias is None else op.Add(x, maybe_bias)
        total.type = x.type
        return gelu(op, total, "tanh" if "tanh" in match.named else "none")


@register
class RaiseQuickGelu(Rule):
    """com.microsoft QuickGelu(x)  →  x · σ(α x)."""

    name = "raise-quick-gelu"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """One kernel."""
        yield op.QuickGelu(x, _domain=CONTRIB)

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """With α of 1 it is SiLU."""
        alpha = float(given(match.root, "alpha", QUICK))
        inner = x if alpha == 1.0 else op.Mul(x, number_like(op, x, alpha, "alpha"))
        return op.Mul(x, op.Sigmoid(inner))
