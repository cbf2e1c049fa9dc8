import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph.weight_files import Widened
from onnxopt.spec import Array
from tests.support.rules import parse, pass_of, run_passes

TIED = """
g (int64[batch,sequence] ids, float[batch,512] h) => (float[batch,sequence,512] y, float[batch,ROWS] logits) {
  y = Gather(table, ids)
  logits = MatMul(h, head)
}"""


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_keeps_one_of_equal_weights_and_reports_the_bytes() -> None:
    text = "g (float[batch,64] x) => (float[batch,64] y) { a = MatMul(x, v) b = MatMul(a, w) y = MatMul(b, u) }"
    weights = {"v": weight(64, 64), "w": weight(64, 64), "u": weight(64, 64, seed=1)}
    outcome = run_passes(text, "merge-initializers", "merge-initializers", weights=weights)
    assert sorted(outcome.model.graph.initializers) == ["u", "v"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.entries[0].bytes_saved == 64 * 64 * 4
    assert outcome.worst_error() == 0


def test_equal_bytes_of_another_type_or_shape_are_another_weight() -> None:
    text = """
    g (float[batch,4] x, int32[batch,4] i) => (float[batch,4] y, float[batch,4] z, int32[batch,4] j) {
      y = Add(x, a)
      z = Add(x, b)
      j = Add(i, c)
    }"""
    weights = {"a": np.zeros(4, np.float32), "b": np.zeros((1, 4), np.float32), "c": np.zeros(4, np.int32)}
    outcome = run_passes(text, "merge-initializers", weights=weights)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
    assert len(outcome.model.graph.initializers) == 3


def test_stores_a_tied_embedding_once_and_turns_it_for_the_head() -> None:
    table = weight(1024, 512)
    weights = {"table": table, "head": table.T}
    outcome = run_passes(TIED.replace("ROWS", "1024"), "merge-initializers", "merge-initializers", weights=weights)
    assert sorted(outcome.ops) == ["Gather", "MatMul", "Transpose"]
    assert list(outcome.model.graph.initializers) == ["table"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.entries[0].bytes_saved == table.nbytes
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_what_is_tied_is_not_folded_again() -> None:
    for rows in (512, 513):  # a mebibyte, and a little more
        table = weight(rows, 512)
        names = ("merge-initializers", "fold-constants") * 3
        outcome = run_passes(TIED.replace("ROWS", str(rows)), *names, weights={"table": table, "head": table.T.copy()})
        assert sum(entry.applied for entry in outcome.entries) == (1 if rows == 513 else 0)


def test_a_tie_smaller_than_a_mebibyte_is_not_worth_a_node() -> None:
    table = weight(511, 512)
    weights = {"table": table, "head": table.T}
    outcome = run_passes(TIED.replace("ROWS", "511"), "merge-initializers", weights=weights)
    assert (outcome.ops, outcome.entry.applied, outcome.entry.bytes_saved) == (["Gather", "MatMul"], 0, 0)


def test_a_head_that_differs_in_one_number_is_not_tied() -> None:
    table = weight(1024, 512)
    head = table.T.copy()
    head[3, 5] += 1e-3
    outcome = run_passes(TIED.replace("ROWS", "1024"), "merge-initializers", weights={"table": table, "head": head})
    assert outcome.ops == ["Gather", "MatMul"]
    assert outcome.rolled_back == []


def test_equal_bytes_of_another_type_are_not_tied() -> None:
    text = """
    g (int64[batch,sequence] ids, int32[batch,512] k) => (float[batch,sequence,512] y, int32[batch,1024] z) {
      y = Gather(table, ids)
      z = MatMul(k, head)
    }"""
    weights = {"table": np.zeros((1024, 512), np.float32), "head": np.zeros((512, 1024), np.int32)}
    outcome = run_passes(text, "merge-initializers", weights=weights)
    assert outcome.ops == ["Gather", "MatMul"]
    assert outcome.rolled_back == []


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_ties_half_precision_tables(kind: type) -> None:
    text = """
    g (int64[batch,sequence] ids, KIND[batch,1024] h) => (KIND[batch,sequence,1024] y, KIND[batch,1024] z) {
      y = Gather(table, ids)
      z = MatMul(h, head)
    }"""
    table: Array = weight(1024, 1024).astype(kind)
    model = parse(text.replace("KIND", np.dtype(kind).name), {"table": table, "head": table.T})
    assert pass_of("merge-initializers").run(model) == 1  # without a proof: the runtime has no such kernels
    assert list(model.graph.initializers) == ["table"]
    assert [node.op_type for node in model.graph] == ["Transpose", "Gather", "MatMul"]


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_ties_tables_that_lie_in_sixteen_bits(kind: type, *, tied: bool) -> None:
    table: Array = weight(1100, 512).astype(kind)
    head = table.T.copy()
    head[3, 1099] += 0 if tied else 1
    model = parse(TIED.replace("ROWS", "1100"), {"table": weight(1, 1), "head": weight(1, 1)})
    for name, array in (("table", table), ("head", head)):
        value = model.graph.initializers.pop(name)
        value.const_value = Widened(ir.tensor(array), name)
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
        model.graph.initializers.add(value)
    assert pass_of("merge-initializers").run(model) == int(tied)
    assert isinstance(model.graph.initializers["table"].const_value, Widened)


def test_a_default_that_a_caller_may_override_is_no_copy_of_anything() -> None:
    text = "g (float[batch,4] x, float[4] a) => (float[batch,4] y) { c = Add(x, a) y = Mul(c, b) }"
    weights = {"a": weight(4), "b": weight(4)}
    outcome = run_passes(text, "merge-initializers", weights=weights)
    assert [value.name for value in outcome.model.graph.inputs] == ["x", "a"]
    assert sorted(outcome.model.graph.initializers) == ["a", "b"]
    assert outcome.worst_error() == 0


def test_an_output_that_is_a_weight_keeps_its_name_and_value() -> None:
    text = "g (float[batch,4] x) => (float[batch,4] y, float[4] a, float[4] b) { y = Add(x, a) }"
    outcome = run_passes(text, "merge-initializers", weights={"a": weight(4), "b": weight(4)})
    assert [value.name for value in outcome.model.graph.outputs] == ["y", "a", "b"]
    assert outcome.rolled_back == []
    assert outcome.worst_error() == 0
