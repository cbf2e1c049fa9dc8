"""Do the work of a command in a child, so that what kills it is a line for the user and an exit code.

A graph, a tokenizer or weights from a stranger can end the process that reads them, in native code that raises nothing:
the division of the smallest integer by -1 does, and so does a fault in a library. The parent does nothing but wait. It
hands on what asks the command to end; the child dies with it, whatever kills it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

from onnxopt.host.doing import on_board, put_up_board

_ASKED_TO_END = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)
_FROM_TERMINAL = 0x80  # SI_KERNEL, sigaction(2): the terminal sends it to all processes of the command
_WORDS = {
    "SIGALRM": "it took too long",
    "SIGFPE": "a division that the processor cannot do",
    "SIGKILL": "the system ended it, perhaps for want of memory",
    "SIGSEGV": "a fault in native code",
    "SIGBUS": "a file that was cut short while it was read, or a fault in native code",
    "SIGILL": "an instruction that this processor lacks",
    "SIGABRT": "native code gave up, perhaps for want of memory",
}


class ChildDiedError(Exception):
    """The child was ended by a signal.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        self.signal = number
        name = signal.Signals(number).name
        at = f" while {on_board()}" if on_board() else ""
        super().__init__(f"the process was ended by {name}{f' ({_WORDS[name]})' if name in _WORDS else ''}{at}")


def go_on_in_child() -> int | None:
    """Fork; the child goes on with the command.

    Returns:
        None in the child, and where there are no forks or signals cannot be waited for; in the parent the exit code of
        the child, once it has ended.

    Raises:
        ChildDiedError: in the parent, where the child was ended by a signal.
    """
    if not sys.platform.startswith("linux"):
        return None
    put_up_board()
    asked = {getattr(signal, name) for name in _ASKED_TO_END}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*asked, signal.SIGCHLD})
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    try:
        return _wait(child, {*asked, signal.SIGCHLD})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it has died meanwhile
        os._exit(1)


def _wait(child: int, signals: set[signal.Signals]) -> int:
    """Wait for a child, and hand on what asks it to end.

    Raises:
        ChildDiedError: it was ended by a signal.
    """
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                raise ChildDiedError(-code)
            return code
        got = signal.sigwaitinfo(signals)
        if got.si_signo != signal.SIGCHLD and got.si_code != _FROM_TERMINAL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, got.si_signo)
