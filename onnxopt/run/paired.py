"""Answers of models that read two texts at once: rankings of documents, and choices among labels of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxopt.errors import InputError
from onnxopt.run.claims import Claims, entailment_of
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.results import Classification, Ranking
from onnxopt.run.scores import as_scores, scores_of
from onnxopt.spec import Array

Ask = Callable[[Sequence[tuple[str, str]]], Array]
"""Gives float [pairs, classes], the logits of pairs of texts."""


def choose(model: TextModel, task: str, texts: Sequence[str], claims: Claims, ask: Ask) -> Classification:
    """Classify texts by the labels of a user.

    Args:
        model: of entailment.
        task: what it does.
        texts: each is read once for each label.
        claims: the labels.
        ask: runs the model.

    Raises:
        InputError: the model has no label for entailment.
    """
    rows = []
    for text in texts:
        logits = ask(claims.pairs(text))
        scores = claims.scores(logits, entailment_of(model.config, logits.shape[-1], where=str(model.folder)))
        rows.append(claims.in_order(scores))
    notes = tuple(dict.fromkeys(model.notes))
    return Classification(task=task, texts=tuple(texts), labels=tuple(rows), notes=notes)


def rank(model: TextModel, task: str, pairs: Sequence[tuple[str, str]], ask: Ask) -> Ranking:
    """Say how well documents answer queries.

    Args:
        model: with one score.
        task: what it does.
        pairs: a query and a document each.
        ask: runs the model.

    Raises:
        InputError: the model has another number of scores.
    """
    logits = ask(pairs)
    if logits.shape[-1] != 1:
        raise InputError(f"gives {logits.shape[-1]} scores for a pair, not one", where=str(model.session.path))
    scores = as_scores(logits, scores_of(model.config, 1))[:, 0]
    texts = tuple("\t".join(pair) for pair in pairs)
    notes = tuple(model.notes)
    return Ranking(task=task, texts=texts, pairs=tuple(pairs), scores=tuple(scores.tolist()), notes=notes)
