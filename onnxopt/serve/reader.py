"""Read large JSON in a process of its own: `python -m onnxopt.serve.reader`, bodies on stdin, what they hold on stdout.

Python reads JSON without ever letting other threads run, so a body of some megabytes would hold up every answer of the
process that reads it. This one has nothing else to do. It uses little but the standard library, so that it is small,
and it takes no more memory than it was told: a body that needs more is refused, and the process goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import marshal
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any, Literal

from onnxopt.host.threads import step_back

# frame to the reader: what kind of body, and how many bytes; frame from it: how many bytes
ASKED, SAID = struct.Struct("<BQ"), struct.Struct("<Q")
PLAIN, TENSORS = 0, 1

MOST_VALUES = 1 << 18  # 256 texts of 1024 tokens
MOST_KEYS = 1000  # of one object
MOST_DEPTH = 64
# memory for each byte of a body, of short words as the keys of an object, which need the most, and for the process
BYTES_PER_BYTE, BYTES_AT_REST = 24, 64 << 20

BEYOND = "beyond"  # the kind of integers that fit into none of 64 bits

Why = Literal["", "json", "depth", "values", "keys", "memory"]
# numbers of a tensor: the kind of an `array`, "?" for booleans, "" for what is no regular array of numbers; their bytes
Packed = tuple[str, bytes]


def read(body: bytes, kind: int = PLAIN) -> tuple[Why, Any]:
    """Return what a body holds, or why it is not read.

    Args:
        body: JSON.
        kind: of body; of `TENSORS` the data of each input becomes `Packed`, and counts as one value.
    """
    if body.count(b"[") + body.count(b"{") > MOST_VALUES:
        return "values", None
    try:
        value = json.loads(body)
    except RecursionError:
        return "depth", None
    except ValueError:
        return "json", None
    except MemoryError:
        return "memory", None
    if kind == TENSORS:
        _pack_inputs(value)
    wrong = _wrong_size(value)
    return wrong, None if wrong else value


def pack(data: Sequence[Any]) -> Packed:
    """Return the numbers of nested lists in row-major order; kind "" where the lists are irregular or hold others."""
    level: Sequence[Any] = data
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list} or len(set(map(len, level))) != 1:
            return "", b""
        level = list(itertools.chain.from_iterable(level))
    types = set(map(type, level))
    if not types <= {int, float, bool}:
        return "", b""
    codes = "?" if types == {bool} else "d" if float in types else "qQ"
    for code in codes:
        with contextlib.suppress(OverflowError):  # the last one fits no kind of number
            return code, array("b" if code == "?" else code, level).tobytes()
    return BEYOND, b""


def _pack_inputs(value: Any) -> None:
    inputs = value.get("inputs") if isinstance(value, dict) else None
    for tensor in inputs if isinstance(inputs, list) else ():
        if isinstance(tensor, dict) and isinstance(tensor.get("data"), list):
            tensor["data"] = pack(tensor["data"])


def _wrong_size(value: Any) -> Why:
    """Return which limit a value is beyond."""
    level, count = [value], 0
    for _ in range(MOST_DEPTH):
        count += len(level)
        if count > MOST_VALUES:
            return "values"
        objects = [one for one in level if type(one) is dict]
        if any(len(one) > MOST_KEYS for one in objects):
            return "keys"
        lists = [one for one in level if type(one) is list]
        level = list(itertools.chain(*(one.values() for one in objects), *lists))
        if not level:
            return ""
    return "depth"


def main() -> None:
    """Read bodies until stdin ends; the argument is how many bytes of memory may be used."""
    with contextlib.suppress(ImportError, IndexError, ValueError, OSError):  # where there is no such limit
        import resource

        most = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    step_back()  # whoever sends so much may wait; the server that others ask may not
    while len(head := sys.stdin.buffer.read(ASKED.size)) == ASKED.size:
        kind, size = ASKED.unpack(head)
        try:
            said = marshal.dumps(read(sys.stdin.buffer.read(size), kind))
        except MemoryError:
            said = marshal.dumps(("memory", None))
        sys.stdout.buffer.write(SAID.pack(len(said)))
        sys.stdout.buffer.write(said)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
