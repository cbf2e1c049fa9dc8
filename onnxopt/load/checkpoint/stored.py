"""Say where each tensor of a checkpoint lies, from the headers of its files alone: no weight is read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.folder import Checkpoint, read_json_object

MOST_HEADER = 100 << 20  # bytes of a header; the format itself allows no more
WHOLE = "model.safetensors"  # the name of a checkpoint in one file, which goes before shards
_METADATA = "__metadata__"
_PREFIX = 8  # bytes that hold the length of the header
_FLOAT_BYTES = 4  # of a weight as float32
# Bytes of an element by the format's name of its type; what is not here is none that a network is loaded from.
ELEMENT_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class Place:
    """Where the elements of a tensor lie: row-major, little-endian, one behind the other.

    Attributes:
        path: of the file.
        offset: of the first byte.
        nbytes: how many.
        dtype: by the name that the format has for it, such as `BF16`.
        shape: sizes of its axes.
    """

    path: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file without its metadata, and where the bytes behind it begin.

    The format begins with the length of its header, 8 bytes from the least significant on, and the header is a JSON
    object with a key per tensor (huggingface/safetensors, README, "Format").

    Raises:
        InputError: the file is none of that format.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(_PREFIX))
            found = json.loads(stream.read(length)) if length <= MOST_HEADER else None
    except (OSError, ValueError, struct.error, RecursionError) as error:
        raise InputError(f"the weights cannot be read: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise InputError("the weights cannot be read: no header of safetensors", where=str(path))
    found.pop(_METADATA, None)
    return found, _PREFIX + length


def places_in(path: Path) -> dict[str, Place]:
    """Return where each tensor of a safetensors file lies, by name.

    Raises:
        InputError: the file is none of that format, cut off, or one of its types is unknown here.
    """
    header, start = header_of(path)
    end = path.stat().st_size
    found: dict[str, Place] = {}
    for name, entry in header.items():
        try:
            first, last = (start + int(one) for one in entry["data_offsets"])
            shape, dtype = tuple(int(one) for one in entry["shape"]), str(entry["dtype"])
            wanted = math.prod(shape) * ELEMENT_BYTES[dtype]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the weights cannot be read: {name} is not described", where=str(path)) from error
        if not start <= first <= last <= end or last - first != wanted or min(shape, default=0) < 0:
            raise InputError(f"the weights cannot be read: {name} is not where the header says", where=str(path))
        found[name] = Place(path, first, last - first, dtype, shape)
    return found


def weight_files_of(folder: Path) -> tuple[Path, ...]:
    """Return the files that transformers loads a checkpoint from: one whole file, or the shards of its index.

    Raises:
        InputError: the index cannot be read, or there is neither.
    """
    if (folder / WHOLE).is_file():
        return (folder / WHOLE,)
    shards = read_json_object(folder / f"{WHOLE}.index.json").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError("names no shards", where=str(folder / f"{WHOLE}.index.json"))
    return tuple(folder / str(name) for name in sorted(set(shards.values())))


def float_bytes(files: Iterable[Path]) -> int:
    """Return what the tensors of some files take as float32, in bytes.

    Raises:
        InputError: a file is no safetensors file, or cut off.
    """
    return sum(
        _FLOAT_BYTES * (place.nbytes // ELEMENT_BYTES[place.dtype])
        for path in files
        for place in places_in(path).values()
    )


def is_large(checkpoint: Checkpoint) -> bool:
    """Tell whether the weights of a checkpoint stay in its files: real ones, many, in the plain form.

    Made-up weights are drawn in memory, and code of the checkpoint's own may do with its parameters what it likes:
    both are loaded as ever.
    """
    from onnxopt.graph import weight_files  # which takes a while, and is of no use to what is refused by its name

    source = checkpoint.source
    if source.weights == "random" or source.trust_remote_code or checkpoint.folder is None:
        return False
    try:
        return float_bytes(weight_files_of(checkpoint.folder)) > weight_files.LARGE_BYTES
    except InputError:  # what is wrong with it is said where it is loaded
        return False
