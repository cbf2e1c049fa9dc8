import numpy as np
import pytest

from onnxopt.probe.runners import GraphRunner
from tests.support.rules import Constant, Outcome, names_read, run_passes

HEADS = "float[batch,2,sequence,4]"
SQUASHED = f"{HEADS} q0, {HEADS} k0, {HEADS} v"  # behind Tanh no score is larger than 4
SQUASH = "q = Tanh(q0) k = Tanh(k0)"
TURN = "kt = Transpose<perm=[0,1,3,2]>(k)"
SCORES = {
    "no scale": (f"{TURN} s = MatMul(q, kt)", 1.0),
    "scale on q": (f"qs = Mul(q, half) {TURN} s = MatMul(qs, kt)", 0.5),
    "scale ahead of q": (f"qs = Mul(half, q) {TURN} s = MatMul(qs, kt)", 0.5),
    "q divided": (f"qs = Div(q, root) {TURN} s = MatMul(qs, kt)", 0.5),
    "scale on turned keys": (f"{TURN} ks = Mul(kt, half) s = MatMul(q, ks)", 0.5),
    "turned keys divided": (f"{TURN} ks = Div(kt, root) s = MatMul(q, ks)", 0.5),
    "scale on keys": ("ks = Mul(k, half) kt = Transpose<perm=[0,1,3,2]>(ks) s = MatMul(q, kt)", 0.5),
    "scale on both": (f"qs = Mul(q, half) {TURN} ks = Mul(kt, half) s = MatMul(qs, ks)", 0.25),
    "scale on the product": (f"{TURN} p = MatMul(q, kt) s = Mul(p, half)", 0.5),
    "product divided by the root": (f"{TURN} p = MatMul(q, kt) s = Div(p, root)", 0.5),
    "scale on q and the product": (f"qs = Mul(q, half) {TURN} p = MatMul(qs, kt) s = Div(p, root)", 0.25),
}
WEIGHTS: dict[str, Constant] = {"half": np.float32(0.5), "root": np.float32(2.0), "zero": np.float32(0.0)}
MASKS = {
    "no mask": "",
    "a mask of every row": ", float[batch,1,sequence,sequence] mask",
    "a mask of one row": ", float[batch,1,1,sequence] mask",
    "a mask of every head": ", float[batch,2,sequence,sequence] mask",
    "a mask of all sentences": ", float[1,1,sequence,sequence] mask",
    "a mask of rank 3": ", float[2,sequence,sequence] mask",
    "a mask of rank 2": ", float[sequence,sequence] mask",
    "a row for all sentences": ", float[1,sequence] mask",
    "a mask of rank 1": ", float[sequence] mask",
}
ALONE = "float[1,2,sequence,4]"
GUARD = "w = Softmax<axis=-1>(m) nan = IsNaN(w) w2 = Where(nan, zero, w) y = MatMul(w2, v)"
PLAIN = "w = Softmax<axis=3>(m) y = MatMul(w, v)"


def spelled(scores: str, *, mask: str = "", tail: str = PLAIN, q: str = HEADS, k: str = HEADS, v: str = HEADS) -> str:
    masked = "m = Add(s, mask)" if mask else "m = Identity(s)"
    return f"g ({q} q, {k} k, {v} v{mask}) => (float y) {{ {scores} {masked} {tail} }}"


def run(text: str, *steps: str, opset: int = 23) -> Outcome:
    weights = {name: array for name, array in WEIGHTS.items() if name in text}
    return run_passes(text, "remove-no-ops", *(steps or ("fuse-attention",)), weights=weights, opset=opset)


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


LOWEST = float(np.finfo(np.float32).min)
FILLS = (-1e4, LOWEST, -np.inf)


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


NEAR = {
    "written over": "f = Where(mask, s, fill)",
    "written over the other way": "n = Not(mask) f = Where(n, fill, s)",
    "cut off": "c = Where(mask, none, lowest) a = Add(s, c) f = Max(a, fill)",
}
MAKES = {  # what makes queries and keys, and the largest score that it makes
    "nothing": ("Identity", None),
    "a norm": ("LayerNormalization", 4.0),
    "a squash": ("Tanh", 4.0),
    "an activation": ("HardSwish", None),
}


@pytest.mark.parametrize("size", [1.0, 1e3, 1e7])
@pytest.mark.parametrize("fill", [-1e4, -1e6, -1e9, LOWEST])
@pytest.mark.parametrize(("masked", "make"), [(m, k) for m in NEAR for k in MAKES])
def test_a_near_number_hides_keys_only_where_no_score_comes_near(
    masked: str, make: str, fill: float, size: float
) -> None:
    """A score of 12,000 is seen where -10000 was meant to hide it."""
    op, largest = MAKES[make]
    squash = " ".join(f"{one} = {op}({one}0{', gamma' if op.startswith('Layer') else ''})" for one in "qk")
    text = f"""
    g ({SQUASHED}, bool[1,1,sequence,sequence] mask) => (float y) {{
      {squash} {SCORES["no scale"][0]} {NEAR[masked]} w = Softmax<axis=-1>(f) y = MatMul(w, v)
    }}"""
    numbers = {"none": 0.0, "lowest": LOWEST, "fill": fill}
    weights: dict[str, Constant] = {n: np.array(x, np.float32) for n, x in numbers.items() if f"{n}" in text}
    if op.startswith("Layer"):
        weights["gamma"] = np.full(4, 4.0 if size > 1 else 1.0, np.float32)  # a score of 64
    mask = [np.tril(np.ones((1, 1, length, length), bool)) for length in (7, 11, 13, 131)]
    outcome = run_passes(text, "fuse-attention", weights=weights, feeds={"mask": mask})
    exact = "cut" in masked  # a row that sees nothing would be cut off
    assert outcome.entry.applied == int((fill == LOWEST or largest is not None) and not exact)
    generator = np.random.default_rng(1)
    given = {name: (generator.standard_normal((2, 2, 6, 4)) * size).astype(np.float32) for name in ("q0", "k0")}
    feeds = outcome.feeds_at(2, 6, mask=mask[1][:, :, :6, :6], **given)
    before, after = (GraphRunner(model).run(feeds)[0]["y"] for model in (outcome.original, outcome.model))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


FLOAT_MASK, FLAGS = "float[batch,1,sequence,sequence] mask", "bool[batch,1,sequence,sequence] mask"
FREE = {
    "a bias of any numbers": (FLOAT_MASK, "f = Add(s, mask)", PLAIN),
    "(1 - m) times a number": (FLOAT_MASK, "i = Sub(one, mask) c = Mul(i, fill) f = Add(s, c)", PLAIN),
    "a number that flags add": (FLAGS, "c = Where(mask, none, fill) f = Add(s, c)", PLAIN),
    "flags that write over": (FLAGS, "f = Where(mask, s, fill)", PLAIN),
    "flags that write over with a guard": (FLAGS, "f = Where(mask, s, fill)", GUARD),
    "flags twice": (FLAGS, "a = Where(mask, s, fill) n = Not(mask) f = Where(n, fill, a)", PLAIN),
}


def free(kind: str, masked: str, tail: str, fill: float) -> Outcome:
    text = f"g ({SQUASHED}, {kind}) => (float y) {{ {SQUASH} {SCORES['no scale'][0]} {masked} {tail} }}"
    text = text.replace("Softmax<axis=-1>(m)", "Softmax<axis=-1>(f)").replace("Softmax<axis=3>(m)", "Softmax(f)")
    numbers = {"one": 1.0, "none": 0.0, "zero": 0.0, "fill": fill, "other": -2e9}
    weights = {name: np.array(number, np.float32) for name, number in numbers.items() if f"{name}" in text}
    return run_passes(text, "remove-no-ops", "fuse-attention", weights=weights)


@pytest.mark.parametrize("fill", [-1e4, -1e9, LOWEST])
@pytest.mark.parametrize(("kind", "masked", "tail"), FREE.values(), ids=FREE.keys())
def test_every_row_keeps_its_answer_where_a_mask_may_hold_anything(
    kind: str, masked: str, tail: str, fill: float
) -> None:
    outcome = free(kind, masked, tail, fill)
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    generator = np.random.default_rng(0)
    shape = (3, 1, 5, 5)
    flags = [np.zeros(shape), np.ones(shape), generator.integers(0, 2, shape)]
    soft = [generator.choice([0.0, 0.5, 1.0, 0.25], shape), np.full(shape, 0.5)]
    added = [np.full(shape, number) for number in (-1e4, -1e30, LOWEST)] + [generator.choice([0.0, LOWEST], shape)]
    given = flags if kind == FLAGS else [*flags, *soft] if "Sub" in masked else [*flags, *soft, *added]
    for mask in given:
        array = mask.astype(bool if kind == FLAGS else np.float32)
        assert outcome.worst_error_at(3, 5, mask=array) < 2e-3 * (abs(fill) == 1e4) + 1e-5  # ulp of 1e4: 1e-3


@pytest.mark.parametrize("kind", [FLAGS, "bool[batch,1,1,sequence] mask"])
@pytest.mark.parametrize("masked", ["f = Where(mask, s, fill)", "c = Where(mask, none, fill) f = Add(s, c)"])
def test_a_row_without_weights_stays_without_an_answer(masked: str, kind: str) -> None:
    """Of -inf alone a softmax is not a number, where the operator gives zeros; other rows keep their answer."""
    outcome = free(kind, masked, PLAIN, -np.inf)
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    shape = (3, 1, 5 if "1,1" not in kind else 1, 5)
    mask = np.random.default_rng(1).integers(0, 2, shape).astype(bool)
    mask[..., 2] = True
    mask[1] = False
    feeds = outcome.feeds_at(3, 5, mask=mask)
    before, after = (GraphRunner(model).run(feeds)[0]["y"] for model in (outcome.original, outcome.model))
    assert np.isnan(before[1]).all()
    assert not np.isnan(before[[0, 2]]).any()
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


OVERFLOWS = {
    "twice finfo.min": (FLOAT_MASK, "i = Sub(one, mask) c = Mul(i, fill) f = Add(s, c)", -1.0),
    "twice finfo.min of whole numbers": (
        FLOAT_MASK.replace("float", "int64"),
        "r = Cast<to=1>(mask) i = Sub(one, r) c = Mul(i, fill) f = Add(s, c)",
        -1.0,
    ),
    "-inf that is given": (FLOAT_MASK, "f = Add(s, mask)", -np.inf),
    "two numbers that are added": (
        f"{FLAGS}, bool[batch,1,sequence,sequence] other_mask",
        "a = Where(mask, none, fill) b = Where(other_mask, none, fill) c = Add(a, b) f = Add(s, c)",
        0.0,
    ),
    "two numbers, one by one": (
        f"{FLAGS}, bool[batch,1,sequence,sequence] other_mask",
        "a = Where(mask, none, fill) b = Where(other_mask, none, fill) c = Add(s, a) f = Add(c, b)",
        0.0,
    ),
}


@pytest.mark.parametrize(("kind", "masked", "hides"), OVERFLOWS.values(), ids=OVERFLOWS.keys())
@pytest.mark.parametrize("tail", [PLAIN, GUARD], ids=["plain", "guarded"])
def test_a_row_whose_numbers_overflow_keeps_its_answer(kind: str, masked: str, hides: float, tail: str) -> None:
    """-inf for every key leaves no weights: not a number, or the zeros of the exporter's guard."""
    outcome = free(kind, masked, tail, LOWEST)
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    seen = 0.0 if "Sub" not in masked and kind == FLOAT_MASK else 1.0
    mask = np.full((2, 1, 4, 4), seen)
    mask[1] = hides
    mask[0, :, 2, 1] = hides
    kinds = {"float": np.float32, "int64": np.int64, "bool": bool}
    array = mask.astype(kinds[kind.partition("[")[0]])
    given = {"mask": array, "other_mask": array} if "other_mask" in kind else {"mask": array}
    feeds = outcome.feeds_at(2, 4, **given)
    before, after = (GraphRunner(model).run(feeds)[0]["y"] for model in (outcome.original, outcome.model))
    assert np.isnan(before[1]).all() == (tail == PLAIN)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


LEFT = {
    "a bias behind": (
        f"{FLAGS}, float[sequence] bias",
        "a = Where(mask, s, fill) f = Add(a, bias)",
        PLAIN,
        LOWEST,
        "scores that are written over are hidden otherwise too",
    ),
    "a bias of any numbers ahead": (
        f"{FLAGS}, float[sequence] bias",
        "a = Add(s, bias) f = Where(mask, a, fill)",
        PLAIN,
        -1e4,
        "scores that are written over are hidden otherwise too",
    ),
    "written over with two numbers": (
        FLAGS,
        "a = Where(mask, s, fill) n = Not(mask) f = Where(n, other, a)",
        PLAIN,
        -1e4,
        "scores that are written over are hidden otherwise too",
    ),
    "cut off below": (FLOAT_MASK, "a = Add(s, mask) f = Max(a, fill)", PLAIN, LOWEST, "scores are cut off, and rows"),
}


@pytest.mark.parametrize(("kind", "masked", "tail", "fill", "reason"), LEFT.values(), ids=LEFT.keys())
def test_holds_back_where_the_operator_has_another_answer_for_rows_that_see_nothing(
    kind: str, masked: str, tail: str, fill: float, reason: str
) -> None:
    outcome = free(kind, masked, tail, fill)
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.reasons[0].startswith(reason)


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


ORDER = """n = Shape<start=1, end=2>(mask) n0 = Squeeze(n) r = Range(start, n0, step) a = Unsqueeze(r, rows)
      b = Unsqueeze(r, columns) seen = LessOrEqual(a, b) w = Unsqueeze(mask, middle) real = Cast<to=1>(w)
      away = Sub(one, real) bias = Mul(away, padding)"""
HIDDEN_TWICE = {
    "order, then padding": "o = Where(seen, s, fill) f = Add(o, bias)",
    "padding, then order": "o = Add(s, bias) f = Where(seen, o, fill)",
}
LEVELS = {
    "both swallow every score": (LOWEST, LOWEST, True),
    "both swallow every score, by other numbers": (-2e35, LOWEST, True),
    "order swallows, padding is near": (LOWEST, -1e4, True),
    "order is near, padding swallows": (-1e4, LOWEST, True),
    "one much nearer than the other": (-1e9, -1e4, True),
    "both near": (-1e4, -1e4, False),
    "both far, neither swallows": (-1e9, -1e9, False),
    "order is nearer than padding": (-1e4, -1e9, False),
    "order is just beyond padding": (-1.5e9, -1e9, False),
}


@pytest.mark.parametrize(("fill", "padding", "taken"), LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("steps", HIDDEN_TWICE.values(), ids=HIDDEN_TWICE.keys())
def test_rows_that_padding_and_order_leave_nothing_keep_their_answer(
    steps: str, fill: float, padding: float, *, taken: bool
) -> None:
    """Of a text padded on the left the first queries see keys of padding alone, and later ones that order hides."""
    text = f"""
    g ({SQUASHED}, int64[batch,sequence] mask) => (float y) {{
      {SQUASH} {ORDER} {SCORES["no scale"][0]} {steps} p = Softmax<axis=-1>(f) y = MatMul(p, v)
    }}"""
    numbers = {"one": 1.0, "fill": fill, "padding": padding}
    weights = {name: np.array(number, np.float32) for name, number in numbers.items()}
    places = {"start": np.array(0), "step": np.array(1), "rows": np.array([0]), "columns": np.array([1])}
    masks = [np.tril(np.ones((length, length), np.int64))[::-1][:batch] for batch, length in ((2, 7), (3, 11), (5, 13))]
    masks = [np.flip(mask, axis=1) for mask in (*masks, np.ones((1, 131), np.int64))]
    given = {**weights, **places, "middle": np.array([1, 2])}
    outcome = run_passes(text, "remove-no-ops", "fuse-attention", weights=given, feeds={"mask": masks})
    assert (outcome.entry.applied, outcome.rolled_back) == (int(taken), [])
    assert taken or outcome.reasons[0] == "scores that are written over are hidden otherwise too"
    left = np.array([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    assert outcome.worst_error_at(3, 6, mask=left) < (2e-3 if -1e4 in (fill, padding) else 1e-5)
