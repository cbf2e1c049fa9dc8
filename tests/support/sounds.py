"""Build tiny checkpoints of what hears, with random weights and the processors that real ones have."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tiny import spread_weights

RATE = 16_000
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLU'")
LABELS = 5

_WAVES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "tdnn_dim": (24, 24, 40),
    "tdnn_kernel": (5, 3, 1),
    "tdnn_dilation": (1, 2, 1),
    "xvector_output_dim": 12,
    "classifier_proj_size": 20,
}
_MELS = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
_PARAKEET = {
    **_MELS,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 8,
    "conv_kernel_size": 5,
    "max_position_embeddings": 400,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "wav2vec2": {},
    "wav2vec2-conformer": {},
    "hubert": {},
    "wavlm": {},
    "unispeech": {},
    "unispeech-sat": {},
    "data2vec-audio": {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5},
    "sew": {"squeeze_factor": 2},
    "sew-d": {"squeeze_factor": 2},
    "wav2vec2-bert": {"feature_projection_input_dim": 20, "output_hidden_size": 32},
    "parakeet_ctc": {"encoder_config": _PARAKEET},
    "lasr_ctc": {"encoder_config": {**_PARAKEET, "subsampling_conv_kernel_size": 5}},
    "audio-spectrogram-transformer": {"max_length": 60, "num_mel_bins": 24, "patch_size": 8},
    "whisper": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_mel_bins": 20,
        "max_source_positions": 25,
        "max_target_positions": 20,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
}


def sound_checkpoint(
    kind: str, folder: Path, auto_class: str, *, mask: bool | None = None, normalize: bool = True, **settings: Any
) -> Path:
    """Write a checkpoint folder and return it.

    Args:
        kind: model type, one of `SETTINGS`.
        folder: where to write; made when missing.
        auto_class: transformers' class that builds the model: `AutoModelForCTC`.
        mask: whether the feature extractor makes one; None leaves the feature extractor of waves out.
        normalize: whether it brings waves to mean 0 and deviation 1.
        settings: of the config, in place of the usual ones.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    mels = {"audio-spectrogram-transformer": _MELS, "parakeet_ctc": {}, "lasr_ctc": {}, "whisper": {}}
    own = {**mels.get(kind, _WAVES), **SETTINGS[kind], "vocab_size": len(LETTERS), "num_labels": LABELS}
    own = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | own | settings
    config = transformers.AutoConfig.for_model(kind, **own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = getattr(transformers, auto_class).from_config(config).eval()
        spread_weights(model)
    model.save_pretrained(folder, safe_serialization=True)
    if mask is not None:
        extractor = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": RATE,
            "padding_value": 0.0,
            "do_normalize": normalize,
            "return_attention_mask": mask,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(extractor), encoding="utf-8")
    if auto_class == "AutoModelForCTC":
        vocabulary = {letter: index for index, letter in enumerate(LETTERS)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        tokenizer = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|", "pad_token": "<pad>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def write_wave(path: Path, seconds: float = 0.5, *, rate: int = RATE, pitch: float = 220.0, channels: int = 1) -> Path:
    """Write a PCM file of 16 bits: a voice-like tone with overtones, and a little noise of a fixed seed."""
    count = int(seconds * rate)
    time = np.arange(count) / rate
    sound = sum(np.sin(2 * math.pi * pitch * over * time) / over for over in (1, 2, 3)) * 0.2
    sound = sound + np.random.default_rng(3).normal(0, 0.02, count)
    samples = np.repeat((sound * 32767).astype("<i2")[:, None], channels, axis=1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path
