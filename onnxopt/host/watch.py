"""End runs of a graph that take too long: one thread looks at all of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LOOK_SECONDS = 0.1  # how often the thread looks


@dataclass
class Watched:
    """A run that is looked at.

    Attributes:
        deadline: when it must have ended, on the monotonic clock.
        options: onnxruntime's RunOptions of the run: it ends between two nodes once `terminate` is set.
        ended: whether it took too long.
    """

    deadline: float
    options: Any
    ended: bool = False


class _Watch:
    """The thread and what it looks at; it begins with the first run and sleeps while there is none."""

    def __init__(self) -> None:
        self._runs: dict[int, Watched] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, run: Watched) -> None:
        with self._lock:
            self._runs[id(run)] = run
            if self._thread is None or not self._thread.is_alive():  # a fork takes no threads along
                self._thread = threading.Thread(target=self._look, name="onnxopt-watch", daemon=True)
                self._thread.start()
        self._wake.set()

    def remove(self, run: Watched) -> None:
        with self._lock:
            self._runs.pop(id(run), None)

    def _look(self) -> None:
        while True:
            self._wake.wait()
            with self._lock:
                runs = list(self._runs.values())
                if not runs:
                    self._wake.clear()
            now = time.monotonic()
            for run in runs:
                if now > run.deadline:
                    run.ended = True
                    run.options.terminate = True
            time.sleep(LOOK_SECONDS if runs else 0)


_watch = _Watch()
_limits: list[object] = []  # one for each block of `limited_runs` that has been entered


@contextlib.contextmanager
def limited_runs() -> Iterator[None]:
    """While the block runs, sessions of artifacts end what takes too long, in all threads.

    The command line does so, which is given models of strangers; a program knows what it opens, and how long it waits.
    """
    mark = object()
    _limits.append(mark)
    try:
        yield
    finally:
        _limits.remove(mark)


def are_limited() -> bool:
    """Return whether sessions of artifacts are to end what takes too long."""
    return bool(_limits)


@contextlib.contextmanager
def watched(options: Any, seconds: float | None) -> Iterator[Watched]:
    """End what runs inside of the block when it takes too long.

    Args:
        options: onnxruntime's RunOptions of the run.
        seconds: how long it may take; None is as long as it likes.

    Yields:
        What says afterwards whether it was ended.
    """
    run = Watched(time.monotonic() + (seconds or 0.0), options)
    if seconds is None:
        yield run
        return
    _watch.add(run)
    try:
        yield run
    finally:
        _watch.remove(run)
