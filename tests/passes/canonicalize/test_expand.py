import pytest

from tests.support.rules import names_read, run_passes

OPERATORS = ("Add", "Sub", "Mul", "Div", "Max", "Min")


def expanded(operator: str, operands: str, kind: str = "float", result: str = "float") -> str:
    return f"""
    g ({kind}[batch,4] x, {kind}[batch,1] z) => ({result}[batch,4] y) {{
      s = Shape(x)
      e = Expand(z, s)
      y = {operator}({operands})
    }}"""


@pytest.mark.parametrize("operands", ["x, e", "e, x"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_lets_the_operator_broadcast_on_either_side(operator: str, operands: str) -> None:
    outcome = run_passes(expanded(operator, operands), "remove-expand", "remove-expand")
    assert outcome.ops == [operator]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert names_read(outcome.model.graph.node(0)) == operands.replace("e", "z").split(", ")
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


@pytest.mark.parametrize("operator", ["And", "Or", "Equal"])
def test_lets_logical_operators_broadcast(operator: str) -> None:
    outcome = run_passes(expanded(operator, "x, e", "bool", "bool"), "remove-expand")
    assert outcome.ops == [operator]
    assert outcome.worst_error() == 0


def test_keeps_an_expand_that_gives_the_result_its_shape() -> None:
    text = """
    g (float[batch,1] x, float[1,4] z) => (float[batch,4] y) <int64[1] four = {4}> {
      b = Shape<start=0, end=1>(x)
      s = Concat<axis=0>(b, four)
      e = Expand(z, s)
      y = Mul(x, e)
    }"""
    outcome = run_passes(text, "remove-expand")
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["the Expand gives the result its shape"]


def test_keeps_an_expand_that_raises_the_rank() -> None:
    text = """
    g (float[batch,4] x, float[batch,1] z) => (float[1,batch,4] y) <int64[1] one = {1}> {
      s = Shape(x)
      t = Concat<axis=0>(one, s)
      e = Expand(z, t)
      y = Add(x, e)
    }"""
    outcome = run_passes(text, "remove-expand")
    assert outcome.reasons == ["the Expand gives the result its shape"]


def test_an_expand_with_another_reader_stays_for_that_reader() -> None:
    text = """
    g (float[batch,4] x, float[batch,1] z) => (float[batch,4] y, float[batch,4] e) {
      s = Shape(x)
      e = Expand(z, s)
      y = Mul(x, e)
    }"""
    outcome = run_passes(text, "remove-expand")
    assert outcome.ops == ["Shape", "Expand", "Mul"]
    assert outcome.entry.applied == 1
    assert names_read(outcome.model.graph.node(2))[1] == "z"
    assert outcome.worst_error() == 0


def test_a_number_of_blocks_that_was_one_at_every_probe_is_still_repeated() -> None:
    text = """
    g (float[batch,sequence,4] x, float[batch,1,4] z) => (float y)
    <int64[1] width = {64}, int64[1] before = {63}, int64[1] four = {4}> {
      b = Shape<start=0, end=1>(x)
      s = Shape<start=1, end=2>(x)
      up = Add(s, before)
      blocks = Div(up, width)
      target = Concat<axis=0>(b, blocks, four)
      e = Expand(z, target)
      y = Add(e, z)
    }"""
    outcome = run_passes(text, "remove-expand")
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(2, 130) == 0
