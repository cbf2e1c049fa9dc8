"""Texts into embeddings: what an encoder wants of a text, and which of its outputs is the embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxopt.errors import InputError, word
from onnxopt.run.inputs.text import TextModel
from onnxopt.texts.bounded import encode, read_beginning
from onnxopt.texts.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TokenRow = tuple[list[int], list[int]]  # ids and segments of a row

_EMBEDDINGS = ("sentence_embedding", "pooler_output", "image_embeds", "text_embeds")


@dataclass
class Encodes:
    """Text into an embedding.

    Attributes:
        text: the tokenizer and what the model wants of it.
        cutting: the same tokenizer, which cuts to what the model takes.
        output: name of the embedding.
        size: its numbers.
        vocabulary: tokens that the model knows; 0 when nothing says.
    """

    text: TextModel
    cutting: Tokenizer
    output: str
    size: int
    vocabulary: int = 0

    def read(
        self, items: Sequence[str | Sequence[int]], *, truncate: bool, prompt: str | None = None
    ) -> list[TokenRow]:
        """Return tokens and segments of texts, or of rows of tokens.

        Args:
            items: texts, or rows of tokens, which are taken as they are.
            truncate: cut what is longer than the model takes.
            prompt: the name of the prompt in front of each text, as `Prompts.before` takes it.

        Raises:
            InputError: when one is empty, longer than the model takes, or has a token that the model does not know; or
                there is no such prompt.
        """
        before = self.text.prompts.before(prompt)
        return [
            self._text(one, before, cut=truncate) if isinstance(one, str) else self._row(one, cut=truncate)
            for one in items
        ]

    def _text(self, text: str, before: str, *, cut: bool) -> TokenRow:
        if not text.strip():
            raise InputError("the text is empty", hint="write at least one word")
        text = f"{before}{text}"
        begun = read_beginning(self.text.tokenizer, text.lower() if self.text.lowers else text, self.text.limit)
        if cut and self._beyond(len(begun.encoding.ids)):
            encoding = encode(self.cutting, begun.text)
            return encoding.ids, encoding.type_ids
        self._fits(len(begun.encoding.ids), begun.count)
        return begun.encoding.ids, begun.encoding.type_ids

    def _row(self, row: Sequence[int], *, cut: bool) -> TokenRow:
        check_tokens(row, self.vocabulary)
        ids = list(row[: self.text.limit] if cut and self.text.limit else row)
        self._fits(len(ids), str(len(ids)))
        return ids, [0] * len(ids)

    def _beyond(self, tokens: int) -> bool:
        return bool(self.text.limit) and tokens > self.text.limit

    def _fits(self, tokens: int, said: str) -> None:
        """Refuse what is longer than the model takes."""
        if self._beyond(tokens):
            raise InputError(
                f"the text has {said} tokens, the model takes {self.text.limit}",
                hint='shorten it, or send "truncate": true',
            )


def encodes_of(text: TextModel) -> Encodes | None:
    """Return how a model turns texts into embeddings; None when it has none."""
    pooled = {spec.name: spec for spec in text.session.outputs if len(spec.axes) == 2 and isinstance(spec.axes[1], int)}
    output = next((name for name in _EMBEDDINGS if name in pooled), None)
    if output is None:
        return None
    cutting = open_tokenizer(text.folder)
    if text.limit:
        cutting.enable_truncation(text.limit)
    return Encodes(text, cutting, output, int(pooled[output].axes[1]), vocabulary_of(text.config))


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """Return how many tokens an encoder knows, as its config.json says; 0 when it does not."""
    inner = config.get("text_config")
    said = config.get("vocab_size") or (inner.get("vocab_size") if isinstance(inner, Mapping) else 0)
    return said if isinstance(said, int) and said > 0 else 0


def check_tokens(row: Sequence[int], vocabulary: int) -> None:
    """Make sure that the model knows each token.

    Args:
        row: tokens that a caller gave.
        vocabulary: how many there are; 0 when nothing says, and then whatever an int64 can hold is let through.

    Raises:
        InputError: when the row is empty, or a token is none.
    """
    if not row:
        raise InputError("a row of tokens is empty", hint="send at least one")
    least, most = min(row), max(row)
    if least < 0 or most >= (vocabulary or 1 << 63):
        known = f"the model knows 0 to {vocabulary - 1}" if vocabulary else "tokens start at 0"
        raise InputError(f"there is no token {word(str(least if least < 0 else most))}; {known}")
