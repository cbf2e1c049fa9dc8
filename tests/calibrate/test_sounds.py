"""Sounds to calibrate with become the inputs that the model's own extractor makes of them.

Covers: calibrate/sounds.py
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxopt.calibrate.data import read_calibration
from onnxopt.calibrate.sounds import made_sounds, sound_feeds
from onnxopt.errors import InputError
from onnxopt.load.feeds import SoundFeeder
from onnxopt.spec import Signature, TensorSpec
from tests.support.sounds import RATE, sound_checkpoint, write_wave


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_checkpoint("wav2vec2", tmp_path_factory.mktemp("ctc"), "AutoModelForCTC", mask=True)


def _loaded(folder: Path, *, mask: bool) -> Any:
    masks = (TensorSpec("attention_mask", "int64", ("batch", "samples")),) if mask else ()
    inputs = (TensorSpec("input_values", "float32", ("batch", "samples")), *masks)
    signature = Signature(inputs, (TensorSpec("logits", "float32", ("batch", "frames", 18)),))
    return SimpleNamespace(
        name="ctc",
        signature=signature,
        assets=tuple(sorted(folder.iterdir())),
        random_weights=False,
        feeder=SoundFeeder(inputs, {"samples": 163}),
    )


@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_made_sounds_differ_and_are_the_same_each_time(rate: int) -> None:
    first, second = made_sounds(12, rate), made_sounds(12, rate)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert len({sound.size for sound in first}) > 6
    assert all(0.8 * rate <= sound.size <= 2.0 * rate and np.abs(sound).max() <= 0.5 for sound in first)
    loud = [float(np.abs(sound).max()) for sound in first]
    assert max(loud) > 3 * min(loud)


@pytest.mark.parametrize("mask", [True, False])
def test_what_is_built_in_becomes_waves_of_mean_0_and_deviation_1(folder: Path, mask: bool) -> None:  # noqa: FBT001
    data = read_calibration(_loaded(folder, mask=mask), samples=10)
    assert data.record.source == "builtin"
    assert data.record.samples == 10
    for feeds in data.ready:
        wave = feeds["input_values"]
        assert wave.dtype == np.float32
        assert wave.shape[0] == 1
        assert abs(float(wave.mean())) < 1e-3
        assert abs(float(wave.std()) - 1) < 0.02  # quiet ones stay below: the variance has a floor
        assert ("attention_mask" in feeds) == mask
        assert not mask or (feeds["attention_mask"].shape == wave.shape and bool(feeds["attention_mask"].all()))


def test_a_folder_of_recordings_is_read(folder: Path, tmp_path: Path) -> None:
    for number in range(9):
        write_wave(tmp_path / f"{number}.wav", 0.2 + number / 50, rate=RATE // 2 if number == 4 else RATE)
    data = read_calibration(_loaded(folder, mask=False), tmp_path)
    assert data.record.samples == 9
    sizes = [feeds["input_values"].shape[1] for feeds in data.ready]
    assert sizes == [int((0.2 + number / 50) * RATE) for number in range(9)]


def test_nothing_is_made_where_nothing_says_how(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no preprocessor_config\.json, so sounds cannot be"):
        sound_feeds(_loaded(tmp_path, mask=False), None, 8)
