import numpy as np
import pytest

from onnxopt.passes.quantize.dynamic_linear import QuantizeLinearDynamic
from onnxopt.qmath.affine import columns
from onnxopt.qmath.precision import Plan, PlannedLinear, Precision
from tests.passes.quantize.test_static_linear import SPELLINGS, WEIGHT, WEIGHTS
from tests.support.rules import Outcome, run_passes

PLANNED = PlannedLinear(Precision("int8-dynamic"), columns=columns(WEIGHT))


def run(body: str, plan: PlannedLinear = PLANNED) -> Outcome:
    text = f"g (float[batch,sequence,8] x) => (float y) {{ {body} }}"
    used = {name: array for name, array in WEIGHTS.items() if f" {name}" in text or f"({name}" in text}
    step = QuantizeLinearDynamic(Plan({"turned" if "turned" in body else "w": plan}))
    return run_passes(text, step, step, weights=used)


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_quantizes_every_spelling(body: str) -> None:
    outcome = run(body)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= set(outcome.ops)
    noise = outcome.after["y"] - outcome.before["y"]
    assert 0 < float(np.square(noise).mean()) < 1e-3 * float(np.square(outcome.before["y"]).mean())


def test_leaves_static_plans_to_the_static_pass() -> None:
    outcome = run(SPELLINGS["MatMul alone"], PlannedLinear(Precision("int8"), columns=columns(WEIGHT)))
    assert (outcome.ops, outcome.reasons) == (["MatMul"], ["not planned"])


def test_needs_the_weight() -> None:
    outcome = run(SPELLINGS["MatMul alone"], PlannedLinear(Precision("int8-dynamic")))
    assert outcome.reasons == ["the plan has no weight"]


def test_is_in_the_catalogue() -> None:
    text = "g (float[batch,8] x) => (float y) { y = MatMul(x, w) }"
    assert run_passes(text, "quantize-dynamic", weights={"w": WEIGHT}).ops == ["MatMul"]
