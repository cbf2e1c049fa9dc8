"""Say which of some texts suits an image, by a model that compares both.

Source: Radford et al. 2021, arXiv:2103.00020; `transformers` pipelines (`ZeroShotImageClassificationPipeline`), whose
sentence for a label is taken where a user writes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxopt.errors import InputError
from onnxopt.run.claims import HYPOTHESIS, Claims
from onnxopt.run.inputs.image import SETTINGS_NAME, open_image, prepare
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.results import Classification, Label
from onnxopt.run.scores import Scores, as_scores
from onnxopt.spec import Array, TensorSpec
from onnxopt.texts.tokenizer import read_settings

PHOTO = "This is a photo of {}."
PIXELS, COMPARED = "pixel_values", "logits_per_image"
TOGETHER = 8  # images of a run: more would take memory, fewer read the texts again for nothing
_PROCESSOR = "processor_config.json"  # where newer checkpoints have the settings of the image beside others


def compare(
    model: TextModel, task: str, images: Sequence[str], claims: Claims, how: Scores = "softmax"
) -> Classification:
    """Score labels for images.

    Args:
        model: the artifact with its tokenizer.
        task: what is done, for the result.
        images: paths of files.
        claims: the labels and the sentence in which each of them stands.
        how: what the logits of an image become: shares of one, or each by itself.

    Returns:
        The labels of each image, the best first.

    Raises:
        InputError: a file cannot be read, or the artifact does not compare texts with images.
    """
    spec = next((one for one in model.session.inputs if one.name == PIXELS), None)
    if spec is None or COMPARED not in {one.name for one in model.session.outputs}:
        given = ", ".join(one.name for one in model.session.inputs)
        raise InputError(f"takes {given}; no texts are compared with images", where=str(model.session.path))
    # the sentence that claims a label of a text speaks of no picture
    sentence = PHOTO if claims.hypothesis == HYPOTHESIS else claims.hypothesis
    texts = model.batch(model.encode([sentence.replace("{}", label) for label in claims.labels]), beside=(PIXELS,))
    rows: list[tuple[Label, ...]] = []
    for start in range(0, len(images), TOGETHER):
        pixels = pixels_of(model.folder, [Path(one) for one in images[start : start + TOGETHER]], spec)
        logits = model.session.run({**texts, PIXELS: pixels}, outputs=[COMPARED])[COMPARED]
        rows += map(claims.in_order, as_scores(logits, how))
    return Classification(task=task, texts=tuple(images), labels=tuple(rows), notes=tuple(dict.fromkeys(model.notes)))


def pixels_of(folder: Path, paths: Sequence[Path], spec: TensorSpec) -> Array:
    """Return images as the processor of an artifact makes them.

    Args:
        folder: the artifact.
        paths: files of images.
        spec: the input that takes them.

    Returns:
        [images, channels, height, width] in the type of the input.

    Raises:
        InputError: nothing says how an image is prepared, a file cannot be read, or it comes out in another size than
            the graph takes.
    """
    settings = read_settings(folder, SETTINGS_NAME) or read_settings(folder, _PROCESSOR).get("image_processor")
    if not settings:
        raise InputError(
            f"no {SETTINGS_NAME}, so an image cannot be prepared", where=str(folder), hint="copy it from the checkpoint"
        )
    made = []
    for path in paths:
        pixels = prepare(open_image(path), settings)
        wanted = tuple(axis for axis in spec.axes[1:] if isinstance(axis, int))
        if len(wanted) == pixels.ndim and pixels.shape != wanted:
            shown = " x ".join(map(str, pixels.shape[1:]))
            raise InputError(
                f"comes out of {SETTINGS_NAME} as {shown} pixels, the model takes {wanted[1]} x {wanted[2]}",
                where=str(path),
                hint=f"mend size or crop_size in {SETTINGS_NAME}",
            )
        made.append(pixels.astype(spec.dtype))
    return np.stack(made)
