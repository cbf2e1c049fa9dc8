from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from onnxopt.errors import InputError
from onnxopt.texts.bounded import encode, read_beginning
from tests.support.tiny import tiny_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    found = Tokenizer.from_file(str(tiny_tokenizer(tmp_path) / "tokenizer.json"))
    found.no_padding()
    found.no_truncation()
    return found


class Counting:
    """A tokenizer that remembers how much it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.letters = tokenizer, 0

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool) -> Any:
        self.letters += sum(map(len, texts))
        return self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("text", ["the name", "the name of a class " * 40, " " * 30_000 + "the name", "x" * 20_000])
def test_a_text_that_fits_has_all_of_its_tokens(tokenizer: Any, text: str) -> None:
    begun = read_beginning(tokenizer, text, 400)
    assert begun.whole
    assert begun.encoding.ids == tokenizer.encode(text).ids
    assert begun.count == str(len(begun.encoding.ids))


def test_a_text_that_is_too_long_is_read_no_further(tokenizer: Any) -> None:
    counting, text = Counting(tokenizer), "the name of a class is not known " * 100_000
    begun = read_beginning(counting, text, 300)  # type: ignore[arg-type]  # it has what is needed
    whole = tokenizer.encode(text).ids
    assert not begun.whole
    assert begun.encoding.ids[:300] == whole[:300]
    assert 300 < int(begun.count.removeprefix("more than ")) < len(whole)
    assert counting.letters < 10_000


def test_letters_that_make_no_tokens_are_read_a_few_times_at_most(tokenizer: Any) -> None:
    counting, text = Counting(tokenizer), " " * 2_000_000 + "the name"
    begun = read_beginning(counting, text, 300)  # type: ignore[arg-type]  # as above
    assert begun.encoding.ids == tokenizer.encode("the name").ids
    assert counting.letters <= 7 / 3 * len(text)


def test_without_a_limit_all_is_read(tokenizer: Any) -> None:
    assert len(read_beginning(tokenizer, "name " * 9000, 0, specials=False).encoding.ids) == 9000


def test_half_of_a_surrogate_pair_is_no_text(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="half of a surrogate pair"):
        encode(tokenizer, "a \ud83d b")
