"""What is a number stays one: replacements that overflow where the original does not are refuted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.proof.range import out_of_range
from onnxopt.rewrite import Builder, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.spec import Reassociated
from tests.support.rules import run_passes

TEXT = "g (float[batch,sequence,6] x) => (float[batch,sequence,6] y) { y = Softmax<axis=-1>(x) }"


class _Spelled(Rule):
    """Softmax(x)  →  its definition."""

    name = "spell-softmax"
    min_opset = 13
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    centred = True

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        yield op.Softmax(x)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        last = op.ints([-1], "last")
        inner = op.Sub(x, op.ReduceMax(x, last, keepdims=1)) if self.centred else x
        grown = op.Exp(inner)
        return op.Div(grown, op.ReduceSum(grown, last, keepdims=1))


class _Bare(_Spelled):
    """The same without its maximum, which is equal as long as no exponential overflows."""

    centred = False


def test_a_softmax_without_its_maximum_is_refuted() -> None:
    outcome = run_passes(TEXT, _Bare())
    assert outcome.entry.applied == 0
    assert len(outcome.rolled_back) == 1
    assert outcome.rolled_back[0].startswith("large numbers give nan where they gave ")


def test_a_softmax_with_its_maximum_stays() -> None:
    outcome = run_passes(TEXT, _Spelled())
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ([1.0, np.nan], [1.0, np.inf], False),  # it was no number before
        ([1.0, np.inf], [3.0, 2.0], False),
        ([1.0, 2.0], [1.0, np.inf], True),
        ([0.0, -2.0], [np.nan, -2.0], True),
    ],
)
def test_only_numbers_that_were_numbers_count(old: list[float], new: list[float], lost: bool) -> None:  # noqa: FBT001
    assert bool(out_of_range([np.array(old, np.float32)], [np.array(new, np.float32)])) is lost


def test_whole_numbers_and_other_shapes_are_not_looked_at() -> None:
    assert out_of_range([np.array([1, 2])], [np.array([1, 3])]) == ""
