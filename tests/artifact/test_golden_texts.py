"""Golden texts hold what the graph gives to text; a wrong tokenizer is told apart from a wrong graph.

Covers: artifact/golden_texts.py, artifact/client_lines.py, artifact/client_words.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Encoding

from onnxopt.artifact.client_lines import text_lines
from onnxopt.artifact.client_words import RUN, asking, readme
from onnxopt.artifact.clients import STACKS, add_client
from onnxopt.artifact.golden_texts import GoldenTexts, make_texts, texts_differences
from onnxopt.artifact.package import Artifact, read_golden
from onnxopt.errors import InputError
from onnxopt.run.answers import run_text
from onnxopt.run.inputs.text import Answered, TextModel
from onnxopt.run.results import Classification, Embeddings, TokenLabels
from onnxopt.run.session import Session
from tests.artifact.test_io_json import classifier, embedder, made
from tests.support.node import check_texts, refused_by_node, run_client
from tests.support.tiny import tiny_checkpoint


def split_as_bert(checkpoint: Path) -> Path:
    """Have a tokenizer part words as BERT does, in every library alike."""
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text()) | {"pre_tokenizer": {"type": "BertPreTokenizer"}}
    path.write_text(json.dumps(content))
    return checkpoint


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("texts")
    checkpoints = {
        "embedding": embedder(room / "embedder"),
        "scores": classifier(room / "classifier", labels=1),
        "token_scores": tiny_checkpoint("bert", room / "tagger", task="token-classification", labels=5),
        "tokens": tiny_checkpoint("gpt2", room / "writer"),
        "ids": tiny_checkpoint("roberta", room / "masked", task="fill-mask"),
    }
    found = {kind: made(split_as_bert(folder), room / kind) for kind, folder in checkpoints.items()}
    for artifact in found.values():
        assert add_client(artifact, "node").notes == ()
    return found


def texts_of(artifact: Path) -> GoldenTexts:
    return GoldenTexts.read(artifact / "golden" / "texts.json")


@pytest.mark.parametrize("kind", ["embedding", "scores", "token_scores", "tokens", "ids"])
def test_they_are_part_of_the_artifact_and_reproduced(artifacts: dict[str, Path], kind: str) -> None:
    opened = Artifact.open(artifacts[kind])
    assert "golden/texts.json" in opened.manifest.files
    assert opened.changed_files() == []
    texts = texts_of(opened.path)
    assert texts.answer == kind
    assert len(texts.cases) >= 3
    assert all(case.expected for case in texts.cases) == (kind != "ids")
    assert any(case.pair for case in texts.cases) == (kind == "scores")
    assert texts_differences(texts, opened.path, opened.session()) == []


def test_the_answers_are_those_of_run(artifacts: dict[str, Path]) -> None:
    for kind in ("embedding", "scores", "token_scores"):
        for case in texts_of(artifacts[kind]).cases:
            given: dict[str, Any] = (
                {"texts": [case.text]} if case.pair is None else {"texts": (), "pairs": [(case.text, case.pair)]}
            )
            answer = run_text(artifacts[kind], **given)
            if isinstance(answer, Embeddings):
                assert np.allclose(answer.vectors[0], case.expected, atol=1e-5)
            elif isinstance(answer, Classification):
                assert answer.labels[0][0].score == pytest.approx(case.expected[0], abs=1e-6)
            else:
                assert isinstance(answer, TokenLabels)
                best = np.reshape(case.expected, (len(case.ids), 5)).max(axis=1)
                assert {round(word.score, 5) for word in answer.words[0]} <= {round(float(score), 5) for score in best}


@pytest.mark.parametrize("kind", ["embedding", "scores", "tokens"])
def test_a_tokenizer_and_a_graph_are_told_apart(artifacts: dict[str, Path], kind: str) -> None:
    path = artifacts[kind]
    content = json.loads((path / "golden" / "texts.json").read_text())
    session = Session(path)
    for key, output in (("ids", "ids"), ("expected", content["output"])):
        changed = json.loads(json.dumps(content))
        changed["cases"][1][key][0] += 1
        copy = path.parent / f"{kind}-{key}.json"
        copy.write_text(json.dumps(changed))
        (found,) = texts_differences(GoldenTexts.read(copy), path, session)
        assert (found.case, found.output, found.kind) == (1, output, "text")
        assert str(found).startswith(f"golden text 1, {'ids' if output == 'ids' else f'output {output!r}'}: ")


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    for content, said in (
        ("{", "cannot be read"),
        ('{"format": 2, "answer": "ids", "output": "", "cases": []}', "format"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=said):
            GoldenTexts.read(path)


@pytest.mark.parametrize("kind", ["embedding", "scores", "token_scores"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_refused(
    artifacts: dict[str, Path], kind: str, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextModel.run

    def broken(model: TextModel, encodings: Sequence[Encoding]) -> Answered:
        answered = whole(model, encodings)
        for output in answered.outputs.values():
            output[..., -1] = number
        return answered

    monkeypatch.setattr(TextModel, "run", broken)
    opened = Artifact.open(artifacts[kind])
    with pytest.raises(InputError, match="holds NaN or infinity for the text 'A cat sleeps"):
        make_texts(opened.path, opened.manifest, opened.session(), read_golden(opened.path))


def test_texts_that_are_there_are_kept(artifacts: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(artifacts["scores"], tmp_path / "copy")
    before = (copy / "golden" / "texts.json").read_bytes()
    add_client(copy, "rust")
    assert (copy / "golden" / "texts.json").read_bytes() == before
    assert Artifact.open(copy).changed_files() == []


@pytest.mark.parametrize("kind", ["embedding", "scores", "token_scores", "tokens", "ids"])
def test_lines_hold_every_text_and_what_makes_an_answer_of_it(artifacts: dict[str, Path], kind: str) -> None:
    texts, io = texts_of(artifacts[kind]), json.loads((artifacts[kind] / "io.json").read_text())
    rows = [line.split("\t") for line in text_lines(artifacts[kind], io, texts)]
    assert {row[0] for row in rows} >= {"set", "marks", "feed", "text"}
    settings = {row[1]: row[2] for row in rows if row[0] == "set"}
    assert settings["answer"] == ("next_token" if kind == "tokens" else kind)
    assert settings["output"] == texts.output
    given = [row for row in rows if row[0] in {"text", "bare"}]
    assert [row[3] for row in given] == [",".join(map(str, case.ids)) for case in texts.cases]
    counts = [len([number for number in row[4].split(",") if number]) for row in given]
    assert counts == [1 if kind == "tokens" else len(case.expected) for case in texts.cases]
    assert {len(row) for row in given} == {6}


def test_every_readme_has_its_commands(artifacts: dict[str, Path]) -> None:
    io = json.loads((artifacts["scores"] / "io.json").read_text())
    texts = texts_of(artifacts["scores"])
    for stack in STACKS:
        said = readme(stack, "x", io, texts)
        assert RUN[stack] in said
        assert asking(stack, io, texts) in said
        assert ("no text" in readme(stack, "x", io, None)) == (stack != "triton")
        why = readme(stack, "x", io, None, ("there are no golden texts: logits holds NaN",))
        assert ("There are no golden texts: logits holds NaN." in why) == (stack != "triton")
        assert "takes no text" not in why
        assert ("Exit code" in said) == (stack not in {"web", "triton"})
        assert ("repeats" in said and "as BERT has it, it repeats" in said) == (stack == "csharp")
        assert "-Dexec.args='../.. $" not in said
        assert asking(stack, io, None) == ""


def test_a_tagger_is_said_to_print_what_it_prints(artifacts: dict[str, Path]) -> None:
    io, texts = json.loads((artifacts["token_scores"] / "io.json").read_text()), texts_of(artifacts["token_scores"])
    said = {stack: readme(stack, "x", io, texts) for stack in ("node", "cpp", "csharp", "java", "rust")}
    assert {stack for stack, words in said.items() if "prints the entities" in words} == {"node"}
    assert {stack for stack, words in said.items() if "prints a score per token and label" in words} == set(said) - {
        "node"
    }


@pytest.mark.node
@pytest.mark.parametrize("kind", ["embedding", "scores", "token_scores", "tokens", "ids"])
def test_the_node_client_repeats_them(artifacts: dict[str, Path], kind: str) -> None:
    count = len(texts_of(artifacts[kind]).cases)
    assert check_texts(artifacts[kind]) == (0, f"equal: {count} texts, {kind}")


@pytest.mark.node
@pytest.mark.parametrize("kind", ["embedding", "token_scores", "tokens", "ids"])
def test_the_node_client_refuses_pairs_where_nothing_scores_them(artifacts: dict[str, Path], kind: str) -> None:
    done = refused_by_node(artifacts[kind], "--pair", "a cat", "a dog")
    assert done == "unusable: --pair is for a model that scores two texts together\n"


@pytest.mark.node
@pytest.mark.parametrize("kind", ["scores", "tokens"])
def test_the_node_client_says_which_file_of_the_tokenizer_it_needs(
    artifacts: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(artifacts[kind], tmp_path / "copy", symlinks=True)
    (copy / "tokenizer_config.json").unlink()
    said = "unusable: transformers.js needs tokenizer_config.json: copy from the checkpoint"
    assert check_texts(copy) == (2, said)
    assert refused_by_node(copy, "a cat") == f"{said}\n"


@pytest.mark.node
@pytest.mark.parametrize(
    ("kind", "key", "said"),
    [
        ("embedding", "ids", "differs: text 2: the tokenizer gives ["),
        ("scores", "types", "differs: text 2: segments are ["),
        ("scores", "expected", "differs: text 2 at 0 is "),
        ("token_scores", "expected", "differs: text 2 at 0 is "),
        ("tokens", "expected", "differs: text 2 at 0 is "),
    ],
)
def test_the_node_client_says_what_differs(
    artifacts: dict[str, Path], kind: str, key: str, said: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(artifacts[kind], tmp_path / "copy", symlinks=True)
    path = copy / "golden" / "texts.json"
    content = json.loads(path.read_text())
    content["cases"][2][key][0] += 1
    path.write_text(json.dumps(content))
    code, line = check_texts(copy)
    assert code == 1
    assert line.startswith(said)


@pytest.mark.node
def test_the_node_client_joins_the_entities_that_run_joins(tmp_path: Path) -> None:
    checkpoint = split_as_bert(tiny_checkpoint("bert", tmp_path / "in", task="token-classification", labels=4))
    config = json.loads((checkpoint / "config.json").read_text())
    names = ("O", "B-X", "I-X", "B-Y")
    config |= {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {n: i for i, n in enumerate(names)},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    artifact = made(checkpoint, tmp_path / "out")
    vocabulary = json.loads((artifact / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()][:18]  # a text is written anew from its tokens
    texts = [" ".join(words[start::3]) for start in range(3)]
    answer = run_text(artifact, texts)
    assert isinstance(answer, TokenLabels)
    assert sum(map(len, answer.entities)) > 1
    found = [json.loads(line)["entities"] for line in run_client(artifact, *texts)]
    for row, expected in zip(found, answer.entities, strict=True):
        assert [(one["label"], one["text"]) for one in row] == [(one.label, one.text) for one in expected]
        assert [one["score"] for one in row] == pytest.approx([one.score for one in expected], abs=1e-4)


@pytest.mark.node
def test_a_chat_template_is_written_alike(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("gpt2", tmp_path / "in")
    path = checkpoint / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    artifact = made(checkpoint, tmp_path / "out")
    add_client(artifact, "node")
    written = [case.written for case in texts_of(artifact).cases]
    assert written[:2] == [None, "user: The capital of France is\nassistant:"]
    assert check_texts(artifact) == (0, "equal: 6 texts, tokens")
    rows = [
        line.split("\t")
        for line in text_lines(artifact, json.loads((artifact / "io.json").read_text()), texts_of(artifact))
    ]
    assert next(row[1] for row in rows if row[0] == "bare") == r"user: The capital of France is\nassistant:"
