"""Labels of the user's own, and the sentence that claims each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxopt.errors import InputError, word

HYPOTHESIS = "This example is {}."
_GAP = "{}"


@dataclass(frozen=True)
class Claims:
    """Labels to choose from.

    Attributes:
        labels: of the user.
        hypothesis: a sentence that claims a label, which stands in the place of {}.
        several: whether several of them may fit a text, so that each is judged for itself.
    """

    labels: tuple[str, ...]
    hypothesis: str = HYPOTHESIS
    several: bool = False

    @classmethod
    def of(cls, labels: Sequence[str], hypothesis: str | None = None, *, several: bool = False) -> Claims:
        """Return what a user chooses from.

        Args:
            labels: as written.
            hypothesis: a sentence with {} in it; that of transformers when None.
            several: as the attribute.

        Raises:
            InputError: there is no label, one is empty or there twice, or the sentence has no place for it.
        """
        kept = tuple(label.strip() for label in labels)
        if not kept or not all(kept):
            raise InputError("a label is empty", where="--labels", hint="write them with commas between: a,b,c")
        if len(set(kept)) < len(kept):
            raise InputError("a label is there twice", where="--labels", hint="write each of them once")
        sentence = HYPOTHESIS if hypothesis is None else hypothesis
        if _GAP not in sentence:
            raise InputError(
                f"{word(sentence)!r} has no {_GAP} for a label", where="--hypothesis", hint=f'write as "{HYPOTHESIS}"'
            )
        return cls(kept, sentence, several)
