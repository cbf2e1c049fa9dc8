"""What a command has kept so far: said where it is stopped before its end."""

from __future__ import annotations

_kept: dict[str, str] = {}


def keep(what: str, words: str) -> None:
    """Note that something is finished and stays, whatever happens to the command.

    Args:
        what: which thing; said once more, it takes the place of what was said of it before.
        words: what there is, such as `build/minilm` or `the state of step 40 in build/x.state`.
    """
    _kept[what] = words


def let_go(what: str) -> None:
    """Note that a thing is not there any more."""
    _kept.pop(what, None)


def kept() -> tuple[str, ...]:
    """Return the words for all that is there, in the order in which it came."""
    return tuple(_kept.values())
