import numpy as np
import pytest

from onnxopt.passes.canonicalize.reshape import constant_target
from onnxopt.spec import Array
from tests.support.rules import names_read, run_passes

TARGETS = {  # the target of constant_target for a value of [batch, sequence, 8]
    "heads": ("Concat<axis=0>(b, s, two, four)", [0, 0, 2, 4]),
    "heads with a rest": ("Concat<axis=0>(b, s, rest, four)", [0, 0, 2, 4]),
    "tokens": ("Concat<axis=0>(bs, eight)", [-1, 8]),
    "tokens with a rest": ("Concat<axis=0>(rest, eight)", [-1, 8]),
    "a flat rest": ("Concat<axis=0>(b, rest)", [0, -1]),
    "back to front": ("Concat<axis=0>(eight, rest, s)", None),
    "axes that moved": ("Concat<axis=0>(s, b, eight)", None),
    "one axis that moved": ("Concat<axis=0>(two, b, s, four)", None),
    "a one between": ("Concat<axis=0>(b, one, s, eight)", [0, 1, -1, 8]),
    "a one in front": ("Concat<axis=0>(one, bs, eight)", [1, -1, 8]),
}


def computed(target: str) -> str:
    return f"""
    g (float[batch,sequence,8] x) => (float[n] y)
    <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] four = {{4}}, int64[1] eight = {{8}},
     int64[1] rest = {{-1}}, int64[1] flat = {{-1}}> {{
      shape = Shape(x)
      b = Gather(shape, zero)
      s = Gather(shape, one)
      bs = Mul(b, s)
      target = {target}
      h = Reshape(x, target)
      y = Neg(h)
    }}""".replace("float[n] y", "float y")


@pytest.mark.parametrize(("target", "wanted"), TARGETS.values(), ids=TARGETS.keys())
def test_a_target_that_is_read_from_dimensions_becomes_a_constant_where_one_can_say_it(
    target: str, wanted: list[int] | None
) -> None:
    outcome = run_passes(computed(target), "make-reshape-static", "make-reshape-static", "remove-unused")
    assert outcome.rolled_back == []
    if wanted is None:
        assert outcome.entries[0].applied == 0
        assert "cannot be written as a constant" in outcome.entries[0].refused[0].reason
    else:
        assert outcome.constant("Reshape", 1).tolist() == wanted
        assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
        assert outcome.ops == ["Reshape", "Neg"]
    assert outcome.worst_error() == 0
    for batch, sequence in ((1, 1), (1, 9), (4, 1), (8, 128)):
        assert outcome.worst_error_at(batch, sequence) == 0


def test_an_empty_batch_stays_empty() -> None:
    outcome = run_passes(computed(TARGETS["heads"][0]), "make-reshape-static")
    assert outcome.worst_error_at(0, 3) == 0


def test_a_zero_copies_only_from_the_same_place() -> None:
    """[batch, sequence] that were swapped by a Transpose must not be read from the wrong axis."""
    text = """
    g (float[batch,sequence,8] x) => (float[sequence,batch,2,4] y) <int64[1] two = {2}, int64[1] four = {4}> {
      h = Transpose<perm=[1,0,2]>(x)
      s = Shape<start=1, end=2>(x)
      b = Shape<start=0, end=1>(x)
      target = Concat<axis=0>(s, b, two, four)
      y = Reshape(h, target)
    }"""
    outcome = run_passes(text, "make-reshape-static")
    assert outcome.constant("Reshape", 1).tolist() == [0, 0, 2, 4]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(4, 4) == 0
    assert outcome.worst_error_at(1, 9) == 0


def test_a_target_that_is_data_stays() -> None:
    text = "g (float[batch,sequence,8] x, int64[2] wanted) => (float y) { h = Reshape(x, wanted) y = Neg(h) }"
    feeds = {"wanted": [np.array([2, 56]), np.array([3, 88]), np.array([5, 104])]}
    outcome = run_passes(text, "make-reshape-static", feeds=feeds)
    assert outcome.reasons == ["the target depends on the data of wanted"]
    assert outcome.worst_error_at(2, 3, wanted=np.array([8, 6])) == 0


def test_a_target_that_mixes_dimensions_with_data_stays() -> None:
    text = """
    g (float[batch,sequence,8] x, int64[1] cut) => (float y) <int64[1] rest = {-1}> {
      b = Shape<start=0, end=1>(x)
      target = Concat<axis=0>(b, cut, rest)
      h = Reshape(x, target)
      y = Neg(h)
    }"""
    outcome = run_passes(text, "make-reshape-static", feeds={"cut": [np.array([4])] * 3})
    assert outcome.reasons == ["the target depends on the data of cut"]
    assert outcome.worst_error_at(2, 3, cut=np.array([2])) == 0


@pytest.mark.parametrize(
    ("input_shape", "target", "allow"),
    [
        ("batch,0,4", "Concat<axis=0>(b, four, nothing)", 1),
        ("batch,0,4", "Concat<axis=0>(b, nothing)", 1),
        ("batch,0,4", "Concat<axis=0>(nothing, b)", 1),
        ("batch,0,4", "Concat<axis=0>(nothing, four)", 1),
    ],
)
def test_empty_tensors_keep_their_shape(input_shape: str, target: str, allow: int) -> None:
    text = f"""
    g (float[{input_shape}] x) => (float y) <int64[1] nothing = {{0}}, int64[1] four = {{4}}> {{
      b = Shape<start=0, end=1>(x)
      n = Shape<start=1, end=2>(x)
      target = {target}
      h = Reshape<allowzero={allow}>(x, target)
      y = Neg(h)
    }}"""
    outcome = run_passes(text, "make-reshape-static")
    assert outcome.rolled_back == []
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0
    assert outcome.worst_error_at(7, 2) == 0


def test_a_number_of_blocks_that_was_one_at_every_probe_is_not_taken_for_a_constant() -> None:
    """Windowed attention pads the sequence to a multiple of 64: one block up to 64 tokens, two from 65 on."""
    text = """
    g (float[batch,sequence,4] x) => (float[batch,blocks,64,4] y)
    <int64[1] width = {64}, int64[1] before = {63}, int64[1] four = {4}, int64[1] zero = {0},
     int64[4] zeros = {0, 0, 0, 0}> {
      b = Shape<start=0, end=1>(x)
      s = Shape<start=1, end=2>(x)
      up = Add(s, before)
      blocks = Div(up, width)
      full = Mul(blocks, width)
      more = Sub(full, s)
      pads = Concat<axis=0>(zeros, more, zero)
      padded = Pad(x, pads)
      target = Concat<axis=0>(b, blocks, width, four)
      y = Reshape(padded, target)
    }"""
    outcome = run_passes(text, "make-reshape-static")
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(2, 130) == 0


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (("batch", 8), ("batch", 2, 4), [0, 2, 4]),
        (("batch", 8), (2, "batch", 4), [2, -1, 4]),
        (("batch", "sequence"), ("sequence", "batch"), None),
        (("batch", None), ("batch", None), [0, -1]),
        ((None, 4), (None, 4), [-1, 4]),
        ((None, None), (None, None), None),
        (("batch", 0), ("batch", 0), [0, -1]),
        ((0, 4), (0, 2, 2), [-1, 2, 2]),
        ((8,), (), []),
        (("batch",), ("batch", 1), [0, 1]),
        ((1, 1), (), []),
    ],
)
def test_writes_a_shape_as_constants(
    before: tuple[int | str | None, ...], after: tuple[int | str | None, ...], wanted: list[int] | None
) -> None:
    assert constant_target(before, after) == wanted


# merge-reshapes

MERGES: dict[str, tuple[str, dict[str, Array], list[str]]] = {
    "back to the start": (
        "h = Reshape(x, there) y = Reshape(h, back)",
        {"there": np.array([0, 0, 2, 4]), "back": np.array([0, 0, -1])},
        [],
    ),
    "tokens into heads": (
        "h = Reshape(x, there) y = Reshape(h, back)",
        {"there": np.array([-1, 8]), "back": np.array([-1, 2, 4])},
        ["Reshape"],
    ),
    "an inner zero": (
        "h = Reshape(x, there) y = Reshape(h, back)",
        {"there": np.array([0, -1, 2, 2]), "back": np.array([0, -1, 4])},
        ["Reshape"],
    ),
    "an outer zero that means an inner dimension": (
        "h = Reshape(x, there) y = Reshape(h, back)",
        {"there": np.array([-1, 2, 4]), "back": np.array([-1, 0, 2, 2])},
        ["Reshape"],
    ),
    "after Unsqueeze": (
        "h = Unsqueeze(x, axis) y = Reshape(h, back)",
        {"axis": np.array([1]), "back": np.array([0, -1])},
        ["Reshape"],
    ),
    "after Squeeze": (
        "u = Transpose<perm=[0,1,2]>(x) i = Unsqueeze(u, axis) h = Squeeze(i, axis) y = Reshape(h, back)",
        {"axis": np.array([0]), "back": np.array([-1, 8])},
        ["Transpose", "Reshape"],
    ),
    "after Flatten": ("h = Flatten<axis=1>(x) y = Reshape(h, back)", {"back": np.array([0, -1, 2])}, ["Reshape"]),
    "three in a row": (
        "h = Reshape(x, there) i = Reshape(h, flat) y = Reshape(i, back)",
        {"there": np.array([0, 0, 2, 4]), "flat": np.array([-1]), "back": np.array([-1, 4])},
        ["Reshape"],
    ),
}


@pytest.mark.parametrize(("nodes", "weights", "ops"), MERGES.values(), ids=MERGES.keys())
def test_merges_two_in_a_row(nodes: str, weights: dict[str, Array], ops: list[str]) -> None:
    text = f"g (float[batch,sequence,8] x0) => (float z) {{ x = Neg(x0) {nodes} z = Neg(y) }}"
    outcome = run_passes(text, "merge-reshapes", "merge-reshapes", weights=weights)
    assert outcome.ops == ["Neg", *ops, "Neg"]
    assert outcome.entries[0].applied > 0
    assert outcome.entries[1].applied == 0
    assert outcome.rolled_back == []
    for batch, sequence in ((1, 1), (4, 2), (2, 8), (8, 2)):
        assert outcome.worst_error_at(batch, sequence) == 0


def test_does_not_merge_when_the_outer_zero_copies_what_the_input_has_not() -> None:
    text = """
    g (float[batch,sequence,4] x) => (float z) <int64[1] four = {4}> {
      s = Shape<start=1, end=2>(x)
      b = Shape<start=0, end=1>(x)
      wide = Mul(b, four)
      target = Concat<axis=0>(s, wide)
      h = Reshape(x, target)
      y = Reshape(h, back)
      z = Neg(y)
    }"""
    outcome = run_passes(text, "merge-reshapes", weights={"back": np.array([0, -1, 2])})
    assert outcome.reasons == ["the final shape copies dimensions of the inner one"]
    assert outcome.worst_error_at(4, 4) == 0


def test_does_not_merge_when_a_computed_outer_shape_has_a_zero() -> None:
    text = """
    g (float[batch,sequence,4] x) => (float z) <int64[1] zero = {0}, int64[1] four = {4}> {
      s = Shape<start=1, end=2>(x)
      b = Shape<start=0, end=1>(x)
      wide = Mul(b, four)
      there = Concat<axis=0>(s, wide)
      h = Reshape(x, there)
      back = Concat<axis=0>(zero, b, four)
      y = Reshape(h, back)
      z = Neg(y)
    }"""
    outcome = run_passes(text, "merge-reshapes")
    assert outcome.entry.applied == 0
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(4, 2) == 0


def test_takes_a_constant_without_zeros_as_it_is() -> None:
    text = """
    g (float[batch,sequence,4] x) => (float z) <int64[1] four = {4}> {
      s = Shape<start=1, end=2>(x)
      b = Shape<start=0, end=1>(x)
      wide = Mul(b, four)
      there = Concat<axis=0>(s, wide)
      h = Reshape(x, there)
      y = Reshape(h, back)
      z = Neg(y)
    }"""
    outcome = run_passes(text, "merge-reshapes", "remove-unused", weights={"back": np.array([-1, 2])})
    assert outcome.ops == ["Reshape", "Neg"]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


@pytest.mark.parametrize("back", [[0, 3], [0, 0], [5, 0]])
def test_merges_empty_tensors_with_allowzero(back: list[int]) -> None:
    text = """
    g (float[batch,0,4] x) => (float z) {
      h = Flatten<axis=1>(x)
      y = Reshape<allowzero=1>(h, back)
      z = Neg(y)
    }"""
    outcome = run_passes(text, "merge-reshapes", weights={"back": np.array(back)})
    assert outcome.rolled_back == []
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_the_inner_reshape_stays_for_its_other_readers() -> None:
    text = """
    g (float[batch,sequence,8] x) => (float[n,8] h, float[n,2,4] y) {
      h = Reshape(x, there)
      y = Reshape(h, back)
    }"""
    outcome = run_passes(text, "merge-reshapes", weights={"there": np.array([-1, 8]), "back": np.array([-1, 2, 4])})
    assert outcome.ops == ["Reshape", "Reshape"]
    assert [names_read(node)[0] for node in outcome.model.graph] == ["x", "x"]
    assert outcome.worst_error_at(1, 1) == 0


def test_merging_does_not_take_a_number_of_blocks_for_a_constant() -> None:
    text = """
    g (float[batch,sequence,4] x) => (float y)
    <int64[1] width = {64}, int64[1] before = {63}, int64[1] four = {4}, int64[1] edge = {16},
     int64[1] zero = {0}, int64[4] zeros = {0, 0, 0, 0}> {
      b = Shape<start=0, end=1>(x)
      s = Shape<start=1, end=2>(x)
      up = Add(s, before)
      blocks = Div(up, width)
      full = Mul(blocks, width)
      more = Sub(full, s)
      pads = Concat<axis=0>(zeros, more, zero)
      padded = Pad(x, pads)
      wide = Concat<axis=0>(b, blocks, width, four)
      h = Reshape(padded, wide)
      square = Concat<axis=0>(b, blocks, edge, edge)
      q = Reshape(h, square)
      y = Neg(q)
    }"""
    outcome = run_passes(text, "merge-reshapes")
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(2, 130) == 0


def cut_and_reshaped(stop: str, target: str) -> str:
    """What of [batch, sequence, 6] a Slice leaves, as rows, and then in three axes by a computed shape."""
    return f"""
    g (float[batch,sequence,6] x) => (float y)
    <int64[1] first = {{9}}, int64[1] last = {{{stop}}}, int64[1] one = {{1}}, int64[1] six = {{6}},
     int64[2] rows = {{-1, 6}}, int64[1] rest = {{-1}}> {{
      cut = Slice(x, first, last, one)
      flat = Reshape(cut, rows)
      n = Shape<start=1, end=2>(cut)
      b = Shape<start=0, end=1>(cut)
      target = Concat<axis=0>({target})
      h = Reshape(flat, target)
      y = Neg(h)
    }}"""


@pytest.mark.parametrize("target", ["rest, n, six", "n, rest, six"])
def test_a_computed_size_that_may_be_0_copies_from_the_inner_shape_and_no_other(target: str) -> None:
    outcome = run_passes(cut_and_reshaped("1000", target), "merge-reshapes")
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert "may be 0" in outcome.reasons[0]


@pytest.mark.parametrize("sequence", [3, 9, 10, 40])
def test_no_size_is_inferred_beside_one_that_may_be_0(sequence: int) -> None:
    text = cut_and_reshaped("1000", "b, n, six").replace("h = Reshape(", "h = Reshape<allowzero=1>(")
    outcome = run_passes(text, "merge-reshapes", "make-reshape-static")
    assert outcome.rolled_back == []
    assert outcome.worst_error_at(2, sequence) == 0


def test_a_cut_that_is_never_empty_holds_nothing_back() -> None:
    text = cut_and_reshaped(str(2**40), "rest, n, six").replace("first = {9}", "first = {-3}")
    outcome = run_passes(text, "merge-reshapes")
    assert outcome.entry.applied == 1
    for sequence in (1, 2, 3, 50):
        assert outcome.worst_error_at(2, sequence) == 0
