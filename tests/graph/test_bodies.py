"""A body, cut out and put back: it computes what it did, and names, weights and users are in order.

Covers: probe/body_runs.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.graph import constant
from onnxopt.graph.bodies import Cut, bodies_of, captured, cut, exchange, let_go, put_back
from onnxopt.probe.body_runs import can_be_fed, runs_of
from onnxopt.probe.captures import Captures
from onnxopt.probe.observe import Observation
from onnxopt.probe.runners import GraphRunner
from onnxopt.probe.sidegraph import FREE_KEY, meaning_of_mask, origin_of_mask
from onnxopt.proof.driver import Driver
from onnxopt.proof.inside import Inside
from onnxopt.proof.prepare import prepare
from onnxopt.rewrite import Builder, Rewrite, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.sizes import Derivation
from onnxopt.spec import Reassociated
from tests.support.bodies import NO, YES, numbers
from tests.support.rules import parse

TEXT = """
g (float[batch,4] x, bool loud) => (float[batch,4] y, float[batch,4] z) {
  r = Relu(x)
  [choice] y = If(loud) <
    then_branch = t () => (float[batch,4] a) { p = MatMul(r, w) a = Add(p, r) },
    else_branch = e () => (float[batch,4] a) { p = Sin(r) q = Mul(p, p) a = Add(q, x) }
  >
  z = Sub(y, r)
}"""
W = numbers(4, 4)


def model(text: str = TEXT, **weights: np.ndarray) -> ir.Model:
    """A graph with everything named and annotated."""
    made = parse(text, weights or {"w": W})
    prepare(made, Derivation())
    return made


def part_of(made: ir.Model, index: int = 0) -> Cut:
    """One of the bodies of a graph, cut out."""
    return cut(bodies_of(made)[index], made)


def run(made: ir.Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of a graph, in the runtime; it must be valid."""
    onnx.checker.check_model(ir.to_proto(made))
    return GraphRunner(made).run(feeds)[0]


def test_a_cut_reads_what_is_computed_around_it_as_inputs_and_shares_what_is_constant() -> None:
    made = model()
    part = part_of(made)
    assert [value.name for value in part.model.graph.inputs] == ["r"]
    assert part.own == 0
    assert part.model.graph.initializers["w"].const_value is made.graph.initializers["w"].const_value
    found = GraphRunner(part.model).run({"r": numbers(3, 4)})[0]
    np.testing.assert_allclose(next(iter(found.values())), numbers(3, 4) @ W + numbers(3, 4), rtol=1e-5)
    assert [value.name for value in captured(bodies_of(made)[1].graph)] == ["r", "x"]


@pytest.mark.parametrize("loud", [True, False])
def test_a_body_that_is_put_back_unchanged_computes_the_same(*, loud: bool) -> None:
    made = model()
    feeds = {"x": numbers(5, 4, seed=1), "loud": np.array(loud)}
    before = run(made, **feeds)
    for index in (0, 1):
        let_go(put_back(part_of(made, index), made))
    after = run(made, **feeds)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    assert list(bodies_of(made)[0].graph.initializers) == ["w"]


def test_a_graph_that_is_let_go_uses_nothing_any_more() -> None:
    made = model()
    relu = next(node for node in made.graph if node.op_type == "Relu").outputs[0]
    users = len(relu.uses())
    let_go(put_back(part_of(made), made))
    assert len(relu.uses()) == users


def test_a_new_weight_stays_in_the_body_under_a_name_of_its_own() -> None:
    made = model(TEXT.replace("z = Sub(y, r)", "d = Sub(y, r) z = Add(d, fresh)"), w=W, fresh=numbers(4))
    part = part_of(made)
    graph = part.model.graph
    fresh = ir.Value(name="fresh", type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.tensor(numbers(4, seed=7)))
    graph.register_initializer(fresh)
    add = next(node for node in graph if node.op_type == "Add")
    add.replace_input_with(1, fresh)
    let_go(put_back(part, made))
    assert list(made.graph.initializers) == ["fresh"]
    assert set(bodies_of(made)[0].graph.initializers) == {"w", "fresh~1"}
    x = numbers(2, 4, seed=3)
    expected = np.maximum(x, 0) @ W + numbers(4, seed=7)
    np.testing.assert_allclose(run(made, x=x, loud=YES)["y"], expected, rtol=1e-5)


def test_a_weight_that_is_read_outside_too_stays_outside() -> None:
    made = model(TEXT.replace("z = Sub(y, r)", "z = MatMul(y, w)"))
    let_go(put_back(part_of(made), made))
    assert list(made.graph.initializers) == ["w"]
    assert not bodies_of(made)[0].graph.initializers


def test_a_weight_that_was_changed_in_the_body_is_not_changed_around_it() -> None:
    made = model(TEXT.replace("z = Sub(y, r)", "z = MatMul(r, w)"))
    part = part_of(made)
    part.model.graph.initializers["w"].const_value = ir.tensor(2 * W)
    let_go(put_back(part, made))
    np.testing.assert_array_equal(constant(made.graph.initializers["w"]), W)
    x = numbers(2, 4, seed=3)
    expected = np.maximum(x, 0) @ (2 * W) + np.maximum(x, 0)
    np.testing.assert_allclose(run(made, x=x, loud=YES)["y"], expected, rtol=1e-5)


def test_a_name_that_the_graph_around_has_is_not_used_inside() -> None:
    made = model()
    part = part_of(made)
    next(node for node in part.model.graph if node.op_type == "MatMul").outputs[0].name = "z"
    let_go(put_back(part, made))
    names = [value.name for node in bodies_of(made)[0].graph for value in node.outputs]
    assert "z" not in names
    run(made, x=numbers(2, 4), loud=YES)


def test_an_output_that_is_a_value_from_outside_gets_a_node() -> None:
    made = model()
    part = part_of(made)
    graph = part.model.graph
    graph.outputs[0] = graph.inputs[0]
    graph.remove(list(graph), safe=True)
    let_go(put_back(part, made))
    x = numbers(3, 4, seed=5)
    found = run(made, x=x, loud=YES)
    np.testing.assert_array_equal(found["y"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["z"], np.zeros_like(x))


def test_another_graph_can_be_exchanged_for_the_one_that_was_there() -> None:
    made = model()
    part, weights = part_of(made), dict(made.graph.initializers)
    old = put_back(part, made)
    new = part.body.graph
    exchange(part.body, old)
    made.graph.initializers.update(weights)
    let_go(new)
    assert part.body.graph is old
    run(made, x=numbers(2, 4), loud=YES)


def test_bodies_of_one_node_are_not_worth_a_look() -> None:
    text = TEXT.replace("p = Sin(r) q = Mul(p, p) a = Add(q, x)", "a = Identity(x)")
    assert [body.label for body in bodies_of(model(text))] == ["then of choice"]


def test_what_a_body_is_given_is_what_the_graph_computes() -> None:
    made = model()
    parts = [part_of(made, index) for index in (0, 1)]
    inputs = [numbers(rows, 4, seed=rows) for rows in (2, 3, 5)]
    observations = [
        Observation({"batch": len(x)}, {"x": x, "loud": np.array(loud)})
        for x, loud in zip(inputs, (True, False, True), strict=True)
    ]
    taken, other = runs_of(parts, made, observations, Captures())
    assert [one.sizes["batch"] for one in taken] == [2, 5]
    assert [one.sizes["batch"] for one in other] == [3]
    np.testing.assert_array_equal(taken[1].feeds["r"], np.maximum(inputs[2], 0))
    assert set(other[0].feeds) == {"r", "x"}


LOOP = """
g (float[batch,4] x, int64 turns) => (float[batch,4] y) {
  yes = Constant<value = bool {1}>()
  [repeat] y = Loop(turns, yes, x) <
    body = b (int64 i, bool go, float[batch,4] state) => (bool on, float[batch,4] next) {
      three = Constant<value = int64 {3}>() on = Less(i, three) twice = Add(state, state) next = Sin(twice) }
  >
}"""


@pytest.mark.parametrize(("asked", "last"), [(0, None), (1, 0), (3, 2), (100, 3)])
def test_the_first_and_the_last_turn_of_a_loop_are_looked_at(asked: int, last: int | None) -> None:
    """It stops by itself behind turn 3, which gives the first flag that is false."""
    made = model(LOOP)
    part = part_of(made)
    assert can_be_fed(part)
    x = numbers(2, 4)
    (found,) = runs_of([part], made, [Observation({"batch": 2}, {"x": x, "turns": np.array(asked)})], Captures())
    turns = [int(one.feeds["i"]) for one in found]
    assert turns == ([] if last is None else [0] if last == 0 else [0, last])
    if last is not None:
        expected = x
        for _ in range(last):
            expected = np.sin(expected + expected)
        np.testing.assert_allclose(found[-1].feeds["state"], expected, rtol=1e-5)


def test_a_scan_is_looked_at_in_the_direction_in_which_it_goes() -> None:
    text = """
    g (float[batch,5] x) => (float[batch] y, float[5,batch] all) {
      zero = ReduceMin<keepdims = 0>(x, last)
      [walk] y, all = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
        body = b (float[batch] state, float[batch] at) => (float[batch] next, float[batch] out) {
          s = Add(state, at) next = Neg(s) out = Abs(next) }
      >(zero, x)
    }"""
    made = model(text, last=np.array([1]))
    x = numbers(3, 5)
    (found,) = runs_of([part_of(made)], made, [Observation({"batch": 3}, {"x": x})], Captures())
    assert len(found) == 2
    np.testing.assert_array_equal(found[0].feeds["at"], x[:, 4])
    np.testing.assert_array_equal(found[1].feeds["at"], x[:, 0])
    state = x.min(axis=1)
    for place in (4, 3, 2, 1):
        state = -(state + x[:, place])
    np.testing.assert_allclose(found[1].feeds["state"], state, rtol=1e-5)


class Square(Rule):
    """x · x  →  x²."""

    name = "test-square"
    numerics = Reassociated()
    power: ClassVar[float] = 2

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        yield op.Mul(x, x)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return op.Pow(x, op.constant(np.array(self.power, np.float32), "power"))


class Cube(Square):
    """A wrong rule: x · x is not x³."""

    name = "test-cube"
    power = 3


def driver_of(made: ir.Model) -> Driver:
    """A driver with observations that take both branches."""
    observations = [
        Observation({"batch": rows}, {"x": numbers(rows, 4, seed=rows), "loud": np.array(rows % 2 == 0)})
        for rows in (2, 3, 5, 8)
    ]
    return Driver(made, observations)


def applying(step: Rewrite) -> Callable[[Driver], None]:
    """Work for the inside of a body: one pass."""

    def work(inner: Driver) -> None:
        inner.apply(step)

    return work


def test_a_wrong_rewrite_in_a_branch_is_rolled_back_under_its_name() -> None:
    made = model()
    driver = driver_of(made)
    before = [body.graph for body in bodies_of(made)]
    assert Inside(applying(Cube()), prepare).rewrite(driver) == 0
    assert [body.graph for body in bodies_of(made)] == before
    assert [title for title, _ in driver.ledger.rolled_back()] == ["else of choice: test-cube"]


def test_a_right_rewrite_in_a_branch_stays() -> None:
    made = model()
    driver = driver_of(made)
    assert Inside(applying(Square()), prepare).rewrite(driver) == 1
    assert [node.op_type for node in bodies_of(made)[1].graph] == ["Sin", "Pow", "Add"]
    assert [(entry.title, entry.applied) for entry in driver.ledger.entries] == [("else of choice: test-square", 1)]


@pytest.mark.parametrize("fault", ["other numbers", "does not run"])
def test_what_is_put_back_wrong_is_taken_out_again(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def spoiled(part: Cut, made: ir.Model) -> ir.Graph:
        old = put_back(part, made)
        sine = next(node for node in part.body.graph if node.op_type == "Sin")
        sine.op_type = "Cos" if fault == "other numbers" else "NoSuchOperator"
        return old

    made = model()
    driver = driver_of(made)
    before, weights = bodies_of(made)[1].graph, set(made.graph.initializers)
    monkeypatch.setattr("onnxopt.proof.inside.put_back", spoiled)
    assert Inside(applying(Square()), prepare).rewrite(driver) == 0
    assert bodies_of(made)[1].graph is before
    assert set(made.graph.initializers) == weights
    (entry,) = driver.ledger.entries
    assert (entry.applied, [item.node for item in entry.rolled_back]) == (0, ["the whole"])
    run(made, x=numbers(3, 4), loud=NO)


def test_a_graph_without_bodies_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("g (float[batch,4] x) => (float[batch,4] y) { p = MatMul(x, w) y = Relu(p) }")
    monkeypatch.setattr("onnxopt.proof.inside.runs_of", lambda *_: pytest.fail("it was run"))
    driver = Driver(made, [Observation({"batch": 2}, {"x": numbers(2, 4)})])
    assert Inside(lambda inner: pytest.fail("it was worked on"), prepare).rewrite(driver) == 0


def test_weights_in_a_file_are_not_copied(tmp_path: Path) -> None:
    made = model()
    ir.save(made, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    read = ir.load(tmp_path / "m.onnx")
    prepare(read, Derivation())
    part = part_of(read)
    tensor = read.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert part.model.graph.initializers["w"].const_value is tensor
    let_go(put_back(part, read))
    assert bodies_of(read)[0].graph.initializers["w"].const_value is tensor


def test_what_is_learned_of_axes_inside_does_not_hold_outside() -> None:
    outer = Derivation()
    inner = outer.inside()
    inner.axis("rows")
    inner.computed[inner.axis("rows")] = 9  # type: ignore[index]  # an axis is a term
    assert not outer.axes
    assert not outer.computed


BOTH = """
g (float[batch,4] x, bool loud) => (float[batch,4] y) {
  r = Relu(x)
  [choice] y = If(loud) <
    then_branch = t () => (float[batch,4] a) { p = Cos(r) q = Mul(p, p) a = Add(q, x) },
    else_branch = e () => (float[batch,4] a) { p = Sin(r) q = Mul(p, p) s = MatMul(q, w) a = Add(s, x) }
  >
}"""


def test_only_the_body_that_is_put_back_wrong_is_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(part: Cut, made: ir.Model) -> ir.Graph:
        old = put_back(part, made)
        for node in part.body.graph:
            node.op_type = {"Sin": "Tan"}.get(node.op_type, node.op_type)
        return old

    made = model(BOTH)
    driver = driver_of(made)
    monkeypatch.setattr("onnxopt.proof.inside.put_back", spoiled)
    assert Inside(applying(Square()), prepare).rewrite(driver) == 1
    assert [[node.op_type for node in body.graph] for body in bodies_of(made)] == [
        ["Cos", "Pow", "Add"],
        ["Sin", "Mul", "MatMul", "Add"],
    ]
    assert list(made.graph.initializers) == ["w"]
    run(made, x=numbers(3, 4), loud=NO)
    assert {entry.title: entry.applied for entry in driver.ledger.entries} == {
        "then of choice: test-square": 1,
        "else of choice: test-square": 0,
    }


def test_a_body_that_is_seldom_reached_is_looked_at_with_other_inputs_too() -> None:
    """Of the usual observations none takes the branch; one of the others is empty, and the smallest come first."""
    made = model(BOTH)
    usual = [Observation({"batch": rows}, {"x": numbers(rows, 4), "loud": YES}) for rows in (2, 3)]
    others = [
        Observation({"batch": rows}, {"x": numbers(rows, 4), "loud": NO}) for rows in (90, 5, 70, 0, 6, 50, 7, 80)
    ]
    seen: list[list[int]] = []

    def work(inner: Driver) -> None:
        seen.append([one.sizes["batch"] for one in inner.observations])

    Inside(work, prepare, lambda: others).rewrite(Driver(made, usual))
    assert seen == [[2, 3], [0, 5, 6, 7, 50]]


def test_what_is_computed_outside_keeps_no_promise_that_users_make() -> None:
    """Integers [batch, keys] that a user gives are 0 and 1 where they are a mask; others hold what they like."""
    text = """
    g (int64[batch,keys] mask, bool loud) => (float[batch,keys] y) {
      three = Constant<value = int64 {3}>() other = Mul(mask, three)
      [choice] y = If(loud) <
        then_branch = t () => (float[batch,keys] a) { one = Cast<to = 1>(mask) a = Neg(one) },
        else_branch = e () => (float[batch,keys] a) { one = Cast<to = 1>(other) a = Neg(one) }
      >
    }"""
    made = model(text)
    given, computed = (part_of(made, index).model for index in (0, 1))
    assert origin_of_mask(given.graph.outputs[0]).free is None
    assert origin_of_mask(computed.graph.outputs[0]).free is computed.graph.inputs[0]
    assert "computed outside" in str(meaning_of_mask(computed, computed.graph.outputs[0]))
    assert "computed outside" not in str(meaning_of_mask(given, given.graph.outputs[0]))


def test_what_nobody_has_promised_of_an_input_is_not_promised_inside() -> None:
    made = model(TEXT.replace("float[batch,4] x", "int64[batch,4] ids, float[batch,4] x").replace("Sin(r)", MASKED))
    assert origin_of_mask(mask_in(part_of(made, 1))).free is None
    made.graph.meta[FREE_KEY] = frozenset({"ids"})
    part = part_of(made, 1)
    assert origin_of_mask(mask_in(part)).free in part.model.graph.inputs
    assert FREE_KEY not in put_back(part, made).meta
    assert FREE_KEY not in bodies_of(made)[1].graph.meta


MASKED = "Sin(r) wide = Cast<to = 1>(ids) m = Neg(wide) n = Abs(m)"


def mask_in(part: Cut) -> ir.Value:
    """What is made of the integers that a user gives."""
    return next(node for node in part.model.graph if node.op_type == "Neg").outputs[0]
