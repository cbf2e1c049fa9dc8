"""Choose the sizes and paddings at which a finished graph is proved, and say up to where that is.

The smallest sizes, one by one and together; each size at which something changes, and its neighbours; those of the
workload; the longest that the model promises. What lies beyond what a proof may cost is left out, and named: costs are
counted in products of weights and positions, not in seconds, so that the same model is proved at the same sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxopt.graph import number
from onnxopt.graph.cache import ENCODED, PAST, SEQUENCE, TOTAL, Cache, complete_all
from onnxopt.graph.roles import mask_of
from onnxopt.graph.weight_files import is_large
from onnxopt.load.graph_feeder import GraphFeeder
from onnxopt.load.loaded import Loaded
from onnxopt.probe.sidegraph import SIZE_STEPS
from onnxopt.proof.observations import paddings_of
from onnxopt.records.notes import TOO_DEAR
from onnxopt.records.record import ProvedRange
from onnxopt.spec import MIXED, PADDINGS, Padding, TensorSpec, Workload, elements_of

Case = tuple[dict[str, int], Padding]

BATCHES_AND_LENGTHS = ((1, 1), (1, 128), (3, 7), (2, 33))
BATCHES = (1, 2, 5)
# with a cache: batch, new tokens, seen ones. Several new tokens behind a past are for a batch of one: kernels that
# append to a cache take no other.
CACHED = ((1, 1, 0), (1, 128, 0), (3, 7, 0), (2, 33, 0), (2, 1, 33), (1, 1, 128), (1, 6, 40))
SEED = 100  # of the first case of a proof; they are counted on from there
SMALL = (1, 2, 3, 5)  # of every axis on its own
FAR = 131  # of an axis that promises no end
LARGEST_TURNING = 4096  # a number beyond is no size that a proof would reach
MOST_TURNING = 24  # sizes of one axis at which something changes
MAX_WORK = 1e10  # products of weights with positions that cases beyond the usual ones may cost
MAX_SHARE = 0.5  # of the positions of the usual cases, for models of which those cost more than that
LONGEST_ROW = 2048  # positions in a row: attention keeps [heads, row, row] floats
MAX_ELEMENTS = 1 << 21  # of the inputs of one case, where no weights tell what it costs
SMALL_IMAGE = 64  # pixels of a side
PATCH = 256  # pixels of an image that count as one position


def cases_of(loaded: Loaded, workload: Workload | None = None) -> list[Case]:
    """Choose sizes and paddings for comparing the whole graph.

    Args:
        loaded: its signature, feeder, and what is known of its axes.
        workload: request shapes that fit the model.

    Returns:
        The usual cases, then those that the model itself asks for, as far as they are affordable; at least as many as
        it takes to run each combination of compared values.
    """
    usual = _cached_cases(loaded) if Cache.of(loaded.signature) is not None else _plain_cases(loaded)
    taken = {tuple(sizes.items()) for sizes, _ in usual}
    left = max(MAX_WORK / weight_of(loaded.model), MAX_SHARE * sum(positions(loaded, sizes) for sizes, _ in usual))
    kinds = paddings_of(loaded) if is_padded(loaded) else PADDINGS[:1]
    cases = list(usual)
    for choices in _asked(loaded, workload):
        # the first that can be paid for; one that was compared already is free
        costs = ((sizes, 0 if tuple(sizes.items()) in taken else positions(loaded, sizes)) for sizes in choices)
        payable = ((sizes, cost) for sizes, cost in costs if cost <= left and _small_enough(loaded, sizes))
        sizes, cost = next(payable, ({}, 0))
        if not cost:
            continue
        taken.add(tuple(sizes.items()))
        left -= cost
        kind = kinds[len(cases) % len(kinds)] if sizes.get("batch", 1) > 1 and not sizes.get(PAST) else "none"
        cases.append((sizes, kind))
    combinations = loaded.feeder.combinations if isinstance(loaded.feeder, GraphFeeder) else 1
    return cases + [cases[index % len(cases)] for index in range(max(0, combinations - len(cases)))]


def proved_ranges(loaded: Loaded, cases: Iterable[Mapping[str, int]]) -> dict[str, ProvedRange]:
    """Return the sizes between which a graph was proved, for each axis under its name in the file.

    Args:
        loaded: knows what each axis promises.
        cases: sizes that ran.
    """
    found: dict[str, ProvedRange] = {}
    every = list(cases)
    for axis in loaded.signature.axes:
        sizes = [case[axis] for case in every if axis in case]
        if sizes:
            known = loaded.range_of(axis)
            promised = promised_size(loaded, axis)
            found[loaded.names.get(axis, axis)] = ProvedRange(
                least=min(sizes), most=max(sizes), step=known.step, promised=promised
            )
    return found


def short_of(ranges: Mapping[str, ProvedRange]) -> list[str]:
    """Return a sentence for each axis that is proved up to less than the model promises."""
    return [
        f"axis '{axis}' is proved from {found.least} up to {found.most}; sizes up to {found.promised} {TOO_DEAR}"
        for axis, found in ranges.items()
        if found.promised > found.most
    ]


def is_padded(loaded: Loaded) -> bool:
    """Tell whether the inputs of a model can be padded."""
    made = isinstance(loaded.feeder, GraphFeeder) and any(plan.kind == "mask" for plan in loaded.feeder.plans)
    return made or mask_of(loaded.signature) is not None


def promised_size(loaded: Loaded, axis: str) -> int:
    """Return the largest size of an axis that the model promises to take, 0 where it says none."""
    most = loaded.range_of(axis).most
    context = int(loaded.origin.get("context_length", 0) or 0) if axis in (SEQUENCE, TOTAL) else 0
    return min((size for size in (most, context) if size), default=0)


def note_turning(loaded: Loaded, other: ir.Model | None = None) -> None:
    """Remember, of axes of which nothing was derived, the numbers of the graph that sizes meet.

    Args:
        loaded: as it was loaded; `turning` is set.
        other: a second graph that is compared with it.
    """
    numbers = set(numbers_that_sizes_meet(loaded.model))
    numbers.update(numbers_that_sizes_meet(other) if other is not None else ())
    for axis in loaded.signature.axes:
        # few graphs count rows, and what is derived of one that does is added
        is_likely = axis != "batch" or other is not None
        if numbers and is_likely and axis not in loaded.turning:
            loaded.turning = {**loaded.turning, axis: tuple(sorted(numbers))}


def numbers_that_sizes_meet(model: ir.Model) -> list[int]:
    """Return the whole numbers that something is divided by, cut at or compared with."""
    found: set[int] = set()
    for node in model.graph.all_nodes():
        if node.op_type not in SIZE_STEPS:
            continue
        for value in node.inputs:
            size = number(value)
            if size is not None and size.is_integer() and 1 < abs(size) <= LARGEST_TURNING:
                found.add(abs(int(size)))
    return sorted(found)


def weight_of(model: ir.Model) -> float:
    """Return how many products one position costs at most: the elements of all matrices but tables."""
    tables = {node.inputs[0] for node in model.graph if node.op_type == "Gather" and node.inputs}
    elements = (
        math.prod(tensor.shape.numpy())
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None and len(tensor.shape) > 1 and value not in tables
    )
    return float(sum(elements)) or 1.0


def positions(loaded: Loaded, sizes: Mapping[str, int]) -> int:
    """Return the most positions that an input has at some sizes; the reference computes those of a past, too.

    Of an image, patches of 16 by 16 pixels count: networks shrink it before most of their weights see it.
    """
    counts = [1]
    for spec in loaded.signature.inputs:
        count = math.prod(sizes.get(axis, 1) for axis in spec.axes if isinstance(axis, str))
        counts.append(-(-count // PATCH) if _is_image(spec) else count)
    return max(counts)


def _small_enough(loaded: Loaded, sizes: Mapping[str, int]) -> bool:
    """Tell whether inputs, and attention over rows, are small enough to be kept in memory."""
    elements = elements_of(loaded.signature.inputs, sizes)
    return elements <= MAX_ELEMENTS and all(sizes.get(axis, 0) <= LONGEST_ROW for axis in (SEQUENCE, TOTAL, ENCODED))


def _cached_cases(loaded: Loaded) -> list[Case]:
    axes = loaded.signature.axes
    limit = max((sizes[TOTAL] for sizes in loaded.proved_sizes if TOTAL in sizes), default=2**31)
    steps = [
        ((rows, new, past), padding)
        for batch, new, past in CACHED
        for rows, padding in (padded_batches(loaded, batch) if batch > 1 and not past else [(batch, PADDINGS[0])])
    ]
    return [
        (complete_all({"batch": batch, SEQUENCE: new, PAST: past}, axes, index), padding)
        for index, ((batch, new, past), padding) in enumerate(steps)
        if new + past <= limit
    ]


def padded_batches(loaded: Loaded, batch: int) -> list[tuple[int, Padding]]:
    """Return batches in which rows have every kind of padding that a model is proved with.

    Args:
        loaded: the model.
        batch: rows of a batch of one kind, of which the first has no padding.

    Returns:
        Sizes of batches with the padding of their rows: one batch for each kind. Of a large model, where every run
        reads all weights anew, one in which rows have theirs in turn, and as many rows of each kind but holes, which
        stay apart.
    """
    kinds, rows = paddings_of(loaded), len(MIXED) * (batch - 1)
    is_free = "batch" not in {*loaded.pinned, *(axis for group in loaded.tied for axis in group)}
    takes_more = is_free and loaded.range_of("batch").fitted(rows) == rows
    if not is_large(loaded.model) or not takes_more or not set(MIXED) <= set(kinds):
        return [(batch, kind) for kind in kinds]
    return [(rows, "mixed"), *((batch, kind) for kind in kinds if kind not in MIXED)]


def _plain_cases(loaded: Loaded) -> list[Case]:
    axes = loaded.signature.axes
    if SEQUENCE in axes:
        usual = BATCHES_AND_LENGTHS[1][1]
        shown = max((sizes.get(SEQUENCE, 0) for sizes in loaded.proved_sizes), default=0) or usual
        longest = (promised_size(loaded, SEQUENCE) or usual) if loaded.task == "onnx" else shown
        pairs = [(batch, min(length, longest)) for batch, length in BATCHES_AND_LENGTHS]
        chosen = [{axis: {"batch": b, SEQUENCE: n}.get(axis, n) for axis in axes} for b, n in dict.fromkeys(pairs)]
    else:
        chosen = [
            {axis: b if axis == "batch" else loaded.usual(axis, 2) for axis in axes}
            for b in (BATCHES if "batch" in axes else BATCHES[:1])
        ]
    fitted = dict.fromkeys(tuple(_fit(loaded, sizes).items()) for sizes in chosen)
    masked = is_padded(loaded)
    cases: list[Case] = []
    for sizes in map(dict, fitted):
        batch = sizes.get("batch", 1)
        padded = padded_batches(loaded, batch) if masked and batch > 1 else [(batch, PADDINGS[0])]
        cases += [({**sizes, "batch": rows} if "batch" in sizes else sizes, padding) for rows, padding in padded]
    return cases


def _fit(loaded: Loaded, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return sizes at which the model runs; axes that move only alone keep their usual size."""
    pinned = {axis: loaded.proved_sizes[0][axis] for axis in loaded.pinned if axis in sizes and loaded.proved_sizes}
    return loaded.runnable({**sizes, **pinned})


def _asked(loaded: Loaded, workload: Workload | None) -> Iterator[list[dict[str, int]]]:
    """Yield the sizes that the model and its workload ask for: lists of which the first affordable one is enough."""
    if Cache.of(loaded.signature) is not None:
        yield from _asked_of_cache(loaded)
        return
    axes = loaded.signature.axes
    if not axes:
        return
    start = _fit(loaded, {axis: 2 if axis == "batch" else _middle(loaded, axis) for axis in axes})
    steps = {axis: loaded.range_of(axis).step for axis in axes}
    yield [_fit(loaded, dict.fromkeys(axes, 1))]
    yield [_fit(loaded, {axis: start[axis] + steps[axis] * (place + 1) for place, axis in enumerate(axes)})]
    for axis in axes:
        yield from ([_alone(loaded, start, axis, size)] for size in _small(loaded, axis))
    for axis in axes:
        longest = _longest(loaded, axis)
        yield [_alone(loaded, {**start, "batch": 1}, axis, size) for size in longest]
    for axis in axes:
        yield from ([_alone(loaded, start, axis, size)] for size in _turning(loaded, axis))
    shapes = workload.shapes if workload is not None else ()
    yield from ([_fit(loaded, {axis: shape.get(axis, start[axis]) for axis in axes})] for shape in shapes)
    alone = [_alone(loaded, start, axis, shape[axis]) for shape in shapes for axis in axes if axis in shape]
    yield from ([sizes] for sizes in sorted(alone, key=lambda sizes: positions(loaded, sizes)))


def _middle(loaded: Loaded, axis: str) -> int:
    """Return the size of an axis while others are moved: one of a few rows, and of an image a small one."""
    if SEQUENCE in loaded.signature.axes:
        return 7
    usual, known = loaded.usual(axis, 7), loaded.range_of(axis)
    is_side = any(_is_image(spec) and axis in spec.axes[2:] for spec in loaded.signature.inputs)
    return min(usual, known.fitted(max(SMALL_IMAGE, known.least + known.step))) if is_side else usual


def _is_image(spec: TensorSpec) -> bool:
    """Tell whether an input has four axes, the last two of them open."""
    return len(spec.axes) == 4 and all(isinstance(axis, str) for axis in spec.axes[2:])


def _alone(loaded: Loaded, start: Mapping[str, int], axis: str, size: int) -> dict[str, int]:
    """Return the sizes of a start with one axis, and those tied to it, moved."""
    group = next((group for group in loaded.tied if axis in group), (axis,))
    if size == 1 and axis in loaded.ones:
        return {one: known for one, known in {**start, axis: 1}.items() if one in loaded.signature.axes}
    moved = {**start, **dict.fromkeys(group, size)}
    return {one: known for one, known in loaded.runnable(moved).items() if one in loaded.signature.axes}


def _small(loaded: Loaded, axis: str) -> list[int]:
    """Return the first sizes of an axis."""
    known = loaded.range_of(axis)
    first = [1] if axis in loaded.ones else []
    return list(dict.fromkeys([*first, *(known.least + (size - 1) * known.step for size in SMALL)]))


def _turning(loaded: Loaded, axis: str) -> list[int]:
    """Return the sizes of an axis at which something changes, with their neighbours, the smallest first."""
    known = loaded.range_of(axis)
    turning = [size for size in loaded.turning.get(axis, ()) if axis != "batch" or size < FAR]
    promised = promised_size(loaded, axis) or LARGEST_TURNING + known.step
    near = sorted({size + offset for size in turning for offset in (-known.step, 0, known.step)} - {0})
    near = [size for size in near if size <= promised]  # what is longer, the model does not take
    return list(dict.fromkeys(known.fitted(size) for size in near[: 3 * MOST_TURNING]))


def _longest(loaded: Loaded, axis: str) -> list[int]:
    """Return what an axis promises at most, and shorter ones in case that costs too much, the longest first."""
    if axis == "batch" and not promised_size(loaded, axis):
        return []
    known, promised = loaded.range_of(axis), promised_size(loaded, axis)
    lengths = [promised] if promised else [FAR]
    while lengths[-1] > FAR:
        lengths.append(max(FAR, lengths[-1] // 2))
    return [known.fitted(size) for size in lengths]


def _asked_of_cache(loaded: Loaded) -> Iterator[list[dict[str, int]]]:
    """Yield short pasts, sizes at which something changes, and the longest rows: as a prompt, and as one more token."""
    axes = loaded.signature.axes

    def sizes(batch: int, new: int, past: int, index: int = 0) -> dict[str, int]:
        return complete_all({"batch": batch, SEQUENCE: new, PAST: past}, axes, index)

    limit = promised_size(loaded, TOTAL) or 2**31
    yield from ([sizes(*small)] for small in ((1, 2, 0), (2, 3, 0), (1, 1, 1), (1, 2, 3), (2, 1, 2)))
    yield [sizes(1, total, 0) for total in _longest(loaded, TOTAL)]
    yield [sizes(1, 1, total - 1) for total in _longest(loaded, TOTAL)]
    turning = sorted({size for axis in (SEQUENCE, PAST, TOTAL) for size in loaded.turning.get(axis, ())})
    near: Sequence[int] = sorted({size + offset for size in turning for offset in (-1, 0, 1)})
    for total in near[: 3 * MOST_TURNING]:
        if 1 < total <= min(limit, LONGEST_ROW):
            yield [sizes(2, total, 0)]
            yield [sizes(2, 1, total - 1)]


def case_text(sizes: Mapping[str, int], padding: Padding) -> str:
    """Write a case for a person: `batch 3 sequence 7, left padding`."""
    return f"{' '.join(f'{axis} {size}' for axis, size in sizes.items())}, {padding} padding"
