"""Take the grids of a quantized checkpoint as they are, instead of rounding its weights a second time.

A GGUF file stores rows of a weight in blocks of 32. Rows of the graph's weights are looked up among the file's rows by
their values, which are the same float32 numbers when the graph was made from that file. So no table of names or
architectures is needed, and rows that an importer has moved (rotary halves) are found where they went.

What a kernel with whole zero points can hold:

* Q4_0 d·(q − 8), Q5_0 d·(q − 16), Q8_0 d·q: exactly, in 4, 8 and 8 bits.
* Q4_1 and Q5_1 d·q + m: the minimum m is no multiple of d. In 4 bits each block would be shifted by up to d/2, as much
  as rounding does. In 8 bits steps of d/17 (d/8 for Q5_1) hold every q, and the shift is at most half of such a step.

Source: block layouts of ggml (`ggml-common.h`: block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_q8_0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.linears import Linear
from onnxopt.host.extras import require
from onnxopt.qmath.blocks import quantize
from onnxopt.qmath.precision import Blocked
from onnxopt.spec import Array

BLOCK = 32
_HALF = 2  # bytes of a float16

Decoded = tuple[Array, Array, Array]  # codes uint8 [rows, blocks, 32], d float32 [rows, blocks], m (or 0) the same


@dataclass(frozen=True)
class KnownGrid:
    """The grid of a weight as its checkpoint has it.

    Attributes:
        kind: the checkpoint's own name of it, such as `Q4_0`.
        blocks: codes for a kernel.
        exact: the codes stand for the checkpoint's own numbers, but for the rounding of float32.
    """

    kind: str
    blocks: Blocked
    exact: bool


def known_grids(path: Path, linears: Iterable[Linear]) -> dict[str, KnownGrid]:
    """Return the grids of the linear layers whose rows all come from one kind of block of a GGUF file, by label.

    Args:
        path: the file.
        linears: of a model made from it; their weights are still float.

    Raises:
        InputError: the file is no GGUF, or the package that reads it is missing.
    """
    require("gguf", "reading a GGUF file", where=str(path))
    from gguf import GGUFReader
    from gguf.quants import dequantize

    try:
        tensors = [tensor for tensor in GGUFReader(path).tensors if tensor.tensor_type.name in _DECODERS]
    except (ValueError, OSError) as error:
        raise InputError(f"is no GGUF file ({error})", where=str(path)) from error
    places: dict[bytes, tuple[int, int]] = {}
    for number, tensor in enumerate(tensors):
        restored = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        rows = restored.reshape(-1, restored.shape[-1])
        places.update({row.tobytes(): (number, index) for index, row in enumerate(rows)})
    cache: dict[int, Decoded] = {}
    found: dict[str, KnownGrid] = {}
    for linear in linears:
        rows = np.ascontiguousarray(linear.matrix().T, np.float32)
        where = [places.get(row.tobytes()) for row in rows]
        known = [place for place in where if place is not None]
        kinds = {tensors[number].tensor_type.name for number, _ in known}
        if len(known) < len(rows) or len(kinds) != 1:
            continue
        (kind,) = kinds
        found[linear.label] = _grid(kind, _gathered(kind, tensors, known, cache), rows.shape[1])
    return found


def _gathered(kind: str, tensors: list[Any], places: list[tuple[int, int]], cache: dict[int, Decoded]) -> Decoded:
    """Return the blocks of rows in their order in the graph."""
    for number in {number for number, _ in places} - set(cache):
        data = np.asarray(tensors[number].data)
        cache[number] = _DECODERS[kind](data.reshape(-1, data.shape[-1]))
    numbers, indices = (np.array(part) for part in zip(*places, strict=True))
    parts = [np.empty((len(places), *part.shape[1:]), part.dtype) for part in cache[int(numbers[0])]]
    for number in np.unique(numbers):
        own = numbers == number
        for part, source in zip(parts, cache[int(number)], strict=True):
            part[own] = source[indices[own]]
    return parts[0], parts[1], parts[2]


def _grid(kind: str, decoded: Decoded, width: int) -> KnownGrid:
    codes, d, m = decoded
    flat = codes.reshape(len(codes), -1)[:, :width]
    if kind == "Q4_0":
        return KnownGrid(kind, Blocked(flat, d, None, 4, BLOCK), exact=True)
    if kind in ("Q5_0", "Q8_0"):  # both have their zero in the middle of 8 bits already
        return KnownGrid(kind, Blocked(flat, d, None, 8, BLOCK), exact=True)
    finer = 17 if kind == "Q4_1" else 8  # 15 · 17 = 255, 31 · 8 = 248
    scales = (d / np.float32(finer)).astype(np.float32)
    points = np.rint(-m / np.where(scales == 0, 1, scales))
    spread = flat * np.uint8(finer)
    if points.min(initial=0) < 0 or points.max(initial=0) > (1 << 8) - 1:  # a block on one side of 0
        return _far_from_zero(kind, decoded, width)
    return KnownGrid(kind, Blocked(spread, scales, points.astype(np.uint8), 8, BLOCK), exact=False)


def _far_from_zero(kind: str, decoded: Decoded, width: int) -> KnownGrid:
    """Round the numbers themselves, where some minimum is beyond the reach of a zero point."""
    codes, d, m = decoded
    numbers = (d[..., None] * codes + m[..., None]).reshape(len(codes), -1)[:, :width]
    return KnownGrid(kind, quantize(numbers.T, 8, BLOCK, symmetric=False), exact=False)


def _half(data: Array) -> Array:
    return np.asarray(np.ascontiguousarray(data).view(np.float16)[..., 0], np.float32)


def _nibbles(data: Array) -> Array:
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _q4_0(data: Array) -> Decoded:
    blocks = data.reshape(len(data), -1, _HALF + BLOCK // 2)
    d = _half(blocks[..., :_HALF])
    return _nibbles(blocks[..., _HALF:]), d, np.zeros_like(d)


def _q4_1(data: Array) -> Decoded:
    blocks = data.reshape(len(data), -1, 2 * _HALF + BLOCK // 2)
    return _nibbles(blocks[..., 2 * _HALF :]), _half(blocks[..., :_HALF]), _half(blocks[..., _HALF : 2 * _HALF])


def _fifth(data: Array) -> Array:
    """Return the fifth bits, in place, of 32 codes from 4 bytes."""
    bits = np.unpackbits(np.ascontiguousarray(data), axis=-1, bitorder="little")
    return (bits << 4).astype(np.uint8)


def _q5_0(data: Array) -> Decoded:
    blocks = data.reshape(len(data), -1, _HALF + 4 + BLOCK // 2)
    d = _half(blocks[..., :_HALF])
    codes = _nibbles(blocks[..., _HALF + 4 :]) | _fifth(blocks[..., _HALF : _HALF + 4])
    return (codes + np.uint8(128 - 16)).astype(np.uint8), d, np.zeros_like(d)


def _q5_1(data: Array) -> Decoded:
    blocks = data.reshape(len(data), -1, 2 * _HALF + 4 + BLOCK // 2)
    codes = _nibbles(blocks[..., 2 * _HALF + 4 :]) | _fifth(blocks[..., 2 * _HALF : 2 * _HALF + 4])
    return codes, _half(blocks[..., :_HALF]), _half(blocks[..., _HALF : 2 * _HALF])


def _q8_0(data: Array) -> Decoded:
    blocks = data.reshape(len(data), -1, _HALF + BLOCK)
    d = _half(blocks[..., :_HALF])
    return blocks[..., _HALF:] ^ np.uint8(128), d, np.zeros_like(d)  # two's complement plus 128


_DECODERS: dict[str, Callable[[Array], Decoded]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
}
