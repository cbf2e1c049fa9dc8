"""Constants and dimensions of values: what is known is given, what is not is None."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph.values import constant, constant_value, dims, integers, is_constant, known_dims, number, rank
from tests.support.rules import parse

TEXT = """
g (float[batch,?,8] x, float z) => (float[batch,?,8] y) {
  inline = Constant<value = float {0.5}>()
  a = Mul(x, held) b = Add(a, inline) y = Add(b, z)
}"""


@pytest.fixture
def values() -> dict[str, ir.Value]:
    model = parse(TEXT, {"held": np.arange(8, dtype=np.float32)})
    made = [value for node in model.graph for value in node.outputs]
    return {str(value.name): value for value in (*model.graph.inputs, *model.graph.initializers.values(), *made)}


def test_an_initializer_and_the_result_of_a_constant_are_constants(values: dict[str, ir.Value]) -> None:
    held, inline = constant(values["held"]), constant(values["inline"])
    assert held is not None
    assert held.tolist() == list(range(8))
    assert inline is not None
    assert inline.tolist() == 0.5
    assert {name for name, value in values.items() if is_constant(value)} == {"held", "inline"}
    assert [constant(values[name]) for name in ("x", "a")] == [None, None]
    assert constant(None) is None


def test_an_initializer_that_a_user_may_replace_is_none() -> None:
    model = parse("g (float[8] x, float[8] w) => (float[8] y) { y = Mul(x, w) }")
    given = model.graph.inputs[1]
    given.const_value = ir.tensor(np.ones(8, np.float32), name="w")
    model.graph.initializers["w"] = given
    assert not is_constant(given)
    assert constant(given) is None


@pytest.mark.parametrize(
    ("array", "as_number", "as_integers"),
    [
        (np.array(3), 3.0, (3,)),
        (np.array([[2.5]], np.float16), 2.5, None),
        (np.array([True]), 1.0, None),
        (np.array([1, -2], np.int32), None, (1, -2)),
        (np.zeros(0, np.int64), None, ()),
        (np.zeros(1025, np.int64), None, None),
        (np.array([0.5, 0.5], np.float32), None, None),
    ],
    ids=lambda one: str(one)[:12],
)
def test_one_element_is_a_number_and_few_integers_are_read(
    array: np.ndarray, as_number: float | None, as_integers: tuple[int, ...] | None
) -> None:
    value = constant_value(ir.tensor(array, name="c"), "c")
    assert number(value) == as_number
    assert integers(value) == as_integers
    assert dims(value) == array.shape


def test_dimensions_are_sizes_names_or_unknown(values: dict[str, ir.Value]) -> None:
    assert dims(values["x"]) == ("batch", None, 8)
    assert known_dims(values["x"]) is None
    assert known_dims(values["held"]) == (8,)
    assert (rank(values["x"]), rank(values["a"]), rank(None)) == (3, None, None)
    assert dims(values["a"]) is None, "nothing was derived yet"
