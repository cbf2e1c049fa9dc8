"""Choose how every layer computes: the least time in which what is lost stays within a limit.

Every unit (a layer, or layers that are decided together) has options, each with its loss and its time alone. Losses of
layers add up as long as they are small, so the choice is a knapsack of several choices (Kellerer, Pferschy & Pisinger
2004, chapter 11). `assign` solves it greedily for a limit on the sum of losses. That sum is an estimate: `Search`
measures what an assignment really loses, and moves the limit until that is within what is allowed. Where to look next
is a rule's business: `Halving` trusts the order of the estimates alone, `Scaling` their size as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxopt.qmath.precision import PlannedLinear

LEAST_SECONDS = 1e-12  # of a step: what costs no time at all gains without bounds
NEARLY = 0.8  # of the allowed loss is near enough
AIM = 0.9  # of the allowed loss is where a scaled limit aims at
LEAST_STEP_DOWN = 0.8  # a limit that was too wide falls at least to this share, whatever was measured
MOST_STEP_UP = 2.0  # a limit that was too narrow grows at most by this factor
STEP_DOWN = 0.4  # of a limit that was too wide, where losses are estimated in other units than they are measured in
LEAST_MIDDLE = 1e-9  # a limit of zero has no middle on a logarithmic scale


@dataclass(frozen=True)
class Option:
    """One way to compute a unit.

    Attributes:
        planned: what becomes of its layers, by label.
        loss: estimated, of this alone; in any unit that adds up over layers.
        seconds: estimated.
    """

    planned: Mapping[str, PlannedLinear]
    loss: float
    seconds: float


@dataclass(frozen=True)
class Assignment:
    """One option of every unit.

    Attributes:
        options: in the order of the units.
    """

    options: tuple[Option, ...]

    @property
    def planned(self) -> dict[str, PlannedLinear]:
        """What becomes of every layer, by label."""
        return {label: one for option in self.options for label, one in option.planned.items()}

    @property
    def loss(self) -> float:
        """The sum of the estimated losses."""
        return sum(option.loss for option in self.options)

    @property
    def seconds(self) -> float:
        """The sum of the estimated times."""
        return sum(option.seconds for option in self.options)

    @property
    def counts(self) -> dict[str, int]:
        """How many layers have which precision, by its name."""
        names = [f"{one.precision}{' smoothed' if one.factors is not None else ''}" for one in self.planned.values()]
        return {name: names.count(name) for name in sorted(set(names))}


def front(options: Iterable[Option]) -> list[Option]:
    """Return what nothing else beats in both time and loss, fastest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.seconds, one.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def assign(units: Iterable[Sequence[Option]], limit: float) -> Assignment:
    """Choose an option for every unit so that the losses add up to at most a limit, in the least time, greedily.

    All units begin with their fastest option. The step with the most loss saved per time added comes first, as for a
    fractional knapsack (Dantzig 1957). At the end steps are undone that a large step behind them has made needless.

    Args:
        units: options of each, in any order.
        limit: on the sum of losses; the most careful choice where it cannot be kept.
    """
    fronts = [front(own) for own in units]
    return _assignment(fronts, _places(fronts, limit))


def _assignment(fronts: Sequence[Sequence[Option]], places: Sequence[int]) -> Assignment:
    return Assignment(tuple(own[place] for own, place in zip(fronts, places, strict=True)))


def _places(fronts: Sequence[Sequence[Option]], limit: float) -> tuple[int, ...]:
    """Return the place of each unit's option on its front."""
    places = [0] * len(fronts)
    total = sum(own[0].loss for own in fronts)
    while total > limit:
        steps = [
            (_gain(own[place], own[other]), unit, other)
            for unit, (own, place) in enumerate(zip(fronts, places, strict=True))
            for other in range(place + 1, len(own))
        ]
        if not steps:
            break
        _, unit, other = max(steps)
        total -= fronts[unit][places[unit]].loss - fronts[unit][other].loss
        places[unit] = other
    _take_back(fronts, places, limit - total)
    return tuple(places)


def _gain(now: Option, then: Option) -> float:
    return (now.loss - then.loss) / max(then.seconds - now.seconds, LEAST_SECONDS)


def _take_back(fronts: Sequence[Sequence[Option]], places: list[int], left: float) -> None:
    """Undo steps that what is left of a limit has room for, the one that saves the most time first."""
    while True:
        steps = [
            (own[place].seconds - own[other].seconds, unit, other)
            for unit, (own, place) in enumerate(zip(fronts, places, strict=True))
            for other in range(place)
            if own[other].loss - own[place].loss <= left
        ]
        if not steps:
            return
        _, unit, other = max(steps)
        left -= fronts[unit][other].loss - fronts[unit][places[unit]].loss
        places[unit] = other


@dataclass(frozen=True)
class Tried:
    """An assignment that was measured.

    Attributes:
        limit: on the sum of its estimated losses.
        assignment: that was made for it.
        loss: measured, of all layers together.
        is_fastest: every unit has its fastest option.
        is_careful: every unit has the option that loses the least.
    """

    limit: float
    assignment: Assignment
    loss: float
    is_fastest: bool
    is_careful: bool


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        best: the fastest that was measured to be within what is allowed; where nothing is, what loses the least.
        fits: whether it is within.
        front: all that was measured, fastest first.
    """

    best: Tried
    fits: bool
    front: tuple[Tried, ...]


Rule = Callable[[Sequence[Tried]], float | None]  # from what was tried to the next limit; None to stop


class Search:
    """Finds the fastest assignment that loses no more than is allowed; what was measured once is known from then on.

    Args:
        units: options of each.
        measure: gives what all layers of an assignment lose together.
    """

    def __init__(self, units: Iterable[Sequence[Option]], measure: Callable[[Assignment], float]) -> None:
        self._fronts = [front(own) for own in units]
        self._measure = measure
        self._known: dict[tuple[int, ...], Tried] = {}

    def know_fastest(self, loss: float) -> None:
        """Take down what the fastest assignment loses, where that has been measured already."""
        self._take_down(math.inf, _places(self._fronts, math.inf), loss)

    def within(self, allowed: float, rule: Rule) -> Searched:
        """Search among limits; what earlier searches measured is chosen from as well.

        Args:
            allowed: the most that may be lost.
            rule: where to look.

        Raises:
            ValueError: the rule names no limit, and nothing is known yet.
        """
        tried: list[Tried] = []
        while (limit := rule(tried)) is not None:
            tried.append(self._tried(limit))
        known = sorted(self._known.values(), key=lambda one: one.assignment.seconds)
        if not known:
            raise ValueError("nothing was tried")
        fastest = next((one for one in known if one.loss <= allowed), None)
        return Searched(fastest or min(known, key=lambda one: one.loss), fastest is not None, tuple(known))

    def _tried(self, limit: float) -> Tried:
        places = _places(self._fronts, limit)
        if places not in self._known:
            self._take_down(limit, places, self._measure(_assignment(self._fronts, places)))
        return replace(self._known[places], limit=limit)

    def _take_down(self, limit: float, places: tuple[int, ...], loss: float) -> None:
        is_careful = all(place == len(own) - 1 for own, place in zip(self._fronts, places, strict=True))
        assignment = _assignment(self._fronts, places)
        self._known[places] = Tried(limit, assignment, loss, is_fastest=not any(places), is_careful=is_careful)


@dataclass(frozen=True)
class Halving:
    """Look at both ends, then halve on a logarithmic scale: for estimates that span orders of magnitude.

    Attributes:
        allowed: the most that may be lost.
        steps: how often the limit is halved; where the fastest fits, or the most careful does not, there is no need.
    """

    allowed: float
    steps: int

    def __call__(self, tried: Sequence[Tried]) -> float | None:
        """Return the next limit, or None at the end."""
        if not tried:
            return math.inf
        fastest, *others = tried
        if fastest.loss <= self.allowed:
            return None
        if not others:
            return 0.0
        careful, *middles = others
        if careful.loss > self.allowed or len(middles) == self.steps:
            return None
        low = max([careful.assignment.loss, *(one.limit for one in middles if one.loss <= self.allowed)])
        high = min([fastest.assignment.loss, *(one.limit for one in middles if one.loss > self.allowed)])
        return math.sqrt(max(low, LEAST_MIDDLE) * high)


@dataclass(frozen=True)
class Scaling:
    """Begin with a limit and correct it by what the measured loss makes of it: for few and dear measurements.

    Attributes:
        allowed: the most that may be lost.
        start: the first limit.
        most: how many are tried.
        in_loss: estimates are in the units of the measured loss; else the limit is lowered until the first one fits.
    """

    allowed: float
    start: float
    most: int
    in_loss: bool = True

    def __call__(self, tried: Sequence[Tried]) -> float | None:
        """Return the next limit, or None at the end."""
        if not tried:
            return self.start
        if len(tried) == self.most:
            return None
        last = tried[-1]
        low = max((one.limit for one in tried if one.loss <= self.allowed), default=0.0)
        high = min((one.limit for one in tried if one.loss > self.allowed), default=math.inf)
        return self._narrower(last, low, high) if last.loss > self.allowed else self._wider(last, high)

    def _narrower(self, last: Tried, low: float, high: float) -> float | None:
        if last.is_careful:
            return None
        if low:
            return (low + high) / 2
        return last.limit * (min(AIM * self.allowed / last.loss, LEAST_STEP_DOWN) if self.in_loss else STEP_DOWN)

    def _wider(self, last: Tried, high: float) -> float | None:
        # losses alone were measured on few samples: where much is left of what is allowed they say too much
        if not self.in_loss or last.loss > NEARLY * self.allowed or last.is_fastest:
            return None
        factor = min(AIM * self.allowed / max(last.loss, LEAST_SECONDS), MOST_STEP_UP)
        return min(last.limit * factor, (last.limit + high) / 2)
