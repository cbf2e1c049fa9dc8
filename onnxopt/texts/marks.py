"""The special tokens that a tokenizer puts around texts, as plain numbers for programs whose tokenizer adds none.

Clients in other languages tokenize without them, cut to the length that the model takes and put them around
themselves: their libraries differ in whether a cut text keeps its last mark, and in whether they read pairs at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxopt.texts.tokenizer import encoded, marks_around

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PROBES = ("a cat sleeps", "one day")  # both have tokens in any vocabulary of letters


@dataclass(frozen=True)
class Marks:
    """What stands around one text, and around two that are read together.

    Attributes:
        before: ids in front of a single text.
        after: ids behind it.
        pair: ids in front of the first text, between the two and behind the second one; None where the tokenizer reads
            no pairs, or not in this way.
        second_type: segment of the second text and what is behind it; all before is of segment 0.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    pair: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    second_type: int = 0

    def row(
        self, first: Sequence[int], second: Sequence[int] | None = None, *, limit: int = 0
    ) -> tuple[list[int], list[int]]:
        """Return the ids and segments of a row of the model.

        Args:
            first: ids of a text without marks.
            second: of a second one.
            limit: the longest row; of a pair that is longer the longer text is cut. 0 for none.
        """
        if second is None or self.pair is None:
            kept = list(first)[: max(0, limit - len(self.before) - len(self.after))] if limit else list(first)
            ids = [*self.before, *kept, *self.after]
            return ids, [0] * len(ids)
        start, between, end = self.pair
        sizes = kept_sizes(len(first), len(second), max(0, limit - sum(map(len, self.pair))) if limit else None)
        head = [*start, *first[: sizes[0]], *between]
        tail = [*second[: sizes[1]], *end]
        return head + tail, [0] * len(head) + [self.second_type] * len(tail)

    def as_json(self) -> dict[str, Any]:
        """Return it as `io.json` has it."""
        content: dict[str, Any] = {"single": [list(self.before), list(self.after)]}
        if self.pair is not None:
            content |= {"pair": [list(part) for part in self.pair], "second_type": self.second_type}
        return content


def kept_sizes(first: int, second: int, room: int | None) -> tuple[int, int]:
    """Return how many tokens of two texts are kept, as `tokenizers` cuts the longest first (`truncate_encodings`).

    Args:
        first: tokens of the first text.
        second: of the second one.
        room: tokens that both may have; None for no limit.
    """
    if room is None or first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (short, long) if first <= second else (long, short)


def marks_of(tokenizer: Tokenizer) -> Marks | None:
    """Return the marks of a tokenizer; None where it does not simply put some around a text.

    Args:
        tokenizer: without a cut and without padding.

    Raises:
        InputError: it fails on a text.
    """
    bare = [list(encoded(tokenizer, [text], marks=False)[0].ids) for text in _PROBES]
    whole = encoded(tokenizer, [_PROBES[0]])[0]
    if not all(bare):
        return None
    single = Marks(*marks_around(bare[0], list(whole.ids)))
    if single.row(bare[0])[0] != list(whole.ids) or any(whole.type_ids):
        return None
    return _with_pair(tokenizer, single, bare)


def _with_pair(tokenizer: Tokenizer, single: Marks, bare: list[list[int]]) -> Marks:
    """Return marks with those of a pair, where the tokenizer reads one and nothing else happens to it."""
    found = encoded(tokenizer, [_PROBES[0]], pair=_PROBES[1])[0]
    ids, types = list(found.ids), list(found.type_ids)
    start, rest = marks_around(bare[0], ids)
    between, end = marks_around(bare[1], list(rest))
    both = Marks(single.before, single.after, (start, between, end), types[-1])
    return both if both.row(*bare) == (ids, types) else single
