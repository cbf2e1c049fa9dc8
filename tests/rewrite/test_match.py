"""What a match carries from guard to rewrite has a class of its own."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import pytest

from onnxopt.errors import PassAuthorError
from onnxopt.rewrite import Match


@dataclass(frozen=True)
class Heads:
    count: int


@dataclass(frozen=True)
class Turned:
    perm: tuple[int, ...]


def match() -> Match:
    node = ir.Node("", "Relu", [ir.Value(name="x")])
    model = ir.Model(ir.Graph([], [], nodes=[node], opset_imports={"": 20}), ir_version=10)
    return Match(model, node, {}, {}, ())


def test_what_guard_notes_is_there_for_rewrite_one_of_each_class() -> None:
    found = match()
    found.note(Heads(4))
    found.note(Turned((0, 2, 1)))
    found.note(Heads(8))
    assert found.noted(Heads) == Heads(8)
    assert found.noted(Turned).perm == (0, 2, 1)


def test_what_was_not_noted_is_a_fault_of_the_pass() -> None:
    with pytest.raises(PassAuthorError, match=r"guard noted no Heads; call match\.note\(Heads\(\.\.\.\)\) in it"):
        match().noted(Heads)
