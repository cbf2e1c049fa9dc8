"""What models make of images, in words and as images: boxes, segments, depth, larger images.

The formulas are those of transformers' image processors (`post_process_object_detection`,
`post_process_semantic_segmentation`, `post_process_depth_estimation`). Whether the scores of boxes are shares of one or
each alone, tells the number of labels: heads of the first kind have one more, for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.extras import require
from onnxopt.run.inputs.enlarged import enlarged, weights
from onnxopt.run.inputs.image import SETTINGS_NAME, Seen, see_images
from onnxopt.run.inputs.image_sizes import processor_name
from onnxopt.run.labels import label_names
from onnxopt.run.results import (
    Box,
    Depth,
    DepthRange,
    Detections,
    Images,
    ImageSize,
    OfImages,
    Segments,
    Share,
)
from onnxopt.run.scores import softmax
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds
from onnxopt.texts.tokenizer import read_settings

THRESHOLD = 0.5  # of scores, as transformers' processors have it
MAX_BOXES = 100  # of those whose labels have a score each, before the threshold; RT-DETR's processor keeps one a query
_MASK2FORMER_SIDE = 384  # pixels, to which its processor scales masks before it adds them up
_STRIP = 32  # rows of a map that are made at a time: one number per label and pixel of a photo is gigabytes


@dataclass(frozen=True)
class PictureRun:
    """What is to be told of image files.

    Attributes:
        folder: the artifact.
        session: its model.
        config: content of its config.json.
        task: what it does.
        files: the images.
        out: where maps and images are written; nothing is where None.
    """

    folder: Path
    session: Session
    config: Mapping[str, Any]
    task: str
    files: tuple[str, ...]
    out: Path | None = None

    def seen(self) -> list[Seen]:
        """Run the model on each file."""
        return see_images(self.folder, self.session, [Path(name) for name in self.files])

    @property
    def processor(self) -> str:
        """The name of the checkpoint's image processor; empty where its settings name none."""
        return processor_name(read_settings(self.folder, SETTINGS_NAME))

    def output(self, outputs: Feeds, *names: str) -> Array:
        """Return the first output there is of some; raises InputError where there is none."""
        found = next((outputs[name] for name in names if name in outputs), None)
        if found is None:
            raise InputError(
                f"gives {', '.join(outputs)}, and none of it is {' or '.join(names)}",
                where=str(self.session.path),
                hint="run its tensors with onnxopt.Session",
            )
        return np.asarray(found, np.float32)

    def write(self, name: str, pixels: Array) -> str:
        """Write an image beside the others as PNG and return its path; raises InputError where that cannot be."""
        require("image", "writing a picture", where=str(self.out))
        from PIL import Image

        folder = self.out or Path()
        path = folder / f"{Path(name).stem}.png"
        if path.exists() and path.resolve() == Path(name).resolve():
            raise InputError("would be written over", where=str(path), hint="name another folder with --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror or error})", where=str(path)) from error
        return str(path)


def detections(run: PictureRun) -> Detections:
    """Tell what is on images, and where."""
    seen = run.seen()
    boxes = tuple(_boxes(run, one) for one in seen)
    return Detections(task=run.task, texts=run.files, threshold=THRESHOLD, boxes=boxes, notes=_notes(seen))


def _boxes(run: PictureRun, seen: Seen) -> tuple[Box, ...]:
    """Return the boxes of an image whose score is above the threshold, likeliest first."""
    logits = run.output(seen.outputs, "logits")[0]
    places = run.output(seen.outputs, "pred_boxes")[0]
    named = len(run.config.get("id2label") or ()) or logits.shape[-1]
    if logits.shape[-1] == named + 1:  # the last one stands for nothing
        known = softmax(logits)[:, :-1]
        queries, labels = np.arange(len(known)), known.argmax(axis=-1)
    else:
        known = 1 / (1 + np.exp(-logits))
        most = len(known) if run.processor.startswith("RTDetr") else MAX_BOXES
        best = np.argsort(-known, axis=None, kind="stable")[:most]
        queries, labels = np.unravel_index(best, known.shape)
    names = label_names(run.config, known.shape[-1])
    scores = known[queries, labels]
    order = [index for index in np.argsort(-scores, kind="stable") if scores[index] > THRESHOLD]
    return tuple(_box(names[labels[at]], float(scores[at]), places[queries[at]], seen.size) for at in order)


def _box(label: str, score: float, place: Array, size: tuple[int, int]) -> Box:
    """Return a box in pixels from its middle, width and height in shares of an image."""
    x, y, width, height = (float(one) for one in place)
    return Box(
        label=label,
        score=score,
        left=(x - width / 2) * size[0],
        top=(y - height / 2) * size[1],
        right=(x + width / 2) * size[0],
        bottom=(y + height / 2) * size[1],
    )


def segments(run: PictureRun) -> Segments:
    """Tell what the pixels of images belong to."""
    seen, shares, files = run.seen(), [], []
    for name, one in zip(run.files, seen, strict=True):
        maps = _label_maps(run, one.outputs)
        found = np.concatenate([part.argmax(axis=0) for part in _strips(maps, one.size)])
        names = label_names(run.config, len(maps))
        numbers, counts = np.unique(found, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shares.append(tuple(Share(label=names[numbers[at]], share=float(counts[at] / found.size)) for at in order))
        if run.out is not None:
            files.append(run.write(name, found.astype(np.uint8 if len(maps) <= 1 << 8 else np.uint16)))
    told = _notes(seen)
    return Segments(task=run.task, texts=run.files, shares=tuple(shares), files=tuple(files), notes=told)


def _label_maps(run: PictureRun, outputs: Feeds) -> Array:
    """Return how much each label speaks for each place: float32 [labels, height, width] of the model's own size.

    A model that gives masks and their labels in place of labels of pixels is asked for what speaks for each label over
    all masks.
    """
    masks = next((outputs[name] for name in ("masks_queries_logits", "pred_masks") if name in outputs), None)
    if masks is None:
        logits = run.output(outputs, "logits")[0]
        if logits.ndim != 3:
            raise InputError(
                f"gives logits of shape {list(logits.shape)}, and none of each pixel", where=str(run.session.path)
            )
        return np.asarray(logits)
    classes = softmax(run.output(outputs, "class_queries_logits", "logits")[0])[:, :-1]
    masks = np.asarray(masks[0], np.float32)
    if run.processor.startswith("Mask2Former"):
        masks = enlarged(masks, (_MASK2FORMER_SIDE, _MASK2FORMER_SIDE))
    return np.asarray(np.einsum("qc,qhw->chw", classes, 1 / (1 + np.exp(-masks))), np.float32)


def _strips(maps: Array, size: tuple[int, int]) -> Iterator[Array]:
    """Yield maps of the size of an image, some rows at a time: float32 [labels, rows, width]."""
    width, height = size
    down, across = weights(maps.shape[1], height, "bilinear"), weights(maps.shape[2], width, "bilinear")
    wide = maps @ across.T
    for start in range(0, height, _STRIP):
        yield down[start : start + _STRIP] @ wide


def depth(run: PictureRun) -> Depth:
    """Tell how far the pixels of images are."""
    seen, ranges, files = run.seen(), [], []
    for name, one in zip(run.files, seen, strict=True):
        width, height = one.size
        found = enlarged(run.output(one.outputs, "predicted_depth")[0], (height, width), "bicubic")
        least, most = float(found.min()), float(found.max())
        ranges.append(DepthRange(width=width, height=height, least=least, mean=float(found.mean()), most=most))
        if run.out is not None:
            scaled = (found - least) / ((most - least) or 1.0) * np.iinfo(np.uint16).max
            files.append(run.write(name, scaled.round().astype(np.uint16)))
    return Depth(task=run.task, texts=run.files, ranges=tuple(ranges), files=tuple(files), notes=_notes(seen))


def images(run: PictureRun) -> Images:
    """Make images of images; what the processor had added right and below is cut off again."""
    seen, sizes, files = run.seen(), [], []
    for name, one in zip(run.files, seen, strict=True):
        found = run.output(one.outputs, "reconstruction")[0]
        scale = found.shape[2] / one.given[0]
        kept = one.given if one.warped else one.size
        width, height = (round(scale * side) for side in kept)
        found = found[:, :height, :width]
        sizes.append(ImageSize(width=found.shape[2], height=found.shape[1]))
        if run.out is not None:
            levels = (found.clip(0, 1) * np.iinfo(np.uint8).max).round().astype(np.uint8)
            files.append(run.write(name, np.ascontiguousarray(levels.transpose(1, 2, 0))))
    return Images(task=run.task, texts=run.files, sizes=tuple(sizes), files=tuple(files), notes=_notes(seen))


def _notes(seen: Sequence[Seen]) -> tuple[str, ...]:
    """Return what must be said of how the images were given."""
    warped = next((one for one in seen if one.warped), None)
    if warped is None:
        return ()
    width, height = warped.given
    return (f"the model takes {width} x {height} pixels alone: images of other proportions were stretched to that",)


ANSWERS: Mapping[str, Callable[[PictureRun], OfImages]] = {
    "detections": detections,
    "segments": segments,
    "depth": depth,
    "images": images,
}
