"""Channels that are zero everywhere go, wherever a graph carries them; those that are seen stay.

Covers: graph/channels/entries.py, graph/channels/groups.py, graph/channels/moves.py, graph/channels/sizes.py,
graph/channels/walk.py
"""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.graph import constant
from onnxopt.graph.channels.moves import aligned
from onnxopt.graph.channels.walk import find_channels
from onnxopt.proof.prepare import prepare
from onnxopt.spec import Array
from tests.support.rules import Outcome, parse, run_passes

GENERATOR = np.random.default_rng(17)
NAME = "drop-dead-channels"


def weights(dead: dict[str, tuple[int, list[int]]] | None = None, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Random weights; `dead` sets entries of an axis to zero."""
    made = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, (axis, entries) in (dead or {}).items():
        np.moveaxis(made[name], axis, 0)[entries] = 0.0
    return made


def run(text: str, given: dict[str, Array], opset: int = 23) -> Outcome:
    outcome = run_passes(text, NAME, NAME, "remove-unused", weights=given, opset=opset)
    assert outcome.rolled_back == []
    assert outcome.entries[1].applied == 0, "a second run changes nothing"
    assert outcome.worst_error() < 1e-4
    assert outcome.worst_error_at(2, 5) < 1e-4
    return outcome


def shapes_of(outcome: Outcome) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by the name they had."""
    found = outcome.model.graph.initializers.values()
    arrays = {str(one.name).split("/")[0]: constant(one) for one in found}
    return {name: array.shape for name, array in arrays.items() if array is not None}


TOKENS = "g (float[batch,sequence,8] x) => (float[batch,sequence,8] y) {"


def test_a_feed_forward_block_becomes_narrower() -> None:
    given = weights({"w2": (0, [0, 3, 11])}, w1=(8, 12), b1=(12,), w2=(12, 8), b2=(8,))
    outcome = run(TOKENS + "p = MatMul(x, w1) q = Add(p, b1) g = Gelu(q) r = MatMul(g, w2) y = Add(r, b2) }", given)
    assert shapes_of(outcome) == {"w1": (8, 9), "b1": (9,), "w2": (9, 8), "b2": (8,)}
    assert outcome.entries[0].bytes_saved == 3 * 17 * 4


def test_the_sizes_of_what_became_narrower_are_known() -> None:
    given = weights({"w2": (0, [0, 3, 11])}, w1=(8, 12), b1=(12,), w2=(12, 8), b2=(8,))
    text = TOKENS + "p = MatMul(x, w1) q = Add(p, b1) g = Gelu(q) r = MatMul(g, w2) y = Add(r, b2) }"
    outcome = run_passes(text, NAME, "lower-linear", weights=given)
    assert outcome.entries[1].applied == 2, outcome.entries[1].refused


def test_a_gated_block_loses_the_channel_on_both_sides() -> None:
    given = weights({"down": (0, [1, 2])}, gate=(8, 12), up=(8, 12), down=(12, 8))
    text = "a = MatMul(x, gate) s = Sigmoid(a) t = Mul(a, s) u = MatMul(x, up) m = Mul(t, u) y = MatMul(m, down) }"
    assert shapes_of(run(TOKENS + text, given)) == {"gate": (8, 10), "up": (8, 10), "down": (10, 8)}


def test_a_packed_gate_is_split_where_it_is_now() -> None:
    given = weights({"down": (0, [0, 5])}, both=(8, 24), down=(12, 8))
    text = "p = MatMul(x, both) a, b = Split<axis = -1, num_outputs = 2>(p) m = Mul(a, b) y = MatMul(m, down) }"
    assert shapes_of(run(TOKENS + text, given))["both"] == (8, 20)


@pytest.mark.parametrize(("query", "key"), [(4, 4), (4, 2)], ids=["each its own", "two share a key"])
def test_heads_go_with_those_that_share_their_key(query: int, key: int) -> None:
    group = query // key
    gone = list(range(2 * group))  # the entries of the first key head's query heads
    given = weights({"o": (0, gone)}, q=(8, 2 * query), k=(8, 2 * key), v=(8, 2 * key), o=(2 * query, 8))
    text = (
        "a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) "
        f"d = Attention<q_num_heads = {query}, kv_num_heads = {key}>(a, b, c) y = MatMul(d, o) }}"
    )
    outcome = run(TOKENS + text, given)
    assert shapes_of(outcome)["q"] == (8, 2 * (query - group))
    assert shapes_of(outcome)["k"] == (8, 2 * (key - 1))
    assert outcome.attributes("Attention")["kv_num_heads"] == key - 1
    assert outcome.attributes("Attention")["q_num_heads"] == query - group


def test_half_a_head_stays() -> None:
    given = weights({"o": (0, [0])}, q=(8, 8), k=(8, 8), v=(8, 8), o=(8, 8))
    text = (
        "a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) "
        "d = Attention<q_num_heads = 4, kv_num_heads = 4>(a, b, c) y = MatMul(d, o) }"
    )
    outcome = run_passes(TOKENS + text, NAME, weights=given)
    assert outcome.entry.applied == 0


def test_heads_behind_a_reshape_and_a_transpose() -> None:
    given = weights({"o": (0, [2, 3])}, q=(8, 8), k=(8, 8), v=(8, 8), o=(8, 8))
    given |= {"split": np.array([0, 0, 4, 2]), "join": np.array([0, 0, 8])}
    heads = "".join(
        f"{n} = MatMul(x, {w}) {n}r = Reshape({n}, split) {n}t = Transpose<perm = [0, 2, 1, 3]>({n}r) "
        for n, w in (("a", "q"), ("b", "k"), ("c", "v"))
    )
    text = (
        heads
        + "d = Attention(at, bt, ct) e = Transpose<perm = [0, 2, 1, 3]>(d) f = Reshape(e, join) y = MatMul(f, o) }"
    )
    outcome = run(TOKENS + text, given)
    assert shapes_of(outcome)["v"] == (8, 6)


IMAGES = "g (float[batch,3,9,9] x) => (float[batch,5,9,9] y) {"


def test_channels_of_convolutions_go_through_a_residual() -> None:
    dead = {"w3": (1, [1, 4]), "w2": (1, [1, 4])}  # both that read the residual stream
    given = weights(dead, w1=(6, 3, 1, 1), b1=(6,), w2=(6, 6, 3, 3), b2=(6,), w3=(5, 6, 1, 1))
    text = (
        "a = Conv(x, w1, b1) b = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(b, w2, b2) d = Add(c, b) e = Relu(d) "
        "y = Conv(e, w3) }"
    )
    found = shapes_of(run(IMAGES + text, given))
    assert found == {"w1": (4, 3, 1, 1), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (5, 4, 1, 1)}


def test_a_channel_that_one_of_two_readers_needs_stays() -> None:
    given = weights({"w3": (1, [1])}, w1=(6, 3, 1, 1), w2=(6, 6, 1, 1), w3=(5, 6, 1, 1))
    text = "b = Conv(x, w1) c = Conv(b, w2) d = Add(c, b) y = Conv(d, w3) }"
    assert run_passes(IMAGES + text, NAME, weights=given).entry.applied == 0


def test_a_depthwise_convolution_and_a_norm_follow() -> None:
    given = weights({"w3": (1, [0, 5])}, w1=(6, 3, 1, 1), w2=(6, 1, 3, 3), w3=(5, 6, 1, 1), g=(6,), b=(6,), m=(6,))
    given["v"] = GENERATOR.uniform(0.5, 2, 6).astype(np.float32)
    text = (
        "a = Conv(x, w1) n = BatchNormalization(a, g, b, m, v) c = Conv<pads = [1, 1, 1, 1], group = 6>(n, w2) "
        "y = Conv(c, w3) }"
    )
    outcome = run(IMAGES + text, given)
    assert shapes_of(outcome)["w2"] == (4, 1, 3, 3)
    assert shapes_of(outcome)["v"] == (4,)


def test_channels_keep_their_places_in_a_concatenation() -> None:
    given = weights({"w3": (1, [1, 5, 6])}, w1=(4, 3, 1, 1), w2=(4, 3, 1, 1), w3=(5, 8, 1, 1))
    text = "a = Conv(x, w1) b = Conv(x, w2) c = Concat<axis = 1>(a, b) y = Conv(c, w3) }"
    found = shapes_of(run(IMAGES + text, given))
    assert (found["w1"][0], found["w2"][0], found["w3"][1]) == (3, 2, 5)


def test_flattened_channels_lose_all_their_places() -> None:
    given = weights({"w2": (0, [4, 5, 6, 7])}, w1=(3, 3, 8, 8), w2=(12, 5))
    text = "g (float[batch,3,9,9] x) => (float[batch,5] y) { a = Conv(x, w1) f = Flatten(a) y = Gemm(f, w2) }"
    found = shapes_of(run(text, given))
    assert (found["w1"][0], found["w2"][0]) == (2, 8)


@pytest.mark.parametrize(
    "body",
    [
        "g = Softmax(p) y = MatMul(g, w2)",
        "g = LayerNormalization(p, gain) y = MatMul(g, w2)",
        "t = Transpose<perm = [0, 2, 1]>(p) g = MatMul(p, t) h = ReduceSum(g, last) k = Mul(p, h) y = MatMul(k, w2)",
        "g = CumSum(p, place) y = MatMul(g, w2)",
    ],
)
def test_what_mixes_channels_holds_them(body: str) -> None:
    given = weights({"w2": (0, [0])}, w1=(8, 12), w2=(12, 8), gain=(12,))
    given |= {"last": np.array([-1]), "place": np.array(2)}
    given = {name: one for name, one in given.items() if name == "w1" or name in body}
    assert run_passes(f"{TOKENS} p = MatMul(x, w1) {body} }}", NAME, weights=given).entry.applied == 0


def test_channels_of_an_output_stay() -> None:
    text = "g (float[batch,sequence,8] x) => (float[batch,sequence,12] p, float[batch,sequence,8] y) {"
    given = weights({"w2": (0, [0])}, w1=(8, 12), w2=(12, 8))
    assert run_passes(text + " p = MatMul(x, w1) y = MatMul(p, w2) }", NAME, weights=given).entry.applied == 0


def test_a_weight_that_two_layers_share_is_cut_for_one() -> None:
    given = weights({"w2": (0, [0, 1])}, w1=(8, 12), w2=(12, 8), w3=(12, 8))
    text = "a = MatMul(x, w1) b = MatMul(a, w2) c = MatMul(b, w1) d = MatMul(c, w3) y = Add(b, d) }"
    outcome = run(TOKENS + text, given)
    sizes = [node.inputs[1].shape for node in outcome.model.graph if node.op_type == "MatMul" and node.inputs[1]]
    assert [list(shape or ()) for shape in sizes] == [[8, 10], [10, 8], [8, 12], [12, 8]]


def test_one_channel_stays_when_nothing_is_read() -> None:
    given = weights({"w2": (0, list(range(12)))}, w1=(8, 12), w2=(12, 8))
    assert shapes_of(run(TOKENS + "a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }", given))["w1"] == (8, 1)


def test_groups_know_their_kind() -> None:
    given = weights(w1=(8, 12), w2=(12, 8), w3=(8, 6), w4=(6, 3), w5=(3, 8))
    text = "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = MatMul(c, w3) e = MatMul(d, w4) y = MatMul(e, w5) }"
    model = parse(TOKENS + text, given)
    prepare(model)
    kinds = {tuple(slot.value.name for slot in group.slots): group.kind for group in find_channels(model).groups()}
    assert kinds["w1", "w2"] == "ffn"
    assert kinds["w3", "w4"] == "channels"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (("b", "s", 12), ("b", "s", 3, 4), [((2,), (2, 3)), ((1,), (1,)), ((0,), (0,))][:1]),
        (("b*s", 12), ("b", "s", 12), [((1,), (2,))]),
        (("b", 3, 2, 2), ("b", 12), [((1, 2, 3), (1,))]),
        (("b", None), ("b", 4), []),
    ],
)
def test_axes_of_a_reshape_are_told_apart(
    old: tuple[int | str | None, ...], new: tuple[int | str | None, ...], expected: list[object]
) -> None:
    assert aligned(old, new)[: len(expected)] == expected
