"""Whole random graphs in the branches of an If are optimized there, and stay equal at sizes drawn afterwards."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.property.generate import draw
from tests.property.judge import REFUSED, RIGHT, UNUSABLE, judge
from tests.property.wrapped import in_branches


@pytest.mark.parametrize("seed", range(12))
def test_a_graph_in_branches_is_optimized_as_it_is_without(seed: int, tmp_path: Path) -> None:
    one = draw(seed)
    verdict = judge(in_branches(one.model), seed, tmp_path, square=one.square)
    assert verdict.outcome in (RIGHT, REFUSED, UNUSABLE), verdict.reason


def test_both_branches_hold_the_whole_graph() -> None:
    one = draw(3).model
    wrapped = in_branches(one)
    onnx.checker.check_model(wrapped)
    choice = wrapped.graph.node[-1]
    for attribute in choice.attribute:
        kinds = [node.op_type for node in attribute.g.node if node.op_type != "Constant"]
        assert kinds == [node.op_type for node in one.graph.node if node.op_type != "Constant"]
    assert [value.name for value in wrapped.graph.output] == [value.name for value in one.graph.output]
