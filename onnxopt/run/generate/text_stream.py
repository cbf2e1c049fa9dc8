"""Turn tokens into text while they come: whole characters only, and no text beyond a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

BROKEN = "\N{REPLACEMENT CHARACTER}"  # how a tokenizer writes bytes that are no character yet
_CONTEXT = 8  # tokens before the first that a decoder may look at; a leading space hangs on one


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens."""


class TextStream:
    """The text of a growing row of tokens, in pieces that join to the text of the whole row.

    A character of several bytes may be spread over several tokens, and a token's text may depend on the one before it
    (a leading space, mostly). So each piece is what decoding adds to the text of the tokens just before it, and tokens
    are held back while that text ends in an unfinished character.

    Args:
        tokenizer: turns ids into text.
        prompt: ids that the new tokens continue.
        stops: strings that end the text; they are not part of it.
    """

    def __init__(self, tokenizer: Decodes, prompt: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt[-_CONTEXT:])
        self._before = self._decode(self._context)
        self._tokens: list[int] = []  # taken, with nothing of them in the text yet
        self._tail = ""  # text that may be the beginning of a stop string
        self._stops = tuple(stop for stop in stops if stop)
        self.stopped = False

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now; may be empty."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        text = self._decode([*self._context, *self._tokens])
        piece = text[len(self._before) :]
        if not piece or piece.endswith(BROKEN):
            return ""
        self._context, self._tokens = self._tokens, []
        self._before = self._decode(self._context)
        return self._release(piece)

    def finish(self) -> str:
        """Return what was held back, however it ends."""
        if self.stopped:
            return ""
        text = self._decode([*self._context, *self._tokens])
        piece = self._release(text[len(self._before) :])
        rest, self._tail, self._tokens = self._tail, "", []
        self._before = text
        return piece if self.stopped else piece + rest

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _release(self, piece: str) -> str:
        """Return the text before a stop string, less an end that may be the beginning of one."""
        text = self._tail + piece
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, self._tail = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._tail = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many letters at the end of `text` are the beginning of `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
