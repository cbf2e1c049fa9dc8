"""Prove that an exported file follows its named axes: run it at many sizes against the model it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.errors import ExportError
from onnxopt.graph.cache import PAST, SEQUENCE, complete, complete_all
from onnxopt.graph.kept_rows import rows_that_matter
from onnxopt.load.export.images import SIDES
from onnxopt.load.export.references import read_graph
from onnxopt.load.loaded import Feeder, Reference
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner, ShapeRunner
from onnxopt.records.events import Step
from onnxopt.spec import SOUND_AXES, AxisRange, Feeds, Padding, Signature
from onnxopt.tasks.task import IMAGE_BATCH

PROOF_SIZES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 5),
    "sequence": (1, 8, 33, 128),
    IMAGE_BATCH: (1, 3),
}
PROOF_STEPS = ((1, 0), (33, 0), (128, 0), (8, 5), (1, 33))  # new tokens and seen ones, with a cache
PROOF_BATCHES = ((2, 1), (2, 4), (5, 3), (5, 0), (5, 1))  # batch, and which of these; the long one alone is enough
# Of a large model, whose weights are read anew for every run, each size of each axis is proved in one combination.
FEW_PAIRS = ((2, 1), (2, 3), (5, 4), (1, 0), (1, 2))  # batch, and which of the steps; the largest last
# Torch and ONNX Runtime add in different orders; over 12 layers of float32 the worst seen is below 1e-5.
TOLERANCE = 1e-4
FEW_BATCH = 2  # rows, of which one is padded
SOUND_TIMES = 10  # as long as the sound that was traced: the longest that is proved
IMAGE_STEPS = (1, 2, 4, 8, 16, 32, 64)  # what the sides of an image must be multiples of, the first that holds
_PADDINGS: tuple[Padding, ...] = ("right", "left", "holes", "none")
_FAILED_NODE = re.compile(r"running (\w+) node\. Name:'([^']*)'")


def axis_sizes(
    signature: Signature,
    example: Mapping[str, int],
    longest: int,
    *,
    few: bool = False,
    least: Mapping[str, int] | None = None,
) -> list[dict[str, int]]:
    """Return the combinations of sizes to prove.

    Args:
        signature: names the axes.
        example: the sizes that the export was traced with; axes of an image are proved at these and twice these.
        longest: the longest sequence the model takes, or 0.
        few: of texts, each size of each axis once, instead of every combination of them.
        least: the shortest sound that the model answers, by open axis.
    """
    if PAST in signature.axes:
        top = longest or max(new + past for new, past in PROOF_STEPS)
        steps = [(min(new, top - min(past, top - 1)), past) for new, past in PROOF_STEPS]
        steps = [(new, min(past, top - new)) for new, past in steps]
        pairs = [] if few else [(1, step) for step in dict.fromkeys(steps)]
        pairs += [(batch, steps[index]) for batch, index in (FEW_PAIRS if few else PROOF_BATCHES)]
        return [
            complete_all({"batch": batch, SEQUENCE: new, PAST: past}, signature.axes, index)
            for index, (batch, (new, past)) in enumerate(dict.fromkeys(pairs))
        ]
    if set(SIDES) & set(signature.axes):
        return _image_sizes(signature, example)
    if set(SOUND_AXES) & set(signature.axes):
        return _sound_sizes(signature, example, least or {})
    choices: list[list[int]] = []
    free = [axis for axis in signature.axes if axis != IMAGE_BATCH]
    for axis in free:
        sizes = PROOF_SIZES.get(axis, (example[axis], 2 * example[axis]))
        top = longest if axis == "sequence" and longest else max(sizes)
        choices.append(sorted({min(size, top) for size in sizes}))
    if few:  # an axis of fewer sizes begins anew
        turns = range(max((len(sizes) for sizes in choices), default=0))
        combinations = [tuple(sizes[turn % len(sizes)] for sizes in choices) for turn in turns]
    else:
        combinations = list(product(*choices))
    found = [dict(zip(free, combination, strict=True)) for combination in combinations]
    if IMAGE_BATCH not in signature.axes:
        return found
    pictures = PROOF_SIZES[IMAGE_BATCH]  # they cost most, and no text hangs on how many there are: they take turns
    return [one | {IMAGE_BATCH: pictures[index % len(pictures)]} for index, one in enumerate(found)]


def _image_sizes(signature: Signature, example: Mapping[str, int]) -> list[dict[str, int]]:
    """Return sizes of images, each axis on its own and all together: every combination takes minutes to compare."""
    once = {axis: example[axis] for axis in signature.axes} | {"batch": 1}
    sides = [axis for axis in signature.axes if axis in SIDES]
    wide = [once | {axis: 2 * example[axis]} for axis in sides]
    more = [once | {"batch": batch} for batch in PROOF_SIZES["batch"][1:]]
    together = once | {"batch": PROOF_SIZES["batch"][1]} | {axis: 2 * example[axis] for axis in sides}
    return [once, *wide, *more, together]


def _sound_sizes(signature: Signature, example: Mapping[str, int], least: Mapping[str, int]) -> list[dict[str, int]]:
    """Return lengths of sounds, from ten times what was traced to the least, alone and in batches.

    The first is what later stages take for a usual sound.
    """
    once = {axis: example[axis] for axis in signature.axes} | {"batch": 1}
    axis = next(axis for axis in signature.axes if axis in SOUND_AXES)
    usual, shortest = example[axis], least.get(axis, example[axis])
    _, two, five = PROOF_SIZES["batch"]
    alone = [SOUND_TIMES * usual + 2, usual, usual + 1, 2 * usual, shortest]
    rows = [(two, shortest), (two, usual), (five, 2 * usual + 1), (five, shortest + 1), (two, SOUND_TIMES * usual)]
    return [*(once | {axis: size} for size in alone), *(once | {"batch": row, axis: size} for row, size in rows)]


def prove_axes(
    path: Path,
    signature: Signature,
    reference: Reference,
    feeder: Feeder,
    *,
    example: Mapping[str, int],
    longest: int = 0,
    least: Mapping[str, int] | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, int], ...]:
    """Run the file at every combination of sizes, with every kind of padding, and compare with the reference.

    Args:
        path: the exported file; run with the runtime's optimisations off.
        signature: its inputs and outputs.
        reference: the model it came from.
        feeder: makes the inputs.
        example: the sizes that the export was traced with.
        longest: the longest sequence the model takes, or 0.
        least: the shortest sound that the model answers, by open axis.
        folder: of the checkpoint in whose files large weights lie; then the combinations are few.
        say: told each size that is tried.

    Returns:
        The sizes that were proved.

    Raises:
        ExportError: names the axis that is frozen, and the node, or the output that differs at any size.
    """
    model = read_graph(path, folder)
    proof = _Proof(model, _opened(model), signature, reference, feeder)
    few = folder is not None
    combinations = axis_sizes(signature, example, longest, few=few, least=least)
    work = f"proving the axes {', '.join(signature.axes)} against torch, size"
    for index, sizes in reversed(list(enumerate(combinations))):  # the largest first: it tells how large outputs are
        say(Step.piece(work, len(combinations) - index, len(combinations)))
        reason = proof.compare(feeder.make(sizes, _padding(sizes, index, few=few)))
        if reason:
            raise proof.explain(example, sizes, reason)
    return tuple(combinations)


def learn_ranges(
    path: Path,
    signature: Signature,
    reference: Reference,
    feeder: Feeder,
    *,
    example: Mapping[str, int],
    folder: Path | None = None,
) -> dict[str, AxisRange]:
    """Find the sizes of the sides of an image, and of a sound, at which the file gives what the reference gives.

    A network that halves its image five times takes none of 17 pixels, and one with windows takes multiples of them.
    One whose convolutions look at 400 samples together takes no shorter sound.

    Args:
        path: the exported file, proved at the sizes it was traced with and at twice these.
        signature: its inputs and outputs.
        reference: the model it came from.
        feeder: makes the inputs.
        example: the sizes that the export was traced with.
        folder: of the checkpoint in whose files large weights lie.

    Returns:
        A range for each axis that holds no rows, tokens or positions.
    """
    sides = [axis for axis in signature.axes if axis in (*SIDES, *SOUND_AXES)]
    if not sides:
        return {}
    model = read_graph(path, folder)
    proof = _Proof(model, _opened(model), signature, reference, feeder)

    def agrees(axis: str, size: int) -> bool:
        try:
            return not proof.compare(feeder.make({**example, "batch": 1, axis: size}))
        except Exception:  # noqa: BLE001  whatever a model raises, it says no
            return False

    found: dict[str, AxisRange] = {}
    for axis in sides:
        # the other side of an image mostly takes the same sizes, which three runs show
        at = partial(agrees, axis)
        known = next((other for other in found.values() if _holds(other, at)), None)
        found[axis] = known or _range_of(at, example[axis])
    return found


def range_notes(ranges: Mapping[str, AxisRange]) -> list[str]:
    """Return a sentence for each axis that cannot be asked at every size."""
    notes = []
    for axis, known in ranges.items():
        sizes = f"multiples of {known.step}" if known.step > 1 else "sizes"
        if known.step > 1 or known.least > 1:
            notes.append(f"axis '{axis}' answers as torch does at {sizes} from {known.least} on only")
    return notes


def _holds(known: AxisRange, agrees: Callable[[int], bool]) -> bool:
    """Tell whether a range that was found for one axis is that of another: its first two sizes run, none before."""
    below = known.least - known.step
    return agrees(known.least) and agrees(known.least + known.step) and (below < 1 or not agrees(below))


def _range_of(agrees: Callable[[int], bool], base: int) -> AxisRange:
    """Return the step and the least size of an axis, by halving from a size that is known to run."""
    steps = (step for step in IMAGE_STEPS if base % step == 0)
    step = next((step for step in steps if agrees(base + step) and agrees(base + 3 * step)), base)
    good, bad = base, 0
    while good - bad > step:
        middle = (good + bad) // 2 // step * step
        if middle in (good, bad):
            break
        good, bad = (middle, bad) if agrees(middle) else (good, middle)
    return AxisRange(good, step)


@dataclass(frozen=True)
class _Proof:
    """One exported file, opened, beside what it must be equal to."""

    model: ir.Model
    runner: GraphRunner
    signature: Signature
    reference: Reference
    feeder: Feeder
    scales: dict[str, float] = field(default_factory=dict)

    def compare(self, feeds: Feeds) -> str:
        """Return why the file differs from the reference on these inputs, or an empty string.

        Errors are relative to the largest value that an output has had so far: a lone logit near zero is no measure.
        """
        try:
            found = self.runner.run(feeds)[0]
        except ProbeError as error:  # before the reference runs, which takes longer, on a large image most of all
            return " ".join(str(error.__cause__ or error).split())  # the runtime's own words name the node
        expected = self.reference.run(feeds)
        for spec in self.signature.outputs:
            left, right = found[spec.name], expected[spec.name]
            if left.shape != right.shape:
                return f"output {spec.name} has shape {list(left.shape)}, torch gives {list(right.shape)}"
            rows = rows_that_matter(self.signature, feeds, spec.name, right)
            if rows is not None:
                left, right = left[rows], right[rows]  # what stands at padded positions is nobody's answer
            scale = max(self.scales.get(spec.name, 0.0), float(np.max(np.abs(right), initial=0.0)))
            self.scales[spec.name] = scale
            worst = float(np.max(np.abs(left - right), initial=0.0)) / (scale or 1.0)
            if not worst <= TOLERANCE:
                return f"output {spec.name} differs from torch by {worst:.2g} relative, limit {TOLERANCE:g}"
        return ""

    def explain(self, example: Mapping[str, int], sizes: Mapping[str, int], reason: str) -> ExportError:
        """Change one axis at a time from the traced sizes; name the axis that breaks the file and the node that froze.

        Args:
            example: the sizes that the export was traced with.
            sizes: where it failed.
            reason: how it failed there.
        """
        start = self.compare(self.feeder.make(example))
        if start:
            return ExportError(f"the exported file is wrong even at the sizes it was traced with: {start}")
        for axis, traced in example.items():
            changed = complete({**example, axis: sizes[axis] if sizes[axis] != traced else traced + 1})
            alone = self.compare(self.feeder.make(changed))
            if alone:
                node = _failed_node(alone) or self.frozen_node(axis, example, changed)
                return ExportError(
                    f"axis {axis!r} is frozen{node}: at {axis} {changed[axis]} (traced with {traced}): {alone}",
                    hint="the model computes this size while it is traced; try the other exporter",
                )
        shown = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        return ExportError(f"the exported file is wrong at {shown}{_failed_node(reason)}: {reason}")

    def frozen_node(self, axis: str, example: Mapping[str, int], changed: Mapping[str, int]) -> str:
        """Return, as a phrase, the first node that takes what grows with the axis and gives the traced size."""
        nodes = [node for node in self.model.graph if node.op_type not in ("Shape", "Size", "Constant")]
        runner = ShapeRunner(self.model, [value for node in nodes for value in node.outputs if value.name])
        feeds = [self.feeder.make(sizes) for sizes in (example, changed)]
        inputs = {value: [one[value.name or ""].shape for one in feeds] for value in self.model.graph.inputs}
        try:
            found = [runner.run(one)[0] for one in feeds]
        except ProbeError:
            return ""
        shapes = inputs | {value: [one[value] for one in found] for value in found[0]}
        for node in nodes:
            takes = any(value in shapes and shapes[value][0] != shapes[value][1] for value in node.inputs if value)
            gives = [shapes[value] for value in node.outputs if value in shapes]
            if takes and any(before == after and example[axis] in before for before, after in gives):
                return f" at {node.op_type} node {node.name!r}"
        return ""


def _padding(sizes: Mapping[str, int], index: int, *, few: bool) -> Padding:
    """Return a kind of padding: the kinds take turns, rows alone in a batch have none.

    Where there are few batches, the rows of one have other kinds than those of the next.
    """
    batch = sizes.get("batch", 1)
    if batch == 1:
        return "none"
    kinds = _PADDINGS if not few else ("mixed",) if batch > FEW_BATCH else ("right", "holes")
    return kinds[index % len(kinds)]


def _opened(model: ir.Model) -> GraphRunner:
    """Open a model with the runtime's optimisations off, since those could hide what the file says."""
    try:
        return GraphRunner(model, turned=True)
    except ProbeError as error:
        raise ExportError(f"ONNX Runtime does not open the exported file: {error}") from error


def _failed_node(reason: str) -> str:
    """Return the node that the runtime blames, as a phrase."""
    found = _FAILED_NODE.search(reason)
    return f" at {found.group(1)} node {found.group(2)!r}" if found else ""
