"""Numbers are written in one way wherever a person reads them."""

from __future__ import annotations

import math

from onnxopt.records.numbers import error_text, ms_text, number_text, size_text


def test_words_for_numbers() -> None:
    assert [error_text(e) for e in (0.0, 1.5e-7, math.nan, None)] == ["0", "1.5e-07", "not comparable", "not compared"]
    sizes = [size_text(size) for size in (12, 1023, 1536, 5 << 20, -3 << 20, 2**31)]
    assert sizes == ["12 B", "1,023 B", "1.5 KiB", "5.0 MiB", "-3.0 MiB", "2.00 GiB"]
    assert [number_text(count) for count in (1234567, -3)] == ["1,234,567", "−3"]
    assert [ms_text(time) for time in (1234.5, 12.34, 1.234)] == ["1,234", "12.3", "1.23"]
