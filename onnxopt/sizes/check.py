"""Compute terms at many sizes at once, and decide whether two are the same number at every size.

Where the forms of two terms do not tell, the computation itself does: each is a handful of NumPy calls, so it is run at
every size of an axis from 0 up to a bound beyond everything that the computation mentions, the other axes at a few
settings, and at combinations of the sizes around its numbers. What ONNX Runtime would refuse at some sizes (dimensions
that do not broadcast, a division by zero) is no size of the model and decides nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from onnxopt.graph.cache import PAST, SEQUENCE, TOTAL
from onnxopt.sizes.terms import ENDLESS, FUNCTIONS, INT, Atom, Number, Poly, is_constant
from onnxopt.spec import Array, AxisRange

LEAST_TOP = 4096  # every size up to this one is computed, whatever the computation mentions
LARGEST_TOP = 2**20
MOST_POINTS = 2**16  # combinations of sizes of several axes
USUAL = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17)  # small sizes that are combined
SETTINGS = ((1, 1, 1, 1, 1), (3, 5, 7, 11, 13), (2, 17, 29, 41, 53))  # of the other axes, while one is gone through
PROPOSING = (  # sizes of up to six axes that a proposal is read off: primes, each once
    (29, 31, 37, 41, 43, 47),
    (53, 59, 61, 67, 71, 73),
    (79, 83, 89, 97, 101, 103),
    (107, 109, 113, 127, 131, 137),
    (139, 149, 151, 157, 163, 167),
)

Sizes = Mapping[str, Array]
# Sizes of axes, and of sums of them, at which the model runs; of an axis that is not in it, all from 0 on.
Domain = Mapping[str, AxisRange]
ALL = AxisRange(least=0)


class NotComputable(Exception):  # noqa: N818 - a fact about a term, not an error
    """A term hangs on more than sizes."""


class Computation:
    """Terms at arrays of sizes.

    Args:
        sizes: int64 [points], one array per axis.
        domain: sizes of axes at which the model runs; here those of sums count, which no range of one axis tells.

    Attributes:
        valid: bool [points], false where ONNX Runtime would refuse one of the terms computed so far.
    """

    def __init__(self, sizes: Sizes, domain: Domain = MappingProxyType({})) -> None:
        self._sizes = sizes
        self._known: dict[Atom, Array] = {}
        points = len(next(iter(sizes.values()))) if sizes else 1
        self.valid = np.ones(points, bool)
        for parts, most in _sums(domain):
            # an axis that no term hangs on has its least size somewhere
            known = (sizes.get(part, np.asarray(domain.get(part, ALL).least)) for part in parts)
            self.valid &= sum(known, np.zeros(points, np.int64)) <= most

    def of(self, number: Number) -> Array:
        """Return a term at every point.

        Raises:
            NotComputable: it hangs on data, or on an axis without a size.
        """
        if isinstance(number, Poly):
            total = np.zeros(len(self.valid), np.int64)
            for atoms, factor in number.parts:
                part = np.full(len(self.valid), factor, np.int64)
                for one in atoms:
                    part = part * self._atom(one)
                total = total + part
            return total
        return self._atom(number) if isinstance(number, Atom) else np.broadcast_to(np.asarray(number), self.valid.shape)

    def _atom(self, one: Atom) -> Array:
        found = self._known.get(one)
        if found is not None:
            return found
        if one.op == "axis":
            if one.name not in self._sizes:
                raise NotComputable(one.name)
            return self._sizes[one.name]
        if one.op not in FUNCTIONS:
            raise NotComputable(one.op)
        args = [self.of(arg) for arg in one.args]
        if one.op in ("div", "mod", "fmod") and one.dtype == INT:
            self.valid &= args[1] != 0
        if one.op == "broadcast":
            self.valid &= (args[0] == args[1]) | (args[0] == 1) | (args[1] == 1)
        with np.errstate(all="ignore"):
            found = self._known[one] = FUNCTIONS[one.op](one.dtype, *args)
        return found


def _sums(domain: Domain) -> list[tuple[tuple[str, ...], int]]:
    """Return the axes of each sum that has an end, and that end."""
    parts = {name: (PAST, SEQUENCE) if name == TOTAL else tuple(map(str.strip, name.split("+"))) for name in domain}
    return [(parts[name], found.most) for name, found in domain.items() if found.most and len(parts[name]) > 1]


def axes_in(*numbers: Number) -> set[str]:
    """Return the names of the axes that terms hang on."""
    return {one.name for one in _atoms(numbers) if one.op == "axis"}


def hangs_on_data(number: Number) -> bool:
    """Tell whether a term hangs on a size that only data tells."""
    return any(one.op == "fresh" for one in _atoms([number]))


def has_calls(number: Number) -> bool:
    """Tell whether a term is more than a polynomial over axes."""
    return any(one.args for one in (number.atoms() if isinstance(number, Poly) else _atoms([number])))


def constants_in(*numbers: Number) -> list[int]:
    """Return the magnitudes of the constants that terms mention, in order."""
    found: set[int] = set()
    stack: list[Number] = list(numbers)
    for one in _atoms(numbers):
        stack.extend(one.args)
    for number in stack:
        if isinstance(number, Poly):
            found.update(abs(factor) for _, factor in number.parts)
        elif is_constant(number) and not isinstance(number, bool) and math.isfinite(float(number)):  # type: ignore[arg-type]  # a constant
            size = abs(float(number))  # type: ignore[arg-type]  # a constant
            found.update({math.floor(size), math.ceil(size)})
            if 0 < size < 1:  # a product with 1/256 is a division by 256
                found.add(round(1 / size))
    return sorted(found)


def _atoms(numbers: Iterable[Number]) -> list[Atom]:
    """Return every atom that terms are made of, each once."""
    seen: dict[Atom, None] = {}
    stack = list(numbers)
    while stack:
        number = stack.pop()
        members = number.atoms() if isinstance(number, Poly) else [number] if isinstance(number, Atom) else []
        for one in members:
            if one not in seen:
                seen[one] = None
                stack.extend(one.args)
    return list(seen)


def same_everywhere(left: Number, right: Number, domain: Domain, longest: int = 0) -> int:
    """Compare two terms at every size up to a bound.

    Args:
        left: one term.
        right: the other.
        domain: sizes of axes at which the model runs.
        longest: a size up to which every size is computed at least, such as the context length of the model.

    Returns:
        The bound up to which every size was computed and equal; 0 when they differ or hang on more than sizes.
    """
    axes = sorted(axes_in(left, right))
    mentioned = constants_in(left, right)
    top = _top(mentioned, longest)
    try:
        for sizes in (_proposing(axes, domain), *_grids(axes, mentioned, top, domain)):
            computation = Computation(sizes, domain)
            first, second = computation.of(left), computation.of(right)
            valid = computation.valid
            if not np.array_equal(first[valid], second[valid], equal_nan=first.dtype.kind == "f"):
                return 0
            if not valid.any():
                return 0
    except NotComputable:
        return 0
    return top


def values_at_proposing_sizes(number: Number, domain: Domain) -> tuple[list[int], list[dict[str, int]]]:
    """Return what an integer term is at a few sizes, distinct in every axis, and those sizes.

    Raises:
        NotComputable: it hangs on data.
    """
    axes = sorted(axes_in(number))
    sizes = _proposing(axes, domain)
    computation = Computation(sizes, domain)
    found = computation.of(number)
    points = np.flatnonzero(computation.valid)
    at = [{axis: int(sizes[axis][index]) for axis in axes} for index in points]
    return [int(found[index]) for index in points], at


def _proposing(axes: Sequence[str], domain: Domain) -> dict[str, Array]:
    """Return a few sizes of each axis, distinct from all others as far as its range allows."""
    sizes = {}
    shares = {part: most // len(parts) for parts, most in _sums(domain) for part in parts}
    for place, axis in enumerate(axes):
        found = domain.get(axis, ALL)
        if axis in shares and found.least < shares[axis]:
            found = replace(found, most=min(found.most or shares[axis], shares[axis]))
        primes = [row[place % len(row)] + 200 * (place // len(row)) for row in PROPOSING]
        if found.step > 1 or primes[0] < found.least:
            primes = [max(found.least, found.step) + found.step * prime for prime in primes]
        if found.most and primes[-1] > found.most:
            room = (found.most - found.least) // found.step
            primes = [found.fitted(found.least + found.step * (room * (part + 1) // 5 - place)) for part in range(5)]
        sizes[axis] = np.array(primes, np.int64)
    return sizes


def _top(mentioned: Sequence[int], longest: int) -> int:
    """Return a bound beyond what a computation mentions: twice its largest number, and the product of its divisors."""
    ordinary = [number for number in mentioned if 1 < number <= LARGEST_TOP // 2]
    beyond = [2 * number + 3 for number in ordinary]
    periods = math.prod(ordinary[:6]) if ordinary else 1
    return min(LARGEST_TOP, max(LEAST_TOP, longest, *beyond, periods if periods <= LARGEST_TOP else 0))


def _in_range(sizes: Iterable[int], found: AxisRange) -> list[int]:
    """Return those sizes, in order, at which an axis runs."""
    return sorted(
        {
            size
            for size in sizes
            if size >= found.least and size % found.step == 0 and not (found.most and size > found.most)
        }
    )


def _grids(axes: Sequence[str], mentioned: Sequence[int], top: int, domain: Domain) -> Iterable[dict[str, Array]]:
    """Yield sizes: each axis gone through alone, then combinations of the sizes where something may change."""
    for axis in axes:
        found = domain.get(axis, ALL)
        beyond = [n + step for n in mentioned if n > top for step in (-1, 0, 1, n) if n + step < ENDLESS]
        every = range(-(-found.least // found.step) * found.step, (found.most or top) + 1, found.step)
        gone = np.array([*every[: top + 1], *_in_range(beyond, found)], np.int64)
        for setting in SETTINGS if len(axes) > 1 else SETTINGS[:1]:
            others = dict(zip((a for a in axes if a != axis), itertools.cycle(setting), strict=False))
            fixed = {other: domain.get(other, ALL).fitted(size) for other, size in others.items()}
            yield {axis: gone, **{other: np.full(len(gone), size, np.int64) for other, size in fixed.items()}}
    if len(axes) > 1:
        yield _combined(axes, mentioned, top, domain)


def _combined(axes: Sequence[str], mentioned: Sequence[int], top: int, domain: Domain) -> dict[str, Array]:
    """Return combinations of small sizes, of those around each number mentioned, and of a few large ones."""
    generator = np.random.default_rng(0)
    near = {number + step for number in mentioned if number <= top for step in (-1, 0, 1)}
    choices = []
    for axis in axes:
        found = domain.get(axis, ALL)
        drawn = generator.integers(0, min(found.most or top, LEAST_TOP) + 1, 8) // found.step * found.step
        choices.append(_in_range({*USUAL, *near, *drawn.tolist(), found.fitted(found.least)}, found))
    if math.prod(map(len, choices)) <= MOST_POINTS:
        points = np.array(list(itertools.product(*choices)), np.int64)
    else:
        points = np.stack([generator.choice(sizes, MOST_POINTS) for sizes in choices], axis=1)
    return {axis: points[:, place] for place, axis in enumerate(axes)}
