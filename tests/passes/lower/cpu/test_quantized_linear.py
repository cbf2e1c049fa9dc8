import re

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

BODIES = {
    "with a bias": "h = MatMul(d, v) y = Add(h, bias)",
    "bias from the left": "h = MatMul(d, v) y = Add(bias, h)",
    "without a bias": "y = MatMul(d, v)",
    "Gemm": "y = Gemm(d, v, bias)",
}


def run(body: str, *, weight: str = "DequantizeLinear<axis=1>(codes, scales)", **changed: Array) -> Outcome:
    shape = "batch,8" if "Gemm" in body else "batch,sequence,8"
    text = f"""
    g (float[{shape}] x) => (float y) {{
      q = QuantizeLinear(x, s, z)
      d = DequantizeLinear(q, s, z)
      v = {weight}
      {body}
    }}"""
    generator = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "s": np.array(0.03, np.float32),
        "z": np.array(120, np.uint8),
        "codes": generator.integers(-127, 128, (8, 6)).astype(np.int8),
        "scales": generator.uniform(0.01, 0.02, 6).astype(np.float32),
        "zeros": np.zeros(6, np.int8),
        "bias": generator.standard_normal(6).astype(np.float32),
        **changed,
    }
    used = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", text)}
    return run_passes(text, "lower-quantized-linear", "lower-quantized-linear", weights=used)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("zeros", ["", ", zeros"])
def test_makes_one_integer_kernel(body: str, zeros: str) -> None:
    outcome = run(body, weight=f"DequantizeLinear<axis=1>(codes, scales{zeros})")
    assert outcome.ops == ["QuantizeLinear", "com.microsoft::MatMulIntegerToFloat"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5


def test_one_scale_for_the_whole_weight_will_do() -> None:
    outcome = run(BODIES["without a bias"], scales=np.array(0.01, np.float32))
    assert outcome.ops[-1] == "com.microsoft::MatMulIntegerToFloat"
    assert outcome.worst_error() < 1e-5


def test_holds_back_when_scales_lie_along_the_rows() -> None:
    square = np.random.default_rng(0).integers(-127, 128, (8, 8)).astype(np.int8)
    outcome = run(
        BODIES["without a bias"],
        weight="DequantizeLinear<axis=0>(codes, scales)",
        codes=square,
        scales=np.linspace(0.01, 0.02, 8, dtype=np.float32),
    )
    assert outcome.reasons == ["scales lie along the rows"]


def test_an_addition_that_is_no_bias_stays() -> None:
    outcome = run("h = MatMul(d, v) y = Add(h, bias)", bias=np.ones((2, 1, 1), np.float32)[:1])
    assert outcome.ops[-2:] == ["com.microsoft::MatMulIntegerToFloat", "Add"]
    assert outcome.worst_error() < 1e-5


def test_a_scaled_gemm_stays() -> None:
    outcome = run("y = Gemm<alpha=0.5>(d, v, bias)")
    assert outcome.reasons == ["the Gemm scales or turns"]
