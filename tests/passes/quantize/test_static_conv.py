import numpy as np
import pytest

from onnxopt.graph.convs import exchanged, find_convs
from onnxopt.passes.quantize.static_conv import QuantizeConv
from onnxopt.qmath.affine import bias_codes, kernels, wide_enough
from onnxopt.qmath.precision import Affine, Plan
from tests.support.convs import BODIES, SIGNED, WEIGHTS, planned, run_conv
from tests.support.rules import parse, run_passes


@pytest.mark.parametrize("body", ["y = Conv(x, other)", "h = Conv(x, w) y = Relu(h) z = Neg(h)"])
def test_what_is_not_planned_stays(body: str) -> None:
    others = {**WEIGHTS, "other": WEIGHTS["w"]}
    text = f"g (float[batch,4,height,height] x) => (float y) {{ {body} }}"
    used = {name: array for name, array in others.items() if f" {name}" in text}
    outcome = run_passes(text, QuantizeConv(Plan({}, {"x": SIGNED, "y": SIGNED})), weights=used)
    assert "QuantizeLinear" not in outcome.ops


def test_a_grid_that_does_not_fit_is_rolled_back() -> None:
    outcome = run_conv(BODIES["plain"], {"w": planned("w")}, {"x": Affine(4e-4, 128), "y": SIGNED})
    assert outcome.ops == ["Conv"]
    assert "signal to noise" in outcome.rolled_back[0]


def test_tensorrt_takes_the_bias_in_float_and_grids_without_zero_points() -> None:
    grid = Affine(0.03, 0, "int8")
    outcome = run_conv(BODIES["relu"], {"w": planned("w")}, {"x": grid, "y": grid}, symmetric=True)
    assert np.array_equal(outcome.constant("Conv", 2), WEIGHTS["b"])
    assert "Relu" in outcome.ops


def test_a_bias_beyond_int32_widens_the_grid_of_its_weights() -> None:
    """Weights next to nothing make s · t so small that the bias would be cut off in int32."""
    weight = WEIGHTS["w"] * np.array([1, 1, 1, 1, 1, 1e-9], np.float32)[:, None, None, None]
    codes, scales = kernels(weight)
    bias = np.full(6, 3.0, np.float32)
    cut, steps = bias_codes(bias, SIGNED.scale, scales)
    assert abs(float(cut[5] * steps[5]) - 3.0) > 1
    codes, scales = wide_enough(scales, codes, bias, SIGNED.scale)
    kept, steps = bias_codes(bias, SIGNED.scale, scales)
    assert np.abs(kept * steps - 3.0).max() < 1e-3
    assert not codes[5].any()


def test_between_is_what_lies_between() -> None:
    body = """a = Conv<pads=[1,1,1,1]>(x, w, b) h = HardSwish(a) d = Conv(h, back) g = Sigmoid(d) y = Mul(d, g)"""
    text = f"g (float[batch,4,height,height] x) => (float y) {{ {body} }}"
    model = parse(text, {name: WEIGHTS[name] for name in ("w", "b", "back")})
    found = {value.name for value in exchanged(model, find_convs(model))}
    assert found == {"x", "a", "h", "d"}, "the end of the network stays in float"


def test_is_in_the_catalogue() -> None:
    text = "g (float[batch,4,height,height] x) => (float y) { y = Conv(x, w) }"
    outcome = run_passes(text, "quantize-conv", weights={"w": WEIGHTS["w"]})
    assert outcome.ops == ["Conv"], "without a plan nothing is quantized"
