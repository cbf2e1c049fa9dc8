"""The knapsack: its limit, brute force where greed is exact, and limits that are moved until the measured loss fits."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.qmath.knapsack import Assignment, Halving, Option, Rule, Scaling, Search, assign, front
from onnxopt.qmath.precision import PlannedLinear, Precision
from onnxopt.quantize.decoder import STEPS
from onnxopt.quantize.search import MOST_TRIES

PLANS = Path(__file__).parent / "plans.json"  # what searches of real models were given, measured and chose
Pairs = Sequence[tuple[float, float]]  # loss and seconds


def unit(label: str, pairs: Pairs) -> list[Option]:
    return [Option({label: PlannedLinear(Precision("int8"), str(place))}, *pair) for place, pair in enumerate(pairs)]


def units_of(*pairs: Pairs) -> list[list[Option]]:
    return [unit(f"layer {number}", own) for number, own in enumerate(pairs)]


def brute_force(units: Sequence[Sequence[Option]], limit: float) -> float:
    """Return the least time of all assignments within a limit, or of those that lose the least."""
    every = [Assignment(options) for options in itertools.product(*units)]
    least = max(limit, min(one.loss for one in every))
    return min(one.seconds for one in every if one.loss <= least)


# whole numbers: sums of floats would differ by their order
NUMBERS = st.integers(0, 40)
UNITS = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4), min_size=1, max_size=6)


@given(UNITS)
def test_a_front_holds_what_nothing_else_beats(pairs: list[list[tuple[int, int]]]) -> None:
    for own in units_of(*pairs):
        kept = front(own)
        assert [one.seconds for one in kept] == sorted({one.seconds for one in kept})
        assert [one.loss for one in kept] == sorted({one.loss for one in kept}, reverse=True)
        for option in own:
            assert any(one.loss <= option.loss and one.seconds <= option.seconds for one in kept)


@given(UNITS, st.integers(0, 250))
def test_a_limit_is_kept_wherever_it_can_be(pairs: list[list[tuple[int, int]]], limit: int) -> None:
    units = units_of(*pairs)
    chosen = assign(units, limit)
    assert all(option in own for option, own in zip(chosen.options, units, strict=True))
    least = sum(min(one.loss for one in own) for own in units)
    assert chosen.loss <= limit or chosen.loss == least > limit
    fastest = sum(min(one.seconds for one in own) for own in units)
    assert chosen.seconds >= brute_force(units, limit) >= fastest


@given(UNITS, st.integers(0, 250))
def test_nothing_can_be_taken_back(pairs: list[list[tuple[int, int]]], limit: int) -> None:
    chosen = assign(units := units_of(*pairs), limit)
    for place, own in enumerate(units):
        for other in own:
            changed = Assignment((*chosen.options[:place], other, *chosen.options[place + 1 :]))
            assert changed.loss > limit or changed.seconds >= chosen.seconds


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.integers(0, 250), st.sampled_from(["time", "loss"]))
def test_it_is_brute_force_where_greed_is_exact(steps: list[int], limit: int, alike: str) -> None:
    # one step per unit, and all of them add the same time, or save the same loss
    units = units_of(*([(own, 1), (0, 8)] if alike == "time" else [(7, 1), (0, 1 + own)] for own in steps))
    assert assign(units, limit).seconds == brute_force(units, limit)


@pytest.mark.parametrize(
    ("limit", "losses"),
    [(1.0, (0.001, 0.05, 0.05)), (0.06, (0.001, 0.001, 0.05)), (0.01, (0.001, 0.001, 0.0)), (0.0, (0.0, 0.0, 0.0))],
)
def test_layers_are_mended_in_the_order_of_what_it_gains_over_its_time(limit: float, losses: tuple[float, ...]) -> None:
    harmless = [(0.001, 1.0), (0.0, 4.0)]
    cheap_to_mend = [(0.05, 1.0), (0.001, 1.1), (0.0, 4.0)]
    dear_to_mend = [(0.05, 1.0), (0.0, 9.0)]
    chosen = assign(units_of(harmless, cheap_to_mend, dear_to_mend), limit)
    assert tuple(one.loss for one in chosen.options) == losses


def test_a_limit_that_nothing_keeps_gives_the_most_careful_choice() -> None:
    assert assign(units_of([(0.5, 1.0), (0.2, 2.0)]), 0.1).loss == 0.2


def test_an_option_that_loses_more_in_more_time_is_never_taken() -> None:
    units = units_of([(4.0, 1.0), (0.5, 1.1), (9.0, 5.0)], [(4.0, 1.0), (0.5, 3.0)])
    assert [[one.seconds for one in assign(units, limit).options] for limit in (math.inf, 5.0, 0.0)] == [
        [1.0, 1.0],
        [1.1, 1.0],
        [1.1, 3.0],
    ]


def test_what_a_large_step_has_made_needless_is_taken_back() -> None:
    small = [(2.0, 1.0), (0.5, 1.5)]  # saves 3 a second: first
    large = [(9.0, 1.0), (0.0, 5.0)]
    assert [one.seconds for one in assign(units_of(small, large), 2.0).options] == [1.0, 5.0]
    assert [one.seconds for one in assign(units_of(small, large), 1.0).options] == [1.5, 5.0]


def test_layers_of_one_unit_are_counted_each() -> None:
    smooth = PlannedLinear(Precision("int8"), factors=object())  # type: ignore[arg-type]  # only told from None
    both = Option({"a": PlannedLinear(Precision("int8")), "b": smooth}, 0.0, 1.0)
    found = Assignment((both, *unit("c", [(0.0, 2.0)])))
    assert found.counts == {"int8": 2, "int8 smoothed": 1}
    assert list(found.planned) == ["a", "b", "c"]
    assert found.seconds == 3.0


SEARCHED = units_of(*([(0.001 * (number + 1), 1.0), (0.0, 2.0 + number % 3)] for number in range(17)))


class Measured:
    """Loses what is estimated, times a factor that nobody knows beforehand."""

    def __init__(self, factor: float, least: float = 0.0) -> None:
        self.factor, self.least, self.runs = factor, least, 0

    def __call__(self, assignment: Assignment) -> float:
        self.runs += 1
        return self.factor * assignment.loss + self.least


RULES: dict[str, Callable[[float], Rule]] = {
    "halving": lambda allowed: Halving(allowed, 7),
    "scaling": lambda allowed: Scaling(allowed, allowed, 6),
    "lowering": lambda allowed: Scaling(allowed, 0.153, 6, in_loss=False),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("factor", [0.4, 1.0, 1.7, 6.0])
@pytest.mark.parametrize("allowed", [0.01, 0.05, 0.12])
def test_every_rule_finds_what_fits_and_says_so(name: str, factor: float, allowed: float) -> None:
    measured = Measured(factor)
    found = Search(SEARCHED, measured).within(allowed, RULES[name](allowed))
    assert found.fits
    assert found.best.loss <= allowed
    assert found.best.loss == factor * found.best.assignment.loss
    assert found.best.assignment.seconds == min(one.assignment.seconds for one in found.front if one.loss <= allowed)
    assert len(found.front) == measured.runs <= 9
    times = [one.assignment.seconds for one in found.front]
    assert times == sorted(set(times))


@pytest.mark.parametrize(("name", "share"), [("halving", 0.75), ("scaling", 0.6)])
def test_rules_that_trust_the_estimates_use_most_of_what_is_allowed(name: str, share: float) -> None:
    for factor, allowed in itertools.product((0.5, 1.0, 1.7), (0.03, 0.06)):
        found = Search(SEARCHED, Measured(factor)).within(allowed, RULES[name](allowed))
        assert share * allowed < found.best.loss <= allowed


@pytest.mark.parametrize("name", RULES)
def test_where_nothing_fits_the_least_loss_is_returned(name: str) -> None:
    measured = Measured(1.0, least=0.2)
    found = Search(SEARCHED, measured).within(0.1, RULES[name](0.1))
    assert not found.fits
    assert found.best.loss == min(one.loss for one in found.front)
    assert measured.runs == len(found.front) <= 7


def test_halving_stops_at_the_fastest_where_that_fits() -> None:
    measured = Measured(1.0)
    found = Search(SEARCHED, measured).within(0.2, Halving(0.2, 7))
    assert measured.runs == 1
    assert found.best.is_fastest


def test_scaling_widens_a_limit_whose_estimates_say_too_much() -> None:
    narrow = assign(SEARCHED, 0.02)
    found = Search(SEARCHED, Measured(0.5)).within(0.02, Scaling(0.02, 0.02, 6))
    assert found.best.assignment.seconds < narrow.seconds
    assert found.best.limit > 0.02


def test_what_was_measured_for_one_budget_is_known_for_the_next() -> None:
    measured = Measured(1.0)
    search = Search(SEARCHED, measured)
    wide = search.within(0.05, Halving(0.05, 7))
    runs = measured.runs
    again = search.within(0.05, Halving(0.05, 7))
    assert (again.best.assignment, measured.runs) == (wide.best.assignment, runs)
    narrow = search.within(0.01, Halving(0.01, 7))
    assert narrow.best.loss <= 0.01 < wide.best.loss
    assert len(narrow.front) == measured.runs


@pytest.mark.parametrize("recorded", json.loads(PLANS.read_text()), ids=lambda one: one["from"])
def test_recorded_searches_take_the_same_way(recorded: dict[str, Any]) -> None:
    units, steps, allowed = units_of(*recorded["units"]), recorded["steps"], recorded["allowed"]
    ahead = iter(steps)

    def measure(assignment: Assignment) -> float:
        step = next(ahead)
        assert [own.index(one) for own, one in zip(units, assignment.options, strict=True)] == step["places"]
        return float(step["loss"])

    rule = Halving(allowed, STEPS) if recorded["rule"] == "halving" else Scaling(allowed, allowed, MOST_TRIES)
    found = Search(units, measure).within(allowed, rule)
    assert next(ahead, None) is None
    limits = [math.inf if step["limit"] is None else step["limit"] for step in steps]
    assert sorted(one.limit for one in found.front) == pytest.approx(sorted(limits), rel=1e-9)
    assert found.fits
    assert found.best.loss == max(step["loss"] for step in steps if step["loss"] <= allowed)


def test_a_rule_without_a_limit_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="nothing was tried"):
        Search(SEARCHED, Measured(1.0)).within(0.1, lambda _: None)
