import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

CONSTANTS: dict[str, Array] = {
    "last": np.array([-1]),
    "middle": np.array([1]),
    "lowest": np.array(-np.inf, np.float32),
    "nought": np.array(0, np.float32),
    "one": np.array(1, np.float32),
    "column": np.array([0, 0, 1]),
    "row": np.array([0, 1, -1]),
}
TAKEN = "d = Sub(x, top) e = Exp(d)"
SPELLINGS = {
    "kept axes": f"top = ReduceMax(x, last) {TAKEN} s = ReduceSum(e, last) y = Div(e, s)",
    "JAX": (
        f"p = ReduceMax<keepdims=0>(x, last) h = Max(lowest, p) top = Reshape(h, column) {TAKEN} "
        "s = ReduceSum<keepdims=0>(e, last) t = Reshape(s, column) y = Div(e, t)"
    ),
    "the inverse": f"top = ReduceMax(x, last) {TAKEN} s = ReduceSum(e, last) i = Reciprocal(s) y = Mul(i, e)",
    "one by the sum": (
        f"p = ReduceMax<keepdims=0>(x, last) top = Unsqueeze(p, last) {TAKEN} s = ReduceSum(e, last) i = Div(one, s) "
        "y = Mul(e, i)"
    ),
    "another axis": f"top = ReduceMax(x, middle) {TAKEN} s = ReduceSum(e, middle) y = Div(e, s)",
}


def run(body: str, x: str = "batch,sequence,6", outputs: str = "float y") -> Outcome:
    used = {name: array for name, array in CONSTANTS.items() if f"{name})" in body or f"({name}," in body}
    outcome = run_passes(f"g (float[{x}] x) => ({outputs}) {{ {body} }}", "fuse-softmax", "fuse-softmax", weights=used)
    assert outcome.rolled_back == []
    return outcome


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_becomes_one_operator(body: str) -> None:
    outcome = run(body)
    assert outcome.ops == ["Softmax"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.attributes("Softmax")["axis"] == (1 if "middle" in body else -1)
    assert outcome.worst_error_at(3, 4) < 1e-6
    assert outcome.worst_error_at(1, 1) < 1e-6


OTHERS = {
    "another maximum": (
        f"h = ReduceMax(x, middle) top = ReduceMax(h, last) {TAKEN} s = ReduceSum(e, last) y = Div(e, s)",
        "the maximum is taken over other axes than the sum",
    ),
    "a maximum of two axes": (
        f"top = ReduceMax(x) {TAKEN} s = ReduceSum(e, last) y = Div(e, s)",
        "the maximum is taken over other axes than the sum",
    ),
    "a sum of all": (
        f"top = ReduceMax(x, last) {TAKEN} s = ReduceSum(e) y = Div(e, s)",
        "the sum is not over one known axis",
    ),
    "an axis given back elsewhere": (
        f"p = ReduceMax<keepdims=0>(x, last) top = Reshape(p, row) {TAKEN} s = ReduceSum(e, last) y = Div(e, s)",
        "the maximum and the sum are not known to keep their axis",
    ),
    "an axis not given back": (
        f"top = ReduceMax<keepdims=0>(x, last) {TAKEN} s = ReduceSum(e, last) y = Div(e, s)",
        "the maximum and the sum are not known to keep their axis",
    ),
}


@pytest.mark.parametrize(("body", "reason"), list(OTHERS.values())[1:], ids=list(OTHERS)[1:])
def test_says_why_it_holds_back(body: str, reason: str) -> None:
    assert run(body, "6,6,6").reasons == [reason]


@pytest.mark.parametrize(
    "body",
    [
        OTHERS["another maximum"][0],
        "m = ReduceMax(x, last) top = Max(nought, m) d = Sub(x, top) e = Exp(d) s = ReduceSum(e, last) y = Div(e, s)",
        "e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)",
        "top = ReduceMax(x, last) d = Sub(x, top) e = Exp(d) s = ReduceSum(e, last) y = Div(s, e)",
    ],
    ids=["a maximum of a maximum", "held above 0", "no maximum", "turned over"],
)
def test_others_stay(body: str) -> None:
    assert run(body, "6,6,6").entry.applied == 0


def test_holds_back_when_the_powers_are_read_elsewhere() -> None:
    outcome = run(SPELLINGS["kept axes"], outputs="float y, float e")
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]


def test_holds_back_when_a_constant_has_more_axes() -> None:
    body = SPELLINGS["one by the sum"].replace("one", "many")
    weights = {"last": CONSTANTS["last"], "many": np.ones((1, 1, 1, 1), np.float32)}
    outcome = run_passes(f"g (float[2,3,6] x) => (float y) {{ {body} }}", "fuse-softmax", weights=weights)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
