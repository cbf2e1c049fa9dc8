"""Turn text into token features with BERT base: 12 layers, width 768, 12 heads, 110 M parameters.

Source: Devlin et al. 2018, arXiv:1810.04805.
"""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe

RECIPE = Recipe(
    name="bert-base-uncased",
    title="BERT base, token features",
    source="google-bert/bert-base-uncased",
    task="feature-extraction",
    stand_in="minilm",
    architecture={
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    },
    expected={"attention": 12, "layer_norm": 25, "gelu": 12},  # one norm after the embeddings, two in each layer
)
