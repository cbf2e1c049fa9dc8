"""Texts into embeddings or labels: what a model wants of a text, and which of its outputs is the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxopt.errors import InputError, word
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.labels import label_names
from onnxopt.run.scores import Scores, scores_of
from onnxopt.spec import SENTENCE
from onnxopt.tasks.table import TASKS
from onnxopt.tasks.task import SCORED
from onnxopt.texts.bounded import encode, read_beginning
from onnxopt.texts.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TokenRow = tuple[list[int], list[int]]  # ids and segments of a row

LOGITS = "logits"
_EMBEDDINGS = (SENTENCE, "pooler_output", "image_embeds", "text_embeds")


@dataclass
class Reads:
    """Text into tokens, within what a model takes.

    Attributes:
        text: the tokenizer and what the model wants of it.
        cutting: the same tokenizer, which cuts to what the model takes.
        vocabulary: tokens that the model knows; 0 when nothing says.
    """

    text: TextModel
    cutting: Tokenizer
    vocabulary: int

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
            row_of(self.encoding(f"{before}{self._written(one)}", cut=truncate))
            if isinstance(one, str)
            else self._row(one, cut=truncate)
            for one in items
        ]

    def encodings(self, texts: Sequence[str], *, truncate: bool) -> list[Encoding]:
        """Return the tokens of texts with their places in the text; arguments and errors are those of `read`."""
        return [self.encoding(self._written(one), cut=truncate) for one in texts]

    def pairs(self, pairs: Sequence[tuple[str, str]], *, truncate: bool) -> list[TokenRow]:
        """Return tokens and segments of pairs of texts; of a pair that is too long the longer text is cut.

        Raises:
            InputError: when a text is empty, or a pair longer than the model takes.
        """
        return [self._pair(*pair, cut=truncate) for pair in pairs]

    def encoding(self, text: str, *, cut: bool) -> Encoding:
        """Return the tokens of one text."""
        begun = read_beginning(self.text.tokenizer, self._lowered(text), self.text.limit)
        if cut and self._beyond(len(begun.encoding.ids)):
            return encode(self.cutting, begun.text)
        self._fits(len(begun.encoding.ids), begun.count)
        return begun.encoding

    def _pair(self, first: str, second: str, *, cut: bool) -> TokenRow:
        # of no text more tokens are kept than the model takes, so what is beyond need not be tokenized
        begun = [
            read_beginning(self.text.tokenizer, self._lowered(self._written(one)), self.text.limit)
            for one in (first, second)
        ]
        whole = encode(self.text.tokenizer, (begun[0].text, begun[1].text))
        if cut and self._beyond(len(whole.ids)):
            return row_of(encode(self.cutting, (begun[0].text, begun[1].text)))
        is_whole = all(one.whole for one in begun)
        self._fits(len(whole.ids), str(len(whole.ids)) if is_whole else f"more than {self.text.limit}")
        return row_of(whole)

    def _written(self, text: str) -> str:
        if not text.strip():
            raise InputError("the text is empty", hint="write at least one word")
        return text

    def _lowered(self, text: str) -> str:
        return text.lower() if self.text.lowers else text

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


@dataclass
class Encodes(Reads):
    """Text into an embedding.

    Attributes:
        output: name of the embedding.
        size: its numbers.
    """

    output: str
    size: int


@dataclass
class Classifies(Reads):
    """Text, or a pair of texts, into scores of labels.

    Attributes:
        output: name of the logits.
        names: of the labels.
        scores: what the logits are made into.
        whole: a text has labels as a whole, else each of its words has.
    """

    output: str
    names: Sequence[str]
    scores: Scores
    whole: bool

    @property
    def reranks(self) -> bool:
        """Whether it says with one number how well two texts belong together."""
        return self.whole and len(self.names) == 1


def encodes_of(text: TextModel) -> Encodes | None:
    """Return how a model turns texts into embeddings; None when it has none."""
    pooled = {spec.name: spec for spec in text.session.outputs if len(spec.axes) == 2 and isinstance(spec.axes[1], int)}
    output = next((name for name in _EMBEDDINGS if name in pooled), None)
    if output is None:
        return None
    size = int(pooled[output].axes[1])
    return Encodes(text, _cutting(text), vocabulary_of(text.config), output, size)


def classifies_of(text: TextModel, task: str) -> Classifies | None:
    """Return how a model labels texts, or their words; None when that is not its task."""
    made = TASKS[task].answer if task in TASKS and TASKS[task].reads_text else ""
    wanted = 2 if made in SCORED else 3 if made == "token_labels" else None
    logits = next((spec for spec in text.session.outputs if spec.name == LOGITS), None)
    if logits is None or len(logits.axes) != wanted or not isinstance(logits.axes[-1], int):
        return None
    count, whole = logits.axes[-1], wanted == 2
    how = scores_of(text.config, count) if whole else "softmax"
    names = label_names(text.config, count, task)
    return Classifies(text, _cutting(text), vocabulary_of(text.config), LOGITS, names, how, whole)


def row_of(encoding: Encoding) -> TokenRow:
    """Return the ids and segments of a text."""
    return encoding.ids, encoding.type_ids


def _cutting(text: TextModel) -> Tokenizer:
    """Return the tokenizer of a model, which cuts to what the model takes."""
    cutting = open_tokenizer(text.folder)
    if text.limit:
        cutting.enable_truncation(text.limit)  # of a pair the longer one, which is the library's usual way
    return cutting


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
