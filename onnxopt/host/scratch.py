"""Scratch folders: gone when their block ends; where a process was killed, gone with the next one that is made."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r"onnxopt-(\d+)-(\d+)-.*")  # the process, when it began, and what makes the name its own

_ENDED = ("Z", "X")  # states of a process that has ended and that nobody has asked about


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder below the system's folder for temporary files (`TMPDIR`), and remove it in the end.

    Its name tells which process made it. Folders of processes that are no more, which nothing else would remove, are
    taken away first; those of other users are left to them.
    """
    _remove_left_behind(Path(tempfile.gettempdir()))
    own = os.getpid()
    with tempfile.TemporaryDirectory(prefix=f"onnxopt-{own}-{_began(own) or 0}-") as folder:
        yield Path(folder)


def _remove_left_behind(room: Path) -> None:
    with contextlib.suppress(OSError):
        for folder in room.iterdir():
            named = _NAME.fullmatch(folder.name)
            if named is not None and _is_over(int(named[1]), int(named[2])) and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)


def _is_over(process: int, began: int) -> bool:
    """Tell whether a process has ended; where that cannot be known, as without /proc, it has not."""
    return Path("/proc/self/stat").exists() and _began(process) != began


def _began(process: int) -> int | None:
    """Return when a process began, in ticks since the machine did; None where there is no such process any more.

    A number that was given to another process meanwhile has another beginning: proc(5), field 22 of `stat`.
    """
    try:
        content = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, *fields = content.rpartition(")")[2].split()
    return None if state in _ENDED else int(fields[18])
