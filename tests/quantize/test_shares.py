"""How much of a budget a search asks for, after a judge has spoken."""

from __future__ import annotations

from onnxopt.shares import AIM, Mark, next_share


def test_a_plan_that_uses_the_budget_ends_the_search() -> None:
    assert next_share([Mark(0.9, 0.9, 0.9)], relax=True) is None
    assert next_share([Mark(0.9, 0.9, 0.3)], relax=False) is None


def test_where_the_judge_saw_more_lost_less_is_asked_for() -> None:
    asked = next_share([Mark(0.9, 0.6, 1.2)], relax=True)
    assert asked is not None
    assert abs(asked - 0.6 * AIM / 1.2) < 1e-9
    assert next_share([Mark(0.9, 0.0, 1.2)], relax=True) == 0.45  # nothing lost in the search: half of what was asked
    assert next_share([Mark(0.9, 0.9, 1.001)], relax=True) == 0.9 * 0.9 < 0.9


def test_where_the_judge_saw_less_lost_more_is_asked_for() -> None:
    asked = next_share([Mark(0.9, 0.7, 0.4)], relax=True)
    assert asked is not None
    assert abs(asked - 0.7 * AIM / 0.4) < 1e-9
    assert next_share([Mark(0.9, 0.7, 0.0)], relax=True) == 0.7 * 2.5


def test_between_a_plan_within_and_one_beyond_it_is_interpolated() -> None:
    marks = [Mark(0.9, 0.7, 0.4), Mark(1.6, 1.5, 1.2)]
    asked = next_share(marks, relax=True)
    assert asked is not None
    assert 0.7 < asked < 1.5
    assert abs(asked - (0.7 + (AIM - 0.4) / 0.8 * 0.8)) < 1e-9
    assert next_share([*marks, Mark(asked, 1.2, 0.85)], relax=True) is None
    assert next_share([Mark(0.9, 0.7, 0.4), Mark(1.6, 0.7, 1.2)], relax=True) is None  # the judge contradicts itself
