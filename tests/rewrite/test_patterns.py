"""The matcher: complete, indifferent to operand order, and honest about the nearest miss.

Covers: rewrite/vocabulary.py
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.rewrite.patterns import Miss, Op, Ops, Pat, State, Var, match
from onnxopt.rewrite.vocabulary import constant, either, kept, maybe, product, reduced, scalar, scaled, squared
from tests.support.rules import parse

op = Ops()
x, y = Var("x"), Var("y")


def matches(pattern: Pat, text: str, output: str = "z") -> list[State]:
    model = parse(text)
    value = next(v for node in model.graph for v in node.outputs if v.name == output)
    return list(match(pattern, value, State(), Miss()))


def bound(state: State) -> dict[str, str | None]:
    """The names of the values that variables are bound to."""
    return {name: value.name for name, value in state.values.items() if value is not None}


def test_commutative_operands_match_in_both_orders() -> None:
    for order in ("Mul(a, c)", "Mul(c, a)"):
        text = f"g (float[4] a) => (float[4] z) <float c = {{2.0}}> {{ z = {order} }}"
        (state,) = matches(op.Mul(x, scalar(2.0)), text)
        assert bound(state) == {"x": "a"}


def test_operands_of_sub_do_not_swap() -> None:
    text = "g (float[4] a) => (float[4] z) <float c = {2.0}> { z = Sub(c, a) }"
    assert matches(op.Sub(x, scalar(2.0)), text) == []


def test_backtracking_is_complete_across_nested_alternatives() -> None:
    text = "g (float[4] a, float[4] b) => (float[4] z) { s = Add(a, b) t = Add(b, s) z = Mul(t, s) }"
    # the first order that fits the outer node fails inside; only another order of both nodes matches
    pattern = op.Mul(op.Add(x, y), op.Add(op.Add(x, y), x))
    found = matches(op.Mul(op.Add(op.Add(x, y), y), op.Add(x, y)), text)
    assert found
    assert set(bound(found[0]).values()) == {"a", "b"}
    assert matches(pattern, text)


def test_a_variable_seen_twice_must_be_one_value() -> None:
    same = "g (float[4] a) => (float[4] z) { z = Mul(a, a) }"
    other = "g (float[4] a, float[4] b) => (float[4] z) { z = Mul(a, b) }"
    assert matches(squared(x), same)
    assert not matches(squared(x), other)


def test_optional_nodes_and_alternatives_match_at_the_root() -> None:
    bare = "g (float[4] a) => (float[4] z) { z = Relu(a) }"
    cast = "g (float[4] a) => (float16[4] z) { r = Relu(a) z = Cast <to = 10> (r) }"
    pattern = maybe("Cast", op.Relu(x))
    assert matches(pattern, bare)
    assert matches(pattern, cast)
    assert matches(either(op.Tanh(x), op.Relu(x)), bare)


def test_attributes_fall_back_to_the_default_of_the_operator() -> None:
    text = "g (float[4,4] a) => (float[4,4] z) { z = Softmax(a) }"
    assert matches(op.Softmax(x, axis=-1), text)
    assert not matches(op.Softmax(x, axis=0), text)


def test_absent_and_extra_inputs_are_told_apart() -> None:
    text = "g (float[4] a, float lo) => (float[4] z) { z = Clip(a, lo) }"
    assert matches(op.Clip(x, y), text)
    assert matches(op.Clip(x, y, None), text)
    assert matches(op.Clip(x, _rest=True), text)
    assert not matches(op.Clip(x), text)


def test_constants_of_rank_0_and_1_are_one_scalar_but_a_vector_is_not() -> None:
    for kind, value, hit in (("float", "{0.5}", True), ("float[1]", "{0.5}", True), ("float[2]", "{0.5, 0.5}", False)):
        text = f"g (float[2] a) => (float[2] z) <{kind} c = {value}> {{ z = Mul(a, c) }}"
        assert bool(matches(op.Mul(x, scalar(0.5)), text)) == hit


def test_a_graph_input_is_never_a_constant() -> None:
    text = "g (float[4] a, float c) => (float[4] z) { z = Mul(a, c) }"
    assert not matches(op.Mul(x, constant()), text)


def test_scaled_means_a_product_or_the_inverse_quotient() -> None:
    for body in ("Mul(a, c)", "Mul(c, a)"):
        assert matches(scaled(x, 0.25), f"g (float[4] a) => (float[4] z) <float c = {{0.25}}> {{ z = {body} }}")
    assert matches(scaled(x, 0.25), "g (float[4] a) => (float[4] z) <float c = {4.0}> { z = Div(a, c) }")


@pytest.mark.parametrize(
    "body",
    [
        "p = Mul(a, a) q = Mul(p, a) z = Mul(q, c)",
        "p = Mul(c, a) q = Mul(a, p) z = Mul(a, q)",
        "p = Mul(a, a) q = Mul(c, a) z = Mul(q, p)",
        "p = Mul(a, c) q = Mul(a, a) z = Mul(q, p)",
        "p = Mul(a, a) q = Mul(p, c) z = Mul(a, q)",
    ],
)
def test_a_product_matches_in_any_bracketing_and_counts_its_factors(body: str) -> None:
    text = f"g (float[4] a) => (float[4] z) <float c = {{2.0}}> {{ {body} }}"
    assert matches(product(scalar(2.0), x, x, x), text)
    assert not matches(product(scalar(2.0), x, x), text)
    assert not matches(product(scalar(2.0), x, x, x, x), text)
    assert not matches(product(scalar(3.0), x, x, x), text)


@pytest.mark.parametrize("call", ["ReduceMax<keepdims=0>(a, n)", "ReduceMax(a)"])
@pytest.mark.parametrize("behind", ["z = Neg(m)", "r = Reshape(m, s) z = Neg(r)", "r = Unsqueeze(m, n) z = Neg(r)"])
def test_a_reduction_matches_with_and_without_its_axis(call: str, behind: str) -> None:
    text = f"g (float[2,4] a) => (float z) <int64[1] n = {{1}}, int64[2] s = {{2, 1}}> {{ m = {call} {behind} }}"
    (state,) = matches(op.Neg(kept(reduced("ReduceMax", x, "peak"), "moved")), text)
    assert state.named["peak"].op_type == "ReduceMax"
    assert ("moved" in state.named) == ("r =" in behind)


def test_the_nearest_miss_names_the_deepest_node() -> None:
    model = parse("g (float[4] a) => (float[4] z) <float c = {2.0}> { e = Exp(a) m = Mul(e, c) z = Tanh(m) }")
    miss = Miss()
    assert not list(match(op.Tanh(op.Mul(op.Erf(x), scalar(2.0))), model.graph.node(2).outputs[0], State(), miss))
    assert miss.depth == 2
    assert "expected Erf, found Exp" in miss.reason


Tree = tuple[Any, ...]  # a leaf is (name,), any other (operator, tree, tree)


def expressions(depth: int) -> st.SearchStrategy[Tree]:
    leaf = st.sampled_from([("a",), ("b",)])
    if depth == 0:
        return leaf
    inner = expressions(depth - 1)
    return st.one_of(leaf, st.tuples(st.sampled_from(["Add", "Mul", "Sub"]), inner, inner))


def as_pattern(tree: Tree, variables: dict[str, Var]) -> Pat:
    if len(tree) == 1:
        return variables[str(tree[0])]
    kind, left, right = tree
    return Op(str(kind), (as_pattern(left, variables), as_pattern(right, variables)))


def as_text(tree: Tree, swaps: itertools.cycle[bool]) -> tuple[str, list[str]]:
    """Write a tree as ONNX text, swapping the operands of commutative nodes at will."""
    lines: list[str] = []

    def walk(part: Tree) -> str:
        if len(part) == 1:
            return str(part[0])
        kind, left, right = part
        names = [walk(left), walk(right)]
        if kind != "Sub" and next(swaps):
            names.reverse()
        lines.append(f"t{len(lines)} = {kind}({names[0]}, {names[1]})")
        return f"t{len(lines) - 1}"

    return walk(tree), lines


def worth(tree: Tree, numbers: Mapping[str, int]) -> int:
    """Compute an expression in whole numbers."""
    if len(tree) == 1:
        return numbers[tree[0]]
    kind, left, right = tree
    first, second = worth(left, numbers), worth(right, numbers)
    return {"Add": first + second, "Mul": first * second, "Sub": first - second}[kind]


@settings(max_examples=120, deadline=None)
@given(tree=expressions(3).filter(lambda tree: len(tree) > 1), swaps=st.lists(st.booleans(), min_size=1, max_size=8))
def test_a_pattern_matches_every_commuted_spelling_of_itself(tree: tuple[object, ...], swaps: list[bool]) -> None:
    root, lines = as_text(tree, itertools.cycle(swaps))
    text = "g (float[4] a, float[4] b) => (float[4] out) {" + " ".join([*lines, f"out = Identity({root})"]) + "}"
    variables = {name: Var(name) for name in "ab"}
    found = matches(as_pattern(tree, variables), text, output=root)
    assert found
    numbers = {"a": 3, "b": 10}
    for state in found:
        standing = {
            name: numbers[value.name or ""] for name, value in state.values.items() if isinstance(value, ir.Value)
        }
        assert worth(tree, standing) == worth(tree, numbers)  # whatever stands for a and b, it is the same expression


@settings(max_examples=60, deadline=None)
@given(tree=expressions(2).filter(lambda tree: len(tree) > 1))
def test_a_pattern_with_one_operator_changed_does_not_match(tree: tuple[object, ...]) -> None:
    root, lines = as_text(tree, itertools.cycle([False]))
    text = "g (float[4] a, float[4] b) => (float[4] out) {" + " ".join([*lines, f"out = Identity({root})"]) + "}"
    other = ("Div", *tree[1:])
    assert not matches(as_pattern(other, {name: Var(name) for name in "ab"}), text, output=root)


def test_an_unknown_word_for_an_operator_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        _ = op._private
