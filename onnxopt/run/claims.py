"""Labels of the user's own: a text is read with a sentence that claims each of them, by a model of entailment.

Source: Yin, Hay & Roth 2019, arXiv:1909.00161; `transformers` pipelines (`ZeroShotClassificationPipeline`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.errors import InputError, word
from onnxopt.run.labels import label_names
from onnxopt.run.results import Label
from onnxopt.run.scores import softmax
from onnxopt.spec import Array
from onnxopt.tasks.table import TASKS

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

    def pairs(self, text: str) -> list[tuple[str, str]]:
        """Return a text with the sentence for each label."""
        return [(text, self.hypothesis.replace(_GAP, label)) for label in self.labels]

    def scores(self, logits: Array, entails: int) -> Array:
        """Return float64 [labels], how likely each label fits.

        Args:
            logits: float [labels, classes], of the pairs of one text.
            entails: which class says that the second text follows from the first.
        """
        if not self.several and len(self.labels) > 1:
            return softmax(logits[:, entails])
        against = -1 if entails == 0 else 0  # contradiction, as transformers takes it
        return softmax(logits[:, [against, entails]])[:, 1]

    def in_order(self, scores: Array) -> tuple[Label, ...]:
        """Return the labels with their scores, float [labels], the best first."""
        return tuple(Label(label=self.labels[at], score=float(scores[at])) for at in best_first(self.labels, scores))


def entailment_of(config: Mapping[str, Any], count: int, *, where: str = "") -> int:
    """Return which class of a model says that the second text follows from the first.

    Args:
        config: content of config.json; its `id2label` names the classes.
        count: how many there are.
        where: the artifact, for messages.

    Raises:
        InputError: none of them does.
    """
    names = label_names(config, count)
    begins = TASKS["zero-shot-classification"].needs
    found = next((place for place, name in enumerate(names) if name.lower().startswith(begins)), None)
    if found is None or count < 2:
        raise InputError(
            f"the model has no label for entailment; it has {word(', '.join(names))}",
            where=where,
            hint="labels of your own are for models of natural language inference",
        )
    return found


def best_first(labels: Sequence[str], scores: Array) -> list[int]:
    """Return the places of labels in the order of their scores, the best first; equal ones keep their order."""
    return [int(place) for place in np.argsort(-scores, kind="stable")[: len(labels)]]
