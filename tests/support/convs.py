"""Convolutions with plans, for the tests of the passes that quantize and lower them."""

from collections.abc import Mapping

import numpy as np

from onnxopt.passes.quantize.between import QuantizeBetween
from onnxopt.passes.quantize.static_conv import QuantizeConv
from onnxopt.qmath.affine import kernels
from onnxopt.qmath.precision import Affine, Plan, PlannedLinear, Precision
from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(3)
WEIGHTS: dict[str, Array] = {
    "w": GENERATOR.standard_normal((6, 4, 3, 3)).astype(np.float32) / 6,
    "b": np.linspace(-1, 1, 6, dtype=np.float32),
    "depth": GENERATOR.standard_normal((6, 1, 3, 3)).astype(np.float32) / 3,
    "back": GENERATOR.standard_normal((6, 6, 1, 1)).astype(np.float32) / 2,
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
}
SIGNED, UNSIGNED = Affine(0.04, 128), Affine(0.02, 0)
BODIES = {
    "plain": "y = Conv<pads=[1,1,1,1]>(x, w)",
    "bias": "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)",
    "relu": "h = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(h)",
    "clip": "h = Conv<pads=[1,1,1,1]>(x, w, b) y = Clip(h, zero, six)",
}


def planned(name: str, bias: Array | None = None, grid: Affine = SIGNED) -> PlannedLinear:
    codes = kernels(WEIGHTS[name])
    return PlannedLinear(Precision("int8"), activation=grid, columns=codes, bias=bias)


def run_conv(
    body: str, layers: Mapping[str, PlannedLinear], grids: Mapping[str, Affine], *more: str, symmetric: bool = False
) -> Outcome:
    text = f"g (float[batch,4,height,height] x) => (float y) {{ {body} }}"
    used = {name: array for name, array in WEIGHTS.items() if f" {name}" in text}
    plan = Plan(layers, grids, symmetric)
    return run_passes(text, QuantizeConv(plan), QuantizeBetween(plan), "drop-requantize", *more, weights=used)
