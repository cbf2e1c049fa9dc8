"""Attention with a cache goes into GroupQueryAttention, rotary tables and padding with it, or stays and says why.

Covers: passes/lower/contrib/packing.py, passes/words/layout.py
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.graph import constant
from onnxopt.graph.cache import CONTEXT_KEY, complete
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import PADDINGS, Array, Padding
from tests.support.cached import (
    ADDED,
    CAUSAL,
    LEARNED,
    LONGEST,
    TABLES,
    VOCABULARY,
    WINDOW,
    Decoder,
    DecoderFeeder,
    Lowered,
    lower,
)
from tests.support.rules import names_read

PLAIN = Decoder()
LAST_SCALAR = {"place": np.array(-1)}
# what `replace` changes of a decoder
ALL_ROWS: dict[str, Any] = {"end": "rows = Identity(x)", "outputs": f"float[batch,sequence,{VOCABULARY}] logits"}
WINDOW_SIZE = 5  # that of Decoder.constants
FEWER_ANGLES = {"frequencies": (0.5 ** np.arange(8)).astype(np.float32)}
POSITIONS_GIVEN: dict[str, Any] = {
    "positions": "positions = Identity(position_ids)",
    "more": ", int64[batch,sequence] position_ids",
}


def run(decoder: Decoder = PLAIN, *, context: int = LONGEST) -> Lowered:
    return lower(decoder.model(context=context), "lower-cached-attention", "lower-cached-attention")


def sizes(batch: int, sequence: int, past: int = 0) -> dict[str, int]:
    return complete({"batch": batch, "sequence": sequence, "past_sequence": past})


ROTARY_INSIDE = {
    "halves": PLAIN,
    "pairs": replace(PLAIN, turn="interleaved=1"),
    "a part of each head": replace(PLAIN, size=32, turn="rotary_embedding_dim=16", weights=FEWER_ANGLES),
    "a head each": replace(PLAIN, heads=(4, 4)),
    "one head for all": replace(PLAIN, heads=(4, 1)),
    "a softcap": replace(PLAIN, attention="scale=0.3, softcap=3.0"),
    "the scale of the operator": replace(PLAIN, attention="softcap=0.0"),
    "an additive mask": replace(PLAIN, mask=ADDED),
    "a window": replace(PLAIN, mask=WINDOW),
    "logits of every position": replace(PLAIN, **ALL_ROWS),
    "the last position by Slice from behind": replace(PLAIN, end="rows = Slice(x, minus_one, end, minus_two)",
                                                      weights={"minus_two": np.array([-2])}),
    "the last position by Gather": replace(PLAIN, end="rows = Gather<axis=1>(x, minus_one)"),
    "the last position by Gather, without its axis": replace(
        PLAIN, end="rows = Gather<axis=1>(x, place)", outputs=f"float[batch,{VOCABULARY}] logits", weights=LAST_SCALAR
    ),
}  # fmt: skip


@pytest.mark.parametrize("decoder", ROTARY_INSIDE.values(), ids=ROTARY_INSIDE.keys())
def test_rotary_embedding_and_cache_go_inside(decoder: Decoder) -> None:
    found = run(decoder)
    assert found.rolled_back == []
    assert found.applied == [2, 0]
    assert found.packed
    assert {"Attention", "RotaryEmbedding", "Cos"}.isdisjoint(found.ops)
    for node in found.nodes("GroupQueryAttention"):
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        assert (attributes["num_heads"], attributes["kv_num_heads"]) == decoder.heads
        assert attributes["do_rotary"] == 1
        assert attributes["rotary_interleaved"] == int("interleaved" in (decoder.turn or ""))
        assert attributes.get("local_window_size") == (WINDOW_SIZE if decoder.mask == WINDOW else None)
        assert attributes.get("softcap") == (3.0 if "softcap=3" in decoder.attention else None)
        assert attributes.get("scale") == (pytest.approx(0.3) if "scale" in decoder.attention else None)
        tables = [constant(node.inputs[index]) for index in (7, 8)]
        assert [len(table) for table in tables if table is not None] == [LONGEST, LONGEST]
    found.prove()


def test_two_layers_share_tables_and_lengths() -> None:
    first, second = run().nodes("GroupQueryAttention")
    assert list(first.inputs[5:]) == list(second.inputs[5:])


def test_names_and_order_of_inputs_and_outputs_stay() -> None:
    found = run()
    signature = found.loaded.signature
    assert [value.name for value in found.model.graph.inputs] == [spec.name for spec in signature.inputs]
    assert [value.name for value in found.model.graph.outputs] == [spec.name for spec in signature.outputs]


@pytest.mark.parametrize("mask", [CAUSAL, ADDED, WINDOW], ids=["booleans", "added", "a window"])
def test_a_row_that_is_all_padding_stays_finite_and_disturbs_nobody(mask: str) -> None:
    found = run(replace(PLAIN, mask=mask))
    feeds = found.loaded.feeder.make(sizes(3, 9), "left")
    whole = found.run(feeds)
    feeds["attention_mask"][1] = 0
    emptied = found.run(feeds)
    for name, array in emptied.items():
        assert np.isfinite(array).all(), name
        assert np.abs(array[[0, 2]] - whole[name][[0, 2]]).max() < 1e-6, name


@pytest.mark.parametrize("heads", [4, 1], ids=["a slope for each head", "one for all"])
def test_alibi_goes_inside_as_a_bias_by_place(heads: int) -> None:
    """What a key gets grows with its place among the real tokens, so padding anywhere gives the same answer."""
    slopes = (0.5 ** np.arange(1, heads + 1)).astype(np.float32).reshape(1, heads, 1, 1)
    mask = ADDED.replace("mask = ", "hidden = ") + (
        " numbers = CumSum(attention_mask, axis) turned = Unsqueeze(numbers, middle) far = Cast<to=1>(turned)"
        " grown = Mul(far, slopes) mask = Add(hidden, grown)"
    )
    weights = {"slopes": slopes, "axis": np.array(1), "middle": np.array([1, 2])}
    found = run(replace(PLAIN, mask=mask, weights=weights))
    assert (found.applied, found.rolled_back) == ([2, 0], [])
    first, second = found.nodes("GroupQueryAttention")
    assert first.inputs[10] is second.inputs[10]
    found.prove()


@pytest.mark.parametrize("window", [1, 2, 20, 130])
def test_a_window_shorter_than_the_text_is_kept(window: int) -> None:
    """Short prompts look right with any window. It counts tokens; padding between them is not compared."""
    found = run(replace(PLAIN, mask=WINDOW, weights={"window": np.array(window)}))
    assert (found.applied, found.rolled_back) == ([2, 0], [])
    found.prove([(sizes(2, 150), kind) for kind in ("none", "right", "left")])
    found.prove([(sizes(1, 1, 150), "none"), (sizes(1, 6, 140), "none")])
    without = found.model.clone()
    for node in without.graph:
        node.attributes.pop("local_window_size", None)
    feeds = found.loaded.feeder.make(sizes(1, 150))
    kept, lost = found.run(feeds)["logits"], GraphRunner(without).run(feeds)[0]["logits"]
    assert np.abs(kept - lost).max() > 1e-3


def test_windows_may_differ_between_layers() -> None:
    masks = f"{WINDOW.replace('mask = ', 'narrow = ')} mask = And(real, causal)"
    second = ("a1, present_1_key, present_1_value = Attention<scale=0.3>(q1h, k1h, v1t, mask", "narrow")
    edit = (second[0], second[0].replace("mask", second[1]))
    found = run(replace(PLAIN, mask=masks, edits=(edit,)))
    assert found.applied == [2, 0]
    windows = [node.attributes.get("local_window_size") for node in found.nodes("GroupQueryAttention")]
    assert [window.value if window is not None else None for window in windows] == [None, WINDOW_SIZE]
    found.prove([(sizes(2, 150), "left"), (sizes(1, 1, 150), "none")])


OUTSIDE: dict[str, tuple[Decoder, int]] = {
    "positions are an input": (replace(PLAIN, **POSITIONS_GIVEN), LONGEST),
    "the context is not known": (PLAIN, 0),
    "the tables would be very large": (PLAIN, 2**23),
    "too few angles": (
        replace(PLAIN, turn="rotary_embedding_dim=8", weights={"frequencies": FEWER_ANGLES["frequencies"][:4]}),
        LONGEST,
    ),
    "tables that depend on the length": (
        replace(
            PLAIN,
            start=f"{TABLES.replace('wide, frequencies', 'scaled, frequencies')} x0 = Identity(words)".replace(
                "angles =", "size = Cast<to=1>(total) scaled = Div(wide, size) angles ="
            ),
        ),
        LONGEST,
    ),
    "tables that depend on the last position": (
        replace(
            PLAIN,
            start=f"{TABLES.replace('wide, frequencies', 'scaled, frequencies')} x0 = Identity(words)".replace(
                "angles =", "top = ReduceMax(wide, one) high = Max(top, unit) scaled = Div(wide, high) angles ="
            ),
            weights={"unit": np.array(1, np.float32)},
        ),
        LONGEST,
    ),
    "stored tables that end before the context": (
        replace(PLAIN, start="cos = Gather(cosines, positions) sin = Gather(sines, positions) x0 = Identity(words)",
                weights={name: np.linspace(0, 1, 8 * LONGEST, dtype=np.float32).reshape(LONGEST, 8)
                         for name in ("cosines", "sines")}),
        LONGEST + 1,
    ),
    "queries and keys have tables of their own": (
        replace(
            PLAIN,
            start=f"{TABLES} cos2 = Neg(cos) x0 = Identity(words)",
            edits=(("k0h = RotaryEmbedding(k0t, cos", "k0h = RotaryEmbedding(k0t, cos2"),
                   ("k1h = RotaryEmbedding(k1t, cos", "k1h = RotaryEmbedding(k1t, cos2")),
        ),
        LONGEST,
    ),
    "the embedding looks positions up itself": (
        replace(PLAIN, start="x0 = Identity(words)",
                edits=tuple((f"{name}{n}t, cos, sin)", f"{name}{n}t, cosines, sines, positions)")
                            for name in "qk" for n in range(2)),
                weights={name: np.linspace(0, 1, 8 * LONGEST, dtype=np.float32).reshape(LONGEST, 8)
                         for name in ("cosines", "sines")}),
        LONGEST,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("decoder", "context"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_rotary_embedding_stays_outside(decoder: Decoder, context: int) -> None:
    found = run(decoder, context=context)
    assert found.rolled_back == []
    assert found.applied == [2, 0]
    assert found.ops.count("RotaryEmbedding") == 4
    for node in found.nodes("GroupQueryAttention"):
        assert node.attributes["do_rotary"].value == 0
        assert "rotary_interleaved" not in node.attributes
        assert len(node.inputs) == 7
    found.prove()


def test_stored_tables_as_long_as_the_context_go_inside() -> None:
    angles = np.arange(LONGEST)[:, None] * 0.5 ** np.arange(8)
    weights = {"cosines": np.cos(angles).astype(np.float32), "sines": np.sin(angles).astype(np.float32)}
    start = "cos = Gather(cosines, positions) sin = Gather(sines, positions) x0 = Identity(words)"
    found = run(replace(PLAIN, start=start, weights=weights))
    assert found.applied == [2, 0]
    table = constant(found.nodes("GroupQueryAttention")[0].inputs[7])
    assert table is not None
    assert np.array_equal(table, weights["cosines"])
    found.prove()


def test_layers_may_have_tables_of_their_own() -> None:
    """Gemma 3 turns faster where it looks less far."""
    own = f"{TABLES} angles2 = Mul(angles, half) cos2 = Cos(angles2) sin2 = Sin(angles2) x0 = Identity(words)"
    edits = tuple((f"{name}1t, cos, sin)", f"{name}1t, cos2, sin2)") for name in "qk")
    found = run(replace(PLAIN, start=own, edits=edits, weights={"half": np.array(0.5, np.float32)}))
    assert found.applied == [2, 0]
    first, second = found.nodes("GroupQueryAttention")
    assert first.inputs[7] is not second.inputs[7]
    found.prove()


@pytest.mark.parametrize("form", [{}, ALL_ROWS, POSITIONS_GIVEN], ids=["last", "all", "positions given"])
def test_learned_positions_are_packed_with_the_tokens(form: dict[str, Any]) -> None:
    found = run(replace(PLAIN, start=LEARNED, turn=None, **form))
    assert found.applied == [2, 0]
    assert [node.attributes["do_rotary"].value for node in found.nodes("GroupQueryAttention")] == [0, 0]
    found.prove()


def test_every_output_by_position_is_put_back_in_its_place() -> None:
    """Logits are unpacked before the head, which makes them wide; a state that is seen itself as it is."""
    form = {**ALL_ROWS, "outputs": f"{ALL_ROWS['outputs']}, float[batch,sequence,64] state"}
    found = run(replace(PLAIN, tail="state = Neg(x1)", **form))
    assert found.applied == [2, 0]
    gathers = found.nodes("GatherND")
    assert len(gathers) == 2
    assert names_read(found.nodes("MatMul")[-1])[1] == "head"
    made_by = {value.name: node.op_type for node in found.model.graph for value in node.outputs}
    assert made_by[names_read(found.nodes("MatMul")[-1])[0]] in ("GatherND", "Identity")
    found.prove()


@pytest.mark.parametrize("padding", PADDINGS)
@given(batch=st.integers(1, 5), length=st.integers(1, 24), seed=st.integers(0, 2**16))
@settings(max_examples=6, deadline=None)
def test_a_packed_cache_holds_the_real_tokens_in_front(
    packed_and_aligned: tuple[GraphRunner, GraphRunner, DecoderFeeder],
    padding: Padding,
    batch: int,
    length: int,
    seed: int,
) -> None:
    """Three tokens behind any prompt: both caches hold the same keys, and both graphs say the same."""
    packed, aligned, feeder = packed_and_aligned
    ours = theirs = feeder.make(sizes(batch, length), padding, seed)
    for step in range(4):
        found, expected = packed.run(ours)[0], aligned.run(theirs)[0]
        mask = theirs["attention_mask"] != 0
        for name, array in expected.items():
            if name == "logits":
                last = mask[:, -1]
                assert np.abs(found[name][last] - array[last]).max(initial=0.0) < 2e-5
                continue
            for row in range(batch):
                real = array[row][:, mask[row]]
                assert np.abs(found[name][row][:, : real.shape[1]] - real).max() < 2e-5
        fresh = feeder.make(sizes(batch, 1, length + step), "none", seed + step)
        fresh["attention_mask"] = np.concatenate([theirs["attention_mask"], np.ones((batch, 1), np.int64)], axis=1)
        ours, theirs = ({**fresh, **_past(made)} for made in (found, expected))


def _past(made: dict[str, Array]) -> dict[str, Array]:
    return {
        name.replace("present", "past_key_values"): array for name, array in made.items() if name.startswith("present")
    }


@pytest.fixture(scope="module")
def packed_and_aligned() -> tuple[GraphRunner, GraphRunner, DecoderFeeder]:
    original = PLAIN.model()
    found = run()
    return GraphRunner(found.model), GraphRunner(original), DecoderFeeder(found.loaded.signature.inputs)


EVERY_KEY = CAUSAL.replace("mask = And(real", "later = Not(causal) any = Or(causal, later) other = And(real").replace(
    "(real, causal)", "(real, any)"
)
REFUSED: dict[str, Decoder] = {
    "the mask is not causal": replace(PLAIN, mask=EVERY_KEY.replace("other =", "mask =")),
    "the mask is causal by attribute too": replace(PLAIN, attention="scale=0.3, is_causal=1"),
    "the mask lets a prefix be seen": replace(
        PLAIN,
        mask=CAUSAL.replace("mask = And", "early = Less(keys, window) seen_by = Or(causal, early) mask = And").replace(
            "And(real, causal)", "And(real, seen_by)"
        ),
    ),
    "one layer has another mask": replace(
        PLAIN,
        mask=f"{EVERY_KEY} mask = And(real, causal)",
        edits=(("(q1h, k1h, v1t, mask", "(q1h, k1h, v1t, other"),),
    ),
    "a layer has no mask": replace(PLAIN, edits=(("(q1h, k1h, v1t, mask", "(q1h, k1h, v1t, "),)),
    "heads of an odd size": replace(PLAIN, size=12),
    "values are of another size": replace(PLAIN, value_size=8),
    "keys are wider than values": replace(PLAIN, value_size=24),
    "the cache is of float16": replace(PLAIN, kind="float16", turn=None),
    "the attention reads another mask": replace(
        PLAIN,
        mask=CAUSAL.replace("Cast<to=9>(attention_mask)", "Cast<to=9>(token_mask)"),
        more=", int64[batch,total_sequence] token_mask",
    ),
    "there are no ids": replace(
        PLAIN,
        edits=(
            ("int64[batch,sequence] input_ids", "float[batch,sequence,64] embeddings"),
            ("Shape<start=1, end=2>(input_ids)", "Shape<start=1, end=2>(embeddings)"),
            ("Gather(words_table, input_ids)", "Identity(embeddings)"),
        ),
    ),
    "the mask's numbers leave": replace(
        PLAIN,
        outputs=f"float[batch,1,{VOCABULARY}] logits, float counted",
        tail="m = Cast<to=1>(attention_mask) counted = ReduceSum<keepdims=0>(m, one)",
    ),
    "the mask itself leaves": replace(
        PLAIN, outputs=f"float[batch,1,{VOCABULARY}] logits, bool[batch,1,sequence,total_sequence] mask"
    ),
    "the mask is multiplied into the states": replace(
        PLAIN,
        start=f"{TABLES} m = Cast<to=1>(attention_mask) part = Slice(m, past, total, one) u = Unsqueeze(part, last)"
        " x0 = Mul(words, u)",
    ),
}


ELSEWHERE = "the padding mask reaches something else than positions and masks of attentions"
SHAPES = "the kernel takes one size for all heads, not "
REASONS = {
    "the mask is not causal": "the mask is not causal",
    "the mask is causal by attribute too": "the attention has a mask and is causal besides",
    "the mask lets a prefix be seen": "not a padding mask: it allows other keys",
    "one layer has another mask": "the mask is not causal",
    "a layer has no mask": "the attention has no mask",
    "heads of an odd size": "the kernel takes heads of a multiple of 8, not 12",
    "values are of another size": SHAPES,
    "keys are wider than values": SHAPES,
    "the cache is of float16": "queries, keys and values are not float32 [batch, heads, sequence, size]",
    "the attention reads another mask": "the mask is not causal",
    "the mask's numbers leave": ELSEWHERE,
    "the mask itself leaves": ELSEWHERE,
    "the mask is multiplied into the states": ELSEWHERE,
}


@pytest.mark.parametrize(("name", "decoder"), REFUSED.items(), ids=REFUSED.keys())
def test_all_layers_stay_where_one_cannot_be_lowered(name: str, decoder: Decoder) -> None:
    found = run(decoder)
    assert (found.applied, found.rolled_back, found.packed) == ([0, 0], [], False)
    assert "GroupQueryAttention" not in found.ops
    assert found.ops.count("Attention") == 2
    assert [reason.startswith(REASONS[name]) for reason in found.reasons] == [True] * (name in REASONS)


@pytest.mark.parametrize(("wider", "lowered"), [(1.0, True), (300.0, False)])
def test_a_near_number_hides_keys_for_good_where_no_score_comes_near(wider: float, *, lowered: bool) -> None:
    """Words are looked up, so what a query can be follows from the weights."""
    plain = replace(PLAIN, layers=1, mask=ADDED)
    near = {"lowest": np.array(-1e4, np.float32), "q0w": plain.constants()["q0w"] * np.float32(wider)}
    found = run(replace(plain, weights=near))
    assert (found.applied[0], found.rolled_back) == (int(lowered), [])
    assert found.packed is lowered
    assert lowered or found.reasons[0].startswith("hidden keys get -10000, which scores may come near")


def test_positions_that_count_padding_cannot_be_packed() -> None:
    """Places in the row, as GPT-2 counts them when nobody gives positions."""
    places = "start = Unsqueeze(seen, row) positions = Expand(start, both)"
    mask = f"{CAUSAL} rows_of = Shape<start=0, end=1>(input_ids) both = Concat<axis=0>(rows_of, one)"
    found = run(replace(PLAIN, positions=places, mask=mask, weights={"row": np.array([0])}))
    assert found.applied == [0, 0]
    assert not found.packed
    assert found.ops.count("Attention") == 2
    found.prove()


def test_a_graph_without_a_cache_is_left_alone() -> None:
    decoder = replace(PLAIN, joined=True)
    found = run(decoder)
    assert (found.applied, found.rolled_back) == ([0, 0], [])


def test_the_context_is_no_part_of_the_layout() -> None:
    found = run()
    assert found.model.graph.metadata_props[CONTEXT_KEY] == str(LONGEST)
