"""Numbers of bytes as people write and read them, in steps of 1024."""

from __future__ import annotations

import re

from onnxopt.errors import InputError

_SIZE = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def size_text(count: float) -> str:
    """Write a number of bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `2GB`, `512M` or `1.5GiB`; the letters count in steps of 1024.

    Raises:
        InputError: when it is none.
    """
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * 1024 ** _POWERS[found[2].lower()]) if found else 0
    if size < 1:
        raise InputError(f"{text!r} is no size", hint="write for example 2GB or 512MB")
    return size
