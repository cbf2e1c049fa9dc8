"""Fill masked words with RoBERTa base: 12 layers, width 768, 12 heads, positions counted from the padding id.

Source: Liu et al. 2019, arXiv:1907.11692.
"""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe

RECIPE = Recipe(
    name="roberta-base",
    title="RoBERTa base masked language model",
    source="FacebookAI/roberta-base",
    task="fill-mask",
    architecture={
        "model_type": "roberta",
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    },
    # one norm after the embeddings, two in each layer; the masked-word head adds one norm and one GELU
    expected={"attention": 12, "layer_norm": 26, "gelu": 13},
)
