"""Say what is being done, and end the process where it never ends: native code of others hears of nothing else.

A tokenizer from a stranger may hold a pattern that goes on for ever, or rules that make gigabytes of a word. Python
cannot interrupt it. Where a command is done in a child (`onnxopt.cli.watcher`), the child sets an alarm and a limit of
memory; both end it, and the parent reads off a page that the two share what it was at.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
from collections.abc import Iterator

from onnxopt.host.memory import told_bytes

_PAGE_BYTES = 4096
_board: list[mmap.mmap] = []


def put_up_board() -> None:
    """Make the page that this process and the children it forks from now on share."""
    _board[:] = [mmap.mmap(-1, _PAGE_BYTES)]


def on_board() -> str:
    """Return what a child was last at; empty where it was at nothing of note."""
    if not _board:
        return ""
    return bytes(_board[0][:]).partition(b"\0")[0].decode("utf-8", errors="ignore")


@contextlib.contextmanager
def doing(words: str, seconds: float, memory: int) -> Iterator[None]:
    """Do something that may never end.

    Without a parent that watches, and in threads other than the first, it is done without limits.

    Args:
        words: what it is, for the line that tells of its end, with what to do: `tokenizing; use another tokenizer`.
        seconds: how long it may take.
        memory: bytes that it may take beyond what the process has.
    """
    if not _board or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, whatever it is at
    _write(words)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with _limited_memory(memory), _silent():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        _write("")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what native code writes to standard error away from the one line for the user."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _write(words: str) -> None:
    content = words.encode()[: _PAGE_BYTES - 1]
    _board[0][: len(content) + 1] = content + b"\0"


@contextlib.contextmanager
def _limited_memory(more: int) -> Iterator[None]:
    """Let the process have so many bytes beyond those that it has, where the system tells how many these are."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_DATA)
    has = told_bytes("VmData")
    if has is None or (limits[0] != resource.RLIM_INFINITY and limits[0] < has + more):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (has + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
