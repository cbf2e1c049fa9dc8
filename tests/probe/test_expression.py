"""Which graphs compute the same expressions, and which only might."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph.weight_files import Widened
from onnxopt.probe.expression import Expressions, Tensors
from onnxopt.spec import Array
from tests.support.rules import parse

HEAD = "g (float[batch,4] x, float[batch,4] z) => (float[batch,4] y) "
BRANCHES = """<bool yes = {1}> { r = Identity(x) y = If(yes) <
  then_branch = t () => (float[batch,4] u) { u = Relu(SOURCE) },
  else_branch = e () => (float[batch,4] v) { v = Neg(x) }> }"""
EQUAL = {
    "names": ("{ a = Relu(x) y = Neg(a) }", "{ b = Relu(x) y = Neg(b) }"),
    "a computation written twice": ("{ a = Relu(x) y = Add(a, a) }", "{ a = Relu(x) b = Relu(x) y = Add(a, b) }"),
    "commuted operands": ("{ y = Add(x, z) }", "{ y = Add(z, x) }"),
    "Identity": ("{ a = Identity(x) y = Neg(a) }", "{ y = Neg(x) }"),
    "order and dead nodes": (
        "{ a = Relu(x) b = Abs(z) y = Add(a, b) }",
        "{ b = Abs(z) c = Exp(x) a = Relu(x) y = Add(a, b) }",
    ),
    "a Constant and an initializer": (
        "{ c = Constant<value = float {0.5}>() y = Mul(x, c) }",
        "<float half = {0.5}> { y = Mul(x, half) }",
    ),
    "a Cast to the same type": ("{ a = Cast<to=1>(x) y = Neg(a) }", "{ y = Neg(x) }"),
    "a Cast to the type of another value": (
        "{ a = Cast<to=7>(x) b = CastLike(a, z) y = Neg(b) }",
        "{ a = Cast<to=7>(x) b = Cast<to=1>(a) y = Neg(b) }",
    ),
    "equal branches": (BRANCHES.replace("SOURCE", "x"), BRANCHES.replace("SOURCE", "r")),
}
DIFFERENT = {
    "operands that do not commute": ("{ y = Sub(x, z) }", "{ y = Sub(z, x) }"),
    "another input": ("{ y = Relu(x) }", "{ y = Relu(z) }"),
    "an attribute": ("{ y = LeakyRelu<alpha=0.1>(x) }", "{ y = LeakyRelu<alpha=0.2>(x) }"),
    "a constant": ("<float c = {0.5}> { y = Mul(x, c) }", "<float c = {0.25}> { y = Mul(x, c) }"),
    "the sign of zero": ("<float c = {0.0}> { y = Div(x, c) }", "<float c = {-0.0}> { y = Div(x, c) }"),
    "a rank": ("<float c = {0.5}> { y = Mul(x, c) }", "<float[1] c = {0.5}> { y = Mul(x, c) }"),
    "one draw instead of two": (
        "{ a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }",
        "{ a = RandomNormalLike(x) y = Sub(a, a) }",
    ),
    "a Cast that rounds": ("{ a = Cast<to=7>(x) b = Cast<to=1>(a) y = Neg(b) }", "{ y = Neg(x) }"),
    "a branch": (BRANCHES.replace("SOURCE", "x"), BRANCHES.replace("SOURCE", "z")),
}


@pytest.mark.parametrize(("first", "second"), EQUAL.values(), ids=EQUAL)
def test_what_makes_no_difference(first: str, second: str) -> None:
    table = Expressions()
    found = table.of(parse(HEAD + first))
    assert found is not None
    assert found == table.of(parse(HEAD + second))


@pytest.mark.parametrize(("first", "second"), DIFFERENT.values(), ids=DIFFERENT)
def test_what_makes_one(first: str, second: str) -> None:
    table = Expressions()
    assert table.of(parse(HEAD + first)) != table.of(parse(HEAD + second))


def test_nodes_out_of_order_are_not_judged() -> None:
    model = parse(HEAD + "{ a = Relu(x) y = Neg(a) }")
    first = model.graph.node(0)
    model.graph.remove(first)
    model.graph.append(first)
    assert Expressions().of(model) is None


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_tensors_are_told_apart_at_any_place(kind: type) -> None:
    array: Array = (np.random.default_rng(0).standard_normal((700, 900)) > 0).astype(kind)
    other = array.copy()
    other[411, 77] = 1 - other[411, 77] if kind is not np.bool_ else not other[411, 77]
    table = Tensors()
    first = table.number(ir.tensor(array))
    assert first == table.number(ir.tensor(array.copy()))
    assert first != table.number(ir.tensor(other))
    assert first != table.number(ir.tensor(array.reshape(900, 700)))


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("size", [9, 1024, 300_000])
def test_a_widened_tensor_is_equal_to_its_numbers_in_float32(kind: type, size: int) -> None:
    stored: Array = np.random.default_rng(2).standard_normal(size).astype(kind)
    tensors, wide = Tensors(), stored.astype(np.float32)
    number = tensors.number(ir.tensor(wide))
    assert tensors.number(Widened(ir.tensor(stored), "w")) == number
    for place in (0, size // 3, size - 1):
        other = stored.copy()
        other[place] += 1
        assert tensors.number(Widened(ir.tensor(other), "w")) != number


def test_strings_are_compared_by_their_text() -> None:
    table = Tensors()
    one, same, other = (ir.StringTensor(np.array(text, object)) for text in ([b"a", b"b"], [b"a", b"b"], [b"a", b"c"]))
    assert table.number(one) == table.number(same)
    assert table.number(one) != table.number(other)
