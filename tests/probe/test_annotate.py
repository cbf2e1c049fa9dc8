from __future__ import annotations

from onnxopt.graph import dims
from onnxopt.probe.annotate import annotate
from onnxopt.sizes import Derivation
from tests.support.rules import parse


def test_every_value_gets_dtype_and_dimensions_however_its_shape_was_computed() -> None:
    model = parse("""
    g (float[batch,sequence,8] x) => (y) <int64[2] tail = {4, 2}, int64[1] zero = {0}, int64[1] two = {2}> {
      s = Shape (x)
      lead = Slice (s, zero, two)
      target = Concat <axis = 0> (lead, tail)
      h = Reshape (x, target)
      y = Transpose <perm = [0, 2, 1, 3]> (h)
    }""")
    annotate(model, Derivation(), everything=True)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    assert dims(by_name["h"]) == ("batch", "sequence", 4, 2)
    assert dims(by_name["y"]) == ("batch", 4, "sequence", 2)
    assert dims(by_name["target"]) == (4,)
    assert str(by_name["y"].dtype) == "FLOAT"


def test_a_dimension_that_follows_the_data_stays_unknown() -> None:
    model = parse("g (int64[batch,sequence] x) => (y) { y = NonZero (x) }")
    annotate(model, Derivation(), everything=True)
    assert dims(model.graph.node(0).outputs[0]) == (2, None)


def test_what_is_known_is_not_derived_again() -> None:
    model = parse("g (float[batch,4] x) => (y) { a = Relu(x) y = Neg(a) }")
    derivation = Derivation()
    assert annotate(model, derivation) == 2
    assert annotate(model, derivation) == 0


def test_values_that_numpy_has_no_type_for_have_one_here() -> None:
    model = parse("g (float[batch,sequence] x) => (y) { a = Cast<to=16>(x) b = Identity(a) y = Cast<to=1>(b) }")
    annotate(model, Derivation(), everything=True)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    assert dims(by_name["b"]) == ("batch", "sequence")
    assert str(by_name["b"].dtype) == "BFLOAT16"


def test_a_sequence_of_tensors_has_no_shape() -> None:
    model = parse("g (float[batch,4] x) => (y) { s = SequenceConstruct(x) y = ConcatFromSequence<axis=0>(s) }")
    annotate(model, Derivation(), everything=True)
    assert model.graph.node(0).outputs[0].shape is None
    assert dims(model.graph.node(1).outputs[0]) == ("batch", 4)


def test_the_text_of_an_input_is_derived() -> None:
    model = parse('g (float[batch,4] x) => (y) <string[2] words = {"a", "b"}> { t = Identity(words) y = Shape(t) }')
    annotate(model, Derivation(), everything=True)
    assert dims(model.graph.node(0).outputs[0]) == (2,)
    assert str(model.graph.node(0).outputs[0].dtype) == "STRING"


def test_what_scales_features_keeps_their_dimensions() -> None:
    model = parse("g (float[batch,4] x) => (y) { h = ai.onnx.ml.Scaler<offset=[0.5], scale=[2.0]>(x) y = Neg(h) }")
    model.opset_imports["ai.onnx.ml"] = 3
    annotate(model, Derivation(), everything=True)
    assert dims(model.graph.node(0).outputs[0]) == ("batch", 4)
