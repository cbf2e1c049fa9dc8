"""A speed-up is told with its interval; where 1 lies inside, no difference was seen."""

from __future__ import annotations

import pytest

from onnxopt.records.speed import speed_text, verdict_of


@pytest.mark.parametrize(
    ("low", "high", "verdict", "text"),
    [
        (1.01, 1.2, "faster", "1.10× (1.01 to 1.20)"),
        (0.8, 0.99, "slower", "1.10× (0.80 to 0.99): slower"),
        (0.97, 1.07, "no difference", "1.10× (0.97 to 1.07): no difference seen"),
        (1.0, 1.3, "no difference", "1.10× (1.00 to 1.30): no difference seen"),
        (0.9, 1.0, "no difference", "1.10× (0.90 to 1.00): no difference seen"),
        (None, 1.2, "not told", "1.10×"),
        (0.9, None, "not told", "1.10×"),
    ],
)
def test_the_interval_decides(low: float | None, high: float | None, verdict: str, text: str) -> None:
    assert verdict_of(low, high) == verdict
    assert speed_text(1.1, low, high, times="×") == text
