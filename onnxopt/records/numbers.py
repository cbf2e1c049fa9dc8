"""Numbers for people: errors, counts, times."""

from __future__ import annotations

import math


def error_text(error: float | None) -> str:
    """Write an error with two digits; equal bits are `0`, what cannot be compared is said so."""
    if error is None:
        return "not compared"
    if math.isnan(error) or math.isinf(error):
        return "not comparable"
    return f"{error:.1e}" if error else "0"


def number_text(count: int) -> str:
    """Write a whole number with separators and a true minus sign."""
    return f"{count:,}".replace("-", "−")


def ms_text(milliseconds: float) -> str:
    """Write milliseconds with three digits."""
    if milliseconds >= 100:
        return f"{milliseconds:,.0f}"
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}"
