"""The size that an image processor gives an image, by the settings of its checkpoint.

The formulas are those of transformers' image processors (`get_size_with_aspect_ratio` of its `image_transforms`, the
steps of DPT's, YOLOS', GLPN's, MaskFormer's and ConvNeXt's), so that the pixels are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnxopt.errors import InputError
from onnxopt.texts.settings import PREPROCESSOR

_YOLOS_STEP = 16  # pixels; YOLOS' processor alone rounds down to these, and writes them nowhere
_WARPED_FROM = 384  # pixels; from here on ConvNeXt's processor crops nothing
_UNKNOWN = ("ZoeDepth", "Eomt", "OneFormer")  # whose processors do more to an image than is known here
# whose processors leave colours from 0 to 1 where their settings say nothing of mean and deviation
_PLAIN = ("GLPN", "MobileViT", "RTDetr", "Swin2SR")


def processor_name(settings: Mapping[str, Any]) -> str:
    """Return the name of the class that makes a checkpoint's images, without its usual ending; empty without one."""
    named = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    return named.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")


def normalizes(settings: Mapping[str, Any]) -> bool:
    """Tell whether a processor takes the mean from colours, where its settings do not say."""
    return not processor_name(settings).startswith(_PLAIN)


def require_known(settings: Mapping[str, Any]) -> None:
    """Refuse settings whose processor does more to an image than is done here.

    Raises:
        InputError: names the processor, and the way around.
    """
    name = processor_name(settings)
    if name.startswith(_UNKNOWN):
        raise InputError(
            f"images for {name} are prepared in ways of their own, which are not known here",
            where=PREPROCESSOR,
            hint="prepare them with transformers, and give the tensors to onnxopt.Session",
        )


def resized(image: tuple[int, int], settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return the size that an image is resized to.

    Args:
        image: width and height in pixels.
        settings: content of preprocessor_config.json.

    Returns:
        Width and height in pixels.

    Raises:
        InputError: when the settings say it in no known way.
    """
    size, step = settings.get("size"), int(settings.get("size_divisor") or 0)
    if isinstance(size, int) and settings.get("max_size"):  # as it was written before sizes were objects
        size = {"shortest_edge": size, "longest_edge": int(settings["max_size"])}
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if size is None and step:
        return image[0] // step * step, image[1] // step * step
    if isinstance(size, Mapping) and "height" in size and "width" in size:
        exact = int(size["width"]), int(size["height"])
        multiple = int(settings.get("ensure_multiple_of") or 1)
        if settings.get("keep_aspect_ratio") or multiple > 1:
            return _in_multiples(image, exact, multiple, keeps=bool(settings.get("keep_aspect_ratio")))
        return exact
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"} and settings.get("crop_pct"):
        return _before_cropping(image, int(size["shortest_edge"]), float(settings["crop_pct"]))
    if isinstance(size, Mapping) and set(size) in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        found = _by_edges(image, int(size["shortest_edge"]), size.get("longest_edge"))
        if processor_name(settings) == "Yolos":
            return found[0] - found[0] % _YOLOS_STEP, found[1] - found[1] % _YOLOS_STEP
        return (math.ceil(found[0] / step) * step, math.ceil(found[1] / step) * step) if step else found
    raise InputError(f"the size {size!r} is not understood", where=PREPROCESSOR)


def cropped(settings: Mapping[str, Any]) -> object:
    """Return the size that is cut out of the middle after resizing, as it is written; None where nothing is."""
    if settings.get("do_center_crop", False):
        return settings.get("crop_size") or settings.get("size")
    size = settings.get("size")
    if settings.get("crop_pct") and isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    return None


def _before_cropping(image: tuple[int, int], edge: int, share: float) -> tuple[int, int]:
    """Return the size of which a share is cut out; large ones are warped, and nothing is cut out."""
    return (edge, edge) if edge >= _WARPED_FROM else _by_edges(image, int(edge / share), None)


def _by_edges(image: tuple[int, int], shortest: int, longest: int | None) -> tuple[int, int]:
    """Return the size with that shorter side, or with that longer one where the image would have more."""
    width, height = image
    least, most = min(image), max(image)
    exact: float = shortest
    if longest is not None and most / least * shortest > longest:
        exact = longest * least / most
        shortest = round(exact)
    if least == shortest:
        return image
    other = max(1, int(exact * most / least))
    return (shortest, other) if width < height else (other, shortest)


def _in_multiples(image: tuple[int, int], wanted: tuple[int, int], multiple: int, *, keeps: bool) -> tuple[int, int]:
    """Return the size in multiples that is next to the wanted one; keeping the proportions, the least is scaled."""
    across, down = wanted[0] / image[0], wanted[1] / image[1]
    if keeps:
        across = down = across if abs(1 - across) < abs(1 - down) else down
    scaled = (image[0] * across, image[1] * down)
    width, height = (max(multiple, round(side / multiple) * multiple) for side in scaled)
    return width, height
