"""A session of ONNX Runtime in a worker: what kills the worker or never ends is an error in words here.

One worker serves a process; it is started before it is needed, ends with the process, and a new one takes the place of
one that died.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxopt.errors import LimitError
from onnxopt.host.bounds import allow, bounds
from onnxopt.host.threads import available_threads
from onnxopt.probe.apart.frames import packed, read_frame, unpacked, write_frame
from onnxopt.probe.apart.worker import ARGUMENTS

START_SECONDS = 60.0  # until a worker answers first: a cold disk reads onnxruntime
NO_MEMORY = ("bad allocation", "bad_alloc", "Failed to allocate memory", "std::length_error")


class ApartError(RuntimeError):
    """A graph was not opened or did not run; carries ONNX Runtime's line."""


class BoundError(ApartError):
    """A graph took more than it may, or its process died.

    Attributes:
        what: what happened, in words.
        hint: how to allow more; empty where nothing would help.
        is_slow: whether it did not end in time.
    """

    def __init__(self, what: str, hint: str = "", *, is_slow: bool = False) -> None:
        self.what = what
        self.hint = hint
        self.is_slow = is_slow
        super().__init__(what)

    def told(self, where: str, beginning: str) -> LimitError:
        """Return it as an error for a user.

        Args:
            where: the file.
            beginning: what was tried, such as `cannot be opened`.
        """
        error = LimitError(f"{beginning}: {self.what}", where=where, hint=self.hint)
        error.is_slow = self.is_slow
        return error


def too_slow(seconds: float) -> BoundError:
    """Return the error of a run that took longer than so many seconds."""
    hint = allow("seconds", f"{max(60, 6 * seconds):.0f}")
    return BoundError(f"a run does not end within {seconds:.0f} s", hint, is_slow=True)


@dataclass(frozen=True)
class Argument:
    """An input or output, as onnxruntime's NodeArg."""

    name: str
    type: str
    shape: list[int | str | None]


class ApartSession:
    """An open graph in the worker, with the methods of an InferenceSession that a reference needs.

    Args:
        graph: path of a file, or a graph itself.
        config: entries of the session's configuration.
        optimized: with the runtime's own optimizations.
        threads: of one operator; what this process may use by default.
        weight_bytes: of the model, by which it may take more time and memory.

    Raises:
        ApartError: ONNX Runtime does not open it.
        BoundError: it takes too long or too much memory, or its process died.
    """

    def __init__(
        self,
        graph: str | bytes,
        *,
        config: Mapping[str, str] | None = None,
        optimized: bool = False,
        threads: int | None = None,
        weight_bytes: int = 0,
    ) -> None:
        limits = bounds()
        self._seconds, self._memory = limits.seconds_for(weight_bytes), limits.memory_for(weight_bytes)
        self._number = next(_numbers)
        self._message = {
            "do": "open",
            "session": self._number,
            "path": graph if isinstance(graph, str) else "",
            "config": dict(config or {}),
            "optimized": optimized,
            "threads": threads or available_threads(),
            "memory": self._memory,
        }
        self._graph = [memoryview(graph)] if isinstance(graph, bytes) else []
        self._open()

    def _open(self) -> None:
        self._worker = _worker_of_process()
        said = self._ask(self._message, self._graph)[0]
        self._arguments = {name: [Argument(**one) for one in said[name]] for name in ARGUMENTS}
        weakref.finalize(self, self._worker.unused.append, self._number)

    def close(self) -> None:
        """Let go of the graph, and of the memory that it takes in the worker; a run opens it again."""
        if not self._worker.is_over:
            self._ask({"do": "close", "session": self._number}, ())

    def get_inputs(self) -> list[Argument]:
        """Return the inputs."""
        return self._arguments["inputs"]

    def get_outputs(self) -> list[Argument]:
        """Return the outputs."""
        return self._arguments["outputs"]

    def get_overridable_initializers(self) -> list[Argument]:
        """Return the inputs that may be left out."""
        return self._arguments["overridable_initializers"]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any], options: Any = None) -> list[Any]:
        """Return the named outputs.

        Args:
            outputs: their names.
            feeds: a value per input.
            options: of a session in this process; nothing here.

        Raises:
            ApartError: it does not run on these.
            BoundError: it takes too long or too much memory, or its process died.
        """
        del options
        if self._worker.is_over:
            self._open()
        buffers: list[memoryview] = []
        spelled = {name: packed(value, buffers) for name, value in feeds.items()}
        message = {"do": "run", "session": self._number, "outputs": list(outputs), "feeds": spelled}
        said, found = self._ask(message, buffers)
        return [unpacked(spec, found) for spec in said["values"]]

    def _ask(self, message: Mapping[str, Any], buffers: Sequence[memoryview]) -> tuple[dict[str, Any], list[bytearray]]:
        said, found = self._worker.ask(message, buffers, self._seconds)
        error = said.get("error")
        if error is None:
            return said, found
        if any(mark in error for mark in NO_MEMORY):
            what = f"a run needs more than {self._memory >> 20} MiB of memory"
            raise BoundError(what, allow("memory", f"{(2 * self._memory >> 30) + 1}GiB"))
        raise ApartError(error)


class Worker:
    """One process that opens and runs graphs.

    Attributes:
        unused: numbers of sessions that nobody has any more; the next message closes them.
    """

    def __init__(self) -> None:
        self.unused: list[int] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._is_fresh = True
        self._process = subprocess.Popen(  # our own module in our own interpreter
            [sys.executable, "-m", "onnxopt.probe.apart.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # no modules out of the folder the user happens to be in
        )
        self._asked: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    @property
    def is_over(self) -> bool:
        """Whether it can be asked no more."""
        return self._owner != os.getpid() or self._process.poll() is not None

    def ask(
        self, message: Mapping[str, Any], buffers: Sequence[memoryview], seconds: float
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """Return the answer to a message; the worker is ended where none comes in time.

        Raises:
            BoundError: none comes, or the worker dies.
        """
        with self._lock:
            try:
                if self._is_fresh:
                    self._answer(START_SECONDS)
                    self._is_fresh = False
                given_up, self.unused[:] = list(self.unused), []
                write_frame(self._asked, {**message, "unused": given_up}, buffers)
                return self._answer(seconds)
            except (EOFError, OSError, ValueError) as error:  # the last: another thread's graph has ended it
                raise BoundError(f"running it ends its process ({self._end_word()})") from error
            except BaseException:  # too late, or an interrupt in the middle of a frame
                self.end()
                raise

    def _answer(self, seconds: float) -> tuple[dict[str, Any], list[bytearray]]:
        if _readable(self._answers.fileno(), seconds):
            return read_frame(self._answers)
        raise too_slow(seconds)

    def end(self) -> None:
        """End the process at once."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._asked, self._answers):
            with contextlib.suppress(OSError):  # what was not sent is of no use to anyone
                pipe.close()

    def _end_word(self) -> str:
        """Say in a word how the process ended."""
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self.end()
            return "no answer"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


_numbers = itertools.count(1)
_guard = threading.Lock()
_workers: list[Worker] = []


def start_worker() -> None:
    """Start the worker of this process, so that it is there when it is needed."""
    _worker_of_process()


def _worker_of_process() -> Worker:
    with _guard:
        if not _workers or _workers[-1].is_over:
            for worker in _workers:
                worker.end()
            del _workers[:]
            _workers.append(Worker())
        return _workers[-1]


def _readable(file: int, seconds: float) -> bool:
    poll = getattr(select, "poll", None)
    if poll is None:  # Windows, where pipes cannot be waited for
        return True
    waiting = poll()
    waiting.register(file, select.POLLIN | select.POLLHUP)
    return bool(waiting.poll(1000 * seconds))


@atexit.register
def _end_worker() -> None:
    for worker in _workers:
        worker.end()
