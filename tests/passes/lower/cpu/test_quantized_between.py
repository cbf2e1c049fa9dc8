import numpy as np
import pytest

from onnxopt.passes.quantize.between import QuantizeBetween
from onnxopt.qmath.precision import Affine, Plan
from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

SIGNED, UNIT, POSITIVE = Affine(0.04, 120), Affine(1 / 255, 0), Affine(0.025, 0)
NUMBERS: dict[str, Array] = {
    "three": np.array(3, np.float32),
    "minus": np.array(-0.7, np.float32),
    "shape": np.array([0, -1]),
    "sizes": np.array([1, 1, 2, 2], np.float32),
}
# what is written, the grid of the result, the kernels it becomes, the most steps of the grid that they are off
CASES: dict[str, tuple[str, Affine, list[str], float]] = {
    "sum": ("y = Add(x, z)", Affine(0.06, 128), ["com.microsoft::QLinearAdd"], 1.01),
    "sum with Relu": ("s = Add(x, z) y = Relu(s)", POSITIVE, ["com.microsoft::QLinearAdd"], 1.01),
    "sum with a number": ("y = Add(x, minus)", SIGNED, ["com.microsoft::QLinearAdd"], 1.01),
    "product": ("y = Mul(x, z)", Affine(0.06, 128), ["com.microsoft::QLinearMul"], 1.01),
    "product with a number": ("y = Mul(x, three)", Affine(0.12, 120), ["com.microsoft::QLinearMul"], 1.01),
    "Relu": ("y = Relu(x)", POSITIVE, ["com.microsoft::QLinearLeakyRelu"], 1.01),
    "Sigmoid": ("y = Sigmoid(x)", UNIT, ["com.microsoft::QLinearSigmoid"], 1.01),
    "HardSigmoid": ("y = HardSigmoid<alpha=0.2, beta=0.5>(x)", UNIT, ["com.microsoft::QLinearAdd"], 1.01),
    "HardSwish": (
        "y = HardSwish(x)", Affine(0.02, 19), ["com.microsoft::QLinearAdd", "com.microsoft::QLinearMul"], 2.01,
    ),
    "GlobalAveragePool": ("y = GlobalAveragePool(x)", SIGNED, ["com.microsoft::QLinearGlobalAveragePool"], 1.01),
    "AveragePool": (
        "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", SIGNED, ["com.microsoft::QLinearAveragePool"], 1.01,
    ),
    "Concat": ("y = Concat<axis=1>(x, z)", Affine(0.05, 128), ["com.microsoft::QLinearConcat"], 1.01),
    "MaxPool": ("y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", SIGNED, ["MaxPool"], 0.01),
    "Reshape": ("y = Reshape(x, shape)", SIGNED, ["Reshape"], 0.01),
    "Transpose": ("y = Transpose<perm=[0,2,3,1]>(x)", SIGNED, ["Transpose"], 0.01),
    "Resize": ("y = Resize<mode=\"nearest\">(x, , sizes)", SIGNED, ["Resize"], 0.01),
}  # fmt: skip
GRIDS = {"x": SIGNED, "z": Affine(0.03, 128)}


def run(body: str, grids: dict[str, Affine], *more: str) -> Outcome:
    other = (
        ", float[batch,3,height,height] z" if ("z" in body.split("=", 1)[1] and "(z" in body) or ", z" in body else ""
    )
    text = f"g (float[batch,3,height,height] x{other}) => (float y) {{ {body} }}"
    used = {name: array for name, array in NUMBERS.items() if name in body.replace("kernel_shape", "")}
    return run_passes(text, QuantizeBetween(Plan({}, grids)), "drop-requantize", *more, weights=used)


@pytest.mark.parametrize(("body", "grid", "kernels", "steps"), CASES.values(), ids=CASES)
def test_becomes_an_integer_kernel(body: str, grid: Affine, kernels: list[str], steps: float) -> None:
    before = run(body, {**GRIDS, "y": grid})
    assert (before.rolled_back, before.entries[0].applied) == ([], 1)
    outcome = run(body, {**GRIDS, "y": grid}, "lower-quantized-between", "remove-unused")
    assert outcome.rolled_back == []
    assert [op for op in outcome.ops if op not in ("QuantizeLinear", "DequantizeLinear")] == kernels
    assert np.abs(outcome.after["y"] - before.after["y"]).max() <= steps * grid.scale


def test_a_gate_stays_where_the_grid_does_not_end_at_one() -> None:
    outcome = run(CASES["HardSigmoid"][0], {**GRIDS, "y": Affine(1 / 100, 0)}, "lower-quantized-between")
    assert "HardSigmoid" in outcome.ops
    assert outcome.reasons == ["the grid does not end at 1"]


def test_relu_stays_where_the_grid_goes_below_zero() -> None:
    outcome = run(CASES["sum with Relu"][0], {**GRIDS, "y": SIGNED}, "lower-quantized-between")
    assert "Relu" in outcome.ops


def test_maximum_stays_where_its_result_has_another_grid() -> None:
    outcome = run(CASES["MaxPool"][0], {**GRIDS, "y": Affine(0.05, 128)}, "lower-quantized-between")
    assert outcome.ops.count("QuantizeLinear") == 2
