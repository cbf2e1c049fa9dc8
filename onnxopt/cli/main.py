"""The command line: the commands of `onnxopt.cli` behind one entry, every failure one line and an exit code."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from onnxopt.cli.shared import app, err_console, out_console
from onnxopt.errors import InputError, OnnxoptError

COMMANDS = ("optimize", "graphs", "bench", "text", "serving", "compress", "quantize")  # in the order of the help page
for _name in COMMANDS:
    importlib.import_module(f"onnxopt.cli.{_name}")

# typer carries its own copy of click, whose base class of usage errors it does not name
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from onnxopt.version import __version__

        out_console.print(f"onnxopt {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure a user can cause is one line on standard error."""
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    started = time.perf_counter()
    try:
        code = command.main(args=given, prog_name="onnxopt", standalone_mode=False)
    except OnnxoptError as error:
        return _fail(str(error), error.exit_code)
    except UsageError as error:
        return _fail(str(getattr(error, "format_message", error.__str__)()), InputError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing was written", INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is said in one line too
        if {"-v", "--verbose"} & set(given):
            traceback.print_exc()
        hint = "run it again with --verbose for the traceback and report it"
        return _fail(
            f"internal error after {time.perf_counter() - started:.0f} s: {type(error).__name__}: {error}; {hint}",
            BUG_EXIT_CODE,
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    err_console.print(f"error: {' '.join(message.split())}", style="red", markup=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
