"""The built-in prose is CPython's manual, read in one place and given in three shapes."""

from __future__ import annotations

import re

from onnxopt.texts.builtin import builtin_texts, english_text, manual_text, manual_topics


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def test_the_three_shapes_are_of_the_same_manual() -> None:
    words = words_of(manual_text())
    assert len(manual_topics()) > 50
    assert words_of(english_text(len(manual_text()))) == words
    assert sorted(words_of(" ".join(builtin_texts()))) == sorted(words)


def test_prose_is_the_same_on_every_call_and_as_long_as_asked() -> None:
    assert english_text(1234) == english_text(9000)[:1234]
    assert len(english_text(1234)) == 1234
    assert builtin_texts() == builtin_texts()


def test_pieces_are_as_long_as_what_people_send() -> None:
    lengths = [len(text.split()) for text in builtin_texts()]
    assert max(lengths) <= 200
    assert 20 < sorted(lengths)[len(lengths) // 2] < 60
