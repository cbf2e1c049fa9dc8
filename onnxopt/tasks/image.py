"""Tasks of models that see images, or images in a row, alone."""

from __future__ import annotations

from onnxopt.tasks.task import Head, Task

_LOGITS = ("logits",)
_PICTURE = "picture.png"

IMAGE_TASKS: tuple[Task, ...] = (
    Task(
        "image-classification",
        "labels of images",
        (Head("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", _LOGITS),),
        ("image",),
        "classification",
        _PICTURE,
    ),
    Task(
        "image-feature-extraction",
        "embeddings of images",
        (
            Head(
                "AutoModel",
                "MODEL_MAPPING_NAMES",
                ("image_embeds", "last_hidden_state"),
                first=True,
                tower="get_image_features",
            ),
        ),
        ("image",),
        "embeddings",
        _PICTURE,
    ),
)
