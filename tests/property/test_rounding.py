"""The yardsticks of the judge: a graph that does not round, and one whose weights are a little off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from tests.property.judge import SHAKE, answers_of, compared, open_session
from tests.property.rounding import in_double, with_shaken_weights
from tests.property.sizes import Case

# 20000 is added and taken away again: what is left of x has steps of 0.002
ROUNDS = """<ir_version: 9, opset_import: ["" : 17]>
rounds (float[n, 3] x) => (float[n, 3] y)
<float[3] w = {0.5, 1.5, -2.0}, float far = {20000.0}, float back = {-20000.0}>
{
    scaled = Mul (x, w)
    away = Add (scaled, far)
    near = Add (away, back)
    y = Softmax <axis = 1> (near)
}"""
# as a mask's parts are, which a pass may add to each other first
SUMMED = ROUNDS.replace("Add (scaled, far)", "Add (far, back)").replace("Add (away, back)", "Add (scaled, away)")


def test_a_graph_in_double_does_not_round() -> None:
    model = onnx.parser.parse_model(ROUNDS)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    (rounded,) = answers_of(open_session(model, plain=True), {"x": x}) or [x]
    (exact,) = answers_of(open_session(in_double(model), plain=True), {"x": x.astype(np.float64)}) or [x]
    scores = np.exp(x.astype(np.float64) * [0.5, 1.5, -2.0])
    np.testing.assert_allclose(exact, scores / scores.sum(1, keepdims=True), rtol=1e-9)
    assert np.abs(rounded - exact).max() > 1e-5


def test_weights_are_off_by_roundings_and_single_numbers_are_not() -> None:
    made = with_shaken_weights(onnx.parser.parse_model(ROUNDS), SHAKE, 0)
    w, far, back = (onnx.numpy_helper.to_array(one) for one in made.graph.initializer)
    assert (float(far), float(back)) == (20000.0, -20000.0)
    off = np.abs(w / np.array([0.5, 1.5, -2.0], np.float32) - 1)
    assert 0 < off.max() <= SHAKE * 1.1


@pytest.mark.parametrize(("better", "outcome"), [(SUMMED, "right"), (SUMMED.replace("1.5", "1.51"), "wrong")])
def test_an_answer_that_rounds_less_is_right_and_another_weight_is_not(
    better: str, outcome: str, tmp_path: Path
) -> None:
    original = onnx.parser.parse_model(ROUNDS)
    sessions = open_session(original, plain=True), open_session(original, plain=False)
    path = tmp_path / "made.onnx"
    onnx.save(onnx.parser.parse_model(better), path)
    x = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    verdict = compared(original, sessions, path, [Case({"n": 64}, {"x": x})])
    assert verdict.outcome == outcome, verdict.reason
