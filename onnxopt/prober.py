"""Learn about a model by running it: at which sizes it runs, which axes hang together, how long a row may be."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph_feeder import DEFAULT_SIZES, GraphFeeder, role_of
from onnxopt.model import Feeds, Reference
from onnxopt.safety import word
from onnxopt.spec import TensorSpec

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

PROBE_SECONDS = 60.0  # after this, axes that are not proved yet stay unproved, and a note says so
MAX_LIMIT_PROBE = 1024  # position tables longer than this are believed, not run to their end
# Sizes to try when the usual ones do not run: batch, sequence, every other axis (images, then sound).
_FALLBACKS = ((1, 8, 8), (2, 8, 64), (1, 8, 64), (1, 16, 16), (1, 8, 224), (1, 1, 1), (1, 128, 512), (1, 16000, 16000))
STEPS = (2, 4, 8, 16, 32)  # multiples that networks of images halve their input by


def name_axes(inputs: Sequence[TensorSpec]) -> tuple[list[TensorSpec], list[tuple[str, int]]]:
    """Give every open axis the name it most likely deserves; return also where, to be proved."""
    known = [axis for spec in inputs for axis in spec.axes if isinstance(axis, str) and axis]
    usual = {role: next((axis for axis in known if role_of(axis) == role), "") for role in ("batch", "sequence")}
    has_past = any("past" in spec.name.lower() for spec in inputs)
    named, places = [], []
    for spec in inputs:
        axes: list[int | str] = []
        for index, axis in enumerate(spec.axes):
            if axis == "":
                places.append((spec.name, index))
            axes.append(axis if axis != "" else _guess_axis(spec, index, usual, has_past=has_past))
        named.append(replace(spec, axes=tuple(axes)))
    return named, places


def _guess_axis(spec: TensorSpec, index: int, usual: Mapping[str, str], *, has_past: bool) -> str:
    rank, name = len(spec.axes), spec.name.lower()
    if index == 0:
        return usual["batch"] or "batch"
    if rank == 4 and "past" in name:
        return "past_sequence" if index == 2 else f"heads_{index}"
    if rank == 4 and index >= 2:
        return ("height", "width")[index - 2]
    if rank in (2, 3) and index == 1:
        is_total = has_past and "mask" in name
        return "total_sequence" if is_total else usual["sequence"] or "sequence"
    return _own_axis(spec.name, index)


def _own_axis(name: str, index: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_dim{index}"


@dataclass
class Prober:
    """Learns about a model by running it.

    Attributes:
        reference: the model.
        feeder: what is known so far; replaced as more is learned.
        say: told of each step.
        notes: what the user should know.
        proved: the sizes at which the model ran.
        steps: of axes that run only at multiples of something.
    """

    reference: Reference
    feeder: GraphFeeder
    say: Progress
    notes: list[str] = field(default_factory=list)
    proved: list[dict[str, int]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    _outputs: list[tuple[dict[str, int], Feeds]] = field(default_factory=list)
    _deadline: float = field(default_factory=lambda: time.monotonic() + PROBE_SECONDS)

    def start(self) -> None:
        """Find sizes at which the model runs; raises InputError with the first reason when there are none."""
        first: InputError | None = None
        for sizes in self._attempts():
            feeder = replace(self.feeder, defaults=sizes)
            try:
                outputs = self.reference.run(feeder.make({}))
            except InputError as error:
                first = first or error
                if not self.feeder.axes or "cannot open" in error.what:
                    break
                continue
            self.feeder = replace(feeder, defaults=feeder.resolve({}))
            self._keep(self.feeder.resolve({}), outputs)
            return
        raise first or InputError("cannot be run")

    def _attempts(self) -> Iterator[dict[str, int]]:
        yield {axis: DEFAULT_SIZES[role_of(axis)] for axis in self._free_axes()} | self._image_sizes()
        for batch, sequence, other in _FALLBACKS:
            sizes = {"batch": batch, "sequence": sequence, "total": sequence, "past": DEFAULT_SIZES["past"]}
            yield {axis: sizes.get(role_of(axis), other) for axis in self._free_axes()}

    def _free_axes(self) -> tuple[str, ...]:
        """Return the axes that do not follow from others."""
        sized = any(role_of(axis) == "sequence" for axis in self.feeder.axes)
        return tuple(axis for axis in self.feeder.axes if "+" not in axis and not (sized and role_of(axis) == "total"))

    def _image_sizes(self) -> dict[str, int]:
        images = [plan.spec for plan in self.feeder.plans if plan.kind == "float" and len(plan.spec.axes) == 4]
        return {
            axis: 64 for spec in images for axis in spec.axes[2:] if isinstance(axis, str) and role_of(axis) == "other"
        }

    def split_axes(self, places: Sequence[tuple[str, int]]) -> None:
        """Keep one name for several open axes only where the model refuses different sizes for them."""
        for name, index in places:
            plan = next(plan for plan in self.feeder.plans if plan.spec.name == name)
            axis = plan.spec.axes[index]
            users = [other for other in self.feeder.plans if axis in other.spec.axes]
            if not isinstance(axis, str) or len(users) < 2 or self.feeder.defaults.get(axis, 1) < 2 or self._late():
                continue
            own = _own_axis(name, index)
            axes = tuple(own if place == index else other for place, other in enumerate(plan.spec.axes))
            changed = replace(plan, spec=replace(plan.spec, axes=axes))
            plans = tuple(changed if other is plan else other for other in self.feeder.plans)
            base = self.feeder.defaults
            feeder = replace(self.feeder, plans=plans, defaults={**base, own: base[axis] + 1})
            if self._runs(feeder, {}) is not None:
                self.feeder = replace(feeder, defaults={**base, own: base[axis]})

    def prove_axes(self) -> None:
        """Run other sizes of each axis; note the axes that turn out to be fixed or tied to each other."""
        base = self.feeder.defaults
        stuck: list[str] = []
        for axis in self._free_axes():
            if self._late():
                self.notes.append(f"axis '{axis}' was not tried at other sizes: the model is slow to run")
                continue
            self.say(f"trying other sizes of '{axis}'")
            ran = [
                size for size in (base[axis] + 3, 2 * base[axis], 1) if size != base[axis] and self._try({axis: size})
            ]
            if not ran:
                stuck.append(axis)
            elif axis in self._image_sizes() and base[axis] + 3 not in ran and 2 * base[axis] in ran:
                self._find_step(axis)
        tied = {size: [axis for axis in stuck if base[axis] == size] for size in {base[axis] for axis in stuck}}
        for size, axes in sorted(tied.items()):
            if len(axes) > 1 and self._try(dict.fromkeys(axes, size + 3)):
                self.notes.append(f"axes {_quoted(axes)} only run at equal sizes")
                continue
            self.notes += [f"axis '{axis}' is declared dynamic but only size {size} was seen to run" for axis in axes]

    def _find_step(self, axis: str) -> None:
        """Find out of what an axis must be a multiple, when it runs at some sizes only."""
        base = self.feeder.defaults[axis]
        for step in STEPS:
            if base % step == 0 and not self._late() and self._try({axis: base + step}):
                self.steps[axis] = step
                self.notes.append(f"axis '{axis}' runs at multiples of {step} only")
                return

    def find_limits(self, tables: Sequence[int]) -> None:
        """Find the longest sequence when a table of positions gives a size to try."""
        axis = next((axis for axis in self._free_axes() if role_of(axis) == "sequence"), None)
        if axis is None or any(role_of(other) == "past" for other in self.feeder.axes):
            return
        ones = {other: 1 for other in self._free_axes() if role_of(other) == "batch"}
        for rows in tables:
            for limit in (rows, rows - 2):  # RoBERTa and OPT leave the first two rows of their table unused
                if not 1 < limit <= MAX_LIMIT_PROBE or self._late():
                    continue
                if self._runs(self.feeder, {**ones, axis: limit}) and not self._runs(
                    self.feeder, {**ones, axis: limit + 1}
                ):
                    self.feeder = replace(self.feeder, limits={axis: limit})
                    return

    def name_outputs(self, outputs: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
        """Yield the outputs with each axis as the file names it, or as the runs show it."""
        self._run_distinct()
        for spec in outputs:
            shapes = [(sizes, found[spec.name].shape) for sizes, found in self._outputs if self._usual(sizes)]
            rank = len(shapes[0][1])
            declared: Sequence[int | str] = spec.axes if len(spec.axes) == rank else ("",) * rank
            axes = tuple(
                self._output_axis(spec.name, index, axis, [(sizes, shape[index]) for sizes, shape in shapes])
                for index, axis in enumerate(declared)
            )
            yield replace(spec, axes=axes)

    def _usual(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether sizes are multiples of what they must be: a side of 1 may run all the same, by broadcasting."""
        return all(sizes[axis] % step == 0 for axis, step in self.steps.items())

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
        return found.pop() if len(found) == 1 else _own_axis(name, index)

    def _run_distinct(self) -> None:
        """Run once more with a size of its own for each axis, so that an output axis can be told apart."""
        free = self._free_axes()
        primes = itertools.cycle((3, 11, 5, 13, 7, 17))
        image = {axis: 32 * (3 + place) for place, axis in enumerate(self._image_sizes())}
        self._try({axis: image.get(axis) or next(primes) for axis in free})

    def _try(self, sizes: Mapping[str, int]) -> bool:
        outputs = self._runs(self.feeder, sizes)
        if outputs is None:
            return False
        self._keep(self.feeder.resolve(sizes), outputs)
        return True

    def _runs(self, feeder: GraphFeeder, sizes: Mapping[str, int]) -> Feeds | None:
        try:
            return self.reference.run(feeder.make(sizes))
        except InputError as error:
            logger.debug("sizes %s do not run: %s", dict(sizes), error)
            return None

    def _keep(self, sizes: dict[str, int], outputs: Feeds) -> None:
        if sizes not in self.proved:
            self.proved.append(sizes)
            # shapes are all that is looked at later; a broadcast zero keeps none of the memory
            shapes = {name: np.broadcast_to(np.zeros(()), value.shape) for name, value in outputs.items()}
            self._outputs.append((sizes, shapes))

    def _late(self) -> bool:
        return time.monotonic() > self._deadline


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
