"""Find by trying what an image model takes: channels, frames, the size it is for, and whether other sizes run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from onnxopt.errors import ExportError, said
from onnxopt.host.quiet import quiet
from onnxopt.spec import TensorSpec

PIXELS = "pixel_values"
SIDES = ("height", "width")
PLAIN_SIZE = 224  # what image models without a word mean
_CHANNELS = 3
_LARGER = (32, 64)  # pixels more in height and width than a model is for: two sides that differ, whole patches mostly
_FRAMES = ("num_frames", "frames_per_clip")
_TRIED_FRAMES = 16


def image_input(
    network: Any, config: Any, processor: Mapping[str, Any], *, where: str
) -> tuple[TensorSpec, tuple[int, int]]:
    """Return the pixels that a model takes, and the height and width it is for.

    What its config says is tried first, then what most are for, then what its processor makes. A model that takes one
    size alone is for what its processor makes, where it runs on that.

    Args:
        network: transformers' module, for inference.
        config: its config.
        processor: the settings of its image processor; empty where there are none.
        where: the checkpoint, for messages.

    Returns:
        float32 [batch, channels, height, width], for a video [batch, frames, channels, height, width]; height and width
        are open where the model runs on larger images.

    Raises:
        ExportError: when it runs on none.
    """
    made = list(_processed_sizes(processor))
    sizes = list(dict.fromkeys((*_sizes(config), (PLAIN_SIZE, PLAIN_SIZE), *made)))
    reason = ""
    for (height, width), front in product(sizes, _fronts(config)):
        refused = _refusal(network, (*front, height, width))
        if not refused:
            if not _refusal(network, (*front, height + _LARGER[0], width + _LARGER[1])):
                return TensorSpec(PIXELS, "float32", ("batch", *front, *SIDES)), (height, width)
            only = _runs_at(network, front, made) or (height, width)
            return TensorSpec(PIXELS, "float32", ("batch", *front, *only)), only
        reason = reason or refused
    tried = ", ".join(f"{height} × {width}" for height, width in sizes)
    raise ExportError(f"the model does not run on {PIXELS} of {tried}: {reason}", where=where)


def made_size(network: Any, pixels: TensorSpec, processor: Mapping[str, Any]) -> tuple[int, ...]:
    """Return height and width of the images that a processor makes, for a model of open sides that has to have one.

    Args:
        network: transformers' module, for inference.
        pixels: what it takes.
        processor: the settings of its image processor; empty where there are none.

    Returns:
        The size; empty where the processor makes none that the model runs at, or the sides are not open.
    """
    front = tuple(axis for axis in pixels.axes[1:-2] if isinstance(axis, int))
    if pixels.name != PIXELS or pixels.axes[-2:] != SIDES:
        return ()
    return _runs_at(network, front, list(_processed_sizes(processor))) or ()


def _runs_at(network: Any, front: tuple[int, ...], sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first of some sizes at which a model runs."""
    return next((size for size in sizes if not _refusal(network, (*front, *size))), None)


def trained_size(config: Any) -> tuple[int, int]:
    """Return height and width that a model was trained with, by its config or the part of it about images."""
    return next(_sizes(config), (PLAIN_SIZE, PLAIN_SIZE))


def _refusal(network: Any, shape: tuple[int, ...]) -> str:
    """Return why a model does not run on one image of a shape, or an empty string."""
    import torch

    try:
        with torch.inference_mode(), quiet():
            network(**{PIXELS: torch.zeros(1, *shape)})
    except Exception as error:  # noqa: BLE001  whatever a model raises, it says no
        return said(error)
    return ""


def _fronts(config: Any) -> Iterator[tuple[int, ...]]:
    """Yield what may stand between rows and height: channels, or the frames of a video and the channels of each."""
    parts = list(_parts(config))
    channels = [one.get("num_channels") for one in parts]
    counts = list(dict.fromkeys(int(one) for one in (*channels, _CHANNELS) if one))
    frames = [int(one[name]) for one in parts for name in _FRAMES if isinstance(one.get(name), int)]
    yield from ((count,) for count in counts)
    yield from ((frame, count) for frame in dict.fromkeys((*frames, _TRIED_FRAMES)) for count in counts)


def _sizes(config: Any) -> Iterator[tuple[int, int]]:
    """Yield height and width that a config and the configs in it speak of, its own first."""
    for part in _parts(config):
        size = part.get("image_size")
        pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        if pair and all(type(one) is int and one > 0 for one in pair):
            yield pair[0], pair[-1]


def _processed_sizes(processor: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield height and width of the images that a processor makes; a square where they hang on the image."""
    cropped = bool(processor.get("do_center_crop"))
    size = processor.get("crop_size" if cropped else "size") or processor.get("size")
    if not cropped and processor.get("do_resize") is False:
        return
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if isinstance(edge, int):
        yield edge, edge
    if isinstance(size, Mapping) and all(isinstance(size.get(side), int) for side in SIDES):
        yield int(size["height"]), int(size["width"])


def _parts(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a config and those inside it as mappings."""
    whole = config.to_dict()
    yield whole
    yield from (value for value in whole.values() if isinstance(value, dict))
