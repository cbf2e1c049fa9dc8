"""Quantized weights in standard operators."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.passes.quantize.weights_portable import QuantizeWeights4Portable, QuantizeWeights8Portable
from onnxopt.qmath.blocks import dequantize
from tests.passes.quantize.test_weights import SPELLINGS, graph, weight
from tests.support.planned import plan_of
from tests.support.rules import run_passes

RULE = {4: QuantizeWeights4Portable, 8: QuantizeWeights8Portable}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_the_product_is_that_of_the_codes(spelling: str, bits: int, *, symmetric: bool) -> None:
    text, weights = graph(spelling)
    plan = plan_of(text, weights, bits, symmetric=symmetric)
    outcome = run_passes(text, RULE[bits](plan), RULE[bits](plan), weights=weights)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert set(outcome.ops) <= {"DequantizeLinear", "MatMul", "Add"}
    (found,) = plan.linears.values()
    rounded = dequantize(found.blocks)  # type: ignore[arg-type]  # planned with blocks
    other = {"w": rounded, "wt": rounded.T.copy(), "b": weight(40)}
    expected = run_passes(text, weights={name: other[name] for name in weights}).after["y"]
    np.testing.assert_allclose(outcome.after["y"], expected, atol=2e-6)
    stored = outcome.constant("DequantizeLinear", 0).dtype.name
    assert stored == f"{'int' if symmetric else 'uint'}{bits}"


def test_the_last_block_may_be_shorter() -> None:
    text, weights = graph("MatMul", 100)
    plan = plan_of(text, weights, 4, 32, symmetric=False)
    outcome = run_passes(text, QuantizeWeights4Portable(plan), weights=weights)
    rounded = dequantize(next(iter(plan.linears.values())).blocks)  # type: ignore[arg-type]  # planned with blocks
    np.testing.assert_allclose(outcome.after["y"], run_passes(text, weights={"w": rounded}).after["y"], atol=2e-6)


def test_an_empty_plan_and_an_old_opset_change_nothing() -> None:
    text, weights = graph("MatMul")
    for name in ("quantize-weights-4-portable", "quantize-weights-8-portable"):
        assert run_passes(text, name, weights=weights).entry.applied == 0
    outcome = run_passes(text, QuantizeWeights8Portable(plan_of(text, weights)), weights=weights, opset=20)
    assert outcome.reasons == ["opset 20, needs 21"]
