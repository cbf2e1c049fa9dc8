from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.passes.canonicalize.sequence_split import SplitSequence
from onnxopt.spec import Array
from tests.support.rules import Outcome, parse, run_passes

TAKEN = "a = SequenceAt(parts, first) b = SequenceAt(parts, second) y = Add(a, b)"


def run(
    split: str = "parts = SplitToSequence<axis=-1>(h, size)",
    taken: str = TAKEN,
    *,
    outputs: str = "float y",
    opset: int = 23,
    shape: str = "batch,sequence,12",
    **weights: Array,
) -> Outcome:
    held = {"first": np.array(0), "second": np.array(1), "size": np.array(4), **weights}
    text = f"g (float[{shape}] x) => ({outputs}) {{ h = Neg(x) {split} {taken} }}"
    used = {name: array for name, array in held.items() if name in text}
    return run_passes(text, "split-sequence", "split-sequence", weights=used, opset=opset)


SPELLINGS = {
    "one size for all": ("parts = SplitToSequence<axis=-1>(h, size)", [4, 4, 4]),
    "one size of rank 0, the axis from the front": ("parts = SplitToSequence<axis=2>(h, size)", [4, 4, 4]),
    "a size that leaves a rest": ("parts = SplitToSequence<axis=-1>(h, eight)", [8, 4]),
    "sizes": ("parts = SplitToSequence<axis=-1>(h, sizes)", [4, 4, 3, 1]),
    "one size in a list": ("parts = SplitToSequence<axis=-1>(h, only)", [12]),
    "single slices that keep their axis": ("parts = SplitToSequence<axis=2, keepdims=1>(h)", [1] * 12),
}


@pytest.mark.parametrize(("split", "sizes"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_splits_into_tensors(split: str, sizes: list[int]) -> None:
    last = len(sizes) - 1
    taken = "a = SequenceAt(parts, first) b = SequenceAt(parts, last) y = Concat<axis=-1>(b, a)"
    more: dict[str, Any] = {
        "eight": np.array(8),
        "sizes": np.array([4, 4, 3, 1]),
        "only": np.array([12]),
        "last": np.array(last),
    }
    outcome = run(split, taken, **more)
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.ops == ["Neg", "Split", "Concat"]
    assert outcome.constant("Split", 1).tolist() == sizes
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(sum), places=st.data())
@settings(max_examples=25, deadline=None)
def test_any_sizes_and_any_places(sizes: list[int], places: st.DataObject) -> None:
    index = st.integers(-len(sizes), len(sizes) - 1)
    first, second = places.draw(index), places.draw(index)
    outcome = run(
        "parts = SplitToSequence<axis=1>(h, sizes)",
        "a = SequenceAt(parts, first) b = SequenceAt(parts, second) y = Concat<axis=1>(a, b)",
        shape=f"batch,{sum(sizes)}",
        sizes=np.array(sizes),
        first=np.array(first),
        second=np.array(second),
    )
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error_at(4, 1) == 0


def test_a_part_that_is_taken_twice_is_one_tensor() -> None:
    outcome = run(first=np.array(1), second=np.array(-2))
    assert outcome.ops == ["Neg", "Split", "Add"]
    split, add = outcome.model.graph.node(1), outcome.model.graph.node(2)
    assert list(add.inputs) == [split.outputs[1], split.outputs[1]]
    assert outcome.worst_error() == 0


def test_a_part_that_is_an_output_keeps_its_name() -> None:
    outcome = run(outputs="float b, float y")
    assert outcome.ops == ["Neg", "Split", "Add"]
    assert [value.name for value in outcome.model.graph.outputs] == ["b", "y"]
    assert outcome.worst_error() == 0


@pytest.mark.parametrize("outputs", ["float a, float b, float y", "float b, float y", "float a, float y"])
def test_one_part_that_has_two_names_keeps_those_of_outputs(outputs: str) -> None:
    outcome = run(outputs=outputs, second=np.array(0))
    assert [value.name for value in outcome.model.graph.outputs] == [part.split()[1] for part in outputs.split(", ")]
    assert outcome.ops.count("Identity") == int("a, float b" in outputs)
    assert outcome.rolled_back == []
    assert outcome.worst_error() == 0


def test_two_sequences_in_one_graph() -> None:
    more = "others = SplitToSequence<axis=-1>(y0, size) c = SequenceAt(others, first) y = Neg(c)"
    outcome = run(taken=f"{TAKEN.replace('y =', 'y0 =')} {more}", size=np.array(2))
    assert [entry.applied for entry in outcome.entries] == [2, 0]
    assert outcome.worst_error() == 0


COMPUTED = "n = Shape<start=2, end=3>(x) f = Div(n, three)"
HELD_BACK: dict[str, tuple[str, str]] = {
    "single slices lose their axis": (
        "parts = SplitToSequence<axis=-1, keepdims=0>(h)",
        TAKEN,
    ),
    "the runtime takes the axis away although a size is given": (
        "parts = SplitToSequence<axis=-1, keepdims=0>(h, one)",
        TAKEN,
    ),
    "an axis of unknown length": ("parts = SplitToSequence<axis=1>(h, one)", TAKEN),
    "an axis of no known length and no size": ("parts = SplitToSequence<axis=1>(h)", TAKEN),
    "a size that is computed": (
        f"{COMPUTED} s = Squeeze(f) parts = SplitToSequence<axis=-1>(h, s)",
        TAKEN,
    ),
    "sizes that are computed": (
        f"{COMPUTED} s = Concat<axis=0>(f, f, f) parts = SplitToSequence<axis=-1>(h, s)",
        TAKEN,
    ),
    "a place that is computed": (
        "parts = SplitToSequence<axis=-1>(h, size)",
        "n = Shape<start=2, end=3>(x) f = Div(n, n) s = Squeeze(f) a = SequenceAt(parts, s) y = Neg(a)",
    ),
    "the sequence is measured": (
        "parts = SplitToSequence<axis=-1>(h, size)",
        "n = SequenceLength(parts) f = Cast<to=1>(n) a = SequenceAt(parts, first) y = Mul(a, f)",
    ),
    "the sequence is joined again": (
        "parts = SplitToSequence<axis=-1>(h, size)",
        "a = SequenceAt(parts, first) c = ConcatFromSequence<axis=-1>(parts) d = Neg(c) y = ReduceSum(d)",
    ),
}


@pytest.mark.parametrize(("split", "taken"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back(split: str, taken: str) -> None:
    outcome = run(split, taken, one=np.array(1), three=np.array([3]))
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries] == [0, 0]
    assert "SplitToSequence" in outcome.ops
    assert outcome.worst_error() == 0


def test_a_sequence_that_is_an_output_stays() -> None:
    text = """
    g (float[batch,12] x) => (float[batch,4] a, seq(float[batch,4]) parts) {
      parts = SplitToSequence<axis=-1>(x, size)
      a = SequenceAt(parts, first)
    }"""
    model = parse(text, {"size": np.array(4), "first": np.array(0)})
    assert SplitSequence().run(model) == 0


def test_nobody_reads_the_sequence() -> None:
    outcome = run(taken="y = Neg(h)")
    assert [entry.applied for entry in outcome.entries] == [0, 0]
    assert "Split" not in outcome.ops


def test_below_opset_13_sizes_are_no_input() -> None:
    outcome = run(opset=12)
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries] == [0, 0]
    assert outcome.worst_error() == 0
