"""What is known of the entries of each axis while a graph is walked: ids, which belong together, which must stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.graph.channels.groups import Slot
from onnxopt.graph.channels.sizes import Edit, Ids, static

Axes = dict[int, Ids]  # by axis, counted from 0: the ids of its entries


@dataclass
class Entries:
    """Ids of entries, and what has been found out about them.

    Attributes:
        model: the graph.
        axes: ids by value and axis.
        slots: axes of weights that belong to ids.
        count: ids given so far.
        pairs: ids that live and go together.
        locks: ids that must stay.
        marks: ids that are heads.
        sizes: what else must be written when ids go.
    """

    model: ir.Model
    axes: dict[ir.Value, Axes] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    count: int = 0
    pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    locks: list[Ids] = field(default_factory=list)
    marks: list[Ids] = field(default_factory=list)
    sizes: list[Edit] = field(default_factory=list)

    def _fresh(self, size: int) -> Ids:
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return ids

    def _join(self, one: Ids, other: Ids) -> None:
        if one is not other and len(one) == len(other):
            self.pairs.append((one, other))

    def _classes(self) -> Ids:
        """Return the class of each id: the least id it is joined with (labels fall along the pairs until none does)."""
        label = np.arange(self.count, dtype=np.int64)
        if not self.pairs:
            return label
        left = np.concatenate([one for one, _ in self.pairs])
        right = np.concatenate([other for _, other in self.pairs])
        while True:
            least = np.minimum(label[left], label[right])
            before = label.copy()
            np.minimum.at(label, left, least)
            np.minimum.at(label, right, least)
            np.minimum.at(label, before[left], least)
            np.minimum.at(label, before[right], least)
            label = label[label]
            if np.array_equal(label, before):
                return label

    def _lock(self, value: ir.Value | None, axis: int | None = None) -> None:
        for number, ids in self.axes.get(value, {}).items() if value is not None else ():
            if axis is None or number == axis:
                self.locks.append(ids)

    def _ids(self, value: ir.Value | None, axis: int) -> Ids | None:
        return self.axes.get(value, {}).get(axis) if value is not None else None

    def _give(self, value: ir.Value, axis: int, ids: Ids) -> None:
        size = static(value)
        if 0 <= axis < len(size) and size[axis] == len(ids):
            self.axes.setdefault(value, {})[axis] = ids
        else:
            self.locks.append(ids)

    def _slot(self, node: ir.Node, index: int, axis: int, ids: Ids, role: Literal["makes", "reads", "rides"]) -> None:
        self.slots.append(Slot(node, index, axis, ids, role))

    def _locked(self, size: int | None) -> Ids | None:
        if size is None or size <= 1:
            return None
        ids = self._fresh(size)
        self.locks.append(ids)
        return ids

    def _one(self) -> Ids:
        ids = self._fresh(1)
        self.locks.append(ids)
        return ids
