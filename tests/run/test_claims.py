"""Labels of the user's own, and rankings: what transformers and sentence-transformers make of the same logits.

Covers: run/paired.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.run.answers import run_text
from onnxopt.run.claims import HYPOTHESIS, Claims, best_first, entailment_of
from onnxopt.run.model import Model
from onnxopt.run.results import Classification, Ranking
from tests.run.test_answers import IDS, MASK, artifact
from tests.run.test_pairs import PAIRED, TYPES

# [neutral, entailment, contradiction]: the second text follows by as much as it has words
JUDGES = PAIRED.replace("[batch, 1] logits", "[batch, 3] logits").replace(
    "    logits = ReduceSum<keepdims = 1>(second, last)\n",
    "    count = ReduceSum<keepdims = 1>(second, last)\n"
    "    half = Constant<value = float[1] {0.5}>()\n    none = Sub(count, count)\n"
    "    less = Mul(count, half)\n    logits = Concat<axis = 1>(less, count, none)\n",
)
NAMES = {"id2label": {"0": "neutral", "1": "Entailment", "2": "contradiction"}}
LABELS = ["film", "a bad film", "paris in who"]


def judge(folder: Path, task: str = "zero-shot-classification", **config: Any) -> Path:
    """Return an artifact that finds a sentence the truer the more words it has."""
    return artifact(folder, JUDGES, task, inputs=f"{IDS}, {MASK}, {TYPES}", files={"config.json": NAMES | config})


def ranker(folder: Path, task: str = "text-ranking", **config: Any) -> Path:
    """Return an artifact that finds a document the better the more words it has."""
    return artifact(folder, PAIRED, task, inputs=f"{IDS}, {MASK}, {TYPES}", files={"config.json": config})


def words(text: str) -> int:
    """Return how many words of a second text the model counts, with the mark behind it."""
    return len(text.replace(".", " .").split()) + 1


@pytest.mark.parametrize("task", ["zero-shot-classification", "text-classification"])
def test_labels_are_weighed_against_each_other(task: str, tmp_path: Path) -> None:
    result = run_text(judge(tmp_path, task), ["good"], claims=Claims.of(LABELS))
    assert isinstance(result, Classification)
    counts = np.array([words(HYPOTHESIS.replace("{}", label)) for label in LABELS], np.float64)
    expected = np.exp(counts) / np.exp(counts).sum()
    found = {one.label: one.score for one in result.labels[0]}
    assert [one.label for one in result.labels[0]] == [LABELS[at] for at in np.argsort(-counts, kind="stable")]
    np.testing.assert_allclose([found[label] for label in LABELS], expected, rtol=1e-5)


def test_each_label_is_judged_for_itself_where_several_may_fit(tmp_path: Path) -> None:
    model = Model(judge(tmp_path))
    found = model.choose("good", LABELS, hypothesis="{}", several=True)
    alone = model.choose(["good", "bad"], LABELS[:1], hypothesis="{}")
    assert isinstance(found, dict)
    for label in LABELS:  # entailment against what stands first, as transformers has it: half of it here
        count = words(label)
        assert found[label] == pytest.approx(1 / (1 + np.exp(count / 2 - count)), rel=1e-5)
    assert isinstance(alone, list)
    assert [row[LABELS[0]] for row in alone] == pytest.approx([found[LABELS[0]]] * 2)


def test_the_scores_are_those_of_transformers() -> None:
    logits = np.random.default_rng(5).standard_normal((4, 3))
    claims = Claims(("a", "b", "c", "d"))
    for entails, against in ((0, 2), (1, 0), (2, 0)):
        powers = np.exp(logits[:, entails])
        np.testing.assert_allclose(claims.scores(logits, entails), powers / powers.sum())
        both = np.exp(logits[:, [against, entails]])
        several = Claims(claims.labels, several=True).scores(logits, entails)
        np.testing.assert_allclose(several, both[:, 1] / both.sum(axis=1))


def test_entailment_is_found_by_its_name() -> None:
    assert entailment_of(NAMES, 3) == 1
    assert entailment_of({"id2label": {"0": "not", "1": "no", "2": "ENTAILS"}}, 3) == 2
    with pytest.raises(InputError, match="no label for entailment; it has LABEL_0, LABEL_1"):
        entailment_of({}, 2)
    assert best_first(["a", "b", "c"], np.array([0.2, 0.5, 0.2])) == [1, 0, 2]


def test_the_command_line_takes_labels_and_says_what_is_wrong_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(judge(tmp_path / "judge"))
    assert main(["run", path, "good", "--labels", "film, a bad film", "--hypothesis", "in {}", "--json"]) == 0
    (labels,) = json.loads(capsys.readouterr().out)["labels"]
    assert [one["label"] for one in labels] == ["a bad film", "film"]
    refused = [
        (["good"], "needs labels to choose from"),
        (["good", "--labels", "a,,b"], "--labels: a label is empty"),
        (["good", "--labels", "a,a"], "--labels: a label is there twice"),
        (["good", "--labels", "a", "--hypothesis", "no place"], "--hypothesis: 'no place' has no {}"),
        (["good", "--hypothesis", "{}"], "--hypothesis: says how labels are chosen"),
        (["good", "--several"], "--several: says how labels are chosen"),
        (["--pair", "good\tbad", "--labels", "a"], "not a pair|reads no pairs"),
    ]
    for given, said in refused:
        assert main(["run", path, *given]) == 2
        told = capsys.readouterr().err
        assert any(part in told for part in said.split("|")), told
    ranks = str(ranker(tmp_path / "ranks"))
    assert main(["run", ranks, "good"]) == 2
    assert "reads two texts at once" in capsys.readouterr().err
    assert main(["run", ranks, "good", "--labels", "a,b"]) == 2
    assert "does not choose from labels" in capsys.readouterr().err


def test_documents_are_ranked_for_each_query(tmp_path: Path) -> None:
    path = ranker(tmp_path, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    pairs = [("who", "bad"), ("good", "paris"), ("who", "lives in paris"), ("good", "a film"), ("who", "in paris")]
    result = run_text(path, (), pairs=pairs)
    assert isinstance(result, Ranking)
    assert result.scores == tuple(words(second) for _, second in pairs)
    assert result.lines() == [
        *("'who':", "1. 4.0000 'lives in paris'", "2. 3.0000 'in paris'", "3. 2.0000 'bad'"),
        *("'good':", "1. 3.0000 'a film'", "2. 2.0000 'paris'"),
    ]
    ranked = Model(path).rerank("who", [second for _, second in pairs], most=2)
    assert [(one.text, one.score) for one in ranked] == [("lives in paris", 4.0), ("a film", 3.0)]


def test_without_a_word_of_its_config_a_score_goes_through_a_sigmoid(tmp_path: Path) -> None:
    result = run_text(ranker(tmp_path), (), pairs=[("who", "bad")])
    assert isinstance(result, Ranking)
    assert result.scores == pytest.approx((1 / (1 + np.exp(-2.0)),))
