"""The command line: the commands of `onnxopt.cli` behind one entry, every failure one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, NoReturn

import typer

from onnxopt.cli.shared import app, err_console, out_console
from onnxopt.cli.watcher import ChildDiedError, go_on_in_child
from onnxopt.errors import InputError, OnnxoptError, word
from onnxopt.host.watch import limited_runs

COMMANDS = ("optimize", "graphs", "bench", "text", "serving", "compress", "quantize")  # in the order of the help page
for _name in COMMANDS:
    importlib.import_module(f"onnxopt.cli.{_name}")

OWN = {"serve"}  # its process is looked at, so it stays the one that was started; requests have their own time

# typer carries its own copy of click, whose base class of usage errors it does not name
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

LONGEST_LINE = 1000
BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130
TERMINATED_EXIT_CODE = 143


class Terminated(BaseException):
    """Somebody asked the process to end, as `kill` and `docker stop` do."""


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from onnxopt.version import __version__

        out_console.print(f"onnxopt {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure a user can cause is one line on standard error.

    Args:
        arguments: what a program gives; without it the command line of this process, whose work is done in a child.
    """
    try:
        code = go_on_in_child() if arguments is None and not OWN & set(sys.argv[1:2]) else None
    except ChildDiedError as error:
        return _fail_of(error)
    return _work(arguments) if code is None else code


def _fail_of(error: ChildDiedError) -> int:
    """Say what ended the work, and return the exit code."""
    asked = {signal.SIGINT: INTERRUPTED_EXIT_CODE, signal.SIGTERM: TERMINATED_EXIT_CODE}
    if error.signal in asked:  # before the command was there to say so itself
        return _fail("ended; nothing was written", asked[signal.Signals(error.signal)])
    return _fail(f"{error}; what is given cannot be read or run on this machine", InputError.exit_code)


def _work(arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    started = time.perf_counter()
    try:
        with _terminated_as_interrupted(), limited_runs() if not OWN & set(given[:1]) else nullcontext():
            code = command.main(args=given, prog_name="onnxopt", standalone_mode=False)
    except OnnxoptError as error:
        return _fail(str(error), error.exit_code)
    except UsageError as error:
        return _fail(str(getattr(error, "format_message", error.__str__)()), InputError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing was written", INTERRUPTED_EXIT_CODE)
    except Terminated:
        return _fail("terminated; nothing was written", TERMINATED_EXIT_CODE)
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is said in one line too
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # wherever it was first looked at
            return _fail(f"{error.filename}: the name is too long for a file; check the path", InputError.exit_code)
        if {"-v", "--verbose"} & set(given):
            traceback.print_exc()
        hint = "run it again with --verbose for the traceback and report it"
        return _fail(
            f"internal error after {time.perf_counter() - started:.0f} s: {type(error).__name__}: {error}; {hint}",
            BUG_EXIT_CODE,
        )
    if code == INTERRUPTED_EXIT_CODE:  # typer makes this of an interrupt, and says nothing
        return _fail("interrupted; nothing was written", code)
    return code if isinstance(code, int) else 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM take back what was begun, as an interrupt does, in place of ending Python on the spot."""
    if threading.current_thread() is not threading.main_thread():  # no other may say what signals do
        yield
        return

    def end(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what takes back is not to be ended itself
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> int:
    err_console.print(f"error: {_line(message)}", style="red", markup=False, soft_wrap=True)
    return code


def _line(message: str) -> str:
    """Return a message on one line that a terminal can show, its middle left out where it repeats what is endless."""
    line = word(" ".join(message.split()), len(message))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"


if __name__ == "__main__":
    sys.exit(main())
