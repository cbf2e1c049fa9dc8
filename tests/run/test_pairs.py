"""Trying an artifact by hand with pairs and prompts, and words that are joined: on models whose answer is known.

Covers: run/answers.py, run/results.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.run.answers import run_text
from onnxopt.run.results import Classification, Embeddings, TokenLabels, Word, joined
from tests.run.test_answers import IDS, MASK, MOOD, POOLED, TOKENS, artifact, pooled, table

PAIRED = """
<ir_version: 10, opset_import: ["" : 20]>
g (INPUTS) => (float[batch, 1] logits)
{
    kind = Cast<to = 1>(token_type_ids)
    real = Cast<to = 1>(attention_mask)
    second = Mul(kind, real)
    last = Constant<value = int64[1] {1}>()
    logits = ReduceSum<keepdims = 1>(second, last)
}
"""
TYPES = "int64[batch, sequence] token_type_ids"


def paired(folder: Path) -> Path:
    return artifact(folder, PAIRED, "text-classification", inputs=f"{IDS}, {MASK}, {TYPES}")


def test_pairs_are_read_as_two_texts_each(tmp_path: Path) -> None:
    path = paired(tmp_path)
    pairs = [("good film", "bad"), ("who", "lives in paris"), ("good", "bad film")]
    result = run_text(path, (), pairs=pairs)
    assert isinstance(result, Classification)
    assert result.texts == tuple("\t".join(pair) for pair in pairs)
    counts = [len(second.split()) + 1 for _, second in pairs]  # and the mark behind it
    assert [row[0].score for row in result.labels] == pytest.approx([1 / (1 + math.exp(-count)) for count in counts])


def test_pairs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(paired(tmp_path))
    assert main(["run", path, "--pair", "good film\tbad film", "--pair", r"good\tbad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == ["good film\tbad film", "good\tbad"]
    for given in ("one text", "\tbad", "good\t "):
        assert main(["run", path, "--pair", given]) == 2
        assert "write two texts with a tab between them" in capsys.readouterr().err
    assert main(["run", path, "good", "--pair", "a\tb"]) == 2
    assert "either texts or --pair" in capsys.readouterr().err
    assert main(["run", path]) == 2
    assert "no text to run on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("text-classification", {"texts": ["good"], "context": "bad"}, "--context: .* use --pair"),
        ("feature-extraction", {"texts": ["good"], "context": "bad"}, "--context: .* leave it out"),
        ("feature-extraction", {"texts": (), "pairs": [("good", "bad")]}, "--pair: .* each text alone"),
        ("question-answering", {"texts": (), "pairs": [("who", "paris")]}, "--pair: .* with --context"),
        ("text-classification", {"texts": ["good"], "prompt": "query"}, "--prompt: .* has no prompts"),
    ],
)
def test_what_a_task_would_not_look_at_is_refused(
    task: str, given: Mapping[str, Any], said: str, tmp_path: Path
) -> None:
    path = artifact(tmp_path, POOLED.replace("NAME", "logits"), task, tables={"table": MOOD})
    with pytest.raises(InputError, match=said):
        run_text(path, **given)


PROMPTS = {"prompts": {"query": "film ", "passage": ""}, "default_prompt_name": None}
OF_SENTENCES = "config_sentence_transformers.json"


def vector(path: Path, text: str, prompt: str | None = None) -> tuple[float, ...]:
    result = run_text(path, [text], prompt=prompt)
    assert isinstance(result, Embeddings)
    assert result.texts == (text,)
    return result.vectors[0]


def test_a_prompt_stands_in_front_of_the_text(tmp_path: Path) -> None:
    plain = pooled(tmp_path / "plain", files={OF_SENTENCES: PROMPTS})
    assert vector(plain, "good") == vector(plain, "good", "") == vector(plain, "good", "passage") == (1.0, 0.0)
    assert vector(plain, "good", "query") == (2.0, 1.0)
    with pytest.raises(InputError, match=r"has no prompt 'title'; use one of query, passage"):
        run_text(plain, ["good"], prompt="title")
    by_default = pooled(tmp_path / "default", files={OF_SENTENCES: PROMPTS | {"default_prompt_name": "query"}})
    assert vector(by_default, "good") == (2.0, 1.0)
    assert vector(by_default, "good", "") == (1.0, 0.0)
    none = pooled(tmp_path / "none")
    with pytest.raises(InputError, match="it comes without prompts"):
        run_text(none, ["good"], prompt="query")


def test_words_that_belong_together_are_one_thing(tmp_path: Path) -> None:
    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    kinds = table({"good": [0, 9, 0, 0], "bad": [0, 0, 9, 0], "paris": [0, 0, 0, 9], "film": [9, 0, 0, 0.0]})
    config = {"id2label": {str(number): label for number, label in enumerate(labels)}}
    path = artifact(tmp_path, TOKENS, "token-classification", tables={"table": kinds}, files={"config.json": config})
    result = run_text(path, ["good bad bad paris paris film bad"])
    assert isinstance(result, TokenLabels)
    assert [(one.text, one.label) for one in result.entities[0]] == [
        ("good bad bad", "PER"),
        ("paris", "LOC"),
        ("paris", "LOC"),
        ("bad", "PER"),
    ]
    assert [word.label for word in result.words[0]] == [*("B-PER", "I-PER", "I-PER", "B-LOC", "B-LOC", "O", "I-PER")]
    first = result.entities[0][0]
    assert (first.start, first.end) == (0, len("good bad bad"))
    assert first.score == pytest.approx(result.words[0][0].score)
    assert "good bad bad = PER" in result.lines()[0]


def test_labels_without_marks_are_joined_where_they_are_equal() -> None:
    def word(text: str, label: str, start: int) -> Word:
        return Word(word=text, label=label, score=0.5, start=start, end=start + len(text))

    words = [word("ab", "X", 0), word("cd", "X", 3), word("ef", "Y", 6), word("gh", "I-Y", 9), word("ij", "B-Y", 12)]
    assert [(one.text, one.label) for one in joined("ab cd ef gh ij", words)] == [
        ("ab cd", "X"),
        ("ef gh", "Y"),
        ("ij", "Y"),
    ]
    assert joined("ab", [word("ab", "O", 0)]) == ()
