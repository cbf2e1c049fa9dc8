"""Texts as rows of tokens of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.spec import Array
from onnxopt.texts.files import read_labelled
from onnxopt.texts.tokenizer import encoded, open_tokenizer, read_settings, token_text

_PIECE, _TOGETHER = 1 << 18, 32  # characters of a piece of a long text; pieces that are tokenized side by side
IGNORED = -100  # how torch's cross entropy spells a position that does not count


@dataclass(frozen=True)
class Rows:
    """Tokenized rows of one width.

    Attributes:
        ids: int64 [rows, length], padded on the right.
        mask: int64 [rows, length], 1 where there is a token.
        labels: int64 [rows], or None.
    """

    ids: Array
    mask: Array
    labels: Array | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Array) -> Rows:
        """Return some rows, cut to the longest of them."""
        width = max(1, int(self.mask[index].sum(axis=1).max(initial=1)))
        labels = None if self.labels is None else self.labels[index]
        return Rows(self.ids[index, :width], self.mask[index, :width], labels)

    def split(self, share: float) -> tuple[Rows, Rows]:
        """Return rows to learn from and rows held out, which lie evenly among the others."""
        held = max(1, round(len(self) * share))
        if held >= len(self):
            raise InputError(f"the data give {len(self)} rows", hint="give more text, or shorter rows (--length)")
        places = np.unique(np.linspace(0, len(self) - 1, held).round().astype(np.int64))
        others = np.setdiff1d(np.arange(len(self)), places)
        return self.take_whole(others), self.take_whole(places)

    def take_whole(self, index: Array) -> Rows:
        """Return some rows at full width."""
        return Rows(self.ids[index], self.mask[index], None if self.labels is None else self.labels[index])

    @property
    def tokens(self) -> int:
        """How many real tokens there are."""
        return int(self.mask.sum())


def read_rows(data: Sequence[str], folder: Path, *, length: int, running: bool, pad: int, most: int = 0) -> Rows:
    """Read texts and tokenize them.

    Args:
        data: `builtin`, text files (a paragraph or line each is one text), or JSON entries with `text` and perhaps
            `label`.
        folder: has tokenizer.json.
        length: tokens of a row.
        running: join all texts and cut them into full rows, as a language model reads; else one text a row.
        pad: id at padded positions.
        most: rows at most; 0 for all.

    Raises:
        InputError: when a file cannot be read or gives no rows.
    """
    tokenizer = open_tokenizer(folder)
    texts, labels = _texts(data, whole=running)
    if running:
        end = _end(folder, tokenizer)
        stream: list[int] = []
        for ids in _tokens(tokenizer, texts, end):
            stream += ids
            if most and len(stream) >= most * length:
                break
        count = min(len(stream) // length, most or len(stream))
        if count < 2:
            raise InputError(f"the data give {len(stream)} tokens", where=", ".join(data), hint="give more text")
        rows = np.array(stream[: count * length], np.int64).reshape(count, length)
        return Rows(rows, np.ones_like(rows))
    return tokenize(texts[: most or None], folder, length=length, pad=pad, labels=labels, where=", ".join(data))


def tokenize(
    texts: Sequence[str],
    folder: Path,
    *,
    length: int,
    pad: int,
    labels: Sequence[int] | None = None,
    where: str = "",
) -> Rows:
    """Turn texts into one row each, cut to a length and padded on the right.

    Raises:
        InputError: when fewer than two have tokens.
    """
    tokenizer = open_tokenizer(folder)
    tokenizer.enable_truncation(length)
    found = [encoding.ids for encoding in encoded(tokenizer, texts)]
    kept = [index for index, ids in enumerate(found) if ids]
    if len(kept) < 2:
        raise InputError(f"the data give {len(kept)} texts", where=where, hint="give more, one a line")
    ids = np.full((len(kept), length), pad, np.int64)
    mask = np.zeros((len(kept), length), np.int64)
    for row, index in enumerate(kept):
        ids[row, : len(found[index])] = found[index]
        mask[row, : len(found[index])] = 1
    return Rows(ids, mask, None if labels is None else np.array([labels[index] for index in kept], np.int64))


def _tokens(tokenizer: Any, texts: Sequence[str], end: list[int]) -> Iterator[list[int]]:
    """Yield the ids of texts, some pieces at a time, with what ends a text behind each."""
    for text in texts:
        pieces = _pieces(text)
        while some := list(islice(pieces, _TOGETHER)):
            for encoding in encoded(tokenizer, some, marks=False):
                yield encoding.ids
        yield end


def _pieces(text: str) -> Iterator[str]:
    """Yield a long text in pieces that end with an empty line, which are tokenized side by side."""
    start = 0
    while (cut := text.find("\n\n", start + _PIECE)) >= 0:
        yield text[start : cut + 2]
        start = cut + 2
    yield text[start:]


def next_tokens(ids: Array, mask: Array) -> Array:
    """Return what a language model should say at each position: int64 like `ids`, -100 where nothing follows."""
    wanted = np.full_like(ids, IGNORED)
    wanted[:, :-1] = np.where(mask[:, 1:] == 1, ids[:, 1:], IGNORED)
    return wanted


def _texts(data: Sequence[str], *, whole: bool) -> tuple[list[str], list[int] | None]:
    texts: list[str] = []
    labels: list[int] = []
    for name in data:
        for text, label in read_labelled(name, "whole" if whole else "paragraph"):
            texts.append(text)
            if label is not None:
                labels.append(label)
    if labels and len(labels) != len(texts):
        raise InputError(f"{len(labels)} of {len(texts)} texts have a label", where=", ".join(data))
    return texts, labels or None


def _end(folder: Path, tokenizer: Any) -> list[int]:
    """Return the id that ends a text, if the checkpoint names one."""
    named = token_text(read_settings(folder, "tokenizer_config.json").get("eos_token"))
    found = tokenizer.token_to_id(named) if named else None
    return [] if found is None else [int(found)]
