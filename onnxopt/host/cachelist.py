"""What lies in the user's cache, and how it is cleared: nothing that is not onnxopt's, and nothing that is in use."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.host.claims import remove_unused
from onnxopt.host.usercache import cache_root

_AGE = re.compile(r"\s*(\d{1,5})\s*([hdw])\s*", re.IGNORECASE)
_HOURS = {"h": 1, "d": 24, "w": 168}
# what a process that was killed, or an older version, has left of an entry that it was making
_LEFT_BEHIND = re.compile(r"\.onnxopt-[a-z0-9_]{8}\.(part|old)|\.making-[a-z0-9_]{8}")


@dataclass(frozen=True)
class Kind:
    """A folder of the cache.

    Attributes:
        purpose: what its entries are for.
        names: the names that they have; whatever is called otherwise is somebody else's.
    """

    purpose: str
    names: re.Pattern[str]


KINDS: Mapping[str, Kind] = {
    "samples": Kind("weights of recipes, fetched with pip", re.compile(r".+-[0-9a-f]{16}")),
    "converted": Kind("GGUF files as checkpoints", re.compile(r".+-[0-9a-f]{16}")),
    "exports": Kind("checkpoints as graphs", re.compile(r".+-[0-9a-f]{24}")),
    "profit": Kind("measured forms of kernels", re.compile(r"[0-9a-f]{40}\.json")),
    "calibration": Kind("statistics of calibrations that were stopped", re.compile(r"[0-9a-f]{32}\.npz")),
    "rounded": Kind("layers of large models in fewer bits", re.compile(r"[0-9a-f]{32}(-inputs)?")),
}


@dataclass(frozen=True)
class Entry:
    """One entry of the cache.

    Attributes:
        kind: a name of `KINDS`.
        path: its folder or file.
        size: bytes of its files.
        used: when it was last used, or made where that is not noted; UTC.
        is_left: it was never finished.
    """

    kind: str
    path: Path
    size: int
    used: datetime
    is_left: bool = False


def entries() -> list[Entry]:
    """Return what lies in the user's cache, by kind and name; what cannot be read is left out."""
    found = []
    for kind, about in KINDS.items():
        folder = cache_root() / kind
        with contextlib.suppress(OSError):
            for path in sorted(folder.iterdir()):
                is_left = _LEFT_BEHIND.fullmatch(path.name) is not None
                if path.is_symlink() or not (is_left or about.names.fullmatch(path.name)):
                    continue
                with contextlib.suppress(OSError):  # another process has removed it meanwhile
                    used = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
                    found.append(Entry(kind, path, _size(path), used, is_left))
    return found


def clear(chosen: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Remove entries of the cache, but for those that a process uses or is making.

    Args:
        chosen: of `entries`.

    Returns:
        What is gone, and what stayed.
    """
    gone: list[Entry] = []
    stayed: list[Entry] = []
    for entry in chosen:
        (gone if remove_unused(entry.path) else stayed).append(entry)
    return gone, stayed


def older_than(found: Iterable[Entry], age: str) -> list[Entry]:
    """Return the entries that were not used for so long.

    Args:
        found: of `entries`.
        age: such as `12h`, `30d` or `2w`.

    Raises:
        InputError: the age cannot be read.
    """
    said = _AGE.fullmatch(age)
    if said is None:
        raise InputError(f"cannot read {age!r}", where="--older-than", hint="write 12h, 30d or 2w")
    limit = datetime.now(timezone.utc) - timedelta(hours=int(said[1]) * _HOURS[said[2].lower()])
    return [entry for entry in found if entry.used < limit]


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; none of those that a link leads to."""
    files = path.rglob("*") if path.is_dir() else (path,)
    size = 0
    for file in files:
        with contextlib.suppress(OSError):
            if not file.is_dir() or file.is_symlink():
                size += file.lstat().st_size
    return size
