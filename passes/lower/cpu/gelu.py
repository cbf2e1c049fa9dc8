"""Lower Gelu to ONNX Runtime's own kernels.

Before::

    x ─ Gelu(approximate) ─ y

After::

    x ─ com.microsoft.Gelu ─ y          x ─ com.microsoft.FastGelu ─ y

Meets: the result of fuse-gelu and of dynamo at opset 20 and later.
Numerics: reassociated. The kernels approximate erf and tanh by polynomials.
Source: ONNX Runtime pull request 27690 (fused erf on AVX-512); [128, 1536] takes 124 µs instead of the 163 µs of
    ai.onnx Gelu-20, and 97 µs for the tanh form, on an AVX-512 EPYC, one thread, 1.31.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.rewrite import AS_IS, Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated


@register
class LowerGelu(Rule):
    """Gelu(x)  →  the kernel of the same approximation."""

    name = "lower-gelu"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    forms = ("kernel", AS_IS)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Both approximations."""
        yield op.Gelu(x, approximate="none")
        yield op.Gelu(x, approximate="tanh", _name="tanh")

    def guard(self, match: Match, x: ir.Value) -> None:
        """The CPU kernels take float32."""
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; the CPU kernel takes float32", x)

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """Never swap one approximation for the other."""
        return op.contrib("FastGelu" if "tanh" in match.named else "Gelu", x)
