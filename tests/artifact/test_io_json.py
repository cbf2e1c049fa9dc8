"""What io.json says of the answer is what the graph gives: each statement is tried on the golden cases.

Covers: artifact/io_json.py, run/scores.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt
from onnxopt.artifact.golden import read_cases
from onnxopt.artifact.io_json import io_description
from onnxopt.run.answers import run_text
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.results import Classification, Embeddings
from onnxopt.run.scores import as_scores
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds, Signature, TensorSpec
from tests.support.artifacts import shared_artifact
from tests.support.node import run_client
from tests.support.tiny import tiny_checkpoint

TEXTS = ["the cat sat", "a dog ran far away", "it"]


def embedder(folder: Path) -> Path:
    """Write a checkpoint of sentence-transformers with a layer behind its pooling, and no normalization."""
    import torch
    from safetensors.torch import save_file

    checkpoint = tiny_checkpoint("bert", folder, pooling={"pooling_mode": "cls"})
    modules = json.loads((checkpoint / "modules.json").read_text())[:2]
    place = checkpoint / "2_Dense"
    place.mkdir()
    (place / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.Tanh"}')
    drawn = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(12, 32, generator=drawn), torch.randn(12, generator=drawn)
    save_file({"linear.weight": weight, "linear.bias": bias}, place / "model.safetensors")
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    return checkpoint


def classifier(folder: Path, **settings: Any) -> Path:
    """Write a classifier with other settings of its head; its weights are those of six labels, cut to their number."""
    from safetensors.numpy import load_file, save_file

    checkpoint = tiny_checkpoint("bert", folder, task="text-classification")
    labels = settings.pop("labels", 6)
    config = json.loads((checkpoint / "config.json").read_text()) | settings
    config |= {"id2label": {str(index): f"l{index}" for index in range(labels)}}
    config |= {"label2id": {f"l{index}": index for index in range(labels)}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    weights = load_file(checkpoint / "model.safetensors")
    cut = {name: array[:labels] if name.startswith("classifier") else array for name, array in weights.items()}
    save_file(cut, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def made(checkpoint: Path, out: Path) -> Path:
    return onnxopt.optimize(checkpoint, out=out, measure=False).path


def read(artifact: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((artifact / "io.json").read_text())
    return content


def answers(artifact: Path, texts: list[str]) -> Feeds:
    """Return what the graph gives for texts."""
    model = TextModel.open(artifact, Session(artifact))
    return model.run(model.encode(texts)).outputs


def given(artifact: Path, output: str) -> list[Array]:
    """Return one output of the golden cases."""
    return [case.outputs[output] for case in read_cases(artifact / "golden")]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("dense")
    return made(embedder(room / "in"), room / "out")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("reranker")
    return made(classifier(room / "in", labels=1), room / "out")


def test_an_embedding_is_as_long_and_as_ready_as_it_is_said_to_be(dense: Path) -> None:
    for artifact, pooling, normalized in ((dense, "cls", False), (shared_artifact("minilm"), "mean", True)):
        io = read(artifact)
        assert (io["pooling"], io["normalized"]) == (pooling, normalized)
        lengths = np.concatenate([np.linalg.norm(rows, axis=-1) for rows in given(artifact, "sentence_embedding")])
        assert np.allclose(lengths, 1.0, atol=1e-4) == normalized
        assert ("divide by its length" in io["postprocessing"][0]) != normalized


def test_logits_become_what_is_said_and_what_run_answers(reranker: Path, tmp_path: Path) -> None:
    several = made(classifier(tmp_path / "in", problem_type="multi_label_classification"), tmp_path / "out")
    for artifact, count in ((reranker, 1), (several, 6)):
        io = read(artifact)
        assert io["scores"] == "sigmoid"
        assert len(io["labels"]) == given(artifact, "logits")[0].shape[-1] == count
        answer = run_text(artifact, TEXTS[:1])
        assert isinstance(answer, Classification)
        found = {label.label: label.score for label in answer.labels[0]}
        scores = as_scores(answers(artifact, TEXTS[:1])["logits"], io["scores"])[0]
        assert found == pytest.approx(dict(zip(io["labels"].values(), scores.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"problem_type": "regression"}, ("none", "none: the logits are the answer", "the answer")),
        ({"id2label": {"0": "a", "1": "b"}}, ("softmax", "softmax over the last axis", "scores before softmax")),
    ],
)
def test_what_the_settings_say_of_logits_is_handed_on(
    tmp_path: Path, config: dict[str, Any], said: tuple[str, str, str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    signature = Signature((), (TensorSpec("logits", "float32", ("batch", 2)),))
    io = io_description(tmp_path, "x", "text-classification", signature, None)
    assert (io["scores"], io["outputs"][0]["meaning"]) == (said[0], said[2])
    assert io["postprocessing"][0].startswith(said[1])


def test_a_prompt_is_said_and_read_alike(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("bert", tmp_path / "in", pooling={"pooling_mode": "cls"})
    prompts = {"ask": "the dog ", "tell": ""}
    settings = {"prompts": prompts, "default_prompt_name": "ask"}
    (checkpoint / "config_sentence_transformers.json").write_text(json.dumps(settings))
    artifact = made(checkpoint, tmp_path / "out")
    io = read(artifact)
    assert (io["prompts"], io["default_prompt"]) == (prompts, "ask")
    assert io["preprocessing"][0] == "put prompts.ask, or another of the prompts, in front of the text"
    answer = run_text(artifact, TEXTS)
    assert isinstance(answer, Embeddings)
    said = answers(artifact, [f"{io['prompts'][io['default_prompt']]}{text}" for text in TEXTS])["sentence_embedding"]
    assert np.allclose(answer.vectors, said, atol=1e-6)
    assert not np.allclose(said, answers(artifact, TEXTS)["sentence_embedding"], atol=1e-3)


def test_prompts_that_would_be_pooled_wrongly_are_not_offered(tmp_path: Path) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"ask": "the dog "}}')
    signature = Signature((), (TensorSpec("sentence_embedding", "float32", ("batch", 8)),))
    assert io_description(tmp_path, "x", "feature-extraction", signature, None)["prompts"] == {"ask": "the dog "}
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"include_prompt": false}')
    assert "prompts" not in io_description(tmp_path, "x", "feature-extraction", signature, None)


@pytest.mark.node
def test_the_node_client_takes_what_the_graph_gives(dense: Path) -> None:
    """A Dense layer behind the pooling lies in the graph: a client that pools again would leave it out."""
    vectors = answers(dense, TEXTS)["sentence_embedding"]
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines = [float(line.split()[0]) for line in run_client(dense, *TEXTS)]
    assert cosines == pytest.approx([float(vectors[i] @ vectors[j]) for i, j in ((0, 1), (0, 2), (1, 2))], abs=1e-3)


@pytest.mark.node
def test_the_node_client_puts_the_default_prompt_in_front(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("bert", tmp_path / "in", pooling={"pooling_mode": "cls"})
    settings = {"prompts": {"ask": "the dog sat far "}, "default_prompt_name": "ask"}
    (checkpoint / "config_sentence_transformers.json").write_text(json.dumps(settings))
    artifact = made(checkpoint, tmp_path / "out")
    answer = run_text(artifact, TEXTS)
    assert isinstance(answer, Embeddings)
    cosines = [float(line.split()[0]) for line in run_client(artifact, *TEXTS)]
    assert cosines == pytest.approx([answer.cosine[i][j] for i, j in ((0, 1), (0, 2), (1, 2))], abs=1e-3)


@pytest.mark.node
def test_the_node_client_scores_one_logit_with_a_sigmoid(reranker: Path) -> None:
    logits = answers(reranker, TEXTS)["logits"]
    scores = [json.loads(line)["labels"][0]["score"] for line in run_client(reranker, *TEXTS)]
    assert scores == pytest.approx((1 / (1 + np.exp(-logits[:, 0]))).tolist(), abs=1e-5)


def test_what_sees_says_what_its_numbers_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    sides = ("batch", "height", "width")
    given = (TensorSpec("pixel_values", "float32", ("batch", 3, *sides[1:])), TensorSpec("pixel_mask", "int64", sides))
    boxes = (TensorSpec("logits", "float32", ("batch", 7, 3)), TensorSpec("pred_boxes", "float32", ("batch", 7, 4)))
    io = io_description(tmp_path, "made", "object-detection", Signature(given, boxes), None)
    assert io["labels"] == {"0": "cat", "1": "dog"}
    assert "as shares of the image" in io["outputs"][1]["meaning"]
    assert io["inputs"][1]["meaning"].startswith("1 where the image is")
    assert "pad" not in io["inputs"][1]
    assert "middle, width and height" in io["postprocessing"][0]
    depth = Signature(given[:1], (TensorSpec("predicted_depth", "float32", sides),))
    io = io_description(tmp_path, "made", "depth-estimation", depth, None)
    assert "labels" not in io
    assert "how far each pixel is" in io["outputs"][0]["meaning"]
