"""Write the root mean square norm as the operator that the CUDA provider has a kernel for.

Before::

    x ─ RMSNormalization(γ) ─ y

After::

    x ─ SimplifiedLayerNormalization(γ) ─ y

Meets: the first norm of a decoder, in front of which there is no residual; norms of queries and keys.
Numerics: reassociated.
Source: ONNX Runtime's operator SimplifiedLayerNormalization, which it registers for CUDA in half and single precision
    and keeps its statistics in float32 (stash_type).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, rank
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant
from onnxopt.spec import Reassociated


@register
class LowerRmsNorm(Rule):
    """RMSNormalization(x)  →  SimplifiedLayerNormalization(x)."""

    name = "lower-rms-norm"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """One operator."""
        yield op.RMSNormalization(x, constant("gamma"))

    def guard(self, match: Match, x: ir.Value, gamma: ir.Value) -> None:
        """float32 over the last axis; lower precision is a matter of later passes."""
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; lowered before its precision", x)
        axis = attribute(match.root, "axis")
        match.require(axis in (-1, None) or axis == (rank(x) or 0) - 1, f"the norm starts at axis {axis}")
        match.require(rank(gamma) == 1, "the scale is not one number per channel", gamma)

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value) -> ir.Value:
        """The operator lies in the standard domain, by an accident of history."""
        epsilon = attribute(match.root, "epsilon")
        return op.SimplifiedLayerNormalization(
            x, gamma, axis=-1, epsilon=1e-5 if epsilon is None else epsilon, stash_type=1
        )
