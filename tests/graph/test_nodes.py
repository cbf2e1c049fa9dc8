"""Questions about nodes: what an attribute is when it is not set, what a version knows, what is dead."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxopt.graph.nodes import attribute, in_groups, is_op, op_counts, opset, opset_of, remove_dead, unknown_in
from tests.support.rules import parse


def only(body: str, *, version: int = 23) -> ir.Node:
    return parse(f"g (float[batch,4] x) => (float y) {{ {body} }}", opset=version).graph.node(-1)


@pytest.mark.parametrize(
    ("body", "name", "version", "expected"),
    [
        ("y = Softmax(x)", "axis", 23, -1),
        ("y = Softmax(x)", "axis", 11, 1),
        ("y = Softmax<axis = 0>(x)", "axis", 23, 0),
        ("y = Gelu(x)", "approximate", 20, "none"),
        ("y = Relu(x)", "axis", 23, None),
        ("y = com.microsoft.QuickGelu(x)", "beta", 23, None),
    ],
)
def test_an_attribute_that_is_not_set_is_what_the_version_says(
    body: str, name: str, version: int, expected: object
) -> None:
    assert attribute(only(body, version=version), name) == expected


def test_a_detached_node_has_no_version() -> None:
    node = only("y = Relu(x)", version=17)
    assert opset_of(node) == 17
    assert node.graph is not None
    node.graph.remove(node)
    assert opset_of(node) is None


def test_the_domain_belongs_to_the_operator() -> None:
    standard, contrib = only("y = Gelu(x)"), only("y = com.microsoft.Gelu(x)")
    assert is_op(standard, "Relu", "Gelu")
    assert not is_op(contrib, "Gelu")
    assert is_op(contrib, "Gelu", domain="com.microsoft")
    assert not is_op(None, "Gelu")
    assert opset(parse("g (float x) => (float y) { y = Relu(x) }", opset=18)) == 18


@pytest.mark.parametrize(
    ("body", "version", "said"),
    [
        ("y = Gelu(x)", 19, "Gelu"),
        ("y = Gelu(x)", 20, ""),
        ("y = ReduceMean<axes = [1]>(x)", 18, "ReduceMean with axes"),
        ("y = ReduceMean(x, a)", 13, "ReduceMean of 2 inputs"),
        ("y = com.microsoft.QuickGelu(x)", 7, ""),
    ],
)
def test_what_a_version_does_not_know_is_said(body: str, version: int, said: str) -> None:
    assert unknown_in(only(body), version) == said


def test_a_branch_counts_and_a_call_counts_as_what_is_in_it() -> None:
    model = parse("""
    g (float[4] x, bool loud) => (float[4] y) {
      h = If(loud) <
        then_branch = t () => (float[4] a) { a = Relu(x) },
        else_branch = e () => (float[4] b) { b = Neg(x) }
      >
      y = com.microsoft.Gelu(h)
    }""")
    assert op_counts(model) == {"If": 1, "Relu": 1, "Neg": 1, "com.microsoft::Gelu": 1}
    h = model.graph.node(0).outputs[0]
    inner = [ir.val("v")]
    body = ir.Graph(inner, [], nodes=[], name="twice", opset_imports={"": 23})
    one = ir.node("Relu", inner)
    two = ir.node("Relu", one.outputs)
    body.extend([one, two])
    body.outputs.append(two.outputs[0])
    model.functions[("own", "twice", "")] = ir.Function("own", "twice", graph=body, attributes=[])
    call = ir.node("twice", [h], domain="own")
    model.graph.insert_after(model.graph.node(0), [call])
    assert op_counts(model)["Relu"] == 3


def test_what_nobody_reads_goes_with_what_it_alone_kept() -> None:
    model = parse("g (float[4] x) => (float[4] y) { a = Exp(x) b = Neg(a) c = Abs(b) y = Relu(a) }")
    assert remove_dead([model.graph.node(2)]) == 2
    assert [node.op_type for node in model.graph] == ["Exp", "Relu"]
    assert remove_dead(list(model.graph)) == 0


@pytest.mark.parametrize(("most", "expected"), [(10, [[4, 5], [9], [30], [1]]), (100, [[4, 5, 9, 30, 1]]), (1, None)])
def test_groups_keep_the_order_and_their_limit(most: int, expected: list[list[int]] | None) -> None:
    sizes = {f"v{place}": size for place, size in enumerate((4, 5, 9, 30, 1))}
    groups = in_groups([ir.val(name) for name in sizes], lambda value: sizes[str(value.name)], most)
    found = [[sizes[str(value.name)] for value in group] for group in groups]
    assert found == (expected or [[size] for size in sizes.values()])
