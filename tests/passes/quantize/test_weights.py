"""Products and lookups with quantized weights: what the kernel computes is what the codes stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxopt.graph import constant, dims, initializer_bytes
from onnxopt.graph.linears import find_linears, find_tables, label_of
from onnxopt.graph.weight_files import WeightFile, weights_in_file
from onnxopt.passes.quantize.weights import QuantizeEmbedding, QuantizeWeights4, QuantizeWeights8, side_by_side
from onnxopt.qmath.blocks import dequantize, quantize, sqnr_db
from onnxopt.qmath.precision import Plan, PlannedLinear, Precision
from onnxopt.spec import Array
from tests.support.planned import plan_of, planned
from tests.support.rules import parse, run_passes

NAMES = ["quantize-weights-4", "quantize-weights-8", "quantize-embedding"]
RULE = {4: QuantizeWeights4, 8: QuantizeWeights8}
SPELLINGS = {
    "MatMul": ("3", "y = MatMul(x, w)"),
    "MatMul and Add": ("3", "p = MatMul(x, w) y = Add(p, b)"),
    "Add turned": ("3", "p = MatMul(x, w) y = Add(b, p)"),
    "Gemm": ("2", "y = Gemm(x, w, b)"),
    "Gemm, stored turned": ("2", "y = Gemm<transB=1>(x, wt, b)"),
    "turned in the graph": ("3", "t = Transpose<perm=[1,0]>(wt) y = MatMul(x, t)"),
}


def weight(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng((len(shape), seed)).standard_normal(shape) * 0.1).astype(np.float32)


def graph(spelling: str, width: int = 96) -> tuple[str, dict[str, Array]]:
    rank, nodes = SPELLINGS[spelling]
    axes = "batch,sequence" if rank == "3" else "rows"
    w = weight(width, 40)
    every = {"w": w, "wt": w.T.copy(), "b": weight(40)}
    used = {
        name: array
        for name, array in every.items()
        if f"{name})" in nodes or f" {name}" in nodes or f"({name}," in nodes
    }
    return f"g (float[{axes},{width}] x) => (float[{axes},40] y) {{ {nodes} }}", used


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_spelling_of_a_linear_layer(spelling: str, bits: int, *, symmetric: bool) -> None:
    text, weights = graph(spelling)
    plan = plan_of(text, weights, bits, symmetric=symmetric)
    outcome = run_passes(text, RULE[bits](plan), RULE[bits](plan), weights=weights)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.ops[-1] == "com.microsoft::MatMulNBits"
    assert "Add" not in outcome.ops
    assert outcome.rolled_back == []
    (found,) = plan.linears.values()
    assert found.blocks is not None
    rounded = dequantize(found.blocks)
    other = {"w": rounded, "wt": rounded.T.copy(), "b": weight(40)}
    # the kernel rounds x to 8 bits per block: half a step of 1/127 of the largest of 32, over 96 products
    expected = run_passes(text, weights={name: other[name] for name in weights}).after["y"]
    assert sqnr_db(expected.reshape(-1, 40), outcome.after["y"].reshape(-1, 40)) > 35


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("width", [48, 100, 576])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_any_width_and_block(block: int, width: int, bits: int, *, symmetric: bool) -> None:
    """Widths that are no multiple of the block, and odd numbers of blocks whose zero points share a byte."""
    text, weights = graph("MatMul", width)
    plan = plan_of(text, weights, bits, block, symmetric=symmetric)
    outcome = run_passes(text, RULE[bits](plan), weights=weights)
    blocks = -(-width // block)
    assert outcome.attributes("MatMulNBits") == {
        "K": width,
        "N": 40,
        "bits": bits,
        "block_size": block,
        "accuracy_level": 4,
    }
    assert outcome.constant("MatMulNBits", 1).shape == (40, blocks, block * bits // 8)
    if not symmetric:
        assert outcome.constant("MatMulNBits", 3).shape == (40, -(-blocks * bits // 8))
    rounded = dequantize(next(iter(plan.linears.values())).blocks)  # type: ignore[arg-type]  # planned with blocks
    expected = run_passes(text, weights={"w": rounded}).after["y"]
    assert sqnr_db(expected.reshape(-1, 40), outcome.after["y"].reshape(-1, 40)) > 35


def test_an_empty_plan_changes_nothing() -> None:
    text, weights = graph("MatMul and Add")
    for name in NAMES:
        outcome = run_passes(text, name, weights=weights)
        assert (outcome.entry.applied, outcome.ops) == (0, ["MatMul", "Add"])
        assert all(item.needless for item in outcome.entry.refused)


def test_each_pass_takes_its_own_kind() -> None:
    text, weights = graph("MatMul")
    assert run_passes(text, QuantizeWeights8(plan_of(text, weights, 4)), weights=weights).entry.applied == 0
    assert run_passes(text, QuantizeWeights4(plan_of(text, weights, 8)), weights=weights).entry.applied == 0


def test_a_plan_for_another_weight_is_refused_with_the_reason() -> None:
    text, weights = graph("MatMul")
    wrong = Plan({"w": planned(weight(64, 40))})
    outcome = run_passes(text, QuantizeWeights8(wrong), weights=weights)
    assert outcome.reasons == ["the plan's codes are [40, 64]"]
    bare = Plan({"w": PlannedLinear(Precision("int8-weights", 32))})
    assert run_passes(text, QuantizeWeights8(bare), weights=weights).reasons == ["the plan has no codes for it"]


def test_layers_that_share_a_weight_keep_their_own_plans() -> None:
    text = "g (float[rows,64] x) => (float[rows,64] y) { h = MatMul(x, w) y = MatMul(h, w) }"
    w = weight(64, 64)
    plan = Plan({"w": planned(w), "w#2": PlannedLinear(Precision())})
    outcome = run_passes(text, QuantizeWeights8(plan), QuantizeWeights8(plan), weights={"w": w})
    assert outcome.ops == ["com.microsoft::MatMulNBits", "MatMul"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    mixed = Plan({"w": planned(w, 4), "w#2": planned(w, 8)})
    outcome = run_passes(text, QuantizeWeights4(mixed), QuantizeWeights8(mixed), weights={"w": w})
    bits = [node.attributes["bits"].value for node in outcome.model.graph]
    assert bits == [4, 8]


def test_a_packed_projection_takes_the_codes_of_its_parts() -> None:
    text = "g (float[batch,sequence,64] x) => (float[batch,sequence,128] y) { y = MatMul(x, w) }"
    q, k, v = weight(64, 64, seed=1), weight(64, 32, seed=2), weight(64, 32, seed=3)
    model = parse(text, {"w": np.concatenate([q, k, v], axis=1)})
    model.graph.initializers["w"].metadata_props["onnxopt.origin"] = "a.q+k+v"
    parts = {f"a.{name}": planned(one, 4, symmetric=False) for name, one in zip("qkv", (q, k, v), strict=True)}
    outcome = run_passes(model, QuantizeWeights4(Plan(parts)))
    assert outcome.ops == ["com.microsoft::MatMulNBits"]
    whole = quantize(np.concatenate([q, k, v], axis=1), 4, 32, symmetric=False)
    np.testing.assert_array_equal(outcome.constant("MatMulNBits", 2), whole.scales)
    node = next(iter(outcome.model.graph))
    assert label_of(node.inputs[1]) == "a.q+k+v"  # type: ignore[arg-type]  # a MatMulNBits has codes
    mixed = Plan({**parts, "a.v": planned(v, 4, 64, symmetric=False)})
    assert run_passes(model.clone(), QuantizeWeights4(mixed)).entry.applied == 0
    some = Plan({name: one for name, one in parts.items() if name != "a.k"})
    assert run_passes(model.clone(), QuantizeWeights4(some)).entry.applied == 0


def test_codes_of_a_large_packed_projection_lie_in_a_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parts = [quantize(random.standard_normal((1024, 600)).astype(np.float32), 8, 64) for _ in range(2)]
    expected = side_by_side(parts)
    assert not (tmp_path / "weights").exists()
    with weights_in_file(WeightFile(tmp_path / "weights")):
        found = side_by_side(parts)
    assert (tmp_path / "weights").stat().st_size == 2 * 1024 * 600
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)
    np.testing.assert_array_equal(expected.codes[600:], parts[1].codes)


def test_the_bias_of_the_plan_replaces_the_layers_own() -> None:
    text, weights = graph("MatMul and Add")
    other = (weights["b"] + 1e-3).astype(np.float32)  # a correction is small; the proof turns others down
    plan = Plan({label: replace(one, bias=other) for label, one in plan_of(text, weights)})
    outcome = run_passes(text, QuantizeWeights8(plan), weights=weights)
    np.testing.assert_array_equal(outcome.constant("MatMulNBits", 5), other)


LOOKUP = "g (int64[batch,sequence] ids) => (float[batch,sequence,64] y) { y = Gather(words, ids) }"
TIED = """
g (int64[batch,sequence] ids) => (float[batch,sequence,50] y) {
  x = Gather(words, ids)
  h = Transpose<perm=[1,0]>(words)
  y = MatMul(x, h)
}
"""


def ids() -> list[Array]:
    return [np.random.default_rng(0).integers(0, 50, (2, 7)), np.array([[0, 49]]), np.array([[3]])]


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_a_table_is_looked_up_in_codes(bits: int, block: int, *, symmetric: bool) -> None:
    weights = {"words": weight(50, 64)}
    plan = plan_of(LOOKUP, weights, bits, block, symmetric=symmetric)
    assert list(plan.linears) == ["words#table"]
    outcome = run_passes(LOOKUP, QuantizeEmbedding(plan), weights=weights, feeds={"ids": ids()})
    assert outcome.ops == ["com.microsoft::GatherBlockQuantized"]
    rounded = dequantize(plan.linears["words#table"].blocks).T  # type: ignore[arg-type]  # planned with blocks
    np.testing.assert_allclose(outcome.after["y"], rounded[ids()[2]], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_a_table_that_is_also_the_last_layer_is_stored_once(bits: int, *, symmetric: bool) -> None:
    weights = {"words": weight(50, 64)}
    plan = plan_of(TIED, weights, bits, symmetric=symmetric)
    assert list(plan.linears) == ["words", "words#table"]
    steps = (RULE[bits](plan), QuantizeEmbedding(plan), "remove-unused")
    outcome = run_passes(TIED, *steps, weights=weights, feeds={"ids": ids()})
    codes = 50 * 64 * bits // 8
    small = 50 * 2 * 4 + (0 if symmetric else 50 * 2 * bits // 8) + 16
    assert codes <= initializer_bytes(outcome.model) <= codes + small + 50
    gather = next(node for node in outcome.model.graph if node.op_type == "GatherBlockQuantized")
    product = next(node for node in outcome.model.graph if node.op_type == "MatMulNBits")
    assert gather.inputs[0].producer().inputs[0] is product.inputs[1]  # type: ignore[union-attr]  # a Reshape
    plain = run_passes(TIED, weights=weights, feeds={"ids": ids()}).after["y"]
    assert sqnr_db(plain.reshape(-1, 50), outcome.after["y"].reshape(-1, 50)) > (12 if bits == 4 else 35)


def test_tables_of_other_shapes_stay() -> None:
    narrow = {"words": weight(50, 40)}
    text = LOOKUP.replace("64]", "40]")
    outcome = run_passes(text, QuantizeEmbedding(plan_of(text, narrow)), weights=narrow, feeds={"ids": ids()})
    assert outcome.reasons == ["a row is not whole blocks of 32"]
    other = Plan({"words#table": planned(weight(64, 30))})
    outcome = run_passes(LOOKUP, QuantizeEmbedding(other), weights={"words": weight(50, 64)}, feeds={"ids": ids()})
    assert outcome.reasons == ["the plan's codes are for another table"]
    columns = LOOKUP.replace("Gather(", "Gather<axis=1>(").replace("batch,sequence,64] y", "50,batch,sequence] y")
    model = parse(columns, {"words": weight(50, 64)})
    assert find_tables(model) == []


def test_codes_carry_the_name_of_their_layer() -> None:
    text, weights = graph("MatMul")
    model = parse(text, weights)
    model.graph.initializers["w"].name = "model.layers.3.mlp.down_proj.weight"
    (linear,) = find_linears(model)
    outcome = run_passes(model, QuantizeWeights8(Plan({linear.label: planned(weights["w"])})))
    (node,) = outcome.model.graph
    assert label_of(node.inputs[1]) == "layers.3.mlp.down_proj"  # type: ignore[arg-type]  # a MatMulNBits has codes
    assert constant(node.inputs[1]) is not None
    assert dims(node.inputs[1]) == (40, 3, 32)
