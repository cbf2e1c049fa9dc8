"""A step is its words for whoever knows no more, and says how much of its work is done to whoever asks."""

from __future__ import annotations

from onnxopt.records.events import Event, Step, under


def test_a_piece_that_begins_has_those_before_it_behind_it() -> None:
    step = Step.piece("rounding", 3, 12, "lm_head")
    assert step == "rounding 3 of 12: lm_head"
    assert (step.work, step.done, step.total, step.fraction) == ("rounding", 2, 12, 2 / 12)
    assert Step.piece("rounding", 3, 12) == "rounding 3 of 12"


def test_a_part_of_something_stays_counted() -> None:
    inner = Step("fit 8 of 32 samples", work="fit", done=8, total=32)
    outer = under("calibrate", inner)
    assert outer == "calibrate: fit 8 of 32 samples"
    assert isinstance(outer, Step)
    assert (outer.work, outer.done, outer.total) == ("calibrate: fit", 8, 32)
    assert under("calibrate", "plain words") == "calibrate: plain words"
    assert not isinstance(under("calibrate", "plain words"), Step)


def test_no_more_is_done_than_there_is() -> None:
    assert Step("words", done=9, total=8).fraction == 1.0
    assert Step("words").fraction == 0.0


def test_an_event_knows_the_share_of_its_step() -> None:
    assert Event("quantize", Step.piece("grids", 2, 4)).fraction == 0.25
    assert Event("quantize", "words").fraction is None
    assert Event("quantize", Step("words")).fraction is None
