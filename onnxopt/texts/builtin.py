"""Prose that every Python has: the texts where nobody gives any.

CPython carries its reference manual as the help texts of `pydoc`. They are read here alone, in three shapes: as they
are, as running prose, and in pieces as long as what people send.
"""

from __future__ import annotations

import re

import numpy as np


def manual_topics() -> list[str]:
    """Return the topics of CPython's manual by their names in order; they differ by its version."""
    from pydoc_data.topics import topics

    return [str(topics[key]) for key in sorted(topics)]


def manual_text() -> str:
    """Return the whole manual as it is written, with an empty line between two topics."""
    return "\n\n".join(manual_topics())


def english_text(characters: int) -> str:
    """Return that many characters of prose from CPython's own reference manual, the same on every call."""
    parts: list[str] = []
    length = 0
    for topic in manual_topics():
        part = re.sub(r"[\s*=`_\-]+", " ", topic)
        parts.append(part)
        length += len(part)
        if length >= characters:
            break
    return " ".join(parts)[:characters]


def builtin_texts() -> list[str]:
    """Return English reference prose in pieces of many lengths, the same on every call for one version of CPython."""
    words = [re.sub(r"[\s*=`_\-^~|+]+", " ", topic).split() for topic in manual_topics()]
    lengths = np.exp(np.random.default_rng(5).normal(3.6, 0.8, 1 << 16)).astype(int).clip(4, 200)
    pieces, place = [], 0
    for topic in words:
        start = 0
        while start < len(topic):
            pieces.append(" ".join(topic[start : start + int(lengths[place])]))
            start, place = start + int(lengths[place]), place + 1
    order = np.random.default_rng(6).permutation(len(pieces))
    return [pieces[index] for index in order]
