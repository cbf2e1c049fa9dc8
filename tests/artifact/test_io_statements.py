"""Every statement of io.json is tried by running the graph; a key that nothing here tries is an error.

Covers: artifact/io_json.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt
from onnxopt.artifact.golden import read_cases
from onnxopt.records.manifest import Manifest
from onnxopt.run.answers import run_text
from onnxopt.run.generate.generator import Generator
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.results import Classification, TokenLabels
from onnxopt.run.scores import as_scores
from onnxopt.run.session import Session
from onnxopt.spec import Feeds
from tests.artifact.test_io_json import classifier, embedder
from tests.support.tiny import tiny_checkpoint

TEXT, LONG = "the cat sat", " ".join(["the dog"] * 200)


class Tried:
    """An artifact whose io.json is tried, key by key.

    Attributes:
        folder: the artifact.
        io: what it says.
        manifest: what its maker knows.
        model: its graph with its tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.io: dict[str, Any] = json.loads((folder / "io.json").read_text())
        self.manifest = Manifest.read(folder)
        self.model = TextModel.open(folder, Session(folder))

    def answer(self, *texts: str) -> Feeds:
        return self.model.run(self.model.encode(texts)).outputs

    def format(self, said: int) -> None:
        assert said == 1

    def name(self, said: str) -> None:
        assert said == self.manifest.name

    def task(self, said: str) -> None:
        assert said == self.manifest.task

    def inputs(self, said: list[dict[str, Any]]) -> None:
        """Feeds made of nothing but what is said run; what is said of padding hides a padded row's tail."""
        for case in read_cases(self.folder / "golden"):
            self._fits(said, case.feeds)
        if "decoding" not in self.io:
            self._padding_is_hidden()

    def _padding_is_hidden(self) -> None:
        fed = {}
        (ids,) = [self.model.encode([TEXT])[0].ids]
        for spec in self.io["inputs"]:
            own = {"ids": ids, "mask": [1] * len(ids), "types": [0] * len(ids)}[spec["meaning"]]
            fed[spec["name"]] = np.array([own + [spec["pad"]] * 3], spec["dtype"])
        padded, alone = self.model.session.run(fed), self.answer(TEXT)
        for name, rows in alone.items():
            shown = padded[name][:, : rows.shape[1]] if rows.ndim == 3 else padded[name]
            assert np.allclose(shown, rows, atol=1e-4), name

    def outputs(self, said: list[dict[str, Any]]) -> None:
        for case in read_cases(self.folder / "golden"):
            self._fits(said, case.outputs)
        meanings = {spec["name"]: spec["meaning"] for spec in said}
        assert ("pooled in the graph" in meanings.get("sentence_embedding", "")) == ("sentence_embedding" in meanings)
        assert all(meaning == "cache" for name, meaning in meanings.items() if name.startswith("present"))

    def _fits(self, said: list[dict[str, Any]], tensors: Mapping[str, Any]) -> None:
        sizes: dict[str, int] = {}
        assert [spec["name"] for spec in said] == list(tensors)
        for spec in said:
            array = tensors[spec["name"]]
            assert array.dtype.name == spec["dtype"]
            for axis, size in zip(spec["axes"], array.shape, strict=True):
                assert (axis if isinstance(axis, int) else sizes.setdefault(axis, size)) == size

    def sizes(self, said: dict[str, dict[str, int]]) -> None:
        open_axes = {axis for spec in self.io["inputs"] for axis in spec["axes"] if isinstance(axis, str)}
        assert set(said) <= open_axes
        for axis, found in said.items():
            assert 0 <= found["least"] <= found["most"], axis

    def tokenizer(self, said: dict[str, Any]) -> None:
        assert (self.folder / said["file"]).is_file()
        assert said["pad_id"] == self.model.pad
        assert (said["padding_side"] == "left") == self.model.pads_left
        assert said["lowercase"] == self.model.lowers
        row = self.model.encode([LONG])[0].ids
        assert len(row) == said["max_length"] if said["max_length"] else len(row) > 200
        before, after = said["marks"]["single"]
        whole = self.model.tokenizer.encode(TEXT, add_special_tokens=False).ids
        assert [*before, *whole, *after] == self.model.encode([TEXT])[0].ids

    def preprocessing(self, said: list[str]) -> None:
        tokenizer = self.io["tokenizer"]
        cut = [step for step in said if step.startswith("cut to ")]
        assert cut == ([f"cut to {tokenizer['max_length']} tokens"] if tokenizer["max_length"] else [])
        assert (
            said[-1]
            == f"pad rows of a batch with {tokenizer['pad_id']} on the {tokenizer['padding_side']}, mask 0 there"
        )

    def postprocessing(self, said: list[str]) -> None:
        if "decoding" in self.io:
            logits = self._next_logits()
            found = Generator(self.folder).generate([TEXT], max_new_tokens=1, chat=False).results[0].tokens
            assert said[0].startswith("take the best")
            assert found == (int(logits.argmax()),)
        elif "normalized" in self.io:
            assert ("dot product" in said[0]) and ("divide" in said[0]) != self.io["normalized"]
        elif "per token" in said[0]:
            answer = run_text(self.folder, [TEXT])
            assert isinstance(answer, TokenLabels)
            best = as_scores(self.answer(TEXT)["logits"][0], "softmax").max(axis=-1)
            assert all(np.isclose(best, word.score, atol=1e-5).any() for word in answer.words[0])
        else:
            assert said[0].startswith(self.io["scores"])

    def _next_logits(self) -> Any:
        return self.model.run(self.model.encode([TEXT])).outputs["logits"][0, -1]

    def pooling(self, said: str) -> None:
        found = self.answer(TEXT)
        tokens = found["last_hidden_state"][0]
        pooled = {"mean": tokens.mean(axis=0), "cls": tokens[0], "max": tokens.max(axis=0)}
        assert said in pooled
        vector = found["sentence_embedding"][0]
        if len(vector) == tokens.shape[1]:  # else a layer lies behind it
            assert np.isclose(np.corrcoef(vector, pooled[said])[0, 1], 1.0, atol=1e-4)

    def normalized(self, said: bool) -> None:  # noqa: FBT001  # called by its key, with what is said
        length = float(np.linalg.norm(self.answer(TEXT)["sentence_embedding"]))
        assert (abs(length - 1) < 1e-4) == said

    def scores(self, said: Any) -> None:
        answer = run_text(self.folder, [TEXT])
        assert isinstance(answer, Classification)
        wanted = sorted(as_scores(self.answer(TEXT)["logits"][0], said).tolist(), reverse=True)
        assert [label.score for label in answer.labels[0]] == pytest.approx(wanted, abs=1e-6)

    def labels(self, said: dict[str, str]) -> None:
        assert sorted(map(int, said)) == list(range(self.answer(TEXT)["logits"].shape[-1]))

    def decoding(self, said: dict[str, Any]) -> None:
        generator = Generator(self.folder)
        assert set(said["eos_token_id"]) <= set(generator.ends)
        logits = self._next_logits()
        assert said["vocabulary"] == len(logits)
        rows = self.model.run(self.model.encode([TEXT])).outputs["logits"].shape[1]
        assert (rows == 1) == (said["logits"] == "last")


def decoder(folder: Path) -> Path:
    return tiny_checkpoint("gpt2", folder)


def tagger(folder: Path) -> Path:
    return tiny_checkpoint("bert", folder, task="token-classification", labels=5)


def normalizing(folder: Path) -> Path:
    return tiny_checkpoint("bert", folder, pooling={"pooling_mode": "mean"})


def reranker(folder: Path) -> Path:
    return classifier(folder, labels=1)


@pytest.mark.parametrize(
    "make", [embedder, normalizing, reranker, classifier, tagger, decoder], ids=lambda make: make.__name__
)
def test_each_statement_is_what_the_graph_does(make: Callable[[Path], Path], tmp_path: Path) -> None:
    tried = Tried(onnxopt.optimize(make(tmp_path / "in"), out=tmp_path / "out", measure=False).path)
    assert len(tried.io) >= 8
    for key, said in tried.io.items():
        assert hasattr(Tried, key), f"nothing tries {key}"
        getattr(tried, key)(said)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("normalized", True),
        ("pooling", "middle"),
        ("preprocessing", ["pad rows of a batch with 9 on the left, mask 0 there"]),
        ("task", "text-classification"),
    ],
)
def test_a_wrong_statement_would_be_noticed(key: str, wrong: Any, shown: Tried) -> None:
    with pytest.raises(AssertionError):
        getattr(shown, key)(wrong)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    room = tmp_path_factory.mktemp("wrong")
    return Tried(onnxopt.optimize(embedder(room / "in"), out=room / "out", measure=False).path)
