"""Tell of a disk that takes no more: what is full, what is free, how much is needed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxopt.errors import OnnxoptError
from onnxopt.host.sizes import size_text

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room left; a quota used up; a file beyond a limit
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)  # read-only, or of somebody else
LOW_BYTES = 16 << 20  # with more left, a disk is not what an error without a path is about

# Libraries that write files in C++ or Rust raise errors of their own, with the system's words or less in them.
_WORDS = {os.strerror(code): code for code in (*FULL, errno.EROFS)}
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written|PytorchStreamWriter failed writing")  # numpy's, torch's


class NoRoomError(OSError):
    """A disk took no more, and it is known how much was to be written.

    Args:
        error: what the system said.
        code: its number.
        needed_bytes: of what was to be written.
    """

    def __init__(self, error: BaseException, code: int, needed_bytes: int) -> None:
        super().__init__(code, os.strerror(code))
        self.filename = getattr(error, "filename", None)
        self.needed_bytes = needed_bytes


@contextmanager
def needing(size_bytes: int) -> Iterator[None]:
    """Note how much the block writes, for the words of whoever tells that there is no room for it.

    Raises:
        NoRoomError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        code = code_of(error)
        if code in FULL and not isinstance(error, (NoRoomError, OnnxoptError)):
            raise NoRoomError(error, code, size_bytes) from error
        raise


def code_of(error: BaseException) -> int:
    """Return the system's number of an error that is about a disk, also where a library wrapped it; 0 for any other."""
    if isinstance(error, OnnxoptError):
        return 0
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in (*FULL, *CLOSED) else 0
    text = str(error)
    if found := next((code for words, code in _WORDS.items() if words in text), 0):
        return found
    return errno.ENOSPC if _CUT_SHORT.search(text) else 0


def is_short(place: Path, needed_bytes: int = 0) -> bool:
    """Tell whether the disk of a folder has hardly any room left, or less than is needed."""
    free = free_bytes(place)
    return free is not None and free < max(LOW_BYTES, needed_bytes)


def reason_of(error: BaseException, place: Path) -> str:
    """Say why something cannot be written: the system's words, what is free there, and what is needed where known.

    Args:
        error: of the system, or of a library that told its words.
        place: where it was to be written; it need not be there.
    """
    code = code_of(error)
    if code not in FULL:
        return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
    said = [os.strerror(code)]
    limit = _file_limit() if code == errno.EFBIG else None
    free = free_bytes(place) if code == errno.ENOSPC else None
    if limit is not None:
        said.append(f"this process may write files of {size_text(limit)}")
    if free is not None:
        said.append(f"{size_text(free)} free")
    if isinstance(error, NoRoomError):
        said.append(f"about {size_text(error.needed_bytes)} needed")
    return f"{said[0]}: {', '.join(said[1:])}" if said[1:] else said[0]


def advice_of(error: BaseException, elsewhere: str) -> str:
    """Say what helps: another place for what is written, or a higher limit.

    Args:
        error: as `reason_of` takes it.
        elsewhere: how another place is named, such as `set TMPDIR to another folder`.
    """
    if code_of(error) == errno.EFBIG and _file_limit() is not None:
        return "raise the limit (ulimit -f unlimited)"
    return elsewhere


def free_bytes(place: Path) -> int | None:
    """Return the bytes that are free on the disk of a folder, or of the nearest one above it that is there."""
    there = next((folder for folder in (place, *place.parents) if folder.exists()), None)
    try:
        return shutil.disk_usage(there).free if there is not None else None
    except OSError:
        return None


def _file_limit() -> int | None:
    """Return how large a file of this process may become; None for no limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit
