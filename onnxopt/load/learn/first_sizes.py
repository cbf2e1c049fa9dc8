"""The sizes at which a file is run first: the likeliest, and others in case those do not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnxopt.load.graph_feeder import DEFAULT_SIZES, GraphFeeder
from onnxopt.spec import Feeds, elements_of

# Sizes to try when the usual ones do not run: batch, sequence, every other axis (images, then sound).
_FALLBACKS = (
    *((1, 8, 8), (2, 8, 64), (1, 8, 64), (1, 16, 16), (1, 8, 224), (1, 1, 1), (1, 128, 512), (1, 16000, 16000)),
    *((2, 32, 32), (1, 32, 32), (1, 64, 128), (1, 256, 256), (1, 384, 384), (1, 1024, 1024), (1, 4096, 4096)),
)
_EQUAL_SIZES = (1, 3, 16, 32, 64, 128, 224, 512, 1024, 16000)  # of all axes, whatever they are called
HEAVY_ELEMENTS = 1 << 14  # of one row, of all inputs that have it: more than a small image has
FEW_ROWS = (1, 3, 4, 5, 6)  # to try beside `FEW` where rows are large
FEW, SIDE = 2, 64  # a usual size of rows in a batch, and of an image that is halved five times
MOST_TRIED = 1 << 25  # elements of all inputs: a quarter of a gigabyte while they are made


def attempts(feeder: GraphFeeder, likely: Sequence[int]) -> Iterator[dict[str, int]]:
    """Yield sizes of every axis that does not follow from others, the likeliest first; none that fill the memory.

    Args:
        feeder: what is known so far.
        likely: numbers of the graph that may be sizes, tried last.
    """
    specs = [plan.spec for plan in feeder.plans]
    return (sizes for sizes in _guesses(feeder, likely) if elements_of(specs, sizes) <= MOST_TRIED)


def _guesses(feeder: GraphFeeder, likely: Sequence[int]) -> Iterator[dict[str, int]]:
    """Yield sizes as `attempts` does, however large the inputs are."""
    free = free_axes(feeder)
    for example in feeder.examples:
        yield {**dict.fromkeys(free, 1), **sizes_of(feeder, example)}
    usual = usual_sizes(feeder)
    yield usual
    heavy = [axis for axis in free if is_heavy(feeder, axis)]
    for rows in FEW_ROWS if heavy else ():  # what is baked in, or is a multiple, shows with few of them as well
        yield usual | dict.fromkeys(heavy, rows)
    yield dict.fromkeys(free, DEFAULT_SIZES["other"])  # axes that must be equal, whatever they are called
    for batch, sequence, other in (*_FALLBACKS, *((1, size, size) for size in likely)):
        sizes = {"batch": batch, "sequence": sequence, "total": sequence, "past": DEFAULT_SIZES["past"]}
        yield {axis: sizes.get(feeder.role(axis), other) for axis in free}
    for size in likely:
        yield {axis: _first_size(feeder, axis) if feeder.role(axis) == "batch" else size for axis in free}
    for size in (*_EQUAL_SIZES, *likely):
        yield dict.fromkeys(free, size)


def usual_sizes(feeder: GraphFeeder) -> dict[str, int]:
    """Return the size of every axis that does not follow from others at which most models run."""
    return {axis: _first_size(feeder, axis) for axis in free_axes(feeder)} | image_sizes(feeder)


def fewer_rows(found: Mapping[str, int], usual: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield smaller sizes to try of what began to run with a large one for all axes: all but one first, then one.

    Args:
        found: sizes that run.
        usual: the size of each axis that would be preferred.
    """
    large = {axis: size for axis, size in usual.items() if found.get(axis, 0) > size}
    if len(large) > 2:
        yield from ({other: size for other, size in large.items() if other != axis} for axis in large)
    yield from ({axis: size} for axis, size in large.items())


def free_axes(feeder: GraphFeeder) -> tuple[str, ...]:
    """Return the axes that do not follow from others."""
    role, follows = feeder.role, feeder.terms
    sized = any(role(axis) == "sequence" for axis in feeder.axes)
    totals = {axis for axis in feeder.axes if role(axis) == "total" and (sized or "+" in axis)}
    return tuple(axis for axis in feeder.axes if not follows(axis) and axis not in totals)


def image_sizes(feeder: GraphFeeder) -> dict[str, int]:
    """Return a size for each side of an image."""
    images = [plan.spec for plan in feeder.plans if plan.kind == "float" and len(plan.spec.axes) == 4]
    return {
        axis: SIDE
        for spec in images
        for axis in spec.axes[2:]
        if isinstance(axis, str) and feeder.role(axis) == "other"
    }


def is_heavy(feeder: GraphFeeder, axis: str) -> bool:
    """Tell whether one more row along an axis is a whole image, or seconds of sound."""
    return elements_of((plan.spec for plan in feeder.plans if axis in plan.spec.axes), {}) > HEAVY_ELEMENTS


def _first_size(feeder: GraphFeeder, axis: str) -> int:
    """Return the usual size of an axis; of large rows, whatever they are called, few."""
    usual = DEFAULT_SIZES[feeder.role(axis)]
    return min(usual, FEW) if is_heavy(feeder, axis) else usual


def sizes_of(feeder: GraphFeeder, example: Feeds) -> dict[str, int]:
    """Return the sizes of the axes that an example has."""
    return {
        axis: size
        for plan in feeder.plans
        if plan.spec.name in example
        for axis, size in zip(plan.spec.axes, example[plan.spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
