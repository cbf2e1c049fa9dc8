import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import run_passes

POSITIONS = """
g (int64[batch,sequence] ids) => (float[1,sequence,4] y)
<int64[1] zero = {0}, int64[1] axis = {AXIS}> {
  length = Shape<start=1, end=2>(ids)
  sliced = Slice(positions, zero, length, axis)
  y = Gather(table, sliced)
}"""


def weights(positions: Array, rows: int = 20) -> dict[str, Array]:
    return {"positions": positions, "table": np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)}


def test_looks_the_whole_table_of_positions_up_once() -> None:
    given = weights(np.arange(20)[None])
    outcome = run_passes(POSITIONS.replace("AXIS", "1"), "slice-position-table", "slice-position-table", weights=given)
    assert outcome.ops == ["Shape", "Slice"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert np.array_equal(outcome.constant("Slice", 0), given["table"][None])
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0
    assert outcome.worst_error_at(1, 20) == 0


def test_positions_with_an_offset_stay_what_they_are() -> None:
    """RoBERTa counts from 2."""
    outcome = run_passes(
        POSITIONS.replace("AXIS", "1"), "slice-position-table", weights=weights(np.arange(2, 18)[None])
    )
    assert outcome.ops == ["Shape", "Slice"]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_a_slice_with_steps_keeps_them() -> None:
    text = """
    g (int64[batch,sequence] ids) => (float[n,4] y) <int64[1] zero = {0}, int64[1] two = {2}> {
      length = Shape<start=1, end=2>(ids)
      sliced = Slice(positions, zero, length, zero, two)
      y = Gather(table, sliced)
    }"""
    outcome = run_passes(text, "slice-position-table", weights=weights(np.arange(20)))
    assert outcome.ops == ["Shape", "Slice"]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 20) == 0


HELD_BACK = {
    "an axis from behind": ("-1", np.arange(20)[None], "the sliced axes are not constant and positive"),
    "more positions than rows": ("1", np.arange(21)[None] % 20, "the gathered table would be larger than the table"),
    "a position from behind": ("1", -np.arange(1, 20)[None], "an index lies outside the table"),
}


@pytest.mark.parametrize(("axis", "positions", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(axis: str, positions: Array, reason: str) -> None:
    outcome = run_passes(POSITIONS.replace("AXIS", axis), "slice-position-table", weights=weights(positions))
    assert (outcome.entry.applied, outcome.reasons) == (0, [reason])


def test_holds_back_when_the_positions_are_an_output_too() -> None:
    text = POSITIONS.replace("AXIS", "1").replace("y)\n", "y, int64[1,sequence] sliced)\n", 1)
    outcome = run_passes(text, "slice-position-table", weights=weights(np.arange(20)[None]))
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]


def test_leaves_a_look_up_along_another_axis_alone() -> None:
    text = (
        POSITIONS.replace("AXIS", "1")
        .replace("Gather(table", "Gather<axis=1>(table")
        .replace("[1,sequence,4]", "[4,1,n]")
    )
    given = weights(np.arange(20)[None])
    outcome = run_passes(text, "slice-position-table", weights={**given, "table": given["table"].T})
    assert outcome.entry.applied == 0
    assert outcome.ops == ["Shape", "Slice", "Gather"]
