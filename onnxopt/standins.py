"""Stand in for activations where only their places matter.

Two regions that only move values (transposes, reshapes, slices) are equal for every input if they are for one whose
values all differ: there is no need to run the model for the real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.graph import STANDARD_DOMAINS, Region, known_dims
from onnxopt.model import Array
from onnxopt.observe import size_of

MOVING = (  # none of them looks at a float
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Pad",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def movable(pairs: Iterable[tuple[Region, Region]]) -> set[ir.Value]:
    """Return the inputs of regions that may be anything of their size: floats that are moved by all who read them.

    Args:
        pairs: regions and their replacements.
    """
    free: set[ir.Value] = set()
    bound: set[ir.Value] = set()
    for old, new in pairs:
        moving = all(_moves(node) for part in (old, new) for node in part.nodes)
        for part in (old, new):
            for value in part.inputs:
                (free if moving and value.dtype in FLOATS and known_dims(value) is not None else bound).add(value)
    return free - bound


def stand_ins(values: Iterable[ir.Value], sizes: Mapping[str, int]) -> dict[ir.Value, Array]:
    """Make arrays for values at one size, in which hardly any two numbers are equal.

    Args:
        values: floats with known dimensions.
        sizes: of each axis.

    Raises:
        ValueError: a dimension is none of an axis.
        KeyError: likewise.
    """
    generator = np.random.default_rng(0)
    made: dict[ir.Value, Array] = {}
    for value in values:
        shape = tuple(size_of(dim, sizes) for dim in known_dims(value) or ())
        assert value.dtype is not None  # noqa: S101 - floats only
        made[value] = np.asarray(generator.standard_normal(shape, np.float32), value.dtype.numpy())
    return made


def _moves(node: ir.Node) -> bool:
    if node.domain not in STANDARD_DOMAINS:
        return False
    if node.op_type == "Cast":
        before, after = node.inputs[0], node.outputs[0]
        return before is not None and before.dtype is not None and before.dtype == after.dtype
    return node.op_type in MOVING
