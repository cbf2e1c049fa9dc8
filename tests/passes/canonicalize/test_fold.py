from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph.weight_files import WeightFile, Widened, in_file, weights_in_file
from onnxopt.spec import Array
from tests.support.rules import parse, pass_of, run_passes

MEGABYTE = 2**20


def weight(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_folds_a_transposed_weight_and_stores_it_row_by_row() -> None:
    text = "g (float[batch,4] x) => (float[batch,3] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }"
    outcome = run_passes(text, "fold-constants", "fold-constants", "remove-unused", weights={"w": weight(3, 4)})
    assert outcome.ops == ["MatMul"]
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    stored = outcome.constant("MatMul", 1)
    assert stored.flags.c_contiguous
    assert np.array_equal(stored, weight(3, 4).T)
    assert outcome.worst_error() < 1e-6


def test_a_large_result_lies_in_the_file_where_that_is_wanted(tmp_path: Path) -> None:
    text = """
    g (float[batch,640] x) => (float[batch,700] y) {
      t = Transpose<perm=[1,0]>(w)
      s = Mul(t, k)
      y = MatMul(x, s)
    }"""
    weights = {"w": weight(700, 640), "k": weight(700)}
    with weights_in_file(WeightFile(tmp_path / "weights")):
        outcome = run_passes(text, "fold-constants", "remove-unused", weights=weights)
    assert outcome.ops == ["MatMul"]
    (stored,) = outcome.model.graph.initializers.values()
    assert in_file(stored.const_value) is not None
    np.testing.assert_array_equal(outcome.constant("MatMul", 1), weight(700, 640).T * weight(700))
    assert outcome.worst_error() < 1e-6


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_what_is_moved_stays_in_its_sixteen_bits_and_what_is_computed_is_looked_at(kind: type, tmp_path: Path) -> None:
    text = """
    g (float[batch,600] x) => (float[batch,520] y, float[batch,520] z) {
      t = Transpose<perm=[1,0]>(w)
      y = MatMul(x, t)
      s = Mul(u, third)
      r = Transpose<perm=[1,0]>(s)
      z = MatMul(x, r)
    }"""
    array: Array = weight(520, 600).astype(kind)
    third = np.array(1 / 3, np.float32)
    model = parse(text, {"w": weight(1), "u": weight(1), "third": third})
    for name in ("w", "u"):
        value = model.graph.initializers[name]
        value.const_value, value.shape = Widened(ir.tensor(array), name), ir.Shape(array.shape)
    with weights_in_file(WeightFile(tmp_path / "weights")):
        assert pass_of("fold-constants").run(model) == 3
    moved, computed = (node.inputs[1].const_value for node in model.graph if node.inputs[1] is not None)
    assert isinstance(moved, Widened)
    assert moved.stored.dtype == ir.DataType.from_numpy(np.dtype(kind))
    assert isinstance(computed, ir.ExternalTensor)
    np.testing.assert_array_equal(moved.numpy(), array.astype(np.float32).T)
    np.testing.assert_array_equal(computed.numpy(), (array.astype(np.float32) * third).T)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_weight_in_a_file_is_transposed_without_being_widened(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
    g (float[batch,900] x, float[batch,900] u) => (float[batch,700] y, float[batch,700] z, float[batch,700] v) {
      t = Transpose<perm=[1,0]>(w)
      y = MatMul(x, t)
      s = Transpose(both)
      z = MatMul(x, s)
      v = Gemm<transB=1>(u, both)
    }"""
    array: Array = weight(700, 900).astype(kind)
    model, file = parse(text, {"w": weight(1), "both": weight(1)}), WeightFile(tmp_path / "checkpoint")
    for name in ("w", "both"):
        stored, value = file.add(array, name), model.graph.initializers[name]
        value.const_value = stored if kind is np.float32 else Widened(stored, name)
        value.shape = ir.Shape(array.shape)

    def widened(self: Widened) -> Array:
        raise AssertionError(f"{self.name} was widened")

    with weights_in_file(WeightFile(tmp_path / "weights")), monkeypatch.context() as patched:
        patched.setattr(Widened, "numpy", widened)
        assert pass_of("fold-constants").run(model) == 1  # the weight with two readers stays one
    assert [node.op_type for node in model.graph] == ["MatMul", "Transpose", "MatMul", "Gemm"]
    made = model.graph.initializers["t"].const_value
    laid = in_file(made)
    assert laid is not None
    assert laid.dtype == ir.DataType.from_numpy(np.dtype(kind))
    assert made is not None
    assert np.array_equal(made.numpy(), array.astype(np.float32).T)


def test_folds_a_chain_of_small_arithmetic() -> None:
    text = """
    g (float[batch,4] x) => (float[batch,4] y)
    <float two = {2.0}, float three = {3.0}, int64[1] four = {4}, int64[2] pads = {0, 0}> {
      product = Mul(two, three)
      root = Sqrt(product)
      row = Expand(root, four)
      y = Add(x, row)
    }"""
    outcome = run_passes(text, "fold-constants", "remove-unused")
    assert outcome.ops == ["Add"]
    assert outcome.entries[0].applied == 3
    assert np.allclose(outcome.constant("Add", 1), np.full(4, 6**0.5))
    assert outcome.worst_error() == 0


GROWING: dict[str, tuple[str, dict[str, Array]]] = {
    "Expand": ("Expand(one, shape)", {"one": np.ones((1, 1), np.float32), "shape": np.array([1024, 1024])}),
    "Tile": ("Tile(one, shape)", {"one": np.ones((1, 1), np.float32), "shape": np.array([1024, 1024])}),
    "ConstantOfShape": ("ConstantOfShape <value = float[1] {1.0}> (shape)", {"shape": np.array([1024, 1024])}),
    "Pad": ("Pad(one, pads)", {"one": np.ones((1, 1), np.float32), "pads": np.array([0, 0, 1023, 1023])}),
    "Gather": ("Gather(row, rows)", {"row": np.ones((1, 1024), np.float32), "rows": np.zeros(1000, np.int64)}),
    "OneHot": (
        "OneHot(indices, depth, values)",
        {"indices": np.arange(1024), "depth": np.array(1024), "values": np.array([0, 1], np.float32)},
    ),
    "Range": (
        "Range(start, stop, step)",
        {"start": np.array(0, np.float32), "stop": np.array(1e6, np.float32), "step": np.array(1, np.float32)},
    ),
}


@pytest.mark.parametrize("operator", GROWING)
def test_what_would_grow_the_file_by_megabytes_stays_computed(operator: str) -> None:
    call, weights = GROWING[operator]
    text = f"g (float[batch] x) => (float[batch] y) {{ w = {call} m = ReduceMax<keepdims=0>(w) y = Mul(x, m) }}"
    outcome = run_passes(text, "fold-constants", weights=weights)
    assert operator in outcome.ops
    assert outcome.entry.bytes_saved > -MEGABYTE


@pytest.mark.parametrize("kept", [np.int8, np.uint8, np.float16])
def test_a_weight_that_is_kept_in_few_bits_stays_so(kept: type[np.generic]) -> None:
    text = """
    g (float[batch,256] x) => (float[batch,384] y) {
      wide = Cast<to=1>(w)
      scaled = Mul(wide, scale)
      y = MatMul(x, scaled)
    }"""
    weights = {"w": (weight(256, 384) * 9).astype(kept), "scale": weight(384)}
    outcome = run_passes(text, "fold-constants", "fold-constants", weights=weights)
    assert outcome.ops == ["Cast", "Mul", "MatMul"]
    assert outcome.entry.bytes_saved >= 0


def test_a_small_constant_is_widened() -> None:
    text = "g (float[batch,384] x) => (float[batch,384] y) { wide = Cast<to=1>(w) y = Add(x, wide) }"
    outcome = run_passes(text, "fold-constants", "remove-unused", weights={"w": np.arange(384)})
    assert outcome.ops == ["Add"]


def test_a_cast_like_keeps_what_becomes_of_numbers_beyond_the_new_type() -> None:
    text = "g (float[batch] x, float8e4m3fn[2] like) => (float8e4m3fn[batch] y) { y = CastLike<saturate=0>(x, like) }"
    outcome = run_passes(text, "fold-constants", opset=19)
    cast = next(node for node in outcome.model.graph if node.op_type == "Cast")
    assert cast.attributes["saturate"].as_int() == 0


def test_a_result_no_larger_than_what_it_replaces_is_folded_whatever_its_size() -> None:
    text = "g (float[batch,512] x) => (float[batch,1024] y) { w = Gather(table, rows) y = MatMul(x, w) }"
    weights = {"table": weight(600, 1024), "rows": np.arange(512)}
    outcome = run_passes(text, "fold-constants", "remove-unused", weights=weights)
    assert outcome.ops == ["MatMul"]
    assert outcome.worst_error() == 0


def test_a_large_weight_with_two_readers_is_not_stored_twice() -> None:
    text = """
    g (float[batch,512] x, float[batch,1024] z) => (float[batch,1024] y, float[batch,512] u) {
      t = Transpose<perm=[1,0]>(w)
      y = MatMul(x, t)
      u = MatMul(z, w)
    }"""
    outcome = run_passes(text, "fold-constants", weights={"w": weight(1024, 512)})
    assert "Transpose" in outcome.ops
    assert outcome.entry.bytes_saved == 0


RANDOM = {
    "RandomNormal": "r = RandomNormal<shape=[4]>()",
    "RandomUniform": "r = RandomUniform<shape=[4]>()",
    "RandomNormalLike": "r = RandomNormalLike(w)",
    "RandomUniformLike": "r = RandomUniformLike(w)",
    "Multinomial": "m = Multinomial(p) r = Cast<to=1>(m)",
    "Bernoulli": "r = Bernoulli(h)",
}


@pytest.mark.parametrize("operator", RANDOM)
def test_random_numbers_are_drawn_in_every_run(operator: str) -> None:
    text = f"g (float[batch,4] x) => (float[batch,4] y) {{ {RANDOM[operator]} y = Add(x, r) }}"
    weights = {"w": weight(4), "p": np.zeros((1, 4), np.float32), "h": np.full(4, 0.5, np.float32)}
    outcome = run_passes(text, "fold-constants", weights=weights, opset=20)
    assert outcome.entry.applied == 0
    assert operator in outcome.ops


def test_an_operator_of_the_runtime_is_not_computed_by_the_reference() -> None:
    text = "g (float[batch,4] x) => (float[batch,4] y) { w = com.microsoft.QuickGelu(c) y = Mul(x, w) }"
    outcome = run_passes(text, "fold-constants", weights={"c": weight(4)})
    assert outcome.ops == ["com.microsoft::QuickGelu", "Mul"]


def test_a_default_that_a_caller_may_override_is_not_folded() -> None:
    text = "g (float[batch,4] x, float[4] w) => (float[batch,4] y) { t = Neg(w) y = Add(x, t) }"
    outcome = run_passes(text, "fold-constants", weights={"w": weight(4)})
    assert outcome.ops == ["Neg", "Add"]
    assert outcome.worst_error() == 0


@pytest.mark.parametrize("nodes", ["c = Cast<to=1>(h)", "s = Shape(x) c = Reshape(h, s)"])
def test_a_node_that_becomes_another_one_counts_as_a_change_and_is_proved(nodes: str) -> None:
    text = f"g (float[batch,4] x) => (float[batch,4] y) {{ h = Relu(x) {nodes} y = Neg(c) }}"
    outcome = run_passes(text, "fold-constants", "fold-constants")
    assert "Identity" in outcome.ops
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() == 0


def test_a_length_that_was_64_at_every_probe_is_not_taken_for_a_constant() -> None:
    text = """
    g (float[batch,sequence,4] x) => (int64[1] y)
    <int64[1] width = {64}, int64[1] before = {63}, int64[1] four = {4},
     int64[1] zero = {0}, int64[4] zeros = {0, 0, 0, 0}> {
      b = Shape<start=0, end=1>(x)
      s = Shape<start=1, end=2>(x)
      up = Add(s, before)
      blocks = Div(up, width)
      full = Mul(blocks, width)
      more = Sub(full, s)
      pads = Concat<axis=0>(zeros, more, zero)
      padded = Pad(x, pads)
      length = Shape<start=1, end=2>(padded)
      y = Add(length, four)
    }"""
    outcome = run_passes(text, "fold-constants")
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(2, 130) == 0


OUTER = {
    "Mul": ("Mul(column, row)", {"column": weight(1024, 1), "row": weight(1, 1024)}),
    "MatMul": ("MatMul(column, row)", {"column": weight(1024, 1), "row": weight(1, 1024)}),
    "Where": (
        "Where(yes, column, row)",
        {"yes": np.ones((1, 1), bool), "column": weight(1024, 1), "row": weight(1024)},
    ),
    "Einsum": ("Einsum<equation='i,j->ij'>(left, right)", {"left": weight(1024), "right": weight(1024)}),
}


@pytest.mark.parametrize("operator", OUTER)
def test_an_outer_product_that_would_grow_the_file_stays_computed(operator: str) -> None:
    call, weights = OUTER[operator]
    call = call.replace("'", '"')
    text = f"g (float[batch] x) => (float[batch] y) {{ w = {call} m = ReduceMax<keepdims=0>(w) y = Mul(x, m) }}"
    outcome = run_passes(text, "fold-constants", weights=weights)
    assert operator in outcome.ops
    assert outcome.entry.bytes_saved > -MEGABYTE


def test_two_weights_that_only_their_union_needs_are_joined() -> None:
    text = "g (float[batch,512] x) => (float[batch,1024] y) { w = Concat<axis=1>(a, b) y = MatMul(x, w) }"
    outcome = run_passes(text, "fold-constants", weights={"a": weight(512, 512), "b": weight(512, 512) * 2})
    assert outcome.ops == ["MatMul"]
    assert outcome.worst_error() == 0
