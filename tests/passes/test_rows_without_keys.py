"""Keys that attention hides, and rows that see none: every answer stays, also where it is none.

Covers: passes/fuse/attention.py
"""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.probe.runners import GraphRunner
from tests.support.attention import GUARD, LOWEST, PLAIN, SCORES, SQUASH, SQUASHED
from tests.support.rules import Constant, Outcome, run_passes

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
