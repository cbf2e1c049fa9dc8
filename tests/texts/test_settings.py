"""Settings of a wrong type are named in one line, whichever file they stand in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.texts.settings import KINDS, OF_IMAGES, check_settings
from onnxopt.texts.tokenizer import read_settings

WRONG: list[Any] = [True, -7, 2**70, 1e400, "7", [[1]], [None], {"a": {}}, float("nan")]
RIGHT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "pooling_mode": "cls",
    "model_type": "bert",
    "id2label": {"0": "no"},
    "eos_token_id": [2, 3],
    "pad_token_id": -1,
    "max_position_embeddings": 512,
    "model_max_length": 1e30,
    "temperature": 0.7,
    "architecture": 5,
}
IMAGES: dict[str, Any] = {
    "size": {"height": 224, "width": 224},
    "crop_size": 224,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": 0.5,
}


def test_what_checkpoints_hold_is_taken() -> None:
    check_settings(RIGHT, "here")
    check_settings(dict.fromkeys(KINDS), "here")
    check_settings(IMAGES, "here", of_images=True)
    check_settings({"size": {"shortest_edge": 256}}, "here", of_images=True)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_each_entry_is_held_to_its_kind(name: str) -> None:
    refused = [value for value in WRONG if _is_refused({name: value}, of_images=False)]
    assert len(refused) >= len(WRONG) - 3, "a text, a number and a list or an object may be right"


@pytest.mark.parametrize("name", sorted(OF_IMAGES))
@pytest.mark.parametrize("value", [0.0, "large", {"a": "b"}, [1, "x"], 10**9, -3])
def test_each_entry_of_images_is_held_to_its_kind(name: str, value: Any) -> None:
    is_number = name in ("rescale_factor", "image_mean", "image_std") and isinstance(value, (int, float))
    is_right = is_number and not (name == "image_std" and value == 0)
    assert _is_refused({name: value}, of_images=True) is not is_right


def test_the_line_names_the_file_and_the_entry(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": ["</s>"]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: 'eos_token_id' is \['</s>'\], expected the id of a token"):
        read_settings(tmp_path, "config.json")


def test_a_value_without_end_is_cut() -> None:
    with pytest.raises(InputError) as found:
        check_settings({"model_type": ["x" * 10_000]}, "here")
    assert len(str(found.value)) < 250


def _is_refused(content: dict[str, Any], *, of_images: bool) -> bool:
    try:
        check_settings(content, "here", of_images=of_images)
    except InputError:
        return True
    return False
