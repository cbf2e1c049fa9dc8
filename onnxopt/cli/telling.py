"""Tell how a command failed: a line for people on standard error, and with `--json` an object on standard output.

So a program reads one stream: it holds the answer, or an object with the key `error`, as those of npm and terraform do.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from onnxopt.cli.answers import AnsweredError, plain
from onnxopt.cli.shared import err_console
from onnxopt.cli.words import print_words
from onnxopt.errors import InputError, OnnxoptError, word
from onnxopt.host.failures import Failure, write_failure
from onnxopt.host.stops import failure_of

LONGEST_LINE = 1000


@dataclass(frozen=True)
class Teller:
    """Says failures in the way that a command was asked to.

    Attributes:
        is_json: a program reads standard output.
    """

    is_json: bool

    def fail(self, failure: Failure, line: str | None = None, found: dict[str, Any] | None = None) -> int:
        """Tell a failure, and return its exit code.

        Args:
            failure: what went wrong.
            line: the words for people; its parts one behind the other when None.
            found: what the command found all the same.
        """
        if self.is_json:
            message, where, hint = map(one_line, (failure.message, failure.where, failure.hint))
            write_failure(replace(failure, message=message, where=where, hint=hint), found)
        if line is None:
            line = str(OnnxoptError(failure.message, where=failure.where, hint=failure.hint))
        with suppress(OSError):  # the disk of a log may be the one that is full
            print_words(err_console, f"error: {one_line(line)}", "red", indent=7)
        return failure.exit_code

    def fail_of(self, error: OnnxoptError) -> int:
        """Tell a failure that the user can act on."""
        failure = Failure(error.kind, error.what, error.exit_code, error.where, error.hint)
        found = plain(error.answer) if isinstance(error, AnsweredError) else None
        return self.fail(failure, str(error), found)

    def misuse(self, error: Exception) -> int:
        """Tell a usage error of the parser, whose classes have no public types."""
        message = str(getattr(error, "format_message", error.__str__)())
        context: Any = getattr(error, "ctx", None)
        command = str(context.command_path) if context is not None else "onnxopt"
        hint = f"`{command} --help` shows what it takes"
        return self.fail(Failure("usage", message, InputError.exit_code, command, hint), message)

    def stopped(self, line: str, code: int) -> int:
        """Tell that somebody stopped the command; the arguments are what `onnxopt.host.stops.stopped` gives."""
        return self.fail(failure_of(line, code), line)


def one_line(message: str) -> str:
    """Return a message on one line that a terminal can show, its middle left out where it repeats what is endless."""
    line = word(" ".join(message.split()), len(message))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
