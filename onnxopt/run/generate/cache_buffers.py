"""Where a decoder's cache lies between two steps: handed on from one to the next, or in one buffer with room to grow.

A store holds keys and values of every layer [rows, heads, columns, size] as tensors of the runtime, and runs the model
on them. `onnxopt.run.generate.decoder.Batch` says what the rows are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.errors import InputError
from onnxopt.spec import Array

if TYPE_CHECKING:
    import onnxruntime

    from onnxopt.graph.cache import Cache
    from onnxopt.run.session import Session

ROOM = 256  # tokens to come that a fresh buffer has room for, when more are asked for
LOGITS = "logits"


class GrowingStore:
    """A cache whose present of one step is the past of the next."""

    most = 0  # it is never too small

    def __init__(self, session: Session, cache: Cache, rows: int, across: Mapping[str, onnxruntime.OrtValue]) -> None:
        self._session, self._across = session, dict(across)
        self._names = [(past.name, present.name) for past, present in zip(cache.inputs, cache.outputs, strict=True)]
        sizes = {"batch": rows, "past_sequence": 0}
        self._past = {
            spec.name: _value(np.zeros(spec.shape(sizes), spec.dtype), session.device) for spec in cache.inputs
        }

    def run(self, feeds: dict[str, Array], total: int) -> Array:  # noqa: ARG002  the other store needs it
        """Return logits [rows, positions, vocabulary] after `total` columns."""
        binding = self._session.binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, value in self._across.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(LOGITS, "cpu")
        for past, present in self._names:
            binding.bind_ortvalue_input(past, self._past[past])
            binding.bind_output(present, self._session.device)
        self._session.run_bound(binding)
        logits, *presents = binding.get_outputs()
        self._past = {past: value for (past, _), value in zip(self._names, presents, strict=True)}
        return np.asarray(logits.numpy())

    def run_rows(self, feeds: Mapping[int, dict[str, Array]], total: int) -> dict[int, Array]:
        """Return logits [1, positions, vocabulary] of some rows, each in a batch of its own, after `total` columns."""
        rows = len(next(iter(self._past.values())).numpy())
        found: dict[int, Array] = {}
        kept: dict[str, list[Array]] = {past: [] for past, _ in self._names}
        older, across = self._past, self._across
        for row in range(rows):
            self._past = {name: _row_of(value, row, self._session.device) for name, value in older.items()}
            self._across = {name: _row_of(value, row, self._session.device) for name, value in across.items()}
            if row in feeds:
                found[row] = self.run(feeds[row], total)
            for name, value in self._past.items():
                grown = value.numpy()
                missing = total - grown.shape[2]
                kept[name].append(np.pad(grown, ((0, 0), (0, 0), (0, missing), (0, 0))))
        self._past = {name: _value(np.concatenate(parts), self._session.device) for name, parts in kept.items()}
        self._across = across
        return found

    def keep(self, rows: list[int], columns: slice) -> None:
        """Take some rows and columns."""
        for name, value in self._past.items():
            self._past[name] = _value(np.ascontiguousarray(value.numpy()[rows, :, columns]), self._session.device)
        self._across = _rows_of(self._across, rows, self._session.device)

    def content(self) -> dict[str, Array]:
        """Return what is in it: [rows, heads, columns, size] by name."""
        return {name: value.numpy() for name, value in self._past.items()}

    def fill(self, content: Mapping[str, Array]) -> None:
        """Put keys and values [rows, heads, columns, size] by name into a new store."""
        self._past = {
            name: _value(np.ascontiguousarray(array), self._session.device) for name, array in content.items()
        }

    def join(self, content: Mapping[str, Array], places: Sequence[int], width: int, most: int) -> None:
        """Take in the rows of another one, each part's columns from its place on."""
        del most  # it grows anyway
        for name, array in self.content().items():
            fresh = _joined([array, content[name]], places, width)
            self._past[name] = _value(fresh, self._session.device)


class SharedStore:
    """A cache whose past and present are one buffer, longer than what is in it."""

    def __init__(
        self, session: Session, cache: Cache, rows: int, most: int, across: Mapping[str, onnxruntime.OrtValue]
    ) -> None:
        self._session, self._across = session, dict(across)
        self._specs = tuple(zip(cache.inputs, cache.outputs, strict=True))
        self._rows, self.most = rows, most
        self._length = self._capacity = 0
        self._buffers: dict[str, onnxruntime.OrtValue] = {}
        self._binding: onnxruntime.IOBinding | None = None

    def run(self, feeds: dict[str, Array], total: int) -> Array:
        """Return logits [rows, positions, vocabulary] after `total` columns."""
        if total > self._capacity:
            self._allocate(list(range(self._rows)), slice(0, self._length), self._room(total))
        binding = self._binding or self._bind()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(LOGITS, "cpu")
        self._session.run_bound(binding)
        self._length = total
        return np.asarray(binding.get_outputs()[0].numpy())  # bound first, so first

    def run_rows(self, feeds: Mapping[int, dict[str, Array]], total: int) -> dict[int, Array]:
        """Return logits [1, positions, vocabulary] of some rows, each in a batch of its own, after `total` columns."""
        if self._session.device != "cpu":
            raise InputError(
                "takes several tokens behind others for one text at a time",
                where=str(self._session.path),
                hint="give the tokens of a batch one by one, or its prompts at once",
            )
        if total > self._capacity:
            self._allocate(list(range(self._rows)), slice(0, self._length), self._room(total))
        whole, across, found = self._buffers, self._across, {}
        for row, given in feeds.items():
            self._buffers = {name: _row_of(value, row, "cpu") for name, value in whole.items()}  # views, not copies
            self._across = {name: _row_of(value, row, "cpu") for name, value in across.items()}
            self._binding = None
            found[row] = self.run(given, total)
        self._buffers, self._across, self._binding = whole, across, None
        self._length = total
        return found

    def keep(self, rows: list[int], columns: slice) -> None:
        """Take some rows and columns."""
        width = columns.stop - columns.start
        self._rows = len(rows)
        self.most -= self._length - width
        self._across = _rows_of(self._across, rows, self._session.device)
        self._allocate(rows, columns, self._room(width))
        self._length = width

    def content(self) -> dict[str, Array]:
        """Return what is in it: [rows, heads, columns, size] by name."""
        return {name: value.numpy()[:, :, : self._length] for name, value in self._buffers.items()}

    def fill(self, content: Mapping[str, Array]) -> None:
        """Put keys and values [rows, heads, columns, size] by name into a new store; the next step makes room."""
        device = self._session.device
        self._buffers = {name: _value(np.ascontiguousarray(array), device) for name, array in content.items()}
        self._length = self._capacity = next(iter(content.values())).shape[2]

    def join(self, content: Mapping[str, Array], places: Sequence[int], width: int, most: int) -> None:
        """Take in the rows of another one, each part's columns from its place on."""
        self.most = max(self.most, most, width)
        capacity = max(self._room(width), self._capacity)
        for name, array in self.content().items():
            fresh = _joined([array, content[name]], places, capacity)
            self._buffers[name] = _value(fresh, self._session.device)
            self._rows = len(fresh)
        self._length, self._capacity, self._binding = width, capacity, None

    def _room(self, total: int) -> int:
        """Return for how many tokens to make room: what was asked for when it is near, else twice what is there."""
        if total <= self.most <= total + ROOM:
            return self.most
        return max(total + ROOM, min(2 * self._length, self.most))

    def _allocate(self, rows: list[int], columns: slice, capacity: int) -> None:
        sizes = {"batch": len(rows), "past_sequence": capacity}
        for spec, _ in self._specs:
            fresh = np.zeros(spec.shape(sizes), spec.dtype)
            if self._length:
                older = self._buffers[spec.name].numpy()  # on the CPU a view
                fresh[:, :, : columns.stop - columns.start] = older[rows, :, columns]
            self._buffers[spec.name] = _value(fresh, self._session.device)
        self._capacity = capacity
        self._binding = None

    def _bind(self) -> onnxruntime.IOBinding:
        binding = self._session.binding()
        binding.bind_output(LOGITS, "cpu")
        for past, present in self._specs:
            binding.bind_ortvalue_input(past.name, self._buffers[past.name])
            binding.bind_ortvalue_output(present.name, self._buffers[past.name])
        for name, value in self._across.items():
            binding.bind_ortvalue_input(name, value)
        self._binding = binding
        return binding


def _row_of(value: onnxruntime.OrtValue, row: int, device: str) -> onnxruntime.OrtValue:
    return _value(value.numpy()[row : row + 1], device)


def _rows_of(
    values: Mapping[str, onnxruntime.OrtValue], rows: list[int], device: str
) -> dict[str, onnxruntime.OrtValue]:
    return {name: _value(np.ascontiguousarray(value.numpy()[rows]), device) for name, value in values.items()}


def _joined(parts: Sequence[Array], places: Sequence[int], columns: int) -> Array:
    """Return the rows of caches [rows, heads, columns, size] in one of `columns`, each from its place on."""
    heads, size = parts[0].shape[1], parts[0].shape[3]
    fresh = np.zeros((sum(map(len, parts)), heads, columns, size), parts[0].dtype)
    row = 0
    for part, place in zip(parts, places, strict=True):
        fresh[row : row + len(part), :, place : place + part.shape[2]] = part
        row += len(part)
    return fresh


def _value(array: Array, device: str) -> onnxruntime.OrtValue:
    """Return a tensor of the runtime; on the CPU it shares the array's memory."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
