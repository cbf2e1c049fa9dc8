"""Tiny encoder-decoders, as folders that transformers can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny import VOCABULARY, tiny_tokenizer

POSITIONS = 160
FRAMES, BINS = 100, 16  # of sound: twice the positions of the encoder
IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "decoder_start_token_id": 2,
}
T5: dict[str, Any] = {
    **IDS,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

CONFIGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "t5": ("t5", T5),
    "t5_gated": ("t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", {**IDS, **WIDTHS, "max_position_embeddings": POSITIONS}),
    "marian": ("marian", {**IDS, **WIDTHS, "max_position_embeddings": POSITIONS}),
    "pegasus": ("pegasus", {**IDS, **WIDTHS, "max_position_embeddings": POSITIONS}),
    "m2m_100": ("m2m_100", {**IDS, **WIDTHS, "max_position_embeddings": POSITIONS}),
    "blenderbot": ("blenderbot", {**IDS, **WIDTHS, "max_position_embeddings": POSITIONS}),
    "whisper": (
        "whisper",
        {
            **IDS,
            **WIDTHS,
            "max_target_positions": POSITIONS,
            "max_source_positions": FRAMES // 2,
            "num_mel_bins": BINS,
            "begin_suppress_tokens": None,
        },
    ),
}


def save_pair(name: str, folder: Path) -> Path:
    """Write config and random weights of a tiny encoder-decoder, wide enough apart that greedy choices are no ties."""
    import torch
    import transformers

    kind, settings = CONFIGS[name]
    config = transformers.AutoConfig.for_model(kind, **settings)
    auto = transformers.AutoModelForSpeechSeq2Seq if kind == "whisper" else transformers.AutoModelForSeq2SeqLM
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.12)
    model.save_pretrained(folder)
    return tiny_tokenizer(folder, gpt2=True)
