"""Put requests of different sizes into one batch and cut their answers out of it.

Which input is the mask and which holds ids is read off the names that transformers gives them, which axis is which off
the names of the axes. Padding goes behind the tokens, and it is used only where a mask hides it: a model without one
takes requests of the same size together and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.roles import mask_of
from onnxopt.spec import Array, Feeds, Signature, TensorSpec


class Filler:
    """Fill up inputs and cut outputs.

    Args:
        inputs: of the model.
        outputs: of the model.
        pad: id at padded positions.
        left: put padding before the tokens.

    Attributes:
        batch: name of the axis along which requests are joined; empty when inputs share none.
        length: name of the axis that padding fills up; empty for a model without a mask.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, pad: int = 0, left: bool = False
    ) -> None:
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = {spec.name: spec for spec in outputs}
        self._pad, self._left = pad, left
        firsts = {spec.axes[0] if spec.axes else 0 for spec in (*inputs, *outputs)}
        first = firsts.pop() if len(firsts) == 1 else 0
        self.batch = first if isinstance(first, str) and first != "?" else ""
        mask = mask_of(Signature(tuple(inputs), tuple(outputs)))
        length = mask.axes[1] if mask is not None else 0
        self.length = length if isinstance(length, str) and length != "?" else ""

    def sizes(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """Return the size of each open axis of a request.

        Raises:
            InputError: when inputs disagree about one.
        """
        found: dict[str, int] = {}
        for name, spec in self._inputs.items():
            for axis, size in zip(spec.axes, feeds[name].shape, strict=False):
                if isinstance(axis, str) and axis != "?" and found.setdefault(axis, size) != size:
                    raise InputError(f"input {name!r} has {axis} {size}, another input has {found[axis]}")
        return found

    def others(self, feeds: Mapping[str, Array]) -> tuple[tuple[int, ...], ...]:
        """Return what must be equal in requests of one batch: every size that is neither batch nor length."""
        same = {axis for axis in (self.batch, self.length) if axis}
        return tuple(
            tuple(-1 if axis in same else size for axis, size in zip(spec.axes, feeds[name].shape, strict=False))
            for name, spec in self._inputs.items()
        )

    def fill(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> Feeds:
        """Return inputs of the wanted sizes: length is padded, further rows repeat the last one.

        Raises:
            InputError: when an axis would have to grow that cannot be padded.
        """
        filled: Feeds = {}
        for name, spec in self._inputs.items():
            array = feeds[name]
            for place, axis in enumerate(spec.axes):
                missing = sizes[axis] - array.shape[place] if isinstance(axis, str) and axis in sizes else 0
                if not missing:
                    continue
                if axis == self.batch:
                    array = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
                elif axis == self.length:
                    array = self._padded(name, array, place, missing)
                else:
                    raise InputError(f"the axis {axis!r} of input {name!r} cannot be padded")
            filled[name] = np.ascontiguousarray(array)
        return filled

    def _padded(self, name: str, array: Array, place: int, missing: int) -> Array:
        widths = [(0, 0)] * array.ndim
        widths[place] = (missing, 0) if self._left else (0, missing)
        value = self._pad if name.lower().endswith("ids") and "type" not in name and "position" not in name else 0
        return np.pad(array, widths, constant_values=value)

    def cut(self, outputs: Mapping[str, Array], sizes: Mapping[str, int], start: int = 0) -> Feeds:
        """Return the part of outputs that belongs to one request.

        Args:
            outputs: of the whole batch.
            sizes: of the request.
            start: its first row in the batch.
        """
        found: Feeds = {}
        for name, array in outputs.items():
            axes = self._outputs[name].axes
            parts: list[slice] = []
            for place in range(array.ndim):
                axis = axes[place] if place < len(axes) else "?"
                if axis == self.batch and self.batch:
                    parts.append(slice(start, start + sizes[axis]))
                elif axis == self.length and self.length:
                    size = sizes[axis]
                    parts.append(slice(array.shape[place] - size, None) if self._left else slice(0, size))
                else:
                    parts.append(slice(None))
            found[name] = array[tuple(parts)]
        return found
