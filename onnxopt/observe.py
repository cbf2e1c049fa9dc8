"""Learn the dtype and the dimensions of every value by running the model at a few sizes.

Shape inference knows one exporter's spelling of a shape and not the next one's. A run knows all of them: a dimension
that was 7, 11 and 13 when `sequence` was 7, 11 and 13 is `sequence`. All sizes are distinct primes, so a dimension can
only follow one axis, a product of two, an axis times or plus a constant; anything else stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import is_op, known_dims, tensor_shape
from onnxopt.model import Array, Feeds
from onnxopt.probe import ShapeRunner, release_memory, release_pages


@dataclass(frozen=True)
class Observation:
    """Inputs of one size.

    Attributes:
        sizes: the size of each dynamic axis.
        feeds: inputs of that size.
    """

    sizes: Mapping[str, int]
    feeds: Feeds


Measured = tuple[Mapping[ir.Value, ir.DataType], Sequence[Mapping[ir.Value, tuple[int, ...]]]]


def measure(model: ir.Model, observations: Sequence[Observation], values: Sequence[ir.Value]) -> Measured:
    """Run a model and return the types of values, and their shapes at each observation.

    Raises:
        ProbeError: the model does not run.
    """
    runner = ShapeRunner(model, values)
    return runner.dtypes, [runner.run(observation.feeds)[0] for observation in observations]


Measure = Callable[[ir.Model, Sequence[Observation], Sequence[ir.Value]], Measured]


def annotate(
    model: ir.Model,
    observations: Sequence[Observation],
    *,
    everything: bool = False,
    measure: Measure = measure,
) -> int:
    """Set dtype and shape of the values that lack one; symbolic dimensions get the names of the axes.

    Args:
        model: its values get types and shapes; nothing else changes.
        observations: at least two sizes that differ in every axis.
        everything: also overwrite what is already known.
        measure: runs the model.

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
    for value in wanted:
        value.meta[_TRIED] = True
    measured = [value for value in wanted if not _read_off(value)]
    if not measured:
        return len(wanted)
    dtypes, runs = measure(model, observations, measured)
    release_pages(value.const_value for value in model.graph.initializers.values())
    release_memory()
    sizes = [observation.sizes for observation in observations]
    for value, dtype in dtypes.items():
        describe(value, dtype, [run[value] for run in runs], sizes)
    return len(wanted)


_TRIED = "onnxopt.observed"


def forget_shape(value: ir.Value) -> None:
    """Drop the shape of a value that has another size now; the next `annotate` looks at it again."""
    value.shape = None
    value.meta.pop(_TRIED, None)


def _read_off(value: ir.Value) -> bool:
    """Describe the output of a Constant by its tensor."""
    tensor = ir.convenience.get_const_tensor(value) if is_op(value.producer(), "Constant") else None
    if tensor is not None:
        value.type, value.shape = ir.TensorType(tensor.dtype), tensor_shape(tensor)
    return tensor is not None


def dtype_of(array: Array) -> ir.DataType:
    """Return the ONNX type of an array."""
    return ir.DataType.STRING if array.dtype.kind in "OUS" else ir.DataType.from_numpy(array.dtype)


def describe(
    value: ir.Value, dtype: ir.DataType, shapes: Sequence[tuple[int, ...]], sizes: Sequence[Mapping[str, int]]
) -> None:
    """Set dtype and shape of a value.

    Args:
        value: changed.
        dtype: of its tensor.
        shapes: that it had in several runs.
        sizes: the axes in each run.
    """
    value.type = ir.TensorType(dtype)
    if len({len(shape) for shape in shapes}) == 1:
        value.shape = ir.Shape([fit(tuple(seen), sizes) for seen in zip(*shapes, strict=True)])


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
        pairs = [(size[axis], dim) for size, dim in zip(sizes, seen, strict=True)]
        factors = {dim / size for size, dim in pairs if size} if all(size or not dim for size, dim in pairs) else set()
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
