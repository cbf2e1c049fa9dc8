"""Calibration data of every kind reaches the model without padding; what says nothing is refused.

Covers: texts/tokenizer.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.calibrate.data import CalibrationData, feeds_of, read_calibration
from onnxopt.errors import InputError
from onnxopt.load.entry import load
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from tests.support.tiny import tiny_checkpoint

TEXTS = [f"the cat number {number} sleeps " + "well " * (number % 5) for number in range(24)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(resolve(str(tiny_checkpoint("bert", tmp_path_factory.mktemp("bert")))))


@pytest.fixture(scope="module")
def decoder() -> Loaded:
    return load(resolve("gpt2-mini"))


def every(data: CalibrationData) -> list[dict[str, np.ndarray]]:
    return [feeds for part in ("fit", "choose", "judge") for feeds in data.batches(part)]


def test_texts_become_batches_of_one_length_without_padding(encoder: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS), encoding="utf-8")
    data = read_calibration(encoder, path)
    assert data.record.samples == len(TEXTS)
    assert data.record.shortest < data.record.longest
    batches = every(data)
    assert all(feeds["attention_mask"].all() for feeds in batches)
    assert sum(len(feeds["input_ids"]) for feeds in batches) == len(TEXTS)
    assert {feeds["input_ids"].dtype.name for feeds in batches} == {"int64"}


def test_the_parts_share_no_sample(encoder: Loaded) -> None:
    data = read_calibration(encoder, samples=64)
    parts = [set(data.part(part)) for part in ("fit", "choose", "judge")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 64
    assert len(parts[0]) > len(parts[2]) > len(parts[1])


def test_the_same_source_gives_the_same_hash(encoder: Loaded) -> None:
    first, second = (read_calibration(encoder, samples=16).record for _ in range(2))
    assert first == second
    assert first.sha256 != read_calibration(encoder, samples=17).record.sha256


@pytest.mark.parametrize("line", ['"{}"', '{{"text": "{}"}}', '{{"id": 1, "sentence": "{}"}}'])
def test_reads_jsonl(line: str, encoder: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(line.format(text) for text in TEXTS) + "\n\n", encoding="utf-8")
    assert read_calibration(encoder, path).record.samples == len(TEXTS)


def test_a_language_model_gets_windows(decoder: Loaded) -> None:
    data = read_calibration(decoder, samples=10)
    assert (data.record.samples, data.record.shortest, data.record.longest) == (10, 256, 256)
    feeds = next(iter(data.batches("fit")))
    assert feeds["past_key_values.0.key"].shape[2] == 0
    assert feeds["attention_mask"].shape == feeds["input_ids"].shape


def test_reads_feeds_by_sample(encoder: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "feeds.npz"
    ids = np.arange(10, 90).reshape(16, 5)
    np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    data = read_calibration(encoder, path)
    assert data.record.samples == 16
    assert next(iter(data.batches("fit")))["input_ids"].shape == (1, 5)
    assert read_calibration(encoder, tmp_path).record.samples == 16


def test_images_go_through_the_models_processor(tmp_path: Path) -> None:
    from PIL import Image

    model = load(resolve(str(tiny_checkpoint("vit", tmp_path / "vit"))))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    data = read_calibration(model, folder)
    feeds = next(iter(data.batches("fit")))
    assert data.record.samples == 9
    assert feeds["pixel_values"].dtype == np.float32
    assert feeds["pixel_values"].shape[:2] == (1, 3)


def write(path: Path, content: str | bytes) -> Path:
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


REFUSED = {
    "too few": ("few.txt", "one text\n\nanother", "say too little"),
    "no file": ("", "", "no such calibration"),
    "not text": ("bad.txt", b"\xff\xfe\x00\x01", "not UTF-8"),
    "bad JSON": ("bad.jsonl", '{"text": ', "line 1: is not valid JSON"),
    "no text in it": ("bad.jsonl", json.dumps({"label": 3}), "holds no text"),
    "no archive": ("bad.npz", "nonsense", "cannot be read as .npz"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_sources_are_one_line(
    name: str, content: str | bytes, message: str, encoder: Loaded, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content) if name else tmp_path / "missing.txt"
    with pytest.raises(InputError, match=message):
        read_calibration(encoder, path)


def test_pickles_are_never_opened(encoder: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, input_ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        read_calibration(encoder, path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": np.zeros((9, 5), np.int64)}, "has no array 'attention_mask'"),
        ({"input_ids": np.zeros((9, 5, 2), np.int64)}, "has shape"),
        ({"input_ids": np.zeros((9, 5), np.float32)}, "is float32"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(
    arrays: dict[str, Any], message: str, encoder: Loaded, tmp_path: Path
) -> None:
    path = tmp_path / "feeds.npz"
    rest: dict[str, Any] = (
        {}
        if len(arrays) == 1 and "no array" in message
        else {
            "attention_mask": np.ones((9, 5), np.int64),
            "token_type_ids": np.zeros((9, 5), np.int64),
        }
    )
    np.savez(path, **arrays, **rest)
    with pytest.raises(InputError, match=message):
        read_calibration(encoder, path)


def test_little_or_random_data_must_be_forced_and_is_marked(encoder: Loaded, tmp_path: Path) -> None:
    path = write(tmp_path / "one.txt", "just one text")
    assert read_calibration(encoder, path, force=True).record.meaningless
    with pytest.raises(InputError, match="random calibration data"):
        read_calibration(encoder, "random")
    assert read_calibration(encoder, "random", force=True).record.meaningless


def test_a_mask_of_another_name_is_filled_as_one(encoder: Loaded) -> None:
    inputs = tuple(
        replace(spec, name="valid") if spec.name == "attention_mask" else spec for spec in encoder.signature.inputs
    )
    other = replace(encoder, signature=replace(encoder.signature, inputs=inputs[::-1], mask="valid"))
    feeds = feeds_of(other, np.array([[7, 8, 9], [4, 5, 6]]))
    assert feeds["valid"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert feeds["input_ids"].tolist() == [[7, 8, 9], [4, 5, 6]]
    assert not feeds["token_type_ids"].any()
