"""Numbers for people: units, digits, and a word where there is no number."""

from __future__ import annotations

import math

import pytest

from onnxopt.records.numbers import error_text, ms_text, number_text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, "not compared"),
        (math.nan, "not comparable"),
        (math.inf, "not comparable"),
        (0.0, "0"),
        (1.26e-6, "1.3e-06"),
    ],
)
def test_an_error_has_two_digits_or_a_word(error: float | None, text: str) -> None:
    assert error_text(error) == text


def test_whole_numbers_and_times() -> None:
    assert [number_text(count) for count in (-1234567, 12)] == ["−1,234,567", "12"]
    assert [ms_text(time) for time in (1234.5, 99.96, 10.0, 9.994, 0.004)] == ["1,234", "100.0", "10.0", "9.99", "0.00"]
