"""Learn the dtype and the dimensions of every value by running the model at a few sizes.

Shape inference knows one exporter's spelling of a shape and not the next one's. A run knows all of them: a dimension
that
was 7, 11 and 13 when `sequence` was 7, 11 and 13 is `sequence`. All sizes are distinct primes, so a dimension can only
follow one axis, a product of two, an axis times or plus a constant; anything else stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import known_dims
from onnxopt.model import Array, Feeds
from onnxopt.probe import GraphRunner


@dataclass(frozen=True)
class Observation:
    """Inputs of one size.

    Attributes:
        sizes: the size of each dynamic axis.
        feeds: inputs of that size.
    """

    sizes: Mapping[str, int]
    feeds: Feeds


def annotate(model: ir.Model, observations: Sequence[Observation], *, everything: bool = False) -> int:
    """Set dtype and shape of the values that lack one; symbolic dimensions get the names of the axes.

    Args:
        model: its values get types and shapes; nothing else changes.
        observations: at least two sizes that differ in every axis.
        everything: also overwrite what is already known.

    Returns:
        How many values were set.

    Raises:
        ProbeError: the model does not run.
    """
    wanted = [
        value
        for node in model.graph
        for value in node.outputs
        if value.name
        and (everything or value.dtype is None or known_dims(value) is None)
        and not value.meta.get(_TRIED, False)
    ]
    if not wanted:
        return 0
    runner = GraphRunner(model, wanted)
    runs = [runner.run(observation.feeds)[1] for observation in observations]
    sizes = [observation.sizes for observation in observations]
    for value in wanted:
        arrays = [run[value] for run in runs]
        value.meta[_TRIED] = True
        if not all(isinstance(array, np.ndarray) for array in arrays):
            continue  # a sequence or an absent optional has no shape
        value.type = ir.TensorType(_dtype(arrays[0]))
        ranks = {array.ndim for array in arrays}
        if len(ranks) == 1:
            per_axis = zip(*(array.shape for array in arrays), strict=True)
            value.shape = ir.Shape([fit(tuple(seen), sizes) for seen in per_axis])
    return len(wanted)


_TRIED = "onnxopt.observed"


def _dtype(array: Array) -> ir.DataType:
    return ir.DataType.STRING if array.dtype.kind in "OUS" else ir.DataType.from_numpy(array.dtype)


def fit(seen: tuple[int, ...], sizes: Sequence[Mapping[str, int]]) -> int | str | None:
    """Name a dimension from its sizes in several runs.

    Args:
        seen: the dimension in each run.
        sizes: the axes in each run.

    Returns:
        A size, an axis name, `a*b`, `a*c`, `a + c`, or None.
    """
    axes = sorted(set.intersection(*(set(size) for size in sizes)))
    varying = [axis for axis in axes if len({size[axis] for size in sizes}) == len(sizes)]
    for axis in varying:
        if all(size[axis] == dim for size, dim in zip(sizes, seen, strict=True)):
            return axis
    if len(set(seen)) == 1:
        return seen[0]
    for i, first in enumerate(varying):
        for second in varying[i:]:
            if all(size[first] * size[second] == dim for size, dim in zip(sizes, seen, strict=True)):
                return f"{first}*{second}"
    for axis in varying:  # heads folded into the batch
        factors = {dim / size[axis] for size, dim in zip(sizes, seen, strict=True)}
        if len(factors) == 1 and (factor := factors.pop()) > 1 and factor.is_integer():
            return f"{axis}*{int(factor)}"
    for axis in varying:
        offsets = {dim - size[axis] for size, dim in zip(sizes, seen, strict=True)}
        if len(offsets) == 1:
            offset = offsets.pop()
            return f"{axis} {'+' if offset > 0 else '-'} {abs(offset)}"
    return None


def axes_of(dim: int | str | None) -> list[str]:
    """Return the axes that an expression of `fit` names."""
    if not isinstance(dim, str):
        return []
    return [
        part.strip() for part in dim.replace(" + ", "*").replace(" - ", "*").split("*") if not part.strip().isdigit()
    ]


def size_of(dim: int | str | None, sizes: Mapping[str, int]) -> int:
    """Evaluate an expression of `fit`: a size, `a`, `a*b`, `a*c`, `a + c` or `a - c`.

    Raises:
        ValueError: the dimension is unknown.
    """
    if isinstance(dim, int):
        return dim
    if dim is None:
        raise ValueError("an unknown dimension has no size")
    for sign, factor in ((" + ", 1), (" - ", -1)):
        if sign in dim:
            axis, offset = dim.split(sign)
            return sizes[axis] + factor * int(offset)
    product = 1
    for part in dim.split("*"):
        product *= int(part) if part.isdigit() else sizes[part]
    return product
