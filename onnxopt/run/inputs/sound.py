"""Turn sound files into the features that a checkpoint's own processor makes of them."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.extras import require
from onnxopt.run.inputs.resampled import resample
from onnxopt.spec import Array, Feeds
from onnxopt.texts.tokenizer import read_settings

PROCESSOR_NAME = "preprocessor_config.json"
WHOLE_PROCESSOR_NAME = "processor_config.json"  # where newer checkpoints keep the settings of all parts together
_MAX_BYTES = 256 << 20
_WIDTHS: dict[int, tuple[str, float, float]] = {  # bytes of a sample: dtype, what is silence, what is full scale
    1: ("<u1", 128.0, 128.0),
    2: ("<i2", 0.0, 2.0**15),
    4: ("<i4", 0.0, 2.0**31),
}


def sound_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the feature extractor of a folder; empty where nothing is said of it.

    Raises:
        InputError: a file of them is broken.
    """
    own = read_settings(folder, PROCESSOR_NAME)
    whole = read_settings(folder, WHOLE_PROCESSOR_NAME).get("feature_extractor")
    return own or (dict(whole) if isinstance(whole, dict) else {})


class SoundReader:
    """A checkpoint's feature extractor.

    Args:
        folder: holds `preprocessor_config.json`.

    Raises:
        InputError: when there is none, transformers cannot read it, or is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if not any((folder / name).is_file() for name in (PROCESSOR_NAME, WHOLE_PROCESSOR_NAME)):
            raise InputError(
                f"no {PROCESSOR_NAME}: nothing says how sound becomes features",
                where=str(folder),
                hint="give features [bins, frames] to onnxopt.Generator, or add the file of the checkpoint",
            )
        require("hf", "turning sound into features", instead="give features [bins, frames] to onnxopt.Generator")
        try:
            from transformers import AutoFeatureExtractor

            self._extract: Any = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever transformers raises
            raise InputError(f"the processor cannot be read ({error})", where=str(folder)) from error

    def features(self, path: Path) -> Array:
        """Return float32 [bins, frames] of a PCM .wav file; channels are averaged.

        Raises:
            InputError: when the file is no such file, or the extractor makes nothing of it.
        """
        return np.asarray(self.inputs(path)["input_features"][0], np.float32)

    def inputs(self, path: Path) -> Feeds:
        """Return all that the extractor makes of a PCM .wav file, a row each: features, and a mask where it makes one.

        Raises:
            InputError: when the file is no such file, or the extractor makes nothing of it.
        """
        sound, rate = read_wave(path)
        wanted = int(self._extract.sampling_rate)
        return self.made(resample(sound, rate, wanted, where=str(path)), wanted, where=str(path))

    def made(self, sound: Array, rate: int, *, where: str = "") -> Feeds:
        """Return all that the extractor makes of a sound, a row each.

        Args:
            sound: float32 [samples].
            rate: samples a second; that of the extractor.
            where: its file, for messages.

        Raises:
            InputError: the extractor makes nothing of it.
        """
        try:
            found = self._extract(sound, sampling_rate=rate, return_tensors="np")
        except Exception as error:  # whatever transformers raises, for want of torch as well
            raise InputError(f"the processor makes no features of it ({error})", where=where) from error
        return {name: np.asarray(array) for name, array in found.items()}


def read_wave(path: Path) -> tuple[Array, int]:
    """Return float32 [samples] between -1 and 1, and the sampling rate, of a PCM .wav file.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"is larger than {_MAX_BYTES} bytes", where=str(path))
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (wave.Error, EOFError) as error:
        raise InputError(f"is no PCM .wav file ({error or 'it ends too early'})", where=str(path)) from error
    if width not in _WIDTHS:
        raise InputError(f"has samples of {8 * width} bits; 8, 16 and 32 are read", where=str(path))
    dtype, silence, full = _WIDTHS[width]
    samples = (np.frombuffer(raw, dtype).astype(np.float32) - silence) / full
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate
