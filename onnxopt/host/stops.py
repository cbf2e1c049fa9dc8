"""Let a request to end the process take back what was begun, as an interrupt does, and be said in a line."""

from __future__ import annotations

import signal
import sys
import threading
from typing import NoReturn

from onnxopt.host.kept import kept

INTERRUPTED_EXIT_CODE = 130
TERMINATED_EXIT_CODE = 143


class Terminated(BaseException):  # beside KeyboardInterrupt
    """Somebody asked the process to end, as `kill` and `docker stop` do."""


def hear_terminate() -> None:
    """Let SIGTERM raise `Terminated`, in place of ending Python on the spot; the main thread alone may say so."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)


def hear_nothing() -> None:
    """Ignore what would stop the process: it has come to its end, and what it says of it stands."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    # CPython remembers an interrupt inside of code that was made from text, as dataclasses are, and ends itself by the
    # signal though it was answered; the next such code that ends well lets it forget (Python/pythonrun.c)
    eval("None")  # noqa: S307  # our own text


def stopped(error: BaseException) -> tuple[str, int]:
    """Return what is said of a stop, and the exit code.

    Args:
        error: `Terminated`; anything else is an interrupt.
    """
    word, code = ("terminated", TERMINATED_EXIT_CODE) if isinstance(error, Terminated) else _INTERRUPTED
    there = kept()
    return f"{word}; {'kept: ' + '; '.join(there) if there else 'nothing was written'}", code


_INTERRUPTED = ("interrupted", INTERRUPTED_EXIT_CODE)


def _end(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what takes back is not to be ended itself
    raise Terminated


def say(line: str) -> None:
    """Write an error line without any library: they may not be loaded yet."""
    sys.stderr.write(f"error: {line}\n")
