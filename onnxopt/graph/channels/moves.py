"""Operators that move the entries of axes about and compute nothing: each says where they are afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.graph.channels.entries import Axes, Entries
from onnxopt.graph.channels.sizes import Ids, ShapeSizes, SplitSizes, spelling, static
from onnxopt.graph.nodes import attribute
from onnxopt.graph.values import dims, integers, is_constant


class Moves(Entries):
    """Follows ids through operators that move them; each method tells whether it could."""

    def _concat(self, node: ir.Node) -> bool:
        out = node.outputs[0]
        rank = len(static(out))
        axis = int(attribute(node, "axis")) % max(rank, 1)
        parts: list[Ids] = []
        for index, value in enumerate(node.inputs):
            size = static(value)[axis] if len(static(value)) == rank else None
            ids = self._ids(value, axis)
            if ids is None:
                ids = self._locked(size) if size != 1 else self._one()
            if ids is None:
                parts = []
                break
            if is_constant(value):
                self._slot(node, index, axis, ids, "rides")
            parts.append(ids)
        if parts:
            self._give(out, axis, np.concatenate(parts))
        else:
            for value in node.inputs:
                self._lock(value, axis)
        for other in set(range(rank)) - {axis}:
            found = [ids for value in node.inputs if (ids := self._ids(value, other)) is not None]
            for ids in found[1:]:
                self._join(found[0], ids)
            if found and len(found) == len(node.inputs):
                self._give(out, other, found[0])
            else:
                self.locks.extend(found)
        return True

    def _split(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        axis = int(attribute(node, "axis") or 0) % max(len(static(x)), 1)
        widths = [static(value)[axis] if static(value) else None for value in node.outputs]
        ids = self._ids(x, axis)
        if ids is not None:
            if None in widths or sum(width or 0 for width in widths) != len(ids):
                return False
            start, parts = 0, []
            for value, width in zip(node.outputs, widths, strict=True):
                parts.append(ids[start : start + (width or 0)])
                self._give(value, axis, parts[-1])
                start += width or 0
            self.sizes.append(SplitSizes(self.model, node, parts))
        for other, found in self.axes.get(x, {}).items() if x is not None else ():
            if other != axis:
                for value in node.outputs:
                    self._give(value, other, found)
        return True

    def _transpose(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        order = attribute(node, "perm") or tuple(reversed(range(len(static(x)))))
        for to, come in enumerate(order):
            ids = self._ids(x, int(come))
            if ids is not None:
                self._give(node.outputs[0], to, ids)
        return True

    def _reshape_free(self, node: ir.Node) -> bool:
        return self._regroup(node, spelled=False)

    def _flatten(self, node: ir.Node) -> bool:
        return self._regroup(node, spelled=False)

    def _reshape(self, node: ir.Node) -> bool:
        return self._regroup(node, spelled=True)

    def _regroup(self, node: ir.Node, *, spelled: bool) -> bool:
        """Map axes of the input to those of the output by the products of their sizes, unknown ones by their names."""
        x, out = node.inputs[0], node.outputs[0]
        if x is None or is_constant(x):
            return True
        new: Axes = {}
        for old, fresh in aligned(dims(x) or (), dims(out) or ()):
            known = {axis: ids for axis in old if (ids := self._ids(x, axis)) is not None}
            if not known:
                continue
            found = self._regrouped(known, [static(x)[axis] for axis in old], old, [static(out)[a] for a in fresh])
            if found is None:
                self.locks.extend(known.values())
                continue
            new |= {axis: ids for axis, ids in zip(fresh, found, strict=True) if ids is not None}
        if spelled and new and not self._can_spell(node, new):
            for ids in new.values():
                self.locks.append(ids)
        elif spelled and new:
            self.sizes.append(ShapeSizes(self.model, node, new))
        for axis, ids in new.items():
            self._give(out, axis, ids)
        covered = {axis for old, _ in aligned(dims(x) or (), dims(out) or ()) for axis in old}
        for axis, ids in self.axes.get(x, {}).items():
            if axis not in covered:
                self.locks.append(ids)
        return True

    def _regrouped(
        self, known: Axes, sizes: Sequence[int | None], old: Sequence[int], fresh: Sequence[int | None]
    ) -> list[Ids | None] | None:
        """Return ids of the new axes of one group of axes, or None when they cannot be followed."""
        if len(old) == len(fresh) == 1:
            return [known[old[0]]]
        if None in sizes or None in fresh:
            return None
        full = [size or 0 for size in sizes]
        if len(old) == 1 and len(fresh) == 2 and (fresh[0] or 0) > 1:  # into heads
            blocks = known[old[0]].reshape(fresh[0] or 0, fresh[1] or 0)
            for column in range(1, blocks.shape[1]):
                self._join(blocks[:, 0], blocks[:, column])
            return [blocks[:, 0].copy(), self._locked(fresh[1])]
        if len(fresh) == 1 and len(known) >= 1:  # back, or flat
            first = next(iter(known))
            others = [axis for axis in old if axis != first]
            for axis in others:
                if axis in known:
                    self.locks.append(known[axis])
            place = list(old).index(first)
            inner = int(np.prod(full[place + 1 :]))
            outer = int(np.prod(full[:place]))
            return [np.tile(np.repeat(known[first], inner), outer)]
        if 1 in full or 1 in fresh:  # axes of one entry come and go
            wide_old = [axis for axis, size in zip(old, full, strict=True) if size != 1]
            wide_new = [place for place, size in enumerate(fresh) if size != 1]
            if len(wide_old) == len(wide_new) == 1 and wide_old[0] in known:
                result: list[Ids | None] = [None] * len(fresh)
                result[wide_new[0]] = known[wide_old[0]]
                return result
        return None

    def _can_spell(self, node: ir.Node, new: Axes) -> bool:
        return spelling(node, max(new)) is not None and all(spelling(node, axis) is not None for axis in new)

    def _gather(self, node: ir.Node) -> bool:
        data, index, out = node.inputs[0], node.inputs[1], node.outputs[0]
        axis = int(attribute(node, "axis") or 0) % max(len(static(data)), 1)
        moved = len(static(index)) - 1
        if is_constant(data):
            for number, size in enumerate(static(data)):
                place = number if number < axis else number + moved
                if number != axis and size is not None and size > 1:
                    ids = self._fresh(size)
                    self._slot(node, 0, number, ids, "makes")
                    self._give(out, place, ids)
            return True
        for number, ids in self.axes.get(data, {}).items() if data is not None else ():
            if number == axis:
                self.locks.append(ids)
            else:
                self._give(out, number if number < axis else number + moved, ids)
        self._lock(index)
        return True

    def _slice(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        rank = len(static(x))
        given = integers(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else tuple(range(rank))
        if given is None or x is None or is_constant(x):
            return False
        for number, ids in self.axes.get(x, {}).items():
            if number in {axis % rank for axis in given}:
                self.locks.append(ids)
            else:
                self._give(node.outputs[0], number, ids)
        return True


def aligned(
    old: Sequence[int | str | None], new: Sequence[int | str | None]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return which axes of the input of a Reshape become which of its output, in the smallest groups.

    Sizes are compared as products, named axes by their names; what cannot be told is left out.
    """
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i, j = len(old), len(new)
    while i > 0 and j > 0:
        a, b = old[i - 1], new[j - 1]
        if not isinstance(a, int) or not isinstance(b, int):
            if a is None or a != b:
                return groups
            i, j = i - 1, j - 1
            continue
        left, right, ends = i - 1, j - 1, (i, j)
        product, other = a, b
        while product != other:
            if product < other:
                left -= 1
                step = old[left] if left >= 0 else None
                if not isinstance(step, int):
                    return groups
                product *= step
            else:
                right -= 1
                step = new[right] if right >= 0 else None
                if not isinstance(step, int):
                    return groups
                other *= step
        groups.append((tuple(range(left, ends[0])), tuple(range(right, ends[1]))))
        i, j = left, right
    return groups
