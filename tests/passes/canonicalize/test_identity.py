import numpy as np
import pytest

from tests.support.rules import run_passes

NO_OPS = {
    "Identity": "c = Identity(h)",
    "Dropout": "c = Dropout(h)",
    "Dropout with a ratio": "c = Dropout(h, ratio)",
    "Dropout not training": "c = Dropout(h, ratio, no)",
    "Cast to the same type": "c = Cast<to=1>(h)",
    "Expand to the same shape": "s = Shape(x) c = Expand(h, s)",
    "Expand to ones": "c = Expand(h, ones)",
    "Reshape to the same shape": "s = Shape(x) c = Reshape(h, s)",
    "Reshape that copies": "c = Reshape(h, zeros)",
    "Transpose that moves nothing": "c = Transpose<perm=[0,1]>(h)",
    "Concat of one": "c = Concat<axis=1>(h)",
    "Flatten of a matrix": "c = Flatten<axis=1>(h)",
    "Slice of everything": "c = Slice(h, nothing, end, second)",
    "Slice to the largest int32": "c = Slice(h, nothing, end32, second)",
    "Slice of everything in steps of one": "c = Slice(h, nothing, end, second, once)",
    "Slice of every axis": "c = Slice(h, zeros, ends)",
    "Mul by one": "c = Mul(unit, h)",
    "Div by one": "c = Div(h, units)",
}
WEIGHTS = {
    "ratio": np.array(0.5, np.float32),
    "no": np.array(False),  # noqa: FBT003 - an ONNX constant
    "yes": np.array(True),  # noqa: FBT003 - an ONNX constant
    "ones": np.array([1, 1]),
    "zeros": np.array([0, 0]),
    "two": np.array([2, 1]),
    "nothing": np.array([0]),
    "end": np.array([2**63 - 1]),
    "end32": np.array([2**31 - 1]),
    "ends": np.array([2**62, 2**31 - 1]),
    "second": np.array([1]),
    "once": np.array([1]),
    "unit": np.array([1], np.float32),
    "units": np.array([[1]], np.float32),
    "more": np.array([[[1]]], np.float32),
    "close": np.array(1 + 5e-7, np.float32),
}


def graph(nodes: str) -> str:
    return f"g (float[batch,4] x) => (float[batch,4] y) {{ h = Relu(x) {nodes} y = Neg(c) }}"


@pytest.mark.parametrize("nodes", NO_OPS.values(), ids=NO_OPS.keys())
def test_removes_every_kind_of_no_op(nodes: str) -> None:
    outcome = run_passes(graph(nodes), "remove-no-ops", "remove-no-ops", "remove-unused", weights=WEIGHTS)
    assert outcome.ops == ["Relu", "Neg"]
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_removes_a_chain_of_them() -> None:
    outcome = run_passes(graph("a = Identity(h) b = Dropout(a) c = Cast<to=1>(b)"), "remove-no-ops")
    assert outcome.ops == ["Relu", "Neg"]
    assert outcome.worst_error() == 0


SLICED = "the slice leaves something out"
HELD_BACK = {
    "Cast to another type": ("d = Cast<to=11>(h) c = Cast<to=1>(d)", "the cast changes the type"),
    "Transpose": ("d = Transpose<perm=[1,0]>(h) c = Transpose<perm=[1,0]>(d)", "the transpose moves axes"),
    "Transpose without perm": ("d = Transpose(h) c = Transpose(d)", "the transpose moves axes"),
    "Reshape": ("d = Reshape(h, flat) c = Reshape(d, four)", "Reshape may change the shape"),
    "Slice from the second on": ("d = Slice(h, start, end, axis) c = Pad(d, front)", SLICED),
    "Slice that ends": ("d = Slice(h, nothing, three, axis) c = Pad(d, front)", SLICED),
    "Slice that ends where the axis does now": ("c = Slice(h, nothing, four_only, axis)", SLICED),
    "Slice without the last": ("d = Slice(h, nothing, minus_one, axis) c = Pad(d, front)", SLICED),
    "Slice that ends along one of two axes": ("d = Slice(h, zeros, some) c = Pad(d, front)", SLICED),
    "Slice in larger steps": ("d = Slice(h, nothing, end, axis, step) c = Concat<axis=1>(d, d)", SLICED),
    "Slice whose steps are computed": (
        "n = Shape(x) k = Slice(n, axis, step) d = Slice(h, nothing, end, axis, k) c = Concat<axis=1>(d, d, d, d)",
        SLICED,
    ),
    "Flatten": ("d = Flatten<axis=0>(h) c = Reshape(d, four)", "Flatten may change the shape"),
}


@pytest.mark.parametrize(("nodes", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_where_something_changes(nodes: str, reason: str) -> None:
    weights = {
        "flat": np.array([-1]),
        "four": np.array([-1, 4]),
        "zeros": np.array([0, 0]),
        "nothing": np.array([0]),
        "start": np.array([1]),
        "three": np.array([3]),
        "four_only": np.array([4]),
        "minus_one": np.array([-1]),
        "some": np.array([2**62, 3]),
        "end": np.array([2**62]),
        "axis": np.array([1]),
        "step": np.array([2]),
        "front": np.array([0, 1, 0, 0]),
    }
    outcome = run_passes(graph(nodes), "remove-no-ops", weights=weights)
    assert outcome.entry.applied == 0
    assert reason in outcome.reasons


OWN_SHAPES = {
    "a factor": ("m = Mul(h, two) s = Shape(h) c = Reshape(m, s)", True),
    "a number first": ("m = Sub(two, h) r = Relu(m) s = Shape(h) c = Reshape(r, s)", True),
    "an Expand": ("m = Neg(h) s = Shape(h) c = Expand(m, s)", True),
    "a factor with more axes": ("m = Mul(h, more) s = Shape(h) c = Reshape(m, s)", False),
    "another tensor": ("m = Neg(h) t = Transpose<perm=[1,0]>(h) s = Shape(t) c = Reshape(m, s)", False),
    "a part of the shape": ("m = Neg(h) s = Shape<end=1>(h) k = Concat<axis=0>(s, back) c = Reshape(m, k)", False),
}


@pytest.mark.parametrize(("nodes", "goes"), OWN_SHAPES.values(), ids=OWN_SHAPES)
def test_removes_a_reshape_to_the_shape_it_has(nodes: str, goes: bool) -> None:  # noqa: FBT001 - a case
    rows = "f = NonZero(keep) i = Transpose<perm=[1,0]>(f) p = GatherND(x, i) h = Unsqueeze(p, once)"  # as data says
    text = f"g (float[batch,sequence] x, bool[batch,sequence] keep) => (float y) {{ {rows} {nodes} y = Neg(c) }}"
    weights = WEIGHTS | {"two": np.array([2], np.float32), "back": np.array([-1])}
    outcome = run_passes(text, "remove-no-ops", weights=weights)
    assert outcome.rolled_back == []
    assert outcome.entry.applied == int(goes)
    assert outcome.worst_error_at(3, 4) == 0


@pytest.mark.parametrize("call", ["Mul(h, more)", "Mul(h, close)", "Div(h, more)"])
def test_keeps_a_factor_that_does_something(call: str) -> None:
    text = f"g (float[batch,4] x) => (float y) {{ h = Relu(x) c = {call} y = Neg(c) }}"
    outcome = run_passes(text, "remove-no-ops", weights=WEIGHTS)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []


def test_keeps_the_quotient_of_one() -> None:
    text = "g (float[batch,4] x) => (float y) { h = Exp(x) c = Div(unit, h) y = Neg(c) }"
    assert run_passes(text, "remove-no-ops", weights=WEIGHTS).entry.applied == 0


def test_keeps_an_expand_that_repeats() -> None:
    text = "g (float[1,4] x) => (float[2,4] y) { h = Relu(x) c = Expand(h, two) y = Neg(c) }"
    outcome = run_passes(text, "remove-no-ops", weights=WEIGHTS)
    assert outcome.reasons == ["Expand may change the shape"]


def test_keeps_a_dropout_that_may_train() -> None:
    outcome = run_passes(
        graph("c = Dropout(h, zero, yes)"), "remove-no-ops", weights={**WEIGHTS, "zero": np.array(0, np.float32)}
    )
    assert outcome.reasons == ["dropout may train"]


def test_keeps_a_dropout_whose_training_flag_is_an_input() -> None:
    text = "g (float[batch,4] x, bool flag) => (float[batch,4] y) { h = Relu(x) c = Dropout(h, zero, flag) y = Neg(c) }"
    outcome = run_passes(text, "remove-no-ops", weights={"zero": np.array(0, np.float32)})
    assert outcome.reasons == ["dropout may train"]


def test_keeps_a_dropout_whose_mask_is_read() -> None:
    text = """
    g (float[batch,4] x) => (float[batch,4] y) {
      h = Relu(x)
      c, mask = Dropout(h)
      m = Cast<to=1>(mask)
      y = Mul(c, m)
    }"""
    outcome = run_passes(text, "remove-no-ops")
    assert "the dropout mask is used" in outcome.reasons
    assert outcome.worst_error() == 0


def test_an_input_that_is_passed_through_to_an_output_keeps_both_names() -> None:
    outcome = run_passes("g (float[batch,4] x) => (float[batch,4] y) { y = Identity(x) }", "remove-no-ops")
    assert outcome.reasons == ["an output cannot be an input"]
    assert [value.name for value in outcome.model.graph.inputs] == ["x"]
    assert [value.name for value in outcome.model.graph.outputs] == ["y"]
    assert outcome.worst_error() == 0


def test_a_constant_that_is_passed_through_to_an_output_keeps_its_name() -> None:
    text = "g (float[batch,4] x) => (float[batch,4] z, float[4] y) { z = Relu(x) y = Identity(w) }"
    outcome = run_passes(text, "remove-no-ops", weights={"w": np.arange(4, dtype=np.float32)})
    assert outcome.reasons == ["an output cannot be an input"]
    assert [value.name for value in outcome.model.graph.outputs] == ["z", "y"]
    assert outcome.worst_error() == 0


@pytest.mark.parametrize("last", ["Identity(h)", "Dropout(h)", "Cast<to=1>(h)", "Reshape(h, zeros)"])
@pytest.mark.parametrize("outputs", ["float[batch,4] y", "float[batch,4] h, float[batch,4] y"])
def test_a_no_op_at_an_output_comes_to_rest_and_keeps_the_name(last: str, outputs: str) -> None:
    text = f"g (float[batch,4] x) => ({outputs}) {{ h = Relu(x) y = {last} }}"
    outcome = run_passes(text, "remove-no-ops", "remove-no-ops", weights={"zeros": np.array([0, 0])})
    assert outcome.ops[0] == "Relu"
    assert set(outcome.ops[1:]) <= {"Identity"}
    assert outcome.entry.applied == 0
    names = [part.split()[1] for part in outputs.split(", ")]
    assert [value.name for value in outcome.model.graph.outputs] == names
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_a_number_of_blocks_that_was_one_at_every_probe_makes_no_no_op() -> None:
    text = """
    g (float[batch,sequence,4] x, float[batch,1,4] z) => (float y)
    <int64[1] width = {64}, int64[1] before = {63}, int64[1] four = {4}> {
      b = Shape<start=0, end=1>(x)
      s = Shape<start=1, end=2>(x)
      up = Add(s, before)
      blocks = Div(up, width)
      target = Concat<axis=0>(b, blocks, four)
      h = Neg(z)
      e = Expand(h, target)
      y = Relu(e)
    }"""
    outcome = run_passes(text, "remove-no-ops")
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(2, 130) == 0
