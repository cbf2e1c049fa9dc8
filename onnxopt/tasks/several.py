"""Tasks of models that take several kinds of things at once: an image and a text, a page and its words."""

from __future__ import annotations

from onnxopt.tasks.task import IMAGE_BATCH, Head, Task

_COMPARED = ("logits_per_image", "text_embeds", "image_embeds")

SEVERAL_TASKS: tuple[Task, ...] = (
    Task(
        "zero-shot-image-classification",
        "which of some texts suits an image",
        (
            Head(
                "AutoModelForZeroShotImageClassification",
                "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
                _COMPARED,
                pictures=IMAGE_BATCH,
            ),
            Head("AutoModel", "MODEL_MAPPING_NAMES", _COMPARED, pictures=IMAGE_BATCH),
        ),
        ("image", "text"),
        "classification",
        'picture.png --labels "a cat,a dog"',
        after="softmax over the last axis of logits_per_image; its columns are the texts",
    ),
)
