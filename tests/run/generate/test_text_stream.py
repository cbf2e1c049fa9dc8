"""Text in pieces: whole characters, the same text in the end, nothing beyond a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from onnxopt.run.generate.text_stream import BROKEN, TextStream
from tests.support.decoder import byte_tokenizer


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(str(byte_tokenizer(tmp_path_factory.mktemp("bytes")) / "tokenizer.json"))


def pieces(
    tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = (), stops: Sequence[str] = ()
) -> list[str]:
    stream = TextStream(tokenizer, prompt, stops)
    return [*(stream.push(token) for token in ids), stream.finish()]


def test_characters_of_several_tokens_come_whole(letters: Tokenizer) -> None:
    found = pieces(letters, letters.encode("é🎉日").ids)
    assert [piece for piece in found if piece] == ["é", "🎉", "日"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), prompt=st.text(max_size=12))
def test_pieces_join_to_the_text(letters: Tokenizer, text: str, prompt: str) -> None:
    assert "".join(pieces(letters, letters.encode(text).ids, letters.encode(prompt).ids)) == text


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 257), max_size=30))
def test_pieces_of_any_bytes_join_to_what_decoding_them_all_gives(letters: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces(letters, ids)) == letters.decode(ids)


def test_an_unfinished_character_is_shown_in_the_end(letters: Tokenizer) -> None:
    assert "".join(pieces(letters, letters.encode("a🎉").ids[:-1])) == f"a{BROKEN}"


def test_a_leading_space_hangs_on_the_token_before() -> None:
    words = ["▁a", "▁cat", "s", "▁sleep"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    inner.decoder = decoders.Metaspace()
    assert pieces(inner, [1, 2, 3], prompt=[0]) == [" cat", "s", " sleep", ""]
    assert "".join(pieces(inner, [0, 1, 2, 3])) == inner.decode([0, 1, 2, 3])


def test_special_tokens_leave_no_text(letters: Tokenizer) -> None:
    ids = [*letters.encode("a").ids, 257, *letters.encode("b").ids]
    assert pieces(letters, ids) == ["a", "", "b", ""]


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(letters: Tokenizer) -> None:
    found = pieces(letters, letters.encode("one. two\n\nthree").ids, stops=("\n\n", "END"))
    assert "".join(found) == "one. two"


def test_what_may_become_a_stop_string_waits(letters: Tokenizer) -> None:
    stream = TextStream(letters, (), ("STOP",))
    assert [stream.push(token) for token in letters.encode("a STa").ids] == ["a", " ", "", "", "STa"]
    assert not stream.stopped
    assert [stream.push(token) for token in letters.encode("STO").ids] == ["", "", ""]
    assert stream.finish() == "STO"


def test_the_first_of_several_stop_strings_counts(letters: Tokenizer) -> None:
    assert "".join(pieces(letters, letters.encode("a b c").ids, stops=("c", "b", ""))) == "a "


def test_a_stop_string_of_several_bytes(letters: Tokenizer) -> None:
    assert "".join(pieces(letters, letters.encode("a日本b").ids, stops=("日本",))) == "a"


def test_the_tokenizer_is_read_from_a_folder(tmp_path: Path) -> None:
    assert byte_tokenizer(tmp_path / "new").joinpath("tokenizer.json").is_file()
