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

from onnxopt.cli.shared import app, out_console
from onnxopt.cli.telling import Teller
from onnxopt.cli.watcher import ChildDiedError, go_on_in_child
from onnxopt.errors import InputError, OnnxoptError
from onnxopt.host.disk import CLOSED, FULL, advice_of, code_of, reason_of
from onnxopt.host.failures import Failure, asks_for_json
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
    "tasks",
    "doctor",
    "schema",
)  # in the order of the help page
for _name in COMMANDS:
    importlib.import_module(f"onnxopt.cli.{_name}")

OWN = {"serve"}  # its process is looked at, so it stays the one that was started; requests have their own time

# typer carries its own copy of click, whose base class of usage errors it does not name
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

BUG_EXIT_CODE = 70
UNREAD_EXIT_CODE = 128 + 13  # as a shell has it for SIGPIPE, which Windows has no number for
# what writes to the consoles
_WRITERS = (__name__, *(f"onnxopt.cli.{one}" for one in ("answers", "progress", "schema")), "rich.console")


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
    given = list(sys.argv[1:] if arguments is None else arguments)
    teller = Teller(is_json=asks_for_json(given))
    try:
        code = go_on_in_child() if arguments is None and not OWN & set(given[:1]) else None
    except ChildDiedError as error:
        return _fail_of(error, teller)
    return _work(given, teller) if code is None else code


def _fail_of(error: ChildDiedError, teller: Teller) -> int:
    """Say what ended the work, take away the temporary files that it left, and return the exit code."""
    with suppress(OSError), scratch_folder():  # whose making removes those of processes that are no more
        pass
    asked = {signal.SIGINT: INTERRUPTED_EXIT_CODE, signal.SIGTERM: TERMINATED_EXIT_CODE}
    if error.signal in asked:  # before the command was there to say so itself
        return teller.stopped("ended; nothing was written", asked[signal.Signals(error.signal)])
    hint = "what is given cannot be read or run on this machine"
    return teller.fail(Failure("died", str(error), InputError.exit_code, hint=hint))


def _work(given: list[str], teller: Teller) -> int:
    command = typer.main.get_command(app)
    started = time.perf_counter()
    _escape_what_cannot_be_written()
    try:
        with hearing_stops(), limited_runs() if not OWN & set(given[:1]) else nullcontext():
            code = command.main(args=given, prog_name="onnxopt", standalone_mode=False)
            sys.stdout.flush()
    except OnnxoptError as error:
        return teller.fail_of(error)
    except UsageError as error:
        return teller.misuse(error)
    except (KeyboardInterrupt, Terminated, typer.Abort) as stop:
        return teller.stopped(*stopped(stop))
    except (SystemExit, BrokenPipeError) as end:
        if not isinstance(end if isinstance(end, BrokenPipeError) else end.__context__, BrokenPipeError):
            raise
        return _unread()
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is said in one line too
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # wherever it was first looked at
            what, hint = "the name is too long for a file", "check the path"
            return teller.fail_of(InputError(what, where=str(error.filename), hint=hint))
        if {"-v", "--verbose"} & set(given):
            traceback.print_exc()
        if (full := _of_a_disk(error)) is not None:
            return teller.fail_of(full)
        what = f"internal error after {time.perf_counter() - started:.0f} s: {type(error).__name__}: {error}"
        hint = "run it again with --verbose for the traceback and report it"
        return teller.fail(Failure("internal", what, BUG_EXIT_CODE, hint=hint))
    if code == INTERRUPTED_EXIT_CODE:  # typer makes this of an interrupt, and says nothing
        return teller.stopped(*stopped(KeyboardInterrupt()))
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


if __name__ == "__main__":
    sys.exit(main())
