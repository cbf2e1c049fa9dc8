"""The words for a speed-up: it is told with the interval that it lies in.

Where 1 is inside, no difference was seen, whatever the number is.
"""

from __future__ import annotations

from typing import Literal

Verdict = Literal["faster", "slower", "no difference", "not told"]


def verdict_of(low: float | None, high: float | None) -> Verdict:
    """Say what an interval of a speed-up shows; without one, nothing is told."""
    if low is None or high is None:
        return "not told"
    if low > 1.0:
        return "faster"
    return "slower" if high < 1.0 else "no difference"


def speed_text(speedup: float, low: float | None, high: float | None, *, times: str = "x") -> str:
    """Write a speed-up with its interval and what it shows: `1.02x (0.97 to 1.07): no difference seen`.

    Args:
        speedup: how many times faster.
        low: lower end of its interval.
        high: upper end.
        times: the sign behind the number.
    """
    if low is None or high is None:
        return f"{speedup:.2f}{times}"
    said = {"slower": ": slower", "no difference": ": no difference seen"}.get(verdict_of(low, high), "")
    return f"{speedup:.2f}{times} ({low:.2f} to {high:.2f}){said}"
