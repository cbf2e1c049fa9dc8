"""Tell positive from negative sentences with DistilBERT: 6 layers, width 768, 12 heads, two labels.

Source: Sanh et al. 2019, arXiv:1910.01108; fine-tuned on SST-2.
"""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe

RECIPE = Recipe(
    name="distilbert-sst2",
    title="DistilBERT sentiment classifier",
    source="distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    task="text-classification",
    architecture={
        "model_type": "distilbert",
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "num_labels": 2,
    },
    expected={"attention": 6, "layer_norm": 13, "gelu": 6},  # one norm after the embeddings, two in each layer
)
