from dataclasses import replace

import numpy as np
import pytest

from tests.support.cached import ADDED, LEARNED, VOCABULARY, WINDOW, Decoder, Lowered, cached, lower

JOINED = Decoder(joined=True)


def run(decoder: Decoder) -> Lowered:
    return lower(decoder.model(), "fuse-cache", "fuse-cache", generating=False)


def test_the_operator_appends_in_every_layer() -> None:
    found = run(JOINED)
    assert found.rolled_back == []
    assert found.applied == [2, 0]
    assert "Concat" not in found.ops
    for layer, node in enumerate(found.nodes("Attention")):
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        assert [value.name for value in node.inputs[3:] if value is not None] == ["mask", *past]
        assert [value.name for value in node.outputs[1:]] == [f"present.{layer}.key", f"present.{layer}.value"]
    assert [value.name for value in found.model.graph.outputs] == [spec.name for spec in found.loaded.signature.outputs]
    found.prove()


FORMS = {
    "one head for all": replace(JOINED, heads=(4, 1)),
    "a head each": replace(JOINED, heads=(2, 2)),
    "values of another size": replace(JOINED, value_size=8),
    "an additive mask": replace(JOINED, mask=ADDED),
    "a window": replace(JOINED, mask=WINDOW),
    "a softcap": replace(JOINED, attention="scale=0.3, softcap=3.0"),
    "learned positions": replace(JOINED, start=LEARNED, turn=None),
}


@pytest.mark.parametrize("decoder", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_attention_keeps_its_answer(decoder: Decoder) -> None:
    found = run(decoder)
    assert found.rolled_back == []
    assert found.applied == [2, 0]
    node = found.nodes("Attention")[0]
    assert set(node.attributes) == ({"scale", "softcap"} if "softcap" in decoder.attention else {"scale"})
    found.prove()


def test_without_a_mask_every_key_is_seen() -> None:
    found = run(replace(JOINED, edits=((", mask)", ")"),)))
    assert found.applied == [2, 0]
    assert [(len(node.inputs), node.inputs[3]) for node in found.nodes("Attention")] == [(6, None), (6, None)]
    found.prove()


def test_two_layers_that_share_a_cache_append_to_it_once() -> None:
    """The last layers of Gemma 3n attend to the keys of an earlier one."""
    shared = ("(q1h, present_1_key, present_1_value", "(q1h, present_0_key, present_0_value")
    found = run(replace(JOINED, edits=(shared,)))
    assert found.rolled_back == []
    assert found.applied == [1, 0]
    first, second = found.nodes("Attention")
    assert list(second.inputs[1:3]) == list(first.outputs[1:])
    assert len(second.inputs) == 4
    assert found.ops.count("Concat") == 2  # what the second layer gives although nobody reads it
    found.prove()


def test_who_reads_the_present_reads_it_from_the_attention() -> None:
    """Also a reader that stands ahead of the attention."""
    reads = ("a1 = Attention", "early = ReduceSum<keepdims=0>(present_1_key) a1 = Attention")
    outputs = f"float[batch,1,{VOCABULARY}] logits, float both"
    found = run(replace(JOINED, edits=(reads,), tail="both = Neg(early)", outputs=outputs))
    assert found.rolled_back == []
    assert found.applied == [2, 0]
    assert "Concat" not in found.ops
    found.prove()


ALONE = """
g (float[batch,2,sequence,8] q, float[batch,2,past_sequence,8] past_0_key, float[batch,2,past_sequence,8] past_0_value,
   int64[batch,sequence] input_ids, int64[batch,total_sequence] attention_mask,
   float[batch,1,sequence,total_sequence] bias)
  => (float y, float[batch,2,total_sequence,8] present_0_key, float[batch,2,total_sequence,8] present_0_value) {
  k = Neg(q)
  v = Abs(q)
  changed = Neg(past_0_key)
  present_0_key = Concat<axis=2>(past_0_key, k)
  present_0_value = Concat<axis=2>(past_0_value, v)
  y = Attention<scale=0.3>(q, present_0_key, present_0_value, bias)
}"""
LONG_MASK = (
    "t = Shape<start=2, end=3>(present_0_key) s = Shape<start=2, end=3>(q) shape = Concat<axis=0>(s, t)"
    " nothing = ConstantOfShape(shape)"
)
WIDER = (
    "before = Shape<start=2, end=3>(past_0_key) pads = Concat<axis=0>(zeros, before, zeros_behind)"
    " wider = Pad(bias, pads)"
)
HELD_BACK = {
    "causal by attribute": [("<scale=0.3>", "<scale=0.3, is_causal=1>")],
    "queries that are measured against the present": [
        (" y = ", " n = Shape<start=2, end=3>(present_0_value) f = Cast<to=1>(n) scaled = Mul(q, f) y = "),
        ("(q, present", "(scaled, present"),
    ],
    "a mask as long as the present": [(" y = ", f" {LONG_MASK} y = "), ("value, bias)", "value, nothing)")],
    "values made of the joined keys": [
        ("v = Abs(q)", ""),
        ("present_0_value = ", "top = ReduceMax(present_0_key, axes) v = Add(q, top) present_0_value = "),
    ],
    "the past is changed first": [("(past_0_key, k)", "(changed, k)")],
    "new keys in front": [("(past_0_key, k)", "(k, past_0_key)")],
    "three parts": [("(past_0_key, k)", "(past_0_key, k, none)")],
    "joined along the heads": [
        ("<axis=2>", "<axis=1>"),
        ("past_sequence", "sequence"),
        ("2,total_sequence,8]", "4,sequence,8]"),
        (", bias)", ")"),
        (" y = ", " both = Concat<axis=1>(q, q) y = "),
        ("(q, present", "(both, present"),
    ],
    "keys are values": [("present_0_value, bias", "present_0_key, bias")],
    "only keys grow": [(" y = ", " other = Neg(present_0_value) y = "), ("present_0_value, bias", "other, bias")],
    "only values grow": [(" y = ", " other = Neg(present_0_key) y = "), ("(q, present_0_key", "(q, other")],
    "it has further outputs already": [(" y = ", " y, more_keys, more_values = ")],
    "it has a past already": [
        (" y = ", f" {WIDER} y, more_keys, more_values = "),
        ("present_0_value, bias)", "present_0_value, wider, past_0_key, past_0_value)"),
    ],
    "heads that are counted": [("<scale=0.3>", "<scale=0.3, q_num_heads=2, kv_num_heads=2>")],
}


def alone(edits: list[tuple[str, str]], opset: int = 23) -> Lowered:
    text = ALONE
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    weights = {
        "none": np.zeros((1, 2, 0, 8), np.float32),
        "axes": np.array([2]),
        "zeros": np.zeros(3, np.int64),
        "zeros_behind": np.zeros(4, np.int64),
        "tokens": np.array([0, 0, -1]),
    }
    return lower(cached(text, weights, opset=opset), "fuse-cache", generating=False)


def test_the_plain_graph_of_these_tests_is_rewritten() -> None:
    found = alone([])
    assert (found.applied, found.rolled_back) == ([1], [])
    found.prove([])


@pytest.mark.parametrize("edits", HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back(edits: list[tuple[str, str]]) -> None:
    found = alone(edits)
    assert (found.applied, found.rolled_back) == ([0], [])


def test_below_opset_23_there_is_no_operator() -> None:
    found = alone([("y = Attention<scale=0.3>(q, present_0_key, present_0_value, bias)", "y = Neg(present_0_key)")], 22)
    assert (found.applied, found.rolled_back) == ([0], [])
