"""The command line: the commands of `onnxopt.cli` behind one entry, every failure one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

from onnxopt.cli.shared import app, err_console, out_console
from onnxopt.cli.watcher import ChildDiedError, go_on_in_child
from onnxopt.errors import InputError, OnnxoptError, word
from onnxopt.host.disk import CLOSED, FULL, advice_of, code_of, reason_of
from onnxopt.host.scratch import scratch_folder
from onnxopt.host.stops import INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE, Terminated, hearing_stops, stopped
from onnxopt.host.watch import limited_runs

COMMANDS = (
    "optimize",
    "graphs",
    "bench",
    "text",
    "serving",
    "compress",
    "quantize",
    "doctor",
)  # in the order of the help page
for _name in COMMANDS:
    importlib.import_module(f"onnxopt.cli.{_name}")

OWN = {"serve"}  # its process is looked at, so it stays the one that was started; requests have their own time

# typer carries its own copy of click, whose base class of usage errors it does not name
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

LONGEST_LINE = 1000
BUG_EXIT_CODE = 70
UNREAD_EXIT_CODE = 128 + 13  # as a shell has it for SIGPIPE, which Windows has no number for
_WRITERS = (__name__, "onnxopt.cli.shared", "rich.console")  # what writes to the consoles


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
    """Say what ended the work, take away the temporary files that it left, and return the exit code."""
    with suppress(OSError), scratch_folder():  # whose making removes those of processes that are no more
        pass
    asked = {signal.SIGINT: INTERRUPTED_EXIT_CODE, signal.SIGTERM: TERMINATED_EXIT_CODE}
    if error.signal in asked:  # before the command was there to say so itself
        return _fail("ended; nothing was written", asked[signal.Signals(error.signal)])
    return _fail(f"{error}; what is given cannot be read or run on this machine", InputError.exit_code)


def _work(arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    started = time.perf_counter()
    _escape_what_cannot_be_written()
    try:
        with hearing_stops(), limited_runs() if not OWN & set(given[:1]) else nullcontext():
            code = command.main(args=given, prog_name="onnxopt", standalone_mode=False)
            sys.stdout.flush()
    except OnnxoptError as error:
        return _fail(str(error), error.exit_code)
    except UsageError as error:
        return _fail(str(getattr(error, "format_message", error.__str__)()), InputError.exit_code)
    except (KeyboardInterrupt, Terminated, typer.Abort) as stop:
        return _fail(*stopped(stop))
    except (SystemExit, BrokenPipeError) as end:
        if not isinstance(end if isinstance(end, BrokenPipeError) else end.__context__, BrokenPipeError):
            raise
        return _unread()
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is said in one line too
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # wherever it was first looked at
            return _fail(f"{error.filename}: the name is too long for a file; check the path", InputError.exit_code)
        if {"-v", "--verbose"} & set(given):
            traceback.print_exc()
        if (full := _of_a_disk(error)) is not None:
            return _fail(str(full), full.exit_code)
        hint = "run it again with --verbose for the traceback and report it"
        return _fail(
            f"internal error after {time.perf_counter() - started:.0f} s: {type(error).__name__}: {error}; {hint}",
            BUG_EXIT_CODE,
        )
    if code == INTERRUPTED_EXIT_CODE:  # typer makes this of an interrupt, and says nothing
        return _fail(*stopped(KeyboardInterrupt()))
    return code if isinstance(code, int) else 0


def _escape_what_cannot_be_written() -> None:
    """Let standard output write a sign that its encoding lacks as standard error does, in place of an error.

    A pipe of Windows has one of 256 signs, and a name out of a file may hold anything.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _unread() -> int:
    """Throw away what nobody reads any longer, and return the exit code of a program whose reader has gone.

    Typer and rich leave by SystemExit then, with the error that they have met as its context.
    """
    with suppress(OSError):  # no file is behind it: then nothing is left to be written at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD_EXIT_CODE


def _of_a_disk(error: Exception) -> InputError | None:
    """Return an error of the system about a disk in a user's words, None for any other; few know where it was."""
    name = error.filename if isinstance(error, OSError) else None
    if code_of(error) not in (FULL if name is None else (*FULL, *CLOSED)):
        return None
    if name is None and _is_output(error):
        return InputError(f"cannot be written ({reason_of(error, Path())})", where="the output")
    place = Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) else None
    hint = "point --out, TMPDIR or ONNXOPT_CACHE to another disk, whichever is full or closed"
    what = f"cannot be written ({reason_of(error, place or Path())})"
    return InputError(what, where=str(place or "a file"), hint=advice_of(error, hint))


def _is_output(error: Exception) -> bool:
    """Tell whether it is a console that takes no more; what is left for it is thrown away then."""
    *_, last = traceback.walk_tb(error.__traceback__)
    if last[0].f_globals.get("__name__") not in _WRITERS:
        return False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # noqa: PERF203  # there are two
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # the disk of a log may be the one that is full
        err_console.print(f"error: {_line(message)}", style="red", markup=False, soft_wrap=True)
    return code


def _line(message: str) -> str:
    """Return a message on one line that a terminal can show, its middle left out where it repeats what is endless."""
    line = word(" ".join(message.split()), len(message))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"


if __name__ == "__main__":
    sys.exit(main())
