"""Run a graph for a program of another language whose own ONNX Runtime cannot be had here.

python graph_in_pipe.py model.onnx    tensors come on standard input and go out on standard output, as Java's DataOutput
                                      has them: how many; of each name, dtype, rank, sizes, bytes, elements
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxopt.run.session import Session
from onnxopt.spec import Array

DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "BOOL": "bool",
    **{f"{sign.upper()}INT{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def number(stream: BinaryIO, form: str) -> int:
    content = stream.read(struct.calcsize(form))
    if not content:
        raise EOFError
    return int(struct.unpack(form, content)[0])


def words(stream: BinaryIO) -> str:
    return stream.read(number(stream, ">H")).decode()


def read(stream: BinaryIO) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for _ in range(number(stream, ">i")):
        name, dtype = words(stream), DTYPES[words(stream)]
        shape = [number(stream, ">q") for _ in range(number(stream, ">i"))]
        found[name] = np.frombuffer(stream.read(number(stream, ">i")), dtype).reshape(shape)
    return found


def write(stream: BinaryIO, tensors: dict[str, Array]) -> None:
    stream.write(struct.pack(">i", len(tensors)))
    for name, array in tensors.items():
        texts = (name.encode(), NAMES[array.dtype.name].encode())
        stream.writelines(struct.pack(">H", len(text)) + text for text in texts)
        content = np.ascontiguousarray(array).tobytes()
        stream.write(struct.pack(f">i{array.ndim}qi", array.ndim, *array.shape, len(content)) + content)
    stream.flush()


def main() -> None:
    session = Session(Path(sys.argv[1]))
    while True:
        try:
            feeds = read(sys.stdin.buffer)
        except EOFError:
            return
        write(sys.stdout.buffer, dict(session.run(feeds)))


if __name__ == "__main__":
    main()
