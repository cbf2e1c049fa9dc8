"""Continue text with GPT-2: 12 layers, width 768, 12 heads, causal attention, tanh GELU.

The output head shares its table with the embeddings.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe

RECIPE = Recipe(
    name="gpt2",
    title="GPT-2 language model",
    source="openai-community/gpt2",
    task="text-generation",
    stand_in="gpt2-mini",
    architecture={
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    expected={"attention": 12, "layer_norm": 25, "gelu": 12},  # two norms in each layer, one before the head
)
