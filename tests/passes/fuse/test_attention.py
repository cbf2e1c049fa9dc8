from __future__ import annotations

import numpy as np
import pytest

from tests.support.attention import (
    ALONE,
    FILLS,
    GUARD,
    HEADS,
    MASKS,
    PLAIN,
    SCORES,
    SQUASH,
    SQUASHED,
    WEIGHTS,
    run,
    spelled,
)
from tests.support.rules import Constant, names_read, run_passes


@pytest.mark.parametrize("tail", [PLAIN, GUARD], ids=["plain", "guarded"])
@pytest.mark.parametrize(("scores", "scale"), SCORES.values(), ids=SCORES.keys())
def test_fires_wherever_the_scale_is(scores: str, scale: float, tail: str) -> None:
    outcome = run(spelled(scores, tail=tail), "fuse-attention", "fuse-attention")
    assert outcome.ops == ["Attention"]
    assert outcome.attributes("Attention") == {"scale": pytest.approx(scale)}
    assert [entry.applied for entry in outcome.entries[1:]] == [1, 0]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


@pytest.mark.parametrize("tail", [PLAIN, GUARD], ids=["plain", "guarded"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_fires_with_every_shape_of_mask(mask: str, tail: str) -> None:
    outcome = run(spelled(SCORES["scale on q"][0], mask=mask, tail=tail))
    assert outcome.entry.applied == 1
    assert outcome.rolled_back == []
    assert outcome.ops[-1] == "Attention"
    assert ("Expand" in outcome.ops) == any(
        one in mask for one in (",1,1,", "[1,s", "[s") if "sequence,sequence" not in mask
    )
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5
    assert outcome.worst_error_at(4, 3) < 1e-5


def test_takes_keys_that_are_turned_from_tokens_in_one_step() -> None:
    outcome = run(spelled("kt = Transpose<perm=[0,2,3,1]>(k) s = MatMul(q, kt)", k="float[batch,sequence,2,4]"))
    assert outcome.ops == ["Transpose", "Attention"]
    assert list(outcome.attributes("Transpose")["perm"]) == [0, 2, 1, 3]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("spelling", ["Where(keep, m, fill)", "Where(hide, fill, m)"])
@pytest.mark.parametrize("bias", ["m = Identity(s)", "b = Gather(table, places) m = Add(s, b)"])
def test_takes_scores_that_are_written_over(spelling: str, fill: float, bias: str) -> None:
    mask = "keep = Unsqueeze(flags, middle) hide = Not(keep)"
    text = f"""
    g ({SQUASHED}, bool[batch,sequence] flags, int64[sequence,sequence] places) => (float y) {{
      {SQUASH} {SCORES["scale on q"][0]} {bias} {mask} f = {spelling} w = Softmax<axis=-1>(f) y = MatMul(w, v)
    }}"""
    weights: dict[str, Constant] = {"half": WEIGHTS["half"], "fill": np.array(fill, np.float32)}
    weights["middle"] = np.array([1, 2])
    if "table" in text:
        weights["table"] = np.array([0.5, -1.5], np.float32)
    outcome = run_passes(text, "remove-no-ops", "fuse-attention", "remove-unused", weights=weights)
    assert outcome.entries[1].applied == 1
    assert "Softmax" not in outcome.ops
    assert "Equal" not in outcome.ops
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5
    assert outcome.worst_error_at(4, 3) < 1e-5


MATRICES = "float[batch,sequence,4]"


@pytest.mark.parametrize("mask", ["", ", float[batch,sequence,sequence] mask", ", float[batch,1,sequence] mask"])
def test_takes_matrices_without_heads(mask: str) -> None:
    scores = "qs = Mul(q, half) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(qs, kt)"
    tail = "w = Softmax<axis=-1>(m) y = MatMul(w, v)"
    outcome = run(spelled(scores, mask=mask, tail=tail, q=MATRICES, k=MATRICES, v=MATRICES))
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    assert "Softmax" not in outcome.ops
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5
    assert outcome.worst_error_at(4, 3) < 1e-5


def test_takes_one_head_of_keys_and_values_for_all_queries() -> None:
    outcome = run(spelled(SCORES["scale on q"][0], k="float[batch,1,sequence,4]", v="float[batch,1,sequence,4]"))
    assert outcome.ops == ["Attention"]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("spelling", ["Where(keep, none, fill)", "Where(hide, fill, none)"])
def test_takes_a_chosen_number_that_is_added(spelling: str, fill: float) -> None:
    tail = f"hide = Not(keep) c = {spelling} f = Add(m, c) w = Softmax<axis=-1>(f) y = MatMul(w, v)"
    text = spelled(SCORES["scale on q"][0], tail=tail).replace("v) =>", "v, bool[batch,sequence] flags) =>")
    text = text.replace("hide = Not", "keep = Unsqueeze(flags, middle) hide = Not")
    weights: dict[str, Constant] = {"half": WEIGHTS["half"], "fill": np.array(fill, np.float32)}
    weights |= {"none": np.array(0, np.float32), "middle": np.array([1, 2])}
    outcome = run_passes(text, "remove-no-ops", "fuse-attention", weights=weights)
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    assert "Softmax" not in outcome.ops
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(4, 3) < 1e-5


@pytest.mark.parametrize("outer", ["f = Div(m, root)", "f = Mul(m, half)"])
def test_a_scale_behind_the_bias_scales_the_bias_too(outer: str) -> None:
    """T5-like biases that are divided with the scores, in DeBERTa."""
    tail = f"{outer} w = Softmax<axis=-1>(f) y = MatMul(w, v)"
    text = spelled(SCORES["scale on q"][0], mask=", float[1,2,sequence,sequence] bias", tail=tail)
    outcome = run(text.replace("s, mask", "s, bias"))
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    assert "Softmax" not in outcome.ops
    assert outcome.attributes("Attention") == {"scale": pytest.approx(0.25)}
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(4, 3) < 1e-5


def test_takes_keys_that_come_turned() -> None:
    outcome = run(spelled("kt = Neg(k) s = MatMul(q, kt)", k="float[batch,2,4,sequence]"))
    assert outcome.ops == ["Neg", "Transpose", "Attention"]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_takes_the_mask_on_either_side_of_the_sum() -> None:
    text = spelled(SCORES["no scale"][0], mask=MASKS["a mask of every row"]).replace("Add(s, mask)", "Add(mask, s)")
    outcome = run(text)
    assert outcome.ops == ["Equal", "Where", "ReduceMax", "Equal", "Where", "Attention"]
    assert outcome.worst_error() < 1e-5


def test_one_row_of_a_mask_reaches_every_query_of_another_length() -> None:
    text = spelled(SCORES["no scale"][0], mask=MASKS["a mask of one row"], q="float[batch,2,3,4]")
    outcome = run(text)
    assert outcome.entry.applied == 1
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(2, 5) < 1e-5


def test_values_may_be_wider_than_keys() -> None:
    outcome = run(spelled(SCORES["scale on keys"][0], v="float[batch,2,sequence,6]"))
    assert outcome.ops == ["Attention"]
    assert outcome.worst_error() < 1e-5


def test_keys_in_the_place_of_queries_keep_their_meaning() -> None:
    scores = "qt = Transpose<perm=[0,1,3,2]>(q) s = MatMul(k, qt)"
    outcome = run(spelled(scores))
    assert outcome.ops == ["Attention"]
    assert names_read(outcome.model.graph.node(0)) == ["k", "q", "v"]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(3, 9) < 1e-5


NO_MATCH = {
    "softmax over heads": spelled(SCORES["no scale"][0], tail="w = Softmax<axis=1>(m) y = MatMul(w, v)"),
    "a guard with another number": spelled(SCORES["no scale"][0], tail=GUARD.replace("zero", "half")),
    "values times weights": spelled(
        SCORES["no scale"][0], tail="w = Softmax<axis=-1>(m) vt = Transpose<perm=[0,1,3,2]>(v) y = MatMul(vt, w)"
    ),
}


@pytest.mark.parametrize("text", NO_MATCH.values(), ids=NO_MATCH.keys())
def test_does_not_take_for_attention_what_is_not(text: str) -> None:
    outcome = run(text)
    assert outcome.entry.applied == 0
    assert outcome.entry.refused == []
    assert "Softmax" in outcome.ops


HELD_BACK = {
    "heads without a batch": (
        spelled(SCORES["no scale"][0], q="float[2,sequence,4]"),
        "q, k and v are not [batch, heads, sequence, size]",
    ),
    "softmax over queries": (
        spelled(SCORES["no scale"][0], tail="w = Softmax<axis=2>(m) y = MatMul(w, v)"),
        "the weights of axis 2 sum to one, not of the keys",
    ),
    "one sentence of queries for all of keys": (
        spelled(SCORES["no scale"][0], q="float[1,1,sequence,4]"),
        "queries, keys and values have the batches",
    ),
    "as many heads as tokens": (
        spelled(
            SCORES["no scale"][0],
            q="float[batch,sequence,3,4]",
            k="float[batch,sequence,3,4]",
            v="float[batch,sequence,3,4]",
        ),
        "the number of heads is not known",
    ),
    "one head of values": (
        spelled(SCORES["no scale"][0], v="float[batch,1,sequence,4]"),
        "keys have 2 heads, values have 1",
    ),
    "one head of keys": (
        spelled(SCORES["no scale"][0], k="float[batch,1,sequence,4]"),
        "keys have 1 heads, values have 2",
    ),
    "matrices of one batch of keys": (
        spelled(
            "kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt)",
            tail="w = Softmax<axis=-1>(m) y = MatMul(w, v)",
            q="float[2,sequence,4]",
            k="float[1,sequence,4]",
            v="float[1,sequence,4]",
        ),
        "queries, keys and values have the batches",
    ),
    "a scale of more axes than heads": (
        spelled(SCORES["no scale"][0].replace("MatMul(q", "Mul(q, wide) s = MatMul(s1").replace("s = Mul", "s1 = Mul")),
        "a constant of shape [1, 1, 1, 1, 1] meets a value of rank 4",
    ),
    "a mask of more rows than queries": (
        spelled(SCORES["no scale"][0], mask=", float[batch,1,1,sequence] mask", **dict.fromkeys("qkv", ALONE)),
        "the mask has the batch batch, queries and values have 1",
    ),
    "a mask of more matrices than queries": (
        spelled(
            "kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt)",
            mask=", float[batch,sequence,sequence] mask",
            tail="w = Softmax<axis=-1>(m) y = MatMul(w, v)",
            **dict.fromkeys("qkv", "float[1,sequence,4]"),
        ),
        "the mask has the batch batch, queries and values have 1",
    ),
    "a bias per query": (
        spelled(SCORES["no scale"][0], mask=", float[batch,1,sequence,1] mask"),
        "the mask has one entry for all keys",
    ),
    "a bias that is one number": (
        spelled(SCORES["no scale"][0], mask=", float mask"),
        "the mask has one entry for all keys",
    ),
    "a row that is written over with a small number": (
        spelled(SCORES["no scale"][0], tail=f"f = Where(keep, m, half) {PLAIN.replace('(m)', '(f)')}").replace(
            "v) =>", "v, bool[batch,1,sequence,sequence] keep) =>"
        ),
        "masked scores become 0.5, which keeps them a weight",
    ),
    "a negative scale": (
        spelled(SCORES["scale on the product"][0].replace("half", "minus")),
        "the scores are scaled by -0.5; Attention takes a positive scale",
    ),
    "a scale of zero": (
        spelled(SCORES["scale on the product"][0].replace("half", "zero")),
        "the scores are scaled by 0.0; Attention takes a positive scale",
    ),
    "the weights are an output": (
        spelled(SCORES["no scale"][0]).replace("(float y)", "(float y, float w)"),
        "an inner value is also used elsewhere or is a graph output",
    ),
}


OTHERS: dict[str, Constant] = {"minus": np.float32(-0.5), "wide": np.full((1,) * 5, 0.5, np.float32)}


@pytest.mark.parametrize(("text", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(text: str, reason: str) -> None:
    weights = {name: array for name, array in {**WEIGHTS, **OTHERS}.items() if name in text}
    outcome = run_passes(text, "remove-no-ops", "fuse-attention", weights=weights)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
    assert len(outcome.reasons) == 1
    assert outcome.reasons[0].startswith(reason)


def test_holds_back_below_opset_23() -> None:
    outcome = run(spelled(SCORES["scale on q"][0]), opset=21)
    assert outcome.reasons == ["opset 21, needs 23"]


def test_a_scale_of_zero_on_queries_stays_in_front() -> None:
    outcome = run(spelled(SCORES["scale on q"][0].replace("half", "zero")))
    assert outcome.ops == ["Mul", "Attention"]
    assert outcome.attributes("Attention") == {"scale": 1.0}
    assert outcome.worst_error() < 1e-5


CUT = "q = Slice(rows, first, end, axis)"


@pytest.mark.parametrize(("first", "empty"), [(9, True), (-3, False)])
@pytest.mark.parametrize("mask", ["", ", float[batch,1,1,sequence] mask"])
def test_holds_back_where_there_may_be_no_queries(mask: str, first: int, *, empty: bool) -> None:
    """The kernel refuses an attention of no rows, at sizes at which the original answers with none."""
    text = spelled(f"{CUT} {SCORES['no scale'][0]}", mask=mask).replace(f"{HEADS} q", f"{HEADS} rows")
    weights = {"first": np.array([first]), "end": np.array([2**40]), "axis": np.array([2])}
    outcome = run_passes(text, "remove-no-ops", "fuse-attention", weights=weights, opset=23)
    assert outcome.rolled_back == []
    assert outcome.entry.applied == (0 if empty else 1)
    assert any("there may be no queries" in reason for reason in outcome.reasons) is empty
    for sequence in (1, 3, 9, 10):
        assert outcome.worst_error_at(2, sequence) < 1e-5


def test_holds_back_where_there_may_be_no_keys() -> None:
    text = spelled("k = Slice(rows, first, end, axis) v = Slice(more, first, end, axis) " + SCORES["no scale"][0])
    text = text.replace(f"{HEADS} k", f"{HEADS} rows").replace(f"{HEADS} v", f"{HEADS} more")
    weights = {"first": np.array([9]), "end": np.array([2**40]), "axis": np.array([2])}
    outcome = run_passes(text, "remove-no-ops", "fuse-attention", weights=weights, opset=23)
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert "there may be no queries or no keys" in outcome.reasons[0]
