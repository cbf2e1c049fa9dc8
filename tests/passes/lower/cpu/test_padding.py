"""Padding removal: the same answers on every position that matters, whatever the padding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Array
from tests.support.rules import Constant, Outcome, observe, parse, pass_of, run_passes

generator = np.random.default_rng(3)
WEIGHTS: Mapping[str, Array] = {
    "table": generator.standard_normal((30, 16)).astype(np.float32),
    "w": generator.standard_normal((16, 48)).astype(np.float32),
    "b": generator.standard_normal(48).astype(np.float32),
    "wo": generator.standard_normal((16, 16)).astype(np.float32),
    "gamma": np.ones(16, np.float32),
    "beta": np.zeros(16, np.float32),
    "widths": np.array([16, 16, 16], np.int64),
    "axes": np.array([1, 2], np.int64),
    "one": np.array([1], np.int64),
}

LAYER = """
g (int64[batch,sequence] ids, int64[batch,sequence] mask) => (float[batch,sequence,16] y{more}) {{
  e = Gather (table, ids)
  x = LayerNormalization <axis = -1> (e, gamma, beta)
  k = Cast <to = 9> (mask)
  u = Unsqueeze (k, axes)
  n = Shape <start = 0, end = 1> (mask)
  s = Shape <start = 1, end = 2> (mask)
  t = Concat <axis = 0> (n, one, s, s)
  m = Expand (u, t)
  p = MatMul (x, w)
  a = Add (p, b)
  q, c, v = Split <axis = -1> (a, widths)
  h = Attention <q_num_heads = 2, kv_num_heads = 2{attributes}> (q, c, v, m)
  o = MatMul (h, wo)
  r = Add (o, x)
  y = {last}
}}"""


def layer(last: str = "LayerNormalization <axis = -1> (r, gamma, beta)", more: str = "", attributes: str = "") -> str:
    return LAYER.format(last=last, more=more, attributes=attributes)


def masks(kind: str) -> list[Array]:
    made = []
    for batch, length in ((2, 7), (3, 11), (5, 13)):
        mask = np.ones((batch, length), np.int64)
        rows = np.arange(batch)
        if kind == "left":
            mask = (np.arange(length) >= (rows * 2)[:, None]).astype(np.int64)
        elif kind == "right":
            mask = (np.arange(length) < (length - rows * 2)[:, None]).astype(np.int64)
        elif kind == "holes":
            mask = np.random.default_rng(batch).integers(0, 2, (batch, length))
            mask[rows, rows % length] = 1
        elif kind == "empty row":
            mask[-1] = 0
        elif kind == "single tokens":
            mask = np.zeros((batch, length), np.int64)
            mask[rows, (rows * 5) % length] = 1
        made.append(mask)
    return made


def ids() -> list[Array]:
    return [np.random.default_rng(n).integers(0, 30, shape) for n, shape in enumerate(((2, 7), (3, 11), (5, 13)))]


def remove(text: str, kind: str = "holes") -> Outcome:
    return run_passes(text, "remove-padding", weights=WEIGHTS, feeds={"ids": ids(), "mask": masks(kind)}, prove=False)


@pytest.mark.parametrize("kind", ["none", "left", "right", "holes", "empty row", "single tokens"])
def test_kept_positions_are_equal_and_the_others_are_zero(kind: str) -> None:
    outcome = remove(layer(), kind)
    assert outcome.entry.applied == 1
    kept = masks(kind)[-1] != 0
    np.testing.assert_allclose(outcome.before["y"][kept], outcome.after["y"][kept], rtol=1e-4, atol=1e-5)
    assert not outcome.after["y"][~kept].any()
    assert outcome.before["y"].shape == outcome.after["y"].shape


def test_linears_and_norms_run_on_packed_tokens_only() -> None:
    outcome = remove(layer())
    widest = {node.op_type for node in outcome.model.graph if node.op_type in ("MatMul", "GroupQueryAttention")}
    assert widest == {"MatMul", "GroupQueryAttention"}
    assert "Attention" not in outcome.ops
    outputs = [node.outputs[0] for node in outcome.model.graph if node.op_type in ("MatMul", "LayerNormalization")]
    feeds = {"ids": ids()[0], "mask": masks("right")[0]}
    arrays = GraphRunner(outcome.model, outputs).run(feeds)[1]
    tokens = int(feeds["mask"].sum())
    shapes = [array.shape for array in arrays.values()]
    assert shapes.count((tokens, 16)) >= 2
    assert (tokens, 48) in shapes


def test_a_batch_of_padding_alone_still_runs() -> None:
    outcome = remove(layer())
    found = GraphRunner(outcome.model).run({"ids": ids()[0], "mask": np.zeros((2, 7), np.int64)})[0]["y"]
    assert found.shape == (2, 7, 16)
    assert not found.any()


def test_an_inner_value_that_is_an_output_is_restored_too() -> None:
    outcome = remove(layer(last="Relu (r)", more=", float[batch,sequence,16] r"))
    kept = masks("holes")[-1] != 0
    for name in ("y", "r"):
        np.testing.assert_allclose(outcome.before[name][kept], outcome.after[name][kept], rtol=1e-4, atol=1e-5)


def test_the_proof_lets_padded_positions_change_and_nothing_else() -> None:
    from onnxopt.proof.driver import Driver
    from onnxopt.proof.prepare import prepare
    from onnxopt.rewrite.registry import get
    from onnxopt.spec import Signature, TensorSpec

    model = parse(layer(), WEIGHTS)
    observations = observe(model, {"ids": ids(), "mask": masks("holes")})
    prepare(model)
    axes = ("batch", "sequence")
    signature = Signature(
        (TensorSpec("ids", "int64", axes), TensorSpec("mask", "int64", axes)),
        (TensorSpec("y", "float32", (*axes, 16)),),
    )
    assert Driver(model.clone(), observations).apply(get("remove-padding")).rolled_back
    entry = Driver(model, observations, signature=signature).apply(get("remove-padding"))
    assert (entry.applied, entry.rolled_back) == (1, [])
    assert Driver(model, observations, signature=signature).apply(get("remove-padding")).applied == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (layer(attributes=", is_causal = 1"), "causal"),
        (layer(attributes=", softcap = 5.0"), "soft-capped"),
        (layer().replace("Expand (u, t)", "Where (u, u, u)"), "mask not canonical"),
        (layer().replace("(q, c, v, m)", "(q, v, c, m)"), "operands in another order"),
        (layer(attributes="").replace("num_heads = 2", "num_heads = 4"), "heads of size 4, which the kernel refuses"),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_holds_back_where_the_identity_does_not_hold(text: str, why: str) -> None:
    model = parse(text.replace("Where (u, u, u)", "And (u, u)"), WEIGHTS)
    before = [node.op_type for node in model.graph]
    from onnxopt.probe.annotate import annotate
    from onnxopt.sizes import Derivation

    if why != "mask not canonical":
        annotate(model, Derivation(), everything=True)
    assert pass_of("remove-padding").run(model) == 0
    assert before == [node.op_type for node in model.graph]


@pytest.mark.parametrize("kind", ["none", "left", "holes", "empty row"])
@pytest.mark.parametrize("operator", ["MatMulIntegerToFloat", "MatMulNBits"])
def test_quantized_linears_run_on_real_tokens(operator: str, kind: str) -> None:
    quantized: dict[str, Constant] = {"step": np.float32(0.03), "zero": np.uint8(128)}
    if operator == "MatMulNBits":
        quantized |= {"w8": generator.integers(0, 255, (48, 1, 16)).astype(np.uint8)}
        quantized |= {"scales": generator.random(48).astype(np.float32)}
        product = "p = com.microsoft.MatMulNBits <K = 16, N = 48, bits = 8, block_size = 16> (x, w8, scales)"
    else:
        quantized |= {"w8": generator.integers(-127, 127, (16, 48)).astype(np.int8)}
        product = "x8 = QuantizeLinear (x, step, zero) "
        product += "p = com.microsoft.MatMulIntegerToFloat (x8, w8, step, step, zero)"
    text = layer().replace("p = MatMul (x, w)", product)
    weights = {name: array for name, array in {**WEIGHTS, **quantized}.items() if name in text and name != "w"}
    outcome = run_passes(
        text, "remove-padding", weights=weights, feeds={"ids": ids(), "mask": masks(kind)}, prove=False
    )
    assert outcome.entry.applied == 1
    feeds = observe(outcome.original, {"ids": ids(), "mask": masks(kind)})[-1].feeds
    real = feeds["mask"] != 0
    assert np.abs(outcome.before["y"][real] - outcome.after["y"][real]).max() < 1e-4
    gathers = outcome.ops.index("Gather", 1)
    assert gathers < outcome.ops.index(f"com.microsoft::{operator}"), "the tokens are packed in front of it"


def test_a_quantization_that_looks_at_all_tokens_keeps_the_padding() -> None:
    weights: dict[str, Constant] = {**WEIGHTS, "w8": np.ones((16, 48), np.int8), "step": np.float32(0.03)}
    text = layer().replace("p = MatMul (x, w)", "p = com.microsoft.DynamicQuantizeMatMul (x, w8, step)")
    used = {name: array for name, array in weights.items() if name in text and name != "w"}
    outcome = run_passes(text, "remove-padding", weights=used, feeds={"ids": ids(), "mask": masks("holes")})
    assert outcome.entry.applied == 0


def test_rows_without_a_key_keep_their_answer_where_nobody_calls_them_padding() -> None:
    text, given = layer(), {"ids": ids(), "mask": masks("holes")}
    for free, applied in (([], 1), (["mask"], 0)):
        outcome = run_passes(text, "remove-padding", weights=WEIGHTS, feeds=given, prove=False, free=free)
        assert outcome.entry.applied == applied
    assert outcome.reasons == ["mask may leave a row nothing to see, which has an answer all the same"]
