import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.refusals import refusal
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(11)
HIDDEN, HEADS = 8, 2
FILL = "mask_filter_value = -3.4028234663852886e+38"


def weights(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Array]:
    return {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in shapes}


PACKED = weights(("w", (HIDDEN, 3 * HIDDEN)), ("b", (3 * HIDDEN,)))
SIZES = ((2, 7), (3, 11), (5, 13), (1, 131))
LENGTHS = {"lengths": [GENERATOR.integers(1, length + 1, batch).astype(np.int32) for batch, length in SIZES]}
MASKS = {
    "none": "",
    "switches": ", int32[batch,sequence] mask",
    "switches per query": ", int32[batch,sequence,sequence] mask",
    "lengths": ", int32[batch] lengths",
}


def packed(
    inputs: str,
    extra: str = "",
    attributes: str = "",
    *,
    opset: int = 23,
    made: str = "y",
    given: dict[str, Array] | None = None,
    kind: str = "float",
) -> Outcome:
    text = f"""
    g ({kind}[batch,sequence,{HIDDEN}] x{extra}) => ({kind}[batch,sequence,{HIDDEN}] y) {{
      {made} = com.microsoft.Attention<num_heads = {HEADS}{attributes}>({inputs})
    }}"""
    feeds = LENGTHS if "lengths" in extra else None
    return run_passes(text, "raise-attention", "raise-attention", weights=given or PACKED, opset=opset, feeds=feeds)


@pytest.mark.parametrize("fill", ["", f", {FILL}"], ids=["default fill", "own fill"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("opset", [12, 17, 23])
def test_reads_a_packed_attention(mask: str, opset: int, fill: str) -> None:
    name = mask.rsplit(" ", maxsplit=1)[-1]
    outcome = packed(f"x, w, b, {name}".rstrip(", "), mask, fill, opset=opset)
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert not [op for op in outcome.ops if ":" in op]
    assert ("Attention" in outcome.ops) == (opset == 23)
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("fill", ["", f", {FILL}"], ids=["default fill", "own fill"])
@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("opset", [17, 23])
def test_a_mask_that_need_not_be_of_0_and_1_keeps_every_answer(opset: int, kind: str, fill: str) -> None:
    """The kernel sees keys above 0, and gives a row that sees nothing equal weights, or those of its scores."""
    text = f"""
    g (float[batch,sequence,{HIDDEN}] x, {kind}[batch,sequence] mask) => (float[batch,sequence,{HIDDEN}] y) {{
      narrow = Cast<to = 6>(mask)
      y = com.microsoft.Attention<num_heads = {HEADS}{fill}>(x, w, b, narrow)
    }}"""
    outcome = run_passes(text, "raise-attention", weights=PACKED, opset=opset, free=["mask"])
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    generator = np.random.default_rng(4)
    for mask in (generator.choice([0, 1, 2, -1], (3, 6)), np.zeros((3, 6)), np.ones((3, 6))):
        assert outcome.worst_error_at(3, 6, mask=mask.astype(kind)) < (1e-5 if fill else 3e-3)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("opset", [17, 23])
def test_reads_a_causal_one(mask: str, opset: int) -> None:
    name = mask.rsplit(" ", maxsplit=1)[-1]
    outcome = packed(f"x, w, b, {name}".rstrip(", "), mask, f", unidirectional = 1, {FILL}", opset=opset)
    assert outcome.rolled_back == []
    assert outcome.entries[0].applied == 1
    assert outcome.worst_error() < 1e-5
    if opset == 23 and not mask:
        assert outcome.attributes("Attention")["is_causal"] == 1


@pytest.mark.parametrize("shape", ["batch,2,sequence,sequence", "1,2,sequence,sequence", "batch,1,sequence,sequence"])
@pytest.mark.parametrize("mask", ["", ", int32[batch,sequence] mask"], ids=["", "with a mask"])
@pytest.mark.parametrize("opset", [17, 23])
def test_adds_a_bias_to_the_scores(shape: str, mask: str, opset: int) -> None:
    name = "mask" if mask else ""
    outcome = packed(f"x, w, b, {name}, , added", f"{mask}, float[{shape}] added", opset=opset)
    assert outcome.rolled_back == []
    assert outcome.entries[0].applied == 1
    assert outcome.worst_error() < 1e-5


def test_leaves_out_a_bias_of_zeros() -> None:
    outcome = packed("x, w, b", given={**PACKED, "b": np.zeros(24, np.float32)})
    assert outcome.ops == ["MatMul", "Split", "Attention"]


def test_keeps_scale_and_sizes() -> None:
    shapes = weights(("w", (HIDDEN, 20)), ("b", (20,)))
    outcome = packed("x, w, b", "", ", scale = 0.3, qkv_hidden_sizes = [6, 6, 8]", given=shapes)
    assert outcome.attributes("Attention")["scale"] == pytest.approx(0.3)
    assert outcome.worst_error() < 1e-5


def test_writes_the_form_that_the_lowering_for_the_cpu_reads() -> None:
    text = f"""
    g (float[batch,sequence,{HIDDEN}] x, int64[batch,sequence] attention_mask) => (float[batch,sequence,{HIDDEN}] y) {{
      mask = Cast<to = 6>(attention_mask)
      y = com.microsoft.Attention<num_heads = {HEADS}, {FILL}>(x, w, b, mask)
    }}"""
    steps = ("raise-attention", "read-dimension-from-input", "remove-unused", "lower-attention")
    outcome = run_passes(text, *steps, weights=PACKED)
    assert outcome.entry.applied == 1
    assert outcome.ops[-1] == "com.microsoft::Attention"
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("opset", [18, 22])
def test_what_is_spelled_out_is_fused_again(opset: int) -> None:
    outcome = packed("x, w, b, mask", MASKS["switches"], opset=opset)
    outcome.model.graph.opset_imports[""] = 23
    again = run_passes(outcome.model, "fuse-attention", "fuse-padding-mask", "fuse-attention-heads")
    assert [entry.applied for entry in again.entries] == [1, 1, 1]
    assert again.ops.count("Attention") == 1


def test_a_packed_attention_holds_back_with_a_reason() -> None:
    def reason(inputs: str, attributes: str = "", x: str = "float[batch,sequence,8]", made: str = "y") -> str:
        text = f"""
        g ({x} x, float[2,batch,2,3,4] past, int32[batch,1,9,9] mask) => (float[batch,sequence,8] y) {{
          {made} = com.microsoft.Attention<num_heads = 2{attributes}>({inputs})
        }}"""
        return refusal(text, "raise-attention", PACKED)

    assert reason("x, w, b, , past") == "it has a cache"
    assert reason("x, w, b", ", do_rotary = 1") == "it rotates queries and keys inside"
    assert reason("x, w, b", x="float[sequence,8]") == "x has rank 2, needs 3"
    assert reason("x, w, b", ", qkv_hidden_sizes = [8, 4, 12]") == "queries and keys have different widths"
    assert reason("x, w, b", ", mask_filter_value = -5.0") == "masked scores get -5.0, which keeps them a weight"
    assert reason("x, w, b", ", qkv_hidden_sizes = [7, 7, 10]") == "2 heads do not divide (7, 10)"
    assert "which is no length and no switch" in reason("x, w, b, mask")


def test_holds_back_when_the_cache_that_it_makes_is_used() -> None:
    text = """
    g (float[batch,sequence,8] x) => (float[batch,sequence,8] y, float[2,batch,2,sequence,4] present) {
      y, present = com.microsoft.Attention<num_heads = 2, unidirectional = 1>(x, w, b)
    }"""
    outcome = run_passes(text, "raise-attention", weights=PACKED)
    assert outcome.reasons == ["another output of the node is used, which the new form does not have"]


def heads(
    inputs: str,
    extra: str = "",
    attributes: str = "",
    *,
    opset: int = 23,
    given: dict[str, Array] | None = None,
    keys: str = "sequence",
    width: int = HIDDEN,
) -> Outcome:
    text = f"""
    g (float[batch,sequence,{HIDDEN}] q, float[batch,{keys},{HIDDEN}] k, float[batch,{keys},{width}] v{extra})
      => (float[batch,sequence,{width}] y) {{
      y = com.microsoft.MultiHeadAttention<num_heads = {HEADS}{attributes}>({inputs})
    }}"""
    name = "raise-multi-head-attention"
    feeds = LENGTHS if "lengths" in extra else None
    return run_passes(text, name, name, weights=given, opset=opset, feeds=feeds)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("bias", ["", "b"], ids=["", "with a bias"])
@pytest.mark.parametrize("opset", [12, 17, 23])
def test_reads_an_attention_of_three_inputs(mask: str, bias: str, opset: int) -> None:
    name = mask.rsplit(" ", maxsplit=1)[-1]
    outcome = heads(f"q, k, v, {bias}, {name}".rstrip(", "), mask, opset=opset, given=PACKED)
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.ops.count("Add") >= (3 if bias else 0)
    assert not [op for op in outcome.ops if ":" in op]
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("mask", ["", ", int32[batch,rows] mask"], ids=["", "with a mask"])
@pytest.mark.parametrize("opset", [17, 23])
def test_reads_keys_of_another_sequence_and_wider_values(mask: str, opset: int) -> None:
    inputs = "q, k, v, , mask" if mask else "q, k, v"
    outcome = heads(inputs, mask, ", scale = 0.7", opset=opset, keys="rows", width=12)
    assert outcome.rolled_back == []
    assert outcome.entries[0].applied == 1
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("mask", ["", ", int32[batch,sequence] mask"], ids=["", "with a mask"])
def test_reads_a_causal_attention_of_three_inputs_with_a_bias(mask: str, opset: int) -> None:
    extra = f"{mask}, float[1,2,sequence,sequence] added"
    inputs = f"q, k, v, b, {'mask' if mask else ''}, added"
    outcome = heads(inputs, extra, f", unidirectional = 1, {FILL}", opset=opset, given=PACKED)
    assert outcome.rolled_back == []
    assert outcome.entries[0].applied == 1
    assert outcome.worst_error() < 1e-5


def test_splits_a_bias_that_is_computed() -> None:
    outcome = heads("q, k, v, bias", ", float[24] bias")
    assert outcome.ops == ["Split", "Add", "Add", "Add", "Attention"]
    assert outcome.worst_error() < 1e-5


def test_an_attention_of_three_inputs_holds_back_with_a_reason() -> None:
    def reason(inputs: str, attributes: str = "", k: str = "float[batch,keys,8]") -> str:
        text = f"""
        g (float[batch,sequence,8] q, {k} k, float[batch,keys,8] v, float[batch,2,3,4] past)
          => (float[batch,sequence,8] y) {{ y = com.microsoft.MultiHeadAttention<num_heads = 2{attributes}>({inputs}) }}
        """
        return refusal(text, "raise-multi-head-attention")

    assert reason("q, k, v, , , , past, past") == "it has a cache"
    assert reason("q, k") == "queries, keys and values are packed by head"
    assert "have the ranks" in reason("q, k, v", k="float[batch,2,keys,4]")
    assert reason("q, k, v", k="float[batch,keys,4]") == "queries and keys have different widths"
    assert reason("q, k, v", ", unidirectional = 1") == "causal, with keys of another sequence"


WIDE = 16  # the kernel wants heads of a multiple of 8


def grouped(
    inputs: str = "q, k, v, , , last, total",
    extra: str = "",
    attributes: str = "",
    *,
    opset: int = 23,
    groups: int = 1,
    width: int = WIDE,
) -> Outcome:
    keys = groups * WIDE // HEADS
    sides = f", float[batch,sequence,{keys}] k, float[batch,sequence,{keys}] v" if "k," in inputs else ""
    text = f"""
    g (float[batch,sequence,{width}] q{sides}, int32[batch] last{extra}) => (float[batch,sequence,{WIDE}] y)
    <int64[1] first = {{1}}> {{
      shape = Shape<start = 1, end = 2>(q)
      flat = Squeeze(shape)
      total = Cast<to = 6>(flat)
      y = com.microsoft.GroupQueryAttention<num_heads = {HEADS}, kv_num_heads = {groups}{attributes}>({inputs})
    }}"""
    name = "raise-group-query-attention"
    full = [np.full(batch, length - 1, np.int32) for batch, length in SIZES]
    short = [lengths - 1 for lengths in LENGTHS["lengths"]]
    feeds = {"last": short if "causal = 0" in attributes else full}
    return run_passes(text, name, name, opset=opset, feeds=feeds)


@pytest.mark.parametrize("causal", ["", ", causal = 0"], ids=["causal", "both ways"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("inputs", ["q, k, v, , , last, total", "q, , , , , last, total"], ids=["apart", "packed"])
def test_reads_grouped_queries(inputs: str, groups: int, causal: str) -> None:
    size = WIDE // HEADS
    width = WIDE if "k," in inputs else WIDE + 2 * groups * size
    outcome = grouped(inputs, attributes=causal, groups=groups, width=width)
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert not [op for op in outcome.ops if ":" in op]
    assert outcome.attributes("Attention")["kv_num_heads"] == groups
    assert outcome.worst_error() < 1e-5


def test_grouped_queries_hold_back_with_a_reason() -> None:
    found = grouped(attributes=", local_window_size = 4").reasons
    assert found == ["it looks at a window of keys"]
    assert grouped(opset=17).reasons == ["opset 17 has no Attention for grouped or soft-capped heads"]
    assert grouped(attributes=", smooth_softmax = 1").reasons == ["its softmax has a sink"]
