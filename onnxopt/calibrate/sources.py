"""Where calibration samples come from, by name: looked at before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.host.files import regular_size
from onnxopt.texts.files import BUILTIN, HUB_PREFIX, TEXT_TYPES

SELF, RANDOM, NONE = "self", "random", "none"
SOUND_TYPES = (".wav",)
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def require_there(source: str | Path, samples: int | None = None) -> None:
    """Refuse a file or folder of calibration samples that is not there, or is empty; what it holds is not read.

    Args:
        source: as `read_calibration` takes it.
        samples: the most samples.

    Raises:
        InputError: says what may be named.
    """
    if samples is not None and samples < 1:
        raise InputError(f"the number of calibration samples is {samples}", hint="it must be 1 or more")
    name = str(source)
    if name in (BUILTIN, SELF, RANDOM, NONE) or name.startswith(HUB_PREFIX):
        return
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(
            "no such calibration file or folder",
            where=str(path),
            hint=f"name a {TEXT_TYPES} or .npz file, a folder of images or .wav files, {BUILTIN}, or "
            f"{HUB_PREFIX}<data set>",
        )
    if not (any(path.iterdir()) if path.is_dir() else regular_size(path)):
        raise InputError("the calibration samples are empty", where=str(path), hint=f"give samples, or use {BUILTIN}")
