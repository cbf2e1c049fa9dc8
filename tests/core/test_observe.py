from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.graph import dims
from onnxopt.observe import annotate, fit
from onnxopt.probe import ProbeError
from tests.support.rules import observe, parse

SIZES = ({"batch": 2, "sequence": 7}, {"batch": 3, "sequence": 11}, {"batch": 5, "sequence": 13})


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        ((2, 3, 5), "batch"),
        ((7, 11, 13), "sequence"),
        ((14, 33, 65), "batch*sequence"),
        ((49, 121, 169), "sequence*sequence"),
        ((8, 12, 14), "sequence + 1"),
        ((6, 10, 12), "sequence - 1"),
        ((12, 12, 12), 12),
        ((1, 4, 9), None),
    ],
)
def test_a_dimension_is_named_from_what_it_was_in_several_runs(seen: tuple[int, ...], named: int | str | None) -> None:
    assert named == fit(seen, SIZES)


@given(st.integers(1, 4096))
def test_a_constant_dimension_is_never_taken_for_an_axis(size: int) -> None:
    assert fit((size, size, size), SIZES) == size


def test_every_value_gets_dtype_and_dimensions_however_its_shape_was_computed() -> None:
    model = parse("""
    g (float[batch,sequence,8] x) => (y) <int64[2] tail = {4, 2}, int64[1] zero = {0}, int64[1] two = {2}> {
      s = Shape (x)
      lead = Slice (s, zero, two)
      target = Concat <axis = 0> (lead, tail)
      h = Reshape (x, target)
      y = Transpose <perm = [0, 2, 1, 3]> (h)
    }""")
    annotate(model, observe(model), everything=True)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    assert dims(by_name["h"]) == ("batch", "sequence", 4, 2)
    assert dims(by_name["y"]) == ("batch", 4, "sequence", 2)
    assert dims(by_name["target"]) == (4,)
    assert str(by_name["y"].dtype) == "FLOAT"


def test_a_dimension_that_follows_the_data_stays_unknown() -> None:
    model = parse("g (int64[batch,sequence] x) => (y) { y = NonZero (x) }")
    annotate(model, observe(model), everything=True)
    assert dims(model.graph.node(0).outputs[0]) == (2, None)


def test_what_is_known_is_not_observed_again() -> None:
    model = parse("g (float[batch,4] x) => (y) { a = Relu(x) y = Neg(a) }")
    observations = observe(model)
    assert annotate(model, observations) == 2
    assert annotate(model, observations) == 0


def test_a_model_that_does_not_run_says_why() -> None:
    model = parse("g (float[batch,4] x) => (y) <int64[1] s = {7}> { y = Reshape (x, s) }")
    with pytest.raises(ProbeError, match="cannot be reshaped"):
        annotate(model, observe(model))


def test_values_that_numpy_has_no_type_for_are_observed_too() -> None:
    model = parse("g (float[batch,sequence] x) => (y) { a = Cast<to=16>(x) b = Identity(a) y = Cast<to=1>(b) }")
    annotate(model, observe(model), everything=True)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    assert dims(by_name["b"]) == ("batch", "sequence")
    assert str(by_name["b"].dtype) == "BFLOAT16"


def test_a_sequence_of_tensors_has_no_shape() -> None:
    model = parse("g (float[batch,4] x) => (y) { s = SequenceConstruct(x) y = ConcatFromSequence<axis=0>(s) }")
    annotate(model, observe(model), everything=True)
    assert model.graph.node(0).outputs[0].shape is None
    assert dims(model.graph.node(1).outputs[0]) == ("batch", 4)


def test_the_text_of_an_input_is_measured() -> None:
    model = parse('g (float[batch,4] x) => (y) <string[2] words = {"a", "b"}> { t = Identity(words) y = Shape(t) }')
    annotate(model, observe(model), everything=True)
    assert dims(model.graph.node(0).outputs[0]) == (2,)
    assert str(model.graph.node(0).outputs[0].dtype) == "STRING"


def test_an_axis_that_is_empty_in_one_run_divides_nothing() -> None:
    """What a decoder has seen before may be nothing."""
    sizes = [{"batch": 2, "past": 17}, {"batch": 3, "past": 0}, {"batch": 5, "past": 19}]
    assert fit((17, 0, 19), sizes) == "past"
    assert fit((34, 0, 38), sizes) == "past*2"
    assert fit((34, 1, 38), sizes) is None
    assert fit((18, 1, 20), sizes) == "past + 1"
