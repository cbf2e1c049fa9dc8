from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

MASK = """
      b = Cast<to=9>(key_mask)
      u = Unsqueeze(b, middle)
      s0 = Shape<start=0, end=1>(key_mask)
      s1 = Shape<start=1, end=2>(key_mask)
      shape = Concat<axis=0>(s0, one, s1, s1)
      mask = Expand(u, shape)"""
HEADS = "q_num_heads=2, kv_num_heads=2"


def graph(attributes: str = HEADS, *, mask: str = "int64", bias: bool = True, kind: str = "float") -> str:
    packed = "p0 = MatMul(x, w) p = Add(p0, bias)" if bias else "p = MatMul(x, w)"
    declared = f", {mask}[batch,sequence] key_mask" if mask else ""
    return f"""
    g ({kind}[batch,sequence,8] x{declared}) => ({kind} y) {{
      {packed}
      q, k, v = Split<axis=-1>(p, widths)
      {MASK if mask else ""}
      y = Attention<{attributes}>(q, k, v{", mask" if mask else ""})
    }}"""


def run(
    text: str,
    *steps: str,
    widths: tuple[int, int, int] = (8, 8, 8),
    free: Sequence[str] = (),
    more: Mapping[str, Array] | None = None,
    **given: list[Array],
) -> Outcome:
    generator = np.random.default_rng(0)
    kind = np.float16 if "float16" in text else np.float32
    weights: dict[str, Array] = {
        "w": generator.standard_normal((8, sum(widths))).astype(kind),
        "bias": generator.standard_normal(sum(widths)).astype(kind),
        "widths": np.array(widths),
        "middle": np.array([1, 2]),
        "one": np.array([1]),
        **(more or {}),
    }
    used = {name: array for name, array in weights.items() if f" {name}" in text}
    return run_passes(text, *(steps or ("lower-attention",)), weights=used, feeds=given, free=free)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("mask", ["int64", "int32", "bool", ""])
def test_takes_the_projection_and_the_mask_along(mask: str, bias: bool) -> None:  # noqa: FBT001 - a parameter of the test
    outcome = run(graph(mask=mask, bias=bias), "lower-attention", "lower-attention", "remove-no-ops", "remove-unused")
    casts = {"": [], "int32": []}.get(mask, ["Cast"])
    assert outcome.ops == [*casts, "com.microsoft::Attention"]
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    found = outcome.attributes("Attention")
    assert found["num_heads"] == 2
    assert ("mask_filter_value" in found) == bool(mask)
    assert not {"scale", "qkv_hidden_sizes", "unidirectional"} & set(found)
    assert outcome.constant("Attention", 2).any() == bias
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


@pytest.mark.parametrize("shape", [(), (1,), (1, 24), (1, 1, 24), (1, 1, 1)])
def test_takes_a_bias_of_every_shape(shape: tuple[int, ...]) -> None:
    """The kernel wants one number for each column; the graph may spread one, or have axes in front."""
    bias = np.random.default_rng(8).standard_normal(shape).astype(np.float32)
    outcome = run(graph(), more={"bias": bias})
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    assert outcome.constant("Attention", 2).shape == (24,)
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("shape", [(131, 24), (131, 1)])
def test_holds_back_with_a_bias_for_every_place(shape: tuple[int, ...]) -> None:
    text = graph(mask="").replace("[batch,sequence,8]", "[batch,131,8]")
    outcome = run(text, more={"bias": np.ones(shape, np.float32)})
    assert outcome.entry.applied == 0
    assert outcome.reasons[0].startswith("the bias has the shape [131, ")


FILLED = MASK.replace("mask = Expand(u, shape)", "e = Expand(u, shape) mask = Where(e, nothing, far)")


@pytest.mark.parametrize("step", ["lower-attention", "lower-token-attention"])
@pytest.mark.parametrize("far", [-1e4, -1e30])
@pytest.mark.parametrize("kind", ["float", "int64", "bool"])
def test_the_kernel_adds_the_number_by_which_a_row_that_sees_nothing_has_an_answer(
    kind: str, far: float, step: str
) -> None:
    text = graph(mask=kind).replace(MASK, FILLED)
    numbers = {"nothing": np.zeros((), np.float32), "far": np.array(far, np.float32)}
    outcome = run(text, step, "remove-no-ops", "remove-unused", free=["key_mask"], more=numbers)
    assert outcome.entries[0].applied == 1
    assert outcome.rolled_back == []
    operator = "Attention" if step == "lower-attention" else "MultiHeadAttention"
    lowest = float(np.finfo(np.float32).min)
    assert outcome.attributes(operator)["mask_filter_value"] == pytest.approx(far if far > -1e30 else lowest)
    for mask in (np.zeros((3, 5)), np.random.default_rng(1).integers(-1 if kind != "bool" else 0, 3, (3, 5)) / 2):
        given = mask.astype({"float": np.float32}.get(kind, kind)) if kind == "float" else np.ceil(mask).astype(kind)
        assert outcome.worst_error_at(3, 5, key_mask=given) < 2e-3 * (far == -1e4) + 1e-5


@pytest.mark.parametrize("step", ["lower-attention", "lower-token-attention"])
@pytest.mark.parametrize("kind", ["float", "int64", "bool"])
def test_holds_back_where_a_row_may_see_nothing_and_gets_zeros(kind: str, step: str) -> None:
    outcome = run(graph(mask=kind), step, free=["key_mask"])
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.reasons[0].startswith("a row that sees nothing gets zeros")


def padded(kind: str) -> Array:
    mask = np.ones((4, 9), np.int64)
    for row in range(1, 4):
        if kind == "left":
            mask[row, : 2 * row] = 0
        elif kind == "right":
            mask[row, 9 - 2 * row :] = 0
        else:
            mask[row, row::2] = 0
    return mask


@pytest.mark.parametrize("kind", ["left", "right", "holes"])
def test_padding_on_any_side_gives_the_rows_of_the_standard_form(kind: str) -> None:
    outcome = run(graph())
    assert outcome.entry.applied == 1
    assert outcome.worst_error_at(4, 9, key_mask=padded(kind)) < 1e-5


def test_a_sentence_without_any_key_does_not_disturb_the_others() -> None:
    mask = padded("holes")
    mask[2] = 0
    outcome = run(graph())
    from onnxopt.probe.runners import GraphRunner

    feeds = {"x": np.random.default_rng(3).standard_normal((4, 9, 8)).astype(np.float32), "key_mask": mask}
    expected = GraphRunner(outcome.original).run(feeds)[0]["y"]
    found = GraphRunner(outcome.model).run(feeds)[0]["y"]
    rows = mask.any(axis=1)
    assert np.abs(expected[rows] - found[rows]).max() < 1e-5
    assert np.isfinite(found).all()


def test_a_masked_key_gets_no_weight_even_against_a_very_low_score() -> None:
    """The kernel's own filter of -10000 would lose against a score of -20000."""
    outcome = run(graph())
    mask = np.array([[1, 0, 1]])
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32) * 300, "key_mask": mask}
    assert outcome.worst_error_at(1, 3, **feeds) < 1e-2


def test_a_float_mask_allows_what_is_not_zero() -> None:
    outcome = run(graph(mask="float"))
    mask = np.array([[1.0, 0.5, 0.0, 0.25], [0.5, 0.0, 0.0, 1.0]], np.float32)
    assert outcome.worst_error_at(2, 4, key_mask=mask) < 1e-5


def test_keeps_a_scale_of_its_own() -> None:
    outcome = run(graph(f"{HEADS}, scale=0.2"))
    assert outcome.attributes("Attention")["scale"] == pytest.approx(0.2)
    assert outcome.worst_error() < 1e-5


def test_leaves_the_default_scale_out() -> None:
    outcome = run(graph(f"{HEADS}, scale=0.5"))
    assert "scale" not in outcome.attributes("Attention")
    assert outcome.worst_error() < 1e-5


def test_values_may_have_a_width_of_their_own() -> None:
    outcome = run(graph(), widths=(8, 8, 12))
    assert list(outcome.attributes("Attention")["qkv_hidden_sizes"]) == [8, 8, 12]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


HELD_BACK = {
    "grouped queries": ("q_num_heads=4, kv_num_heads=2", (16, 8, 8), "grouped queries"),
    "causal": (f"{HEADS}, is_causal=1", (8, 8, 8), "causal"),
    "soft-capped": (f"{HEADS}, softcap=5.0", (8, 8, 8), "soft-capped scores"),
    "four parts": (HEADS, (8, 8, 8, 8), "queries and keys have different widths"),
}


@pytest.mark.parametrize(("attributes", "widths", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(attributes: str, widths: tuple[int, ...], reason: str) -> None:
    text = graph(attributes)
    if len(widths) == 4:
        text = text.replace("q, k, v = Split", "q, k, v, rest = Split")
    outcome = run(text, widths=widths)  # type: ignore[arg-type]  # a fourth part is the point of one case
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.reasons == [reason]


def test_holds_back_on_heads() -> None:
    text = """
    g (float[batch,sequence,8] x) => (float y) {
      p = MatMul(x, w)
      q, k, v = Split<axis=-1>(p, widths)
      q4 = Unsqueeze(q, one)
      y = Attention(q, k, v)
    }"""
    four = text.replace("[batch,sequence,8]", "[batch,2,sequence,8]").replace("q4 = Unsqueeze(q, one)", "")
    outcome = run(four)
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["the attention works on heads, not tokens"]


def test_holds_back_on_half_precision() -> None:
    outcome = run(graph(mask="", kind="float16"))
    assert outcome.reasons == ["x is FLOAT16; the CPU kernel takes float32"]


def test_another_mask_stays_with_the_standard_operator() -> None:
    text = (
        graph(mask="")
        .replace("x)", "x, float[batch,1,sequence,sequence] mask)", 1)
        .replace("(q, k, v)", "(q, k, v, mask)")
    )
    outcome = run(text)
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])


def test_holds_back_when_the_parts_are_in_another_order() -> None:
    outcome = run(graph(mask="").replace("(q, k, v)", "(k, q, v)"))
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])


def test_holds_back_when_the_queries_are_read_elsewhere() -> None:
    outcome = run(graph().replace("(float y)", "(float y, float q)"))
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]


def test_holds_back_when_a_cache_is_written() -> None:
    text = (
        graph(mask="")
        .replace("(float y)", "(float y, float past_k)")
        .replace("y = Attention", "y, past_k, past_v = Attention")
    )
    outcome = run(text)
    assert outcome.entry.applied == 0
    assert outcome.worst_error() == 0
