"""Tasks of models that see images, or images in a row, alone."""

from __future__ import annotations

from onnxopt.tasks.task import Head, Task

_LOGITS = ("logits",)
_PICTURE = "picture.png"
_MASKS_OF_QUERIES = ("class_queries_logits", "masks_queries_logits", "logits", "pred_boxes", "pred_masks")

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
    Task(
        "image-segmentation",
        "what each pixel of an image belongs to",
        (
            Head("AutoModelForSemanticSegmentation", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES", _LOGITS),
            Head(
                "AutoModelForUniversalSegmentation", "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES", _MASKS_OF_QUERIES
            ),
            Head(
                "AutoModelForInstanceSegmentation", "MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES", _MASKS_OF_QUERIES
            ),
            Head("AutoModelForImageSegmentation", "MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES", _MASKS_OF_QUERIES),
        ),
        ("image",),
        "segments",
        _PICTURE,
        after="logits are enlarged to the size of the image, bilinearly, and the largest over axis 1 is the label of a "
        "pixel; of masks per query: softmax over the last axis of the class logits without its last, times sigmoid of "
        "the mask logits, summed over the queries",
        synonyms=("semantic-segmentation",),
    ),
    Task(
        "object-detection",
        "what is on an image, and the boxes around it",
        (
            Head(
                "AutoModelForObjectDetection",
                "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
                ("logits", "pred_boxes"),
            ),
        ),
        ("image",),
        "detections",
        _PICTURE,
        after="pred_boxes are the middle, width and height of a box, as shares of the image; the score of a label is "
        "softmax over the last axis of logits, whose last is nothing, or the sigmoid of each logit, as the "
        "checkpoint's image processor has it",
    ),
    Task(
        "depth-estimation",
        "how far each pixel of an image is",
        (
            Head(
                "AutoModelForDepthEstimation",
                "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
                ("predicted_depth", "field_of_view", "domain_logits"),
            ),
        ),
        ("image",),
        "depth",
        _PICTURE,
        after="predicted_depth is enlarged to the size of the image, bicubically",
    ),
    Task(
        "image-to-image",
        "another image out of an image: a larger or a cleaner one",
        (Head("AutoModelForImageToImage", "MODEL_FOR_IMAGE_TO_IMAGE_MAPPING_NAMES", ("reconstruction",)),),
        ("image",),
        "images",
        _PICTURE,
        after="reconstruction is clipped to 0 to 1; times 255 it is the image",
    ),
    Task(
        "pose-estimation",
        "where the joints of a body are, on an image of it alone",
        (Head("AutoModelForPoseEstimation", "MODEL_FOR_POSE_ESTIMATION_MAPPING_NAMES", ("heatmaps",)),),
        ("image",),
        "tensors",
        _PICTURE,
        after="the largest of each of the heatmaps is where a joint is",
    ),
    Task(
        "image-matting",
        "how much of each pixel is foreground, by an image and a rough map of it",
        (Head("AutoModelForImageMatting", "MODEL_FOR_IMAGE_MATTING_MAPPING_NAMES", ("alphas",)),),
        ("image",),
        "tensors",
        _PICTURE,
        after="alphas are shares of foreground, from 0 to 1",
    ),
    Task(
        "video-classification",
        "labels of a video",
        (Head("AutoModelForVideoClassification", "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES", _LOGITS),),
        ("video",),
        "classification",
        "frames/",
    ),
)
