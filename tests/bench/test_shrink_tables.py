"""The tables of what pruning costs are what was recorded."""

from __future__ import annotations

from pathlib import Path

from bench import distill

ROOT = Path(__file__).parents[2]


def test_a_distillation_is_shown_with_its_curve() -> None:
    record = {
        "steps": 20,
        "settings": {"batch": 4, "length": 8},
        "tokens_per_second": 1234.5,
        "held_out": 7,
        "teacher_metric": 10.0,
        "before": 50.0,
        "after": 12.0,
        "curve": [{"step": 0, "metric": 50.0}, {"step": 20, "metric": 12.0}],
    }
    found = {
        "distillation": record,
        "builtin": {"teacher": 20.0, "pruned": 60.0, "distilled": 25.0},
        "text": "prose",
        "device": "a | device",
        "created": "2026-11-26T00:00:00",
        "tokens": 5120,
    }
    caption, rows, curve = distill.render(found)
    assert "20 updates of 4 × 8 tokens" in caption
    assert "a \\| device" in caption
    assert "| 24 layers, distilled | 12.0 | 25.0 |" in rows
    assert curve == "The first of them by updates made: 0: 50.0, 20: 12.0."
