"""Try what a finished graph answers where an axis is empty, and say from which size on it may be asked.

A service that sends an empty batch on a quiet day gets from most graphs an empty answer. Kernels that the passes choose
may refuse it, and a Reshape that infers a size cannot divide by nothing. Nothing is rewritten less for that; it is
tried, and where the result does not answer as the original does, sizes from 1 on are what the artifact promises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import chain

import onnx_ir as ir

from onnxopt.errors import ExportError, InputError
from onnxopt.graph import dims
from onnxopt.graph.cache import PAST, SEQUENCE, TOTAL, Cache, complete_all
from onnxopt.load.loaded import Loaded
from onnxopt.probe.program import ProbeError
from onnxopt.qmath.compare import worst_error
from onnxopt.records.rewrites import ProofRecord
from onnxopt.sizes.check import axes_in, hangs_on_data
from onnxopt.sizes.derive import FACT_KEY
from onnxopt.sizes.facts import Fact
from onnxopt.spec import Array, Feeds, tensors_of

logger = logging.getLogger(__name__)

# Without rows (GRU: without steps as well) these end the whole process instead of raising (onnxruntime 1.32.0), and one
# where nothing lies behind the channels; without rows that one answers.
ENDS_THE_PROCESS = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM"})
ENDS_WITHOUT_PLACES = "InstanceNormalization"
USUAL = {"batch": 2, SEQUENCE: 7, PAST: 3}
OTHERS = (1, 131, 0)  # sizes of the axes beside an empty one
MOST_TURNING = 12


def tried_empty(
    run: Callable[[Feeds], Feeds], loaded: Loaded, relative_error: float
) -> tuple[list[ProofRecord], list[str]]:
    """Run original and result with each axis empty in turn.

    Args:
        run: the result.
        loaded: the reference, and what is known of the axes.
        relative_error: how far an output may be off.

    Returns:
        A record for each output of an axis that is answered alike, at the usual sizes of the others, and a note on each
        axis that is not, or is not tried.
    """
    records: list[ProofRecord] = []
    notes: list[str] = []
    called = (function.all_nodes() for function in loaded.model.functions.values())
    every = list(chain(loaded.model.graph.all_nodes(), *called))
    inputs = loaded.model.graph.inputs
    endings = {
        axis: ending
        for axis in loaded.signature.axes
        if (ending := next((node.op_type for node in every if _ends_the_process(node, axis, inputs)), ""))
    }
    for axis in _may_be_empty(loaded):
        shown = loaded.names.get(axis, axis)
        ending = next((endings[one] for one in _with(loaded, axis) if one in endings), "")
        if ending:
            notes.append(
                f"axis '{shown}' may be asked from 1 on: 0 is not tried, since {ending} ends the process there"
            )
            continue
        cases = _cases(loaded, axis, never=endings)
        found = [compared for sizes in cases if (compared := _compared(run, loaded, sizes)) is not None]
        if all(record.worst_relative_error <= relative_error for records_of in found for record in records_of):
            records += found[0] if found else []  # of the others nothing is left to be counted
        else:
            notes.append(f"axis '{shown}' may be asked from 1 on: where it is 0, the original answers otherwise")
    return records, notes


def _ends_the_process(node: ir.Node, axis: str, inputs: Sequence[ir.Value]) -> bool:
    """Tell whether a kernel may end the process where an axis is empty; True where its sizes are not known."""
    if node.op_type != ENDS_WITHOUT_PLACES:
        return node.op_type in ENDS_THE_PROCESS
    x = node.inputs[0]
    if x in inputs and x is not None and x.shape is not None:
        return axis in (dims(x) or ())[2:]
    fact = x.meta.get(FACT_KEY) if x is not None else None
    if not isinstance(fact, Fact) or fact.dims is None:
        return True
    places = fact.dims[2:]
    return axis in axes_in(*places) or any(map(hangs_on_data, places))


def _may_be_empty(loaded: Loaded) -> list[str]:
    """Return the axes that are tried without entries; a step of a decoder reads one position at least."""
    cached = Cache.of(loaded.signature) is not None
    fixed = {PAST, TOTAL, *([SEQUENCE] if cached else [])}
    later = {axis for axis, known in loaded.ranges.items() if known.least > 1}
    return [axis for axis in loaded.signature.axes if axis not in fixed | later]


def _cases(loaded: Loaded, axis: str, never: Container[str]) -> Iterator[dict[str, int]]:
    """Yield sizes with one axis empty: the others as usual, then each at sizes of its own, where it is empty, too.

    Without entries they cost next to nothing, so each size at which something changes is among them.

    Args:
        loaded: what is known of the axes.
        axis: the empty one.
        never: axes that are not to be empty beside it.
    """
    axes = loaded.signature.axes
    usual = loaded.runnable({one: USUAL.get(one, loaded.usual(one, USUAL[SEQUENCE])) for one in axes})
    tied = _with(loaded, axis)
    empty = dict.fromkeys(tied, 0)
    yield complete_all({**usual, **empty}, axes, 0)
    for other in axes:
        if other in (*tied, TOTAL):
            continue
        turning = [size + step for size in loaded.turning.get(other, ()) for step in (0, 1)]
        for size in dict.fromkeys((*OTHERS, *turning[:MOST_TURNING])):
            if not size and other in never:
                continue
            moved = {**usual, other: loaded.range_of(other).fitted(size) if size else 0}
            yield complete_all({**moved, **empty}, axes, 0)


def _with(loaded: Loaded, axis: str) -> Sequence[str]:
    """Return the axes that have one size with an axis, itself included."""
    return next((group for group in loaded.tied if axis in group), (axis,))


def _compared(run: Callable[[Feeds], Feeds], loaded: Loaded, sizes: dict[str, int]) -> list[ProofRecord] | None:
    """Return a record for each output, None where the original itself does not run."""
    try:
        feeds = loaded.feeder.make(sizes, "none", seed=0)
        expected = tensors_of(loaded.reference.run(feeds))
    except (ExportError, InputError, ProbeError, ArithmeticError, IndexError, RuntimeError, ValueError) as error:
        logger.debug("the original does not run at %s: %s", sizes, error)
        return None
    found = _answer(run, feeds)
    declared = {spec.name: spec.axes for spec in loaded.signature.outputs if not spec.form}
    errors = {
        name: _error(found.get(name), answer)
        if name not in declared or _is_declared(declared[name], answer.shape, sizes)  # of a sequence nothing is
        else float("inf")
        for name, answer in expected.items()
    }
    return [
        ProofRecord(sizes=sizes, padding="none", output=name, worst_relative_error=error, worst_absolute_error=error)
        for name, error in errors.items()
    ]


def _is_declared(axes: Sequence[int | str], shape: Sequence[int], sizes: Mapping[str, int]) -> bool:
    """Tell whether an output has the sizes that are declared; they are derived for axes that are not empty."""
    if len(axes) != len(shape):
        return True  # of another rank nothing is declared
    known = [axis if isinstance(axis, int) else sizes.get(axis) for axis in axes]
    return all(said in (None, size) for said, size in zip(known, shape, strict=True))


def _answer(run: Callable[[Feeds], Feeds], feeds: Feeds) -> Mapping[str, Array]:
    try:
        return tensors_of(run(feeds))
    except (InputError, ProbeError) as error:
        logger.debug("the result does not run: %s", error)
        return {}


def _error(found: Array | None, expected: Array) -> float:
    """Return the worst relative error of an output, infinity where its shape or type differs."""
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    return worst_error(found, expected)[0] if expected.dtype.kind in "fiub" else float((found != expected).any())
