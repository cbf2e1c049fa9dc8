"""A child process that is asked one thing at a time: what a graph does to memory or the interpreter stays its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

HEAVY = "tests.exam.loaded_once"  # what every child needs, loaded once by the server that they are forked from
TASKS_PER_CHILD = 250  # then a new one is forked: what a thousand sessions leave behind is not what is looked at
BYTES = 12 * 2**30  # of address space
TIME_OUT, DIED = "time-out", "died"


class Child:
    """A process that is replaced when it dies or does not answer in time."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([HEAVY])
        self._process: Any = None
        self._pipe: Any = None
        self._asked = 0

    def ask(self, function: Callable[..., Any], *arguments: object, seconds: float) -> Any:
        """Return what a function of a module gives, or `time-out` or `died`."""
        if self._process is None or self._asked >= TASKS_PER_CHILD:
            self.stop()
            self._start()
        self._asked += 1
        try:
            self._pipe.send((function, arguments))
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, OSError):
            self.stop()
            return DIED
        self.stop()
        return TIME_OUT

    def _start(self) -> None:
        self._pipe, there = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        there.close()
        self._asked = 0

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = None


def _serve(pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    while True:
        function, arguments = pipe.recv()
        pipe.send(function(*arguments))
