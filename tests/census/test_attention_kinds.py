"""Attention that is not spelled with one head per query head, four axes and one mask."""

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Constant, Outcome, run_passes

LOWEST = float(np.finfo(np.float32).min)
HEADS = "float[batch,2,sequence,4]"
NUMBERS: dict[str, Constant] = {
    "half": np.float32(0.5),
    "zero": np.float32(0.0),
    "lowest": np.float32(LOWEST),
    "infinite": np.float32(-np.inf),
}


def run(text: str, **more: Array) -> Outcome:
    weights = {name: array for name, array in {**NUMBERS, **more}.items() if name in text}
    return run_passes(text, "remove-no-ops", "fuse-attention", "fuse-attention", weights=weights)


def check(outcome: Outcome) -> None:
    assert [entry.applied for entry in outcome.entries[1:]] == [1, 0]
    assert outcome.rolled_back == []
    assert "Softmax" not in outcome.ops
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5
    assert outcome.worst_error_at(4, 6) < 1e-5


def test_one_head_of_keys_and_values_serves_all_queries() -> None:
    one = "float[batch,1,sequence,4]"
    outcome = run(
        f"g ({HEADS} q, {one} k, {one} v) => (float y) {{"
        "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) w = Softmax(s) y = MatMul(w, v) }"
    )
    check(outcome)
    assert outcome.ops == ["Attention"]


@pytest.mark.parametrize(
    ("k", "v", "reason"),
    [
        (HEADS, "float[batch,1,sequence,4]", "keys have 2 heads, values have 1"),
        ("float[1,2,sequence,4]", HEADS, "queries, keys and values have the batches"),
    ],
)
def test_heads_or_batches_that_only_broadcast_are_left_alone(k: str, v: str, reason: str) -> None:
    outcome = run(
        f"g ({HEADS} q, {k} k, {v} v) => (float y) {{"
        "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) w = Softmax(s) y = MatMul(w, v) }"
    )
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
    assert any(reason in found for found in outcome.reasons)


@pytest.mark.parametrize(("k", "perm"), [("float[rows,sequence,4]", "[0,2,1]"), ("float[sequence,rows,4]", "[1,2,0]")])
@pytest.mark.parametrize("bias", ["", ", float[rows,sequence,sequence] bias", ", float[sequence,sequence] bias"])
def test_matrices_without_heads_become_heads_of_their_own(k: str, perm: str, bias: str) -> None:
    added = "m = Add(s, bias)" if bias else "m = Identity(s)"
    outcome = run(
        f"g (float[rows,sequence,4] q, {k} k, float[rows,sequence,4] v{bias}) => (float y) {{"
        f"kt = Transpose<perm={perm}>(k) s = MatMul(q, kt) {added} w = Softmax<axis=2>(m) y = MatMul(w, v) }}"
    )
    check(outcome)


def test_keys_that_are_stored_turned_are_turned_back() -> None:
    outcome = run(
        f"g ({HEADS} q, float[batch,2,4,sequence] k, {HEADS} v) => (float y) {{"
        "s = MatMul(q, k) t = Mul(s, half) w = Softmax(t) y = MatMul(w, v) }"
    )
    check(outcome)
    assert outcome.ops == ["Transpose", "Attention"]


MASKED = [
    "a = Add(s, bias) m = Where(hide, lowest, a)",  # DeBERTa
    "a = Add(s, bias) mask = Where(hide, lowest, zero) m = Add(a, mask)",  # MPNet
    "a = Where(keep, s, lowest) mask = Where(keep, zero, lowest) m = Add(a, mask)",  # GPT-Neo
    "a = Add(s, bias) mask = Where(keep, zero, lowest) b = Add(a, mask) m = Max(b, lowest)",  # XGLM
    "a = Where(hide, lowest, s) m = Add(a, bias)",
]
BIASED = "bias = Tanh(raw) hide = Not(keep) rest = ReduceSum(bias) kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt)"


@pytest.mark.parametrize("steps", MASKED)
def test_biases_and_masks_in_any_order(steps: str) -> None:
    """Of a mask of integers, which is 0 and 1 and leaves every row that is no padding a key."""
    outcome = run(
        f"g ({HEADS} q, {HEADS} k, {HEADS} v, float[1,2,sequence,sequence] raw, int64[batch,sequence] real)"
        " => (float y, float rest) <int64[2] places = {1, 2}> { flags = Cast<to=9>(real) "
        f"keep = Unsqueeze(flags, places) {BIASED} {steps} w = Softmax(m) y = MatMul(w, v) }}"
    )
    check(outcome)


@pytest.mark.parametrize("steps", MASKED[:2])
def test_rows_that_may_attend_to_nothing_keep_their_equal_weights(steps: str) -> None:
    """Flags for every query and key are no padding mask: a row of them may be empty, and has an answer then."""
    outcome = run(
        f"g ({HEADS} q, {HEADS} k, {HEADS} v, float[1,2,sequence,sequence] raw, bool[batch,1,sequence,sequence] keep)"
        f" => (float y, float rest) {{ {BIASED} {steps} w = Softmax(m) y = MatMul(w, v) }}"
    )
    check(outcome)
    keep = np.ones((3, 1, 5, 5), np.bool_)
    keep[1, 0, 2] = False
    assert outcome.worst_error_at(3, 5, keep=keep) < 1e-5


@pytest.mark.parametrize("steps", MASKED[2:])
def test_where_such_a_row_would_lose_its_answer_nothing_is_fused(steps: str) -> None:
    outcome = run(
        f"g ({HEADS} q, {HEADS} k, {HEADS} v, float[1,2,sequence,sequence] raw, bool[batch,1,sequence,sequence] keep)"
        f" => (float y, float rest) {{ {BIASED} {steps} w = Softmax(m) y = MatMul(w, v) }}"
    )
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []


def test_a_scale_behind_the_mask_scales_the_mask_too() -> None:
    outcome = run(
        f"g ({HEADS} q, {HEADS} k, {HEADS} v, float[batch,1,sequence,sequence] bias) => (float y) {{"
        "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) a = Add(s, bias) m = Div(a, half) "
        "w = Softmax(m) y = MatMul(w, v) }"
    )
    check(outcome)
    assert outcome.attributes("Attention")["scale"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ("m = Where(keep, s, half)", "masked scores become 0.5"),
        ("m = Max(s, zero)", "scores are cut off at 0"),
    ],
)
def test_numbers_that_keep_a_weight_are_left_alone(steps: str, reason: str) -> None:
    outcome = run(
        f"g ({HEADS} q, {HEADS} k, {HEADS} v, bool[batch,1,sequence,sequence] keep) => (float y, bool other) {{"
        f"kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) {steps} other = Not(keep) "
        "w = Softmax(m) y = MatMul(w, v) }"
    )
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
    assert any(reason in found for found in outcome.reasons)


SINK = (
    f"g ({HEADS} q, {HEADS} k, {HEADS} v, float[batch,1,sequence,sequence] bias, float[1,2,1,1] sinks) "
    "=> (float y) {"
    "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) t = Mul(s, half) m = Add(t, bias) "
    "rows = Shape<start=0, end=3>(q) wide = Concat<axis=0>(rows, one) sink = Expand(sinks, wide) "
    "all = Concat<axis=-1>(m, sink) {shifted} w = Softmax({softmax}) cut = Slice(w, first, last, {axes}) "
    "y = MatMul(cut, v) }"
)
PLACES = {
    name: np.array([value]) for name, value in (("first", 0), ("last", -1), ("huge", 2**31), ("axis", 3), ("one", 1))
}


def sink(*, shifted: bool = True, axes: str = "axis") -> str:
    """Attention with a learned sink as gpt-oss spells it: its largest score is taken off first."""
    step = "high = ReduceMax(all, last) less = Sub(all, high)" if shifted else ""
    text = SINK.replace("{shifted}", step).replace("{softmax}", "less" if shifted else "all")
    return text.replace("{axes}", axes)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("axes", ["axis", "last"])
def test_a_sink_becomes_a_key_of_zeros_that_only_takes_weight(shifted: bool, axes: str) -> None:  # noqa: FBT001
    text = sink(shifted=shifted, axes=axes)
    outcome = run(text, **PLACES)
    check(outcome)
    assert outcome.ops.count("Pad") == 2
    assert outcome.attributes("Attention")["scale"] == pytest.approx(0.5)
    strong = {"sinks": np.array([40.0, -40.0], np.float32).reshape(1, 2, 1, 1)}
    assert outcome.worst_error_at(2, 9, **strong) < 1e-5
    hidden = np.full((2, 1, 9, 9), LOWEST, np.float32)
    assert outcome.worst_error_at(2, 9, bias=hidden) < 1e-5


def test_weights_without_the_first_key_instead_of_the_sink_are_left_alone() -> None:
    text = sink().replace("Slice(w, first, last, axis)", "Slice(w, one, huge, axis)")
    outcome = run(text, **PLACES)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
