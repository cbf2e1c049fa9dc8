"""Build tiny checkpoints of models that see images, one for each task, as a user would find them on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny import spread_weights

LABELS = 5
_BLOCKS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
_PYRAMID: dict[str, Any] = {
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}


def _detr(kind: str) -> tuple[str, dict[str, Any]]:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("attention_heads", "layers")}
    return f"{kind}ForObjectDetection", {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": backbone,
        "d_model": 16,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "num_queries": 7,
        **sizes,
    }


def _vitmatte() -> tuple[str, dict[str, Any]]:
    import transformers

    backbone = transformers.VitDetConfig(
        image_size=64,
        num_channels=4,
        out_features=["stage2"],
        window_size=2,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    sizes = {"fusion_hidden_sizes": [32, 16, 8, 8], "convstream_hidden_sizes": [8, 8, 8]}
    return "VitMatteForImageMatting", {"backbone_config": backbone, "hidden_size": 16, **sizes}


def _vitpose() -> tuple[str, dict[str, Any]]:
    import transformers

    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        out_features=["stage2"],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return "VitPoseForPoseEstimation", {"backbone_config": backbone}


_MODELS: Mapping[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "segformer": lambda: ("SegformerForSemanticSegmentation", _PYRAMID),
    "glpn": lambda: ("GLPNForDepthEstimation", _PYRAMID),
    "detr": lambda: _detr("Detr"),
    "conditional_detr": lambda: _detr("ConditionalDetr"),
    "yolos": lambda: (
        "YolosForObjectDetection",
        {"image_size": [64, 96], "patch_size": 16, "num_detection_tokens": 7, **_BLOCKS},
    ),
    "swin2sr": lambda: (
        "Swin2SRForImageSuperResolution",
        {"image_size": 16, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "upscale": 2},
    ),
    "vitpose": _vitpose,
    "vitmatte": _vitmatte,
    "videomae": lambda: ("VideoMAEForVideoClassification", {"image_size": 32, "num_frames": 4, **_BLOCKS}),
    "timesformer": lambda: ("TimesformerForVideoClassification", {"image_size": 32, "num_frames": 3, **_BLOCKS}),
    "clip": lambda: (
        "CLIPForImageClassification",
        {
            "vision_config": {"image_size": 48, "patch_size": 16, **_BLOCKS},
            "text_config": {"vocab_size": 99, **_BLOCKS},
        },
    ),
    "siglip": lambda: (
        "SiglipForImageClassification",
        {
            "vision_config": {"image_size": 48, "patch_size": 16, **_BLOCKS},
            "text_config": {"vocab_size": 99, **_BLOCKS},
        },
    ),
    "deit": lambda: ("DeiTForImageClassificationWithTeacher", {"image_size": 48, "patch_size": 16, **_BLOCKS}),
}


def image_checkpoint(kind: str, folder: Path, *, processor: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint folder and return it.

    Args:
        kind: one of the models above, by transformers' name of it.
        folder: where to write; made when missing.
        processor: content of preprocessor_config.json; none is written when None.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    name, settings = _MODELS[kind]()
    model_class = getattr(transformers, name)
    config = model_class.config_class(**settings, num_labels=LABELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = model_class(config).eval()
        spread_weights(model)
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(dict(processor)), encoding="utf-8")
    return folder
