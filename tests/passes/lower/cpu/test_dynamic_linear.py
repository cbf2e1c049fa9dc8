import numpy as np
import pytest

from onnxopt.passes.quantize.dynamic_linear import QuantizeLinearDynamic
from onnxopt.qmath.affine import columns
from onnxopt.qmath.precision import Plan, PlannedLinear, Precision
from tests.passes.quantize.test_static_linear import WEIGHT, WEIGHTS
from tests.support.rules import run_passes

STEP = QuantizeLinearDynamic(Plan({"w": PlannedLinear(Precision("int8-dynamic"), columns=columns(WEIGHT))}))


@pytest.mark.parametrize("body", ["h = MatMul(x, w) y = Add(h, bias)", "y = MatMul(x, w)"], ids=["bias", "no bias"])
def test_makes_one_kernel(body: str) -> None:
    text = f"g (float[batch,sequence,8] x) => (float y) {{ {body} }}"
    used = {name: WEIGHTS[name] for name in ("w", "bias") if name in body}
    outcome = run_passes(text, STEP, "lower-dynamic-linear", "lower-dynamic-linear", weights=used)
    assert outcome.ops == ["com.microsoft::DynamicQuantizeMatMul"]
    assert [entry.applied for entry in outcome.entries] == [1, 1, 0]
    quantized = run_passes(text, STEP, weights=used).after["y"]
    assert np.abs(outcome.after["y"] - quantized).max() < 1e-5


def test_holds_back_when_scales_lie_along_the_rows() -> None:
    text = """
    g (float[batch,8] x) => (float y) {
      q, s, z = DynamicQuantizeLinear(x)
      i = MatMulInteger(q, codes, z)
      c = Cast<to=1>(i)
      t = Mul(s, scales)
      y = Mul(c, t)
    }"""
    codes, scales = columns(WEIGHT)
    weights = {"codes": codes, "scales": np.ones((2, 1), np.float32) * scales[0]}
    outcome = run_passes(text, "lower-dynamic-linear", weights=weights, feeds={"x": [np.ones((2, 8), np.float32)] * 2})
    assert outcome.reasons == ["scales lie along the rows"]
