"""The errors a user can meet, each one line: what failed, where, what to do.

Exit codes of the command line: 0 done, 1 a proof failed or a gate is not passed, 2 bad input or a missing thing, 130 or
143 stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

Kind = Literal[  # of a failure, for programs that read it
    "input",
    "limit",
    "export",
    "proof",
    "gate",
    "own-pass",
    "usage",
    "died",
    "interrupted",
    "terminated",
    "internal",
]


class OnnxoptError(Exception):
    """A failure that the user can act on.

    Args:
        what: what went wrong, in plain words, with the found and the expected value.
        where: the file, node, input or option it concerns; empty when `what` already says it.
        hint: the next step for the user.
    """

    exit_code = 2
    kind: ClassVar[Kind] = "input"

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        line = f"{line}; {self.hint}" if self.hint else line
        return " ".join(line.split())


class InputError(OnnxoptError):
    """The source, a file, an option or the environment is not usable."""


class LimitError(InputError):
    """An input costs more than it may: time, memory, or the process that runs it.

    Attributes:
        is_slow: it is the time.
    """

    kind = "limit"
    is_slow = False


class ExportError(OnnxoptError):
    """The model could not be turned into ONNX."""

    kind = "export"


class ProofError(OnnxoptError):
    """The result is not equal to its reference within the budget; nothing was written."""

    exit_code = 1
    kind = "proof"


class GateError(OnnxoptError):
    """The result is not what was required of it, as fast or in as few bits; nothing was written."""

    exit_code = 1
    kind = "gate"


class OwnPassError(OnnxoptError):
    """A pass of the user's own cannot be loaded, or fails where it works."""

    kind = "own-pass"


class PassAuthorError(Exception):
    """A pass breaks its own contract, such as a name used twice: a bug in onnxopt, not bad input."""


def word(text: str, limit: int = 80) -> str:
    """Return a name from a file as it may appear in an error line: printable, on one line, not endless."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def place(path: str | Path, limit: int = 400) -> str:
    """Return a path as it may appear in an error line: printable, on one line, an endless one by its end."""
    text = str(path)
    return word(text, limit) if len(text) <= limit else "…" + word(text[1 - limit :], limit - 1)


def said(error: BaseException, limit: int | None = None) -> str:
    """Return what an error of other code says, on one line; the name of its kind where it says nothing.

    Args:
        error: of a library, a network, a template.
        limit: letters that are kept; None for all.
    """
    return " ".join(str(error).split())[:limit] or type(error).__name__
