"""Tiny checkpoints of models that compare texts with images, as a user would find them on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.tiny import VOCABULARY, spread_weights, tiny_tokenizer

POSITIONS = 24
SIDES = {"align": 48, "groupvit": 40}
_SIDE = 36
_MARKS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 28,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_VISION = {
    "hidden_size": 20,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": _SIDE,
    "patch_size": 12,
}
_CONVOLUTIONS: dict[str, Any] = {
    "image_size": SIDES["align"],
    "width_coefficient": 0.25,
    "depth_coefficient": 0.2,
    "hidden_dim": 20,
    "kernel_sizes": [3, 3],
    "in_channels": [16, 16],
    "out_channels": [16, 20],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 6],
    "projection_dim": 8,
}
_GROUPS: dict[str, Any] = {
    **_VISION,
    "image_size": SIDES["groupvit"],
    "patch_size": 8,
    "depths": [1, 1, 1],
    "num_hidden_layers": 3,
    "num_group_tokens": [6, 3, 0],
    "num_output_groups": [6, 3, 3],
}
_CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # class, text, vision, whole
    "clip": ("CLIPModel", {**_TEXT, **_MARKS}, _VISION, {"projection_dim": 16}),
    "metaclip_2": ("MetaClip2Model", {**_TEXT, **_MARKS}, _VISION, {"projection_dim": 16}),
    "siglip": ("SiglipModel", {**_TEXT, **_MARKS, "projection_size": 20}, _VISION, {}),
    "chinese_clip": ("ChineseCLIPModel", {**_TEXT, "type_vocab_size": 2}, _VISION, {"projection_dim": 16}),
    "altclip": ("AltCLIPModel", {**_TEXT, "type_vocab_size": 1, "project_dim": 16}, _VISION, {"projection_dim": 16}),
    "align": ("AlignModel", {**_TEXT, "type_vocab_size": 2}, _CONVOLUTIONS, {"projection_dim": 8}),
    "groupvit": (
        "GroupViTModel",
        {**_TEXT, **_MARKS},
        _GROUPS,
        {"projection_dim": 16, "projection_intermediate_dim": 24},
    ),
    "siglip2": ("Siglip2Model", {**_TEXT, **_MARKS}, {**_VISION, "num_patches": 9}, {}),
}


def tiny_dual(kind: str, folder: Path, *, saved: str = "") -> Path:
    """Write a checkpoint folder and return it.

    Args:
        kind: one of the model types above.
        folder: where to write.
        saved: the class of one of its towers; the whole model when empty.
    """
    import torch
    import transformers

    whole, text, vision, more = _CONFIGS[kind]
    if kind == "siglip2":
        vision = {key: value for key, value in vision.items() if key != "image_size"}
    model_class = getattr(transformers, saved or whole)
    config = getattr(transformers, whole).config_class(text_config=text, vision_config=vision, **more)
    if saved:
        config = config.vision_config if "Vision" in saved else config.text_config
        config.projection_dim = more["projection_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = model_class(config).eval()
        spread_weights(model)
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                parameter.data.fill_(1.2)
    model.save_pretrained(folder, safe_serialization=True)
    tiny_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = POSITIONS - (2 if kind == "altclip" else 0)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    side = SIDES.get(kind, _SIDE)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.5],
        "image_std": [0.25, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder
