"""What a command has kept so far: said where it is stopped before its end."""

from __future__ import annotations

from pathlib import Path

_kept: dict[Path, str] = {}


def keep(path: Path, words: str) -> None:
    """Note that something is finished and stays, whatever happens to the command.

    Args:
        path: where it lies; once it is gone, as a step's result in a scratch folder is in the end, it is not told.
        words: what there is, such as `build/minilm` or `the state of step 40 in build/x.state`; the last words on a
            path count.
    """
    _kept[path] = words


def kept() -> tuple[str, ...]:
    """Return the words for all that is there, in the order in which it came."""
    return tuple(words for path, words in _kept.items() if path.exists())
