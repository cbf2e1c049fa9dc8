"""Try what a finished graph answers where an axis is empty, and say from which size on it may be asked.

A service that sends an empty batch on a quiet day gets from most graphs an empty answer. Kernels that the passes choose
may refuse it, and a Reshape that infers a size cannot divide by nothing. Nothing is rewritten less for that; it is
tried, and where the result does not answer as the original does, sizes from 1 on are what the artifact promises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

from onnxopt.cache import PAST, SEQUENCE, TOTAL, Cache, complete_all
from onnxopt.errors import InputError
from onnxopt.graph import worst_error
from onnxopt.manifest import ProofRecord
from onnxopt.model import Array, Feeds, Loaded
from onnxopt.probe import ProbeError

logger = logging.getLogger(__name__)

# Without rows (GRU: without steps as well) these end the whole process instead of raising (onnxruntime 1.32.0).
ENDS_THE_PROCESS = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM"})
USUAL = {"batch": 2, SEQUENCE: 7, PAST: 3}


def tried_empty(
    run: Callable[[Feeds], Feeds], loaded: Loaded, relative_error: float
) -> tuple[list[ProofRecord], list[str]]:
    """Run original and result with each axis empty in turn.

    Args:
        run: the result.
        loaded: the reference, and what is known of the axes.
        relative_error: how far an output may be off.

    Returns:
        A record for each output of the cases that are answered alike, and a note on each axis of which they are not;
        neither where kernels of the graph do not survive such a case.
    """
    records: list[ProofRecord] = []
    notes: list[str] = []
    called = (function.all_nodes() for function in loaded.model.functions.values())
    every = chain(loaded.model.graph.all_nodes(), *called)
    cells = next((node.op_type for node in every if node.op_type in ENDS_THE_PROCESS), "")
    for axis, sizes in _cases(loaded):
        if cells:
            shown = loaded.names.get(axis, axis)
            notes.append(f"axis '{shown}' may be asked from 1 on: 0 is not tried, since {cells} ends the process there")
            continue
        try:
            feeds = loaded.feeder.make(sizes, "none", seed=0)
            expected = loaded.reference.run(feeds)
        except (InputError, ProbeError, ArithmeticError, IndexError, RuntimeError, ValueError) as error:
            logger.debug("the original does not run where %s is 0: %s", axis, error)
            continue
        found = _answer(run, feeds)
        errors = {name: _error(found.get(name), answer) for name, answer in expected.items()}
        if all(error <= relative_error for error in errors.values()):
            records += [
                ProofRecord(
                    sizes=sizes, padding="none", output=name, worst_relative_error=error, worst_absolute_error=error
                )
                for name, error in errors.items()
            ]
        else:
            shown = loaded.names.get(axis, axis)
            notes.append(f"axis '{shown}' may be asked from 1 on: where it is 0, the original answers otherwise")
    return records, notes


def _cases(loaded: Loaded) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield each axis that may be empty, with sizes; a step of a decoder reads one position at least."""
    axes = loaded.signature.axes
    cached = Cache.of(loaded.signature) is not None
    for axis in axes:
        known = loaded.ranges.get(axis)
        starts_later = known is not None and known.least > 1
        if starts_later or axis in (PAST, TOTAL) or (cached and axis == SEQUENCE):
            continue
        usual = {one: USUAL.get(one, loaded.usual(one, USUAL[SEQUENCE])) for one in axes}
        tied = next((group for group in loaded.tied if axis in group), (axis,))
        yield axis, complete_all({**loaded.runnable(usual), **dict.fromkeys(tied, 0)}, axes, 0)


def _answer(run: Callable[[Feeds], Feeds], feeds: Feeds) -> Mapping[str, Array]:
    try:
        return run(feeds)
    except (InputError, ProbeError) as error:
        logger.debug("the result does not run: %s", error)
        return {}


def _error(found: Array | None, expected: Array) -> float:
    """Return the worst relative error of an output, infinity where its shape or type differs."""
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    return worst_error(found, expected)[0] if expected.dtype.kind in "fiub" else float((found != expected).any())
