"""Let a request to end the process take back what was begun, as an interrupt does, and be said in a line."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from onnxopt.errors import Kind
from onnxopt.host.failures import Failure, asks_for_json, write_failure
from onnxopt.host.kept import kept

INTERRUPTED_EXIT_CODE = 130
TERMINATED_EXIT_CODE = 143
AGAIN_SECONDS = 0.02  # until a stop that was put off is looked at again
MOST_SECONDS = 10.0  # that it is put off
_LOADERS = ("_frozen_importlib", "importlib._bootstrap")

_heard: list[BaseException] = []
_put_off: dict[int, float] = {}  # stops that wait, by signal, and since when
_again: set[int] = set()  # those of them that are sent anew by `_signal_main`
_busy: list[None] = []  # as many as there are blocks that are not to be cut short


class Terminated(BaseException):  # beside KeyboardInterrupt
    """Somebody asked the process to end, as `kill` and `docker stop` do."""


def hear_stops() -> None:
    """Let SIGTERM raise `Terminated`, in place of ending Python on the spot; SIGINT `KeyboardInterrupt`, as usual.

    Neither is raised inside of an import, where native code makes an ImportError of it, which whoever can do without
    that library passes over: it is put off until the import is over. The main thread alone may say what signals do.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _forget()
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is behind a shell's &
        signal.signal(signal.SIGINT, _end)


def _forget() -> None:
    """Know of no stop any longer; in a child that was forked, what the parent put off comes to it from there."""
    _heard.clear()
    _put_off.clear()
    _again.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def hearing_stops() -> Iterator[None]:
    """Hear them as `hear_stops` does, and as before afterwards; what others make of a stop is raised as the stop."""
    both = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(one) for one in both]
    hear_stops()
    try:
        yield
    except Exception as error:
        if _heard:
            raise _heard[0] from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            _heard.clear()
            for one, handler in zip(both, before, strict=True):
                signal.signal(one, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put a stop off until the block is over, ten seconds at most: what is made is known then, and what goes is gone.

    In other threads than the main one nothing is raised anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _busy.append(None)
    try:
        yield
    finally:
        _busy.pop()


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


def failure_of(line: str, code: int) -> Failure:
    """Return what `stopped` says for programs.

    Args:
        line: its words.
        code: its exit code.
    """
    kind: Kind = "terminated" if code == TERMINATED_EXIT_CODE else "interrupted"
    return Failure(kind, line, code, kept=kept())


_INTERRUPTED = ("interrupted", INTERRUPTED_EXIT_CODE)


def _end(number: int, frame: FrameType | None) -> None:
    if number in _again:
        _again.discard(number)
    elif number in _put_off:
        return  # one of the kind waits already
    now = time.monotonic()
    if (_busy or _is_loading(frame)) and now - _put_off.setdefault(number, now) < MOST_SECONDS:
        again = threading.Timer(AGAIN_SECONDS, _signal_main, [number])
        again.daemon = True
        again.start()
        return
    _put_off.pop(number, None)
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what takes back is not to be ended itself
    stop = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    _heard.append(stop)
    raise stop


def _signal_main(number: int) -> None:
    """Send a signal that was put off to the main thread, which wakes it where the system can do that."""
    _again.add(number)
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def _is_loading(frame: FrameType | None) -> bool:
    """Tell whether a module is being imported, at any depth."""
    while frame is not None:
        if frame.f_globals.get("__name__") in _LOADERS:
            return True
        frame = frame.f_back
    return False


def say(line: str, code: int) -> None:
    """Write an error line, and with `--json` the object, without any library: they may not be loaded yet.

    Args:
        line: what `stopped` says.
        code: what it gives.
    """
    if asks_for_json(sys.argv[1:]):
        write_failure(failure_of(line, code))
    sys.stderr.write(f"error: {line}\n")
