"""Three projections of the same input become one product.

Covers: passes/words/projections.py
"""

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

HEADS = "q_num_heads=2, kv_num_heads=2"


def graph(biased: str = "qkv", attention: str = f"y = Attention<{HEADS}>(q, k, v)", more: str = "") -> str:
    nodes = " ".join(
        f"p{n} = MatMul(x, w{n}) {n} = Add(p{n}, b{n})" if n in biased else f"{n} = MatMul(x, w{n})" for n in "qkv"
    )
    return f"g (float[batch,sequence,8] x{more}) => (float y) {{ {nodes} {attention} }}"


def run(text: str, *steps: str, widths: tuple[int, int, int] = (8, 8, 8), **more: Array) -> Outcome:
    generator = np.random.default_rng(0)
    weights: dict[str, Array] = dict(more)
    for name, width in zip("qkv", widths, strict=True):
        weights.setdefault(f"w{name}", generator.standard_normal((8, width)).astype(np.float32))
        weights.setdefault(f"b{name}", generator.standard_normal(width).astype(np.float32))
    used = {name: array for name, array in weights.items() if f" {name})" in text or f"{name}," in text}
    return run_passes(text, *(steps or ("pack-qkv",)), weights=used)


@pytest.mark.parametrize("biased", ["qkv", "q", "kv", "qv"])
def test_packs_three_projections_and_fills_missing_biases_with_zeros(biased: str) -> None:
    outcome = run(graph(biased), "pack-qkv", "pack-qkv", "remove-unused")
    assert outcome.ops == ["MatMul", "Add", "Split", "Attention"]
    assert outcome.constant("MatMul", 1).shape == (8, 24)
    assert outcome.constant("Split", 1).tolist() == [8, 8, 8]
    bias = outcome.constant("Add", 1).reshape(3, 8)
    assert "".join(name for name, row in zip("qkv", bias, strict=True) if row.any()) == biased
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_packs_projections_without_biases() -> None:
    outcome = run(graph(""))
    assert outcome.ops == ["MatMul", "Split", "Attention"]
    assert outcome.worst_error() < 1e-5


def test_hands_the_mask_and_the_attributes_on() -> None:
    attention = f"y = Attention<{HEADS}, scale=0.2, softcap=3.0>(q, k, v, mask)"
    outcome = run(graph("qkv", attention, ", float[batch,1,sequence,sequence] mask"))
    assert outcome.ops[-1] == "Attention"
    assert outcome.attributes("Attention")["softcap"] == 3.0
    assert outcome.worst_error() < 1e-5


def test_widths_may_differ() -> None:
    attention = "y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)"
    outcome = run(graph("qkv", attention), widths=(16, 8, 12))
    assert outcome.constant("Split", 1).tolist() == [16, 8, 12]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_holds_back_when_a_weight_is_shared() -> None:
    text = graph("").replace("MatMul(x, wk)", "MatMul(x, wq)")
    outcome = run(text)
    assert outcome.reasons == ["the weight of q is shared"]


def test_holds_back_on_a_bias_that_is_not_a_vector() -> None:
    outcome = run(graph("qkv"), bk=np.ones((1, 1, 8), np.float32))
    assert outcome.reasons == ["the bias of k is not a vector"]


def test_holds_back_on_a_weight_that_is_not_a_matrix() -> None:
    outcome = run(graph("qkv"), wv=np.ones((1, 8, 8), np.float32))
    assert outcome.reasons == ["the weight of v is not a matrix"]


def test_holds_back_on_heads() -> None:
    text = """
    g (float[batch,2,sequence,8] x) => (float y) {
      q = MatMul(x, wq)
      k = MatMul(x, wk)
      v = MatMul(x, wv)
      y = Attention(q, k, v)
    }"""
    outcome = run(text)
    assert outcome.reasons == ["x has rank 4, needs 3"]


def test_projections_of_two_inputs_are_cross_attention() -> None:
    text = graph("", more=", float[batch,sequence,8] z").replace("MatMul(x, wk)", "MatMul(z, wk)")
    outcome = run(text)
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])


def test_holds_back_when_a_cache_is_written() -> None:
    text = graph("qkv", f"y, past_k, past_v = Attention<{HEADS}>(q, k, v)").replace(
        "(float y)", "(float y, float past_k)"
    )
    outcome = run(text)
    assert outcome.entry.applied == 0
    assert outcome.worst_error() == 0


def test_holds_back_when_a_projection_is_an_output_too() -> None:
    outcome = run(graph().replace("(float y)", "(float y, float k)"))
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]
