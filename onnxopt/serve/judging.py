"""What a text is: its labels, how well documents answer a query, and the things that are named in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from onnxopt.run.claims import Claims, best_first, entailment_of
from onnxopt.run.labels import words_of
from onnxopt.run.results import joined
from onnxopt.run.scores import as_scores
from onnxopt.serve.answers import hold_answer
from onnxopt.serve.bodies import ClassifyBody, LabelsBody, RerankBody, ScoreBody
from onnxopt.serve.encodes import Classifies, TokenRow, row_of
from onnxopt.serve.parsing import ReadRoute
from onnxopt.serve.problems import Json, Problem
from onnxopt.serve.requests import items_of, letters_of, limits_of, run_rows, shelf_of, usage_of
from onnxopt.serve.shelf import Served
from onnxopt.serve.texts import off_loop
from onnxopt.spec import Array

router = APIRouter(prefix="/v1", route_class=ReadRoute)

_LABEL_BYTES = 400  # of one label in an answer: Python's objects and its letters, twice
_WORD_BYTES = 800  # of one token whose word is labelled


@router.post("/classify")
async def classify(request: Request, body: ClassifyBody) -> Response:
    """Label texts, or pairs of them, as a whole: every label with its score, the likeliest first."""
    body.refuse_unknown()
    served, classifies = _classifier(request, body.model, whole=True)
    if body.candidate_labels is not None:
        return await _choose(request, served, classifies, body)
    rows = await _rows(request, classifies, body)
    hold_answer(request, len(rows) * len(classifies.names) * _LABEL_BYTES)
    data = []
    for index, scores in enumerate(await _scores(served, classifies, rows)):
        ranked = sorted(zip(classifies.names, scores.tolist(), strict=True), key=lambda pair: -pair[1])
        labels = [{"label": name, "score": score} for name, score in ranked]
        data.append({"object": "classification", "index": index, **labels[0], "labels": labels})
    return Json({"object": "list", "data": data, "model": body.model, "usage": usage_of(rows)})


async def _choose(request: Request, served: Served, classifies: Classifies, body: ClassifyBody) -> Response:
    """Choose for each text from the labels that came with it."""
    claims = Claims.of(body.candidate_labels or [], body.hypothesis_template, several=body.multi_label)
    entails = entailment_of(classifies.text.config, len(classifies.names))
    given = body.input if body.input is not None else []
    texts = [str(one) for one in ([given] if isinstance(given, str) else given)]
    items_of(texts[:1] * (len(texts) * len(claims.labels)), limits_of(request), "input")  # before any is written
    pairs = [pair for text in texts for pair in claims.pairs(text)]
    flat = ["".join(pair) for pair in pairs]
    rows = await off_loop(lambda: classifies.pairs(pairs, truncate=body.truncate), letters=letters_of(flat))
    hold_answer(request, len(rows) * _LABEL_BYTES)
    logits = await run_rows(served, classifies, classifies.output, rows, what="a score")
    data, count = [], len(claims.labels)
    for index in range(len(texts)):
        scores = claims.scores(np.stack(logits[index * count : (index + 1) * count]), entails)
        labels = [{"label": claims.labels[at], "score": float(scores[at])} for at in best_first(claims.labels, scores)]
        data.append({"object": "classification", "index": index, **labels[0], "labels": labels})
    return Json({"object": "list", "data": data, "model": body.model, "usage": usage_of(rows)})


@router.post("/score")
async def score(request: Request, body: ScoreBody) -> Response:
    """Say how well two texts belong together, in the order of the pairs."""
    body.refuse_unknown()
    served, classifies = _ranker(request, body.model)
    pairs = body.pairs()
    flat = items_of(["".join(pair) for pair in pairs], limits_of(request), "text_2")
    hold_answer(request, len(pairs) * _LABEL_BYTES)
    rows = await off_loop(lambda: classifies.pairs(pairs, truncate=body.truncate), letters=letters_of(flat))
    scores = await _scores(served, classifies, rows)
    data = [{"object": "score", "index": index, "score": float(one[0])} for index, one in enumerate(scores)]
    return Json({"object": "list", "data": data, "model": body.model, "usage": usage_of(rows)})


@router.post("/rerank")
async def rerank(request: Request, body: RerankBody) -> Response:
    """Order documents by how well they answer a query, the best first; equal ones keep their order."""
    body.refuse_unknown()
    served, classifies = _ranker(request, body.model)
    documents = [str(one) for one in items_of(body.documents, limits_of(request), "documents")]
    hold_answer(request, len(documents) * _LABEL_BYTES + (2 * letters_of(documents) if body.return_documents else 0))
    pairs = [(body.query, document) for document in documents]
    letters = letters_of(documents) + len(body.query) * len(documents)
    rows = await off_loop(lambda: classifies.pairs(pairs, truncate=body.truncate), letters=letters)
    scores = [float(one[0]) for one in await _scores(served, classifies, rows)]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results = [
        {
            "index": index,
            "relevance_score": scores[index],
            **({"document": {"text": documents[index]}} if body.return_documents else {}),
        }
        for index in order
    ]
    return Json({"object": "list", "results": results, "model": body.model, "usage": usage_of(rows)})


@router.post("/ner")
async def entities(request: Request, body: LabelsBody) -> Response:
    """Find the things that texts name, with their places counted in characters; words that belong together are one."""
    body.refuse_unknown()
    served, classifies = _classifier(request, body.model, whole=False)
    texts = [str(one) for one in items_of(body.input, limits_of(request), "input")]
    encodings = await off_loop(lambda: classifies.encodings(texts, truncate=body.truncate), letters=letters_of(texts))
    rows = [row_of(one) for one in encodings]
    hold_answer(request, sum(len(ids) for ids, _ in rows) * _WORD_BYTES)
    data = []
    for index, scores in enumerate(await _scores(served, classifies, rows)):
        words = words_of(texts[index], encodings[index], scores, classifies.names)
        found = [one.model_dump() for one in joined(texts[index], words)]
        data.append({"object": "entities", "index": index, "entities": found})
    return Json({"object": "list", "data": data, "model": body.model, "usage": usage_of(rows)})


def _classifier(request: Request, name: str, *, whole: bool) -> tuple[Served, Classifies]:
    """Return a model that labels texts, or else their words.

    Raises:
        Problem: when it does not.
    """
    served = shelf_of(request).get(name)
    if served.classifies is None or served.classifies.whole != whole:
        what = "labels no texts" if whole else "labels no words"
        raise Problem(422, f"the model {name!r} {what}", code="wrong_task", param="model")
    return served, served.classifies


def _ranker(request: Request, name: str) -> tuple[Served, Classifies]:
    """Return a model that says with one number how well two texts belong together.

    Raises:
        Problem: when it does not.
    """
    served, classifies = _classifier(request, name, whole=True)
    if not classifies.reranks:
        raise Problem(422, f"the model {name!r} gives labels, no relevance", code="wrong_task", param="model")
    return served, classifies


async def _rows(request: Request, classifies: Classifies, body: ClassifyBody) -> list[TokenRow]:
    """Return the tokens of texts or of pairs, whichever came."""
    limits = limits_of(request)
    if body.pairs is None:
        texts = items_of(body.input if body.input is not None else [], limits, "input")
        return await off_loop(lambda: classifies.read(texts, truncate=body.truncate), letters=letters_of(texts))
    flat = ["".join(pair) for pair in body.pairs]
    items_of(flat, limits, "pairs")
    pairs = body.pairs
    return await off_loop(lambda: classifies.pairs(pairs, truncate=body.truncate), letters=letters_of(flat))


async def _scores(served: Served, classifies: Classifies, rows: Sequence[TokenRow]) -> list[Array]:
    """Run a model on rows of tokens; return float64 [labels] of each, or [tokens, labels].

    Raises:
        Problem: when a logit is not finite.
    """
    logits = await run_rows(served, classifies, classifies.output, rows, what="a score")
    return [as_scores(one, classifies.scores) for one in logits]
