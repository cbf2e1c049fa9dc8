"""Tiny decoders of many architectures, as folders that transformers can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny import VOCABULARY, tiny_tokenizer

POSITIONS = 160
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# one table up to 40 positions, another beyond
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 0.3 * index for index in range(8)],
    "original_max_position_embeddings": 40,
}
# the last two of four layers look at the keys of the first two; windows in turns
SHARED: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
}
GEMMA3N: dict[str, Any] = {
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0] * 4,
    "intermediate_size": [96] * 4,
}

CONFIGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt_neo": (
        "gpt_neo",
        {**TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    ),
    "gptj": ("gptj", {**GPT, "rotary_dim": 8}),
    "gpt_neox": ("gpt_neox", {**TEXT, "rotary_pct": 0.5}),
    "opt": ("opt", {**TEXT, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("bloom", {**TEXT, "n_layer": 2, "n_head": 4}),
    "falcon": ("falcon", {**TEXT, "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}),
    "mpt": (
        "mpt",
        {**TEXT, "d_model": 64, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": POSITIONS},
    ),
    "phi": ("phi", {**TEXT, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {**TEXT, "num_key_value_heads": 2}),
    "phi3_longrope": ("phi3", {**TEXT, "num_key_value_heads": 2, "rope_scaling": LONGROPE}),
    "llama": ("llama", {**TEXT, **GROUPED}),
    "mistral": ("mistral", {**TEXT, **GROUPED, "sliding_window": 8}),
    "mixtral": ("mixtral", {**TEXT, **GROUPED, "num_local_experts": 4}),
    "qwen2": ("qwen2", {**TEXT, "num_key_value_heads": 2}),
    "qwen2_moe": ("qwen2_moe", {**TEXT, **EXPERTS, "num_key_value_heads": 2, "shared_expert_intermediate_size": 32}),
    "qwen3": ("qwen3", {**TEXT, **GROUPED}),
    "gemma": ("gemma", {**TEXT, **GROUPED}),
    "gemma2": ("gemma2", {**TEXT, **GROUPED, "sliding_window": 8}),
    "gemma3_text": ("gemma3_text", {**TEXT, **GROUPED, "sliding_window": 8}),
    "gemma3n_text": ("gemma3n_text", {**TEXT, **GROUPED, **SHARED, **GEMMA3N}),
    "gemma4_text": ("gemma4_text", {**TEXT, **GROUPED, **SHARED, "global_head_dim": 32}),
    "olmo2": ("olmo2", {**TEXT, "num_key_value_heads": 2}),
    "starcoder2": ("starcoder2", {**TEXT, "num_key_value_heads": 2}),
    "smollm3": ("smollm3", {**TEXT, "num_key_value_heads": 2}),
    "granite": ("granite", {**TEXT, "num_key_value_heads": 2}),
    "stablelm": ("stablelm", {**TEXT, "num_key_value_heads": 2}),
    "cohere": ("cohere", {**TEXT, "num_key_value_heads": 2}),
    "glm": ("glm", {**TEXT, "num_key_value_heads": 2, "head_dim": 16}),
    "gpt_oss": ("gpt_oss", {**TEXT, **GROUPED, "num_local_experts": 4, "sliding_window": 8}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "codegen": ("codegen", {**GPT, "rotary_dim": 8}),
}


def save_decoder(name: str, folder: Path) -> Path:
    """Write config and random weights of a tiny decoder, wide enough apart that greedy choices are no ties."""
    import torch
    import transformers

    kind, settings = CONFIGS[name]
    config = transformers.AutoConfig.for_model(kind, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.12)
    model.save_pretrained(folder)
    return tiny_tokenizer(folder, gpt2=True)
