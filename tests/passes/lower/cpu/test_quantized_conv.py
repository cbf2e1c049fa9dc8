import numpy as np
import pytest

from onnxopt.passes.quantize.static_conv import QuantizeConv
from onnxopt.qmath.affine import bias_codes, kernels, rounded, symmetric, wide_enough
from onnxopt.qmath.precision import Affine, Plan, PlannedLinear, Precision
from onnxopt.spec import Array
from tests.support.convs import BODIES, SIGNED, UNSIGNED, WEIGHTS, planned, run_conv
from tests.support.rules import Outcome, run_passes


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_becomes_one_integer_kernel(body: str) -> None:
    result = UNSIGNED if "Relu" in body or "Clip" in body else SIGNED
    outcome = run_conv(body, {"w": planned("w")}, {"x": SIGNED, "y": result}, "lower-quantized-conv", "remove-unused")
    assert outcome.rolled_back == []
    assert outcome.ops == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    noise = outcome.after["y"] - outcome.before["y"]
    assert 0 < float(np.square(noise).mean()) < 3e-3 * float(np.square(outcome.before["y"]).mean())


def test_computes_what_its_formula_says() -> None:
    outcome = run_conv(BODIES["relu"], {"w": planned("w")}, {"x": SIGNED, "y": UNSIGNED}, "lower-quantized-conv")
    codes, scales = kernels(WEIGHTS["w"])
    assert np.array_equal(outcome.constant("QLinearConv", 3), codes)
    wide, steps = bias_codes(WEIGHTS["b"], SIGNED.scale, scales)
    assert np.array_equal(outcome.constant("QLinearConv", 8), wide)
    assert np.abs(wide * steps - WEIGHTS["b"]).max() <= steps.max() / 2 * 1.001
    on_grid = outcome.after["y"] / np.float32(UNSIGNED.scale)
    assert np.abs(on_grid - np.rint(on_grid)).max() < 1e-3
    assert outcome.after["y"].min() == 0


def test_a_chain_hands_on_integers_through_its_residual() -> None:
    body = """a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) d = Conv<pads=[1,1,1,1], group=6>(r, depth)
              s = Add(r, d) t = Relu(s) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t) y = Conv(p, back)"""
    names = {"x": SIGNED, "r": UNSIGNED, "d": SIGNED, "t": UNSIGNED, "p": UNSIGNED, "y": SIGNED}
    layers = {name: planned(name) for name in ("w", "depth", "back")}
    outcome = run_conv(body, layers, names, "lower-quantized-conv", "lower-quantized-between", "remove-unused")
    assert outcome.rolled_back == []
    assert sorted(outcome.ops) == sorted(
        ["QuantizeLinear", *["QLinearConv"] * 3, "com.microsoft::QLinearAdd", "MaxPool", "DequantizeLinear"]
    )


def test_relu_stays_where_the_grid_goes_below_zero() -> None:
    """Symmetric activations do not make a Relu (the known fault of a quantizer that removed it)."""
    outcome = run_conv(BODIES["relu"], {"w": planned("w")}, {"x": SIGNED, "y": SIGNED}, "lower-quantized-conv")
    assert "Relu" in outcome.ops
    assert "below 0" in outcome.reasons[0]


def test_clip_stays_where_the_grid_goes_beyond_its_bound() -> None:
    outcome = run_conv(BODIES["clip"], {"w": planned("w")}, {"x": SIGNED, "y": Affine(0.03, 0)}, "lower-quantized-conv")
    assert "Clip" in outcome.ops
    assert "beyond its bound" in outcome.reasons[0]


def test_the_whole_layer_survives_such_a_bias() -> None:
    tiny = {**WEIGHTS, "w": WEIGHTS["w"] * np.array([1, 1, 1, 1, 1, 1e-9], np.float32)[:, None, None, None]}
    narrow, fine = kernels(tiny["w"])
    codes, scales = wide_enough(fine, narrow, np.full(6, 3.0, np.float32), SIGNED.scale)
    layer = PlannedLinear(Precision("int8"), columns=(codes, scales), bias=np.full(6, 3.0, np.float32))
    text = "g (float[batch,4,height,height] x) => (float y) { y = Conv(x, w, b) }"
    used = {"w": tiny["w"], "b": np.full(6, 3.0, np.float32)}
    plan = Plan({"w": layer}, {"x": SIGNED, "y": Affine(0.04, 64)})
    outcome = run_passes(text, QuantizeConv(plan), "lower-quantized-conv", weights=used)
    assert outcome.rolled_back == []
    assert np.abs(outcome.after["y"][:, 5] - 3.0).max() <= 0.02 + 1e-6


QDQ = """a = QuantizeLinear(x, s, z) d = DequantizeLinear(a, s, z) k = DequantizeLinear<axis=0>(codes, steps)
         i = DequantizeLinear<axis=0>(wide, product{point}) c = Conv(d, k, i) q = QuantizeLinear(c, t, z)
         y = DequantizeLinear(q, t, z)"""


def written_elsewhere(point: str = "", **changed: Array) -> Outcome:
    """Lower a graph as another quantizer may write it."""
    codes, steps = kernels(WEIGHTS["w"])
    wide, product = bias_codes(WEIGHTS["b"], 0.04, steps)
    tensors: dict[str, Array] = {
        "s": np.array(0.04, np.float32),
        "t": np.array(0.05, np.float32),
        "z": np.array(120, np.uint8),
        "codes": codes,
        "steps": steps,
        "wide": wide,
        "product": product,
        **({"point": np.array(3, np.int32)} if point else {}),
        **changed,
    }
    text = f"g (float[batch,4,height,height] x) => (float y) {{ {QDQ.format(point=point)} }}"
    return run_passes(text, "lower-quantized-conv", weights=tensors)


def test_graphs_of_other_quantizers_are_lowered() -> None:
    assert "QLinearConv" in written_elsewhere().ops


def test_a_bias_on_another_grid_than_the_products_is_not_taken_as_it_is() -> None:
    outcome = written_elsewhere(product=np.full(6, 0.01, np.float32))
    assert "Conv" in outcome.ops
    assert outcome.reasons == ["the bias is on another grid than the products"]


def test_a_symmetric_uint8_grid_has_its_zero_at_128() -> None:
    """Not at 127: what is 0 must stay 0 (the known fault of a quantizer)."""
    scale, zero_point = symmetric(-3.0, 2.0)
    assert zero_point == 128
    assert rounded(np.zeros(1, np.float32), scale, zero_point)[0] == 0


def test_seven_bits_leave_room_for_a_sum_of_two_products() -> None:
    codes, _ = kernels(WEIGHTS["w"], bits=7)
    assert int(np.abs(codes).max()) * 255 * 2 <= np.iinfo(np.int16).max
    assert codes.dtype == np.int8, "the type of a weight is its own, whatever its input has"
