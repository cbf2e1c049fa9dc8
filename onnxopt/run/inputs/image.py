"""Turn image files into a model's `pixel_values`, as the artifact's preprocessor_config.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.extras import require
from onnxopt.host.files import regular_size
from onnxopt.run.inputs.image_sizes import cropped, normalizes, processor_name, require_known, resized
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds
from onnxopt.texts.tokenizer import read_settings

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS_NAME = "preprocessor_config.json"
MAX_PIXELS = 1 << 27  # of a file; the largest cameras have 100 million
MAX_GIVEN_PIXELS = 1 << 24  # of what a model is given
MASK_NAME = "pixel_mask"
_MIRROR_STEP = 8  # pixels, of Swin2SR's processor
_BILINEAR = 2  # PIL's number, which transformers writes into the file


@dataclass(frozen=True)
class Seen:
    """What a model gave for an image file.

    Attributes:
        outputs: by name, of one row.
        size: width and height of the image in the file, in pixels.
        given: width and height of what the model was given.
        warped: the model takes one size alone, and the image's processor had made another.
    """

    outputs: Feeds
    size: tuple[int, int]
    given: tuple[int, int]
    warped: bool = False


def read_images(folder: Path, session: Session, paths: Sequence[Path]) -> Feeds:
    """Run the model on image files and put the outputs together.

    Args:
        folder: the artifact.
        session: its model.
        paths: the files.

    Returns:
        The outputs by name, one row per file.

    Raises:
        InputError: as for `see_images`.
    """
    rows = [seen.outputs for seen in see_images(folder, session, paths)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def see_images(folder: Path, session: Session, paths: Sequence[Path]) -> list[Seen]:
    """Run the model on image files, one at a time, since they may differ in size.

    Args:
        folder: the artifact.
        session: its model.
        paths: the files.

    Returns:
        What it gave for each.

    Raises:
        InputError: when pillow, the processor's settings or a file is missing, or the model takes more than pixels and
            where the image is.
    """
    settings = read_settings(folder, SETTINGS_NAME)
    if not settings:
        raise InputError(
            f"no {SETTINGS_NAME}, so an image cannot be prepared", where=str(folder), hint="copy it from the checkpoint"
        )
    pixels = next((spec for spec in session.inputs if len(spec.axes) == 4), None)
    regions = [spec for spec in session.inputs if spec.name == MASK_NAME]
    if pixels is None or len(session.inputs) != 1 + len(regions):
        taken = ", ".join(spec.name for spec in session.inputs)
        raise InputError(
            f"takes {taken}; only models that take pixel values alone can be tried", where=str(session.path)
        )
    seen = []
    for path in paths:
        image = open_image(path)
        made = prepare(image, settings)
        fitting = _fitted(image, made, pixels.axes[2:], settings)
        feeds = {pixels.name: fitting.astype(pixels.dtype)[None]}
        feeds |= {spec.name: np.ones((1, *fitting.shape[1:]), spec.dtype) for spec in regions}
        given = (fitting.shape[2], fitting.shape[1])
        seen.append(Seen(session.run(feeds), image.size, given, fitting.shape != made.shape))
    return seen


def _fitted(image: Image, made: Array, sides: Sequence[int | str], settings: Mapping[str, Any]) -> Array:
    """Return an image as a model of one size takes it; where its processor makes another, it is resized to that."""
    height, width = sides
    if not (isinstance(height, int) and isinstance(width, int)) or made.shape[1:] == (height, width):
        return made
    exact = {"size": {"height": height, "width": width}, "do_resize": True, "do_pad": False}
    dropped = ("do_center_crop", "crop_pct", "keep_aspect_ratio", "ensure_multiple_of", "size_divisor", "max_size")
    return prepare(image, {name: value for name, value in settings.items() if name not in dropped} | exact)


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
    require_known(settings)
    if settings.get("do_resize", not pads_by_mirror(settings)):
        size = resized(image.size, settings)
        _check_area(*size)
        image = image.resize(size, resample=int(settings.get("resample", _BILINEAR)))
    if (cut := cropped(settings)) is not None:
        image = _crop(image, cut)
    _check_area(image.width, image.height)
    pixels = np.asarray(image, dtype=np.float32)
    if settings.get("do_rescale", True):
        pixels = pixels * np.float32(settings.get("rescale_factor", 1 / 255))
    if settings.get("do_normalize", normalizes(settings)):
        mean = np.asarray(settings.get("image_mean", [0.5, 0.5, 0.5]), np.float32)
        deviation = np.asarray(settings.get("image_std", [0.5, 0.5, 0.5]), np.float32)
        pixels = (pixels - mean) / deviation
    if settings.get("do_flip_channel_order", False):
        pixels = pixels[:, :, ::-1]
    if pads_by_mirror(settings):
        step = int(settings.get("size_divisor") or settings.get("pad_size") or _MIRROR_STEP)
        more = [(0, (side // step + 1) * step - side) for side in pixels.shape[:2]]
        pixels = np.pad(pixels, (*more, (0, 0)), mode="symmetric")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def pads_by_mirror(settings: Mapping[str, Any]) -> bool:
    """Tell whether an image is not resized but filled up with itself, right and below, as Swin2SR's processor does."""
    return processor_name(settings) == "Swin2SR" and bool(settings.get("do_pad", True))


def _check_area(width: int, height: int) -> None:
    if width * height > MAX_GIVEN_PIXELS:
        what = f"an image would have {width} x {height} pixels, more than {MAX_GIVEN_PIXELS}"
        raise InputError(what, where=SETTINGS_NAME, hint="crop the image, or give a smaller size")


def _crop(image: Image, size: object) -> Image:
    width, height = resized(image.size, {"size": size})
    _check_area(width, height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
