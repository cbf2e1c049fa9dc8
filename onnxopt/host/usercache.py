"""Where the cache folder of the user is, and how entries are put there; a cache that takes none is no failure."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from onnxopt.host.claims import hold_shared, remove_unused
from onnxopt.host.disk import reason_of
from onnxopt.host.folders import CacheError, appearing, seal, staged
from onnxopt.host.quiet import NOTES
from onnxopt.host.scratch import lasting_folder, told_of

Made = TypeVar("Made")

MOST_HELD = 64  # entries that one process keeps from being cleared: those it used last

_said: set[Path] = set()  # caches of which it was said that they cannot be written
_until_done: dict[Path, None] = {}  # entries that the end of a command removes
_held: dict[Path, int] = {}  # entries that this process uses, the last one behind the others


def cache_root() -> Path:
    """Return the cache folder: `ONNXOPT_CACHE`, else `XDG_CACHE_HOME/onnxopt`, else `~/.cache/onnxopt`."""
    if own := os.environ.get("ONNXOPT_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").expanduser().absolute() / "onnxopt"


def use_entry(entry: Path) -> None:
    """Keep an entry of the cache from being cleared until this process ends, and note that it was used.

    Call it before the entry is read: who clears the cache is waited for, and the entry may be gone then.

    Args:
        entry: its folder; it need not be there.
    """
    if (before := _held.pop(entry, None)) is not None:
        os.close(before)
    handle = hold_shared(entry)
    if handle is None:
        return
    _held[entry] = handle
    if len(_held) > MOST_HELD:
        os.close(_held.pop(next(iter(_held))))
    with contextlib.suppress(OSError):  # a cache that cannot be written is still a cache
        os.utime(entry)


def drop_entry(entry: Path) -> None:
    """Remove an entry that has served; it stays where another process uses it.

    Args:
        entry: its folder, in the cache or where `make_entry` put it instead.
    """
    if (held := _held.pop(entry, None)) is not None:
        os.close(held)
    remove_unused(entry)


def keep_until_done(entry: Path) -> None:
    """Note an entry that is for the same command alone, should it be stopped: `drop_done` removes it.

    Args:
        entry: its folder.
    """
    _until_done[entry] = None


def drop_done() -> None:
    """Remove what was kept in case that the command is stopped: it has come to its end."""
    while _until_done:
        drop_entry(_until_done.popitem()[0])


def make_entry(entry: Path, make: Callable[[Path], Made], *, inside: str = "") -> tuple[Path, Made]:
    """Make an entry of the cache; where it cannot be written, in a folder that stays until this process ends.

    Args:
        entry: its folder.
        make: fills a folder; called once more where the cache turns out to be full.
        inside: what of it is sealed; the whole entry when empty.

    Returns:
        Where the entry lies, and what `make` returned.

    Raises:
        InputError: neither the cache nor the folder for temporary files takes it.
    """
    try:
        with staged(entry, cache=True) as fresh:
            made = make(fresh)
            seal(fresh, inside)
    except CacheError as error:
        note_unwritable(error)
    else:
        use_entry(entry)
        return entry, made
    room = lasting_folder()
    folder = room / entry.name
    with told_of(room):
        folder.mkdir()
        return folder, make(folder)


def keep_file(path: Path, write: Callable[[Path], object]) -> None:
    """Put a file into the cache, whole or not at all; where it cannot be written, nothing is kept.

    Args:
        path: the file; its folder is made when missing.
        write: fills a file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as fresh:
            write(fresh)
    except OSError as error:
        what = f"{path.parent}: cannot write to the cache ({reason_of(error, path.parent)})"
        note_unwritable(f"{what}; set ONNXOPT_CACHE to another folder")


def note_unwritable(words: object) -> None:
    """Say once that the cache cannot be written and that work goes on without.

    Args:
        words: what is the matter, and what helps.
    """
    root = cache_root()
    if root not in _said:
        _said.add(root)
        logging.getLogger(NOTES).warning("%s; what it would keep is made anew by every run", words)
