"""Labels of a model: their names, and those of the words of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxopt.run.results import Word
from onnxopt.spec import Array
from onnxopt.tasks.table import TASKS

if TYPE_CHECKING:
    from tokenizers import Encoding


def label_names(config: Mapping[str, Any], count: int, task: str = "") -> list[str]:
    """Return the names of so many labels.

    Args:
        config: content of config.json, whose `id2label` has them; `LABEL_0` and on without.
        count: how many.
        task: what the model does, which may have names of its own for them.
    """
    own = TASKS[task].labels if task in TASKS else ()
    if len(own) == count:
        return list(own)
    names = config.get("id2label") or {}
    return [str(names.get(str(index), f"LABEL_{index}")) for index in range(count)]


def words_of(text: str, encoding: Encoding, scores: Array, names: Sequence[str]) -> list[Word]:
    """Return the words of a text, each with the label of its first token.

    Args:
        text: what was tokenized.
        encoding: its tokens.
        scores: float [tokens, labels], probabilities.
        names: of the labels.
    """
    words: dict[int, Word] = {}
    for index, word in enumerate(encoding.word_ids):
        if word is None:
            continue
        start, end = encoding.offsets[index]
        if word in words:
            first = words[word]
            words[word] = first.model_copy(update={"end": end, "word": text[first.start : end]})
            continue
        best = int(scores[index].argmax())
        words[word] = Word(
            word=text[start:end], label=names[best], score=float(scores[index][best]), start=start, end=end
        )
    return list(words.values())
