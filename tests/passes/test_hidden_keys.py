"""Hidden keys keep their weight, and rows without a key their answer, under every kernel and at scores of every size.

Covers: passes/words/scores.py
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import is_op
from onnxopt.passes.words.scores import hides_for_good, largest_score_of
from onnxopt.probe.annotate import annotate
from onnxopt.probe.runners import GraphRunner
from onnxopt.sizes import Derivation
from onnxopt.spec import Array
from tests.support.rules import Outcome, parse, run_passes

LOWEST = float(np.finfo(np.float32).min)
GENERATOR = np.random.default_rng(23)
WEIGHTS: Mapping[str, Array] = {
    "w": (GENERATOR.standard_normal((16, 48)) / 4).astype(np.float32),
    "wide_w": (GENERATOR.standard_normal((16, 48)) * 50).astype(np.float32),
    "b": GENERATOR.standard_normal(48).astype(np.float32),
    "gamma": np.ones(16, np.float32),
    "beta": np.zeros(16, np.float32),
    "widths": np.array([16, 16, 16]),
    "middle": np.array([1, 2]),
    "one": np.array([1]),
    "float_one": np.array(1, np.float32),
}
FRONTS = {"bounded": "LayerNormalization(x, gamma, beta)", "free": "Identity(x)"}


def layer(front: str = "free", *, weight: str = "w", heads: int = 2) -> str:
    return f"""
    g (float[batch,sequence,16] x, int64[batch,sequence] mask) => (float[batch,sequence,16] y) {{
      h = {FRONTS[front]}
      p = MatMul(h, {weight})
      a = Add(p, b)
      q, k, v = Split<axis=-1>(a, widths)
      u = Unsqueeze(mask, middle)
      f = Cast<to=1>(u)
      away = Sub(float_one, f)
      bias = Mul(away, far)
      n = Shape<start=0, end=1>(mask)
      s = Shape<start=1, end=2>(mask)
      t = Concat<axis=0>(n, one, s, s)
      m = Expand(bias, t)
      y = Attention<q_num_heads={heads}, kv_num_heads={heads}>(q, k, v, m)
    }}"""


LOWERED = {
    "as an operator": (),
    "packed": ("lower-attention",),
    "with heads": ("lower-token-attention",),
}


def run(text: str, far: float, *steps: str) -> Outcome:
    weights = {name: array for name, array in {**WEIGHTS, "far": np.array(far, np.float32)}.items() if name in text}
    return run_passes(text, "fuse-padding-mask", *steps, weights=weights)


def both(outcome: Outcome, mask: Array, size: float) -> tuple[Array, Array]:
    x = (np.random.default_rng(9).standard_normal((*mask.shape, 16)) * size).astype(np.float32)
    feeds = outcome.feeds_at(*mask.shape, mask=mask, x=x)
    before, after = (GraphRunner(model).run(feeds)[0]["y"] for model in (outcome.original, outcome.model))
    return before, after


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("far", [-1e4, -1e9, LOWEST])
@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("steps", LOWERED.values(), ids=LOWERED.keys())
def test_a_hidden_key_keeps_its_weight(steps: tuple[str, ...], front: str, far: float, size: float) -> None:
    """At scores of 1e8 a key that got -10000 is seen."""
    outcome = run(layer(front), far, *steps)
    assert [entry.applied for entry in outcome.entries] == [1] * (1 + len(steps))
    assert outcome.rolled_back == []
    before, after = both(outcome, np.tril(np.ones((6, 6), np.int64)), size)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * size)


SPELLED = """
      qh = Reshape(q, cut) qt = Transpose<perm=[0,2,1,3]>(qh)
      kh = Reshape(k, cut) kr = Transpose<perm=[0,2,1,3]>(kh) kt = Transpose<perm=[0,1,3,2]>(kr)
      vh = Reshape(v, cut) vt = Transpose<perm=[0,2,1,3]>(vh)
      dots = MatMul(qt, kt) scaled = Mul(dots, factor) masked = Add(scaled, bias)
      weights = Softmax<axis=-1>(masked) mixed = MatMul(weights, vt)
      back = Transpose<perm=[0,2,1,3]>(mixed) y = Reshape(back, join)
    }"""


@pytest.mark.parametrize("far", [-1e4, -1e9, LOWEST])
@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("steps", LOWERED.values(), ids=LOWERED.keys())
def test_a_row_without_a_key_keeps_its_answer(steps: tuple[str, ...], front: str, far: float) -> None:
    """-10000 for all keys leaves the weights of the scores, finfo.min equal ones."""
    text = layer(front)
    text = text[: text.index("n = Shape")] + SPELLED
    given = {**WEIGHTS, "far": np.array(far, np.float32), "factor": np.array(8**-0.5, np.float32)}
    given |= {"cut": np.array([0, 0, 2, 8]), "join": np.array([0, 0, 16])}
    weights = {name: array for name, array in given.items() if name in text}
    fused = ("fuse-attention", "fuse-padding-mask", "remove-unused", "fuse-attention-heads")
    outcome = run_passes(text, *fused, *steps, weights=weights)
    assert all(entry.applied for entry in outcome.entries)
    assert "Softmax" not in outcome.ops
    assert outcome.rolled_back == []
    mask = np.ones((3, 7), np.int64)
    mask[1] = 0
    mask[2, 4:] = 0
    before, after = both(outcome, mask, 1.0)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=2e-3 if far == -1e4 else 1e-5)


def test_padding_is_removed_only_where_it_has_no_weight() -> None:
    for front, far, removed in (("free", -1e4, 0), ("free", LOWEST, 1), ("bounded", -1e4, 1)):
        text = layer(front, heads=2)
        weights = {n: a for n, a in {**WEIGHTS, "far": np.array(far, np.float32)}.items() if n in text}
        outcome = run_passes(text, "fuse-padding-mask", "remove-padding", weights=weights, prove=False)
        assert outcome.entry.applied == removed, (front, far)


def attention_of(text: str, far: float = -1e4) -> ir.Node:
    model = parse(text, {n: a for n, a in {**WEIGHTS, "far": np.array(far, np.float32)}.items() if n in text})
    annotate(model, Derivation(), incomplete=True)
    return next(node for node in model.graph if is_op(node, "Attention"))


def test_scores_are_bounded_by_what_stands_before_them() -> None:
    node = attention_of(layer("bounded"))
    largest = largest_score_of(node)
    assert 10 < largest < 4000
    assert hides_for_good(node, 1e4)
    assert not hides_for_good(node, 100.0)
    wide = attention_of(layer("bounded", weight="wide_w"))
    assert largest_score_of(wide) > 1e5
    assert not hides_for_good(wide, 1e4)
    assert hides_for_good(wide, 3.4e38)


def test_nothing_bounds_the_scores_of_an_input() -> None:
    node = attention_of(layer("free"))
    assert largest_score_of(node) == float("inf")
    assert not hides_for_good(node, 1e9)
    assert hides_for_good(node, float("inf"))


def test_a_cap_bounds_the_scores() -> None:
    node = attention_of(layer("free").replace("Attention<", "Attention<softcap=30.0, "))
    assert largest_score_of(node) == 30.0


CONTRIB = """
g (float[batch,sequence,16] x, int32[batch,sequence] mask{more}) => (float[batch,sequence,16] y) {{
  y = com.microsoft.Attention<num_heads=2{attributes}>(x, w, b, mask{inputs})
}}"""


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("attributes", ["", ", unidirectional=1", ", mask_filter_value=-100000.0"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_kernel_that_is_spelled_out_hides_keys_as_far(attributes: str, opset: int, *, with_bias: bool) -> None:
    """What comes later it hides for good; masked keys get a number added that a score of a million outweighs."""
    more, inputs = (", float[batch,2,sequence,sequence] extra", ", , extra") if with_bias else ("", "")
    text = CONTRIB.format(more=more, inputs=inputs, attributes=attributes)
    weights = {name: WEIGHTS[name] for name in ("w", "b")}
    outcome = run_passes(text, "raise-attention", weights=weights, opset=opset)
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    for size in (1.0, 30.0, 1e3):
        mask = np.tril(np.ones((6, 6), np.int32))[:, ::-1].copy()
        before, after = both(outcome, mask, size)
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=2e-3 * size)
