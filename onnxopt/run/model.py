"""From text to answer in one call: `onnxopt.Model("build/minilm").encode(["a text"])`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onnxopt.errors import InputError
from onnxopt.run.answers import DEFAULT_NEW_TOKENS, Opened
from onnxopt.run.claims import Claims
from onnxopt.run.generate.decoder import cache_of
from onnxopt.run.generate.generator import Generator
from onnxopt.run.generate.sampling import GREEDY, Sampling
from onnxopt.run.results import Classification, Embeddings, Entity, Ranking, TextResult, TokenLabels
from onnxopt.run.session import Session
from onnxopt.spec import Array
from onnxopt.tasks.table import TASKS

MAX_BATCH = 32
_ELSE = 'call the model itself: model("a text")'

Made = TypeVar("Made")


@dataclass(frozen=True)
class Ranked:
    """A document in the order of its relevance.

    Attributes:
        index: its place among those that were given.
        score: how well it answers the query.
        text: the document.
    """

    index: int
    score: float
    text: str


class Model:
    """An artifact that takes text, or paths of images or sounds, and answers by its task.

    `model("a text")` gives the answer with everything beside it, as `onnxopt run` prints it; the methods give the plain
    thing for one task. One text gives one answer, a list of texts a list.
    """

    def __init__(self, path: str | Path, *, device: str = "auto", threads: int | None = None) -> None:
        """Open an artifact.

        Args:
            path: its folder.
            device: `auto` (what it was made for, else the CPU), `cpu`, `cuda`, `tensorrt`, or a plugin.
            threads: threads of one operator; what this process may use when not given.

        Raises:
            InputError: when it is no artifact, or cannot be opened.
        """
        self.path = Path(path)
        self._opened = Opened.of(self.path, device=device, threads=threads)

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}): {self.task}, {self.session.device}"

    @property
    def task(self) -> str:
        """What the model does, in the words of transformers."""
        return self._opened.task

    @property
    def session(self) -> Session:
        """The model itself, for tensors."""
        return self._opened.session

    def __call__(
        self,
        texts: str | Sequence[str] = (),
        *,
        pairs: Sequence[tuple[str, str]] = (),
        prompt: str | None = None,
        context: str | None = None,
        claims: Claims | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
    ) -> TextResult:
        """Answer texts by the task of the model.

        Args:
            texts: sentences, questions or prompts; paths of image or sound files when the task is about those.
            pairs: two texts each, in place of `texts`, for a classifier that reads both.
            prompt: the name of a prompt of the checkpoint in front of each text, for embeddings.
            context: the text to find answers in, for question answering.
            claims: labels of your own to choose from, for a model of entailment or one that compares; `choose` is
                shorter.
            max_new_tokens: how many tokens to write, for text generation.

        Raises:
            InputError: when the input does not suit the task.
        """
        given = [texts] if isinstance(texts, str) else texts
        return self._opened.answer(
            given, pairs=pairs, prompt=prompt, context=context, claims=claims, max_new_tokens=max_new_tokens
        )

    def encode(self, texts: str | Sequence[str], *, prompt: str | None = None, batch: int = MAX_BATCH) -> Array:
        """Return the embeddings of texts, or of images or sounds by their paths: float32 [texts, size], of one [size].

        Args:
            texts: what to encode.
            prompt: the name of a prompt of the checkpoint in front of each text; None for its default, "" for none.
            batch: texts that run together; those of similar length do.

        Raises:
            InputError: when the model gives no embeddings.
        """
        self._require(*_tasks_of("embeddings"))

        def vectors(some: Sequence[str]) -> list[Array]:
            answer = self(some, prompt=prompt)
            assert isinstance(answer, Embeddings)  # noqa: S101  # by the task
            return list(np.array(answer.vectors, np.float32))

        if isinstance(texts, str):
            return vectors([texts])[0]
        found = _in_batches(texts, vectors, batch)
        return np.stack(found) if found else np.zeros((0, 0), np.float32)

    def classify(
        self, texts: str | Sequence[str] | Sequence[tuple[str, str]], *, batch: int = MAX_BATCH
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return the labels of texts with their scores, the likeliest first.

        Args:
            texts: what to classify; pairs of texts for a model that reads two; paths for one of images or sounds.
            batch: texts that run together.

        Raises:
            InputError: when the model has no labels for whole texts.
        """
        self._require(*_tasks_of("classification"))
        if isinstance(texts, str):
            return self._labels([texts])[0]
        return _in_batches(texts, self._labels, batch)

    def choose(
        self,
        texts: str | Sequence[str],
        labels: Sequence[str],
        *,
        hypothesis: str | None = None,
        several: bool = False,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return labels of your own with how well they fit, the best first, for a model of entailment or of likeness.

        Args:
            texts: what to classify, or paths of image files; each text is read once for each label.
            labels: to choose from.
            hypothesis: a sentence that claims a label, which stands in the place of {}; that of transformers when None.
            several: whether several of them may fit a text, so that each is judged for itself.

        Raises:
            InputError: when the model does not choose from labels, or the labels or the sentence cannot be used.
        """
        found = self(texts, claims=Claims.of(labels, hypothesis, several=several))
        assert isinstance(found, Classification)  # noqa: S101  # by the task
        rows = [{label.label: label.score for label in row} for row in found.labels]
        return rows[0] if isinstance(texts, str) else rows

    def _labels(self, some: Sequence[str] | Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        plain = [one for one in some if isinstance(one, str)]
        pairs = [(one[0], one[1]) for one in some if not isinstance(one, str)]
        found = self(plain, pairs=pairs)
        if isinstance(found, Ranking):
            return [{TASKS[self.task].labels[0]: score} for score in found.scores]
        assert isinstance(found, Classification)  # noqa: S101  # by the task
        return [{label.label: label.score for label in row} for row in found.labels]

    def rerank(
        self, query: str, documents: Sequence[str], *, most: int | None = None, batch: int = MAX_BATCH
    ) -> list[Ranked]:
        """Return documents in the order of how well they answer a query, for a cross-encoder with one score.

        Args:
            query: what is asked.
            documents: where the answer may be.
            most: how many to return; all when not given.
            batch: documents that run together.

        Raises:
            InputError: when the model gives labels in place of one score.
        """
        self._require("text-classification", "text-ranking")
        rows = _in_batches([(query, one) for one in documents], self._labels, batch)
        if any(len(row) != 1 for row in rows):
            raise InputError("the model gives labels, no relevance", where=str(self.path), hint="use classify")
        scores = [next(iter(row.values())) for row in rows]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return [Ranked(index, scores[index], documents[index]) for index in order[:most]]

    def entities(self, texts: str | Sequence[str]) -> list[Entity] | list[list[Entity]]:
        """Return the things that texts name, words that belong together as one.

        Raises:
            InputError: when the model labels no words.
        """
        self._require("token-classification")
        found = self(texts)
        assert isinstance(found, TokenLabels)  # noqa: S101  # by the task
        rows = [list(row) for row in found.entities]
        return rows[0] if isinstance(texts, str) else rows

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        chat: bool | None = None,
    ) -> str | list[str]:
        """Write on from prompts; `Generator` has the rest: pieces as they come, speed, tokens.

        Args:
            prompts: texts.
            max_new_tokens: the most tokens to write for each.
            sampling: how tokens are chosen; greedy without it.
            stop: strings that end a text.
            chat: whether they go through the chat template; the default is to do so when there is one.

        Raises:
            InputError: when the model writes no text.
        """
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        written = self._generator.generate(
            given, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, chat=chat
        ).texts
        return written[0] if isinstance(prompts, str) else list(written)

    @cached_property
    def _generator(self) -> Generator:
        if cache_of(self.session) is None:
            raise InputError(
                f"a model for {self.task} without a cache writes no text",
                where=str(self.path),
                hint="call the model itself",
            )
        return Generator(self.path, session=self.session)

    def _require(self, *tasks: str) -> None:
        if self.task not in tasks:
            raise InputError(
                f"a model for {self.task} cannot do that", where=str(self.path), hint="call the model itself"
            )


def _tasks_of(answer: str) -> list[str]:
    """Return the tasks whose answers are of a kind, whatever goes in."""
    return [task.name for task in TASKS.values() if task.answer == answer]


def _in_batches(given: Sequence[Any], work: Callable[[Sequence[Any]], list[Made]], batch: int) -> list[Made]:
    """Work on texts, or pairs of them, in batches of similar length; return the results in their order."""
    order = sorted(range(len(given)), key=lambda place: -len("".join(given[place])))
    found: dict[int, Made] = {}
    for start in range(0, len(order), max(1, batch)):
        places = order[start : start + max(1, batch)]
        found.update(zip(places, work([given[place] for place in places]), strict=True))
    return [found[place] for place in range(len(given))]
