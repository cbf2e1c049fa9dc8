"""Files that people name: what is no file is said before anyone waits for it, and archives hold what they say."""

from __future__ import annotations

import math
import stat
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError, said, word

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
MOST_TOML = 1 << 20  # bytes of a file of settings
MOST_UNPACKED = 1 << 30  # bytes of the arrays of one archive
MOST_RATIO = 16  # of a larger archive: so many times its own bytes


def regular_size(path: Path, where: str = "", *, hint: str = "write it into a file first") -> int:
    """Return the size of a file in bytes.

    Args:
        path: what was named; links are followed.
        where: how errors call it; the path when empty.
        hint: what to do where it is none.

    Raises:
        InputError: it is a pipe, a device or a socket, which may never end.
        OSError: there is no such file, or it cannot be looked at.
    """
    info = path.stat()
    kind = next((name for fits, name in _KINDS if fits(info.st_mode)), "")
    if kind:
        raise InputError(f"is {kind}, not a file", where=where or str(path), hint=hint)
    return info.st_size


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a file of settings says.

    Raises:
        InputError: it is no file, or too large for one.
        OSError: it cannot be read.
        ValueError: it is not TOML.
    """
    if regular_size(path) > MOST_TOML:
        raise InputError(f"is larger than {MOST_TOML} bytes", where=str(path))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def bytes_beside(path: Path) -> int:
    """Return the bytes of all files in the folder of a model: at least its own, with whatever holds its weights."""
    return sum(one.stat().st_size for one in path.parent.iterdir() if one.is_file())


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an .npz file.

    Nothing is allocated in proportion to a number that the archive merely declares: what its members unpack to is
    counted first, and each array must be as long as its bytes.

    Raises:
        InputError: it is no file, or would unpack to more than 1 GiB and 16 times its size.
        ValueError: it is no sound archive of arrays, in the words of whoever noticed.
        OSError: it cannot be read.
    """
    most = max(MOST_UNPACKED, MOST_RATIO * regular_size(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(info.file_size for info in members)
            if unpacked <= most:
                return {info.filename.removesuffix(".npy"): _array_of(archive.open(info), info) for info in members}
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds over broken bytes
        raise ValueError(said(error, 200)) from error
    raise InputError(f"unpacks to {unpacked} bytes, more than {most}", where=str(path), hint="give a part of it")


def _array_of(stream: IO[bytes], info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """Read one member; raises ValueError where its header says another size than it has, or asks for pickles."""
    with stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_columns, dtype = read(stream)
        name = word(info.filename)
        if dtype.hasobject:
            raise ValueError(f"{name} holds objects, not numbers")
        count = math.prod(shape)
        if count * dtype.itemsize != info.file_size - stream.tell():
            raise ValueError(f"{name} says it has the shape {word(str(list(shape)))}, and holds other bytes")
        content = bytearray(stream.read())
        array = np.frombuffer(content, dtype, count) if dtype.itemsize else np.zeros(count, dtype)
    return array.reshape(shape[::-1]).transpose() if in_columns else array.reshape(shape)
