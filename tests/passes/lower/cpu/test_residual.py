from typing import Any

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

FIRST = "h = LayerNormalization(x, gamma, beta)"
FEED = "u = Gemm(h, v, c) r = Relu(u) d = Gemm(r, w, b)"
LAST = "a = Add(d, h) y = LayerNormalization(a, gamma, beta)"
BLOCK = f"{FIRST} {FEED} {LAST}"


def weights() -> dict[str, Array]:
    generator = np.random.default_rng(0)
    shapes: dict[str, int | tuple[int, int]] = {
        "gamma": 4,
        "beta": 4,
        "v": (4, 8),
        "c": 8,
        "w": (8, 4),
        "b": 4,
        "v2": (4, 8),
        "c2": 8,
        "w2": (8, 4),
        "b2": 4,
    }
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run(nodes: str, *steps: str, outputs: str = "float y", inputs: str = "float[rows,4] x", **more: Array) -> Outcome:
    text = f"g ({inputs}) => ({outputs}) {{ {nodes} }}"
    used = {n: array for n, array in {**weights(), **more}.items() if f" {n})" in text or f" {n}," in text}
    return run_passes(text, *(steps or ("fold-residual",)), weights=used)


@pytest.mark.parametrize("add", ["Add(d, h)", "Add(h, d)"])
def test_a_post_norm_block_adds_inside_the_product(add: str) -> None:
    outcome = run(BLOCK.replace("Add(d, h)", add), "fold-residual", "fold-residual", "remove-unused")
    assert outcome.ops == ["LayerNormalization", "Gemm", "Relu", "Gemm", "LayerNormalization"]
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    product = outcome.model.graph.node(3)
    assert product.inputs[2] is outcome.model.graph.node(0).outputs[0]
    assert np.allclose(outcome.constant("LayerNormalization", 2), weights()["beta"] + weights()["b"])
    assert np.allclose(outcome.constant("Gemm", 2), weights()["c"] - weights()["b"] @ weights()["v"], atol=1e-6)
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_layers_chain() -> None:
    feed = "u2 = Gemm(y1, v2, c2) r2 = Relu(u2) d2 = Gemm(r2, w2, b2)"
    second = f"{feed} a2 = Add(d2, y1) y = LayerNormalization(a2, gamma, beta)"
    outcome = run(BLOCK.replace("y =", "y1 =") + " " + second)
    assert outcome.entry.applied == 2
    assert "Add" not in outcome.ops
    assert outcome.worst_error() < 2e-5
    assert outcome.worst_error_at(1, 1) < 2e-5


def test_reaches_through_a_reshape_of_the_tokens_and_corrects_the_attention_kernel() -> None:
    nodes = """
      h = LayerNormalization(x, gamma, beta)
      t = Reshape(h, tokens)
      k = com.microsoft.Attention<num_heads=2>(t, qkv, qkv_bias)
      f = Reshape(k, rows)
      d = Gemm(f, square, b)
      a = Add(d, h)
      y = LayerNormalization(a, gamma, beta)"""
    generator = np.random.default_rng(1)
    outcome = run(
        nodes,
        tokens=np.array([1, -1, 4]),
        rows=np.array([-1, 4]),
        qkv=generator.standard_normal((4, 12)).astype(np.float32),
        qkv_bias=generator.standard_normal(12).astype(np.float32),
        square=generator.standard_normal((4, 4)).astype(np.float32),
    )
    assert outcome.entry.applied == 1
    assert "Add" not in outcome.ops
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_the_residual_may_be_flattened_from_tokens() -> None:
    nodes = """
      h3 = LayerNormalization(x, gamma, beta)
      h = Reshape(h3, rows)
      u = Gemm(h, v, c)
      r = Relu(u)
      d = Gemm(r, w, b)
      a = Add(d, h)
      y = LayerNormalization(a, gamma, beta)"""
    outcome = run(nodes, inputs="float[batch,sequence,4] x", rows=np.array([-1, 4]))
    assert outcome.entry.applied == 1
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_a_result_that_is_an_output_keeps_its_name() -> None:
    outcome = run(f"{FIRST} {FEED} y = Add(d, h)")
    assert outcome.entry.applied == 1
    assert outcome.ops[-1] == "Gemm"
    assert [value.name for value in outcome.model.graph.outputs] == ["y"]
    assert outcome.worst_error() < 1e-5


HELD_BACK = {
    "the norm is an output": (BLOCK, "float y, float h", {}),
    "the norm has a reader that is not linear": (BLOCK + " z = Relu(h)", "float y, float z", {}),
    "the norm is flattened for a reader that is not linear": (
        BLOCK + " f = Reshape(h, flat) z = Relu(f)",
        "float y, float z",
        {"flat": np.array([-1])},
    ),
    "a second addition reads the norm": (BLOCK + " z = Add(u, u) q = Add(h, x)", "float y, float z, float q", {}),
    "the product is an output": (BLOCK, "float y, float d", {}),
    "the product has another reader": (BLOCK + " z = Relu(d)", "float y, float z", {}),
    "a reader has no bias": (BLOCK.replace("Gemm(h, v, c)", "Gemm(h, v)"), "float y", {}),
    "a reader has a transposed weight": (
        BLOCK.replace("Gemm(h, v, c)", "Gemm<transB=1>(h, vt, c)"),
        "float y",
        {"vt": weights()["v"].T},
    ),
    "the product has no bias": (BLOCK.replace("Gemm(r, w, b)", "Gemm(r, w)"), "float y", {}),
    "the product is scaled": (BLOCK.replace("Gemm(r, w, b)", "Gemm<alpha=2.0>(r, w, b)"), "float y", {}),
    "the bias is scaled": (BLOCK.replace("Gemm(r, w, b)", "Gemm<beta=2.0>(r, w, b)"), "float y", {}),
    "the bias has one number": (BLOCK, "float y", {"b": np.ones(1, np.float32)}),
    "a reader's bias has one number": (BLOCK, "float y", {"c": np.ones(1, np.float32)}),
    "the norm has no beta": (BLOCK.replace("(x, gamma, beta)", "(x, gamma)"), "float y", {}),
    "the norm feeds the product itself": (
        f"{FIRST} d = Gemm(h, square, b) {LAST}",
        "float y",
        {"square": np.eye(4, dtype=np.float32) * 3},
    ),
    "pre-norm": (
        f"{FIRST} {FEED} y = Add(d, x)",
        "float y",
        {},
    ),
}


@pytest.mark.parametrize(("nodes", "outputs", "more"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_when(nodes: str, outputs: str, more: dict[str, Any]) -> None:
    outcome = run(nodes, outputs=outputs, **more)
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.ops.count("Add") == nodes.count("Add(")
    assert outcome.worst_error() == 0


@pytest.mark.parametrize("dynamic", ["b", "beta", "c"])
def test_holds_back_when_a_vector_is_no_constant(dynamic: str) -> None:
    size = 8 if dynamic == "c" else 4
    nodes = BLOCK.replace(f" {dynamic})", " given)", 1) if dynamic != "beta" else BLOCK.replace("beta)", "given)", 1)
    outcome = run(nodes, inputs=f"float[rows,4] x, float[{size}] given")
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])


def test_a_norm_whose_rows_are_cut_on_the_way_holds_back() -> None:
    nodes = (
        f"{FIRST} cut = Reshape(h, halves) u = Gemm(cut, v, c) r = Relu(u) d = Gemm(r, w, b) a = Add(d, cut) y = Neg(a)"
    )
    generator = np.random.default_rng(2)
    outcome = run(
        nodes,
        halves=np.array([-1, 2]),
        v=generator.standard_normal((2, 8)).astype(np.float32),
        w=generator.standard_normal((8, 2)).astype(np.float32),
        b=generator.standard_normal(2).astype(np.float32),
    )
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
