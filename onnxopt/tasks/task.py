"""What is known of a task: data alone, so that a new head is one entry of the table and one test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Given = Literal["text", "image", "video", "sound", "boxes", "series"]
"""What a person gives: boxes are those of the words of a page, series are numbers over time."""

IMAGE_BATCH = "image_batch"
"""The axis of pictures that are compared with texts, of which there is a number of their own."""

Answer = Literal[
    "embeddings",
    "classification",
    "ranking",
    "zero_shot",
    "token_labels",
    "mask_fills",
    "continuations",
    "transcripts",
    "frame_labels",
    "answers",
    "segments",
    "detections",
    "depth",
    "images",
    "tensors",
]
"""What `run` makes of the outputs: mostly the `kind` of a result in `onnxopt.run.results`.

Tensors are their own answer. `zero_shot` gives a classification too, by labels that come with the text.
"""

SCORED: tuple[Answer, ...] = ("classification", "ranking", "zero_shot")
"""Answers that are made of one score for each label of a whole input."""


@dataclass(frozen=True)
class Head:
    """A way in which transformers does a task.

    Attributes:
        auto_class: transformers' class that builds the model.
        table: transformers' table from model type to class name, in `transformers.models.auto.modeling_auto`.
        outputs: the outputs that the task is about; a model without them gives all of its own.
        generates: the answer is made token by token, so what was seen is kept in a cache.
        paired: an encoder reads what goes in, once, and a decoder writes.
        answer: what `run` makes of the outputs, where that is not what the task's other heads have.
        after: what is made of the outputs, in a sentence for programs of others, for the same.
        first: the answer is the first of `outputs` that a model has, not all that it has of them.
        tower: the method of a model that compares two kinds of input, which gives the features of one kind alone; they
            are the first of `outputs`.
        pictures: the first axis of pictures beside texts: `image_batch` where each of some pictures is compared with
            each of some texts, `batch` where each text has a picture of its own, 1 where one picture is asked about.
    """

    auto_class: str
    table: str
    outputs: tuple[str, ...]
    generates: bool = False
    paired: bool = False
    answer: Answer | None = None
    after: str = ""
    first: bool = False
    tower: str = ""
    pictures: str | int = "batch"

    def answers(self, given: Iterable[str]) -> tuple[str, ...]:
        """Return which of the outputs that a model gives are the answer, in the order of `outputs`."""
        names = set(given)
        found = tuple(name for name in self.outputs if name in names)
        return found[:1] if self.first else found

    @property
    def ending(self) -> str:
        """How the names of most of its classes end, as `ForMaskedLM`; empty for a model without a head."""
        return self.auto_class.removeprefix("AutoModel")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: transformers' name of it.
        summary: what it is good for, in a few words.
        heads: how transformers does it; of a task that `narrowed` returned, the one that fits a model.
        takes: what a person gives for one answer.
        answer: what `run` makes of the outputs.
        example: what is written behind `onnxopt run FOLDER`.
        after: what is made of the outputs of the graph, in a sentence for programs of others; empty where the scores of
            a classifier, the pooling or the cache say it.
        endpoint: where `serve` answers it; empty where tensors alone are served.
        synonyms: other names of it.
        asked: whether it is done only where a user asks for it, since another task has the same classes.
        signs: keys of config.json, of which one is enough to do it unasked.
        labels: what the scores are called, where the config's own names say nothing; then it has so many of them.
        needs: how the name of a label begins that must be among the config's.
        pairs: whether it may read two texts at once, or must.
    """

    name: str
    summary: str
    heads: tuple[Head, ...]
    takes: tuple[Given, ...]
    answer: Answer
    example: str
    after: str = ""
    endpoint: str = ""
    synonyms: tuple[str, ...] = ()
    asked: bool = False
    signs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    needs: str = ""
    pairs: Literal["", "may", "must"] = ""

    @property
    def reads_text(self) -> bool:
        """Whether a tokenizer is needed."""
        return bool({"text", "boxes"} & set(self.takes))

    @property
    def head(self) -> Head:
        """The first head, which is the only one where the task was `narrowed`."""
        return self.heads[0]

    @property
    def compares(self) -> bool:
        """Whether all inputs of one kind are compared with all of another."""
        return self.head.pictures == IMAGE_BATCH

    def narrowed(self, head: Head) -> Task:
        """Return the task as one of its heads does it."""
        return replace(self, heads=(head,), answer=head.answer or self.answer, after=head.after or self.after)
