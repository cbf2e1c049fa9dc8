"""Sounds to calibrate with: made here, or those of a user, as the inputs of a model.

What is made is no language, but what speech is made of: a voice whose pitch glides, vowels as the resonances of a mouth
(Fant 1960, "Acoustic Theory of Speech Production"), hisses between them, pauses, and now and then a tone or a sweep.
Levels, spectra and pauses are those of recordings, which is what ranges hang on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxopt.errors import InputError
from onnxopt.load.loaded import Loaded
from onnxopt.run.inputs.resampled import resample
from onnxopt.run.inputs.sound import SoundReader, read_wave, sound_settings
from onnxopt.run.inputs.waves import DEFAULT_RATE, wave_of
from onnxopt.run.sounds import WAVE_RANK, WAVES
from onnxopt.spec import SOUND_INPUTS, Array, Feeds

SOUNDS = 48  # that are made: each is worth dozens of frames
_SECONDS = (0.8, 2.0)
_PITCH = (90.0, 260.0)  # Hz, of voices of all kinds
_FORMANTS = ((250.0, 800.0), (800.0, 2_400.0), (2_300.0, 3_300.0))  # Hz, of vowels
_WIDTH = 90.0  # Hz, of a resonance
_OVERTONES = 40
_PIECE = (0.06, 0.22)  # seconds of a vowel, a hiss or a pause
_LEVELS = (0.02, 0.4)  # of full scale


def made_sounds(count: int, rate: int) -> list[Array]:
    """Return sounds, float32 [samples] each, the same for the same arguments.

    Args:
        count: how many.
        rate: samples a second.
    """
    return [_made(np.random.default_rng([count, number]), number, rate) for number in range(count)]


def sound_feeds(loaded: Loaded, paths: Sequence[Path] | None, most: int) -> list[Feeds]:
    """Return the inputs of a model for sounds, one row each.

    Args:
        loaded: the model, with the settings of its feature extractor among its assets.
        paths: of .wav files; None for sounds that are made.
        most: the most sounds.

    Raises:
        InputError: nothing says how the model's sounds are prepared, or a file cannot be read.
    """
    folder = next((one.parent for one in loaded.assets if one.name == "config.json"), None)
    settings = sound_settings(folder) if folder else {}
    if folder is None or not settings:
        raise InputError(
            "the model has no preprocessor_config.json, so sounds cannot be its calibration data",
            where=loaded.name,
            hint="put preprocessor_config.json beside the model, or give feeds: --calibration feeds.npz",
        )
    rate = int(settings.get("sampling_rate") or DEFAULT_RATE)
    given = [read_wave(path) for path in paths[:most]] if paths is not None else []
    sounds = [resample(sound, own, rate) for sound, own in given] or made_sounds(min(most, SOUNDS), rate)
    main = next(spec for spec in loaded.signature.inputs if spec.name in SOUND_INPUTS)
    if main.name == WAVES and len(main.axes) == WAVE_RANK:
        waves = [wave_of(sound, settings)[None] for sound in sounds]
        made = [{main.name: wave, "attention_mask": np.ones(wave.shape, np.int64)} for wave in waves]
    else:
        reader = SoundReader(folder)
        made = [reader.made(sound, rate) for sound in sounds]
    return [{spec.name: one[spec.name].astype(spec.dtype) for spec in loaded.signature.inputs} for one in made]


def _made(rng: np.random.Generator, number: int, rate: int) -> Array:
    samples = int(rng.uniform(*_SECONDS) * rate)
    time = np.arange(samples) / rate
    if number % 6 == 5:  # no voice: a tone that stays or sweeps
        start, end = rng.uniform(60, 0.4 * rate, 2) if number % 12 == 5 else np.repeat(rng.uniform(100, 2_000), 2)
        sound = np.sin(2 * np.pi * np.cumsum(np.linspace(start, end, samples)) / rate)
    else:
        sound = np.concatenate(list(_pieces(rng, time, rate)))[:samples]
    loud = np.abs(sound).max() or 1.0
    hum = rng.normal(0, 1e-3, samples)
    return np.asarray(sound / loud * rng.uniform(*_LEVELS) + hum, np.float32)


def _pieces(rng: np.random.Generator, time: Array, rate: int) -> list[Array]:
    """Return vowels, hisses and pauses in a row, at least as long as `time`."""
    pitch = rng.uniform(*_PITCH) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.5, 2.0) * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    pieces: list[Array] = []
    start = 0
    while start < time.size:
        length = max(1, int(rng.uniform(*_PIECE) * rate))
        own = slice(start, min(start + length, time.size))
        kind = rng.choice(["vowel", "vowel", "vowel", "hiss", "pause"])
        size = own.stop - own.start
        if kind == "vowel":
            piece = _vowel(rng, phase[own], float(pitch[own].mean()), rate)
        else:
            piece = rng.normal(0, 0.1, size) if kind == "hiss" else np.zeros(size)
        pieces.append(piece * np.hanning(size + 2)[1:-1] ** 0.25)
        start = own.stop
    return pieces


def _vowel(rng: np.random.Generator, phase: Array, pitch: float, rate: int) -> Array:
    """Return overtones of a voice, each as loud as the resonances of a mouth let it be."""
    overtones = np.arange(1, min(_OVERTONES, int(rate / 2 / pitch)) + 1)
    peaks = np.array([rng.uniform(*span) for span in _FORMANTS])
    distance = (overtones[:, None] * pitch - peaks) / _WIDTH
    loudness = (1 / (1 + distance**2)).sum(axis=1) / overtones
    return np.asarray(loudness @ np.sin(overtones[:, None] * phase))
