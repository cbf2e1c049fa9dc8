"""Learn about a model by running it: at which sizes it runs, which axes hang together, how long a row may be.

Nothing here goes by the names of axes, except to try the likeliest size first. Every axis is varied on its own: to find
a least size, a multiple, a largest one, or that only one size runs. Axes that do not move alone are tried in pairs:
those that move together are tied. At last all are varied at once; one that then stops the model is pinned to its usual
size.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxopt.errors import InputError, LimitError, word
from onnxopt.graph.roles import own_axis
from onnxopt.load.given import Given
from onnxopt.load.graph_feeder import GraphFeeder
from onnxopt.load.learn import first_sizes
from onnxopt.load.learn.first_sizes import attempts, fewer_rows, free_axes, image_sizes, is_heavy, usual_sizes
from onnxopt.load.learn.unnamed import split
from onnxopt.load.loaded import Reference
from onnxopt.records.notes import NOT_RUN, NOT_TRIED
from onnxopt.spec import CONTAINERS, AxisRange, Feeds, TensorSpec, elements_of, tensors_of

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

PROBE_SECONDS = 60.0  # after this, axes that are not proved yet stay unproved, and a note says so
RUN_SECONDS = 3.0  # a far size that would take longer to run is not tried
MAX_LIMIT_PROBE = 1024  # position tables longer than this are believed, not run to their end
MOST_STRIKES = 3  # runs that take more memory than they may, or end their process; of those without end, one
MOST_AXES = 48  # that are learned one by one; each costs runs of all inputs
MAX_COMBINATIONS = 16  # of compared values; beyond, only the first ones are tried
FAR_SIZE = 131  # what the longest observation asks for
MAX_FAR_ELEMENTS = 1 << 22  # of all inputs together, for a far size
FREE_MOVES = (3, 10)  # from a size that runs: both run only where all do, for multiples of 2 and windows among them
FEW_MOVES = (3, 1)  # of few rows, of which each is large: no window lies between them
FAR_APART = (2, 3, 4, 8, 16, 32, 64, 100, 128, 200, 256, 512, 1000)  # before an axis is said to have one size
STEPS_UP = (1, 2, 3, 5)  # how many steps away from a size that runs an axis must run too
STEPS = (2, 4, 8, 16, 32, 64, 3, 5, 7, 10, 160)  # multiples that networks of images and of sound halve their input by


@dataclass
class Prober:
    """Learns about a model by running it.

    Attributes:
        reference: the model.
        feeder: what is known so far; replaced as more is learned.
        say: told of each step.
        given: what the user says of it.
        notes: what the user should know.
        proved: the sizes at which the model ran.
        ranges: sizes of an axis at which the model runs, where those are not all from 1 on.
        fixed: the only size of an axis that runs.
        ones: axes that also run at size 1, whatever their range and ties say.
        pinned: axes that run at other sizes only while all others keep their usual one.
    """

    reference: Reference
    feeder: GraphFeeder
    say: Progress
    given: Given = field(default_factory=Given)
    notes: list[str] = field(default_factory=list)
    proved: list[dict[str, int]] = field(default_factory=list)
    ranges: dict[str, AxisRange] = field(default_factory=dict)
    fixed: dict[str, int] = field(default_factory=dict)
    ones: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)
    _outputs: list[tuple[dict[str, int], Feeds]] = field(default_factory=list)
    _refused: list[dict[str, int]] = field(default_factory=list)
    _seconds: float = 0.0
    _strikes: int = 0
    _deadline: float = field(default_factory=lambda: time.monotonic() + PROBE_SECONDS)

    # ------------------------------------------------------------------------------------------------------- a start

    def start(self, likely: Sequence[int] = ()) -> None:
        """Find sizes and values at which the model runs.

        Args:
            likely: numbers of the graph that may be sizes, tried last.

        Raises:
            InputError: with the first reason, when there are none.
        """
        first: InputError | None = None
        for sizes in attempts(self.feeder, likely):
            fitted = {axis: self._said(axis).fitted(size) for axis, size in sizes.items()}
            feeder = replace(self.feeder, defaults=fitted)
            for seed in range(min(feeder.combinations, MAX_COMBINATIONS)):
                try:
                    outputs = self.reference.run(feeder.make({}, seed=seed))
                except InputError as error:
                    first = first or error
                    self._strike(error, is_first=True)
                    if (not feeder.axes and feeder.combinations == 1) or "cannot open" in error.what:
                        raise first from None
                    continue
                self.feeder = replace(feeder, defaults=feeder.resolve({}))
                self._drop_values(seed)
                self._keep(self.feeder.resolve({}), outputs)
                began = time.monotonic()
                self._runs(self.feeder, {})  # the first run opened the file
                self._seconds = time.monotonic() - began
                self._shrink()
                return
            if self._late():
                break
        hint = "give an input that runs with --feeds example.npz, or sizes with --axis name=16 and --value name=..."
        raise InputError((first or InputError("cannot be run")).what, where=first.where if first else "", hint=hint)

    def _shrink(self) -> None:
        """Give axes their usual size back where the model began to run with a large one for all of them."""
        fitted = {axis: self._said(axis).fitted(size) for axis, size in usual_sizes(self.feeder).items()}
        for fewer in fewer_rows(self.feeder.defaults, fitted):
            if not self._late() and self._try(fewer):
                self.feeder = replace(self.feeder, defaults={**self.feeder.defaults, **fewer})
                return

    def _said(self, axis: str) -> AxisRange:
        """Return what the user says of an axis."""
        return self.given.axes.get(axis, AxisRange())

    def _drop_values(self, working: int) -> None:
        """Keep of the compared values those that run beside the ones that did; the others are named."""
        chosen, place = {}, working
        for name, choices in self.feeder.values.items():
            place, index = divmod(place, len(choices))
            chosen[name] = choices[index]
        for name, choices in self.feeder.values.items():
            kept = []
            for choice in choices:
                alone = {other: (value,) for other, value in chosen.items()} | {name: (choice,)}
                if choice == chosen[name] or self._runs(replace(self.feeder, values=alone), {}) is not None:
                    kept.append(choice)
                else:
                    self.notes.append(f"input '{word(name)}' does not run at {choice}: {NOT_RUN}")
            first = [chosen[name], *(choice for choice in kept if choice != chosen[name])]
            self.feeder = replace(self.feeder, values={**self.feeder.values, name: tuple(first)})

    def split_axes(self, places: Sequence[tuple[str, int]]) -> None:
        """Keep one name for several open axes only where the model refuses different sizes for them."""
        found = split(self.feeder, places, lambda *inputs: self._runs(*inputs) is not None, self._late)
        self.feeder = found.feeder
        self.notes += found.notes
        for own, axis in found.parted.items():  # they were one axis so far
            for sizes in self.proved:
                sizes.setdefault(own, sizes[axis])

    # ------------------------------------------------------------------------------------------------------ the axes

    def learn_axes(self) -> None:
        """Run other sizes of each axis: learn ranges, steps, ties and what is fixed; note what a user should know."""
        self._tell_sums()
        stuck: list[str] = []
        free = free_axes(self.feeder)
        if len(free) > MOST_AXES:
            more = f"{len(free) - MOST_AXES} more of the {len(free)} open axes"
            self.notes.append(f"{more} were {NOT_TRIED}, from '{free[MOST_AXES]}' on")
            self.pinned.update(free[MOST_AXES:])
        for axis in free[:MOST_AXES]:
            if self._late():
                self.notes.append(f"axis '{axis}' was {NOT_TRIED}: the model is slow to run")
                self.pinned.add(axis)
                continue
            self.say(f"trying other sizes of '{axis}'")
            if not self._learn((axis,)):
                stuck.append(axis)
        stuck = self._aligned(stuck)
        for group in self._tied(stuck):
            self.feeder = replace(self.feeder, tied=(*self.feeder.tied, group))
            same = "equal sizes, or at 1" if any(axis in self.ones for axis in group) else "equal sizes"
            self.notes.append(f"axes {_quoted(group)} only run at {same}")
            stuck = [axis for axis in stuck if axis not in group]
        for axis in stuck:
            self._fix(axis)
        self._pin()

    def _learn(self, group: Sequence[str]) -> bool:
        """Learn the range of axes that move together; return whether any size but the usual one and 1 runs."""
        if group[0] in self.given.axes:
            return self._trust(group, self.given.axes[group[0]])
        base = self._base(group)
        one = base == 1 or self._moved(group, 1)
        step = self._step(group, base)
        if not step:
            self.ones.update(group if one and base > 1 and len(group) == 1 else ())
            return False
        if step == 1 and one and self._runs_at(group, 2):
            least = 0 if self.feeder.role(group[0]) == "past" and self._moved(group, 0) else 1
        elif step > 1 and self._runs_at(group, step):
            least = step
        else:
            self.ones.update(group if one and step == 1 else ())
            least = self._border(group, step, good=base, bad=step * (2 if one and step == 1 else 1))
        self._set(group, AxisRange(least, step))
        if step > 1:
            self.notes.append(f"axis {_quoted(group)} runs at multiples of {step} only")
        if least > step:
            self.notes.append(f"axis {_quoted(group)} runs from {least} on only")
        self._find_most(group, step)
        return True

    def _tell_sums(self) -> None:
        """Let go of what reads as a sum of other axes where another size runs: it is a name and no more."""
        for axis in self.feeder.axes:
            if not self.feeder.terms(axis) or self.feeder.role(axis) == "total" or self._late():
                continue
            size = self.feeder.resolve({})[axis]
            known = {**self.feeder.defaults, axis: size}
            feeder = replace(self.feeder, apart=self.feeder.apart | {axis}, defaults=known)
            if self._runs(feeder, {axis: size + 3}) is not None:
                self.feeder = feeder

    def _base(self, group: Sequence[str]) -> int:
        """Return the size to start from: where one of few rows is at the end of a small range, a side of an image."""
        base = self.feeder.defaults[group[0]]
        few, side = base <= first_sizes.FEW and not self._moved(group, base + 3), first_sizes.SIDE
        if not few or not (self._moved(group, side) and self._moved(group, 2 * side)):
            return base
        self.feeder = replace(self.feeder, defaults={**self.feeder.defaults, **dict.fromkeys(group, side)})
        return side

    def _trust(self, group: Sequence[str], said: AxisRange) -> bool:
        """Take the range of an axis as the user gives it, if its first two sizes run."""
        if said.least == said.most:
            self.fixed.update(dict.fromkeys(group, said.least))
            return True
        for size in (said.fitted(said.least), said.fitted(said.least + said.step)):
            if not self._runs_at(group, size):
                what = f"the model does not run with axis {_quoted(group)} at {size}, which --axis says it does"
                raise InputError(what, hint="give a range in which it runs, such as --axis name=8..4096:8")
        self._set(group, said)
        return True

    def _runs_at(self, group: Sequence[str], size: int) -> bool:
        return size == self.feeder.defaults[group[0]] or self._moved(group, size)

    def _step(self, group: Sequence[str], base: int) -> int:
        """Find out of what an axis must be a multiple; 0 where nothing runs but the usual size and perhaps 1.

        A network that doubles what it has halved takes 57 to 64 pixels and then 89 to 96: sizes beside one that runs
        say little, and those below it least.
        """
        moves = FEW_MOVES if base <= first_sizes.FEW and is_heavy(self.feeder, group[0]) else FREE_MOVES
        if all(self._moved(group, base + more) for more in (*moves, *((1,) if base % 3 == 0 else ()))):
            return 1
        steps = [step for step in (1, *STEPS) if base % step == 0]
        for step in steps:
            if not self._late() and all(self._moved(group, base + step * count) for count in STEPS_UP):
                return step
        if base > 1 and self._moved(group, 2 * base) and self._moved(group, 3 * base):
            return base
        for step in steps:  # an axis that ends close to its usual size
            below = [base - step * count for count in STEPS_UP if base - step * count > 1]
            if not self._late() and below and all(self._moved(group, size) for size in below):
                return step
        for step in steps:  # or one that starts and ends there
            starts = base - step <= 1
            if not self._late() and self._moved(group, base + step) and (starts or self._moved(group, base - step)):
                return step
        return 0

    def _find_most(self, group: Sequence[str], step: int) -> None:
        """Find the largest size when a far one does not run."""
        base, known = self.feeder.defaults[group[0]], self.range_of(group[0])
        far = known.fitted(max(FAR_SIZE, 4 * base))
        if self._late() or not self._affordable(group, far) or self._moved(group, far):
            return
        most = self._border(group, step, good=base, bad=far)
        self._set(group, replace(known, most=most))
        self.notes.append(f"axis {_quoted(group)} runs up to {most} only")

    def _border(self, group: Sequence[str], step: int, *, good: int, bad: int) -> int:
        """Return the last size, by halving, that runs on the way from one that does to one that does not."""
        while abs(good - bad) > step and not self._late():
            middle = (good + bad) // 2 // step * step
            if middle in (good, bad):
                break
            good, bad = (middle, bad) if self._moved(group, middle) else (good, middle)
        return good

    def _affordable(self, group: Sequence[str], size: int, power: int = 2) -> bool:
        sizes = self.feeder.resolve({}) | dict.fromkeys(group, size)
        elements = elements_of((plan.spec for plan in self.feeder.plans), self.feeder.resolve(sizes))
        growth = (size / self.feeder.defaults[group[0]]) ** power
        return elements <= MAX_FAR_ELEMENTS and self._seconds * growth <= RUN_SECONDS

    def _set(self, group: Sequence[str], found: AxisRange) -> None:
        for axis in group:
            if found != AxisRange():
                self.ranges[axis] = found
        if found.most:
            self.feeder = replace(self.feeder, limits={**self.feeder.limits, **dict.fromkeys(group, found.most)})

    def range_of(self, axis: str) -> AxisRange:
        """Return the sizes of an axis at which the model runs, as far as they are known."""
        return self.ranges.get(axis, AxisRange())

    def _moved(self, group: Sequence[str], size: int) -> bool:
        return self._try(dict.fromkeys(group, size))

    def _aligned(self, stuck: Sequence[str]) -> list[str]:
        """Give axes that were started at 1, where they are broadcast, the size of the axis that they follow.

        Returns:
            The axes that do not move alone, those that were followed among them.
        """
        found = list(stuck)
        for axis in stuck:
            base = self.feeder.defaults
            if base[axis] != 1 or self._late():
                continue
            for other in free_axes(self.feeder):
                if base[other] > 1 and other not in found and self._try({axis: base[other]}):
                    self.feeder = replace(self.feeder, defaults={**base, axis: base[other]})
                    if not self._moved((other,), base[other] + 3):
                        self.ranges.pop(other, None)
                        self.ones.update((axis, other))
                        found.append(other)
                    break
        return found

    def _tied(self, stuck: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield groups of axes that do not move alone but do together; each is learned like one axis."""
        left, base = list(stuck), self.feeder.defaults
        while left and not self._late():
            first = left.pop(0)
            same = [axis for axis in left if base[axis] == base[first]]
            pairs: list[tuple[str, ...]] = [(first, *same)] if same else []
            pairs += [(first, axis) for axis in same] if len(same) > 1 else []
            for group in reversed(pairs):  # pairs first: four axes that move together may be two pairs
                if self._learn(group):
                    left = [axis for axis in left if axis not in group]
                    yield group
                    break

    def _fix(self, axis: str) -> None:
        """Note an axis of which one size alone is known to run, with or without 1."""
        size, seen = self.feeder.defaults[axis], {sizes[axis] for sizes in self.proved}
        if seen - {size, 1} or axis in self.fixed:
            return
        elsewhere = ""
        if axis in self.ones and size != 1:
            elsewhere = f"axis '{axis}' is declared dynamic but only sizes 1 and {size} were seen to run"
        elif size == 1 and self._runs_beside(axis):
            return
        elif size != 1 and self._runs_beside_ones(axis, size + 1):
            elsewhere = f"axis '{axis}' runs at {size}, and at other sizes only where other axes are 1"
        elif any(far != size and self._affordable((axis,), far, 1) and self._moved((axis,), far) for far in FAR_APART):
            elsewhere = f"axis '{axis}' runs at {size} and far from it; at {size} alone it is proved"
        if elsewhere:
            self.ranges[axis] = AxisRange(size, 1, size)
            self.notes.append(elsewhere)
            return
        self.fixed[axis] = size
        alone = f"axis '{axis}' is declared dynamic but only size {size} was seen to run"
        self.notes.append(f"{alone}; it is written as {size}")

    def _runs_beside_ones(self, axis: str, size: int) -> bool:
        """Tell whether an axis has another size where the others are broadcast: it is not baked in then."""
        others = [other for other in free_axes(self.feeder) if other != axis and other not in self.fixed]
        return bool(others) and not self._late() and self._try({**dict.fromkeys(others, 1), axis: size})

    def _runs_beside(self, axis: str) -> bool:
        """Find a size that other inputs have for good, at which an axis runs that was broadcast so far."""
        sizes = {size for plan in self.feeder.plans for size in plan.spec.axes if isinstance(size, int) and size > 1}
        size = next((size for size in sorted(sizes) if not self._late() and self._try({axis: size})), None)
        if size is None:
            return False
        self.feeder = replace(self.feeder, defaults={**self.feeder.defaults, axis: size})
        self.ones.add(axis)
        self._fix(axis)
        return True

    def _pin(self) -> None:
        """Move all axes at once; those that stop the model then keep their usual size beside others."""
        distinct = self._distinct()
        if self._try(distinct):
            return
        moved: dict[str, int] = {}
        for group in self._groups():
            more = {axis: distinct[axis] for axis in group if axis in distinct}
            if self._late() or not self._try(moved | more):
                self.pinned.update(more)
            else:
                moved |= more
        if self.pinned:
            self.notes.append(f"axes {_quoted(sorted(self.pinned))} run at other sizes only while others keep theirs")

    def _groups(self) -> Iterator[tuple[str, ...]]:
        tied = {axis for group in self.feeder.tied for axis in group}
        yield from self.feeder.tied
        yield from ((axis,) for axis in free_axes(self.feeder) if axis not in tied and axis not in self.fixed)

    def _distinct(self) -> dict[str, int]:
        """Return a size of its own for each axis, or group of tied ones, at which it runs: they can be told apart."""
        primes, sizes = itertools.cycle((3, 11, 5, 13, 7, 17)), dict[str, int]()
        image = {axis: 32 * (3 + place) for place, axis in enumerate(image_sizes(self.feeder))}
        for group in self._groups():
            known, wanted = self.range_of(group[0]), image.get(group[0]) or next(primes)
            taken = set(sizes.values())
            choices = (known.fitted(wanted + known.step * place) for place in range(9))
            size = next((one for one in choices if one not in taken), 0)
            sizes |= dict.fromkeys(group, size or known.fitted(wanted))
        return {axis: size for axis, size in sizes.items() if axis not in self.fixed and axis not in self.pinned}

    def find_limits(self, tables: Sequence[int]) -> None:
        """Find the longest row when a table of positions gives a size to try."""
        role = self.feeder.role
        axis = next((axis for axis in free_axes(self.feeder) if role(axis) == "sequence"), None)
        if axis is None or any(role(other) == "past" for other in self.feeder.axes) or self.range_of(axis).most:
            return
        ones = {other: self.range_of(other).fitted(1) for other in free_axes(self.feeder) if role(other) == "batch"}
        for rows in tables:
            for limit in (rows, rows - 2):  # RoBERTa and OPT leave the first two rows of their table unused
                if not 1 < limit <= MAX_LIMIT_PROBE or self._late():
                    continue
                if self._runs(self.feeder, {**ones, axis: limit}) and not self._runs(
                    self.feeder, {**ones, axis: limit + 1}
                ):
                    self._set((axis,), replace(self.range_of(axis), most=limit))
                    return

    def settle(self) -> None:
        """Write fixed axes as sizes into what the inputs are made from."""
        plans = tuple(
            replace(plan, spec=replace(plan.spec, axes=self._settled(plan.spec.axes))) for plan in self.feeder.plans
        )
        defaults = {axis: size for axis, size in self.feeder.defaults.items() if axis not in self.fixed}
        self.feeder = replace(self.feeder, plans=plans, defaults=defaults)
        self.proved = [{axis: size for axis, size in sizes.items() if axis not in self.fixed} for sizes in self.proved]

    def _settled(self, axes: Sequence[int | str]) -> tuple[int | str, ...]:
        return tuple(self.fixed.get(str(axis), axis) for axis in axes)

    # --------------------------------------------------------------------------------------------------- the outputs

    def name_outputs(self, outputs: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
        """Yield the outputs with each axis as the file names it, or as the runs show it."""
        self._try(self._distinct())
        for axis in self.ones:  # what is broadcast there is told apart from what has the size
            self._try({**self._distinct(), axis: 1})
        for spec in outputs:
            if spec.form in CONTAINERS:
                yield spec
                continue
            if len({found[spec.name].ndim for _, found in self._outputs}) > 1:
                yield replace(spec, axes=(), form="any rank")
                continue
            shapes = [(sizes, found[spec.name].shape) for sizes, found in self._outputs if self._usual(sizes)]
            rank = len(shapes[0][1])
            declared: Sequence[int | str] = spec.axes if len(spec.axes) == rank else ("",) * rank
            axes = tuple(
                self._output_axis(spec.name, index, axis, [(sizes, shape[index]) for sizes, shape in shapes])
                for index, axis in enumerate(declared)
            )
            yield replace(spec, axes=self._settled(axes))

    def _usual(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether sizes are multiples of what they must be: a side of 1 may run all the same, by broadcasting."""
        return all(size % self.range_of(axis).step == 0 for axis, size in sizes.items())

    def _output_axis(
        self, name: str, index: int, declared: int | str, seen: Sequence[tuple[Mapping[str, int], int]]
    ) -> int | str:
        found = {size for _, size in seen}
        if declared != "":
            expected = [sizes.get(declared, size) if isinstance(declared, str) else declared for sizes, size in seen]
            if expected == [size for _, size in seen]:
                return declared
            shown = ", ".join(str(size) for size in sorted(found))
            self.notes.append(f"output '{word(name)}' declares axis {index} as {declared}; runs gave {shown}")
        equal = [axis for axis in seen[0][0] if all(sizes[axis] == size for sizes, size in seen)]
        if equal and len(seen) > 1:
            return equal[0]
        return found.pop() if len(found) == 1 else own_axis(name, index)

    # --------------------------------------------------------------------------------------------------------- runs

    def runs(self, feeds: Feeds) -> Feeds | None:
        """Return the outputs, sequences as `tensors_of` writes them; None when the model does not run so."""
        try:
            return tensors_of(self.reference.run(feeds))
        except InputError as error:
            logger.debug("does not run: %s", error)
            self._strike(error)
            return None

    def _try(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether the model runs at some sizes, and remember what it gave; it is asked the same thing once."""
        try:
            resolved = self.feeder.resolve(sizes)
        except InputError:  # beyond a limit that is known
            return False
        if resolved in self.proved:
            return True
        outputs = None if resolved in self._refused else self._runs(self.feeder, sizes)
        if outputs is None:
            self._refused.append(resolved)
            return False
        self._keep(resolved, outputs)
        return True

    def _runs(self, feeder: GraphFeeder, sizes: Mapping[str, int]) -> Feeds | None:
        try:
            return self.reference.run(feeder.make(sizes))
        except InputError as error:
            logger.debug("sizes %s do not run: %s", dict(sizes), error)
            self._strike(error)
            return None

    def _strike(self, error: InputError, *, is_first: bool = False) -> None:
        """Give up a model that goes on to cost too much or to end its process, or leave the rest of it untried.

        Raises:
            InputError: before it has run at all.
        """
        if not isinstance(error, LimitError):
            return
        self._strikes += MOST_STRIKES if error.is_slow else 1
        if self._strikes >= MOST_STRIKES:
            self._deadline = 0.0
            if is_first:
                raise error

    def _keep(self, sizes: dict[str, int], outputs: Feeds) -> None:
        if sizes not in self.proved:
            self.proved.append(sizes)
            # shapes are all that is looked at later; a broadcast zero keeps none of the memory
            shapes = {
                name: np.broadcast_to(np.zeros(()), value.shape)
                for name, value in outputs.items()
                if isinstance(value, np.ndarray)
            }
            self._outputs.append((sizes, shapes))

    def _late(self) -> bool:
        return time.monotonic() > self._deadline


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
