"""What a process and its worker say to each other: frames of one JSON object and the bytes of arrays, no pickles.

A frame is the length of the JSON text (8 bytes, little-endian), the text, and the buffers that it counts under
`buffers`. An array is written as its type, its shape and a buffer; text as a list of strings.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

_LENGTH = struct.Struct("<Q")
MOST_TEXT_BYTES = 1 << 30  # of one frame, without its buffers


def write_frame(stream: BinaryIO, message: Mapping[str, Any], buffers: Sequence[memoryview] = ()) -> None:
    """Write one message.

    Args:
        stream: buffered; flushed at the end.
        message: what JSON can spell.
        buffers: bytes, one-dimensional.

    Raises:
        OSError: nobody reads.
    """
    text = json.dumps({**message, "buffers": [len(one) for one in buffers]}).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    stream.writelines(buffers)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], list[bytearray]]:
    """Return one message and its buffers.

    Raises:
        EOFError: the other side has ended, or says what is no frame.
    """
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > MOST_TEXT_BYTES:
        raise EOFError
    message = json.loads(_exactly(stream, length))
    return message, [_exactly(stream, size) for size in message.pop("buffers")]


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    content = bytearray(size)
    view, place = memoryview(content), 0
    while place < size:
        count = stream.readinto(view[place:])  # type: ignore[attr-defined]  # of a raw or buffered stream
        if not count:
            raise EOFError
        place += count
    return content


def packed(value: Any, buffers: list[memoryview]) -> dict[str, Any]:
    """Return how JSON spells a tensor, a sequence of tensors, or none; bytes are put to the buffers."""
    if value is None:
        return {"kind": "none"}
    if isinstance(value, (list, tuple)):
        return {"kind": "list", "items": [packed(one, buffers) for one in value]}
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        return {"kind": "text", "shape": array.shape, "items": [str(one) for one in array.reshape(-1)]}
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    buffers.append(raw.data)
    return {"kind": "array", "dtype": array.dtype.str, "shape": array.shape, "place": len(buffers) - 1}


def unpacked(spec: Mapping[str, Any], buffers: Sequence[bytearray]) -> Any:
    """Return what `packed` was given."""
    if spec["kind"] == "none":
        return None
    if spec["kind"] == "list":
        return [unpacked(one, buffers) for one in spec["items"]]
    if spec["kind"] == "text":
        array = np.empty(len(spec["items"]), object)
        array[:] = spec["items"]
        return array.reshape(spec["shape"])
    return np.frombuffer(buffers[spec["place"]], np.dtype(spec["dtype"])).reshape(spec["shape"])
