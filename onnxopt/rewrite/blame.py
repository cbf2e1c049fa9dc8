"""Say in one line, with file and line, what a pass from outside of onnxopt does wrong."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from onnxopt.errors import OnnxoptError, OwnPassError, PassAuthorError, word
from onnxopt.rewrite.rule import Rewrite

LONGEST_REASON = 200  # letters of somebody else's message
MEND = "mend it, or leave the pass out"


@contextmanager
def blamed(step: Rewrite | type[Rewrite]) -> Iterator[None]:
    """Turn what the code of a pass raises into an error for the user who named it.

    A pass of onnxopt itself is a matter of onnxopt: nothing of it is turned.

    Args:
        step: whose code is run inside.

    Raises:
        OwnPassError: code of a pass from outside raised something, or it broke the contract of passes.
    """
    kind = step if isinstance(step, type) else type(step)
    if kind.origin is None:
        yield
        return
    try:
        yield
    except OnnxoptError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, PassAuthorError):
            what = str(error) if kind.name in str(error) else f"{kind.name}: {error}"
            raise OwnPassError(what, where=place_of(kind), hint=MEND) from error
        frames = frames_of(error, _roots(kind))
        if not frames:
            raise  # nothing of the pass was running: a fault of onnxopt, or of the machine
        where, method = _place(*frames[-1]), frames[0][0].f_code.co_name
        what = f"{kind.name}: {method} raised {said(error)}"
        raise OwnPassError(what, where=where, hint=MEND) from error


def said(error: BaseException) -> str:
    """Return an exception in words: its kind, and what it carries."""
    text = word(str(error), LONGEST_REASON)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def frames_of(error: BaseException, roots: Collection[str]) -> list[tuple[FrameType, int]]:
    """Return the frames of an exception's traceback that lie in some packages, with their lines, outermost first.

    Args:
        error: that was raised.
        roots: names of modules without their dots: `my_package` for all that lies in it.
    """
    walked = traceback.walk_tb(error.__traceback__)
    return [(frame, line) for frame, line in walked if _root(str(frame.f_globals.get("__name__"))) in roots]


def place_in(error: BaseException, root: str) -> str:
    """Return file and line of a package at which it failed while it was imported; empty where none of it was running.

    Args:
        error: that was raised.
        root: name of the package, or of a module of its own.
    """
    frames = frames_of(error, {root})
    return _place(*frames[-1]) if frames else ""


def place_of(kind: type, method: str = "") -> str:
    """Return file and line of a class, or of one of its methods; what is known of it where it was typed in."""
    made = inspect.unwrap(getattr(kind, method)) if method else kind
    thing = made if inspect.isfunction(made) else kind
    try:
        return f"{shown(inspect.getfile(thing))}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError, IndexError):
        return f"{kind.__module__}.{kind.__qualname__}"


def shown(file: str) -> str:
    """Return a path as a person reads it: below the folder that they are in, without that."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _place(frame: FrameType, line: int) -> str:
    return f"{shown(frame.f_code.co_filename)}:{line}"


def _roots(kind: type[Rewrite]) -> set[str]:
    """Return the packages whose code a class is made of; onnxopt is not to blame."""
    return {_root(one.__module__) for one in kind.__mro__} - {"onnxopt", "builtins", "abc"}


def _root(module: str) -> str:
    return module.partition(".")[0]
