"""Crossings: lengths at which the tables of a model's positions change, and the sides of texts that they make.

A text of one token more than a crossing is turned by other rotary tables than one of that many. Rows of a batch share
the tables of the longest, so texts on two sides of a crossing do not share a batch. A graph that has crossings says so
in its metadata, where every program can read it.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

CROSSINGS_KEY = "onnxopt.crossings"  # in a model's metadata: `40 90`, or `40 64+` where every length beyond 64 is one


@dataclass(frozen=True)
class Crossings:
    """Where tables change.

    Attributes:
        at: lengths, in order; a text of one token more is turned by other tables than one of that many.
        endless_from: from this length on every token more changes them; 0 when none does.
    """

    at: tuple[int, ...] = ()
    endless_from: int = 0

    def side(self, length: int) -> int:
        """Return a number that texts of two lengths share when the same tables turn them."""
        if self.endless_from and length > self.endless_from:
            return len(self.at) + 1 + length
        return bisect.bisect_left(self.at, length)

    def note(self, *, rereads: bool = True) -> str:
        """Return a sentence for the user of a decoder, an empty string where nothing changes."""
        if self.endless_from:
            return f"the rotary tables change with every token beyond {self.endless_from}: longer texts are refused"
        if not self.at:
            return ""
        grown = "is read anew" if rereads else "goes on from its keys as they are, as transformers does it"
        lengths = " and ".join(map(str, self.at))
        return (
            f"the rotary tables change beyond {lengths} tokens: a text that grows across {grown}, and no batch is mixed"
        )

    def to_metadata(self) -> dict[str, str]:
        """Return the entry of a model's metadata; none where nothing changes."""
        parts = [*map(str, self.at), *([f"{self.endless_from}+"] if self.endless_from else [])]
        return {CROSSINGS_KEY: " ".join(parts)} if parts else {}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Crossings:
        """Read what `to_metadata` wrote; an entry of another form says nothing."""
        parts = metadata.get(CROSSINGS_KEY, "").split()
        endless = parts.pop()[:-1] if parts and parts[-1].endswith("+") else "0"
        if not all(part.isascii() and part.isdigit() for part in (*parts, endless)):
            return cls()
        return cls(tuple(map(int, parts)), int(endless))
