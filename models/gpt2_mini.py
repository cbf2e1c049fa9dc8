"""Continue text with gpt2-mini, the sample for GPT-2: 6 layers, width 192, 6 heads, causal attention, tanh GELU.

Its weights were trained here on documentation in English and lie in `models/weights/gpt2-mini`, so nothing is fetched.
`training/gpt2_mini.py` made them; the model card beside them tells how and how well.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe, SampleFolder

RECIPE = Recipe(
    name="gpt2-mini",
    title="small GPT-2 of documentation prose",
    source="models/weights/gpt2-mini",
    task="text-generation",
    sample=SampleFolder(
        name="gpt2-mini",
        sha256="32b2bb5d30746672d7513172295c0bdc297fbca24e9caf75c861c73c68fc4c80",
    ),
    architecture={
        "model_type": "gpt2",
        "vocab_size": 4096,
        "n_positions": 512,
        "n_embd": 192,
        "n_layer": 6,
        "n_head": 6,
        "activation_function": "gelu_new",
        "bos_token_id": 4095,
        "eos_token_id": 4095,
    },
    expected={"attention": 6, "layer_norm": 13, "gelu": 6},  # two norms in each layer, one before the head
)
