"""Walk the protobuf encoding of an .onnx file before a parser builds anything from it.

A parser trusts the lengths that a file declares. This walk follows them inside the bytes that are really there, refuses
what a parser would choke on (a cut file, deep nesting, millions of empty parts), and skips the weights themselves.
Encoding: https://protobuf.dev/programming-guides/encoding/; fields: the descriptors of the `onnx` package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxopt.errors import InputError
from onnxopt.host.bounds import allow, bounds

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor  # type: ignore[import-untyped]  # it comes without types

VARINT, FIXED64, BYTES, GROUP_START, GROUP_END, FIXED32 = range(6)  # wire types
MAX_DEPTH = 64  # messages inside messages; ONNX needs 3 per level of If, Loop or Scan, and protobuf itself stops at 100
MAX_PARTS = 20_000_000  # fields in one file; a field of 2 bytes costs a parser about 100 bytes of memory
MAX_NAME_BYTES = 1 << 16  # of a name of anything; runtimes copy them into every message
PROSE = ("doc_string", "value")  # comments, and what metadata says
MAX_PACKED_BYTES = 1 << 29  # numbers stored one byte each grow eightfold when parsed


@dataclass(frozen=True)
class _Field:
    name: str
    wire: int
    repeated: bool
    is_text: bool
    message: Descriptor | None


@dataclass
class _Frame:
    end: int
    fields: dict[int, _Field]
    name: str
    counts: dict[int, int] = field(default_factory=dict)


class WireScan:
    """One walk over one file's bytes.

    Args:
        data: the whole file.
        root: descriptor of the outermost message.
        where: the file's name, for the error lines.
    """

    def __init__(self, data: bytes, root: Descriptor, where: str) -> None:
        self._data = data
        self._where = where
        self._tables: dict[str, dict[int, _Field]] = {}
        self._stack = [_Frame(len(data), self._table(root), "model")]
        self._parts = 0
        self._packed = 0
        self._nodes = 0
        self._most_nodes = bounds().nodes

    def run(self) -> None:
        """Walk to the end.

        Raises:
            InputError: the bytes are not a whole and sane message.
        """
        position = 0
        while self._stack:
            frame = self._stack[-1]
            if position == frame.end:
                self._stack.pop()
                continue
            position = self._step(position, frame)

    def _step(self, position: int, frame: _Frame) -> int:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise self._error(f"holds more than {MAX_PARTS} parts", "such a file exhausts the memory of any parser")
        tag, position = self._varint(position, frame.end)
        number, wire = tag >> 3, tag & 7
        known = frame.fields.get(number)
        if number == 0 or known is None or wire in (GROUP_START, GROUP_END) or wire > FIXED32:
            raise self._damaged(f"has a field that ONNX does not know (number {number})")
        frame.counts[number] = frame.counts.get(number, 0) + 1
        packed = wire == BYTES and known.repeated and known.wire != BYTES
        if wire != known.wire and not packed:
            raise self._damaged(f"stores '{known.name}' in the wrong form")
        if known.message is not None and not known.repeated and frame.counts[number] > 1:
            raise self._damaged(f"has two of '{known.name}', where one is allowed")
        if wire == VARINT:
            return self._varint(position, frame.end)[1]
        if wire in (FIXED32, FIXED64):
            return self._advance(position, 4 if wire == FIXED32 else 8, frame)
        length, start = self._varint(position, frame.end)
        stop = self._advance(start, length, frame, known.name)
        if packed and known.wire == VARINT:
            self._packed += length
            if self._packed > MAX_PACKED_BYTES:
                raise self._error("stores its weights as a list of numbers", "save it again with raw data")
        if known.is_text:
            self._check_text(start, stop, known.name)
        if known.message is None:
            return stop
        self._enter(stop, known.name, known.message)
        return start

    def _enter(self, stop: int, name: str, message: Descriptor) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise self._error(f"nests graphs deeper than {MAX_DEPTH} levels", "no real model does; not opened")
        self._nodes += name == "node"
        if self._nodes > self._most_nodes:
            raise self._error(f"has more than {self._most_nodes} nodes", allow("nodes", str(5 * self._most_nodes)))
        self._stack.append(_Frame(stop, self._table(message), name))

    def _advance(self, position: int, length: int, frame: _Frame, name: str = "") -> int:
        stop = position + length
        if stop <= frame.end:
            return stop
        if stop > len(self._data):
            what = f"is cut short: its {name or frame.name} needs {stop - len(self._data)} bytes more than the file has"
            raise self._error(what, "copy or download it again")
        raise self._damaged(f"has a part '{name or frame.name}' longer than what holds it")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):  # 64 bits in groups of 7
            if position >= end:
                if end == len(self._data):
                    raise self._error(f"is cut short inside its {self._stack[-1].name}", "copy or download it again")
                raise self._damaged("ends in the middle of a number")
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise self._damaged("has a number longer than 64 bits")

    def _check_text(self, start: int, stop: int, name: str) -> None:
        if stop - start > MAX_NAME_BYTES and name not in PROSE:
            what = f"has a '{name}' of {stop - start} letters, more than {MAX_NAME_BYTES}"
            raise self._error(what, "no real model does; not opened")
        try:
            str(self._data[start:stop], "utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"has text in '{name}' that is not UTF-8") from error

    def _damaged(self, what: str) -> InputError:
        inside = " in ".join(frame.name for frame in reversed(self._stack[-3:]))
        return self._error(f"is not a sound ONNX file: its {inside} {what}", "copy or download it again")

    def _error(self, what: str, hint: str) -> InputError:
        return InputError(what, where=self._where, hint=hint)

    def _table(self, descriptor: Descriptor) -> dict[int, _Field]:
        table = self._tables.get(descriptor.full_name)
        if table is None:
            table = {number: _field(entry) for number, entry in descriptor.fields_by_number.items()}
            self._tables[descriptor.full_name] = table
        return table


def _field(entry: Any) -> _Field:
    fixed32 = (entry.TYPE_FLOAT, entry.TYPE_FIXED32, entry.TYPE_SFIXED32)
    fixed64 = (entry.TYPE_DOUBLE, entry.TYPE_FIXED64, entry.TYPE_SFIXED64)
    wire = VARINT
    if entry.type in (entry.TYPE_STRING, entry.TYPE_BYTES, entry.TYPE_MESSAGE):
        wire = BYTES
    elif entry.type in fixed32:
        wire = FIXED32
    elif entry.type in fixed64:
        wire = FIXED64
    is_text = entry.type == entry.TYPE_STRING
    return _Field(entry.name, wire, bool(entry.is_repeated), is_text, entry.message_type)
