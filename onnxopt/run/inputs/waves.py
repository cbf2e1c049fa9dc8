"""Turn sound files into the waves that a network of waves takes: one rate, one mean, one deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.run.inputs.sound import read_wave
from onnxopt.spec import Array

DEFAULT_RATE = 16_000  # samples a second; what feature extractors of speech without a word mean
_RATES = (1_000, 768_000)
_ZEROS = 32  # zero crossings of the filter on each side
_ROLL_OFF = 0.95  # of half the lower rate: what passes
_BETA = 9.0  # of Kaiser's window: what does not pass is 90 dB down
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
    if not all(_RATES[0] <= one <= _RATES[1] for one in (rate, wanted)):
        raise InputError(
            f"has {rate} samples a second, the model wants {wanted}; rates from {_RATES[0]} to {_RATES[1]} are read",
            where=str(path),
        )
    return wave_of(resample(sound, rate, wanted), settings)


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


def resample(sound: Array, rate: int, wanted: int) -> Array:
    """Bring a wave to another rate, with a windowed sinc in as many phases as the rates have to each other.

    Smith, J. O., "Digital Audio Resampling": what lies above half the lower rate is taken out, since it would come back
    as another pitch.

    Args:
        sound: float32 [samples].
        rate: samples a second that it has.
        wanted: samples a second that are wanted.

    Returns:
        float32 [samples · wanted / rate, rounded up].
    """
    if rate == wanted:
        return sound
    shared = math.gcd(rate, wanted)
    phases, step = wanted // shared, rate // shared
    cutoff = _ROLL_OFF * min(1.0, wanted / rate)  # of half the rate that the wave has
    reach = math.ceil(_ZEROS / cutoff)
    places = np.arange(-reach, reach + 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(sound, (reach, reach + 1)), places.size)
    made = np.zeros(-(-sound.size * wanted // rate), np.float32)
    for phase in range(min(phases, made.size)):
        whole, part = divmod(phase * step, phases)
        distance = places - part / phases
        weight = np.i0(_BETA * np.sqrt(np.maximum(0.0, 1 - (distance / (reach + 1)) ** 2))) / np.i0(_BETA)
        taps = (cutoff * np.sinc(cutoff * distance) * weight).astype(np.float32)
        own = made[phase::phases]
        own[:] = windows[whole::step][: own.size] @ taps
    return made
