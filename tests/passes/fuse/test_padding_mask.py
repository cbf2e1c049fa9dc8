"""A mask over padded keys is found in every spelling, and what is no mask stays.

Covers: passes/words/masks.py
"""

import re

import numpy as np
import pytest

from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

LOWEST = float(np.finfo(np.float32).min)
WEIGHTS = {
    "zero": np.array(0),
    "step": np.array(1),
    "three": np.array(3),
    "four": np.array(4),
    "sixty_four": np.array(64),
    "one": np.array([1]),
    "nothing": np.array([0]),
    "last": np.array([-1]),
    "first": np.array([0]),
    "middle": np.array([1, 2]),
    "columns": np.array([0, 1, 2]),
    "rows": np.array([1, 2, 3]),
    "column": np.array([1]),
    "end": np.array([2**62]),
    "float_zero": np.array(0, np.float32),
    "float_one": np.array(1, np.float32),
    "lowest": np.array(LOWEST, np.float32),
    "minus_inf": np.array(-np.inf, np.float32),
    "ten_thousand": np.array(-10000, np.float32),
    "minus_one": np.array(-1, np.float32),
    "no": np.array(False),  # noqa: FBT003 - an ONNX constant
}
SIZES = "b = Shape<start=0, end=1>(m) s = Shape<start=1, end=2>(m) shape = Concat<axis=0>(b, one, s, s)"
BOOLEANS = "bool_m = Cast<to=9>(m) u = Unsqueeze(bool_m, middle)"
FLOATS = "float_m = Cast<to=1>(m) u = Unsqueeze(float_m, middle)"
POSITIONS = "n = Squeeze(s) p = Range(zero, n, step) keys = Unsqueeze(p, first) queries = Unsqueeze(p, column)"

DISTANCE = f"{POSITIONS} d = Sub(queries, keys) distance = Abs(d)"
SPELLINGS = {
    "two Unsqueezes of booleans": (
        "c = Cast<to=9>(m) d = Unsqueeze(c, one) u = Unsqueeze(d, one) mask = Expand(u, shape)"
    ),
    "not equal to zero": (
        "k = Cast<to=7>(m) z = Equal(k, zero) c = Not(z) u = Unsqueeze(c, middle) mask = Expand(u, shape)"
    ),
    "expanded with And": f"{BOOLEANS} yes = Expand(u, shape) same = And(yes, u) mask = And(same, yes)",
    "Where of zero and -inf": f"{BOOLEANS} w = Where(u, float_zero, minus_inf) mask = Expand(w, shape)",
    "(1 - m) * -10000": f"{FLOATS} i = Sub(float_one, u) a = Mul(i, ten_thousand) mask = Expand(a, shape)",
    "(1 - m) * lowest": f"{FLOATS} i = Sub(float_one, u) a = Mul(i, lowest) mask = Expand(a, shape)",
    "masked_fill of the expanded inverse": (
        f"{FLOATS} e = Expand(u, shape) i = Sub(float_one, e) out = Cast<to=9>(i) mask = Where(out, lowest, i)"
    ),
    "torch dynamo with GatherND": (
        f"bool_m = Cast<to=9>(m) {POSITIONS} nb = Squeeze(b) pb = Range(zero, nb, step)"
        " bi = Unsqueeze(pb, rows) ki = Unsqueeze(p, columns) be = Expand(bi, shape) ke = Expand(ki, shape)"
        " bu = Unsqueeze(be, last) ku = Unsqueeze(ke, last) index = Concat<axis=-1>(bu, ku)"
        " gathered = GatherND(bool_m, index) exists = GreaterOrEqual(ki, zero) mask = And(exists, gathered)"
    ),
    "dynamo's additive form": (
        f"bool_m = Cast<to=9>(m) {POSITIONS} near = GreaterOrEqual(keys, zero) u = Unsqueeze(bool_m, middle)"
        " both = And(near, u) e = Expand(both, shape) mask = Where(e, float_zero, lowest)"
    ),
}


def attention(mask: str, kind: str = "int64[batch,sequence]", more: str = "") -> str:
    text = f"""
    g (float[batch,2,sequence,4] q, {kind} m{more}) => (float[batch,2,sequence,4] y) {{
      {SIZES}
      {mask}
      y = Attention<scale=0.5>(q, q, q, mask)
    }}"""
    return re.sub(r"\bm\b", "key_mask", text)


def run(text: str, *steps: str) -> Outcome:
    steps = steps or ("fuse-padding-mask",)
    return run_passes(text, *steps, weights={name: array for name, array in WEIGHTS.items() if name in text})


FOR_FLOATS = {  # a half, 2 and -1 are not 0 there, and a row of zeros sees nothing
    name: SPELLINGS[name]
    for name in (
        *("two Unsqueezes of booleans", "expanded with And", "Where of zero and -inf"),
        *("torch dynamo with GatherND", "dynamo's additive form"),
    )
}
NOT_FOR_FLOATS = {name: mask for name, mask in SPELLINGS.items() if name not in FOR_FLOATS}
KINDS = [(kind, mask) for kind in ("int64", "int32", "bool") for mask in SPELLINGS.values()]
KINDS += [("float", mask) for mask in FOR_FLOATS.values()]


@pytest.mark.parametrize(("kind", "mask"), KINDS)
def test_recognises_a_padding_mask_however_it_is_spelled(mask: str, kind: str) -> None:
    outcome = run(attention(mask, f"{kind}[batch,sequence]"), "fuse-padding-mask", "fuse-padding-mask", "remove-unused")
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    # to floats the operator gives zeros where a row has no key, before and after
    added = ["Where"] if kind != "float" and ("ten_thousand" in mask or "lowest" in mask) else []
    assert outcome.ops == ["Cast", "Shape", "Shape", "Concat", "Unsqueeze", "Expand", *added, "Attention"]
    assert outcome.attributes("Attention") == {"scale": 0.5}
    assert outcome.entries[1].refused[0].reason == "the mask is canonical"
    assert outcome.worst_error() < 2e-6
    for batch, sequence in ((1, 1), (2, 70)):
        assert outcome.worst_error_at(batch, sequence) < 2e-6


@pytest.mark.parametrize("size", [1.0, 300.0, 1e6])
@pytest.mark.parametrize("far", [-1e4, -1e9, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("make", ["Identity", "Tanh"])
def test_hidden_keys_weigh_what_they_weighed_at_scores_of_any_size(make: str, far: float, size: float) -> None:
    """The number is added as it was, but for finfo.min, with which the operator gives zeros where a row has no key."""
    text = attention(f"{FLOATS} i = Sub(float_one, u) a = Mul(i, far) mask = Expand(a, shape)")
    text = text.replace("4] q,", "4] raw,").replace("y = Attention", f"q = {make}(raw) y = Attention")
    weights = {name: array for name, array in {**WEIGHTS, "far": np.array(far, np.float32)}.items() if name in text}
    outcome = run_passes(text, "fuse-padding-mask", "remove-unused", weights=weights)
    assert (outcome.entries[0].applied, outcome.rolled_back) == (1, [])
    assert outcome.constant("Where", 2) == pytest.approx(max(far, -1e30))
    raw = (np.random.default_rng(2).standard_normal((3, 2, 9, 4)) * size).astype(np.float32)
    mask = np.tril(np.ones((9, 9), np.int64))[[3, 5, 8]]
    feeds = outcome.feeds_at(3, 9, raw=raw, key_mask=mask)
    before, after = (GraphRunner(model).run(feeds)[0]["y"] for model in (outcome.original, outcome.model))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("mask", FOR_FLOATS.values(), ids=FOR_FLOATS.keys())
def test_floats_that_become_flags_may_be_any(mask: str) -> None:
    outcome = run(attention(mask, "float[batch,sequence]"))
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    generator = np.random.default_rng(3)
    for given in (generator.choice([0.0, 0.5, 2.0, -1.0, 1.0], (3, 6)), np.zeros((3, 6)), np.full((3, 6), 0.3)):
        assert outcome.worst_error_at(3, 6, key_mask=given.astype(np.float32)) < 2e-6


@pytest.mark.parametrize("mask", NOT_FOR_FLOATS.values(), ids=NOT_FOR_FLOATS.keys())
def test_floats_that_are_counted_in_are_no_flags(mask: str) -> None:
    """A half in (1 - m) * -10000 hides its key, and one key alone with it is not hidden at all."""
    outcome = run(attention(mask, "float[batch,sequence]"))
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.reasons[0].startswith("not a padding mask")
    assert "floats that are not 0 and 1" in outcome.reasons[0]


FREE_KINDS = ("float", "int64", "int32", "bool")


def odd_masks(kind: str) -> list[Array]:
    """What nobody forbids: other numbers than 0 and 1, and rows that see nothing."""
    generator = np.random.default_rng(3)
    pools = {"float": np.array([0.0, 0.5, 2.0, -1.0, 1.0]), "bool": np.array([0, 1])}
    pool = pools.get(kind, np.array([0, 1, 2, -1, 7]))
    given = (generator.choice(pool, (3, 6)), np.zeros((3, 6)), np.ones((3, 6)))
    return [array.astype({"float": np.float32}.get(kind, kind)) for array in given]


@pytest.mark.parametrize("kind", FREE_KINDS)
@pytest.mark.parametrize("far", [-1e4, -1e30])
def test_a_row_that_sees_nothing_keeps_its_answer(far: float, kind: str) -> None:
    """The operator would give zeros where -1e30 for each key gives the mean, and -10000 what the scores say."""
    text = attention(f"{BOOLEANS} w = Where(u, float_zero, far) mask = Expand(w, shape)", f"{kind}[batch,sequence]")
    weights = {name: array for name, array in {**WEIGHTS, "far": np.array(far, np.float32)}.items() if name in text}
    steps = ("fuse-padding-mask", "fuse-padding-mask", "remove-unused")
    outcome = run_passes(text, *steps, weights=weights, free=["key_mask"])
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    assert outcome.entries[1].refused[0].reason == "the mask is canonical"
    assert outcome.rolled_back == []
    assert outcome.ops == ["Cast", "Shape", "Shape", "Concat", "Unsqueeze", "Expand", "Where", "Attention"]
    for mask in odd_masks(kind):
        assert outcome.worst_error_at(3, 6, key_mask=mask) < 2e-6


@pytest.mark.parametrize("kind", ["int64", "int32"])
@pytest.mark.parametrize("mask", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_integers_of_a_file_that_is_not_our_export_may_be_any(mask: str, kind: str) -> None:
    outcome = run_passes(
        attention(mask, f"{kind}[batch,sequence]"),
        "fuse-padding-mask",
        weights={name: array for name, array in WEIGHTS.items() if name in mask or name in SIZES + mask},
        free=["key_mask"],
    )
    flags = mask in FOR_FLOATS.values() or "Equal(k, zero)" in mask
    assert (outcome.entry.applied, outcome.rolled_back) == (int(flags), [])
    assert flags or "integers that are not 0 and 1" in outcome.reasons[0]
    for given in odd_masks(kind):
        assert outcome.worst_error_at(3, 6, key_mask=given) < 2e-6


def test_two_layers_with_one_mask_both_get_the_canonical_one() -> None:
    text = (
        attention(SPELLINGS["(1 - m) * lowest"])
        .replace("y = ", "h = ")
        .replace("mask)\n", "mask)\n y = Attention(h, h, h, mask)\n")
    )
    outcome = run(text, "fuse-padding-mask", "merge-initializers", "merge-equal-nodes", "remove-unused")
    assert outcome.entries[0].applied == 2
    assert (outcome.ops.count("Expand"), outcome.ops.count("Where")) == (1, 1)
    assert outcome.worst_error() < 4e-6


OTHER_KEYS = {
    "a window of 4": f"{BOOLEANS} {DISTANCE} near = Less(distance, four) mask = And(u, near)",
    "a window of 64": f"{BOOLEANS} {DISTANCE} near = LessOrEqual(distance, sixty_four) mask = And(u, near)",
    "a window of 64, one side at a time": (
        f"{BOOLEANS} {POSITIONS} low = Sub(queries, sixty_four) high = Add(queries, sixty_four)"
        " after = GreaterOrEqual(keys, low) before = LessOrEqual(keys, high)"
        " near = And(after, before) mask = And(u, near)"
    ),
    "chunks of 64": (
        f"{BOOLEANS} {POSITIONS} kc = Div(keys, sixty_four) qc = Div(queries, sixty_four) same = Equal(kc, qc)"
        " mask = And(u, same)"
    ),
    "one key ignored": (
        f"bool_m = Cast<to=9>(m) {POSITIONS} third = Equal(keys, three) others = Not(third) both = And(bool_m, others)"
        " u = Unsqueeze(both, middle) mask = Expand(u, shape)"
    ),
    "inverted": "bool_m = Cast<to=9>(m) i = Not(bool_m) u = Unsqueeze(i, middle) mask = Expand(u, shape)",
    "shifted by one": (
        "bool_m = Cast<to=9>(m) cut = Slice(bool_m, one, end, one) head = Slice(bool_m, nothing, one, one)"
        " moved = Concat<axis=1>(cut, head) u = Unsqueeze(moved, middle) mask = Expand(u, shape)"
    ),
    "pairs of tokens": (
        "bool_m = Cast<to=9>(m) row = Unsqueeze(bool_m, middle) down = Unsqueeze(bool_m, one)"
        " tall = Unsqueeze(down, last) mask = And(row, tall)"
    ),
}


@pytest.mark.parametrize("mask", OTHER_KEYS.values(), ids=OTHER_KEYS.keys())
def test_a_mask_that_allows_other_keys_stays(mask: str) -> None:
    outcome = run(attention(mask))
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
    assert len(outcome.reasons) == 1
    assert outcome.reasons[0].startswith("not a padding mask: it allows other keys (batch ")


def test_a_causal_mask_is_named() -> None:
    outcome = run(attention(f"{BOOLEANS} {POSITIONS} past = LessOrEqual(keys, queries) mask = And(u, past)"))
    assert outcome.reasons == ["the mask is causal"]


def test_a_window_that_a_stored_table_makes_is_seen_at_the_length_of_the_table() -> None:
    """A band of 64 around the diagonal looks like no band at 37 keys."""
    text = attention(
        f"{BOOLEANS} size = Concat<axis=0>(s, s) part = Slice(table, corner, size, axes) mask = And(u, part)"
    )
    distance = np.abs(np.arange(160)[:, None] - np.arange(160)[None])
    weights = {**WEIGHTS, "table": (distance <= 64)[None, None], "corner": np.array([0, 0]), "axes": np.array([2, 3])}
    used = {name: array for name, array in weights.items() if name in text}
    outcome = run_passes(text, "fuse-padding-mask", weights=used)
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["not a padding mask: it allows other keys (batch 1, sequence 160, no padding)"]


def test_a_window_too_large_to_probe_holds_back() -> None:
    text = attention(OTHER_KEYS["a window of 64"])
    used = {name: array for name, array in WEIGHTS.items() if name in text}
    outcome = run_passes(text, "fuse-padding-mask", weights={**used, "sixty_four": np.array(4096)})
    assert outcome.entry.applied == 0
    assert "asks for a probe of 4098 keys" in outcome.reasons[0]


ADDED = {
    "masked keys keep a weight": f"{FLOATS} i = Sub(float_one, u) a = Mul(i, minus_one) mask = Expand(a, shape)",
    "it adds something to allowed keys": (
        f"{FLOATS} i = Sub(float_one, u) a = Mul(i, lowest) c = Add(a, minus_one) mask = Expand(c, shape)"
    ),
}


@pytest.mark.parametrize("reason", ADDED)
def test_a_bias_on_the_scores_stays(reason: str) -> None:
    outcome = run(attention(ADDED[reason]))
    assert outcome.entry.applied == 0
    assert len(outcome.reasons) == 1
    assert outcome.reasons[0].startswith(f"not a padding mask: {reason}")


def test_a_causal_mask_depends_on_no_input() -> None:
    outcome = run(attention(f"{POSITIONS} past = LessOrEqual(keys, queries) mask = Unsqueeze(past, nothing)"))
    assert outcome.reasons == ["the mask depends on no input"]


def test_a_mask_of_two_inputs_stays() -> None:
    mask = f"{BOOLEANS} other = Cast<to=9>(k) v = Unsqueeze(other, middle) w = And(u, v) mask = Expand(w, shape)"
    outcome = run(attention(mask, more=", int64[batch,sequence] k"))
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["the mask depends on key_mask, k"]


def test_a_mask_with_its_own_queries_stays() -> None:
    outcome = run(attention("bools = Cast<to=9>(m) mask = Unsqueeze(bools, one)", "int64[batch,sequence,sequence]"))
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["key_mask is not [batch, keys]"]


def test_a_mask_that_takes_very_many_nodes_is_not_probed() -> None:
    chain = " ".join(f"c{index + 1} = Not(c{index})" for index in range(202))
    outcome = run(attention(f"c0 = Cast<to=9>(m) {chain} u = Unsqueeze(c202, middle) mask = Expand(u, shape)"))
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["more than 200 nodes compute the mask"]


def test_a_mask_that_only_measures_another_input_is_one_of_the_first() -> None:
    """The sizes may come from the token ids."""
    mask = f"{BOOLEANS} mask = Expand(u, shape2)"
    sizes = "s2 = Shape<start=1, end=2>(ids) b2 = Shape<start=0, end=1>(ids) shape2 = Concat<axis=0>(b2, one, s2, s2)"
    additive = mask.replace("mask = Expand(u, shape2)", "w = Where(u, float_zero, lowest) mask = Expand(w, shape2)")
    outcome = run(attention(f"{sizes} {additive}", more=", int64[batch,sequence] ids"))
    assert outcome.entry.applied == 1
    assert outcome.worst_error_at(2, 3) < 2e-6


def test_the_mask_has_a_row_for_each_query_where_keys_are_others() -> None:
    """Pooling by one learned query; a decoder that looks across has queries of its own too."""
    text = """
    g (float[2,1,8] q, float[batch,sequence,8] x, int64[batch,sequence] m) => (float y) {
      s = Shape<start=0, end=1>(m)
      c = Cast<to=9>(m)
      d = Unsqueeze(c, one)
      mask = Unsqueeze(d, one)
      rows = Concat<axis=0>(s, tail)
      e = Expand(q0, rows)
      y = Attention<q_num_heads=2, kv_num_heads=2>(e, x, x, mask)
    }""".replace("float[2,1,8] q, ", "")
    weights = {"one": np.array([1]), "tail": np.array([1, 8]), "q0": np.ones((1, 1, 8), np.float32)}
    outcome = run_passes(text, "fuse-padding-mask", weights=weights)
    assert outcome.entry.applied == 1
    assert outcome.worst_error() == 0


def test_a_cache_that_is_an_output_holds_back() -> None:
    text = attention(SPELLINGS["(1 - m) * lowest"]).replace("y) {", "y, float[batch,2,sequence,4] cached) {")
    outcome = run(text.replace("y = Attention", "y, cached = Attention"))
    assert outcome.entry.applied == 0


def test_holds_back_below_opset_23() -> None:
    """Attention itself is of opset 23; the contrib one is another operator."""
    text = """
    g (float[batch,sequence,4] x, int64[batch,sequence] m) => (float[batch,sequence,4] y) {
      c = Cast<to=6>(m)
      y = com.microsoft.Attention<num_heads=1>(x, w, b, c)
    }"""
    weights = {"w": np.ones((4, 12), np.float32), "b": np.ones(12, np.float32)}
    outcome = run_passes(text, "fuse-padding-mask", weights=weights)
    assert (outcome.entry.applied, outcome.reasons) == (0, [])


def test_a_table_behind_a_shape_does_not_hold_a_padding_mask_back() -> None:
    """TorchScript asks the embedding for its length; 30,000 rows of a vocabulary are no window of 30,000 keys."""
    text = """
    g (float[batch,2,sequence,8] q, int64[batch,sequence] ids, int64[batch,sequence] mask) => (y)
    <int64 zero = {0}, int64 one = {1}, int64[2] front = {1, 2}, int64[3] column = {0, 1, 3}> {
      word = Gather(table, ids)
      size = Shape(word)
      length = Gather(size, one)
      places = Range(zero, length, one)
      rows = Unsqueeze(places, column)
      real = GreaterOrEqual(rows, zero)
      keep = Cast<to = 9>(mask)
      wide = Unsqueeze(keep, front)
      allowed = And(real, wide)
      y = Attention(q, q, q, allowed)
    }"""
    table = np.zeros((30000, 4), np.float32)
    outcome = run_passes(text, "fuse-padding-mask", weights={"table": table})
    assert outcome.entry.applied == 1
    assert "And" not in outcome.ops
