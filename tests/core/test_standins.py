"""Regions that only move values are proved on arrays of their sizes; whatever looks at a value gets the real one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.captures import Captures
from onnxopt.driver import Driver
from onnxopt.graph import Region, region
from onnxopt.patterns import Ops, Pat
from onnxopt.pipeline import prepare
from onnxopt.registry import get
from onnxopt.rewrite import Builder, Exact, Rule
from onnxopt.standins import movable, stand_ins
from tests.support.rules import observe, parse

TEXT = """
g (float[batch,sequence,8,8] x) => (float[batch,8,sequence,8] y) {
  a = Exp (x)
  b = Transpose <perm = [0, 1, 3, 2]> (a)
  c = Transpose <perm = [0, 3, 1, 2]> (b)
  y = Tanh (c)
}"""


class WrongPlace(Rule):
    """Leaves every value where it was: the same shape, and other contents."""

    name = "test-wrong-place"
    numerics = Exact()

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        yield op.Transpose(x, perm=[0, 1, 3, 2])

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return op.Identity(x)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many values each proof has asked a run of the model for."""
    counts: list[int] = []
    run = Captures.run
    monkeypatch.setattr(
        Captures, "run", lambda self, model, seen, wanted: counts.append(len(wanted)) or run(self, model, seen, wanted)
    )
    return counts


def test_a_right_move_needs_no_run_of_the_model(asked: list[int]) -> None:
    model = parse(TEXT, {})
    prepare(model, observe(model))
    entry = Driver(model, observe(model)).apply(get("merge-transposes"))
    assert (entry.applied, entry.rolled_back) == (1, [])
    assert asked == [0]
    assert [node.op_type for node in model.graph] == ["Exp", "Transpose", "Tanh"]


def test_a_wrong_move_is_refuted_without_a_run_of_the_model(asked: list[int]) -> None:
    model = parse(TEXT, {})
    prepare(model, observe(model))
    entry = Driver(model, observe(model)).apply(WrongPlace())
    assert (entry.applied, len(entry.rolled_back)) == (0, 1)
    assert entry.rolled_back[0].error > 0.1
    assert set(asked) == {0}


def parts(text: str) -> dict[str, Region]:
    """One region per node of a graph, by its first output."""
    model = parse(text, {})
    prepare(model, observe(model))
    return {node.outputs[0].name or "": region([node], list(node.outputs)) for node in model.graph}


def test_what_something_else_reads_too_and_what_are_no_floats_are_real() -> None:
    found = parts("""
g (float[batch,sequence,8] x) => (float[batch,sequence,8] y, float[batch,sequence,8] z, float[batch,8,sequence] v) {
  a = Exp (x)
  s = Shape (a)
  b = Neg (x)
  y = Reshape (b, s)
  z = Sqrt (a)
  v = Transpose <perm = [0, 2, 1]> (a)
}""")
    names = {name: {value.name for value in part.inputs} for name, part in found.items()}
    assert names["y"] == {"b", "s"}
    assert {value.name for value in movable([(found["y"], found["y"])])} == {"b"}
    assert {value.name for value in movable([(found["v"], found["v"])])} == {"a"}
    assert movable([(found["z"], found["z"])]) == set()
    assert movable([(found["v"], found["v"]), (found["z"], found["z"])]) == set()
    assert movable([(found["v"], found["z"])]) == set()  # both sides must only move


def test_stand_ins_have_the_size_of_the_axes_and_differ_everywhere() -> None:
    found = parts(
        "g (float[batch,sequence,8] x) => (float[batch,8,sequence] y) { y = Transpose <perm = [0, 2, 1]> (x) }"
    )
    (x,) = movable([(found["y"], found["y"])])
    array = stand_ins([x], {"batch": 3, "sequence": 5})[x]
    assert (array.shape, array.dtype) == ((3, 5, 8), np.float32)
    assert len(np.unique(array)) == array.size
