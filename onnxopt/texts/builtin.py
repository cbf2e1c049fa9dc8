"""Prose that every Python has: the texts where nobody gives any."""

from __future__ import annotations

import re

import numpy as np


def english_text(characters: int) -> str:
    """Return that many characters of prose from CPython's own reference manual, the same on every call."""
    from pydoc_data.topics import topics

    parts: list[str] = []
    length = 0
    for key in sorted(topics):
        part = re.sub(r"[\s*=`_\-]+", " ", str(topics[key]))
        parts.append(part)
        length += len(part)
        if length >= characters:
            break
    return " ".join(parts)[:characters]


def builtin_texts() -> list[str]:
    """Return English reference prose in pieces of many lengths, the same on every call for one version of CPython."""
    from pydoc_data.topics import topics

    words = [re.sub(r"[\s*=`_\-^~|+]+", " ", str(topics[key])).split() for key in sorted(topics)]
    lengths = np.exp(np.random.default_rng(5).normal(3.6, 0.8, 1 << 16)).astype(int).clip(4, 200)
    pieces, place = [], 0
    for topic in words:
        start = 0
        while start < len(topic):
            pieces.append(" ".join(topic[start : start + int(lengths[place])]))
            start, place = start + int(lengths[place]), place + 1
    order = np.random.default_rng(6).permutation(len(pieces))
    return [pieces[index] for index in order]
