"""Which entries of which weights belong together: channels followed through a graph, so that all lose one at once.

Every axis of known size of every activation gets an id per entry. A weight that makes an axis gives fresh ids; what
passes an axis on passes its ids on, in the order it has them (Concat joins, Split parts, Reshape splits into heads);
where two activations meet entry by entry, their ids become one. A weight that reads an axis is held to its ids. What
mixes the entries of an axis (a norm, a softmax, an unknown operator, a graph output) locks them.

Entries that stay free may go, together with everything of the same id, once nothing that reads them needs them.

Source: dependency groups of modules are those of Fang et al. 2023 (DepGraph), arXiv:2301.12900; here they are found
entry by entry, on the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.graph.channels.sizes import Ids
from onnxopt.graph.values import constant_value
from onnxopt.graph.weight_files import tensor_of
from onnxopt.spec import Array

Kind = Literal["ffn", "heads", "channels"]


@dataclass(frozen=True)
class Slot:
    """One axis of one initializer, as one node uses it.

    Attributes:
        node: the user.
        index: which input of it.
        axis: of the initializer.
        ids: int64 [entries], one id each.
        role: `makes` the channels, `reads` them, or `rides` along (a bias, a gain).
    """

    node: ir.Node
    index: int
    axis: int
    ids: Ids
    role: Literal["makes", "reads", "rides"]

    @property
    def value(self) -> ir.Value:
        """The initializer."""
        found = self.node.inputs[self.index]
        if found is None:
            raise ValueError(f"{self.node.name} has lost input {self.index}")
        return found

    def rows(self) -> Array:
        """Return the data with the axis in front: [entries, anything]."""
        tensor = self.value.const_value
        array = np.moveaxis(tensor.numpy(), self.axis, 0) if tensor is not None else np.empty((0, 0))
        return array.reshape(len(array), -1)


@dataclass(frozen=True)
class Group:
    """Channels that the same weights make and read.

    Attributes:
        name: the reader's name, for reports.
        kind: `ffn` inside a block that gives back the width it takes, `heads` of an attention, or other `channels`.
        members: int64, the id of each member, in the order in which its reader has them.
        slots: all axes that hold entries of the members, and perhaps of others.
    """

    name: str
    kind: Kind
    members: Ids
    slots: tuple[Slot, ...]

    def readers(self) -> list[Slot]:
        """Return the axes that read the members."""
        return [slot for slot in self.slots if slot.role == "reads"]


@dataclass
class Channels:
    """All channels of a graph.

    Attributes:
        slots: every axis of every initializer that has ids; ids are those of classes.
        locked: bool [classes], what cannot go.
        heads: bool [classes], what is a head of an attention.
        sizes: nodes that spell a size out: where their dimensions come from.
    """

    slots: list[Slot]
    locked: npt.NDArray[np.bool_]
    heads: npt.NDArray[np.bool_]
    sizes: list[Callable[[npt.NDArray[np.bool_]], None]]

    def groups(self) -> list[Group]:
        """Return the free channels, those of the same weights together."""
        users: dict[int, list[int]] = {}
        for number, slot in enumerate(self.slots):
            for one in np.unique(slot.ids):
                if not self.locked[one]:
                    users.setdefault(int(one), []).append(number)
        alike: dict[tuple[int, ...], list[int]] = {}
        for one, numbers in users.items():
            roles = {self.slots[number].role for number in numbers}
            if {"makes", "reads"} <= roles:
                alike.setdefault(tuple(numbers), []).append(one)
        found = []
        for same, members in alike.items():
            slots = tuple(self.slots[number] for number in same)
            reader = next(slot for slot in slots if slot.role == "reads")
            ordered = list(dict.fromkeys(int(one) for one in reader.ids if int(one) in set(members)))
            name = reader.node.outputs[0].name or reader.value.name or ""
            found.append(Group(name, self._kind(slots, members), np.array(ordered, np.int64), slots))
        return [group for group in found if len(group.members) > 1]

    def _kind(self, slots: Sequence[Slot], members: Sequence[int]) -> Kind:
        if self.heads[np.array(members)].all():
            return "heads"
        makers = [slot for slot in slots if slot.role == "makes" and slot.node.op_type in ("MatMul", "Gemm")]
        readers = [slot for slot in slots if slot.role == "reads" and slot.node.op_type in ("MatMul", "Gemm")]
        widths = {_other(slot) for slot in makers if slot.value.shape is not None and len(slot.value.shape) == 2}
        widths |= {_other(slot) for slot in readers}
        return "ffn" if makers and len(readers) == 1 and len(widths) == 1 else "channels"

    def remove(self, model: ir.Model, gone: Ids) -> int:
        """Take channels out of every weight, and let every node that spells a size out follow.

        Args:
            model: the graph that `find_channels` looked at.
            gone: int64, ids.

        Returns:
            How many weights became smaller.
        """
        dead = np.zeros(len(self.locked), bool)
        dead[gone] = True
        uses: dict[tuple[ir.Node, int], dict[int, npt.NDArray[np.bool_]]] = {}
        for slot in self.slots:
            kept = ~dead[slot.ids]
            if not kept.all():
                uses.setdefault((slot.node, slot.index), {})[slot.axis] = kept
        made: dict[tuple[ir.Value, bytes], ir.Value] = {}
        for (node, index), axes in uses.items():
            value = node.inputs[index]
            if value is None:
                continue
            key = value, b"".join(bytes([axis]) + kept.tobytes() for axis, kept in sorted(axes.items()))
            if key not in made:
                made[key] = _smaller(model, value, axes, len(made))
            node.replace_input_with(index, made[key])
        for value, _ in made:
            if not value.uses() and not value.is_graph_output() and value.name is not None:
                model.graph.initializers.pop(value.name, None)
        for edit in self.sizes:
            edit(dead)
        return len(made)


def _other(slot: Slot) -> int:
    shape = slot.value.shape
    if shape is None or len(shape) != 2:
        return -1
    return int(shape[1 - slot.axis])  # type: ignore[arg-type]  # a weight has no symbolic dimension


def _smaller(model: ir.Model, value: ir.Value, axes: dict[int, npt.NDArray[np.bool_]], number: int) -> ir.Value:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name} is not a constant")
    array = tensor.numpy()
    for axis, kept in axes.items():
        array = np.compress(kept, array, axis=axis)
    name = f"{value.name}/pruned_{number}"
    fresh = constant_value(tensor_of(array, name), name)
    model.graph.register_initializer(fresh)
    return fresh
