"""Merge two Transposes in a row.

Before::

    x ─ Transpose(0 2 1 3) ─ Transpose(0 1 3 2) ─ y

After::

    x ─ Transpose(0 2 3 1) ─ y

Meets: attention keys in TorchScript exports, channel-last models.
Numerics: exact.
Source: ONNX operator Transpose-23; perm∘perm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import attribute
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact


@dataclass(frozen=True)
class Turned:
    """The axes of x in the order that both Transposes give them."""

    perm: tuple[int, ...]


@register
class MergeTransposes(Rule):
    """Transpose(Transpose(x, p), q)  →  Transpose(x, p[q])."""

    name = "merge-transposes"
    numerics = Exact()
    keeps_shared = True  # the inner Transpose stays for its other users; the outer one gets no dearer

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """The chain."""
        yield op.Transpose(op.Transpose(x, _name="inner"))

    def guard(self, match: Match) -> None:
        """Both permutations must be written out."""
        inner, outer = attribute(match.named["inner"], "perm"), attribute(match.root, "perm")
        match.require(inner is not None and outer is not None, "a Transpose without perm reverses an unknown rank")
        match.note(Turned(tuple(inner[axis] for axis in outer)))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """Compose."""
        return op.Transpose(x, perm=match.noted(Turned).perm)
