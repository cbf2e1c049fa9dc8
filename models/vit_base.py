"""Classify images with ViT base: 12 layers, width 768, 12 heads, 224 × 224 pixels in patches of 16.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929.
"""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe
from onnxopt.spec import Workload

RECIPE = Recipe(
    name="vit-base",
    title="ViT base image classifier",
    source="google/vit-base-patch16-224",
    task="image-classification",
    architecture={
        "model_type": "vit",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 16,
        "num_labels": 1000,
    },
    workload=Workload(({"batch": 1}, {"batch": 4})),
    expected={"attention": 12, "layer_norm": 25, "gelu": 12},  # two norms in each layer, one before the head
)
