import numpy as np
import pytest

from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Array
from tests.support.rules import names_read, run_passes


def weight(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("nodes", ["p = MatMul(x, w) y = Add(p, b)", "p = MatMul(x, w) y = Add(b, p)"])
@pytest.mark.parametrize("shape", ["batch,sequence,4", "batch,7,4", "2,3,4", "batch,2,sequence,4"])
def test_runs_all_tokens_as_rows_of_one_product(nodes: str, shape: str) -> None:
    text = f"g (float[{shape}] x) => (float y) {{ {nodes} }}"
    outcome = run_passes(text, "lower-linear", "lower-linear", weights={"w": weight(4, 6), "b": weight(6)})
    assert [op for op in outcome.ops if op not in ("Shape", "Concat")] == ["Reshape", "Gemm", "Reshape"]
    assert outcome.constant("Reshape", 1).tolist() == [-1, 4]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5
    assert outcome.worst_error_at(4, 3) < 1e-5


def test_batch_and_sequence_are_asked_from_an_input() -> None:
    text = "g (int64[batch,sequence] ids) => (float y) { x = Gather(t, ids) p = MatMul(x, w) y = Add(p, b) }"
    outcome = run_passes(text, "lower-linear", weights={"t": weight(2, 4), "w": weight(4, 6), "b": weight(6)})
    shapes = [node for node in outcome.model.graph if node.op_type == "Shape"]
    assert [names_read(node)[0] for node in shapes] == ["ids"]
    assert outcome.worst_error_at(1, 1) < 1e-5


HELD_BACK = {
    "a matrix": ("batch,4", weight(4, 6), weight(6), "x is a matrix already"),
    "a stack of weights": ("3,batch,4", weight(3, 4, 6), weight(6), "the weight is not a matrix"),
    "a scalar bias": ("batch,3,4", weight(4, 6), np.array(2, np.float32), "the bias has shape ()"),
    "a bias per token": ("batch,3,4", weight(4, 6), weight(3, 6), "the bias has shape (3, 6)"),
}


@pytest.mark.parametrize(("shape", "w", "b", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(shape: str, w: Array, b: Array, reason: str) -> None:
    text = f"g (float[{shape}] x) => (float y) {{ p = MatMul(x, w) y = Add(p, b) }}"
    outcome = run_passes(text, "lower-linear", weights={"w": w, "b": b})
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])


def test_holds_back_on_double_precision() -> None:
    text = "g (double[batch,3,4] x) => (double y) { p = MatMul(x, w) y = Add(p, b) }"
    weights = {"w": weight(4, 6).astype(np.float64), "b": weight(6).astype(np.float64)}
    assert run_passes(text, "lower-linear", weights=weights).reasons == ["x is DOUBLE; the CPU kernel takes float32"]


def test_axes_that_an_input_has_too_few_of_are_read_from_the_value() -> None:
    """Nobody knows how many rows a cut leaves; two layers and what lies between them read them once."""
    text = """
    g (float[batch,sequence,4] x, bool[sequence] keep) => (float y) {
      h = Compress<axis=1>(x, keep)
      p = MatMul(h, w)
      q = Add(p, b)
      s = Sigmoid(q)
      m = Mul(q, s)
      r = MatMul(m, v)
      y = Add(r, c)
    }"""
    weights = {"w": weight(4, 6), "b": weight(6), "v": weight(6, 5), "c": weight(5)}
    keep = [np.arange(size) % 3 < 2 for size in (7, 11, 13, 131)]
    passes = ("lower-linear", "merge-equal-nodes", "flatten-tokens", "remove-unused")
    outcome = run_passes(text, *passes, opset=18, weights=weights, feeds={"keep": keep})
    assert (outcome.entries[0].applied, outcome.entries[0].rolled_back) == (2, [])
    shapes = [names_read(node)[0] for node in outcome.model.graph if node.op_type == "Shape"]
    assert shapes == ["h"]
    assert outcome.ops.count("Gemm") == 2
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("opset", [14, 15, 18, 23])
@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (4, 29), (2, 700), (0, 3), (3, 0)])
def test_a_class_token_in_front_is_counted_at_every_size(batch: int, rows: int, opset: int) -> None:
    text = """
    g (float[batch,sequence,4] x, float[batch,1,4] c) => (float y) {
      h = Concat<axis=1>(c, x)
      p = MatMul(h, w)
      y = Add(p, b)
    }"""
    outcome = run_passes(text, "lower-linear", opset=opset, weights={"w": weight(4, 6), "b": weight(6)})
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    feeds = {"x": np.ones((batch, rows, 4), np.float32), "c": np.ones((batch, 1, 4), np.float32)}
    before, after = (GraphRunner(model).run(feeds)[0]["y"] for model in (outcome.original, outcome.model))
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_holds_back_where_no_reshape_keeps_an_empty_axis() -> None:
    text = """
    g (float[batch,sequence,4] x, float[batch,1,4] c) => (float y) {
      h = Concat<axis=1>(c, x)
      p = MatMul(h, w)
      y = Add(p, b)
    }"""
    keep = [np.ones(2, np.bool_), np.ones(3, np.bool_), np.array([1, 0, 1, 0, 1], np.bool_)]
    outcome = run_passes(
        text, "lower-linear", opset=13, weights={"w": weight(4, 6), "b": weight(6)}, feeds={"keep": keep}
    )
    assert outcome.reasons == ["no input has the axes of x, and below opset 14 no Reshape keeps a 0"]


@pytest.mark.parametrize("shape", ["batch,past_sequence,4", "past_sequence,batch,4"])
@pytest.mark.parametrize("opset", [11, 13, 14, 18])
def test_the_rows_of_a_past_may_be_none(shape: str, opset: int) -> None:
    text = f"g (float[{shape}] x) => (float y) {{ p = MatMul(x, w) y = Add(p, b) }}"
    outcome = run_passes(text, "lower-linear", weights={"w": weight(4, 6), "b": weight(6)}, opset=opset)
    assert (outcome.entry.applied, outcome.rolled_back) == (int(opset >= 14), [])
    if opset < 14:
        assert outcome.reasons == ["a past may be empty, and below opset 14 no Reshape keeps a 0"]
    sizes = (0, 3) if shape.startswith("past") else (3, 0)
    feeds = {"x": np.ones((*sizes, 4), np.float32)}
    assert GraphRunner(outcome.model).run(feeds)[0]["y"].shape == (*sizes, 6)


@pytest.mark.parametrize("opset", [11, 13, 14, 15, 18])
@pytest.mark.parametrize("shape", ["batch,sequence,4", "batch,3,sequence,4", "2,batch,sequence,4"])
def test_sizes_are_read_as_the_opset_of_the_file_says_it(opset: int, shape: str) -> None:
    text = f"g (float[{shape}] x) => (float y) {{ p = MatMul(x, w) y = Add(p, b) }}"
    outcome = run_passes(text, "lower-linear", weights={"w": weight(4, 6), "b": weight(6)}, opset=opset)
    assert (outcome.entry.applied, outcome.rolled_back) == (1, [])
    assert ("Gather" in outcome.ops) == (opset < 15)
    assert outcome.worst_error_at(4, 3) < 1e-5


@pytest.mark.parametrize("shape", ["batch,0,4", "1,0,4", "batch,0,sequence,4"])
@pytest.mark.parametrize("opset", [13, 18])
def test_nothing_is_gained_on_a_tensor_without_entries(shape: str, opset: int) -> None:
    text = f"g (float[{shape}] x) => (float y) {{ p = MatMul(x, w) y = Add(p, b) }}"
    outcome = run_passes(text, "lower-linear", weights={"w": weight(4, 6), "b": weight(6)}, opset=opset)
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.reasons == ["the tensor is empty"]
