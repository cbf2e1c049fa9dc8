import pytest

from tests.support.rules import names_read, run_passes


def graph(operator: str, operands: str, kind: str = "float", result: str = "float") -> str:
    return f"g ({kind}[batch,4] x) => ({result}[batch,4] y) <{kind} c = {{1}}> {{ y = {operator}({operands}) }}"


KINDS = {
    "Add": ("float", "float"),
    "Mul": ("float", "float"),
    "And": ("bool", "bool"),
    "Or": ("bool", "bool"),
    "Xor": ("bool", "bool"),
    "Equal": ("int64", "bool"),
}


@pytest.mark.parametrize("operator", KINDS)
def test_puts_the_constant_on_the_right(operator: str) -> None:
    outcome = run_passes(graph(operator, "c, x", *KINDS[operator]), "order-operands", "order-operands")
    assert names_read(outcome.model.graph.node(0)) == ["x", "c"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


@pytest.mark.parametrize(("operator", "operands"), [("Sub", "c, x"), ("Div", "c, x"), ("Pow", "c, x"), ("Add", "x, c")])
def test_leaves_what_does_not_commute_or_is_in_order(operator: str, operands: str) -> None:
    outcome = run_passes(graph(operator, operands), "order-operands")
    assert outcome.entry.applied == 0
    assert names_read(outcome.model.graph.node(0)) == operands.split(", ")


def test_leaves_two_constants_alone() -> None:
    text = (
        "g (float[batch,4] x) => (float[batch,4] y) <float c = {1.0}, float d = {2.0}> { e = Add(c, d) y = Mul(x, e) }"
    )
    outcome = run_passes(text, "order-operands")
    assert outcome.entry.applied == 0
