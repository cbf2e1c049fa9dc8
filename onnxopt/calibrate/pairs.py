"""Pairs of texts for models that read two at once: a sentence and its own paragraph, or that of another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxopt.texts.tokenizer import encoded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Row = tuple[int, ...]
_SENTENCE = re.compile(r"(?<=[.!?:])\s+")
_AWAY = 3  # paragraphs between a sentence and the paragraph of another: neighbours are often about the same


def pairs_of(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the first sentence of each text, in turns with the rest of its own text and with another text.

    Args:
        texts: paragraphs; one of a single sentence is its own rest.
    """
    made = []
    for place, text in enumerate(texts):
        first, *rest = _SENTENCE.split(text.strip(), maxsplit=1)
        own = rest[0] if rest else text
        made.append((first, own if place % 2 == 0 else texts[(place + _AWAY) % len(texts)]))
    return made


def paired_rows(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> dict[Row, Row]:
    """Return rows of pairs that are made of texts, each with the segments of its tokens.

    Args:
        tokenizer: without truncation.
        texts: paragraphs.
        longest: tokens of a row; of a pair that is too long the longer text is cut.
    """
    rows: dict[Row, Row] = {}
    tokenizer.enable_truncation(longest)
    for first, second in pairs_of(texts):
        row = encoded(tokenizer, [first], pair=second)[0]
        if row.ids:
            rows[tuple(row.ids)] = tuple(row.type_ids)
    tokenizer.no_truncation()
    return rows
