"""Waves are prepared as transformers' extractor does it, at the model's rate.

Covers: run/inputs/waves.py, run/inputs/resampled.py, run/inputs/sound.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.run.inputs.resampled import resample
from onnxopt.run.inputs.sound import SoundReader, read_wave, sound_settings
from onnxopt.run.inputs.waves import prepare_wave
from onnxopt.spec import Array
from tests.support.sounds import write_wave


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wave_is_what_the_extractor_of_transformers_makes(normalize: bool, channels: int, tmp_path: Path) -> None:  # noqa: FBT001
    from transformers import Wav2Vec2FeatureExtractor

    path = write_wave(tmp_path / "a.wav", 0.3, channels=channels)
    sound, rate = read_wave(path)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=normalize)
    expected = extractor(sound, sampling_rate=rate, return_tensors="np")["input_values"][0]
    found = prepare_wave(path, extractor.to_dict())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (16_000, 22_050)])
def test_another_rate_gives_the_same_tone(rate: int, wanted: int) -> None:
    pitch = 700.0
    sound = np.sin(2 * np.pi * pitch * np.arange(rate // 2) / rate).astype(np.float32)
    found = resample(sound, rate, wanted)
    assert found.size == -(-sound.size * wanted // rate)
    expected = np.sin(2 * np.pi * pitch * np.arange(found.size) / wanted)
    inside = slice(wanted // 50, -wanted // 50)  # at the ends half of the filter sees nothing
    assert np.abs(found - expected)[inside].max() < 1e-3


def test_what_lies_above_half_the_lower_rate_does_not_come_back_as_another_pitch() -> None:
    sound = np.sin(2 * np.pi * 9_000 * np.arange(22_050) / 44_100).astype(np.float32)
    assert np.abs(resample(sound, 44_100, 16_000)[400:-400]).max() < 1e-3


def test_a_rate_that_is_the_models_changes_nothing() -> None:
    sound = np.random.default_rng(0).standard_normal(99).astype(np.float32)
    assert resample(sound, 16_000, 16_000) is sound


def test_settings_lie_in_either_file(tmp_path: Path) -> None:
    assert sound_settings(tmp_path) == {}
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": {"sampling_rate": 8_000}}))
    assert sound_settings(tmp_path) == {"sampling_rate": 8_000}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 24_000}))
    assert sound_settings(tmp_path) == {"sampling_rate": 24_000}


def test_files_without_sound_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no samples"):
        prepare_wave(write_wave(tmp_path / "empty.wav", 0.0), {})
    with pytest.raises(InputError, match="has 500 samples a second"):
        prepare_wave(write_wave(tmp_path / "slow.wav", 1.0, rate=500), {})


def test_features_are_what_the_checkpoints_own_extractor_makes_at_any_rate(tmp_path: Path) -> None:
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor(num_mel_bins=24, max_length=40)
    extractor.save_pretrained(tmp_path)
    reader = SoundReader(tmp_path)
    path = write_wave(tmp_path / "a.wav", 0.4)
    sound, rate = read_wave(path)
    expected = extractor(sound, sampling_rate=rate, return_tensors="np")["input_values"]
    np.testing.assert_array_equal(reader.inputs(path)["input_values"], expected)
    faster = write_wave(tmp_path / "b.wav", 0.4, rate=44_100)
    other, wrong = reader.inputs(faster)["input_values"], reader.made(read_wave(faster)[0], rate)["input_values"]
    assert other.shape == expected.shape

    def alike(features: Array) -> float:
        return float(np.corrcoef(features.ravel(), expected.ravel())[0, 1])

    assert alike(other) > 0.9  # the noise in it is another one
    assert alike(other) > alike(wrong) + 0.1
