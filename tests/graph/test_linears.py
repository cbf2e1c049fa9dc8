"""Linear layers are found in every spelling, and called by names that people know."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import InputError
from onnxopt.graph.linears import Selector, find_linears, name_after, origin
from onnxopt.qmath.precision import Precision

SPELLINGS = {
    "MatMul and Add": "h = MatMul(x, w)\n y = Add(h, b)",
    "Add from the left": "h = MatMul(x, w)\n y = Add(b, h)",
    "Gemm": "y = Gemm(x, w, b)",
    "Gemm of a transposed weight": "y = Gemm<transB=1>(x, v, b)",
    "MatMul of a transposed weight": "t = Transpose<perm=[1, 0]>(v)\n h = MatMul(x, t)\n y = Add(h, b)",
}


def model_of(body: str) -> ir.Model:
    """A graph with w [4, 6] = vᵀ and b [6]; ONNX's text form cannot hold random weights, so they are put in here."""
    text = f'<ir_version: 9, opset_import: ["" : 20]>\nagraph (float[n, 4] x) => (float[n, 6] y) {{\n {body}\n}}'
    import onnx

    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    for name, array in (("w", weight), ("v", weight.T.copy()), ("b", np.ones(6, np.float32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_finds_every_spelling(body: str) -> None:
    model = model_of(body)
    [linear] = find_linears(model)
    expected = model.graph.initializers["w"].const_value
    assert (linear.rows, linear.columns) == (4, 6)
    assert linear.root is model.graph.outputs[0].producer()
    assert linear.bias is model.graph.initializers["b"]
    assert expected is not None
    assert np.array_equal(linear.matrix(), expected.numpy())


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm<alpha=0.5>(x, w, b)",
        "h = MatMul(x, w)\n t = Transpose<perm=[1, 0]>(x)\n y = MatMul(t, h)",
    ],
)
def test_leaves_other_products_alone(body: str) -> None:
    assert all(linear.node.outputs[0].name == "h" for linear in find_linears(model_of(body)))


def test_takes_no_bias_from_a_product_that_others_read_too() -> None:
    [linear] = find_linears(model_of("h = MatMul(x, w)\n s = Add(h, b)\n y = Mul(h, s)"))
    assert linear.bias is None
    assert linear.root is linear.node


def test_a_packed_weight_is_called_after_its_parts() -> None:
    parts = [ir.Value(name=f"network.layer.0.attention.{part}.weight") for part in ("query", "key", "value")]
    packed = ir.Value(name="pack/weight")
    name_after(packed, parts)
    assert origin(packed) == "layer.0.attention.query+key+value"


LABELS = ["layers.0.self_attn.q_proj", "layers.0.mlp.down_proj", "layers.10.mlp.down_proj", "lm_head"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lm_head", {3}),
        ("layers.1", set()),
        ("layers.10", {2}),
        ("layers.0|lm_head", {0, 1, 3}),
        ("*down_proj", {1, 2}),
        (r"/layers\.\d+\.mlp/", {1, 2}),
        ("/(q|k)_proj/, first", {0}),
        ("last", {3}),
    ],
)
def test_selectors(text: str, expected: set[int]) -> None:
    if not expected:
        with pytest.raises(InputError, match="matches no linear"):
            Selector(text).choose(LABELS)
        return
    assert {LABELS[index] for index in expected} == Selector(text).choose(LABELS)


@pytest.mark.parametrize("text", ["", " | ", "/(/"])
def test_a_selector_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Selector(text)


@pytest.mark.parametrize("text", ["fp32", "int8", "int8-dynamic", "int8-weights:128", "int4-weights:32:asymmetric"])
def test_precisions_are_written_as_they_are_read(text: str) -> None:
    assert text == str(Precision.parse(text))


@pytest.mark.parametrize("text", ["int3", "int8:32", "int4-weights:33", "int4-weights:512", "int4-weights:maybe", ""])
def test_a_precision_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Precision.parse(text)
