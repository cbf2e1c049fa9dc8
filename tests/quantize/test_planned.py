"""A layer that adds more than its bias keeps what it adds, however it is quantized.

Covers: passes/words/planned.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxopt.graph.linears import find_linears
from onnxopt.passes.quantize.dynamic_linear import QuantizeLinearDynamic
from onnxopt.passes.quantize.static_linear import QuantizeLinearStatic
from onnxopt.passes.quantize.weights import QuantizeWeights4, QuantizeWeights8
from onnxopt.passes.quantize.weights_portable import QuantizeWeights4Portable, QuantizeWeights8Portable
from onnxopt.passes.words.planned import Planned
from onnxopt.qmath.blocks import sqnr_db
from onnxopt.qmath.precision import Affine, Plan, PlannedLinear, Precision
from tests.support.planned import planned
from tests.support.rules import parse, run_passes

RNG = np.random.default_rng(3)
WEIGHT = (0.1 * RNG.standard_normal((48, 24))).astype(np.float32)
RESIDUAL = "g (float[rows,48] x, float[rows,24] r) => (float[rows,24] y) { y = Gemm(x, w, r) }"


def in_columns(kind: str) -> PlannedLinear:
    scales = (np.abs(WEIGHT).max(axis=0) / 127).astype(np.float32)
    codes = np.rint(WEIGHT / scales).astype(np.int8)
    grid = Affine(8 / 255, 128) if kind == "int8" else None
    return PlannedLinear(Precision.parse(kind), activation=grid, columns=(codes, scales))


KINDS: dict[str, tuple[Callable[[Plan], Planned], PlannedLinear, int]] = {
    "quantize-weights-4": (QuantizeWeights4, planned(WEIGHT, 4), 23),
    "quantize-weights-8": (QuantizeWeights8, planned(WEIGHT, 8), 23),
    "quantize-weights-4-portable": (QuantizeWeights4Portable, planned(WEIGHT, 4), 21),
    "quantize-weights-8-portable": (QuantizeWeights8Portable, planned(WEIGHT, 8), 21),
    "quantize-static": (QuantizeLinearStatic, in_columns("int8"), 17),
    "quantize-dynamic": (QuantizeLinearDynamic, in_columns("int8-dynamic"), 17),
}


def plan_of(one: PlannedLinear, text: str) -> Plan:
    (linear,) = find_linears(parse(text, {"w": WEIGHT}))
    return Plan({linear.label: one})


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_is_still_added(kind: str) -> None:
    rule, one, opset = KINDS[kind]
    outcome = run_passes(RESIDUAL, rule(plan_of(one, RESIDUAL)), weights={"w": WEIGHT}, opset=opset)
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    assert outcome.ops[-1] == "Add"
    assert sqnr_db(outcome.before["y"], outcome.after["y"]) > (18 if "4" in kind else 30)


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_that_is_scaled_keeps_the_layer_in_float(kind: str) -> None:
    rule, one, opset = KINDS[kind]
    text = RESIDUAL.replace("Gemm(", "Gemm<beta=0.5>(")
    outcome = run_passes(text, rule(plan_of(one, text)), weights={"w": WEIGHT}, opset=opset)
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, ["what is added is scaled"], [])
