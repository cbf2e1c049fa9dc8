import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

CONSTANTS: dict[str, Array] = {
    "sixth": np.array(1 / 6, np.float32),
    "six": np.array([6], np.float32),
    "twelfth": np.array(1 / 12, np.float32),
    "five": np.array(5, np.float32),
    "wide": np.full((1, 1, 1, 1), 6, np.float32),
    "last": np.array([-1]),
    "both": np.array([1, 2]),
    "first": np.array([0]),
    "nought": np.array(0, np.float32),
}
SPELLINGS = {
    "the inverse": "s = ReduceSum(x, last) y = Mul(s, sixth)",
    "the count": "s = ReduceSum<keepdims=0>(x, last) y = Div(s, six)",
    "two axes": "s = ReduceSum(x, both) y = Mul(twelfth, s)",
}
OTHERS = {
    "another count": "s = ReduceSum(x, last) y = Div(s, five)",
    "an open axis": "s = ReduceSum(x, first) y = Div(s, five)",
    "the count by the sum": "s = ReduceSum(x, last) y = Div(six, s)",
    "a count with more axes": "s = ReduceSum(x, last) y = Div(s, wide)",
    "nothing": "s = ReduceSum(x, last) y = Mul(s, nought)",
}


def run(body: str, kind: str = "float", opset: int = 23) -> Outcome:
    used = {name: array for name, array in CONSTANTS.items() if f"{name})" in body or f"({name}" in body}
    text = f"g ({kind}[batch,2,6] x) => ({kind} y) {{ {body} }}"
    outcome = run_passes(text, "raise-mean", "raise-mean", weights=used, opset=opset)
    assert outcome.rolled_back == []
    return outcome


@pytest.mark.parametrize("opset", [17, 18, 23])
@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_becomes_a_mean(body: str, opset: int) -> None:
    outcome = run(body, opset=opset)
    assert outcome.ops == ["ReduceMean"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error_at(3, 4) < 1e-6


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_others_stay(body: str) -> None:
    assert run(body).entry.applied == 0


def test_integers_stay() -> None:
    text = "g (int64[batch,2,6] x) => (int64 y) { s = ReduceSum(x, last) y = Div(s, six) }"
    weights = {"last": CONSTANTS["last"], "six": np.array(6)}
    assert run_passes(text, "raise-mean", weights=weights).reasons == ["x is INT64; a mean of integers is rounded"]


@pytest.mark.parametrize("opset", [17, 18, 23])
@pytest.mark.parametrize(("end", "keepdims"), [(0, 1), (0, 0), (3, 1), (5, 0)])
def test_the_mean_of_nothing_stays_no_number(end: int, keepdims: int, opset: int) -> None:
    """The sum of nothing over 0 is no number; what ReduceMean makes of nothing is the runtime's."""
    body = f"c = Slice(x, zero, end, last) s = ReduceSum<keepdims={keepdims}>(c, last) y = Div(s, count)"
    weights: dict[str, Array] = {
        "zero": np.array([0]),
        "end": np.array([end]),
        "last": np.array([-1]),
        "count": np.array(end, np.float32),
    }
    text = f"g (float[batch,2,6] x) => (float y) {{ {body} }}"
    outcome = run_passes(text, "raise-mean", weights=weights, opset=opset)
    assert outcome.rolled_back == []
    assert outcome.entry.applied == int(end > 0)
