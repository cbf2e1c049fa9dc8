from dataclasses import replace

import numpy as np
import pytest

from onnxopt.passes.quantize.static_linear import QuantizeLinearStatic
from onnxopt.qmath.affine import columns
from onnxopt.qmath.precision import Affine, Plan, PlannedLinear, Precision
from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

SPELLINGS = {
    "MatMul and Add": "h = MatMul(x, w) y = Add(h, bias)",
    "MatMul alone": "y = MatMul(x, w)",
    "transposed": "t = Transpose<perm=[1, 0]>(turned) h = MatMul(x, t) y = Add(bias, h)",
    "Gemm": "r = Reshape(x, rows) y = Gemm(r, w, bias)",
    "Gemm, transposed": "r = Reshape(x, rows) y = Gemm<transB=1>(r, turned, bias)",
}
WEIGHT = np.random.default_rng(1).standard_normal((8, 6)).astype(np.float32)
WEIGHTS: dict[str, Array] = {
    "w": WEIGHT,
    "turned": WEIGHT.T.copy(),
    "bias": np.linspace(-1, 1, 6, dtype=np.float32),
    "rows": np.array([-1, 8]),
}


def planned(scale: float = 0.04, zero_point: int = 128, factors: Array | None = None) -> PlannedLinear:
    weight = WEIGHT if factors is None else WEIGHT * factors[:, None]
    grid = Affine(scale, zero_point)
    return PlannedLinear(Precision("int8"), activation=grid, columns=columns(weight), factors=factors)


def run(body: str, plan: PlannedLinear, label: str = "", **kwargs: object) -> Outcome:
    text = f"g (float[batch,sequence,8] x) => (float y) {{ {body} }}"
    used = {name: array for name, array in WEIGHTS.items() if f" {name}" in text or f"({name}" in text}
    step = QuantizeLinearStatic(Plan({label or ("turned" if "turned" in body else "w"): plan}))
    return run_passes(text, step, step, weights=used, **kwargs)  # type: ignore[arg-type]  # passed on


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_quantizes_every_spelling(body: str) -> None:
    outcome = run(body, planned())
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert {"QuantizeLinear", "DequantizeLinear", "MatMul"} <= set(outcome.ops)
    noise = outcome.after["y"] - outcome.before["y"]
    assert 0 < float(np.square(noise).mean()) < 1e-3 * float(np.square(outcome.before["y"]).mean())


def test_a_layer_that_is_not_planned_stays() -> None:
    outcome = run(SPELLINGS["MatMul alone"], planned(), label="another")
    assert (outcome.ops, outcome.reasons) == (["MatMul"], ["not planned"])


def test_smooths_the_input_and_takes_the_factors_back_in_the_weight() -> None:
    factors = np.array([8, 1, 1, 1, 0.5, 1, 1, 1], np.float32)
    outcome = run(SPELLINGS["MatMul and Add"], planned(factors=factors, scale=0.06))
    assert outcome.ops[0] == "Mul"
    noise = outcome.after["y"] - outcome.before["y"]
    assert float(np.square(noise).mean()) < 1e-2 * float(np.square(outcome.before["y"]).mean())


@pytest.mark.parametrize(("scale", "zero_point"), [(4e-4, 128), (0.04, 0), (40.0, 128)], ids=["fine", "off", "coarse"])
def test_a_grid_that_does_not_fit_is_rolled_back(scale: float, zero_point: int) -> None:
    outcome = run(SPELLINGS["MatMul alone"], planned(scale, zero_point))
    assert outcome.ops == ["MatMul"]
    assert "signal to noise" in outcome.rolled_back[0]


def test_a_weight_of_the_wrong_columns_is_rolled_back() -> None:
    codes, scales = columns(WEIGHT)
    outcome = run(SPELLINGS["MatMul alone"], replace(planned(), columns=(codes[:, ::-1].copy(), scales)))
    assert "signal to noise" in outcome.rolled_back[0]


def test_needs_the_grid() -> None:
    outcome = run(SPELLINGS["MatMul alone"], replace(planned(), activation=None))
    assert outcome.reasons == ["the plan has no grid"]


def test_a_corrected_bias_takes_the_place_of_the_own() -> None:
    corrected = replace(planned(), bias=np.full(6, 0.5, np.float32))
    outcome = run(SPELLINGS["MatMul and Add"], corrected)
    assert np.array_equal(outcome.constant("Add", 1), np.full(6, 0.5, np.float32))


def test_is_in_the_catalogue() -> None:
    outcome = run_passes(
        "g (float[batch,8] x) => (float y) { y = MatMul(x, w) }", "quantize-static", weights={"w": WEIGHT}
    )
    assert outcome.ops == ["MatMul"], "without a plan nothing is quantized"
