"""Turn image files into a model's `pixel_values`, as the artifact's preprocessor_config.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.extras import require
from onnxopt.host.files import regular_size
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds
from onnxopt.texts.tokenizer import read_settings

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS_NAME = "preprocessor_config.json"
MAX_PIXELS = 1 << 27  # of a file; the largest cameras have 100 million
MAX_GIVEN_PIXELS = 1 << 24  # of what a model is given
_BILINEAR = 2  # PIL's number, which transformers writes into the file


def read_images(folder: Path, session: Session, paths: Sequence[Path]) -> Feeds:
    """Run the model on image files, one at a time, since they may differ in size.

    Args:
        folder: the artifact.
        session: its model.
        paths: the files.

    Returns:
        The outputs by name, one row per file.

    Raises:
        InputError: when pillow, the processor's settings or a file is missing, or the model takes more than pixels.
    """
    settings = read_settings(folder, SETTINGS_NAME)
    if not settings:
        raise InputError(
            f"no {SETTINGS_NAME}, so an image cannot be prepared", where=str(folder), hint="copy it from the checkpoint"
        )
    if len(session.inputs) != 1 or len(session.inputs[0].axes) != 4:
        taken = ", ".join(spec.name for spec in session.inputs)
        raise InputError(
            f"takes {taken}; only models that take pixel values alone can be tried", where=str(session.path)
        )
    spec = session.inputs[0]
    rows = []
    for path in paths:
        pixels = prepare(open_image(path), settings).astype(spec.dtype)
        rows.append(session.run({spec.name: pixels[None]}))
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def open_image(path: Path) -> Image:
    """Read an image file as RGB.

    Raises:
        InputError: when pillow is missing or the file is no readable image.
    """
    require("image", "reading a picture", where=str(path))
    from PIL import Image

    try:
        regular_size(path)
        with Image.open(path) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(
            "no such image file", where=str(path), hint="this model's task is about images: name a file"
        ) from error
    except InputError:
        raise
    except Exception as error:  # pillow's readers of thirty formats raise whatever broken bytes lead to
        raise InputError(f"is no readable image ({error})", where=str(path)) from error
    raise InputError(f"has {width} x {height} pixels, more than {MAX_PIXELS}", where=str(path), hint="scale it down")


def prepare(image: Image, settings: Mapping[str, Any]) -> Array:
    """Resize, crop, rescale and normalize.

    Args:
        image: RGB.
        settings: content of preprocessor_config.json; what it leaves out is done as transformers does it.

    Returns:
        float32 [3, height, width].
    """
    if settings.get("do_resize", True):
        size = _size(image, settings.get("size"))
        _check_area(*size)
        image = image.resize(size, resample=int(settings.get("resample", _BILINEAR)))
    if settings.get("do_center_crop", False):
        image = _crop(image, settings.get("crop_size") or settings.get("size"))
    _check_area(image.width, image.height)
    pixels = np.asarray(image, dtype=np.float32)
    if settings.get("do_rescale", True):
        pixels = pixels * np.float32(settings.get("rescale_factor", 1 / 255))
    if settings.get("do_normalize", True):
        mean = np.asarray(settings.get("image_mean", [0.5, 0.5, 0.5]), np.float32)
        deviation = np.asarray(settings.get("image_std", [0.5, 0.5, 0.5]), np.float32)
        pixels = (pixels - mean) / deviation
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _size(image: Image, size: object) -> tuple[int, int]:
    """Return (width, height) to resize to: given outright, or by the shorter side, keeping the proportions."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and "height" in size and "width" in size:
        return int(size["width"]), int(size["height"])
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        scale = int(size["shortest_edge"]) / min(image.size)
        return max(1, int(image.width * scale)), max(1, int(image.height * scale))
    raise InputError(f"the size {size!r} is not understood", where=SETTINGS_NAME)


def _check_area(width: int, height: int) -> None:
    if width * height > MAX_GIVEN_PIXELS:
        what = f"an image would have {width} x {height} pixels, more than {MAX_GIVEN_PIXELS}"
        raise InputError(what, where=SETTINGS_NAME, hint="crop the image, or give a smaller size")


def _crop(image: Image, size: object) -> Image:
    width, height = _size(image, size)
    _check_area(width, height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
