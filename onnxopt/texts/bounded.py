"""Tokenize no more of a text than it takes to know that it is too long.

How many tokens a text has is known only once it is tokenized, and a text of some megabytes takes seconds. But the
tokens of its first words are the first of its tokens, so a text is read from its beginning, some letters for each token
that a model takes, and in larger pieces as long as these have fewer tokens: blanks, and words that a tokenizer does not
know, make few tokens of many letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxopt.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# English has 4 to 5 letters a token, so nearly every text that fits is read at once
_LETTERS_PER_TOKEN = 8
_LEAST_LETTERS = 4096
_GROWTH = 4  # so all pieces before the whole text have at most 4/3 of its letters
# the last words of a piece may join to other tokens when the text goes on
_SLACK_TOKENS = 64


@dataclass(frozen=True)
class Beginning:
    """The tokens of a text, or of as much of it as has more of them than were asked for.

    Attributes:
        encoding: its tokens, with their segments.
        text: what they stand for.
        whole: whether that is the whole text.
    """

    encoding: Encoding
    text: str
    whole: bool

    @property
    def count(self) -> str:
        """How many tokens the text has, for people."""
        tokens = len(self.encoding.ids)
        return str(tokens) if self.whole else f"more than {tokens - _SLACK_TOKENS}"


def read_beginning(tokenizer: Tokenizer, text: str, most: int, *, specials: bool = True) -> Beginning:
    """Tokenize a text up to where it is seen to have more tokens than a model takes.

    Other threads go on meanwhile, which `Tokenizer.encode` would not let them.

    Args:
        tokenizer: one that cuts nothing.
        text: of any length.
        most: tokens that are taken; 0 for any number, and then all of it is read.
        specials: whether the tokens around a text are added.

    Raises:
        InputError: when the text cannot be tokenized.
    """
    size = max(_LEAST_LETTERS, most * _LETTERS_PER_TOKEN) if most else len(text)
    while size < len(text):
        head = text[: _end_of_word(text, size)]
        encoding = encode(tokenizer, head, specials=specials)
        if len(encoding.ids) > most + _SLACK_TOKENS:
            return Beginning(encoding, head, whole=False)
        size *= _GROWTH
    return Beginning(encode(tokenizer, text, specials=specials), text, whole=True)


def encode(tokenizer: Tokenizer, text: str | tuple[str, str], *, specials: bool = True) -> Encoding:
    """Tokenize a text, or a pair of them, while other threads go on.

    Raises:
        InputError: when it cannot be tokenized.
    """
    try:
        (encoding,) = tokenizer.encode_batch([text], add_special_tokens=specials)
    except Exception as error:  # the tokenizers library raises nothing more specific
        if any("\ud800" <= letter <= "\udfff" for letter in "".join(text)):
            raise InputError("the text holds half of a surrogate pair, which is no character") from error
        raise InputError(f"the text cannot be tokenized ({error})") from error
    return encoding


def _end_of_word(text: str, size: int) -> int:
    """Return where the last whole word within a size ends; the size itself where a word is longer than half of it."""
    end = max(text.rfind(mark, size // 2, size) for mark in " \n\t")
    return size if end < 0 else end
