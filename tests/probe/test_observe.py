from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.sizes.words import fit

SIZES = ({"batch": 2, "sequence": 7}, {"batch": 3, "sequence": 11}, {"batch": 5, "sequence": 13})


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        ((2, 3, 5), "batch"),
        ((7, 11, 13), "sequence"),
        ((14, 33, 65), "batch*sequence"),
        ((49, 121, 169), "sequence*sequence"),
        ((8, 12, 14), "sequence + 1"),
        ((6, 10, 12), "sequence - 1"),
        ((12, 12, 12), 12),
        ((1, 4, 9), None),
    ],
)
def test_a_dimension_is_named_from_what_it_was_in_several_runs(seen: tuple[int, ...], named: int | str | None) -> None:
    assert named == fit(seen, SIZES)


@given(st.integers(1, 4096))
def test_a_constant_dimension_is_never_taken_for_an_axis(size: int) -> None:
    assert fit((size, size, size), SIZES) == size


def test_an_axis_that_is_empty_in_one_run_divides_nothing() -> None:
    """What a decoder has seen before may be nothing."""
    sizes = [{"batch": 2, "past": 17}, {"batch": 3, "past": 0}, {"batch": 5, "past": 19}]
    assert fit((17, 0, 19), sizes) == "past"
    assert fit((34, 0, 38), sizes) == "past*2"
    assert fit((34, 1, 38), sizes) is None
    assert fit((18, 1, 20), sizes) == "past + 1"
