import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import names_read, run_passes


def weight(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("nodes", ["p = MatMul(x, w) y = Add(p, b)", "p = MatMul(x, w) y = Add(b, p)"])
def test_writes_a_matrix_times_weight_plus_bias_as_gemm(nodes: str) -> None:
    text = f"g (float[batch,4] x) => (float[batch,6] y) {{ {nodes} }}"
    outcome = run_passes(text, "fuse-linear", "fuse-linear", weights={"w": weight(4, 6), "b": weight(6)})
    assert outcome.ops == ["Gemm"]
    assert names_read(outcome.model.graph.node(0)) == ["x", "w", "b"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


HELD_BACK = {
    "tokens": ("batch,sequence,4", weight(4, 6), weight(6), "x has rank 3; Gemm takes a matrix"),
    "a stack of weights": ("batch,4", weight(2, 4, 6), weight(6), "the weight is not a matrix"),
    "a weight that is a vector": ("batch,4", weight(4), np.ones(1, np.float32), "the weight is not a matrix"),
    "a scalar bias": ("batch,4", weight(4, 6), np.array(1, np.float32), "the bias has shape ()"),
    "a bias of one": ("batch,4", weight(4, 6), np.ones(1, np.float32), "the bias has shape (1,)"),
    "a bias that adds an axis": ("batch,4", weight(4, 6), weight(1, 1, 6), "the bias has shape (1, 1, 6)"),
}


@pytest.mark.parametrize(("shape", "w", "b", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(shape: str, w: Array, b: Array, reason: str) -> None:
    text = f"g (float[{shape}] x) => (float y) {{ p = MatMul(x, w) y = Add(p, b) }}"
    outcome = run_passes(text, "fuse-linear", weights={"w": w, "b": b})
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])


def test_an_integer_product_stays() -> None:
    text = "g (int32[batch,4] x) => (int32[batch,6] y) { p = MatMul(x, w) y = Add(p, b) }"
    outcome = run_passes(text, "fuse-linear", weights={"w": np.ones((4, 6), np.int32), "b": np.ones(6, np.int32)})
    assert outcome.reasons == ["x is INT32; needs a float tensor"]


@pytest.mark.parametrize("bias", [", b", ""])
def test_stores_a_transposed_weight_the_right_way_round(bias: str) -> None:
    text = f"g (float[batch,4] x) => (float[batch,6] y) {{ y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w{bias}) }}"
    weights = {"w": weight(6, 4), **({"b": weight(6)} if bias else {})}
    outcome = run_passes(text, "store-weight-untransposed", "store-weight-untransposed", weights=weights)
    assert outcome.ops == ["Gemm"]
    assert "transB" not in outcome.attributes("Gemm")
    stored = outcome.constant("Gemm", 1)
    assert np.array_equal(stored, weight(6, 4).T)
    assert stored.flags.c_contiguous
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_a_transposed_weight_that_others_read_stays() -> None:
    text = "g (float[batch,4] x, float[batch,6] z) => (float y, float u) { y = Gemm<transB=1>(x, w) u = MatMul(z, w) }"
    outcome = run_passes(text, "store-weight-untransposed", weights={"w": weight(6, 4)})
    assert outcome.reasons == ["the weight is shared"]


@pytest.mark.parametrize("attributes", ["transB=0", "transA=1, transB=1"])
def test_leaves_other_gemms_alone(attributes: str) -> None:
    text = f"g (float[4,4] x) => (float[4,4] y) {{ y = Gemm<{attributes}>(x, w) }}"
    outcome = run_passes(text, "store-weight-untransposed", weights={"w": weight(4, 4)})
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])
