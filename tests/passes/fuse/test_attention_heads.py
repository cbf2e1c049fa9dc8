from typing import Any

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, names_read, run_passes

MERGE = "t = Transpose<perm=[0,2,1,3]>(a) y = Reshape(t, merge)"


def graph(attention: str = "a = Attention<scale=0.3>(qh, kh, vh)", merge: str = MERGE, more: str = "") -> str:
    heads = " ".join(
        f"{name}4 = Reshape({name}, split_{name}) {name}h = Transpose<perm=[0,2,1,3]>({name}4)" for name in "qkv"
    )
    tokens = ", ".join(f"float[batch,sequence,{name.upper()}] {name}" for name in "qkv")
    return f"g ({tokens}{more}) => (float y) {{ {heads} {attention} {merge} }}"


def run(
    text: str,
    *steps: str,
    widths: tuple[int, int, int] = (8, 8, 8),
    heads: tuple[int, int, int] = (2, 2, 2),
    opset: int = 23,
    **more: Array,
) -> Outcome:
    weights: dict[str, Array] = {"merge": np.array([0, 0, -1]), **more}
    for name, width, count in zip("qkv", widths, heads, strict=True):
        text = text.replace(f"sequence,{name.upper()}]", f"sequence,{width}]")
        weights.setdefault(f"split_{name}", np.array([0, 0, count, width // count]))
    return run_passes(text, *(steps or ("fuse-attention-heads",)), weights=weights, opset=opset)


def test_lets_the_operator_split_and_merge() -> None:
    outcome = run(graph(), "fuse-attention-heads", "fuse-attention-heads")
    assert outcome.ops == ["Attention"]
    assert outcome.attributes("Attention") == {"scale": pytest.approx(0.3), "q_num_heads": 2, "kv_num_heads": 2}
    assert names_read(outcome.model.graph.node(0)) == ["q", "k", "v"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5
    assert outcome.worst_error_at(3, 2) < 1e-5


def test_hands_the_mask_and_the_attributes_on() -> None:
    attention = "a = Attention<scale=0.3, is_causal=1>(qh, kh, vh, mask)"
    outcome = run(graph(attention, more=", float[batch,1,sequence,sequence] mask"))
    assert outcome.ops == ["Attention"]
    assert outcome.attributes("Attention")["is_causal"] == 1
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_values_may_have_another_width_and_queries_more_heads() -> None:
    outcome = run(graph(), widths=(16, 8, 12), heads=(4, 2, 2))
    assert outcome.ops == ["Attention"]
    found = outcome.attributes("Attention")
    assert (found["q_num_heads"], found["kv_num_heads"]) == (4, 2)
    assert outcome.worst_error() < 1e-5


HELD_BACK = {
    "q": "q is not cut into heads along its last axis",
    "v": "v is not cut into heads along its last axis",
}


@pytest.mark.parametrize("name", HELD_BACK)
def test_holds_back_when_tokens_and_heads_are_mixed(name: str) -> None:
    """A split of [batch, sequence, 8] into [sequence, batch, 2, 4] has the same number of elements."""
    text = graph().replace(
        f"float[batch,sequence,{name.upper()}] {name}", f"float[sequence,batch,{name.upper()}] {name}"
    )
    turned = text.replace(f"Reshape({name}, split_{name})", f"Reshape({name}r, split_{name})").replace(
        "{ ", f"{{ flat_{name} = Reshape({name}, flat) {name}r = Reshape(flat_{name}, halves) ", 1
    )
    shapes = {"flat": [0, -1], "halves": [0, -1, 4], f"split_{name}": [0, -1, 2, 4]}
    more: dict[str, Any] = {constant: np.array(shape) for constant, shape in shapes.items()}
    outcome = run(
        turned.replace(f"float[sequence,batch,{name.upper()}]", f"float[batch,sequence,{name.upper()}]"),
        **more,
    )
    assert outcome.reasons == [HELD_BACK[name]]
    assert outcome.worst_error() == 0


def test_holds_back_when_the_heads_stay_apart() -> None:
    outcome = run(graph(merge=MERGE), merge=np.array([0, 0, 2, 2, 2]))
    assert outcome.reasons == ["the heads are not merged into tokens"]


def test_holds_back_when_a_cache_is_written() -> None:
    text = graph("a, past_k, past_v = Attention<scale=0.3>(qh, kh, vh)").replace("(float y)", "(float y, float past_k)")
    outcome = run(text)
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]


def test_another_transpose_is_no_split() -> None:
    outcome = run(
        graph().replace("vh = Transpose<perm=[0,2,1,3]>(v4)", "vn = Neg(v4) vh = Transpose<perm=[0,2,1,3]>(vn)")
    )
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])


@pytest.mark.parametrize(("split", "merge"), [(0, 0), (-1, -1), (0, -1)])
def test_a_length_that_the_data_says_is_copied_or_inferred(split: int, merge: int) -> None:
    heads = " ".join(f"{n}4 = Reshape({n}, cut) {n}h = Transpose<perm=[0,2,1,3]>({n}4)" for n in "qkv")
    body = f"q = Compress<axis=1>(x, keep) k = Neg(q) v = Abs(q) {heads} a = Attention(qh, kh, vh) {MERGE}"
    text = f"g (float[batch,sequence,8] x, bool[sequence] keep) => (float y) {{ {body} }}"
    weights: dict[str, Array] = {"cut": np.array([0, split, 2, 4]), "merge": np.array([0, merge, 8])}
    outcome = run_passes(text, "fuse-attention-heads", weights=weights)
    assert outcome.entry.applied == 1
    assert outcome.worst_error_at(2, 9) < 1e-5


@pytest.mark.parametrize("cut", [(-1, 3, 2, 4), (2, -1, 2, 4)])
def test_a_length_that_is_cut_anew_is_not_known_to_stay(cut: tuple[int, ...]) -> None:
    heads = " ".join(f"{n}4 = Reshape({n}, cut) {n}h = Transpose<perm=[0,2,1,3]>({n}4)" for n in "qkv")
    body = f"q = Compress<axis=1>(x, keep) k = Neg(q) v = Abs(q) {heads} a = Attention(qh, kh, vh) {MERGE}"
    text = f"g (float[2,6,8] x, bool[6] keep) => (float y) {{ {body} }}"
    weights: dict[str, Array] = {"cut": np.array(cut), "merge": np.array([0, -1, 8])}
    keep = [np.array([1, 0, 1, 0, 0, 1], bool), np.ones(6, bool), np.array([1, 1, 1, 0, 0, 0], bool)]
    outcome = run_passes(text, "fuse-attention-heads", weights=weights, feeds={"keep": keep})
    assert outcome.reasons == ["q is not cut into heads along its last axis"]


def test_a_merge_into_a_computed_shape() -> None:
    shape = "s = Shape<start=1, end=2>(q) m = Concat<axis=0>(nought, s, wide)"
    outcome = run(graph(merge=f"{shape} {MERGE.replace('merge', 'm')}"), nought=np.array([0]), wide=np.array([8]))
    assert outcome.entry.applied == 1
    assert outcome.worst_error_at(2, 3) < 1e-5
