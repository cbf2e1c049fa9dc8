"""The nodes that spell sizes out: each knows the ids behind them, and writes the sizes that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.graph.nodes import attribute, is_op
from onnxopt.graph.values import constant_value, dims, integers

Ids = npt.NDArray[np.int64]
Dead = npt.NDArray[np.bool_]
Left = Callable[[Ids], int]
Edit = Callable[[Left], None]


def follow(edit: Edit, label: Ids) -> Callable[[Dead], None]:
    """Return an edit that counts what is not dead, by the class of each id."""

    def apply(dead: Dead) -> None:
        edit(lambda ids: int((~dead[label[ids]]).sum()))

    return apply


def static(value: ir.Value | None) -> tuple[int | None, ...]:
    """Return the sizes of a value, None where they vary; an empty tuple for an unknown rank."""
    return tuple(dim if isinstance(dim, int) else None for dim in dims(value) or ())


@dataclass(frozen=True)
class GroupSize:
    """The groups of a depthwise convolution: one per channel."""

    node: ir.Node
    ids: Ids

    def __call__(self, left: Left) -> None:
        """Write the sizes that are left."""
        self.node.attributes["group"] = ir.AttrInt64("group", left(self.ids))


@dataclass(frozen=True)
class HeadCounts:
    """The counts of heads in the attributes of a node."""

    node: ir.Node
    ids: dict[str, Ids]
    first: int
    second: int

    def __call__(self, left: Left) -> None:
        """Write the sizes that are left."""
        for (name, ids), heads in zip(self.ids.items(), (self.first, self.second), strict=False):
            self.node.attributes[name] = ir.AttrInt64(name, left(ids) * heads // len(ids))


@dataclass(frozen=True)
class SplitSizes:
    """The widths of the parts of a Split."""

    model: ir.Model
    node: ir.Node
    parts: list[Ids]

    def __call__(self, left: Left) -> None:
        """Write the sizes that are left."""
        sizes = [left(part) for part in self.parts]
        if sizes == [len(part) for part in self.parts]:
            return
        value = _ints(self.model, self.node, sizes)
        if len(self.node.inputs) < 2:
            self.node.resize_inputs(2)
        self.node.replace_input_with(1, value)
        self.node.attributes.pop("num_outputs", None)


@dataclass(frozen=True)
class ShapeSizes:
    """The dimensions that a Reshape spells out."""

    model: ir.Model
    node: ir.Node
    axes: dict[int, Ids]

    def __call__(self, left: Left) -> None:
        """Write the sizes that are left."""
        for axis, ids in self.axes.items():
            size = left(ids)
            if size == len(ids):
                continue
            found = spelling(self.node, axis)
            if found is None:
                raise ValueError(f"{self.node.name} does not spell axis {axis} out")
            owner, index, place = found
            known = list(integers(owner.inputs[index]) or ())
            if known[place] in (-1, size):
                continue
            known[place] = size
            owner.replace_input_with(index, _ints(self.model, self.node, known))


def spelling(node: ir.Node, axis: int) -> tuple[ir.Node, int, int] | None:
    """Return who holds the constant that says how long an axis of a Reshape is: a node, its input, the place in it."""
    shape = node.inputs[1]
    known = integers(shape)
    if known is not None:
        return (node, 1, axis) if known[axis] != 0 or not attribute(node, "allowzero") else None
    maker = shape.producer() if shape is not None else None
    if maker is None or not is_op(maker, "Concat") or shape is None or len(shape.uses()) == 0:
        return None
    start = 0
    for index, part in enumerate(maker.inputs):
        length = static(part)
        if len(length) != 1 or length[0] is None:
            return None
        if start <= axis < start + length[0]:
            return (maker, index, axis - start) if integers(part) is not None else None
        start += length[0]
    return None


def _ints(model: ir.Model, node: ir.Node, values: Sequence[int]) -> ir.Value:
    array = np.array(values, np.int64)
    name = f"{node.outputs[0].name}/pruned_sizes"
    number = 0
    while name in model.graph.initializers:
        number += 1
        name = f"{node.outputs[0].name}/pruned_sizes_{number}"
    value = constant_value(ir.tensor(array, name=name), name)
    model.graph.register_initializer(value)
    return value
