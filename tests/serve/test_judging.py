"""Labels, relevance and names over HTTP: what transformers gives, and `run` in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import onnxopt
from onnxopt.run.answers import run_text
from onnxopt.run.claims import Claims
from onnxopt.run.results import Classification, TokenLabels
from onnxopt.serve.app import create_app
from onnxopt.serve.limits import Limits
from tests.support.asgi import Caller
from tests.support.tiny import tiny_checkpoint

TEXTS = ["the name of a class", "a", "this is a longer text about the name of the function"]
QUERY = "what is the name"
KINDS = {"moods": ("text-classification", 6), "ranks": ("text-classification", 1), "names": ("token-classification", 5)}
MOODS = {str(place): f"mood {place}" for place in range(6)} | {"4": "entailment"}
NAMES = {"0": "O", "1": "B-PER", "2": "I-PER", "3": "B-LOC", "4": "I-LOC"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, (task, labels) in KINDS.items():
        folder = tiny_checkpoint("bert", tmp_path_factory.mktemp(name) / "checkpoint", task=task, labels=labels)
        if name in ("names", "moods"):
            path = folder / "config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            own = NAMES if name == "names" else MOODS
            config["id2label"], config["label2id"] = own, {label: int(place) for place, label in own.items()}
            path.write_text(json.dumps(config), encoding="utf-8")
        found[name] = folder
    return found


@pytest.fixture(scope="module")
def folders(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("artifacts")
    return {name: onnxopt.optimize(folder, out=room / name, measure=False).path for name, folder in checkpoints.items()}


@pytest.fixture(scope="module")
def caller(folders: dict[str, Path], encoder_folder: Path) -> Iterator[Caller]:
    limits = Limits(max_items=6, timeout_s=60)
    caller = Caller(create_app({**folders, "vectors": encoder_folder}, limits=limits))
    yield caller
    caller.close()


def test_each_model_says_where_it_can_be_asked(caller: Caller) -> None:
    routes = {name: model.routes for name, model in caller.app.state.shelf.models.items()}
    assert routes == {
        "moods": ["/v1/classify", "/v2/models/moods/infer"],
        "ranks": ["/v1/classify", "/v1/rerank", "/v1/score", "/v2/models/ranks/infer"],
        "names": ["/v1/ner", "/v2/models/names/infer"],
        "vectors": ["/v1/embeddings", "/v2/models/vectors/infer"],
    }


def test_texts_are_labelled_as_run_labels_them(caller: Caller, folders: dict[str, Path]) -> None:
    expected = run_text(folders["moods"], TEXTS)
    assert isinstance(expected, Classification)
    found = caller.ask("/v1/classify", {"model": "moods", "input": TEXTS}).json
    assert [one["index"] for one in found["data"]] == [0, 1, 2]
    for one, labels in zip(found["data"], expected.labels, strict=True):
        assert [each["label"] for each in one["labels"]] == [each.label for each in labels]
        assert np.allclose([each["score"] for each in one["labels"]], [each.score for each in labels], atol=1e-6)
        assert (one["label"], one["score"]) == (one["labels"][0]["label"], one["labels"][0]["score"])
    assert found["usage"]["prompt_tokens"] > len(TEXTS)
    alone = caller.ask("/v1/classify", {"model": "moods", "input": TEXTS[1]}).json
    assert np.isclose(alone["data"][0]["score"], found["data"][1]["score"], atol=1e-6)


def test_documents_are_ordered_as_the_cross_encoder_of_the_checkpoint_does(
    caller: Caller, checkpoints: dict[str, Path]
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoints["ranks"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints["ranks"])
    with torch.no_grad():
        made = tokenizer([QUERY] * 3, TEXTS, padding=True, return_token_type_ids=True, return_tensors="pt")
        scores = model(**made).logits[:, 0].sigmoid().tolist()
    order = sorted(range(3), key=lambda index: -scores[index])
    body = {"model": "ranks", "query": QUERY, "documents": TEXTS}
    found = caller.ask("/v1/rerank", {**body, "return_documents": True}).json["results"]
    assert [one["index"] for one in found] == order
    assert np.allclose([one["relevance_score"] for one in found], [scores[index] for index in order], atol=1e-5)
    assert [one["document"]["text"] for one in found] == [TEXTS[index] for index in order]
    best = caller.ask("/v1/rerank", {**body, "top_n": 1}).json["results"]
    assert best == [{"index": order[0], "relevance_score": found[0]["relevance_score"]}]
    pairs = caller.ask("/v1/classify", {"model": "ranks", "pairs": [[QUERY, text] for text in TEXTS]}).json
    assert np.allclose([one["score"] for one in pairs["data"]], scores, atol=1e-5)


def test_pairs_are_scored_in_their_order(caller: Caller) -> None:
    documents = {"model": "ranks", "query": QUERY, "documents": TEXTS}
    ranked = caller.ask("/v1/rerank", documents).json["results"]
    expected = {one["index"]: one["relevance_score"] for one in ranked}
    for first in (QUERY, [QUERY], [QUERY] * 3):
        found = caller.ask("/v1/score", {"model": "ranks", "text_1": first, "text_2": TEXTS}).json["data"]
        assert [one["index"] for one in found] == [0, 1, 2]
        assert np.allclose([one["score"] for one in found], [expected[index] for index in range(3)], atol=1e-6)
    refused = caller.ask("/v1/score", {"model": "ranks", "text_1": ["a", "b"], "text_2": TEXTS})
    assert refused.status == 400 and "text_1 has 2 texts, text_2 has 3" in refused.said


def test_labels_of_the_caller_are_chosen_as_run_chooses_them(caller: Caller, folders: dict[str, Path]) -> None:
    labels = ["the name", "a function", "text"]
    for several in (False, True):
        claims = Claims.of(labels, "about {}", several=several)
        expected = run_text(folders["moods"], TEXTS[:2], claims=claims)
        assert isinstance(expected, Classification)
        body = {"model": "moods", "input": TEXTS[:2], "candidate_labels": labels, "hypothesis_template": "about {}"}
        found = caller.ask("/v1/classify", {**body, "multi_label": several}).json["data"]
        for one, wanted in zip(found, expected.labels, strict=True):
            assert [each["label"] for each in one["labels"]] == [each.label for each in wanted]
            assert np.allclose([each["score"] for each in one["labels"]], [each.score for each in wanted], atol=1e-6)


def test_a_long_document_is_cut_as_transformers_cuts_it(caller: Caller, checkpoints: dict[str, Path]) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoints["ranks"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoints["ranks"])
    limit = caller.app.state.shelf.models["ranks"].classifies.text.limit
    long = "the name of a class is a text " * 2000
    with torch.no_grad():
        how = {"truncation": "longest_first", "max_length": limit, "return_token_type_ids": True}
        made = tokenizer([QUERY], [long], return_tensors="pt", **how)
        score = float(model(**made).logits[0, 0].sigmoid())
    body = {"model": "ranks", "query": QUERY, "documents": [long]}
    found = caller.ask("/v1/rerank", body).json
    assert np.isclose(found["results"][0]["relevance_score"], score, atol=1e-5)
    assert found["usage"]["prompt_tokens"] == limit
    refused = caller.ask("/v1/rerank", {**body, "truncate": False})
    assert refused.status == 400
    assert f"the model takes {limit}" in refused.said


def test_names_are_found_where_run_finds_them(caller: Caller, folders: dict[str, Path]) -> None:
    expected = run_text(folders["names"], TEXTS)
    assert isinstance(expected, TokenLabels)
    found = caller.ask("/v1/ner", {"model": "names", "input": TEXTS}).json["data"]
    assert any(expected.entities), "something is named"
    for one, entities, text in zip(found, expected.entities, TEXTS, strict=True):
        assert [(each["label"], each["start"], each["end"]) for each in one["entities"]] == [
            (each.label, each.start, each.end) for each in entities
        ]
        assert all(text[each["start"] : each["end"]] == each["text"] for each in one["entities"])


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/classify", {"model": "vectors", "input": "a"}, 422, "the model 'vectors' labels no texts"),
        ("/v1/classify", {"model": "names", "input": "a"}, 422, "the model 'names' labels no texts"),
        ("/v1/ner", {"model": "moods", "input": "a"}, 422, "the model 'moods' labels no words"),
        ("/v1/rerank", {"model": "moods", "query": "a", "documents": ["b"]}, 422, "gives labels, no relevance"),
        ("/v1/score", {"model": "moods", "text_1": "a", "text_2": "b"}, 422, "gives labels, no relevance"),
        ("/v1/classify", {"model": "ranks", "input": "a", "candidate_labels": ["b"]}, 422, "no label for entailment"),
        ("/v1/classify", {"model": "moods", "input": "a", "candidate_labels": ["b"] * 2}, 422, "there twice"),
        ("/v1/classify", {"model": "moods", "input": ["a"] * 3, "candidate_labels": ["b", "c", "d"]}, 413, "9 texts"),
        ("/v1/classify", {"model": "moods", "pairs": [["a", "b"]], "candidate_labels": ["b"]}, 422, "not for pairs"),
        ("/v1/rerank", {"model": "ranks", "query": "a", "documents": []}, 422, "there is nothing in it"),
        ("/v1/rerank", {"model": "ranks", "query": " ", "documents": ["b"]}, 422, "the text is empty"),
        ("/v1/rerank", {"model": "ranks", "query": "a", "documents": ["b"] * 7}, 413, "7 texts in one request"),
        ("/v1/rerank", {"model": "ranks", "query": "a", "documents": ["b"], "top_n": 0}, 422, "top_n"),
        ("/v1/rerank", {"model": "ranks", "query": "\ud800", "documents": ["b"]}, 422, "half of a surrogate pair"),
        ("/v1/classify", {"model": "moods"}, 422, "send either input or pairs"),
        ("/v1/classify", {"model": "moods", "input": "a", "pairs": [["a", "b"]]}, 422, "send either input or pairs"),
        ("/v1/classify", {"model": "moods", "pairs": [["a"]]}, 422, "pairs.0"),
        ("/v1/classify", {"model": "moods", "input": []}, 422, "there is nothing in it"),
        ("/v1/classify", {"model": "moods", "input": ["a"] * 7}, 413, "at most 6"),
        ("/v1/classify", {"model": "moods", "input": "a", "top_k": 3}, 422, "top_k is not supported"),
        ("/v1/ner", {"model": "none", "input": "a"}, 404, "no model 'none'"),
    ],
)
def test_what_cannot_be_answered_is_said(caller: Caller, path: str, body: object, status: int, said: str) -> None:
    found = caller.ask(path, body)
    assert found.status == status
    assert said in found.said
