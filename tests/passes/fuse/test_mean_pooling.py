import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import run_passes

WEIGHTS: dict[str, Array] = {
    "last": np.array([-1]),
    "second": np.array([2]),
    "middle": np.array([1]),
    "middle_back": np.array([-2]),
}
COLUMNS = {
    "Cast behind": "u = Unsqueeze(mask, last) w = Cast<to=1>(u)",
    "Cast ahead": "c = Cast<to=1>(mask) w = Unsqueeze(c, second)",
}


def graph(column: str, tail: str = "p = Mul(h, w) y = ReduceSum<keepdims=0>(p, middle)", kind: str = "int64") -> str:
    return f"g (float[batch,sequence,4] h, {kind}[batch,sequence] mask) => (float y) {{ {column} {tail} }}"


def used(text: str) -> dict[str, Array]:
    return {name: array for name, array in WEIGHTS.items() if f" {name})" in text}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS.keys())
@pytest.mark.parametrize(
    "tail",
    [
        "p = Mul(h, w) y = ReduceSum<keepdims=0>(p, middle)",
        "p = Mul(w, h) y = ReduceSum<keepdims=0>(p, middle_back)",
    ],
)
@pytest.mark.parametrize("kind", ["int64", "int32", "bool"])
def test_writes_a_masked_sum_as_a_product(column: str, tail: str, kind: str) -> None:
    text = graph(column, tail, kind)
    outcome = run_passes(text, "fuse-mean-pooling", "fuse-mean-pooling", weights=used(text))
    assert outcome.ops == ["Cast", "Unsqueeze", "MatMul", "Squeeze"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_the_weights_go_on_serving_the_count() -> None:
    text = graph(
        COLUMNS["Cast behind"],
        "p = Mul(h, w) s = ReduceSum<keepdims=0>(p, middle) c = ReduceSum<keepdims=0>(w, middle) y = Div(s, c)",
    )
    outcome = run_passes(text, "fuse-mean-pooling", weights=used(text))
    assert outcome.entry.applied == 1
    assert outcome.ops.count("ReduceSum") == 1
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


HELD_BACK = {
    "summed over features": (
        graph(COLUMNS["Cast behind"], "p = Mul(h, w) y = ReduceSum<keepdims=0>(p, last)"),
        "not summed over the sequence",
    ),
    "the mask as a row": (
        graph("u = Unsqueeze(mask, middle) w = Cast<to=1>(u)").replace(
            "float[batch,sequence,4]", "float[batch,sequence,sequence]"
        ),
        "the mask is not a column",
    ),
    "one weight per sentence": (
        graph(COLUMNS["Cast behind"]).replace("[batch,sequence] mask", "[batch,1] mask"),
        "not [batch, sequence] weights",
    ),
}


@pytest.mark.parametrize(("text", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(text: str, reason: str) -> None:
    outcome = run_passes(text, "fuse-mean-pooling", weights=used(text))
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])


def test_holds_back_when_the_sum_is_over_integers() -> None:
    text = (
        graph("u = Unsqueeze(mask, last) w = Cast<to=7>(u)")
        .replace("float[batch", "int64[batch")
        .replace("float y", "int64 y")
    )
    outcome = run_passes(text, "fuse-mean-pooling", weights=used(text))
    assert outcome.reasons == ["hidden is INT64"]


def test_a_kept_axis_is_another_result() -> None:
    text = graph(COLUMNS["Cast behind"], "p = Mul(h, w) y = ReduceSum<keepdims=1>(p, middle)")
    outcome = run_passes(text, "fuse-mean-pooling", weights=used(text))
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])


def test_a_product_that_is_an_output_too_holds_back() -> None:
    text = graph(COLUMNS["Cast behind"]).replace("(float y)", "(float y, float p)")
    outcome = run_passes(text, "fuse-mean-pooling", weights=used(text))
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]
