"""Turn sound files into the waves that a network of waves takes: one rate, one mean, one deviation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.run.inputs.resampled import resample
from onnxopt.run.inputs.sound import read_wave
from onnxopt.spec import Array

DEFAULT_RATE = 16_000  # samples a second; what feature extractors of speech without a word mean
_VARIANCE_FLOOR = 1e-7  # as transformers' Wav2Vec2FeatureExtractor has it


def prepare_wave(path: Path, settings: Mapping[str, Any]) -> Array:
    """Return float32 [samples] of a PCM .wav file as a feature extractor of waves makes them.

    Args:
        path: of the file; channels are averaged, another rate is brought to that of the model.
        settings: content of preprocessor_config.json; what it leaves out is done as transformers does it.

    Raises:
        InputError: the file cannot be read, is empty, or has a rate that no sound has.
    """
    sound, rate = read_wave(path)
    if not sound.size:
        raise InputError("holds no samples", where=str(path))
    wanted = int(settings.get("sampling_rate") or DEFAULT_RATE)
    return wave_of(resample(sound, rate, wanted, where=str(path)), settings)


def wave_of(sound: Array, settings: Mapping[str, Any]) -> Array:
    """Return a sound of the model's rate, float32 [samples], as a feature extractor of waves leaves it.

    Args:
        sound: float32 [samples].
        settings: content of preprocessor_config.json.
    """
    return normalized(sound) if settings.get("do_normalize", True) else sound


def normalized(sound: Array) -> Array:
    """Return a wave with mean 0 and deviation 1, float32 [samples]."""
    return np.asarray((sound - sound.mean()) / np.sqrt(sound.var() + _VARIANCE_FLOOR), np.float32)
