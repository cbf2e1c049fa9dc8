"""A head that is not among the weights is seen by their names; where they are all there, nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.folder import Checkpoint, read_checkpoint
from onnxopt.load.checkpoint.heads import require_head, weight_names
from onnxopt.load.checkpoint.opened import open_checkpoint
from onnxopt.load.source.source import resolve
from onnxopt.tasks.table import TASKS, parse_task
from tests.support.tiny import tiny_checkpoint


def checkpoint(kind: str, folder: Path, task: str) -> Checkpoint:
    return read_checkpoint(resolve(str(tiny_checkpoint(kind, folder / "made", task=task))))


@pytest.mark.parametrize(
    ("kind", "saved", "asked"),
    [
        ("bert", "feature-extraction", "text-classification"),
        ("bert", "feature-extraction", "fill-mask"),
        ("bert", "fill-mask", "question-answering"),
        ("distilbert", "feature-extraction", "token-classification"),
        ("roberta", "fill-mask", "text-classification"),
        ("gpt2", "text-generation", "text-classification"),
        ("vit", "image-feature-extraction", "image-classification"),
    ],
)
def test_a_head_that_is_not_in_the_files_is_refused(kind: str, saved: str, asked: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"has no weights for {asked}: it was saved as") as caught:
        require_head(checkpoint(kind, tmp_path, saved), parse_task(asked))
    assert "--weights random" in str(caught.value)
    assert f"({saved}" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bert", "text-classification"),
        ("bert", "token-classification"),
        ("bert", "question-answering"),
        ("bert", "fill-mask"),
        ("bert", "feature-extraction"),
        ("distilbert", "text-classification"),
        ("roberta", "fill-mask"),
        ("gpt2", "text-generation"),
        ("vit", "image-classification"),
        ("vit", "image-feature-extraction"),
    ],
)
def test_a_head_that_is_there_passes(kind: str, task: str, tmp_path: Path) -> None:
    require_head(checkpoint(kind, tmp_path, task), parse_task(task))


def test_made_up_weights_have_every_head(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "made")
    for task in TASKS.values():
        require_head(read_checkpoint(resolve(str(folder), weights="random")), task)


def test_a_network_is_not_opened_with_a_head_as_it_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "made", task="fill-mask")
    with pytest.raises(InputError, match="has no weights for text-classification"):
        open_checkpoint(str(folder), "text-classification")
    monkeypatch.setattr("onnxopt.load.checkpoint.opened.require_head", lambda *_: None)
    with pytest.raises(InputError, match=r"has no weights for classifier\.\w+, classifier\.\w+, the head of"):
        open_checkpoint(str(folder), "text-classification")
    assert open_checkpoint(str(folder), "feature-extraction").task.name == "feature-extraction"  # its pooler is missing


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 16, (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_safetensors_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="the weights cannot be read"):
        weight_names([path])
