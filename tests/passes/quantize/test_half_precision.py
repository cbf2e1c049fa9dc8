"""16 bits where kernels take them, one Cast where they meet 32, and nothing else moved."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import constant
from onnxopt.passes.quantize.half_precision import DTYPES, OWN, STANDARD, HalfPrecision, narrow
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.precision import HalfKind, HalfPlan
from onnxopt.rewrite.registry import get
from tests.support.rules import names_read, observe, parse

WEIGHTS = {
    "w": np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6),
    "gamma": np.linspace(0.5, 2, 6, dtype=np.float32),
    "beta": np.linspace(-1, 1, 6, dtype=np.float32),
}
INPUTS = "float[batch,sequence,6] x, int64[batch,sequence] mask"


def halved(
    nodes: str,
    outputs: str = "float[batch,sequence,6] y",
    *,
    kind: HalfKind = "fp16",
    inputs: str = INPUTS,
    weights: dict[str, np.ndarray] | None = None,
    **plan: Any,
) -> tuple[ir.Model, HalfPrecision]:
    text = f"g ({inputs}) => ({outputs}) {{ {nodes} }}"
    given = {**WEIGHTS, **(weights or {})}
    model = parse(text, {name: array for name, array in given.items() if name in text})
    from onnxopt.proof.prepare import prepare

    observations = observe(model)
    prepare(model)
    expected = GraphRunner(model).run(observations[1].feeds)[0]
    step = get("half-precision", HalfPlan(kind, **plan))
    assert isinstance(step, HalfPrecision)
    step.run(model)
    feeds = observations[1].feeds
    kinds = {value.name: value.dtype.numpy() for value in model.graph.inputs if value.dtype is not None}
    feeds = {name: array.astype(kinds[name]) for name, array in feeds.items()}
    for name, array in GraphRunner(model, widen=True).run(feeds)[0].items():
        scale = float(np.abs(expected[name]).max())
        limit = 0.005 if kind == "fp16" else 0.04
        assert np.abs(array.astype(np.float32) - expected[name]).max() <= limit * scale, name
    return model, step


def types(model: ir.Model) -> dict[str, str]:
    return {
        node.op_type: node.outputs[0].dtype.name  # type: ignore[union-attr]  # prepared
        for node in model.graph
        if node.op_type != "Cast"
    }


BLOCK = "p = MatMul(x, w) s = Add(p, x) y = LayerNormalization(s, gamma, beta)"


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_block_is_narrow_inside_and_float_at_its_edges(kind: HalfKind) -> None:
    model, _ = halved(BLOCK, kind=kind)
    ops = Counter(node.op_type for node in model.graph)
    assert ops == {"MatMul": 1, "Add": 1, "LayerNormalization": 1, "Cast": 2}  # x once for both readers, and y
    assert set(types(model).values()) == {DTYPES[kind].name}
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [
        ir.DataType.FLOAT,
        ir.DataType.INT64,
        ir.DataType.FLOAT,
    ]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert {value.dtype for value in model.graph.initializers.values()} == {DTYPES[kind]}


def test_running_it_again_changes_nothing() -> None:
    model, _ = halved(BLOCK)
    before = Counter(node.op_type for node in model.graph)
    assert HalfPrecision(HalfPlan()).run(model) == 0
    assert before == Counter(node.op_type for node in model.graph)


def test_without_a_plan_nothing_changes() -> None:
    model = parse(f"g ({INPUTS}) => (float[batch,sequence,6] y) {{ y = MatMul(x, w) }}", {"w": WEIGHTS["w"]})
    assert HalfPrecision().run(model) == 0


def test_what_sums_up_stays_in_float32() -> None:
    nodes = "p = MatMul(x, w) e = Softmax(p) q = ReduceMean(e) y = Mul(p, q)"
    model, _ = halved(nodes)
    assert types(model) == {"MatMul": "FLOAT16", "Softmax": "FLOAT", "ReduceMean": "FLOAT", "Mul": "FLOAT"}


def test_a_sum_over_tokens_stays_in_float32() -> None:
    nodes = "c = Cast <to = 1> (mask) u = Unsqueeze (c, one) p = MatMul(x, w) y = MatMul (u, p)"
    model, _ = halved(nodes, "float[batch,1,6] y", weights={"one": np.array([1])})
    made = [(node.op_type, node.outputs[0].dtype) for node in model.graph if node.op_type in ("MatMul", "Unsqueeze")]
    assert made == [
        ("Unsqueeze", ir.DataType.FLOAT),
        ("MatMul", ir.DataType.FLOAT16),
        ("MatMul", ir.DataType.FLOAT),
    ]


def test_a_mask_is_made_narrow_at_once() -> None:
    nodes = "c = Cast <to = 1> (mask) u = Unsqueeze (c, two) p = MatMul(x, w) y = Mul (p, u)"
    model, _ = halved(nodes, weights={"two": np.array([2])})
    casts = [(names_read(node)[0], node.outputs[0].dtype) for node in model.graph if node.op_type == "Cast"]
    assert sorted(name for name, dtype in casts if dtype == ir.DataType.FLOAT16) == ["mask", "x"]


def test_a_literal_beyond_the_range_becomes_the_largest_number() -> None:
    nodes = "b = Cast <to = 9> (mask) u = Unsqueeze (b, two) p = MatMul(x, w) m = Where (u, p, low) y = Tanh (m)"
    model, step = halved(nodes, weights={"two": np.array([2]), "low": np.array(-3.4e38, np.float32)})
    assert step.clamped == ["low"]
    low = constant(model.graph.initializers["low"])
    assert low is not None
    assert low == np.float16(-65504)


def test_infinity_stays_infinity_and_bf16_reaches_as_far_as_float32() -> None:
    array, beyond = narrow(np.array([-np.inf, np.inf, 1e5], np.float32), "fp16")
    assert beyond
    assert array.tolist() == [-np.inf, np.inf, 65504]
    wide, beyond = narrow(np.array([-3e38], np.float32), "bf16")
    assert not beyond
    assert wide.dtype == ml_dtypes.bfloat16


def test_a_constant_with_readers_of_both_kinds_is_there_twice() -> None:
    nodes = "p = MatMul(x, w) h = Add (p, beta) e = Exp (h) y = Mul (e, beta)"
    model, _ = halved(nodes)
    assert model.graph.initializers["beta"].dtype == ir.DataType.FLOAT
    assert model.graph.initializers["beta/float16"].dtype == ir.DataType.FLOAT16


def test_the_plan_keeps_nodes_and_says_why() -> None:
    model, step = halved(BLOCK, wide={"s": "s reached 3e+04"})
    assert types(model) == {"MatMul": "FLOAT16", "Add": "FLOAT", "LayerNormalization": "FLOAT16"}
    assert [(one.where, one.reason) for one in step.refusals] == [("s", "stays in float32: s reached 3e+04")]


def test_a_branch_keeps_float_and_reads_a_cast() -> None:
    nodes = """
    p = MatMul(x, w)
    c = ReduceMax <keepdims = 0> (mask)
    b = Cast <to = 9> (c)
    i = If (b) <
      then_branch = t () => (float[batch,sequence,6] a) { a = Mul (p, p) },
      else_branch = f () => (float[batch,sequence,6] d) { d = Identity (p) }
    >
    y = MatMul (i, w)"""
    text = f"g ({INPUTS}) => (float[batch,sequence,6] y) {{ {nodes} }}"
    model = parse(text, {"w": WEIGHTS["w"]})
    feeds = observe(model)[0].feeds
    for value in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs)):
        if value.name in ("x", "p", "i", "y"):
            value.type = ir.TensorType(ir.DataType.FLOAT)
    branch = next(node for node in model.graph if node.op_type == "If")
    for name in ("then_branch", "else_branch"):
        for node in branch.attributes[name].as_graph():
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    expected = GraphRunner(model).run(feeds)[0]["y"]
    HalfPrecision(HalfPlan()).run(model)
    inner = branch.attributes["then_branch"].as_graph()[0]
    assert {value.name for value in inner.inputs if value is not None} == {"p/float"}
    assert inner.outputs[0].dtype == ir.DataType.FLOAT
    found = GraphRunner(model).run(feeds)[0]["y"]
    assert np.abs(found - expected).max() <= 0.005 * np.abs(expected).max()


DECODER = """
q = MatMul (x, wq)
a, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2>
    (q, , , past_key, past_value, lengths, total)
y = MatMul (a, w)"""
CACHED = "float[1,1,16] x, float[1,2,9,8] past_key, float[1,2,9,8] past_value, int32[1] lengths, int32 total"


def test_a_cache_is_handed_over_narrow() -> None:
    rng = np.random.default_rng(0)
    weights = {"wq": rng.standard_normal((16, 48)), "w": rng.standard_normal((16, 16))}
    text = (
        f"g ({CACHED}) => (float[1,1,16] y, float[1,2,10,8] present_key, float[1,2,10,8] present_value) {{{DECODER}}}"
    )
    model = parse(text, {name: array.astype(np.float32) for name, array in weights.items()})
    caches = frozenset({"past_key", "past_value", "present_key", "present_value"})
    feeds = {
        "x": rng.standard_normal((1, 1, 16)).astype(np.float32),
        "past_key": rng.standard_normal((1, 2, 9, 8)).astype(np.float32),
        "past_value": rng.standard_normal((1, 2, 9, 8)).astype(np.float32),
        "lengths": np.array([9], np.int32),
        "total": np.array(10, np.int32),
    }
    for node in model.graph:
        for value in node.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    expected = GraphRunner(model).run(feeds)[0]
    HalfPrecision(HalfPlan(caches=caches)).run(model)
    assert {v.name for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype == ir.DataType.FLOAT16} == caches
    assert sum(node.op_type == "Cast" for node in model.graph) == 2  # x and y
    narrowed = {name: array.astype(np.float16) if name in caches else array for name, array in feeds.items()}
    for name, array in GraphRunner(model, widen=True).run(narrowed)[0].items():
        assert np.abs(array.astype(np.float32) - expected[name]).max() <= 0.005 * np.abs(expected[name]).max(), name


def test_every_narrow_operator_may_have_the_type_by_its_schema() -> None:
    import onnx

    for op_type, kinds in STANDARD.items():
        if op_type == "SimplifiedLayerNormalization":  # ONNX Runtime's, in the standard domain
            continue
        schema = onnx.defs.get_schema(op_type, 23)
        allowed = {one for constraint in schema.type_constraints for one in constraint.allowed_type_strs}
        assert {"tensor(float16)" if kind == "fp16" else "tensor(bfloat16)" for kind in kinds} <= allowed, op_type


def test_every_own_operator_may_have_the_type_by_the_runtimes_schema() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    schemas = {one.name: one for one in runtime.get_all_operator_schema() if one.domain == "com.microsoft"}
    for op_type, kinds in OWN.items():
        allowed = {one for constraint in schemas[op_type].type_constraints for one in constraint.allowed_type_strs}
        assert {"tensor(float16)" if kind == "fp16" else "tensor(bfloat16)" for kind in kinds} <= allowed, op_type
