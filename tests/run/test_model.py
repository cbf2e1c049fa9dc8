"""From text to answer in one call: the same as `run_text`, in plain things, for one text and for many."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.run.answers import run_text
from onnxopt.run.model import Model
from onnxopt.run.results import Embeddings, TokenLabels
from tests.support.served import tiny_decoder
from tests.support.tiny import tiny_checkpoint

TEXTS = ["the name of a class", "a", "this is a longer text about the name of the function", "the value", "an object"]
Made = Callable[[str], Model]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model by its kind, made when it is first asked for."""
    models: dict[str, Model] = {}
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}

    def checkpoint(kind: str, room: Path) -> Path:
        if kind == "writes":
            return tiny_decoder("llama", room)
        if kind == "embeds":
            return tiny_checkpoint("bert", room, pooling=pooling)
        task = "token-classification" if kind == "names" else "text-classification"
        return tiny_checkpoint("bert", room, task=task, labels=1 if kind == "ranks" else 5)

    def model(kind: str) -> Model:
        if kind not in models:
            room = tmp_path_factory.mktemp(kind)
            models[kind] = Model(onnxopt.optimize(checkpoint(kind, room / "c"), out=room / "o", measure=False).path)
        return models[kind]

    return model


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_texts_are_encoded_in_their_order_whatever_runs_together(made: Made, batch: int) -> None:
    model = made("embeds")
    expected = run_text(model.path, TEXTS)
    assert isinstance(expected, Embeddings)
    found = model.encode(TEXTS, batch=batch)
    assert found.dtype == np.float32
    assert np.allclose(found, expected.vectors, atol=1e-6)
    assert np.allclose(model.encode(TEXTS[2]), found[2], atol=1e-6)
    assert model.encode([]).shape == (0, 0)


def test_labels_are_a_score_each_the_likeliest_first(made: Made) -> None:
    model = made("labels")
    found = model.classify(TEXTS)
    assert isinstance(found, list)
    assert [list(row.values()) == sorted(row.values(), reverse=True) for row in found] == [True] * len(TEXTS)
    assert all(np.isclose(sum(row.values()), 1.0, atol=1e-6) for row in found)
    alone = model.classify(TEXTS[1])
    assert isinstance(alone, dict)
    assert {name: pytest.approx(score, abs=1e-6) for name, score in found[1].items()} == alone
    pairs = model.classify([(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[0])])
    assert isinstance(pairs, list)
    assert pairs[0] != pairs[1]


def test_documents_come_in_the_order_of_their_scores(made: Made) -> None:
    model = made("ranks")
    found = model.rerank("the name", TEXTS)
    assert sorted(one.index for one in found) == list(range(len(TEXTS)))
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(one.text == TEXTS[one.index] for one in found)
    assert model.rerank("the name", TEXTS, most=2) == found[:2]
    assert model.rerank("the name", []) == []
    with pytest.raises(InputError, match="gives labels, no relevance"):
        made("labels").rerank("the name", TEXTS)


def test_names_are_those_of_run(made: Made) -> None:
    model = made("names")
    expected = run_text(model.path, TEXTS)
    assert isinstance(expected, TokenLabels)
    assert model.entities(TEXTS) == [list(row) for row in expected.entities]
    assert model.entities(TEXTS[0]) == list(expected.entities[0])


def test_a_decoder_writes_on(made: Made) -> None:
    model = made("writes")
    written = model.generate(TEXTS[:2], max_new_tokens=4)
    assert isinstance(written, list)
    assert len(written) == 2
    assert model.generate(TEXTS[0], max_new_tokens=4) == written[0]
    assert model(TEXTS[0], max_new_tokens=4).kind == "continuations"


def test_notes_of_one_call_are_not_those_of_the_next(made: Made) -> None:
    model = made("embeds")
    assert any("was cut" in note for note in model("the name " * 400).notes)
    assert model("the name").notes == ()


@pytest.mark.parametrize("asked", ["encode", "classify", "entities", "generate"])
def test_what_the_task_is_not_is_refused_in_words(made: Made, asked: str) -> None:
    model = made("ranks" if asked != "classify" else "embeds")
    with pytest.raises(InputError, match=r"a model for .*; call the model itself"):
        getattr(model, asked)("a text")


def test_it_says_what_it_is(made: Made) -> None:
    model = made("embeds")
    assert repr(model) == f"Model({str(model.path)!r}): feature-extraction, cpu"
    assert "Model" in dir(onnxopt)
    assert onnxopt.Model is Model
    with pytest.raises(InputError):
        onnxopt.Model("/none")


def test_the_page_names_what_is_there() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    asked = [node for node in calls if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "model"]
    assert len(asked) >= 6
    for node in asked:
        assert isinstance(node.func, ast.Attribute)
        taken = inspect.signature(getattr(Model, node.func.attr)).parameters
        assert {word.arg for word in node.keywords} <= set(taken)
