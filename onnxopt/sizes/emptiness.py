"""Tell whether an axis of an inner value may be empty, at sizes at which no axis of an input is.

A Reshape cannot infer a size beside an empty one, and kernels refuse what has no rows. Where an axis of an input is
empty, the finished graph is tried and what it does not answer is said (`onnxopt.proof.empties`); but what a graph cuts
out of its inputs may be empty at any size, and there it must answer as it did. A past is empty before the first token,
so its axis is not among those that are left to be tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import onnx_ir as ir

from onnxopt.graph import dims, is_op
from onnxopt.graph.cache import PAST
from onnxopt.sizes.check import axes_in, same_everywhere
from onnxopt.sizes.derive import FACT_KEY
from onnxopt.sizes.facts import Fact
from onnxopt.sizes.terms import Poly, Size, at_least, largest
from onnxopt.spec import AxisRange

RANGES_KEY = "onnxopt.ranges"  # in a graph's meta: sizes of its axes at which the model runs
SOME_KEY = "onnxopt.sizes_of_some"  # in a graph's meta: sizes that are 1 or more wherever the graph runs
# A window that is larger than what it slides over is an error there, also where there are no rows; a pool of the same
# window gives nothing (onnxruntime 1.32.0).
_GIVE_SOME = ("Conv", "ConvTranspose")


def note_ranges(graph: ir.Graph, ranges: Mapping[str, AxisRange]) -> None:
    """Let the passes over a graph know at which sizes of its axes the model runs, and which of its sizes are not 0.

    Args:
        graph: with what is derived of its sizes.
        ranges: of its axes.
    """
    graph.meta[RANGES_KEY] = dict(ranges)
    given = (node.outputs[0] for node in graph if is_op(node, *_GIVE_SOME) and node.outputs[0].uses())
    facts = (value.meta.get(FACT_KEY) for value in given)
    places = (fact.dims[2:] for fact in facts if isinstance(fact, Fact) and fact.dims is not None)
    graph.meta[SOME_KEY] = frozenset(size for sizes in places for size in sizes)


def may_be_empty(model: ir.Model, value: ir.Value | None, axis: int) -> bool:
    """Tell whether an axis of a value may be empty while no axis of an input is, but for that of a past.

    Args:
        model: it lies in.
        value: of the main graph.
        axis: counted from the front, or from the back where it is negative.

    Returns:
        True also where the size is not known.
    """
    size = _size_of(value, axis)
    if size is None:
        shape = dims(value) or ()
        said = shape[axis] if -len(shape) <= axis < len(shape) else None
        return said in (None, 0, PAST)  # another name is that of an input's axis, written by a pass
    if not isinstance(size, Poly):
        return size < 1
    if size in model.graph.meta.get(SOME_KEY, ()):
        return False
    ranges: Mapping[str, AxisRange] = model.graph.meta.get(RANGES_KEY, {})
    known = [(name, ranges.get(name, AxisRange(least=0))) for name in sorted(axes_in(size))]
    least = {name: max(0 if name == PAST else 1, found.least) for name, found in known}
    return not _never_zero(size, tuple((name, replace(found, least=least[name])) for name, found in known))


def shape_may_be_empty(model: ir.Model, value: ir.Value | None) -> bool:
    """Tell whether a value may have no entries while no axis of an input is empty; True where its rank is unknown."""
    shape = dims(value)
    return shape is None or any(may_be_empty(model, value, axis) for axis in range(len(shape)))


def _size_of(value: ir.Value | None, axis: int) -> Size | None:
    fact = value.meta.get(FACT_KEY) if value is not None else None
    sizes = fact.dims if isinstance(fact, Fact) and fact.dims is not None else ()
    return sizes[axis] if -len(sizes) <= axis < len(sizes) else None


@lru_cache(maxsize=4096)  # the layers of a network have few sizes between them
def _never_zero(size: Poly, ranges: tuple[tuple[str, AxisRange], ...]) -> bool:
    """Tell whether a size is 1 or more wherever the axes are in their ranges."""
    return at_least(size, 1) or same_everywhere(largest(size, 1), size, dict(ranges)) > 0
