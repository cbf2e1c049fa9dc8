"""Notes of what is not proved are known by their words, wherever they are made."""

from __future__ import annotations

import pytest

from onnxopt.proof.cases import short_of
from onnxopt.records.notes import NOT_RUN, NOT_TAKEN, NOT_TRIED, is_unproved
from onnxopt.records.record import ProvedRange


def test_an_axis_that_is_proved_up_to_less_is_known() -> None:
    (note,) = short_of({"frames": ProvedRange(least=1, most=96, promised=3000)})
    assert is_unproved(note)


@pytest.mark.parametrize(
    "note",
    [
        f"axis 'a' was {NOT_TRIED}: the model is slow to run",
        f"input 'a' does not run at 3: {NOT_RUN}",
        f"{NOT_TAKEN} of the proof takes them: 2 branches (then of If); give --value or --feeds",
    ],
)
def test_what_was_not_tried_is_known(note: str) -> None:
    assert is_unproved(note)


@pytest.mark.parametrize(
    "note", ["axis 'a' runs from 2 on only", "padding stays: no padding mask could be followed through the model", ""]
)
def test_what_is_of_interest_only_is_told_apart(note: str) -> None:
    assert not is_unproved(note)
