"""Choose the inputs on which a graph is looked at while it is rewritten."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph import CONTRIB, attribute, is_op
from onnxopt.graph.cache import COLUMNS_KEY, PADDING_KEY, PAST, SEQUENCE, Cache, complete, complete_all
from onnxopt.graph.roles import mask_of
from onnxopt.load.graph_feeder import GraphFeeder
from onnxopt.load.loaded import Loaded
from onnxopt.probe.observe import Observation
from onnxopt.probe.sidegraph import MaskMeaning, meaning_of_mask, telling_size
from onnxopt.spec import PADDINGS, AxisRange, Padding, Target, elements_of

logger = logging.getLogger(__name__)

# The last probe is one long row: a number of blocks of 64, say, is 1 in all short ones and would look like a constant.
PROBES: tuple[tuple[int, Padding], ...] = ((0, "none"), (1, "holes"), (2, "left"), (3, "none"))
BATCHES, LENGTHS = (2, 3, 5, 1), (7, 11, 13, 131)
PASTS = (17, 0, 19, 5)  # seen before, for a model with a cache
# What generating text asks for: prompts of a batch, padded anywhere; single tokens; a longer prompt in pieces.
GENERATED: tuple[tuple[int, int, int, Padding], ...] = (
    (2, 7, 0, "none"),
    (3, 11, 0, "left"),
    (4, 13, 0, "holes"),
    (5, 1, 17, "none"),
    (1, 5, 131, "none"),
)
# Where rows are large, such as those of images or of seconds of sound, the first and the last probe, of few rows, are
# all: what is claimed of sizes is derived, and the whole is compared at more of them in the end.
MAX_ELEMENTS = 1 << 19  # of the inputs of all observations together
FEW_PROBES = (0, len(PROBES) - 1)
FEW_SIZES = ((2, 5, 11, 17, 23), (1, 3, 7, 13, 19))  # of one axis after the other, in each of these
LEAST_OBSERVATIONS = 2  # fewer show nothing of what hangs on sizes
STRIDES = (0, 4, 8, 12)  # of an axis whose sizes are not free, by its step: what is halved five times, say
LEAST_OTHERS, MOST_OTHERS = 8, 32  # inputs of a proof that are looked at ahead of it
OTHER_PRIMES = (17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61)


def observations_of(loaded: Loaded) -> list[Observation]:
    """Make inputs of four sizes, distinct in every axis, with three kinds of padding; the long one only if it fits.

    The long one is longer than what the graph divides sizes by, cuts them at or compares them with: a number of blocks
    of 256 is 1 in all short rows and would look like a constant. Where the model does not run at sizes so chosen,
    others at which it was seen to run take their place.

    Raises:
        InputError: there are not two sizes at which it runs.
    """
    wanted = chosen(loaded)
    if loaded.task != "onnx" and not loaded.ranges:
        return wanted  # the exporter's model runs at any size
    running = [one for one in wanted if _runs(loaded, one)]
    spare = (sizes for sizes in loaded.proved_sizes if sizes not in [one.sizes for one in running])
    for index, sizes in enumerate(spare, start=len(PROBES)):
        if len(running) >= len(wanted):
            break
        with contextlib.suppress(InputError):
            other = Observation(dict(sizes), loaded.feeder.make(sizes, seed=index))
            running += [other] if _runs(loaded, other) else []
    if len(running) < min(LEAST_OBSERVATIONS, len(wanted)):
        shown = loaded.shown(wanted[0].sizes).items()
        tried = ", ".join(f"{axis} {size}" for axis, size in shown) or "no open axis"
        raise InputError(
            f"the model does not run with inputs made up for it (first tried: {tried})",
            where=loaded.name,
            hint="give inputs that run with --feeds example.npz, or the sizes that do with --axis name=8..4096:8",
        )
    return running


def _runs(loaded: Loaded, observation: Observation) -> bool:
    try:
        loaded.reference.run(observation.feeds)
    except InputError as error:
        logger.debug("sizes %s are not looked at: %s", dict(observation.sizes), error)
        return False
    return True


def others_of(loaded: Loaded, cases: Iterable[tuple[Mapping[str, int], Padding]], seed: int) -> list[Observation]:
    """Make some of the inputs of a proof ahead of it, as far as the model runs with them.

    The smallest come first, and each combination of compared values is among them.

    Args:
        loaded: the model.
        cases: sizes and paddings, in the order in which they are proved.
        seed: of the first one.
    """
    combinations = loaded.feeder.combinations if isinstance(loaded.feeder, GraphFeeder) else 1
    numbered = [(sizes, padding, seed + index) for index, (sizes, padding) in enumerate(cases)]
    numbered.sort(key=lambda case: math.prod(max(1, size) for size in case[0].values()))
    made: list[Observation] = []
    met: set[int] = set()
    for sizes, padding, own in numbered:
        if len(made) >= (LEAST_OTHERS if own % combinations in met else MOST_OTHERS):
            continue
        with contextlib.suppress(InputError):
            other = Observation(dict(sizes), loaded.feeder.make(sizes, padding, seed=own))
            if _runs(loaded, other):
                made.append(other)
                met.add(own % combinations)
    return made


def chosen(loaded: Loaded) -> list[Observation]:
    """Return the observations that are wanted, whether the model runs at them or not."""
    observations = []
    longest = max(LENGTHS[-1], telling_size(loaded.model.graph))
    wanted = {index: _sizes(loaded, index, longest=longest) for index in range(len(PROBES))}
    if _are_large(loaded, wanted.values()):
        wanted = {index: _few(loaded, wanted[index], place) for place, index in enumerate(FEW_PROBES)}
    for index, sizes in wanted.items():
        kind = PROBES[index][1]
        padding: Padding = kind if kind in paddings_of(loaded) else "right"
        try:
            observations.append(Observation(sizes, loaded.feeder.make(sizes, padding, seed=index)))
        except InputError:
            if index < len(PROBES) - 1:  # only the long row may be beyond what the model takes
                raise
            usual = _sizes(loaded, index, longest=LENGTHS[-1])
            with contextlib.suppress(InputError):
                observations.append(Observation(usual, loaded.feeder.make(usual, padding, seed=index)))
    return observations


def _are_large(loaded: Loaded, wanted: Iterable[Mapping[str, int]]) -> bool:
    """Tell whether inputs without a mask, which is looked at in all its kinds, are larger than observations may be."""
    if mask_of(loaded.signature) is not None or Cache.of(loaded.signature) is not None:
        return False
    return sum(elements_of(loaded.signature.inputs, sizes) for sizes in wanted) > MAX_ELEMENTS


def _few(loaded: Loaded, wanted: Mapping[str, int], place: int) -> dict[str, int]:
    """Return sizes with few rows, of each axis that is the first of an input; those of all others stay.

    Args:
        loaded: knows at which sizes the model runs.
        wanted: sizes of an observation, as they would be if rows were small.
        place: of the observation in `FEW_PROBES`.
    """
    rows = dict.fromkeys(str(spec.axes[0]) for spec in loaded.signature.inputs if spec.axes)
    free = [axis for axis in rows if axis in wanted and axis not in loaded.pinned]
    few = {axis: size for axis, size in wanted.items() if axis not in free}
    for axis, size in zip(free, FEW_SIZES[place], strict=False):
        few[axis] = _within(loaded.range_of(axis), size, place, few)
    return loaded.runnable({axis: few.get(axis, size) for axis, size in wanted.items()})


def _sizes(loaded: Loaded, index: int, *, longest: int) -> dict[str, int]:
    """Return sizes at which the model runs, different for each axis and from one observation to the next.

    Args:
        loaded: knows at which sizes the model runs.
        index: number of the observation.
        longest: of the last one's rows.
    """
    others = iter(OTHER_PRIMES[index :: len(PROBES)])
    sizes: dict[str, int] = {}
    for axis in loaded.signature.axes:
        if axis in loaded.pinned and loaded.proved_sizes:
            sizes[axis] = loaded.proved_sizes[0][axis]
        elif axis == "batch":
            sizes[axis] = _within(loaded.range_of(axis), BATCHES[index], index, sizes)
        elif axis in ("sequence", "total_sequence"):
            wanted = LENGTHS[index] if index < len(PROBES) - 1 else longest
            sizes[axis] = _within(loaded.range_of(axis), wanted, index, sizes)
        elif axis == PAST:
            sizes[axis] = PASTS[index]
        else:
            sizes[axis] = _within(loaded.range_of(axis), next(others, OTHER_PRIMES[index]), index, sizes)
    fitted = loaded.runnable(sizes) if PAST not in sizes else complete(sizes)
    return _broadcast(loaded, fitted, index)


def _within(known: AxisRange, wanted: int, index: int, taken: Mapping[str, int]) -> int:
    """Return a size of a range: the wanted one, or one that no other axis has and no other observation.

    Args:
        known: sizes at which the model runs.
        wanted: used where it is one of them.
        index: number of the observation.
        taken: sizes of other axes in the same observation.
    """
    inside = known.least <= wanted and (not known.most or wanted <= known.most)
    if known.step == 1 and inside:
        return wanted
    # further from the start with each observation, and in strides that leave the others' sizes alone
    up = [known.fitted(wanted) + known.step * (index + stride) for stride in STRIDES]
    down = [known.most - known.step * (len(PROBES) - 1 - index + stride) for stride in STRIDES]
    choices = [size for size in up if not known.most or size <= known.most]
    choices += [size for size in down if size >= known.least] if known.most else []
    return next((size for size in choices if size not in taken.values()), known.fitted(wanted))


def _broadcast(loaded: Loaded, sizes: Mapping[str, int], index: int) -> dict[str, int]:
    """Return sizes of which one that may be 1 is 1, in the later observations: what is broadcast is no equal size."""
    ones = [axis for axis in loaded.signature.axes if axis in loaded.ones and axis not in loaded.pinned]
    late = index - (len(PROBES) - 2)
    return {**sizes, ones[late % len(ones)]: 1} if ones and late >= 0 else dict(sizes)


def paddings_of(loaded: Loaded) -> tuple[Padding, ...]:
    """Return the kinds of padding that a model is proved with.

    A window counts the keys between, padding among them or not. On packed rows there is none among them, so a decoder
    with windows is held to padding at the ends of a row; a note says so. A model may have been asked for with padding
    on the right alone.
    """
    if loaded.model.graph.metadata_props.get(PADDING_KEY) == "right":
        return ("none", "right")
    return tuple(kind for kind in PADDINGS if kind != "holes") if looks_through_windows(loaded.model) else PADDINGS


def trust_right_padding(loaded: Loaded, target: Target) -> None:
    """Promise in the graph that rows are padded on the right alone.

    Raises:
        InputError: nothing would be gained by it.
    """
    if target.provider != "cuda" or Cache.of(loaded.signature) is not None or mask_of(loaded.signature) is None:
        raise InputError(
            "only an encoder with a mask, on CUDA, gains from knowing that padding is on the right",
            where=f"{loaded.name} for {target.provider}",
            hint="drop --padding",
        )
    loaded.model.graph.metadata_props[PADDING_KEY] = "right"
    loaded.notes.append("made for padding on the right alone: rows padded on the left or in between get wrong answers")


def looks_through_windows(model: ir.Model) -> bool:
    """Tell whether columns count, padding among them: in a window, or in a bias by distance."""
    if COLUMNS_KEY in model.graph.metadata_props:
        return True
    for node in model.graph:
        if is_op(node, "GroupQueryAttention", domain=CONTRIB) and (attribute(node, "local_window_size") or 0) > 0:
            return True
        if is_op(node, "Attention") and len(node.inputs) > 4 and node.inputs[3] is not None:
            meaning = meaning_of_mask(model, node.inputs[3])
            if isinstance(meaning, MaskMeaning) and (meaning.window or meaning.columns):
                return True
    return False


def generated(loaded: Loaded) -> list[Observation]:
    """Make inputs as generating text makes them, for kernels that take no others; the long one only if it fits."""
    observations = []
    for index, (batch, length, past, kind) in enumerate(GENERATED):
        padding = kind if kind in paddings_of(loaded) else "right"
        sizes = complete_all({"batch": batch, SEQUENCE: length, PAST: past}, loaded.signature.axes, index)
        try:
            observations.append(Observation(sizes, loaded.feeder.make(sizes, padding, seed=index)))
        except InputError:
            if index < len(GENERATED) - 1:
                raise
    return observations
