import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(23)
SHAPES = {
    "w": (8, 8),
    "wq": (8, 8),
    "wk": (8, 8),
    "wv": (8, 8),
    "wo": (8, 8),
    "up": (8, 16),
    "down": (16, 8),
    "b": (8,),
    "wide": (16,),
    "gamma": (8,),
    "beta": (8,),
    "cosines": (140, 2),
    "sines": (140, 2),
}
WEIGHTS: dict[str, Array] = {
    name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()
}
PICKS = {
    "first": "y = Gather<axis = 1>(h, zero)",
    "last": "y = Gather<axis = 1>(h, minus)",
    "first, kept": "y = Gather<axis = 1>(h, first)",
    "two": "y = Gather<axis = -2>(h, both)",
    "slice of the first": "y = Slice(h, first, second, axis)",
    "slice of the last": "y = Slice(h, end, endless, axis)",
}


def run(
    body: str,
    pick: str = PICKS["first"],
    *,
    extra: str = "",
    outputs: str = "",
    opset: int = 23,
    x: str = "float[batch,sequence,8] x",
) -> Outcome:
    count = "2," if "both" in pick else "1," if "Slice" in pick or "first" in pick else ""
    text = f"""
    g ({x}{extra}) => (float[batch,{count}8] y{outputs})
    <int64 zero = {{0}}, int64 one = {{1}}, int64 minus = {{-1}}, int64[2] flat = {{-1, 8}}, int64[1] third = {{3}},
     int64[1] first = {{0}}, int64[1] second = {{1}}, int64[1] end = {{-1}},
     int64[2] both = {{0, -1}}, int64[1] endless = {{9223372036854775807}}, int64[1] axis = {{1}},
     int64[4] heads = {{0, 0, 2, 4}}, int64[3] tokens = {{0, 0, 8}}, int64[2] axes = {{1, 2}}, float half = {{0.5}}> {{
      {body}
      {pick}
    }}"""
    outcome = run_passes(text, "trim-rows", "trim-rows", weights=WEIGHTS, opset=opset)
    assert outcome.rolled_back == []
    assert outcome.entries[1].applied == 0
    return outcome


def rows_of(outcome: Outcome, *op_types: str) -> list[int]:
    """How many rows the operators of these types compute for one sentence of 9."""
    from onnxopt.probe.runners import GraphRunner

    values = [node.outputs[0] for node in outcome.model.graph if node.op_type in op_types]
    feeds: dict[str, Array] = {}
    for value in outcome.model.graph.inputs:
        sizes = {"batch": 1, "sequence": 9}
        shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape or ()]
        assert value.dtype is not None
        feeds[value.name or ""] = np.ones(shape, value.dtype.numpy())
    found = GraphRunner(outcome.model, values).run(feeds)[1]
    return [array.shape[1] for array in found.values()]


BLOCK = """
    u = MatMul(x, up)
    a = Gelu(u)
    d = MatMul(a, down)
    p = Add(d, b)
    s = Add(p, x)
    h = LayerNormalization(s, gamma, beta)"""


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS.keys())
def test_a_block_computes_only_what_is_picked(pick: str) -> None:
    outcome = run(BLOCK, pick)
    assert outcome.entries[0].applied == 6
    assert set(rows_of(outcome, "MatMul", "Gelu", "LayerNormalization")) == {2 if "both" in pick else 1}
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(3, 5) < 1e-5


QKV = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
OUT = "o = MatMul(c, wo) s = Add(o, x) h = LayerNormalization(s, gamma, beta)"
NUMBERS = "q_num_heads = 2, kv_num_heads = 2"


def test_only_the_queries_of_an_attention_are_trimmed() -> None:
    outcome = run(f"{QKV} c = Attention<{NUMBERS}>(q, k, v) {OUT}")
    assert outcome.entries[0].applied == 5
    assert sorted(rows_of(outcome, "MatMul")) == [1, 1, 9, 9]
    assert rows_of(outcome, "Attention", "LayerNormalization") == [1, 1]
    assert outcome.worst_error_at(3, 5) < 1e-5


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS.keys())
def test_the_mask_of_an_attention_is_picked_too(pick: str) -> None:
    body = f"""
    m = Cast<to = 9>(mask)
    bare = Unsqueeze(m, axes)
    queries = Shape<start = 1, end = 2>(x)
    batch = Shape<start = 0, end = 1>(x)
    shape = Concat<axis = 0>(batch, axis, queries, queries)
    full = Expand(bare, shape)
    {QKV}
    c = Attention<{NUMBERS}>(q, k, v, full)
    {OUT}"""
    outcome = run(body, pick, extra=", int64[batch,sequence] mask")
    assert outcome.entries[0].applied == 5
    assert ("Expand" in outcome.ops) == ("both" in pick)
    assert outcome.worst_error_at(3, 5) < 1e-5


@pytest.mark.parametrize("shape", ["batch,1,sequence,sequence", "1,2,sequence,sequence", "sequence,sequence"])
def test_a_computed_mask_of_any_rank_is_picked_too(shape: str) -> None:
    extra = f", float[{shape}] added"
    outcome = run(f"{QKV} c = Attention<{NUMBERS}>(q, k, v, added) {OUT}", extra=extra)
    assert outcome.entries[0].applied == 5
    assert outcome.worst_error_at(3, 5) < 1e-5


def test_the_last_query_of_a_causal_attention_sees_every_key() -> None:
    body = f"{QKV} c = Attention<{NUMBERS}, is_causal = 1>(q, k, v) {OUT}"
    for pick in ("last", "slice of the last"):
        outcome = run(body, PICKS[pick])
        assert outcome.entries[0].applied == 5
        assert "is_causal" not in outcome.attributes("Attention")
        assert outcome.worst_error_at(3, 5) < 1e-5


def test_another_query_of_a_causal_attention_is_picked_behind_it() -> None:
    outcome = run(f"{QKV} c = Attention<{NUMBERS}, is_causal = 1>(q, k, v) {OUT}")
    assert outcome.entries[0].applied == 3
    assert rows_of(outcome, "Attention") == [9]
    assert outcome.worst_error_at(3, 5) < 1e-5


SPLIT = " ".join(f"{n}r = Reshape({n}, heads) {n}t = Transpose<perm = [0, 2, 1, 3]>({n}r)" for n in ("q", "k", "v"))


def test_goes_through_heads_and_a_spelled_out_attention() -> None:
    operator = f"{QKV} {SPLIT} a = Attention(qt, kt, vt)"
    product = "kk = Transpose<perm = [0, 1, 3, 2]>(kt) e = MatMul(qt, kk) z = Mul(e, half)"
    parts = f"{QKV} {SPLIT} {product} weights = Softmax<axis = -1>(z) a = MatMul(weights, vt)"
    for body in (operator, parts):
        merged = f"{body} at = Transpose<perm = [0, 2, 1, 3]>(a) c = Reshape(at, tokens) {OUT}"
        outcome = run(merged)
        assert outcome.entries[0].applied >= 9
        assert outcome.worst_error_at(3, 5) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "extra"),
    [
        ("q, cos, sin", ", float[batch,sequence,2] cos, float[batch,sequence,2] sin"),
        ("q, cosines, sines, places", ", int64[batch,sequence] places"),
    ],
    ids=["tables per row", "positions"],
)
def test_rotated_queries_keep_their_positions(inputs: str, extra: str) -> None:
    body = f"{QKV} qr = RotaryEmbedding<num_heads = 2>({inputs}) c = Attention<{NUMBERS}>(qr, k, v) {OUT}"
    outcome = run(body, PICKS["last"], extra=extra)
    assert outcome.entries[0].applied == 6
    assert outcome.worst_error_at(3, 5) < 1e-5


def test_stops_where_something_else_needs_all_rows() -> None:
    outcome = run(BLOCK, outputs=", float[batch,sequence,8] s")
    assert outcome.entries[0].applied == 1  # the normalization behind the sum
    assert rows_of(outcome, "MatMul") == [9, 9]
    whole = run(f"{BLOCK} t = ReduceMean<keepdims = 0>(h, axis)", outputs=", float[batch,8] t")
    assert whole.entries[0].applied == 0


def test_two_picks_of_the_same_rows_are_one() -> None:
    body = f"{BLOCK} r = Gather<axis = 1>(p, zero)"
    outcome = run(body, outputs=", float[batch,8] r")
    assert outcome.entries[0].applied == 6
    assert rows_of(outcome, "MatMul") == [1, 1]
    assert outcome.worst_error_at(3, 5) < 1e-5


def test_two_picks_of_different_rows_share_what_is_above_them() -> None:
    outcome = run(f"{BLOCK} r = Gather<axis = 1>(h, minus)", outputs=", float[batch,8] r")
    assert outcome.entries[0].applied == 0


@pytest.mark.parametrize(
    ("body", "moved"),
    [
        ("t = MatMul(x, w) h = CumSum(t, one)", 0),
        ("t = Transpose<perm = [0, 2, 1]>(x) u = Softmax<axis = -1>(t) h = Transpose<perm = [0, 2, 1]>(u)", 0),
        ("t = Neg(x) h = LpNormalization<axis = 1>(t)", 0),
    ],
    ids=["running sum", "softmax over rows", "norm over rows"],
)
def test_holds_back_where_rows_depend_on_one_another(body: str, moved: int) -> None:
    assert run(body).entries[0].applied == moved


def test_holds_back_when_many_rows_are_picked_or_only_shapes_would_change() -> None:
    many = "r = Slice(h, second, endless, axis) y = ReduceMean<keepdims = 0>(r, axis)"
    assert run("h = MatMul(x, w)", many).entries[0].applied == 0
    assert run("r = Reshape(x, heads) h = Reshape(r, tokens)").entries[0].applied == 0
    assert run("h = MatMul(x, w)", opset=12).entries[0].applied == 0


def test_constants_are_picked_as_constants() -> None:
    text = """
    g (float[batch,9,8] x) => (float[batch,8] y) <int64 index = {3}> {
      a = Add(x, table)
      h = Mul(a, rows)
      y = Gather<axis = 1>(h, index)
    }"""
    weights = {
        "table": GENERATOR.standard_normal((9, 8)).astype(np.float32),
        "rows": GENERATOR.standard_normal((1, 9, 1)).astype(np.float32),
    }
    outcome = run_passes(text, "trim-rows", weights=weights)
    assert outcome.ops == ["Gather", "Add", "Mul", "Squeeze"]
    assert outcome.worst_error() == 0


def test_picks_behind_what_only_moves_the_rows_of_an_attention_with_a_cache() -> None:
    cached = "at, present, values = Attention(qt, kt, vt, , past, past)"
    merged = f"{QKV} {SPLIT} {cached} c4 = Transpose<perm = [0, 2, 1, 3]>(at) c = Reshape(c4, tokens) {OUT}"
    cache = "float[batch,2,total,4] present, float[batch,2,total,4] values"
    outcome = run(merged, PICKS["last"], extra=", float[batch,2,3,4] past", outputs=f", {cache}")
    assert outcome.entries[0].applied == 3
    assert rows_of(outcome, "Reshape")[-1] == 9
    assert rows_of(outcome, "LayerNormalization") == [1]
    assert outcome.ops.count("Slice") == 2  # the last row is written one way, whatever picked it
    assert outcome.worst_error_at(3, 5) < 1e-5


FLAT = """
    rows = Reshape(x, flat)
    u = Gemm(rows, up, wide)
    a = Gelu(u)
    d = Gemm(a, down, b)
    shape = Shape(x)
    r = Reshape(d, shape)
    s = Add(r, x)
    h = LayerNormalization(s, gamma, beta)"""


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS.keys())
def test_follows_rows_that_are_flattened_for_a_product(pick: str) -> None:
    outcome = run(FLAT, pick)
    assert outcome.entries[0].applied == 7
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(3, 5) < 1e-5
    assert outcome.worst_error_at(4, 1) < 1e-5


def test_flat_rows_stay_where_something_else_reads_them() -> None:
    outcome = run(FLAT, outputs=", float[rows,16] u")
    assert outcome.entries[0].applied == 2  # the sum and the normalization
    assert outcome.worst_error_at(3, 5) < 1e-5
    several = run(FLAT, "k = Slice(h, first, third, axis) y = ReduceMean<keepdims = 0>(k, axis)")
    assert several.entries[0].applied == 2  # a slice of three may find fewer
    assert several.worst_error_at(3, 2) < 1e-5
