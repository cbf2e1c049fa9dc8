"""Scratch folders: gone when their block ends; where a process was killed, gone with the next one that is made."""

from __future__ import annotations

import atexit
import contextlib
import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.host.claims import claimed, sweep
from onnxopt.host.disk import FULL, NoRoomError, advice_of, code_of, is_short, reason_of


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder below the system's folder for temporary files (`TMPDIR`), and remove it in the end.

    What processes that are no more have left there is taken away first; those of other users are left to them.

    Raises:
        InputError: nothing can be written there, or not as much as was to be.
    """
    room = _room()
    sweep(room)
    try:
        claim = contextlib.ExitStack()
        folder = claim.enter_context(claimed(room, "scratch"))
    except OSError as error:
        raise _told(error, room) from error
    with claim, told_of(folder):
        yield folder


@contextmanager
def told_of(folder: Path) -> Iterator[None]:
    """Let errors of writing into a scratch folder end the block in a user's words.

    Raises:
        InputError: nothing can be written there, or not as much as was to be.
    """
    try:
        yield
    except Exception as error:
        if _is_of(error, folder):
            raise _told(error, folder.parent) from error
        raise


def lasting_folder() -> Path:
    """Return an empty scratch folder that stays until this process ends.

    Raises:
        InputError: nothing can be written there.
    """
    held = contextlib.ExitStack()
    atexit.register(held.close)
    return held.enter_context(scratch_folder())


def _room() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:  # all of its candidates were tried
        hint = "make room there, or set TMPDIR to another folder"
        raise InputError("no folder for temporary files can be written", where="TMPDIR", hint=hint) from error


def _is_of(error: Exception, folder: Path) -> bool:
    """Tell whether an error in the block is one of writing into its folder."""
    code = code_of(error)
    if not code:
        return False
    name = error.filename if isinstance(error, OSError) else None
    if name is not None:
        return isinstance(name, str) and Path(name).is_relative_to(folder.parent)
    needed = error.needed_bytes if isinstance(error, NoRoomError) else 0
    return code in FULL and (code != errno.ENOSPC or is_short(folder, needed))


def _told(error: Exception, room: Path) -> InputError:
    """Return an error of the system in a user's words."""
    what = f"temporary files cannot be written ({reason_of(error, room)})"
    hint = advice_of(error, "make room there, or set TMPDIR to a folder on another disk")
    return InputError(what, where=str(room), hint=hint)
