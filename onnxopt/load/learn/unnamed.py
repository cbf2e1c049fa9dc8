"""Tell whether axes that a file leaves without a name, and that were guessed to be one, are one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxopt.errors import word
from onnxopt.graph.roles import own_axis
from onnxopt.load.graph_feeder import GraphFeeder, InputPlan

Runs = Callable[[GraphFeeder, Mapping[str, int]], bool]


@dataclass
class Split:
    """What was found.

    Attributes:
        feeder: in which axes that are not one have names of their own.
        parted: for each new name the one that the axis was guessed to have.
        joined: for each name the axes that go by it although they may differ.
    """

    feeder: GraphFeeder
    parted: dict[str, str] = field(default_factory=dict)
    joined: dict[str, list[str]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Sentences for the user on what is taken for one."""
        return [
            f"{', '.join(places)} without a name: taken for '{axis}', although the model also runs where inputs differ "
            "there; name them in the file if they may"
            for axis, places in self.joined.items()
        ]


def split(feeder: GraphFeeder, places: Sequence[tuple[str, int]], runs: Runs, late: Callable[[], bool]) -> Split:
    """Keep one name for several open axes only where the model refuses different sizes for them.

    Sizes that differ in one way only are no reason for two names: a model that picks the rows it needs of a mask runs
    with more of them, one that adds a mask of one row to all runs with that. Nor is broadcasting beside the ids of a
    text, whose mask is as long as it. Such axes are taken for one.

    Args:
        feeder: knows sizes that run.
        places: input and axis of each guess.
        runs: tells whether the model runs with the inputs of a feeder at some sizes.
        late: tells whether time is up.
    """
    found = Split(feeder)
    for name, index in places:
        plan = next(plan for plan in found.feeder.plans if plan.spec.name == name)
        axis = plan.spec.axes[index]
        users = [other for other in found.feeder.plans if axis in other.spec.axes]
        if not isinstance(axis, str) or len(users) < 2 or found.feeder.defaults.get(axis, 1) < 2 or late():
            continue
        own = own_axis(name, index)
        parted = _parted(found.feeder, plan, index, own)
        longer, alone = _differing(parted, axis, own, runs)
        is_broadcast = all(alone) and not any(longer) and not any(user.kind == "ids" for user in users)
        if all(longer) or is_broadcast:
            found.feeder = parted
            found.parted[own] = axis
        elif any(longer) or any(alone):
            found.joined.setdefault(axis, []).append(f"axis {index} of '{word(name)}'")
    return found


def _parted(feeder: GraphFeeder, plan: InputPlan, index: int, own: str) -> GraphFeeder:
    """Return a feeder in which one axis of an input has a name of its own, and the size that it had."""
    old = str(plan.spec.axes[index])
    axes = tuple(own if place == index else other for place, other in enumerate(plan.spec.axes))
    changed = replace(plan, spec=replace(plan.spec, axes=axes))
    plans = tuple(changed if other is plan else other for other in feeder.plans)
    return replace(feeder, plans=plans, defaults={**feeder.defaults, own: feeder.defaults[old]})


def _differing(feeder: GraphFeeder, axis: str, own: str, runs: Runs) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Tell whether each of two axes may be longer than the other, and whether each may be 1 beside the other."""
    usual = feeder.defaults[own]

    def moved(size: int) -> tuple[bool, ...]:
        return tuple(runs(feeder, sizes) for sizes in ({own: size}, {axis: size, own: usual}))

    # what takes multiples only does so whatever the other has: the two are told apart at a size that both take
    both = (size for size in (usual + 1, 2 * usual, 4 * usual) if runs(feeder, {axis: size, own: size}))
    size = next(both, 0)
    return moved(size) if size else (any(moved(usual + 1)),), moved(1)
