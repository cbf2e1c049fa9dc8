"""Folders and files that are being made: each is held by the process that makes it, so that what nobody holds can go.

What is being made has a name that nothing else has, and a lock of the system on it (flock(2)), which ends with the
process, however that ends. So the next process tells what was left behind from what another one still works on, in
other containers and under other process numbers too. Where a file system has no locks, nothing is taken away.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from onnxopt.errors import InputError
from onnxopt.host.stops import undisturbed

WAIT_SECONDS = 120.0  # for another process with the same folder
PAUSE_SECONDS = 0.1  # between two tries

Ending = Literal["part", "old", "scratch"]

_NAME = re.compile(r"\.?onnxopt-[a-z0-9_]{8}\.(part|old|scratch)")


@contextmanager
def claimed(room: Path, ending: Ending, *, folder: bool = True) -> Iterator[Path]:
    """Give a new folder or file that no other process takes for left behind; who asks moves it away or it goes.

    Args:
        room: the folder to make it in.
        ending: what it is: `part` becomes something else, `old` is what that takes the place of, `scratch` is of use
            for a while only.
        folder: false makes an empty file.

    Raises:
        OSError: it cannot be made there.
    """
    path, handle = None, None
    try:
        with undisturbed():
            path, handle = _claim(room, ending, folder=folder)
        yield path
    finally:
        with undisturbed():
            if path is not None:
                _remove(path)
            if handle is not None:
                os.close(handle)


def sweep(room: Path) -> None:
    """Remove what processes that are no more have left in a folder; an older folder whose place is empty goes back.

    Args:
        room: the folder; one that cannot be read is left as it is.
    """
    with contextlib.suppress(OSError):
        for path in sorted(room.iterdir()):
            found = _NAME.fullmatch(path.name)
            if found is None or path.is_symlink():
                continue
            handle = _hold(path, wait=False)
            if handle is None:
                continue
            try:
                if found[1] == "old":
                    _put_back(path)
                _remove(path)
            finally:
                os.close(handle)


def hold_shared(path: Path) -> int | None:
    """Hold a folder or file together with others, so that `remove_unused` leaves it; who removes it is waited for.

    Returns:
        What `os.close` lets go; None where it is not there, or the file system has no locks.
    """
    return _hold(path, wait=True, shared=True)


def remove_unused(path: Path) -> bool:
    """Remove a folder or file that no process holds; where a file system has no locks, whoever uses it.

    Returns:
        Whether it is gone.
    """
    handle = _hold(path, wait=False)
    if handle is None and _has_locks(path.parent):
        return not path.exists()
    try:
        _remove(path)
    finally:
        if handle is not None:
            os.close(handle)
    return not path.exists()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with a folder, also where another one takes its place meanwhile.

    Where a file system has no locks, nobody waits.

    Args:
        folder: it is there.

    Raises:
        InputError: another process does not come to an end with it.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        handle = _hold(folder, wait=False)
        if handle is None and _has_locks(folder.parent):
            if time.monotonic() > deadline:
                hint = "wait for its end and try again"
                raise InputError("another process works on it", where=str(folder), hint=hint)
            time.sleep(PAUSE_SECONDS)
            continue
        try:
            if handle is None or os.path.samestat(os.fstat(handle), folder.stat()):
                yield
                return
        finally:
            if handle is not None:
                os.close(handle)


def _has_locks(room: Path) -> bool:
    """Tell whether files in a folder can be locked."""
    with tempfile.TemporaryFile(dir=room) as file:
        return _lock(file.fileno(), wait=False)


def _claim(room: Path, ending: Ending, *, folder: bool) -> tuple[Path, int | None]:
    """Make a folder or file and hold it; another process may have swept it away in between, then make another one."""
    prefix, suffix = "onnxopt-" if ending == "scratch" else ".onnxopt-", f".{ending}"
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=room))
        else:
            made, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=room)
            os.close(made)
            path = Path(name)
        handle = _hold(path, wait=True)
        if path.exists():
            return path, handle
        if handle is not None:
            os.close(handle)


def _hold(path: Path, *, wait: bool, shared: bool = False) -> int | None:
    """Lock a folder or file; None where another process holds it, or the file system knows no locks."""
    if sys.platform == "win32":  # which opens no folders
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    if _lock(handle, wait=wait, shared=shared):
        return handle
    os.close(handle)
    return None


def _lock(handle: int, *, wait: bool, shared: bool = False) -> bool:
    """Lock an open file, for this process alone or with others; False where it is not to be had."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _put_back(aside: Path) -> None:
    """Put older folders back where nothing took their place: the process that was about to was killed in between."""
    for older in aside.iterdir():
        place = aside.parent / older.name
        if not place.exists():
            older.rename(place)


def _remove(path: Path) -> None:
    """Remove a folder or file, if it is still there; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
