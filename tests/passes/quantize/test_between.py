import numpy as np
import pytest

from onnxopt.passes.quantize.between import QuantizeBetween
from onnxopt.qmath.precision import Affine, Plan
from tests.support.rules import Outcome, run_passes

SIGNED, POSITIVE = Affine(0.04, 120), Affine(0.025, 0)
TEXT = "g (float[batch,3,height,height] x, float[batch,3,height,height] z) => (float y) {{ {} }}"


def run(body: str, grids: dict[str, Affine]) -> Outcome:
    step = QuantizeBetween(Plan({}, grids))
    return run_passes(TEXT.format(body), step, step)


@pytest.mark.parametrize("body", ["y = Add(x, z)", "s = Add(x, z) y = Relu(s)"])
def test_everything_goes_through_its_grid_once(body: str) -> None:
    outcome = run(body, {"x": SIGNED, "z": SIGNED, "y": POSITIVE if "Relu" in body else Affine(0.08, 120)})
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.ops.count("QuantizeLinear") == 3
    noise = outcome.after["y"] - outcome.before["y"]
    assert 0 < float(np.square(noise).mean()) < 1e-2 * float(np.square(outcome.before["y"]).mean())


def test_is_not_touched_without_a_plan() -> None:
    assert run("y = Add(x, z)", {"x": SIGNED, "z": SIGNED}).ops == ["Add"]
    assert run_passes(TEXT.format("y = Add(x, z)"), "quantize-between").ops == ["Add"]


def test_a_grid_that_does_not_fit_is_rolled_back() -> None:
    outcome = run("y = Add(x, z)", {"x": SIGNED, "z": SIGNED, "y": Affine(1e-4, 120)})
    assert outcome.ops == ["Add"]
    assert "signal to noise" in outcome.rolled_back[0]
